"""Everything a deployment does in its life, run once in the harness, with every call recorded.

Each function goes every way it can, failures included, so that each of its permissions is used.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import boto3

import notify
from grants.dynamodb import DynamoDb
from grants.errors import RuleUnsettled, StoreRefused, StoreUnavailable
from grants.executions import Executions
from grants.simpledb import SimpleDb
from grants.store import Store
from grants.timing import GRACE, SETTLES
from grants.trail import Trail
from tests.harness import STACK, Knock, at, running
from tests.permissions.recorder import Recorder, recording
from tests.permissions.simulator import Deployed, Request

LATER = GRACE + timedelta(minutes=1)


def live(deployed: Deployed) -> list[Request]:
    """Run all of it under the names of the template; give the questions to IAM, each once."""
    environment = deployed.environment("ApiFunction") | {"POWERTOOLS_LOG_LEVEL": "CRITICAL"}
    # On a busy machine a knock can take longer than the five seconds after which it is answered 202.
    patient = mock.patch("api.OPENS_WITHIN", 60)
    with patient, running(**environment) as knock, recording(knock) as recorder:
        knock.add_key("dave", targets="*", max_duration="24h")
        _open_and_expire(knock)
        _renew_less(knock)
        _authorize_late(knock)
        _beside_a_foreign_rule(knock)
        _end_early(knock)
        _look(knock)
        _fail(knock)
        _force(knock, environment["TRAIL_STORE"])
        _stopped_after_a_crash(knock, recorder)
        _after_a_task_that_crashed(knock, environment)
        _drift(knock)
        _notify(knock, recorder)
        knock.open(caller="203.0.113.40")
        _set_up_and_delete(deployed, recorder)
    assert recorder.unknown == [], "tests/permissions/recorder.py does not know what AWS checks for these"
    return list({repr(request): request for request in recorder.requests}.values())


def _open_and_expire(knock: Knock) -> None:
    for caller in ("203.0.113.1", "2001:db8::1"):
        knock.expire(knock.open(caller=caller, duration="10m"))
    assert knock.rules() == set()


def _renew_less(knock: Knock) -> None:
    """The first group is full, so the grant is in the second. Its renewal has fewer targets."""
    groups = [knock.add_group("full", "5432/tcp") for _ in range(2)]
    first, second = sorted(groups)
    _fill(knock, first)
    old = knock.open("dave", targets=["full", "web"], duration="10m")
    assert {group for group, _, cidr in knock.rules() if cidr == old["source"]} > {second}
    new = knock.open("dave", targets=["full"], duration="10m", renews=old["id"])
    knock.wait(lambda: knock.grant(old["id"])["status"] == "superseded", "the older grant goes on")
    knock.wait(
        lambda: {group for group, _, cidr in knock.rules() if cidr == old["source"]} == {second},
        "the older grant's rules stay",
    )
    with mock.patch("grants.opening.close", side_effect=RuleUnsettled("not yet")):
        newer = knock.open("dave", targets=["full"], duration="20m", renews=new["id"])
        knock.wait(
            lambda: knock.grant(new["id"])["status"] == "superseded", "no closing supersedes the older grant"
        )
    knock.expire(newer)


def _authorize_late(knock: Knock) -> None:
    """An authorize task that is retried after its grant was closed releases its claim."""
    grant = knock.open(caller="203.0.113.5", duration="10m")
    payload = {"grant": json.loads(knock.execution(grant["id"])["input"])}
    assert knock.request("DELETE", f"/grants/{grant['id']}").status == 200
    answer = knock.invoke(f"{STACK}-authorize", json.dumps(payload).encode())
    assert json.loads(answer.payload)["errorType"] == "GrantEnded"


def _fill(knock: Knock, group: str) -> list[str]:
    """Fill a group with static rules; give their ids."""
    ranges = [{"CidrIp": f"192.0.2.{number}/32"} for number in range(60)]
    answer = knock.client("ec2").authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 9, "ToPort": 9, "IpRanges": ranges}],
    )
    return [rule["SecurityGroupRuleId"] for rule in answer["SecurityGroupRules"]]


def _beside_a_foreign_rule(knock: Knock) -> None:
    permission = {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": "203.0.113.2/32"}],
    }
    for group in knock.groups["bastion"]:
        knock.client("ec2").authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
    knock.expire(knock.open(caller="203.0.113.2", duration="10m"))


def _end_early(knock: Knock) -> None:
    grant = knock.open(caller="203.0.113.3")
    assert knock.request("DELETE", f"/grants/{grant['id']}").status == 200
    knock.open(caller="203.0.113.3")
    assert knock.request("DELETE", "/grants", key="operator", principal="alice").status == 200
    grant = knock.open(caller="203.0.113.3")
    knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
    knock.wait(lambda: knock.grant(grant["id"])["status"] == "revoked", "stopping it did not revoke it")


def _look(knock: Knock) -> None:
    """Also at a grant without a record, for which the API describes the execution."""
    name = f"alice_203-0-113-7_{knock.clock.now():%Y%m%dT%H%M%SZ}_0123456789abcdef"
    assert knock.request("GET", f"/grants/{name}").status == 404
    for path in ("/grants", "/whoami", "/console"):
        assert knock.request("GET", path).status == 200
    assert knock.request("POST", "/knock", body={"targets": ["vault"]}).status == 403


def _fail(knock: Knock) -> None:
    """Grants that are rolled back: the only group of a target is full, or the trail refuses the record."""
    _fill(knock, knock.add_group("none", "1/tcp"))
    assert knock.request("POST", "/knock", key="dave", body={"targets": ["web", "none"]}).status == 409
    with mock.patch.object(Trail, "record", side_effect=StoreRefused("full")):
        assert knock.request("POST", "/knock", caller="203.0.113.8").status == 503


def _force(knock: Knock, store: str) -> None:
    """The store fails when the grant ends, and answers again later."""
    adapter = DynamoDb if store == "dynamodb" else SimpleDb
    grant = knock.open(caller="203.0.113.4", duration="10m")
    payload = {"how": "force", "grant": {**json.loads(knock.execution(grant["id"])["input"]), "rules": []}}
    with mock.patch.object(adapter, "put", side_effect=StoreUnavailable("away")):
        answer = knock.invoke(f"{STACK}-revoke", json.dumps(payload).encode())
    assert answer.function_error
    knock.clock.advance(SETTLES)
    knock.call("revoke", payload)


def _after_a_task_that_crashed(knock: Knock, environment: dict[str, str]) -> None:
    """A task recorded a grant's end and crashed: the next closes it, and keeps the rules of other grants."""
    domain, dynamodb = environment["TRAIL_DOMAIN"], environment["TRAIL_STORE"] == "dynamodb"
    store: Store = (
        DynamoDb(knock.client("dynamodb"), domain) if dynamodb else SimpleDb(knock.client("sdb"), domain)
    )
    trail = Trail(store)
    for number, finish in enumerate((_expires, _is_stopped, _is_found)):
        caller = f"203.0.113.{10 + number}"
        knock.open("bob", caller=caller, duration="8h")
        grant = knock.open("alice", caller=caller, duration="1h")
        assert trail.end(grant["id"], "revoked", knock.clock.now(), "alice", "")
        finish(knock, grant)
        knock.wait(
            lambda grant=grant: "closed" in {event["event"] for event in knock.grant(grant["id"])["events"]},
            f"{finish.__name__}: it is not closed",
        )
        assert {cidr for _, _, cidr in knock.rules()} >= {f"{caller}/32"}


