"""`knock-admin target`: pools of groups, what they are attached to, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from moto.ec2.models import ec2_backends

from knock_admin import attach
from knock_admin.attach import interface as _interface
from knock_admin.aws import Aws
from knock_admin.targets import used
from tests.clients.admin_support import ACCOUNT, REGION, STACK, World, failing_at, make_world

world = pytest.fixture(make_world)


def pool(world: World, name: str = "bastion") -> list[dict[str, Any]]:
    """List a target's finished groups, in the order in which they are filled."""
    groups = world.ec2.describe_security_groups(
        Filters=[
            {"Name": "tag:knock:stack", "Values": [STACK]},
            {"Name": "tag:knock:target", "Values": [name]},
        ]
    )["SecurityGroups"]
    return sorted(groups, key=lambda group: str(group["GroupId"]))


def ids(world: World, name: str = "bastion") -> list[str]:
    return [group["GroupId"] for group in pool(world, name)]


def add(world: World, *more: str, groups: str = "2") -> Any:
    return world.ok("target", "add", "bastion", "--ports", "22/tcp", "--groups", groups, *more)


def test_a_target_is_a_pool_of_tagged_groups_attached_beside_the_groups_that_are_there(world: World) -> None:
    add(world, "--eip", world.eip)
    groups = pool(world)
    assert {group["GroupName"] for group in groups} == {"knock-bastion-1", "knock-bastion-2"}
    for group in groups:
        assert {tag["Key"]: tag["Value"] for tag in group["Tags"]} == {
            "Name": group["GroupName"],
            "knock:stack": "knock",
            "knock:target": "bastion",
            "knock:ports": "22/tcp",
            "knock:families": "ipv4",
            "knock:made-by": "knock-admin",
        }
    assert set(world.groups_of(world.eni)) == {world.office, *ids(world)}


def test_attaching_a_target_opens_nothing_in_or_out(world: World) -> None:
    add(world, "--eip", world.eip)
    for group in pool(world):
        assert (group["IpPermissions"], group["IpPermissionsEgress"]) == ([], [])


def test_a_group_is_attached_before_it_is_tagged_so_no_rule_goes_where_it_opens_nothing(world: World) -> None:
    planned = world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip, "--dry-run").out
    order = re.findall(r"\d+\. ec2:(\w+)", planned)
    assert order == [
        "CreateSecurityGroup",
        "RevokeSecurityGroupEgress",
        "ModifyNetworkInterfaceAttribute",
        "CreateTags",
        "DeleteTags",
    ]


def test_adding_again_makes_no_second_pool_and_changes_nothing(world: World) -> None:
    add(world, "--eip", world.eip)
    before = ids(world)
    again = world.ok(
        "target", "add", "bastion", "--ports", "22/tcp", "--groups", "2", "--eip", world.eip, "--dry-run"
    )
    assert again.out == "This would change nothing.\n"
    add(world, "--eip", world.eip)
    assert ids(world) == before


def test_adding_again_attaches_to_more_and_needs_no_ports(world: World) -> None:
    add(world, "--eip", world.eip)
    interface = world.make_interface(world.office)
    world.ok("target", "add", "bastion", "--interface", interface)
    assert world.groups_of(interface) == [world.office, *ids(world)]


def test_adding_again_attaches_the_groups_that_an_interface_lacks(world: World) -> None:
    add(world, "--eip", world.eip)
    world.ec2.modify_network_interface_attribute(
        NetworkInterfaceId=world.eni, Groups=[world.office, ids(world)[0]]
    )
    world.ok("target", "add", "bastion")
    assert set(world.groups_of(world.eni)) == {world.office, *ids(world)}


CALLS = 8


