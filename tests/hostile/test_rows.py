"""Each row of the hostile AWS by itself: its effect on a client of the embedded AWS, on a moved clock.

A plan with one row alone has the effects of that row only. Calls are repeated until they occur.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from local.endpoint import Answer, Call
from local.gateway import Caller, UsageLimits
from local.hostile import ALONE, ROWS, TRUTH, Hostile, Plan
from local.hostile.dice import Dice
from local.invocation import InvocationError
from tests.conftest import ROOT
from tests.harness import ENVIRONMENT, MACHINE, REGION, Knock, running
from tests.hostile.bridge import hostile, meeting_it

ONCE = Config(retries={"total_max_attempts": 1})
OFTEN = 200
CIDR = "198.51.100.1/32"


@pytest.fixture(scope="module")
def knock() -> Iterator[Knock]:
    with running() as running_knock:
        yield running_knock


class Operator:
    """A client whose calls meet the given rows, without the SDK's own retries."""

    def __init__(self, knock: Knock, *rows: str, seed: int = 1, config: Config = ONCE) -> None:
        self.knock = knock
        self.stack = ExitStack()
        self.aws = self.stack.enter_context(hostile(knock, Plan(seed, rows)))
        self.config = config

    def __enter__(self) -> Operator:
        self.stack.enter_context(meeting_it("operator"))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def client(self, service: Any) -> Any:
        return boto3.client(service, region_name=REGION, config=self.config)

    def ingress_of(self, group: str) -> list[dict[str, Any]]:
        """List a group's ingress rules as they really are."""
        with meeting_it(None):
            return self.knock.of_group(group)

    def add(self, group: str, port: int) -> str:
        """Add a rule that no list of EC2's hides."""
        with meeting_it(None):
            return add(self.knock.client("ec2"), group, port)

    def later(self, **by: float) -> None:
        self.knock.clock.advance(timedelta(**by))


def refusals(call: Callable[[], Any], times: int = OFTEN) -> dict[str, int]:
    """Make a call `times` times; count the errors by code, and the successes under ''."""
    counts: dict[str, int] = {}
    for _ in range(times):
        try:
            call()
            code = ""
        except ClientError as error:
            code = error.response["Error"]["Code"]
        counts[code] = counts.get(code, 0) + 1
    return counts


def permission(port: int) -> dict[str, Any]:
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": CIDR}]}


def add(ec2: Any, group: str, port: int) -> str:
    tags = [{"Key": "knock:stack", "Value": "knock"}]
    answer = ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[permission(port)],
        TagSpecifications=[{"ResourceType": "security-group-rule", "Tags": tags}],
    )
    return str(answer["SecurityGroupRules"][0]["SecurityGroupRuleId"])


def listed(ec2: Any, group: str, name: str = "group-id") -> set[str]:
    answer = ec2.describe_security_group_rules(Filters=[{"Name": name, "Values": [group]}])
    return {rule["SecurityGroupRuleId"] for rule in answer["SecurityGroupRules"] if not rule["IsEgress"]}


def in_group(ec2: Any, group: str) -> set[int]:
    permissions = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    return {
        ingress["FromPort"]
        for ingress in permissions
        if {"CidrIp": CIDR} in [{"CidrIp": ip_range["CidrIp"]} for ip_range in ingress["IpRanges"]]
    }


@pytest.fixture
def group(knock: Knock) -> Iterator[str]:
    """A security group of the test's own."""
    ec2 = knock.client("ec2")
    created = ec2.create_security_group(GroupName=f"rows-{id(object())}", Description="test", VpcId=knock.vpc)
    yield created["GroupId"]
    ec2.delete_security_group(GroupId=created["GroupId"])


