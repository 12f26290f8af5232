"""Shows whether moto as it is installed, with nothing mended, still has the faults that `local/` mends.

Run as a program in a process of its own, for one service; prints a JSON object of fault → still there?
Our tests fail when one is not: then moto has mended it, and our mend is needless or in the way.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.exceptions import ClientError
from moto import mock_aws

REGION, ACCOUNT = "eu-west-1", "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/engine"

Json = dict[str, Any]


def faults(service: str) -> dict[str, bool]:
    """Run this file for a service and return what it prints."""
    result = subprocess.run(
        [sys.executable, __file__, service], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    present: dict[str, bool] = json.loads(result.stdout.splitlines()[-1])
    return present


def refusal(call: Callable[..., Any], **parameters: Any) -> str | None:
    """Make a call and return the code of the error it ends in; None when it works."""
    try:
        call(**parameters)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


class StepFunctions:
    """Executions that show each fault that the engine mends, and the functions they call."""

    def __init__(self) -> None:
        self.sfn = boto3.client("stepfunctions", region_name=REGION)
        self.running, self.release = threading.Event(), threading.Event()
        self.created = 0

    def boto_client_for(self, **_: Any) -> StepFunctions:
        """Stand in for the Lambda client that moto makes for each task."""
        return self

    def invoke(self, **parameters: Any) -> Json:
        match parameters["FunctionName"].rpartition(":")[2]:
            case "hang":
                self.running.set()
                self.release.wait(10)
                return {"Payload": io.BytesIO(b"{}")}
            case "error":
                return {"Payload": io.BytesIO(b'{"errorMessage": "m"}'), "FunctionError": "Unhandled"}
            case "big":
                return {"Payload": io.BytesIO(json.dumps("x" * 300_000).encode())}
            case _:
                return {"Payload": io.BytesIO(b'"bare"')}

    def create(self, states: Json, **more: Any) -> str:
        self.created += 1
        text = json.dumps({"StartAt": next(iter(states)), "States": states, **more})
        answer = self.sfn.create_state_machine(name=f"m{self.created}", definition=text, roleArn=ROLE)
        return str(answer["stateMachineArn"])

    def start(self, machine: str, **payload: Any) -> str:
        self.created += 1
        answer = self.sfn.start_execution(
            stateMachineArn=machine, name=f"e{self.created}", input=json.dumps(payload)
        )
        return str(answer["executionArn"])

    def ended(self, execution: str) -> Json:
        for _ in range(2000):
            described: Json = self.sfn.describe_execution(executionArn=execution)
            if described["status"] != "RUNNING":
                return described
            time.sleep(0.005)
        raise TimeoutError(f"{execution} has not ended after 10 s")

    def faults(self) -> dict[str, bool]:
        return {**self.waits(), **self.tasks(), **self.calls(), **self.definitions(), **sources()}

    def waits(self) -> dict[str, bool]:
        hold = self.create({"W": {"Type": "Wait", "TimestampPath": "$.t", "End": True}})
        soon = (datetime.now(UTC) + timedelta(seconds=1.5)).replace(microsecond=0)
        time.sleep(max(0.0, (soon - datetime.now(UTC)).total_seconds() - 0.5))
        described = self.ended(self.start(hold, t=soon.strftime("%Y-%m-%dT%H:%M:%SZ")))
        early = described["stopDate"] < soon
        threads = threading.active_count()
        waiting = [self.start(hold, t="2099-01-01T00:00:00Z") for _ in range(5)]
        time.sleep(0.3)
        two_each = threading.active_count() - threads == 10
        self.sfn.stop_execution(executionArn=waiting[0], error="E", cause="C")
        running = {"stateMachineArn": hold, "statusFilter": "RUNNING"}
        time.sleep(0.1)
        first = self.sfn.list_executions(**running, maxResults=2)
        following = self.sfn.list_executions(**running)["executions"][2]["executionArn"]
        self.sfn.stop_execution(executionArn=following)
        self.ended(following)
        more = refusal(self.sfn.list_executions, **running, maxResults=2, nextToken=first["nextToken"])
        return {
            "a wait ends early": early,
            "an offset is refused": self.ended(self.start(hold, t="2016-03-14T01:59:00+00:00"))["status"]
            == "FAILED",
            "a number for a timestamp is a TypeError": "TypeError"
            in self.ended(self.start(hold, t=5))["cause"],
            "an execution takes two threads": two_each,
            "a stop's cause is dropped": self.ended(waiting[0]).get("cause") != "C",
            "a page token fails once an execution has ended": more is not None,
        }

    def tasks(self) -> dict[str, bool]:
        def task(name: str, **more: Any) -> Json:
            arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"
            return {"T": {"Type": "Task", "Resource": arn, "End": True, **more}}

        bare = self.start(self.create(task("bare")))
        error = self.ended(self.start(self.create(task("error"))))
        catch = [{"ErrorEquals": ["States.ALL"], "Next": "S"}]
        big = self.create({**task("big", Catch=catch), "S": {"Type": "Succeed"}})
        hang = self.start(self.create(task("hang")))
        assert self.running.wait(10)
        self.sfn.stop_execution(executionArn=hang)
        time.sleep(0.2)
        status = self.sfn.describe_execution(executionArn=hang)["status"]
        self.release.set()
        output = self.ended(bare)["output"]
        events = self.sfn.get_execution_history(executionArn=bare, maxResults=2)["events"]
        return {
            "a bare string is not quoted": output == "bare",
            "a history is one page": len(events) > 2,
            "an error without a type is called Exception": error["error"] == "Exception",
            "States.ALL matches every error": self.ended(self.start(big))["status"] == "SUCCEEDED",
            "a stop waits for the function": status == "RUNNING",
        }

    def calls(self) -> dict[str, bool]:
        machine = self.create({"S": {"Type": "Succeed"}})
        unnamed = self.sfn.start_execution(stateMachineArn=machine)["executionArn"]
        self.sfn.update_state_machine(
            stateMachineArn=machine,
            definition='{"StartAt": "P", "States": {"P": {"Type": "Pass", "End": true}}}',
        )
        definition = self.sfn.describe_state_machine_for_execution(executionArn=unnamed)["definition"]
        slow = self.create({"W": {"Type": "Wait", "Seconds": 60, "End": True}}, TimeoutSeconds=1)
        return {
            "an execution without a name is called None": unnamed.endswith(":None"),
            "any name is accepted": refusal(self.sfn.start_execution, stateMachineArn=machine, name="a b")
            is None,
            "a running execution is described by the updated definition": "Pass" in definition,
            "TIMED_OUT has no stopDate": "stopDate" not in self.ended(self.start(slow)),
        }

    def definitions(self) -> dict[str, bool]:
        def create(start: str, name: str, state: Json) -> str | None:
            text = json.dumps({"StartAt": start, "States": {start: state}})
            return refusal(self.sfn.create_state_machine, name=name, definition=text, roleArn=ROLE)

        create("A", "same", {"Type": "Succeed"})
        return {
            "a second machine of the same name is accepted": create("B", "same", {"Type": "Succeed"}) is None,
            "a dangling Next is accepted": create("A", "dangling", {"Type": "Pass", "Next": "Gone"}) is None,
        }


def sources() -> dict[str, bool]:
    """Look for faults in moto's text that would take too long to see happen."""
    from moto.stepfunctions.parser.asl.component import eval_component
    from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
    from moto.stepfunctions.parser.backend import execution, execution_worker

    return {
        "no events are emitted": "events_backends" not in inspect.getsource(execution),
        "a definition is parsed each time": "AmazonStateLanguageParser.parse("
        in inspect.getsource(execution_worker),
        "a retry's pause cannot be interrupted": "time.sleep(" in inspect.getsource(retrier_decl),
        "a syntax tree is logged": "LOG.error" in inspect.getsource(eval_component),
    }


