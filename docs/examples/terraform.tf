# A target of Knock's, "bastion", as a pool of two security groups, and the instance that it guards.
#
# The groups say nothing about ingress: Terraform then leaves to others what is in them. They are tagged with what
# Knock reads, and the rules that are yours are resources of their own, in a group of their own.

terraform {
  required_version = ">= 1.2"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "vpc_id" { type = string }
variable "subnet_id" { type = string }
variable "ami" { type = string }

variable "knock_stack" {
  description = "The name of the Knock stack: its functions only touch groups that carry it"
  type        = string
  default     = "knock"
}

resource "aws_security_group" "knock_bastion" {
  count       = 2 # one group more is room for 60 rules more
  name        = "knock-bastion-${count.index + 1}"
  description = "Knock opens 22/tcp here"
  vpc_id      = var.vpc_id

  tags = {
    "knock:stack"  = var.knock_stack
    "knock:target" = "bastion"
    "knock:ports"  = "22/tcp"
  }
}

resource "aws_security_group" "bastion" {
  name        = "bastion"
  description = "What is always open at the bastion"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "monitoring" {
  security_group_id = aws_security_group.bastion.id
  description       = "Monitoring"
  cidr_ipv4         = "10.0.0.0/8"
  ip_protocol       = "tcp"
  from_port         = 9100
  to_port           = 9100
}

resource "aws_vpc_security_group_egress_rule" "out" {
  security_group_id = aws_security_group.bastion.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_instance" "bastion" {
  ami                    = var.ami
  instance_type          = "t4g.nano"
  subnet_id              = var.subnet_id
  vpc_security_group_ids = concat([aws_security_group.bastion.id], aws_security_group.knock_bastion[*].id)
}