class TestStores:
    def test_simpledb_answers_503_now_and_then(self, knock: Knock) -> None:
        with Operator(knock, "sdb") as me:
            counts = refusals(me.client("sdb").list_domains)
        assert counts.keys() == {"", "ServiceUnavailable"}
        assert 1 <= counts["ServiceUnavailable"] <= OFTEN / 20

    def test_the_retry_of_a_write_whose_answer_was_lost_fails_on_its_condition(self, knock: Knock) -> None:
        """The first try was made, so that the condition of the SDK's second try no longer holds."""
        knock.client("sdb").create_domain(DomainName="rows")
        codes = set()
        with Operator(knock, "sdb", config=Config(retries={"total_max_attempts": 3})) as me:
            client = me.client("sdb")
            for number in range(OFTEN):
                expected = {"Name": "token", "Exists": False}
                pair = [{"Name": "token", "Value": str(number), "Replace": True}]
                request = {
                    "DomainName": "rows",
                    "ItemName": str(number),
                    "Attributes": pair,
                    "Expected": expected,
                }
                codes |= refusals(lambda a=request: client.put_attributes(**a), 1).keys()  # type: ignore[misc]
        assert "ConditionalCheckFailed" in codes
        items = knock.client("sdb").select(SelectExpression="select count(*) from `rows`")["Items"]
        assert items[0]["Attributes"][0]["Value"] == str(OFTEN), "every write was made"

    def test_dynamodb_throttles_and_loses_answers(self, knock: Knock) -> None:
        knock.client("dynamodb").create_table(
            TableName="rows",
            KeySchema=[{"AttributeName": "name", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "name", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        names = iter(range(2 * OFTEN))
        with Operator(knock, "dynamodb") as me:
            client = me.client("dynamodb")
            counts = refusals(
                lambda: client.put_item(TableName="rows", Item={"name": {"S": str(next(names))}})
            )
        assert counts.keys() == {"", "ThrottlingException", "InternalServerError"}
        stored = knock.client("dynamodb").scan(TableName="rows", Select="COUNT")["Count"]
        assert stored == counts[""] + counts["InternalServerError"]

    def test_a_closed_simpledb_refuses_calls_also_before_the_hostile_aws_begins(self, knock: Knock) -> None:
        call = Call("sdb", "CreateDomain", REGION, "any", b"")
        aws = Hostile(Plan(1, ("sdb-closed",)), knock.clock.now, knock.clock.at)
        answer = aws(call, lambda: Answer(200, [], b"made"))
        assert (answer.status, b"OptInRequired" in answer.body) == (403, True)
        ec2_answer = aws(Call("ec2", "DescribeVpcs", REGION, "any", b""), lambda: Answer(200, [], b"shown"))
        assert ec2_answer.body == b"shown"


class TestEc2Lag:
    def test_a_new_rule_is_missing_from_some_lists_and_later_from_none(
        self, knock: Knock, group: str
    ) -> None:
        with Operator(knock, "ec2-lag") as me:
            ec2 = me.client("ec2")
            rule = add(ec2, group, 22)
            lists = [rule in listed(ec2, group) for _ in range(20)]
            groups = [22 in in_group(ec2, group) for _ in range(20)]
            assert {*lists} == {*groups} == {True, False}, "two lists in a row disagree"
            me.later(seconds=131)
            assert all(rule in listed(ec2, group) for _ in range(20))
            assert all(22 in in_group(ec2, group) for _ in range(20))

    def test_a_new_rules_id_may_be_unknown_and_then_nothing_is_revoked(
        self, knock: Knock, group: str
    ) -> None:
        with Operator(knock, "ec2-lag", seed=2) as me:
            ec2, codes = me.client("ec2"), []
            for port in range(1, 13):
                rule = add(ec2, group, port)
                request = {"GroupId": group, "SecurityGroupRuleIds": [rule]}
                (code,) = refusals(lambda a=request: ec2.revoke_security_group_ingress(**a), 1)  # type: ignore[misc]
                codes.append(code)
                assert bool(me.ingress_of(group)) == bool(code)
                me.later(seconds=131)
                if code:
                    ec2.revoke_security_group_ingress(**request)
                    assert not me.ingress_of(group)
            assert {*codes} == {"", "InvalidSecurityGroupRuleId.NotFound"}

    def test_a_rule_just_revoked_is_still_listed_by_any_filter(self, knock: Knock, group: str) -> None:
        with Operator(knock, "ec2-lag", seed=3) as me:
            ec2 = me.client("ec2")
            rule = me.add(group, 22)
            ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[permission(22)])
            assert not me.ingress_of(group)
            for name, value in (
                ("group-id", group),
                ("tag:knock:stack", "knock"),
                ("security-group-rule-id", rule),
            ):
                is_listed = [rule in listed(ec2, value, name) for _ in range(20)]
                assert {*is_listed} == {True, False}, name
            assert not any(rule in listed(ec2, "other", "tag:knock:stack") for _ in range(20))
            assert {22 in in_group(ec2, group) for _ in range(20)} == {True, False}

    def test_a_revoked_rule_may_be_called_a_duplicate_and_then_none_is_made(
        self, knock: Knock, group: str
    ) -> None:
        with Operator(knock, "ec2-lag", seed=3) as me:
            ec2, codes = me.client("ec2"), []
            for port in range(1, 13):
                me.add(group, port)
                ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[permission(port)])
                (code,) = refusals(lambda p=port: add(ec2, group, p), 1)  # type: ignore[misc]
                codes.append(code)
                assert (port in {rule["FromPort"] for rule in me.ingress_of(group)}) == (not code)
            assert {*codes} == {"", "InvalidPermission.Duplicate"}

    def test_a_changed_rule_is_listed_as_it_was_and_as_it_is(self, knock: Knock, group: str) -> None:
        with Operator(knock, "ec2-lag", seed=4) as me:
            ec2 = me.client("ec2")
            rule_id = me.add(group, 22)
            changed = {"IpProtocol": "tcp", "FromPort": 2222, "ToPort": 2222, "CidrIpv4": CIDR}
            ec2.modify_security_group_rules(
                GroupId=group,
                SecurityGroupRules=[{"SecurityGroupRuleId": rule_id, "SecurityGroupRule": changed}],
            )
            filters = [{"Name": "group-id", "Values": [group]}]
            versions = set()
            for _ in range(20):
                rules = ec2.describe_security_group_rules(Filters=filters)["SecurityGroupRules"]
                versions |= {
                    (rule["SecurityGroupRuleId"], rule["FromPort"]) for rule in rules if not rule["IsEgress"]
                }
            assert versions == {(rule_id, 22), (rule_id, 2222)}

    def test_a_lag_is_now_and_then_longer_than_two_minutes(self, knock: Knock, group: str) -> None:
        with Operator(knock, "ec2-lag") as me:
            ec2, late = me.client("ec2"), 0
            rules = {add(ec2, group, port) for port in range(1, 60)}
            me.later(seconds=11)
            late = sum(not rules <= listed(ec2, group) for _ in range(20))
            assert late, "a rule is hidden after eleven seconds"
            me.later(seconds=120)
            assert rules <= listed(ec2, group)


class TestEc2:
    def test_fifty_changes_and_then_five_a_second(self, knock: Knock, group: str) -> None:
        with Operator(knock, "ec2-throttle") as me:
            ec2 = me.client("ec2")
            tag = lambda: ec2.create_tags(Resources=[group], Tags=[{"Key": "a", "Value": "b"}])  # noqa: E731
            assert 50 <= refusals(tag, 70)[""] < 70
            me.later(seconds=2)
            assert 10 <= refusals(tag, 30)[""] < 30

    def test_a_hundred_lists_and_then_twenty_a_second(self, knock: Knock) -> None:
        with Operator(knock, "ec2-throttle") as me:
            ec2 = me.client("ec2")
            counts = refusals(ec2.describe_vpcs, 200)
            assert 100 <= counts[""] < 200
            assert counts.keys() == {"", "RequestLimitExceeded"}

    def test_an_error_comes_before_or_after_the_effect(self, knock: Knock, group: str) -> None:
        after = before = 0
        with Operator(knock, "ec2-errors") as me:
            ec2 = me.client("ec2")
            for number in range(OFTEN):
                tags = [{"Key": "number", "Value": str(number)}]
                codes = refusals(lambda t=tags: ec2.create_tags(Resources=[group], Tags=t), 1)  # type: ignore[misc]
                if "" not in codes:
                    assert codes.keys() <= {"InternalError", "Unavailable"}
                    with meeting_it(None):
                        (description,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
                    tagged = {"Key": "number", "Value": str(number)} in description["Tags"]
                    after, before = after + tagged, before + (not tagged)
        assert after
        assert before

    def test_revoking_unknown_ids_may_succeed_and_names_the_rules_revoked(
        self, knock: Knock, group: str
    ) -> None:
        with Operator(knock, "ec2-lenient") as me:
            ec2, revoked = me.client("ec2"), me.add(group, 1)
            ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[revoked])
            codes = refusals(
                lambda: ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[revoked]), 20
            )
            assert codes.keys() == {"", "InvalidSecurityGroupRuleId.NotFound"}
            while True:
                open_ = me.add(group, 2)
                request = {"GroupId": group, "SecurityGroupRuleIds": [revoked, open_]}
                try:
                    answer = ec2.revoke_security_group_ingress(**request)
                except ClientError:
                    ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[open_])
                    continue
                break
            assert [rule["SecurityGroupRuleId"] for rule in answer["RevokedSecurityGroupRules"]] == [open_]
            assert not me.ingress_of(group)