def stepfunctions() -> dict[str, bool]:
    from moto.stepfunctions.parser.asl.component.state.exec.state_task import lambda_eval_utils

    service = StepFunctions()
    lambda_eval_utils.boto_client_for = service.boto_client_for
    return service.faults()


def security_groups() -> dict[str, bool]:
    ec2 = boto3.client("ec2", region_name=REGION)
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    groups = iter(
        ec2.create_security_group(GroupName=f"g{number}", Description="x", VpcId=vpc)["GroupId"]
        for number in range(9)
    )

    def tcp(port: int, *cidrs: str, **more: Any) -> Json:
        ranges = [{"CidrIp": cidr, **more} for cidr in cidrs]
        return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": ranges}

    def authorize(group: str, *permissions: Json) -> str | None:
        return refusal(ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=list(permissions))

    def rules(group: str) -> int:
        (described,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        return sum(len(permission["IpRanges"]) for permission in described["IpPermissions"])

    half, named, full, typed = (next(groups) for _ in range(4))
    authorize(half, tcp(22, "203.0.113.1/32"))
    authorize(half, tcp(80, "203.0.113.2/32"), tcp(22, "203.0.113.1/32"))
    added = ec2.authorize_security_group_ingress(
        GroupId=named, IpPermissions=[tcp(22, "203.0.113.1/32"), tcp(80, "203.0.113.1/32")]
    )["SecurityGroupRules"]
    authorize(full, tcp(22, *(f"203.0.113.{number}/32" for number in range(60))))
    v6 = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    authorize(typed, tcp(22, "203.0.113.0/24"))
    revoked_id = added[0]["SecurityGroupRuleId"]
    ec2.create_tags(Resources=[revoked_id], Tags=[{"Key": "a", "Value": "b"}])
    unknown = refusal(
        ec2.revoke_security_group_ingress, GroupId=named, SecurityGroupRuleIds=["sgr-" + "0" * 17]
    )
    ec2.revoke_security_group_ingress(GroupId=named, SecurityGroupRuleIds=[revoked_id])
    tags_left = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [revoked_id]}])["Tags"]
    tagged = refusal(ec2.create_tags, Resources=[revoked_id], Tags=[{"Key": "a", "Value": "b"}])
    page = ec2.describe_security_group_rules(MaxResults=5)["SecurityGroupRules"]
    hand = next(groups)
    authorize(hand, tcp(22, "203.0.113.1/32"))
    query = [{"Name": "group-id", "Values": [hand]}]
    described_rules = ec2.describe_security_group_rules(Filters=query)["SecurityGroupRules"]
    rule_id = next(rule["SecurityGroupRuleId"] for rule in described_rules if not rule["IsEgress"])
    to = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIpv4": "198.51.100.9/24"}
    ec2.modify_security_group_rules(
        GroupId=hand, SecurityGroupRules=[{"SecurityGroupRuleId": rule_id, "SecurityGroupRule": to}]
    )
    (modified,) = ec2.describe_security_group_rules(SecurityGroupRuleIds=[rule_id])["SecurityGroupRules"]
    return {
        "a call that fails adds some of its rules": rules(half) == 2,
        "only the last permission's rules are in the answer": len(added) == 1,
        "both families are counted together": authorize(full, v6) == "RulesPerSecurityGroupLimitExceeded",
        "any port is accepted": authorize(typed, tcp(70000, "203.0.113.9/32")) is None,
        "any protocol is accepted": authorize(typed, {**tcp(1, "203.0.113.9/32"), "IpProtocol": "tpc"})
        is None,
        "any description is accepted": authorize(typed, tcp(23, "203.0.113.9/32", Description="<é>" * 99))
        is None,
        "CIDRs are compared as typed": authorize(typed, tcp(22, "203.0.113.9/24")) is None,
        "an unknown rule id is reported as an unknown permission": unknown == "InvalidPermission.NotFound",
        "rules have no pages": len(page) > 5,
        "a modified CIDR is kept as typed": modified["CidrIpv4"] == "198.51.100.9/24",
        "groups have no pages": len(ec2.describe_security_groups(MaxResults=5)["SecurityGroups"]) > 5,
        "a rule that is gone can be tagged": tagged is None,
        "a revoked rule leaves its tags": len(tags_left) == 1,
    }