def test_a_failure_is_tried_at_every_changing_call(world: World) -> None:
    """CALLS is the number of them, so the next test lets each one fail."""
    balancer = world.make_balancer(groups=[world.office])
    command = ["target", "add", "bastion", "--ports", "22/tcp", "--groups", "2", "--eip", world.eip]
    planned = world.ok(*command, "--load-balancer", balancer, "--dry-run", "--json").json["calls"]
    assert len(planned) == CALLS


@pytest.mark.parametrize("after", [False, True], ids=["before-it-is-done", "after-it-is-done"])
@pytest.mark.parametrize("number", range(1, CALLS + 1))
def test_a_run_that_failed_at_any_call_is_completed_by_running_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    """Break it: tag a group as the target's before it is attached, or forget `knock:unfinished`."""
    balancer = world.make_balancer(groups=[world.office])
    command = ["target", "add", "bastion", "--ports", "22/tcp", "--groups", "2", "--eip", world.eip]
    command += ["--load-balancer", balancer]
    with failing_at(monkeypatch, number, after=after):
        broken = world.run(*command)
    assert broken.code == 1
    assert "injected" in broken.err
    assert ("Run the same command again" in broken.err) == (number > 1)
    for group in pool(world):
        assert group["GroupId"] in world.groups_of(world.eni), "a group with the target's tag is attached"
    world.ok(*command)
    assert {group["GroupName"] for group in pool(world)} == {"knock-bastion-1", "knock-bastion-2"}
    assert all(not group["IpPermissionsEgress"] for group in pool(world))
    assert all("knock:unfinished" not in str(group["Tags"]) for group in pool(world))
    assert set(world.groups_of(world.eni)) == {world.office, *ids(world)}
    balancer_groups = world.elb.describe_load_balancers(LoadBalancerArns=[balancer])["LoadBalancers"][0][
        "SecurityGroups"
    ]
    assert set(balancer_groups) == {world.office, *ids(world)}
    assert world.ok(*command, "--dry-run").out == "This would change nothing.\n"