class TestTagging:
    def _listed(self, me: Operator) -> dict[str, dict[str, str]]:
        mappings = me.client("resourcegroupstaggingapi").get_resources(
            TagFilters=[{"Key": "knock:stack", "Values": ["rows"]}],
            ResourceTypeFilters=["ec2:security-group"],
        )["ResourceTagMappingList"]
        return {
            mapping["ResourceARN"].rpartition("/")[2]: {tag["Key"]: tag["Value"] for tag in mapping["Tags"]}
            for mapping in mappings
        }

    def test_a_group_deleted_with_its_tags_is_listed_for_hours_and_an_untagged_one_is_not(
        self, knock: Knock
    ) -> None:
        groups = []
        for name in ("ghost", "clean"):
            tags = [{"Key": "knock:stack", "Value": "rows"}]
            groups.append(
                knock.client("ec2").create_security_group(
                    GroupName=name,
                    Description="test",
                    VpcId=knock.vpc,
                    TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
                )["GroupId"]
            )
        ghost, clean = groups
        with Operator(knock, "tagging") as me:
            ec2 = me.client("ec2")
            assert self._listed(me).keys() == {ghost, clean}
            ec2.delete_tags(Resources=[clean], Tags=[{"Key": "knock:stack"}])
            me.later(seconds=61)
            for group in groups:
                ec2.delete_security_group(GroupId=group)
            assert self._listed(me) == {ghost: {"knock:stack": "rows"}}
            me.later(minutes=4)
            assert self._listed(me).keys() == {ghost}
            me.later(hours=3)
            assert self._listed(me) == {}

    def test_new_tags_show_late(self, knock: Knock) -> None:
        with Operator(knock, "tagging") as me:
            ec2 = me.client("ec2")
            tags = [{"Key": "knock:stack", "Value": "rows"}, {"Key": "knock:target", "Value": "web"}]
            specification = [{"ResourceType": "security-group", "Tags": tags}]
            group = ec2.create_security_group(
                GroupName="late", Description="test", VpcId=knock.vpc, TagSpecifications=specification
            )["GroupId"]
            assert group not in self._listed(me)
            me.later(seconds=61)
            assert self._listed(me)[group]["knock:target"] == "web"
            ec2.create_tags(Resources=[group], Tags=[{"Key": "knock:target", "Value": "other"}])
            assert self._listed(me)[group]["knock:target"] == "web"
            me.later(seconds=61)
            assert self._listed(me)[group]["knock:target"] == "other"
            ec2.delete_tags(Resources=[group], Tags=[{"Key": "knock:stack"}])
        knock.client("ec2").delete_security_group(GroupId=group)


