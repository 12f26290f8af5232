"""`knock-admin why NAME`: everything that decides whether a key opens a target, and the first no."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.clients.admin_support import CommandResult, World, at, client, make_world
from tests.clients.test_admin_keys import all_keys

world = pytest.fixture(make_world)


@pytest.fixture
def _well(world: World) -> None:
    """Give alice a key, and a target that is attached to something."""
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--interface", world.make_interface())
    world.ok("key", "add", "alice", "--targets", "bastion", "--max", "8h")


def why(world: World, *more: str) -> CommandResult:
    return world.run("why", "alice", *more)


@pytest.mark.usefixtures("_well")
def test_nothing_says_no_to_a_key_that_opens_its_targets(world: World) -> None:
    result = why(world)
    assert (result.code, "Nothing here says no." in result.out) == (0, True), result.out
    assert "is enabled, and in the usage plan knock" in result.out
    assert "22/tcp, attached in 1 place" in result.out


@pytest.mark.usefixtures("_well")
class TestFirstNo:
    def first(self, world: World, *more: str) -> str:
        result = why(world, *more)
        assert result.code == 1, result.out
        (line,) = [line for line in result.out.splitlines() if line.startswith("The first no: ")]
        return line

    def test_a_key_that_is_disabled(self, world: World) -> None:
        world.ok("key", "disable", "alice")
        assert "is disabled; `knock-admin key enable" in self.first(world)

    def test_a_key_that_is_not_in_the_usage_plan(self, world: World) -> None:
        plan = world.gateway.get_usage_plans()["items"][0]["id"]
        world.gateway.delete_usage_plan_key(usagePlanId=plan, keyId=all_keys(world)[0]["id"])
        assert "is not in the usage plan knock" in self.first(world)

    def test_a_key_that_has_ended(self, world: World) -> None:
        world.ok("key", "set", "alice", "--until", "2020-01-01")
        assert "it was good until 2020-01-01" in self.first(world)

    def test_a_tag_that_cannot_be_read(self, world: World) -> None:
        arn = f"arn:aws:apigateway:eu-west-1::/apikeys/{all_keys(world)[0]['id']}"
        world.gateway.tag_resource(resourceArn=arn, tags={"knock:max-duration": "soon"})
        assert "the tag knock:max-duration cannot be read" in self.first(world)

    @pytest.mark.parametrize("tag", ["knock:targets", "knock:max-duration"])
    def test_a_right_that_is_missing(self, world: World, tag: str) -> None:
        arn = f"arn:aws:apigateway:eu-west-1::/apikeys/{all_keys(world)[0]['id']}"
        world.gateway.untag_resource(resourceArn=arn, tagKeys=[tag])
        assert f"it has no tag {tag}" in self.first(world)

    def test_as_many_grants_as_it_may_have(self, world: World) -> None:
        world.ok("key", "set", "alice", "--max-live", "1")
        grant = world.record("alice", key=all_keys(world)[0]["id"])
        assert "it holds 1 live grant, and may hold 1" in self.first(world)
        assert grant.id in why(world).out

    def test_a_target_that_is_not_there(self, world: World) -> None:
        world.ok("key", "set", "alice", "--targets", "vault")
        assert "target vault: there is none" in self.first(world)

    def test_a_target_that_is_attached_to_nothing(self, world: World) -> None:
        world.ok("target", "add", "web", "--ports", "443/tcp")
        world.ok("key", "set", "alice", "--targets", "web")
        assert "it is attached to nothing" in self.first(world)

    def test_a_target_without_room(self, world: World) -> None:
        group = world.ok("target", "ls", "--json").json["targets"][0]["groups"][0]["id"]
        for number in range(60):
            world.open_rule(group, f"198.51.100.{number}/32", port=1)
        assert "it has room for 0 more rules" in self.first(world, "--source", "203.0.113.7")

    def test_a_target_of_the_other_family(self, world: World) -> None:
        world.ok("target", "set", "bastion", "--families", "ipv4")
        assert "it has ipv4 alone, and 2001:db8::7/128 is ipv6" in self.first(
            world, "--source", "2001:db8::7"
        )

    def test_no_target_at_all(self, world: World) -> None:
        world.ok("target", "detach", "bastion", "--all")
        world.ok("target", "rm", "bastion")
        world.ok("key", "set", "alice", "--targets", "*")
        assert "it may open every target, and there is none" in self.first(world)

    def test_a_quota_that_is_used_up(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        key = all_keys(world)[0]["id"]
        answers(monkeypatch, "GetUsage", {"items": {key: [[500, 0]]}})
        quota = {"limit": 500, "period": "DAY", "offset": 0}
        plan = {**world.gateway.get_usage_plans()["items"][0], "quota": quota}
        monkeypatch.setattr("knock_admin.stack.Stack.read_plan", lambda _stack: plan)
        assert "it has made 500 requests of this day's 500" in self.first(world)


def answers(
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    answer: dict[str, Any] | Exception,
    requests: list[Any] | None = None,
) -> None:
    """Replace AWS's answer to an operation; the arguments of its requests go to `requests`."""
    from botocore.client import BaseClient

    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def call(self: Any, name: str, arguments: Any) -> Any:
        if name != operation:
            return real(self, name, arguments)
        if requests is not None:
            requests.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(BaseClient, "_make_api_call", call)


