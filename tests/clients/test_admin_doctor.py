"""`knock-admin doctor`: each check finds its fault, and the test grant leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from knock_admin import doctor, simpledb
from knock_admin.errors import Unreachable
from tests.clients.admin_support import (
    ACCOUNT,
    CLOSINGS,
    LEDGER,
    MACHINE,
    MODULES,
    REFUSALS,
    REGION,
    STACK,
    TRAIL,
    Api,
    World,
    client,
    failing_at,
    make_world,
    scratch_api,
)

world = pytest.fixture(make_world)


@pytest.fixture
def well(world: World) -> World:
    """Complete the world to a deployment without a fault."""
    functions = client("lambda").list_functions()["Functions"]
    arns = {function["FunctionName"]: function["FunctionArn"] for function in functions}
    states = {
        "Open": {"Type": "Task", "Resource": arns["knock-authorize"], "Next": "Close"},
        "Close": {"Type": "Task", "Resource": arns["knock-revoke"], "End": True},
    }
    for name, start, needed in (("knock-grants", "Open", states), ("knock-closings", "Close", ("Close",))):
        client("stepfunctions").create_state_machine(
            name=name,
            definition=json.dumps({"StartAt": start, "States": {state: states[state] for state in needed}}),
            roleArn=f"arn:aws:iam::{ACCOUNT}:role/knock-role",
        )
    client("events").put_rule(
        Name="knock-stopped", EventPattern='{"source": ["aws.states"]}', State="ENABLED"
    )
    role = f"arn:aws:iam::{ACCOUNT}:role/knock-role"
    client("events").put_targets(
        Rule="knock-stopped", Targets=[{"Id": "closings", "Arn": CLOSINGS, "RoleArn": role}]
    )
    alarm(world, "knock-RevocationLate", "OK")
    world.plan_stage()
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    world.ok("key", "add", "alice", "--targets", "bastion", "--max", "8h")
    return world


def alarm(world: World, name: str, state: str) -> None:
    client("cloudwatch").put_metric_alarm(
        AlarmName=name,
        AlarmDescription="Look at the log.",
        MetricName="RevocationLag",
        Namespace="Knock",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1.0,
        ComparisonOperator="GreaterThanThreshold",
        Statistic="Maximum",
    )
    client("cloudwatch").set_alarm_state(AlarmName=name, StateValue=state, StateReason="a test")


def bad(world: World, *more: str) -> dict[str, str]:
    """Run the doctor; give the details of the findings that are not ok, by level and check."""
    result = world.run("doctor", "--json", *more)
    findings = [finding for finding in result.json["findings"] if finding["level"] != "ok"]
    assert result.code == (1 if any(finding["level"] == "fail" for finding in findings) else 0)
    return {f"{finding['level']} {finding['what']}": finding["detail"] for finding in findings}


def test_a_deployment_that_is_well_has_nothing_but_ok(well: World) -> None:
    result = well.ok("doctor")
    assert {line.split()[0] for line in result.out.splitlines()[1:]} == {"ok"}
    checks = {line[7:22].strip() for line in result.out.splitlines()[1:]}
    assert len(checks) >= 13, checks


def test_credentials_that_run_out_between_two_checks_end_the_doctor(
    well: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sign-in that fails is no finding of the check in which it failed."""

    def run_out(_stack: object) -> Iterator[doctor.Finding]:
        raise Unreachable("the profile p gave no credentials")
        yield

    monkeypatch.setattr(doctor, "_functions", run_out)
    result = well.run("doctor")
    assert (result.code, result.out) == (3, "")
    assert "the profile p gave no credentials" in result.err


def test_a_missing_function_is_a_failure(well: World) -> None:
    client("lambda").delete_function(FunctionName="knock-guard")
    assert "there is none for guard" in bad(well)["fail functions"]