class TestApiGateway:
    def test_the_control_plane_takes_forty_calls_and_then_ten_a_second(self, knock: Knock) -> None:
        with Operator(knock, "control-plane") as me:
            apigateway = me.client("apigateway")
            counts = refusals(apigateway.get_rest_apis, 60)
            assert 40 <= counts[""] < 60
            assert counts.keys() == {"", "TooManyRequestsException"}
            me.later(seconds=1)
            assert 10 <= refusals(apigateway.get_rest_apis, 30)[""] < 30

    def test_some_keys_are_listed_without_a_name_always_the_same_ones(self, knock: Knock) -> None:
        with Operator(knock, "key-name", seed=1) as me:
            apigateway = me.client("apigateway")
            keys = [
                apigateway.create_api_key(name=f"key-{number}", enabled=True)["id"] for number in range(20)
            ]
            names = {key["id"]: key.get("name") for key in apigateway.get_api_keys(limit=500)["items"]}
            assert {names[key] is None for key in keys} == {True, False}
            for key in keys:
                assert apigateway.get_api_key(apiKey=key).get("name") == names[key]
                apigateway.delete_api_key(apiKey=key)

    def test_new_and_deleted_keys_take_effect_late(self, knock: Knock) -> None:
        old, new = (Caller(name, name, UsageLimits("plan")) for name in ("old", "new"))
        callers = [old]
        aws = Hostile(Plan(1, ("key-lag",)), knock.clock.now, knock.clock.at)
        list_keys = aws.keys(lambda: list(callers))
        aws.begin()
        assert list(list_keys()) == [old]
        callers[:] = [new]
        aws(Call("apigateway", "UpdateApiKey", REGION, "any", b""), lambda: Answer(200, [], b""))
        assert list(list_keys()) == [old]
        knock.clock.advance(timedelta(seconds=151))
        assert list(list_keys()) == [new]