def test_the_calls_made_before_a_failure_are_listed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with failing_at(monkeypatch, 3, after=False):
        broken = world.run("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    assert "Done before that:\n  ec2:CreateSecurityGroup {" in broken.err
    assert "ec2:RevokeSecurityGroupEgress" in broken.err
    assert "ModifyNetworkInterfaceAttribute {" not in broken.err


def test_an_instance_is_attached_with_every_interface_it_has(world: World) -> None:
    instance = world.ec2.run_instances(
        ImageId="ami-12c6146b",
        MinCount=1,
        MaxCount=1,
        NetworkInterfaces=[
            {"DeviceIndex": index, "SubnetId": world.subnets[0], "Groups": [world.office]} for index in (0, 1)
        ],
    )["Instances"][0]
    interfaces = [interface["NetworkInterfaceId"] for interface in instance["NetworkInterfaces"]]
    assert len(interfaces) == 2
    add(world, "--instance", instance["InstanceId"])
    for interface in interfaces:
        assert set(world.groups_of(interface)) == {world.office, *ids(world)}


def test_an_instance_without_an_interface_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On AWS that is a terminated one; moto lets it keep its interfaces."""
    instances = world.ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"]
    instance = instances[0]["InstanceId"]
    real_pages = Aws.pages

    def pages(self: Aws, service: str, operation: str, items: str, **parameters: Any) -> Iterator[Any]:
        if operation == "describe_instances":
            return iter([{"Instances": [{"InstanceId": instance, "NetworkInterfaces": []}]}])
        return real_pages(self, service, operation, items, **parameters)

    monkeypatch.setattr(Aws, "pages", pages)
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--instance", instance)
    assert (result.code, f"The instance {instance} has no network interface" in result.err) == (1, True)


def test_more_groups_than_a_filter_takes_are_asked_for_in_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(world, "--eip", world.eip, groups="3")
    for group in ids(world):
        world.open_rule(group, "203.0.113.7/32")
    listing = world.ok("target", "ls", "--json").json
    monkeypatch.setattr(attach, "FILTER_VALUES", 2)
    assert world.ok("target", "ls", "--json").json == listing
    assert [group["rules"]["ipv4"]["used"] for group in listing["targets"][0]["groups"]] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["application", "network"])
def test_a_load_balancer_keeps_its_groups(world: World, kind: str) -> None:
    balancer = world.make_balancer(kind, groups=[world.office])
    add(world, "--load-balancer", balancer)
    balancer_groups = world.elb.describe_load_balancers(LoadBalancerArns=[balancer])["LoadBalancers"][0][
        "SecurityGroups"
    ]
    assert set(balancer_groups) == {world.office, *ids(world)}


def test_a_load_balancer_is_named_by_its_name_too(world: World) -> None:
    balancer = world.make_balancer(groups=[world.office])
    add(world, "--load-balancer", "lb-application", balancer)
    description = world.elb.describe_load_balancers(LoadBalancerArns=[balancer])["LoadBalancers"][0]
    assert len(description["SecurityGroups"]) == 3, "the office's and the two of the pool, once"


def test_a_network_load_balancer_made_without_groups_is_refused_with_the_reason(world: World) -> None:
    balancer = world.make_balancer("network")
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--load-balancer", balancer)
    assert result.code == 1
    assert "made without security groups, and AWS lets none be added later" in result.err
    assert pool(world) == []


def test_a_gateway_load_balancer_is_refused(world: World) -> None:
    balancer = world.make_balancer("gateway")
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--load-balancer", balancer)
    assert (result.code, "those have no groups" in result.err) == (1, True)


def test_more_groups_than_an_interface_may_have_are_refused_before_anything_is_made(world: World) -> None:
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--groups", "5", "--eip", world.eip)
    assert result.code == 1
    assert f"interface {world.eni} would have 6: {world.office} and the target's 5" in result.err
    assert pool(world) == []
    assert "Done before" not in result.err
    add(world, "--eip", world.eip, groups="4")


def test_the_accounts_own_quota_counts_when_it_can_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.servicequotas.models import ServiceQuotasBackend

    monkeypatch.setattr(ServiceQuotasBackend, "get_service_quota", lambda *_, **__: {"Value": 2.0})
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--groups", "2", "--eip", world.eip)
    assert (result.code, "may have 2 security groups" in result.err) == (1, True)


def test_a_quota_that_cannot_be_read_is_awss_default_with_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.servicequotas.exceptions import NoSuchResource
    from moto.servicequotas.models import ServiceQuotasBackend

    def refuse(*_: object, **__: object) -> None:
        raise NoSuchResource

    monkeypatch.setattr(ServiceQuotasBackend, "get_service_quota", refuse)
    result = add(world, "--eip", world.eip, groups="4")
    assert "warning: the quota L-2AFB9258 cannot be read" in result.err
    assert "default of 5" in result.err


def test_interfaces_in_two_vpcs_are_refused_by_name(world: World) -> None:
    vpc = world.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = world.ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24")["Subnet"]["SubnetId"]
    far = world.make_interface(world.make_group("far", vpc), subnet=subnet)
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--interface", world.eni, far)
    assert result.code == 1
    assert f"interface {far} in {vpc}" in result.err
    assert f"interface {world.eni} in {world.vpc}" in result.err


def test_the_pool_is_made_in_the_vpc_of_what_it_is_attached_to(world: World) -> None:
    vpc = world.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = world.ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24")["Subnet"]["SubnetId"]
    far = world.make_interface(world.make_group("far", vpc), subnet=subnet)
    add(world, "--interface", far)
    assert {group["VpcId"] for group in pool(world)} == {vpc}


def test_a_group_in_a_vpc_with_ipv6_loses_its_ipv6_egress_rule_too(world: World) -> None:
    vpc = world.ec2.create_vpc(CidrBlock="10.9.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]["VpcId"]
    planned = world.ok("target", "add", "bastion", "--ports", "22/tcp", "--vpc", vpc, "--dry-run").out
    assert '"Ipv6Ranges": [{"CidrIpv6": "::/0"}]' in planned
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--vpc", vpc)
    assert pool(world)[0]["IpPermissionsEgress"] == []


def test_without_a_default_vpc_the_vpc_must_be_named(world: World) -> None:
    ec2_backends[ACCOUNT][REGION].vpcs[world.vpc].is_default = "false"  # type: ignore[assignment]  # moto compares it as text
    result = world.run("target", "add", "bastion", "--ports", "22/tcp")
    assert (result.code, "There is no default VPC here" in result.err) == (2, True)


def test_a_target_that_is_attached_to_nothing_says_that_it_lets_nobody_in(world: World) -> None:
    assert "attached to nothing yet, so a knock lets nobody in" in add(world).out


def test_other_ports_than_the_targets_are_refused_with_the_way_to_change_them(world: World) -> None:
    add(world)
    result = world.run("target", "add", "bastion", "--ports", "2222/tcp")
    assert result.code == 1
    assert "has the ports 22/tcp, not 2222/tcp" in result.err
    assert "`knock-admin target set bastion --ports 2222/tcp`" in result.err


def test_a_new_target_needs_ports(world: World) -> None:
    result = world.run("target", "add", "bastion")
    assert (result.code, "name its ports" in result.err) == (2, True)


def test_an_elastic_ip_that_is_associated_with_nothing_is_refused(world: World) -> None:
    loose = world.ec2.allocate_address(Domain="vpc")["AllocationId"]
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--eip", loose)
    assert (result.code, "associated with nothing" in result.err) == (1, True)


def test_an_elastic_ip_can_be_named_by_its_allocation(world: World) -> None:
    add(world, "--eip", world.allocation)
    assert set(world.groups_of(world.eni)) == {world.office, *ids(world)}


def test_an_interface_that_aws_manages_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "knock_admin.attach.interface", lambda item: _interface({**item, "RequesterManaged": True})
    )
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--interface", world.eni)
    assert (result.code, "managed by an AWS service" in result.err) == (1, True)


@pytest.mark.parametrize(
    ("cidr", "port", "protocol", "warned"),
    [
        ("0.0.0.0/0", 22, "tcp", True),
        ("::/0", 22, "tcp", True),
        ("0.0.0.0/0", 0, "-1", True),
        ("0.0.0.0/0", 22, "6", True),
        ("0.0.0.0/0", 23, "tcp", False),
        ("0.0.0.0/0", 22, "udp", False),
        ("198.51.100.0/24", 22, "tcp", False),
    ],
)
def test_a_managed_port_that_another_group_opens_to_the_world_is_warned_of(
    world: World, cidr: str, port: int, protocol: str, warned: bool
) -> None:
    world.open_rule(world.office, cidr, port=port, protocol=protocol)
    result = add(world, "--eip", world.eip)
    assert ("warning: the target bastion guards nothing there" in result.err) == warned
    assert (world.office in result.err) == warned
    assert ("guards nothing there" in world.ok("target", "ls").err) == warned


def test_ls_counts_rules_by_family_as_the_quota_does(world: World) -> None:
    add(world, "--eip", world.eip)
    first, second = ids(world)
    world.open_rule(first, "203.0.113.7/32")
    world.open_rule(first, "203.0.113.8/32")
    world.open_rule(second, "2001:db8::7/128")
    target = world.ok("target", "ls", "--json").json["targets"][0]
    assert (target["name"], target["ports"]) == ("bastion", ["22/tcp"])
    assert [group["rules"] for group in target["groups"]] == [
        {"ipv4": {"used": 2, "free": 58}, "ipv6": {"used": 0, "free": 60}},
        {"ipv4": {"used": 0, "free": 60}, "ipv6": {"used": 1, "free": 59}},
    ]
    assert [group["attached"] for group in target["groups"]] == [[world.eni], [world.eni]]
    table = world.ok("target", "ls").out.splitlines()
    assert re.fullmatch(rf"bastion +22/tcp +IPv4 +{first} +2 +58 +0 +60 +{world.eni}", table[1])


def test_a_rule_for_a_group_counts_in_both_families() -> None:
    rules: list[dict[str, Any]] = [
        {"CidrIpv4": "203.0.113.7/32"},
        {"CidrIpv6": "2001:db8::/128"},
        {"ReferencedGroupInfo": {}},
    ]
    assert used(rules) == (2, 2)


def test_ls_names_groups_whose_tags_cannot_be_read(world: World) -> None:
    broken = world.make_group("by-hand")
    tags = {"knock:stack": STACK, "knock:target": "-bad-", "knock:ports": "ssh"}
    world.tag(broken, tags)
    result = world.ok("target", "ls")
    assert f"{broken}: the tag knock:target cannot be read" in result.err
    assert f"{broken}: the tag knock:ports cannot be read" in result.err


def test_ls_shows_the_named_targets_alone(world: World) -> None:
    add(world)
    world.ok("target", "add", "web", "--ports", "80/tcp", "443/tcp")
    targets = world.ok("target", "ls", "web", "--json").json["targets"]
    assert [(target["name"], target["ports"]) for target in targets] == [("web", ["80/tcp", "443/tcp"])]


def test_ls_of_an_unknown_target_is_an_error(world: World) -> None:
    add(world)
    result = world.run("target", "ls", "bastion", "vault")
    assert (result.code, result.out) == (1, "")
    assert "The stack knock has no target vault" in result.err


def test_ls_warns_once_of_a_port_open_beside_a_pool_of_several_groups(world: World) -> None:
    world.open_rule(world.office, "0.0.0.0/0", port=22, protocol="tcp")
    add(world, "--eip", world.eip, "--groups", "3")
    assert world.ok("target", "ls").err.count("guards nothing there") == 1


def test_growing_attaches_the_new_groups_where_the_others_are(world: World) -> None:
    add(world, "--eip", world.eip)
    balancer = world.make_balancer(groups=[world.office])
    world.ok("target", "add", "bastion", "--load-balancer", balancer)
    world.ok("target", "grow", "bastion", "--groups", "4")
    assert len(ids(world)) == 4
    assert set(world.groups_of(world.eni)) == {world.office, *ids(world)}
    balancer_groups = world.elb.describe_load_balancers(LoadBalancerArns=[balancer])["LoadBalancers"][0][
        "SecurityGroups"
    ]
    assert set(balancer_groups) == {world.office, *ids(world)}


def test_growing_past_the_limit_of_an_interface_is_refused(world: World) -> None:
    add(world, "--eip", world.eip)
    result = world.run("target", "grow", "bastion", "--groups", "5")
    assert result.code == 1
    assert len(ids(world)) == 2


def test_a_group_name_that_is_taken_in_the_vpc_is_skipped(world: World) -> None:
    world.make_group("knock-bastion-1")
    add(world)
    assert {group["GroupName"] for group in pool(world)} == {"knock-bastion-2", "knock-bastion-3"}


def test_detaching_keeps_the_other_groups(world: World) -> None:
    add(world, "--eip", world.eip)
    interface = world.make_interface(world.office)
    world.ok("target", "add", "bastion", "--interface", interface)
    world.ok("target", "detach", "bastion", "--eip", world.eip)
    assert world.groups_of(world.eni) == [world.office]
    assert len(world.groups_of(interface)) == 3
    world.ok("target", "detach", "bastion", "--all")
    assert world.groups_of(interface) == [world.office]
    assert "is not attached there" in world.ok("target", "detach", "bastion", "--eip", world.eip).out


def test_detaching_never_leaves_an_interface_without_a_group(world: World) -> None:
    add(world, "--eip", world.eip)
    world.ec2.modify_network_interface_attribute(NetworkInterfaceId=world.eni, Groups=ids(world))
    result = world.run("target", "detach", "bastion", "--all")
    assert (result.code, "left without a security group" in result.err) == (1, True)
    assert world.groups_of(world.eni) == ids(world)


def test_detaching_from_nothing_named_is_a_usage_error(world: World) -> None:
    add(world, "--eip", world.eip)
    assert world.run("target", "detach", "bastion").code == 2


def test_a_target_with_rules_is_not_deleted(world: World) -> None:
    add(world)
    world.open_rule(ids(world)[0], "2001:db8::7/128")
    result = world.run("target", "rm", "bastion")
    assert (result.code, "still has 1 rule (sgr-" in result.err) == (1, True)
    assert len(ids(world)) == 2


def test_a_target_that_is_attached_is_not_deleted(world: World) -> None:
    add(world, "--eip", world.eip)
    result = world.run("target", "rm", "bastion")
    assert (result.code, f"still attached to interface {world.eni}" in result.err) == (1, True)


def test_a_target_without_rules_and_attached_to_nothing_is_deleted(world: World) -> None:
    add(world)
    world.ok("target", "rm", "bastion")
    assert pool(world) == []
    result = world.run("target", "rm", "bastion")
    assert (result.code, "has no target bastion" in result.err) == (1, True)


def test_groups_that_were_never_finished_are_deleted_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_at(monkeypatch, 2, after=False):
        world.run("target", "add", "bastion", "--ports", "22/tcp")
    world.ok("target", "rm", "bastion")
    assert "knock-bastion-1" not in str(world.ec2.describe_security_groups()["SecurityGroups"])


@pytest.mark.parametrize(
    "command",
    [
        ["target", "add", "bad name", "--ports", "22/tcp"],
        ["target", "add", "bastion", "--ports", "22"],
        ["target", "add", "bastion", "--ports", "0/tcp"],
        ["target", "add", "bastion", "--ports", "22/icmp"],
        ["target", "add", "bastion", "--ports", "22/tcp", "--groups", "0"],
        ["target", "add", "bastion", "--ports", "22/tcp", "--groups", "many"],
        ["target", "grow", "bastion"],
        ["target"],
        [],
    ],
)
def test_a_malformed_command_is_a_usage_error(world: World, command: list[str]) -> None:
    assert world.run(*command).code == 2


def test_a_pool_whose_groups_differ_in_ports_is_not_touched(world: World) -> None:
    add(world)
    world.ec2.create_tags(Resources=[ids(world)[0]], Tags=[{"Key": "knock:ports", "Value": "23/tcp"}])
    result = world.run("target", "add", "bastion")
    assert (result.code, "differ in knock:ports" in result.err) == (1, True)


def test_a_pool_whose_ports_cannot_be_read_is_an_error_that_names_the_group(world: World) -> None:
    add(world, groups="1")
    world.ec2.create_tags(Resources=ids(world), Tags=[{"Key": "knock:ports", "Value": "ssh"}])
    result = world.run("target", "grow", "bastion", "--groups", "2")
    assert (result.code, f"The tag knock:ports of {ids(world)[0]} cannot be read" in result.err) == (1, True)


# ---------------------------------------------------------------------------- forged tags


def make_foreign(world: World, **marks: str) -> str:
    """Make a group of another team, open to the world, and put tags `knock:…` on it."""
    group = world.make_group("other-teams")
    world.open_rule(group, "0.0.0.0/0")
    world.tag(group, {f"knock:{key.replace('_', '-')}": value for key, value in marks.items()})
    return group


@pytest.mark.parametrize("made_by", [{}, {"made_by": "knock-admin"}], ids=["unfinished", "and-made-by"])
@pytest.mark.parametrize("command", [["add"], ["grow", "--groups", "3"], ["detach", "--all"]], ids=str)
def test_a_foreign_group_tagged_as_unfinished_is_left_untouched_and_warned_of(
    world: World, command: list[str], made_by: dict[str, str]
) -> None:
    """Break it: let `unfinished_groups` trust the tags."""
    add(world, "--eip", world.eip)
    foreign = make_foreign(world, unfinished=f"{STACK}/bastion", **made_by)
    interface = world.make_interface(world.office, foreign)
    before = world.group(foreign)
    result = world.ok("target", command[0], "bastion", *command[1:])
    assert f"warning: {foreign} has the tag knock:unfinished, and knock-admin did not make it" in result.err
    assert world.group(foreign) == before
    assert foreign not in world.groups_of(world.eni)
    assert world.groups_of(interface) == [world.office, foreign]


def test_a_group_of_another_stack_tagged_as_unfinished_is_left_untouched(world: World) -> None:
    """Break it: leave the stack's name out of `Group.made_for`."""
    add(world, "--eip", world.eip)
    other = world.ec2.create_security_group(
        GroupName="other-web-1", Description="Knock opens 443/tcp here (target web of other)", VpcId=world.vpc
    )["GroupId"]
    marks = {"knock:made-by": "knock-admin", "knock:unfinished": f"{STACK}/bastion"}
    world.tag(other, marks)
    before = world.group(other)
    result = world.ok("target", "grow", "bastion", "--groups", "3")
    assert f"warning: {other} has the tag knock:unfinished" in result.err
    assert world.group(other) == before
    assert other not in world.groups_of(world.eni)


@pytest.mark.parametrize("command", [["add", "bastion"], ["grow", "bastion", "--groups", "3"]])
def test_a_foreign_group_open_to_the_world_that_has_the_targets_tags_is_not_attached(
    world: World, command: list[str]
) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    foreign = make_foreign(world, stack=STACK, target="bastion", ports="22/tcp")
    result = world.run("target", *command)
    assert (result.code, "Nothing is attached" in result.err) == (1, True), result
    assert foreign not in world.groups_of(world.eni)


def test_a_foreign_group_tagged_as_made_by_knock_admin_is_not_deleted_by_rm(world: World) -> None:
    """Break it: let `Group.made_for` trust the tag."""
    foreign = world.make_group("other-teams")
    marks = {"knock:made-by": "knock-admin", "knock:unfinished": f"{STACK}/old"}
    world.tag(foreign, marks)
    result = world.run("target", "rm", "old", "--yes")
    assert (result.code, "has no target old" in result.err) == (1, True)
    of_the_target = {"knock:stack": STACK, "knock:target": "old", "knock:ports": "22/tcp"}
    world.tag(foreign, of_the_target)
    result = world.run("target", "rm", "old", "--yes")
    assert (result.code, f"knock-admin did not make {foreign}" in result.err) == (1, True)
    assert world.group(foreign)["GroupName"] == "other-teams"


def test_a_foreign_group_tagged_as_unfinished_does_not_stop_rm_of_the_target(world: World) -> None:
    add(world)
    foreign = make_foreign(world, unfinished=f"{STACK}/bastion", made_by="knock-admin")
    before = world.group(foreign)
    world.ok("target", "rm", "bastion", "--yes")
    assert (pool(world), world.group(foreign)) == ([], before)


def test_a_group_is_known_as_made_by_knock_admin_after_a_rename_and_with_the_most_ports(world: World) -> None:
    """Break it: cut the end of a long description, which has the stack's name."""
    ports = [f"{port}/tcp" for port in range(10_000, 10_025)]
    world.ok("target", "add", "bastion", "--ports", *ports)
    description = pool(world)[0]["Description"]
    assert len(description) == 255
    assert description.endswith("... here (target bastion of knock)")
    world.ok("target", "rename", "bastion", "gate")
    world.ok("target", "rm", "gate", "--yes")
    assert pool(world, "gate") == []
