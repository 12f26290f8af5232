"""`knock-admin why NAME`: everything that decides whether somebody gets in, with the first no."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.clients.admin_support import Ran, World, client, make_world
from tests.clients.test_admin_keys import all_keys

world = pytest.fixture(make_world)


@pytest.fixture
def _well(world: World) -> None:
    """Give alice a key, and a target that is attached to something."""
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--interface", world.make_interface())
    world.ok("key", "add", "alice", "--targets", "bastion", "--max", "8h")


def why(world: World, *more: str) -> Ran:
    return world.run("why", "alice", *more)


def levels(ran: Ran) -> set[str]:
    return {line.split()[0] for line in ran.out.splitlines() if line[:4].strip() in ("ok", "no", "warn")}


@pytest.mark.usefixtures("_well")
def test_somebody_who_gets_in_has_no_no(world: World) -> None:
    ran = why(world)
    assert (ran.code, "Nothing here says no." in ran.out) == (0, True), ran.out
    assert "is enabled, and in the usage plan knock" in ran.out
    assert "22/tcp, attached in 1 place" in ran.out


@pytest.mark.usefixtures("_well")
class TestFirstNo:
    def first(self, world: World, *more: str) -> str:
        ran = why(world, *more)
        assert ran.code == 1, ran.out
        (line,) = [line for line in ran.out.splitlines() if line.startswith("The first no: ")]
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
        monkeypatch.setattr(
            "knock_admin.stack.Stack.plan",
            {**world.gateway.get_usage_plans()["items"][0], "quota": quota},
        )
        assert "it has made 500 requests of this day's 500" in self.first(world)


def answers(
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    answer: dict[str, Any] | Exception,
    asked: list[Any] | None = None,
) -> None:
    """Have AWS answer one operation otherwise; `asked` is told what it was asked."""
    from botocore.client import BaseClient

    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def call(self: Any, name: str, arguments: Any) -> Any:
        if name != operation:
            return real(self, name, arguments)
        if asked is not None:
            asked.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(BaseClient, "_make_api_call", call)


@pytest.mark.usefixtures("_well")
class TestBeside:
    def test_the_last_refusals_are_shown(self, world: World) -> None:
        world.refuse("refusal_2026-11-23T21:17:19.123Z_1", "alice", key=all_keys(world)[0]["id"])
        ran = why(world)
        assert (ran.code, "may not open web" in ran.out) == (0, True)

    def test_what_the_gateway_refused_is_counted_from_its_log(
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
        asked: list[Any] = []
        answers(monkeypatch, "FilterLogEvents", {"events": []}, asked)
        why(world)
        (one,) = asked
        assert one["logGroupName"] == "/knock/knock/access"
        key = all_keys(world)[0]["id"]
        pattern = f'{{ $.apiKeyId = "{key}" && $.status = "403" && $.error != "-" }}'
        assert one["filterPattern"] == pattern
        since = datetime.now(timezone.utc).timestamp() - one["startTime"] / 1000
        assert 86_400 <= since < 86_500

    def test_without_an_access_log_that_is_said(self, world: World) -> None:
        assert "there is no access log /knock/knock/access to look into" in why(world).out

    def test_a_question_that_may_not_be_asked_is_a_warning_and_the_others_go_on(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        denied = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "FilterLogEvents")
        answers(monkeypatch, "FilterLogEvents", denied)
        ran = why(world)
        assert (ran.code, "could not be asked" in ran.out) == (0, True)

    def test_a_retired_key_is_told(self, world: World) -> None:
        arn = f"arn:aws:apigateway:eu-west-1::/apikeys/{all_keys(world)[0]['id']}"
        world.gateway.tag_resource(resourceArn=arn, tags={"knock:retires-at": "2020-01-01T00:00:00Z"})
        assert "its successor is there since before 2020-01-01" in why(world).out

    def test_the_same_is_there_for_programs(self, world: World) -> None:
        world.ok("key", "disable", "alice")
        ran = why(world, "--json")
        assert ran.code == 1
        assert ran.json["first_no"]["what"] == "key"

    def test_nobody_of_that_name_is_an_error(self, world: World) -> None:
        ran = world.run("why", "nobody")
        assert (ran.code, "has no key nobody" in ran.err) == (1, True)

    def test_a_source_goes_with_a_key_alone(self, world: World) -> None:
        assert world.run("why", "sgr-0123456789abcdef0", "--source", "203.0.113.7").code == 2
        assert world.run("why", "sgr-nothing").code == 2