def _expires(knock: Knock, grant: Any) -> None:
    knock.expire(grant)


def _is_stopped(knock: Knock, grant: Any) -> None:
    knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])


def _is_found(knock: Knock, grant: Any) -> None:
    knock.clock.advance(LATER)
    kinds = {finding["kind"] for finding in knock.call("guard", {})["findings"]}
    assert "ended grant not closed" in kinds
    assert at(grant["expires_at"]) > knock.clock.now()


def _stopped_after_a_crash(knock: Knock, recorder: Recorder) -> None:
    """A task authorized a rule and crashed before recording it, so the closing has to look for the rule."""
    recorder.crash_after = "AuthorizeSecurityGroupIngress"
    # The task is retried within a second, by jitter: here after a second, when it has been stopped.
    latest = mock.patch("random.uniform", lambda _first, last: last)
    with latest, mock.patch("api.OPENS_WITHIN", 0.1):
        answer = knock.request("POST", "/knock", body={"targets": ["bastion"]}, caller="203.0.113.6")
    assert answer.status == 202, answer.text
    knock.client("stepfunctions").stop_execution(executionArn=answer.json["execution_arn"])
    knock.wait(
        lambda: "203.0.113.6/32" not in {cidr for _, _, cidr in knock.rules()},
        "its rule stays",
        step=timedelta(seconds=20),
    )