@pytest.mark.usefixtures("_well")
class TestFurtherAnswers:
    def test_the_last_refusals_are_shown(self, world: World) -> None:
        world.refuse("refusal_2026-11-23T21:17:19.123Z_1", "alice", key=all_keys(world)[0]["id"])
        result = why(world)
        assert (result.code, "may not open web" in result.out) == (0, True)

    def test_requests_that_the_gateway_refused_are_counted_from_its_log(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logs, name = client("logs"), "/knock/knock/access"
        logs.create_log_group(logGroupName=name)
        logs.create_log_stream(logGroupName=name, logStreamName="a")
        line = f'{{"apiKeyId": "{all_keys(world)[0]["id"]}", "status": "403", "error": "Forbidden"}}'
        now = int(datetime.now(timezone.utc).timestamp() * 1000)
        logs.put_log_events(
            logGroupName=name, logStreamName="a", logEvents=[{"timestamp": now, "message": line}]
        )
        assert "it answered 403 to 1 request in the last day" in why(world).out
        monkeypatch.setattr("knock_admin.why_key.LOGGED", 1)
        assert "it answered 403 to 1 request at least in the last day" in why(world).out
        logs.delete_log_stream(logGroupName=name, logStreamName="a")
        assert "it answered 403 to no request with this key in the last day" in why(world).out

    def test_the_log_is_asked_for_the_gateways_own_refusals_of_this_key_and_day(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """moto matches every event, whatever the pattern."""
        now = datetime(2026, 11, 23, 21, 17, 19, tzinfo=timezone.utc)
        at(monkeypatch, now)
        requests: list[Any] = []
        answers(monkeypatch, "FilterLogEvents", {"events": []}, requests)
        why(world)
        (request,) = requests
        assert request["logGroupName"] == "/knock/knock/access"
        key = all_keys(world)[0]["id"]
        pattern = f'{{ $.apiKeyId = "{key}" && $.status = "403" && $.error != "-" }}'
        assert request["filterPattern"] == pattern
        assert request["startTime"] == (now - timedelta(days=1)).timestamp() * 1000

    def test_a_missing_access_log_is_reported(self, world: World) -> None:
        assert "there is no access log /knock/knock/access to look into" in why(world).out

    def test_a_check_without_permission_is_a_warning_and_the_others_go_on(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        denied = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "FilterLogEvents")
        answers(monkeypatch, "FilterLogEvents", denied)
        result = why(world)
        assert (result.code, "could not be asked" in result.out) == (0, True)

    def test_a_retired_key_is_reported(self, world: World) -> None:
        arn = f"arn:aws:apigateway:eu-west-1::/apikeys/{all_keys(world)[0]['id']}"
        world.gateway.tag_resource(resourceArn=arn, tags={"knock:retires-at": "2020-01-01T00:00:00Z"})
        assert "its successor is there since before 2020-01-01" in why(world).out

    def test_json_has_the_first_no(self, world: World) -> None:
        world.ok("key", "disable", "alice")
        result = why(world, "--json")
        assert result.code == 1
        assert result.json["first_no"]["what"] == "key"

    def test_an_unknown_name_is_an_error(self, world: World) -> None:
        result = world.run("why", "nobody")
        assert (result.code, "has no key nobody" in result.err) == (1, True)

    def test_a_source_goes_with_a_key_alone(self, world: World) -> None:
        assert world.run("why", "sgr-0123456789abcdef0", "--source", "203.0.113.7").code == 2
        assert world.run("why", "sgr-nothing").code == 2