class TestStepFunctions:
    def test_executions_are_listed_and_described_as_they_were(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("local.hostile.states.LONGEST", 100)  # longer than a busy machine takes
        with Operator(knock, "states-lag", seed=1) as me:
            states = me.client("stepfunctions")

            def running_now() -> list[str]:
                executions = states.list_executions(stateMachineArn=MACHINE, statusFilter="RUNNING")[
                    "executions"
                ]
                return [execution["name"] for execution in executions]

            grant = knock.open(caller="203.0.113.31", duration="1h")["id"]
            arn = MACHINE.replace(":stateMachine:", ":execution:") + f":{grant}"
            started = states.start_execution(stateMachineArn=MACHINE, name="young", input="{}")[
                "executionArn"
            ]
            with meeting_it(None):
                knock.wait(lambda: knock.execution_status("young") == "FAILED", "the execution did not fail")
            assert "young" not in running_now(), "an execution is listed late, also when it has ended"
            with pytest.raises(states.exceptions.ExecutionDoesNotExist):
                states.describe_execution(executionArn=started)
            me.later(seconds=120)
            assert grant in running_now()
            states.stop_execution(executionArn=arn)
            with meeting_it(None):
                knock.wait(
                    lambda: knock.execution_status(grant) == "ABORTED", "the execution was not stopped"
                )
            described = states.describe_execution(executionArn=arn)
            assert (described["status"], "stopDate" in described) == ("RUNNING", False)
            assert grant in running_now()
            aborted = states.list_executions(stateMachineArn=MACHINE, statusFilter="ABORTED")["executions"]
            assert grant not in [execution["name"] for execution in aborted]
            me.later(seconds=120)
            assert grant not in running_now()
            assert states.describe_execution(executionArn=arn)["status"] == "ABORTED"


class TestEvents:
    def test_events_come_late_twice_or_never(self, knock: Knock) -> None:
        delivered: list[str] = []
        waiting: list[tuple[datetime, Callable[[], None]]] = []
        aws = Hostile(Plan(1, ("events",)), knock.clock.now, lambda when, do: waiting.append((when, do)))
        publish = aws.publish(lambda _account, _region, event: delivered.append(event["detail"]["name"]))
        aws.begin()
        for number in range(OFTEN):
            detail = {"status": "ABORTED", "name": str(number), "executionArn": str(number)}
            publish("123456789012", REGION, {"detail": detail})
        assert not delivered, "each event is late"
        now = knock.clock.now()
        assert all(-1 < (when - now).total_seconds() <= 60 for when, _ in waiting)
        for _, deliver in waiting:
            deliver()
        times = [delivered.count(str(number)) for number in range(OFTEN)]
        assert {*times} == {0, 1, 2}
        assert aws.events is not None
        assert aws.events.lost == [str(number) for number in range(OFTEN) if times[number] == 0]


class TestLambda:
    def test_the_eleventh_function_at_a_time_is_refused(self, knock: Knock) -> None:
        aws = Hostile(Plan(1, ("concurrency",)), knock.clock.now, knock.clock.at)
        aws.begin()
        with ExitStack() as busy:
            for number in range(10):
                busy.enter_context(aws.admit(f"function-{number % 3}"))
            with pytest.raises(InvocationError) as refused, aws.admit("function-0"):
                pass
        assert refused.value.code == "TooManyRequestsException"
        with aws.admit("function-0"):
            pass

    def test_a_function_starts_cold_first_and_now_and_then(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slept: list[float] = []
        monkeypatch.setattr("local.hostile.functions.time.sleep", slept.append)
        aws = Hostile(Plan(1, ("cold-starts",)), knock.clock.now, knock.clock.at)
        aws.begin()
        with aws.admit("api"), aws.admit("api"):
            assert len(slept) == 2, "each environment starts cold once"
        for _ in range(100):
            with aws.admit("api"):
                pass
        assert 2 < len(slept) < 30
        assert all(0.3 <= seconds <= 2 for seconds in slept)


class TestIam:
    def test_a_new_role_is_denied_for_seconds(self, knock: Knock) -> None:
        with Operator(knock, "iam-lag") as me:
            ec2 = me.client("ec2")
            assert "UnauthorizedOperation" in refusals(ec2.describe_vpcs, 20)
            me.later(seconds=11)
            assert refusals(ec2.describe_vpcs, 20).keys() == {""}


class TestPlan:
    def test_a_seed_draws_the_same_for_a_call_whatever_other_calls_there_are(self) -> None:
        first, again, another_seed = Dice(7), Dice(7), Dice(8)
        drawn = [first.throw("sdb", "PutAttributes").random() for _ in range(5)]
        for number in range(20):
            again.throw("sdb", f"other {number}")
        assert [again.throw("sdb", "PutAttributes").random() for _ in range(5)] == drawn
        assert [another_seed.throw("sdb", "PutAttributes").random() for _ in range(5)] != drawn
        assert len(set(drawn)) == 5

    def test_calls_from_many_threads_draw_the_same_as_from_one(self) -> None:
        dice, single_dice = Dice(7), Dice(7)
        drawn: list[float] = []
        threads = [threading.Thread(target=lambda: drawn.append(dice.throw("a").random())) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(drawn) == sorted(single_dice.throw("a").random() for _ in range(20))

    @pytest.mark.parametrize(
        ("rows", "message"), [("ec2-lags", "no row 'ec2-lags'"), (" sdb", "no row ' sdb'")]
    )
    def test_an_unknown_row_is_refused_with_a_list_of_rows(self, rows: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as refused:
            Plan.of(1, rows)
        assert "ec2-lag" in str(refused.value)

    @pytest.mark.parametrize("scale", [0, -1, 1.5])
    def test_a_scale_is_more_than_0_and_at_most_1(self, scale: float) -> None:
        with pytest.raises(ValueError, match="a scale is"):
            Plan.of(1, None, scale)

    def test_delays_are_scaled_and_rows_by_name_only_are_left_out(self) -> None:
        assert set(Plan(1).rows) == set(ROWS) - set(ALONE)
        assert Plan.of(3, "sdb,events", 0.5) == Plan(3, ("sdb", "events"), 0.5)

    def test_calls_with_the_key_truth_and_calls_before_it_begins_see_aws_as_it_is(self, knock: Knock) -> None:
        aws = Hostile(Plan(1, ("control-plane",)), knock.clock.now, knock.clock.at)

        def call(key: str) -> Answer:
            return aws(Call("apigateway", "GetApiKeys", REGION, key, b""), lambda: Answer(200, [], b""))

        assert [call("any").status for _ in range(60)] == [200] * 60
        aws.begin()
        assert [call(TRUTH).status for _ in range(60)] == [200] * 60
        assert 429 in [call("any").status for _ in range(60)]
        assert aws.met["control-plane"] > 0


def test_the_page_lists_every_row() -> None:
    page = (ROOT / "docs" / "simulated-aws.md").read_text()
    for row in ROWS:
        assert f"`{row}`" in page, f"{row} is not on the page"


def test_every_row_is_tested_here() -> None:
    source = inspect.getsource(inspect.getmodule(test_every_row_is_tested_here))  # type: ignore[arg-type]
    assert not [row for row in ROWS if json.dumps(row) not in source]