def _drift(knock: Knock) -> None:
    """Each kind of drift, found and corrected."""
    knock.deliveries.drop(lambda _event: True)
    stopped = knock.open(caller="203.0.113.20")
    knock.client("stepfunctions").stop_execution(executionArn=stopped["execution_arn"])
    revoked = knock.open(caller="203.0.113.21")
    by = {"id": "k1", "name": "operator"}
    with mock.patch.object(Executions, "stop", return_value=True):
        knock.call("revoke", {"how": "revoked", "grant": {"grant_id": revoked["id"]}, "by": by})
    ruleless = knock.open(caller="203.0.113.22", targets=["bastion"])
    (rule,) = knock.client("ec2").describe_security_group_rules(
        Filters=[{"Name": "tag:knock:grant", "Values": [ruleless["id"]]}]
    )["SecurityGroupRules"]
    knock.client("ec2").revoke_security_group_ingress(
        GroupId=rule["GroupId"], SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]]
    )
    permission = {
        "IpProtocol": "tcp",
        "FromPort": 1,
        "ToPort": 1,
        "IpRanges": [{"CidrIp": "203.0.113.23/32"}],
    }
    tags = [{"ResourceType": "security-group-rule", "Tags": [{"Key": "knock:stack", "Value": STACK}]}]
    knock.client("ec2").authorize_security_group_ingress(
        GroupId=knock.groups["web"][0], IpPermissions=[permission], TagSpecifications=tags
    )
    knock.clock.advance(LATER)
    kinds = {finding["kind"] for finding in knock.call("guard", {})["findings"]}
    assert kinds >= {
        "rule without a live claim",
        "live grant without an execution",
        "live claim without its rule",
        "execution of an ended grant",
    }


def _notify(knock: Knock, recorder: Recorder) -> None:
    grant = knock.open(caller="203.0.113.30")
    line = json.dumps({"message": "authorized", "grant_id": grant["id"]})
    batch = {"messageType": "DATA_MESSAGE", "logEvents": [{"timestamp": 0, "message": line}]}
    data = base64.b64encode(gzip.compress(json.dumps(batch).encode())).decode()
    notify.wiring.cache_clear()
    topic = knock.client("sns").create_topic(Name=f"{STACK}-notifications")["TopicArn"]
    with mock.patch.dict(os.environ, NOTIFICATION_TOPIC=topic), recorder.function(f"{STACK}-notify"):
        assert notify.handler({"awslogs": {"data": data}}, None) == {"sent": 1}
    notify.wiring.cache_clear()


def _set_up_and_delete(deployed: Deployed, recorder: Recorder) -> None:
    """Run the setup function as CloudFormation does when a stack is created and deleted."""
    code = deployed.template.resources["SetupFunction"].properties["Code"]["ZipFile"]
    answers: list[str] = []
    send = SimpleNamespace(send=lambda _event, _context, status, *_rest, **_more: answers.append(status))
    with mock.patch.dict(sys.modules, cfnresponse=send):
        ec2 = boto3.client("ec2")
        group = ec2.create_security_group(GroupName="g", Description="g")["GroupId"]
        ours = [{"Key": "knock:stack", "Value": STACK}]
        ec2.create_tags(Resources=[group], Tags=ours)
        permission = {
            "IpProtocol": "tcp",
            "FromPort": 1,
            "ToPort": 1,
            "IpRanges": [{"CidrIp": "192.0.2.1/32"}],
        }
        ec2.authorize_security_group_ingress(
            GroupId=group,
            IpPermissions=[permission],
            TagSpecifications=[{"ResourceType": "security-group-rule", "Tags": ours}],
        )
        setup: dict[str, Any] = {}
        exec(compile(code, "template.yaml:SetupFunction", "exec"), setup)  # noqa: S102  # our own template
        setup["time"] = SimpleNamespace(sleep=lambda _seconds: None)
        domains = deployed.template.all("Custom::Domain")
        for kind, request, properties in (
            *(("Domain", "Create", domain.properties) for domain in domains),
            (
                "LastGrants",
                "Delete",
                {"StateMachine": deployed.arn("Grants"), "Closings": deployed.arn("Closings")},
            ),
            ("LastRules", "Delete", {"Stack": STACK}),
        ):
            with recorder.function(f"{STACK}-setup"):
                setup["handler"](
                    {
                        "ResourceType": f"Custom::{kind}",
                        "RequestType": request,
                        "RequestId": "1c2fa620-982a-11e3-aff7-50e2416294e0",
                        "ResourceProperties": properties,
                    },
                    None,
                )
    assert answers == ["SUCCESS"] * (len(domains) + 2)