def test_a_function_that_cannot_run_is_a_failure(well: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.awslambda.models import LambdaFunction

    real_configuration = LambdaFunction.get_configuration

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        return {
            **real_configuration(self, *args, **kwargs),
            "State": "Failed",
            "StateReason": "the layer is gone",
        }

    monkeypatch.setattr(LambdaFunction, "get_configuration", broken)
    assert "is Failed, its last update Successful: the layer is gone" in bad(well)["fail functions"]


def test_a_function_that_is_switched_off_is_a_failure(well: World) -> None:
    client("lambda").put_function_concurrency(FunctionName="knock-revoke", ReservedConcurrentExecutions=0)
    client("lambda").put_function_concurrency(FunctionName="knock-api", ReservedConcurrentExecutions=1)
    assert bad(well)["fail functions"] == "knock-revoke is switched off: its reserved concurrency is 0"


def test_a_group_of_a_command_that_was_stopped_is_a_warning(
    well: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["target", "add", "jump", "--ports", "22/tcp", "--eip", well.eip]
    with failing_at(monkeypatch, 3, after=False):
        assert well.run(*command).code == 1
    warning = bad(well)["warn targets"]
    assert re.fullmatch(
        r"sg-\w+ is a group of jump that no command has finished, so no knock opens it: if none is running, "
        r"`knock-admin target add jump` finishes it, `target rm jump` removes it",
        warning,
    ), warning
    well.ok(*command)
    assert "warn targets" not in bad(well)


def test_a_key_that_was_not_added_to_the_plan_is_a_warning(
    well: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["key", "add", "bob", "--targets", "bastion", "--max", "8h"]
    with failing_at(monkeypatch, 2, after=False):
        assert well.run(*command).code == 1
    assert re.fullmatch(
        r"bob \(\w+\) is not in the usage plan, so it opens nothing: `knock-admin key add` of that name "
        "completes it",
        bad(well)["warn keys"],
    )
    well.ok(*command)
    assert "warn keys" not in bad(well)


def test_functions_that_disagree_are_a_failure(well: World) -> None:
    variables = client("lambda").get_function_configuration(FunctionName="knock-api")["Environment"][
        "Variables"
    ]
    client("lambda").update_function_configuration(
        FunctionName="knock-api", Environment={"Variables": {**variables, "TRAIL_DOMAIN": "other"}}
    )
    assert "do not agree on TRAIL_DOMAIN: knock-trail-1c2fa620, other" in bad(well)["fail functions"]


def test_a_state_machine_that_calls_a_function_of_another_stack_is_a_failure(well: World) -> None:
    machine = CLOSINGS
    stranger = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:stranger"
    definition = {"StartAt": "A", "States": {"A": {"Type": "Task", "Resource": stranger, "End": True}}}
    client("stepfunctions").update_state_machine(stateMachineArn=machine, definition=json.dumps(definition))
    assert f"it calls {stranger}" in bad(well)["fail closings"]


def test_a_state_machine_that_is_gone_is_a_failure(well: World) -> None:
    for machine in (MACHINE, CLOSINGS):
        client("stepfunctions").delete_state_machine(stateMachineArn=machine)
    assert {"fail state machine", "fail closings"} <= bad(well).keys()


@pytest.mark.parametrize(("domain", "check"), [(TRAIL, "trail"), (LEDGER, "ledger"), (REFUSALS, "refusals")])
def test_a_domain_that_is_gone_is_a_failure_and_the_other_checks_go_on(
    well: World, domain: str, check: str
) -> None:
    well.sdb.delete_domain(DomainName=domain)
    findings = bad(well)
    assert list(findings) == [f"fail {check}"]
    assert f"There is no SimpleDB domain {domain}" in findings[f"fail {check}"]


def test_a_ledger_that_cannot_be_read_is_a_failure(well: World) -> None:
    """Break it: let the unreadable ledger end the check."""
    well.claim("203.0.113.8/32", grants=60)
    part = {"Name": "parts", "Value": "1", "Replace": True}
    well.sdb.put_attributes(DomainName=LEDGER, ItemName="203.0.113.7/32", Attributes=[part])
    findings = bad(well)
    assert "The ledger of 203.0.113.7/32 cannot be read" in findings["fail ledger"]
    assert findings["warn ledger"].startswith("203.0.113.8/32 has 60 of 64 claims")


def test_a_source_that_is_nearly_full_is_a_warning(well: World) -> None:
    well.claim("203.0.113.7/32", grants=51, rules=102)
    assert bad(well) == {}
    well.claim("203.0.113.8/32", grants=1, rules=103)
    assert bad(well) == {
        "warn ledger": "203.0.113.8/32 has 103 of 128 rules; beyond that, knocks from there are refused"
    }


def test_the_limits_are_listed(well: World) -> None:
    limits = next(
        finding for finding in well.run("doctor", "--json").json["findings"] if finding["what"] == "limits"
    )
    assert limits["detail"] == "20 live grants a key (MaxLive), 64 claims and 128 rules a source"


def test_a_trail_in_a_region_without_simpledb_is_a_failure(well: World) -> None:
    for module in MODULES:
        name = f"knock-{module}"
        variables = client("lambda").get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        client("lambda").update_function_configuration(
            FunctionName=name, Environment={"Variables": {**variables, "TRAIL_REGION": "eu-central-1"}}
        )
    findings = bad(well)
    for check in ("trail", "ledger", "refusals"):
        assert "eu-central-1 has no SimpleDB; it is in ap-northeast-1," in findings[f"fail {check}"]


def test_a_trail_that_is_nearly_full_is_a_warning(well: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simpledb, "LARGEST", 10)
    well.record("alice")
    assert "% of 10 GB" in bad(well)["warn trail"]


def test_tags_of_groups_that_cannot_be_read_are_a_failure(well: World) -> None:
    group = well.make_group("by-hand")
    well.tag(group, {"knock:stack": STACK, "knock:target": "x"})
    assert f"{group}: the tag knock:ports cannot be read" in bad(well)["fail targets"]


def test_an_interface_that_lacks_a_group_of_the_pool_is_a_failure(well: World) -> None:
    well.ok("target", "add", "bastion", "--groups", "2")
    pool = [group["id"] for group in well.ok("target", "ls", "--json").json["targets"][0]["groups"]]
    well.ec2.modify_network_interface_attribute(NetworkInterfaceId=well.eni, Groups=[well.office, pool[0]])
    assert f"interface {well.eni} lacks {pool[1]} of bastion" in bad(well)["fail targets"]


def test_groups_of_a_pool_with_other_ports_or_in_another_vpc_are_reported(well: World) -> None:
    vpc = well.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    far = well.make_group("far", vpc)
    tags = {"knock:stack": STACK, "knock:target": "bastion", "knock:ports": "23/tcp"}
    well.tag(far, tags)
    details = [finding["detail"] for finding in well.run("doctor", "--json").json["findings"]]
    assert any("differ in knock:ports" in detail for detail in details)
    assert any("in several VPCs" in detail for detail in details)


def test_a_target_attached_to_nothing_is_a_warning(well: World) -> None:
    well.ok("target", "detach", "bastion", "--all")
    assert bad(well) == {"warn targets": "bastion is attached to nothing, so a knock lets nobody in"}


def test_a_managed_port_that_another_group_opens_to_the_world_is_a_warning(well: World) -> None:
    well.open_rule(well.office, "0.0.0.0/0")
    assert (
        f"bastion guards nothing there: {well.office} opens 22/tcp to 0.0.0.0/0" in bad(well)["warn targets"]
    )


@pytest.mark.parametrize(("cidr", "port", "protocol"), [("0.0.0.0/0", 22, "tcp"), ("::/0", 3389, "udp")])
def test_a_rule_from_anywhere_in_a_pools_own_group_is_a_warning(
    well: World, cidr: str, port: int, protocol: str
) -> None:
    described = well.ec2.describe_security_groups(
        Filters=[{"Name": "tag:knock:target", "Values": ["bastion"]}]
    )
    group = described["SecurityGroups"][0]["GroupId"]
    well.open_rule(group, "203.0.113.7/32")
    assert "warn targets" not in bad(well)
    well.open_rule(group, cidr, port=port, protocol=protocol)
    line = f"bastion has a rule that Knock did not make: {group} opens {port}/{protocol} to {cidr} (sgr-"
    assert bad(well)["warn targets"].startswith(line)


def test_a_foreign_group_tagged_as_unfinished_is_a_warning_that_names_no_command_to_finish_it(
    well: World,
) -> None:
    foreign = well.make_group("other-teams")
    marks = {"knock:made-by": "knock-admin", "knock:unfinished": f"{STACK}/bastion"}
    well.tag(foreign, marks)
    assert bad(well)["warn targets"] == (
        f"{foreign} has the tag knock:unfinished, and knock-admin did not make it: it is left as it is; "
        "find out who put the tag there, and take it off"
    )


def test_a_stack_with_neither_targets_nor_keys_is_told_how_to_begin(world: World) -> None:
    findings = bad(world)
    assert "knock-admin target add" in findings["warn targets"]
    assert "knock-admin key add" in findings["warn keys"]


def test_keys_that_open_nothing_or_should_have_been_deleted_are_reported(well: World) -> None:
    well.ok("key", "add", "bob", "--targets", "nowhere", "--max", "8h")
    well.ok("key", "rotate", "alice", "--overlap", "1s")
    old = well.ok("key", "ls", "alice", "--json").json["keys"][0]["id"]
    well.gateway.tag_resource(
        resourceArn=f"arn:aws:apigateway:{REGION}::/apikeys/{old}",
        tags={"knock:retires-at": "2026-01-01T00:00:00Z"},
    )
    details = " ".join(finding["detail"] for finding in well.ok("doctor", "--json").json["findings"])
    assert re.search(r"bob \(\w+\) may open nowhere, which does not exist", details)
    assert f"alice ({old}) was to retire at 2026-01-01T00:00:00Z and still works" in details


def warnings_of_keys(world: World) -> list[str]:
    """Run the doctor, which must find nothing but warnings about keys; give those."""
    findings = [
        finding for finding in world.ok("doctor", "--json").json["findings"] if finding["level"] != "ok"
    ]
    assert {(finding["level"], finding["what"]) for finding in findings} <= {("warn", "keys")}
    return [finding["detail"] for finding in findings]


def untag(world: World, name: str, *tags: str) -> None:
    (key,) = [key["id"] for key in world.gateway.get_api_keys()["items"] if key["name"] == name]
    world.gateway.untag_resource(
        resourceArn=f"arn:aws:apigateway:{REGION}::/apikeys/{key}", tagKeys=list(tags)
    )


def test_a_key_that_opens_nothing_is_reported_with_the_tags_it_lacks(well: World) -> None:
    """Break it: check knock:targets alone."""
    well.ok("key", "add", "bob", "--targets", "bastion", "--max", "8h")
    untag(well, "bob", "knock:max-duration")
    (warning,) = warnings_of_keys(well)
    assert re.fullmatch(r"bob \(\w+\) opens nothing: it has no tag knock:max-duration", warning)
    untag(well, "bob", "knock:targets")
    (warning,) = warnings_of_keys(well)
    assert warning.endswith("it has no tag knock:targets and no tag knock:max-duration")


def test_a_key_that_may_have_longer_grants_than_the_stack_allows_is_reported(well: World) -> None:
    well.ok("key", "set", "alice", "--max", "24h")
    assert warnings_of_keys(well) == []
    well.ok("key", "set", "alice", "--max", "25h")
    (warning,) = warnings_of_keys(well)
    assert re.fullmatch(
        r"alice \(\w+\) may have grants of 1d1h, and the stack allows 1d \(MaxDuration\)", warning
    )


@pytest.mark.parametrize(
    ("ends_in", "patterns"),
    [
        (timedelta(days=-1), [r"alice \(\w+\) opens nothing since \S+, its end", "nobody may open bastion"]),
        (timedelta(days=6), [r"alice \(\w+\) ends soon: it is good until \S+"]),
        (timedelta(days=8), []),
    ],
)
def test_a_key_that_has_ended_or_ends_soon_is_reported(
    well: World, ends_in: timedelta, patterns: list[str]
) -> None:
    until = datetime.now(UTC) + ends_in
    well.ok("key", "set", "alice", "--until", f"{until:%Y-%m-%dT%H:%M:%SZ}")
    warnings = warnings_of_keys(well)
    assert len(warnings) == len(patterns)
    assert all(re.fullmatch(pattern, warning) for pattern, warning in zip(patterns, warnings, strict=True)), (
        warnings
    )


def test_disabled_keys_are_named_and_no_fault(well: World) -> None:
    for name in ("bob", "carol"):
        well.ok("key", "add", name, "--targets", "bastion", "--max", "8h")
        well.ok("key", "disable", name)
    assert "disabled: bob, carol" in well.ok("doctor").out
    assert warnings_of_keys(well) == []


def test_a_target_that_no_usable_key_may_open_is_reported(well: World) -> None:
    """Break it: count disabled keys, or forget that @all opens every target."""
    well.ok("target", "add", "web", "--ports", "443/tcp", "--interface", well.make_interface(well.office))
    assert warnings_of_keys(well) == ["nobody may open web"]
    well.ok("key", "add", "ops", "--targets", "*", "--max", "8h")
    assert warnings_of_keys(well) == []
    well.ok("key", "disable", "ops")
    well.ok("key", "disable", "alice")
    assert warnings_of_keys(well) == ["nobody may open bastion, web"]


def test_a_key_whose_tags_cannot_be_read_is_a_failure(well: World) -> None:
    key = well.ok("key", "ls", "--json").json["keys"][0]["id"]
    well.gateway.tag_resource(
        resourceArn=f"arn:aws:apigateway:{REGION}::/apikeys/{key}", tags={"knock:max-duration": "soon"}
    )
    assert "it gives no right" in bad(well)["fail keys"]


def test_a_usage_plan_without_limits_or_without_an_api_is_reported(world: World) -> None:
    plan = world.gateway.get_usage_plans()["items"][0]["id"]
    world.gateway.delete_usage_plan(usagePlanId=plan)
    world.gateway.create_usage_plan(name="knock")
    findings = bad(world)
    assert "connected to no API" in findings["fail usage plan"]
    assert "has no quota" in findings["warn usage plan"]


def test_a_pool_that_is_nearly_full_is_a_warning(well: World, monkeypatch: pytest.MonkeyPatch) -> None:
    group = well.ok("target", "ls", "--json").json["targets"][0]["groups"][0]["id"]
    for number in range(48):
        well.open_rule(group, f"203.0.113.{number}/32")
    assert "bastion uses 48 of 60 IPv4 rules; `target grow bastion` makes room" in bad(well)["warn quotas"]


def test_quotas_that_pass_the_limit_of_an_interface_are_a_warning(
    well: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.servicequotas.models import ServiceQuotasBackend

    monkeypatch.setattr(ServiceQuotasBackend, "get_service_quota", lambda *_, **__: {"Value": 100.0})
    assert "100 rules a group in 100 groups an interface pass 1000" in bad(well)["warn quotas"]


def test_a_key_whose_grants_are_on_record_under_another_name_is_a_warning(well: World) -> None:
    plan = well.gateway.get_usage_plans()["items"][0]["id"]
    for name, tags in (("bob", {}), ("", {}), ("carol", {"knock:name": "eve"})):
        key = well.gateway.create_api_key(name=name, enabled=True, tags={"knock:stack": STACK, **tags})["id"]
        well.gateway.create_usage_plan_key(usagePlanId=plan, keyId=key, keyType="API_KEY")
    details = [finding["detail"] for finding in well.ok("doctor", "--json").json["findings"]]
    assert (
        sum("has no tag knock:name, so its grants are on record under its id" in detail for detail in details)
        == 2
    )
    assert any(re.match(r"carol \(\w+\): its grants are on record under eve", detail) for detail in details)


def test_a_rule_for_stopped_executions_that_starts_no_closing_is_a_failure(well: World) -> None:
    client("events").remove_targets(Rule="knock-stopped", Ids=["closings"])
    assert f"starts nothing, not {CLOSINGS}" in bad(well)["fail events"]


def test_a_missing_rule_for_stopped_executions_is_a_failure(well: World) -> None:
    client("events").disable_rule(Name="knock-stopped")
    assert "the rule knock-stopped is off" in bad(well)["fail events"]
    client("events").remove_targets(Rule="knock-stopped", Ids=["closings"])
    client("events").delete_rule(Name="knock-stopped")
    assert "there is no rule knock-stopped" in bad(well)["fail events"]


def test_a_firing_alarm_is_a_failure_and_none_at_all_a_warning(well: World) -> None:
    alarm(well, "knock-DriftFound", "ALARM")
    alarm(well, "knock-2-DriftFound", "ALARM")
    assert bad(well)["fail alarms"] == "knock-DriftFound is firing: Look at the log."
    client("cloudwatch").delete_alarms(AlarmNames=["knock-DriftFound", "knock-RevocationLate"])
    assert "there are none" in bad(well)["warn alarms"]


def test_a_check_without_permission_is_a_warning_that_names_the_permission(
    well: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.cloudwatch.responses import CloudWatchResponse

    def refuse(_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not for you"}}, "DescribeAlarms")

    monkeypatch.setattr(CloudWatchResponse, "describe_alarms", refuse)
    findings = bad(well)
    assert "Your credentials need cloudwatch:DescribeAlarms" in findings["warn alarms"]


def test_aws_out_of_reach_is_exit_code_3_and_not_a_finding(
    well: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.cloudwatch.responses import CloudWatchResponse

    def cut(_: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://monitoring")

    monkeypatch.setattr(CloudWatchResponse, "describe_alarms", cut)
    assert well.run("doctor").code == 3


# ---------------------------------------------------------------------------- the test grant


class Clock:
    """The doctor's clock: sleeping moves it on, and runs the actions that are due by then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [action for moment, action in self.due if moment <= self.now]
        self.due = [(moment, action) for moment, action in self.due if moment > self.now]
        for action in due:
            action()

    def schedule(self, seconds: float, action: Callable[[], None]) -> None:
        self.due.append((self.now + seconds, action))


@pytest.fixture
def api(well: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    clock = Clock()
    monkeypatch.setattr(doctor, "time", clock)
    monkeypatch.setattr(doctor, "PAUSE", 10.0)  # to poll less often within the doctor's own time limits
    with scratch_api(well) as server:
        server.schedule = clock.schedule
        yield server


def leftovers(world: World) -> list[str]:
    groups = world.ec2.describe_security_groups()["SecurityGroups"]
    keys = world.gateway.get_api_keys()["items"]
    return [group["GroupName"] for group in groups if "doctor" in group["GroupName"]] + [
        key["name"] for key in keys if "doctor" in key["name"]
    ]


def test_a_test_grant_opens_closes_by_itself_and_leaves_nothing(well: World, api: Api) -> None:
    api.accepts, api.knows = 3, 3
    result = well.ok("doctor", "--test-grant", "--api-url", api.url)
    assert "doctor_1 opened sgr-" in result.out
    assert "doctor_1 is expired, its rule gone; closed at 2026-11-23T21:17:30.100Z" in result.out
    assert leftovers(well) == []
    (value,) = api.keys
    assert value not in result.out + result.err


def test_the_scratch_group_is_a_target_from_the_keys_acceptance_to_the_knock_alone(
    well: World, api: Api
) -> None:
    """Break it: tag the group when it is made, or keep its tags until it is deleted."""
    api.accepts, api.knows = 2, 2
    well.ok("doctor", "--test-grant", "--api-url", api.url)
    requests = [request for request, _ in api.asked]
    knock = requests.index("POST /knock")
    assert requests[:knock] == ["GET /grants", "GET /grants", "GET /whoami", "GET /whoami"]
    assert [target for _, target in api.asked] == [False] * 2 + [True] * 3 + [False] * (len(requests) - 5)
    assert len(requests) > knock + 1


def test_a_scratch_group_that_another_key_opened_is_left_and_named(well: World, api: Api) -> None:
    """Break it: delete the group although a live grant, of another key, claims a rule in it."""
    group: list[str] = []

    def knock_too(scratch: str) -> None:
        group.append(scratch)
        well.open_rule(scratch, "198.51.100.1/32", port=9)

    api.on_knock = knock_too
    result = well.run("doctor", "--test-grant", "--api-url", api.url)
    assert "doctor_1 is expired, its rule gone" in result.out
    assert re.search(
        rf"the group {group[0]} was left behind, remove it by hand: it holds sgr-\w+, which", result.out
    )
    assert {tag["Key"] for tag in well.group(group[0])["Tags"]} == {"knock:made-by", "knock:stack"}
    assert [name for name in leftovers(well) if not name.startswith("knock-doctor")] == []


def test_a_scratch_group_that_a_killed_doctor_left_is_removed_as_a_target(well: World) -> None:
    """Break it: forget the scratch group's description in `Group.made_for`."""
    scratch = well.ec2.create_security_group(
        GroupName="knock-doctor-0a1b2c3d",
        Description="A test of knock-admin doctor; it is attached to nothing and can be deleted",
        VpcId=well.vpc,
    )["GroupId"]
    marks = {"knock:made-by": "knock-admin", "knock:unfinished": f"{STACK}/doctor-0a1b2c3d"}
    well.tag(scratch, marks)
    assert "`target rm doctor-0a1b2c3d` removes it" in bad(well)["warn targets"]
    well.ok("target", "rm", "doctor-0a1b2c3d", "--yes")
    assert "warn targets" not in bad(well)


def test_a_rule_that_is_not_there_is_a_failure(well: World, api: Api) -> None:
    api.opens = api.closes = False
    assert "has no rule for it" in bad(well, "--test-grant", "--api-url", api.url)["fail test grant"]
    assert leftovers(well) == []


def test_a_rule_that_stays_is_a_failure_and_is_closed_by_the_revoke_function(well: World, api: Api) -> None:
    api.closes = False
    payloads: list[Any] = []

    def revoke(payload: dict[str, Any]) -> dict[str, Any]:
        payloads.append(payload)
        api.close()
        return {"status": "revoked"}

    well.functions["revoke"] = revoke
    assert (
        "is still there after its end" in bad(well, "--test-grant", "--api-url", api.url)["fail test grant"]
    )
    assert [payload["grant"] for payload in payloads] == [{"grant_id": "doctor_1"}]
    assert leftovers(well) == []


def test_a_test_grant_that_did_not_expire_is_a_failure(well: World, api: Api) -> None:
    api.status = "revoked"
    assert "doctor_1 is revoked" in bad(well, "--test-grant", "--api-url", api.url)["fail test grant"]


def test_a_trail_that_never_says_closed_is_a_failure(well: World, api: Api) -> None:
    api.closed = False
    assert "closed at no time yet" in bad(well, "--test-grant", "--api-url", api.url)["fail test grant"]


@pytest.mark.parametrize(
    ("accepts", "knows", "message"),
    [
        (10_000, 1, "the API still does not accept the temporary key"),
        (1, 10_000, "the API still does not know the scratch target"),
    ],
)
def test_an_api_that_never_knows_the_key_or_the_target_is_a_failure(
    well: World, api: Api, accepts: int, knows: int, message: str
) -> None:
    api.accepts, api.knows = accepts, knows
    assert message in bad(well, "--test-grant", "--api-url", api.url)["fail test grant"]
    assert leftovers(well) == []


def test_a_knock_that_is_refused_is_a_failure_and_leaves_nothing(well: World, api: Api) -> None:
    api.refuses = 409
    assert "the knock failed: " in bad(well, "--test-grant", "--api-url", api.url)["fail test grant"]
    assert leftovers(well) == []


def test_an_interrupt_cleans_up_too(well: World, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_await_target", lambda *_: signal.raise_signal(signal.SIGTERM))
    result = well.run("doctor", "--test-grant", "--api-url", api.url)
    assert (result.code, "interrupted" in result.err) == (130, True)
    assert "known to have made is removed again" in result.err
    assert "where this one stopped" not in result.err, "the next run starts from the beginning"
    assert leftovers(well) == []


def test_a_key_that_cannot_be_removed_is_named_and_the_group_is_removed(
    well: World, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.apigateway.models import APIGatewayBackend

    def refuse(*_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "DeleteApiKey")

    monkeypatch.setattr(APIGatewayBackend, "delete_api_key", refuse)
    result = well.run("doctor", "--test-grant", "--api-url", api.url)
    assert result.code == 1
    assert re.search(
        r"fail +test grant +the key \w+ was left behind, remove it by hand: .*apigateway:DELETE", result.out
    )
    assert "warning: the key" in result.err
    assert [name for name in leftovers(well) if name.startswith("knock-doctor")] == []


def test_a_dry_run_lists_the_knock_and_makes_nothing(well: World) -> None:
    planned = well.ok("doctor", "--test-grant", "--dry-run", "--json").json["calls"]
    assert [call["call"] for call in planned] == [
        "ec2:CreateSecurityGroup",
        "apigateway:CreateApiKey",
        "apigateway:CreateUsagePlanKey",
        "ec2:CreateTags",
        "ec2:DeleteTags",
        "knock:POST /knock",
        "ec2:DeleteTags",
        "apigateway:DeleteApiKey",
        "ec2:CreateTags",
        "ec2:DeleteTags",
        "ec2:DeleteSecurityGroup",
    ]
    assert leftovers(well) == []


def test_the_apis_address_follows_from_the_usage_plan(well: World) -> None:
    from knock_admin.aws import Aws
    from knock_admin.stack import find

    stack = find(Aws(region=REGION), STACK)
    assert re.fullmatch(rf"https://\w+\.execute-api\.{REGION}\.amazonaws\.com/v1", stack.read_api_url())


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4566", "http://localhost:4566", "http://[::1]:4566"])
def test_the_apis_address_is_not_derived_from_a_custom_endpoint(
    well: World, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    from knock_admin.aws import Aws
    from knock_admin.errors import AdminError
    from knock_admin.stack import find

    stack = find(Aws(region=REGION), STACK)
    assert stack.read_plan()["apiStages"]  # read before the endpoint changes, and cached
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    stack.aws._clients.clear()
    with pytest.raises(AdminError, match="Name it with --api-url or KNOCK_URL"):
        _ = stack.read_api_url()


def test_without_an_address_the_test_grant_says_how_to_name_it(world: World) -> None:
    result = world.run("doctor", "--test-grant")
    assert (result.code, "Name it with --api-url or KNOCK_URL" in result.out) == (1, True)
    assert leftovers(world) == []