def eventbridge() -> dict[str, bool]:
    events = boto3.client("events", region_name=REGION)
    sqs = boto3.client("sqs", region_name=REGION)

    def sends(rule: Json, detail: str = '{"a": 1}') -> bool:
        queue = sqs.create_queue(QueueName="caught")["QueueUrl"]
        events.put_rule(Name="caught", **rule)
        target = {"Id": "1", "Arn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:caught"}
        events.put_targets(Rule="caught", Targets=[target])
        events.put_events(Entries=[{"Source": "test", "DetailType": "T", "Detail": detail}])
        messages = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=0).get("Messages", [])
        events.remove_targets(Rule="caught", Ids=["1"])
        events.delete_rule(Name="caught")
        sqs.delete_queue(QueueUrl=queue)
        return bool(messages)

    def raises(service: str, resource: str) -> bool:
        events.put_rule(Name=service, EventPattern=json.dumps({"source": [service]}))
        target = {"Id": "1", "Arn": f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"}
        events.put_targets(Rule=service, Targets=[target])
        try:
            events.put_events(Entries=[{"Source": service, "DetailType": "T", "Detail": '{"a": 1}'}])
        except NotImplementedError:
            return True
        return False

    def needs_no_role() -> bool:
        events.put_rule(Name="roleless", EventPattern='{"source": ["roleless"]}')
        target = {"Id": "1", "Arn": f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:m"}
        try:
            return bool(events.put_targets(Rule="roleless", Targets=[target])["FailedEntryCount"] == 0)
        except ClientError:
            return False

    array = '{"detail": {"a": {"b": ["x"]}}}'
    return {
        "a Lambda target raises": raises("lambda", "function:f"),
        "a state machine needs no role": needs_no_role(),
        "a state machine target raises": raises("states", "stateMachine:m"),
        "a disabled rule sends": sends({"EventPattern": '{"source": ["test"]}', "State": "DISABLED"}),
        "a schedule gets every event": sends({"ScheduleExpression": "rate(1 day)"}),
        "arrays of objects do not match": not sends({"EventPattern": array}, '{"a": [{"b": "x"}]}'),
        "true is 1": sends({"EventPattern": '{"detail": {"a": [1]}}'}, '{"a": true}'),
    }


if __name__ == "__main__":
    os.environ.update(TZ="UTC", AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x")
    time.tzset()
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        answer = globals()[sys.argv[1]]()
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # moto leaves threads that wait for years
