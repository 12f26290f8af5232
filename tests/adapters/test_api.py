"""The knock API's answers: what it takes, what it refuses and in which words, who sees what."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from grants.errors import (
    EngineUnavailable,
    InvalidKnock,
    KnockError,
    RightsUnavailable,
    RuleUnsettled,
    StoreRefused,
    StoreUnavailable,
)
from grants.executions import Closings, Executions
from grants.rights import RightsReader
from grants.simpledb import SimpleDb
from grants.trail import Trail
from grants.values import parse_time, round_up, show_second
from rest.requests import Request
from tests.harness import MACHINE, Answer, Context, Knock, running


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running() as stack:
        yield stack


def executions(knock: Knock) -> list[Any]:
    listed: list[Any] = knock.client("stepfunctions").list_executions(stateMachineArn=MACHINE)["executions"]
    return listed


@contextmanager
def held(knock: Knock, function: str) -> Iterator[threading.Event]:
    """Hold every invocation of a function before it begins, until the event is set."""
    gate = threading.Event()

    def hold(name: str, _payload: object) -> None:
        if name.endswith(function):
            assert gate.wait(20)

    knock.before_invoke = hold
    try:
        yield gate
    finally:
        gate.set()
        knock.before_invoke = lambda _name, _payload: None
        # What was held ends before the test does: it must not act in the next test's stack.
        knock.wait(lambda: not opening(knock), "an authorization never ends", step=timedelta(seconds=1))


def opening(knock: Knock) -> list[str]:
    """List the executions that are authorizing."""
    names = [execution["name"] for execution in executions(knock) if execution["status"] == "RUNNING"]
    return [name for name in names if knock.states(name)[-1:] in ([], ["AuthorizeIngress"])]


def down(error: KnockError) -> Callable[..., Any]:
    """Make a function that fails, to take the place of another."""

    def fail(*_arguments: object, **_named: object) -> Any:
        raise error

    return fail


def check_problem(answer: Answer, status: int, name: str) -> dict[str, Any]:
    assert answer.status == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json
    assert problem["type"] == f"urn:knock:problem:{name}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem


class TestMalformedKnock:
    def test_it_names_the_field_and_starts_nothing(self, knock: Knock) -> None:
        for field, raw in (
            ("body", "not json"),
            ("body", "[]"),
            ("body", '"alice"'),
            ("body", "[" * 3000),
            ("body", " " * 4097),
            ("body", "\t"),
            ("body", "{" + '"a":1,' * 600 + "}"),
            ("ttl", '{"ttl": 5}'),
            ("targets", '{"targets": "bastion"}'),
            ("targets", '{"targets": []}'),
            ("targets", '{"targets": [5]}'),
            ("targets", '{"targets": ["a b"]}'),
            ("targets", json.dumps({"targets": ["bastion"] * 51})),
            ("duration", '{"duration": "24 o\'clock"}'),
            ("duration", '{"duration": 0}'),
            ("duration", '{"duration": -5}'),
            ("duration", '{"duration": true}'),
            ("duration", '{"duration": 1e400}'),
            ("duration", '{"duration": NaN}'),
            ("duration", '{"duration": {}}'),
            ("duration", '{"duration": "25h"}'),
            ("source", '{"source": 5}'),
            ("source", '{"source": "203.0.113.7/24"}'),
            ("source", json.dumps({"source": "1" * 51})),
            ("renews", '{"renews": 5}'),
            ("renews", json.dumps({"renews": "x" * 81})),
            ("renews", '{"renews": "a\\nb"}'),
            ("reason", '{"reason": 5}'),
            ("reason", json.dumps({"reason": "x" * 257})),
            ("reason", json.dumps({"reason": "one\ntwo"})),
            ("reason", json.dumps({"reason": "\x00"})),
            ("reason", json.dumps({"reason": "\u202eevil"})),
            ("reason", '{"reason": "\\ud800"}'),
            ("body", '{"duration": "1h", "duration": "24h"}'),
            ("body", '{"reason": null, "reason": "x"}'),
            ("?", '{"\\ud800": 1}'),
            ("?", '{"a\\nb": 1}'),
        ):
            problem = check_problem(knock.request("POST", "/knock", key="ci", raw=raw), 400, "invalid-knock")
            assert problem["field"] == field, (raw, problem)
        assert executions(knock) == []

    def test_a_query_parameter_is_refused_since_it_would_not_count(self, knock: Knock) -> None:
        for method in ("GET", "POST"):
            problem = check_problem(knock.request(method, "/knock", duration="5s"), 400, "invalid-knock")
            assert problem["field"] == "duration"
        assert executions(knock) == []

    def test_a_query_parameter_given_twice_is_refused_since_one_would_not_count(self, knock: Knock) -> None:
        """A call meant to end alice's and bob's grants would end bob's only."""
        import api

        identity = {"sourceIp": "203.0.113.7", "apiKeyId": knock.keys["operator"]}
        event = {
            "httpMethod": "DELETE",
            "resource": "/grants",
            "requestContext": {"identity": identity},
            "queryStringParameters": {"principal": "bob"},
            "multiValueQueryStringParameters": {"principal": ["alice", "bob"]},
        }
        grant = knock.open("bob")
        answer = api.handler(event, Context())
        assert (answer["statusCode"], json.loads(answer["body"])["field"]) == (400, "principal")
        assert knock.grant(grant["id"])["status"] == "active"

    def test_nulls_mean_the_defaults(self, knock: Knock) -> None:
        raw = '{"targets": null, "duration": null, "source": null, "reason": null, "renews": null}'
        assert knock.request("POST", "/knock", raw=raw).status == 201

    def test_a_body_on_a_get_is_refused_since_it_would_not_count(self, knock: Knock) -> None:
        """Mutation: functions/api.py: `    if request.body:` -> `    if False:`"""
        for raw in ('{"duration": "1m", "targets": ["bastion"]}', "{}", "not json", " \n"):
            problem = check_problem(knock.request("GET", "/knock", raw=raw), 400, "invalid-knock")
            assert problem["field"] == "body"
        assert executions(knock) == []
        assert knock.request("GET", "/knock", raw="").status == 201

    def test_a_body_in_base64_is_read(self, knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
        event: dict[str, Any] = {
            "httpMethod": "POST",
            "resource": "/knock",
            "requestContext": {"identity": {"sourceIp": "203.0.113.7", "apiKeyId": knock.keys["alice"]}},
            "isBase64Encoded": True,
            "body": base64.b64encode(b'{"duration": "5m"}').decode(),
        }
        assert Request.read(event).body == b'{"duration": "5m"}'
        with pytest.raises(InvalidKnock):
            Request.read(event | {"body": "***"})


class TestFamilies:
    """A target may be reached by one address family alone: an operator's tag `knock:families` says so."""

    def test_a_knock_over_the_wrong_family_says_how_to_knock_and_is_on_record(self, knock: Knock) -> None:
        tag_families(knock, "bastion", "ipv4")
        answer = knock.request("POST", "/knock", body={"targets": ["bastion"]}, caller="2001:db8::7")
        problem = check_problem(answer, 409, "wrong-family")
        assert problem["families"] == ["ipv4"]
        assert "and bastion can be reached by IPv4 alone" in problem["detail"]
        assert "curl -4" in problem["detail"]
        assert executions(knock) == []

    def test_a_target_of_the_other_family_is_left_out_and_named(self, knock: Knock) -> None:
        tag_families(knock, "bastion", "ipv4")
        answer = knock.request("POST", "/knock", body={"targets": ["bastion", "web"]}, caller="2001:db8::7")
        assert (answer.status, answer.json["left_out"]) == (201, ["bastion"])
        assert [target["name"] for target in answer.json["targets"]] == ["web"]

    def test_a_knock_that_opens_all_targets_names_none_as_left_out(self, knock: Knock) -> None:
        tag_families(knock, "bastion", "ipv4 ipv6")
        assert "left_out" not in knock.open(caller="2001:db8::7")

    def test_whoami_says_which_a_target_has(self, knock: Knock) -> None:
        tag_families(knock, "bastion", "ipv6")
        targets = {
            target["name"]: target["families"] for target in knock.request("GET", "/whoami").json["targets"]
        }
        assert targets == {"bastion": ["ipv6"], "web": None}


def tag_families(knock: Knock, target: str, families: str) -> None:
    tags = [{"Key": "knock:families", "Value": families}]
    knock.client("ec2").create_tags(Resources=knock.groups[target], Tags=tags)


class TestRefused:
    def test_a_knock_says_which_right_is_missing_and_is_on_record_and_counted(self, knock: Knock) -> None:
        knock.add_key("eve", targets="bastion", max_duration="1h")
        for body, right in (
            ({"targets": ["web"]}, "knock:targets"),
            ({"duration": "2h"}, "knock:max-duration"),
            ({"source": "198.51.100.1/32"}, "knock:any-source"),
        ):
            answer = knock.request("POST", "/knock", key="eve", body=body)
            assert check_problem(answer, 403, "not-allowed")["right"] == right
        assert executions(knock) == []
        assert knock.metrics.count(("Refusal", 1)) == 3
        refusals = knock.refusals()
        assert [(refusal["right"], refusal["call"]) for refusal in refusals] == [
            ("knock:targets", "POST /knock"),
            ("knock:max-duration", "POST /knock"),
            ("knock:any-source", "POST /knock"),
        ]
        for refusal in refusals:
            assert (refusal["kind"], refusal["principal_name"], refusal["source"]) == (
                "refusal",
                "eve",
                "203.0.113.7/32",
            )
            assert refusal["principal_id"] == knock.keys["eve"]
        assert knock.items("trail") == {}

    def test_every_refused_read_and_end_is_on_record_too(self, knock: Knock) -> None:
        """A call that names no grant, or is malformed, is no refusal.

        Mutation: functions/api.py: `        if record:` -> `        if False:`
        """
        grant = knock.open("bob")
        for method, path, query in (
            ("GET", "/grants", {"principal": "bob"}),
            ("DELETE", "/grants", {"principal": "bob"}),
            ("DELETE", "/grants", {"source": "203.0.113.7/32"}),
            ("GET", f"/grants/{grant['id']}", {}),
            ("DELETE", f"/grants/{grant['id']}", {}),
        ):
            assert knock.request(method, path, **query).status in (403, 404)
        for method, path in (("GET", "/grants/none"), ("DELETE", "/grants/none")):
            assert knock.request(method, path).status == 404
        assert knock.request("GET", "/grants", limit="0").status == 400
        refusals = knock.refusals()
        assert [refusal["call"] for refusal in refusals] == [
            "GET /grants",
            "DELETE /grants",
            "DELETE /grants",
            "GET /grants/{id}",
            "DELETE /grants/{id}",
        ]
        assert {refusal["principal_name"] for refusal in refusals} == {"alice"}
        assert knock.metrics.count(("Refusal", 1)) == 5
        assert knock.grant(grant["id"])["status"] == "active"

    def test_a_refusal_that_cannot_be_recorded_is_answered_503(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("grants.refusals.Refusals.record", down(StoreUnavailable("away")))
        answer = knock.request("POST", "/knock", body={"source": "198.51.100.1/32"})
        check_problem(answer, 503, "store-unavailable")

    def test_a_tag_that_cannot_be_read_is_named_and_gives_no_right(self, knock: Knock) -> None:
        knock.add_key("eve", targets="bastion", max_duration="soon")
        answer = knock.request("POST", "/knock", key="eve")
        assert "knock:max-duration" in check_problem(answer, 403, "invalid-tag")["detail"]

    def test_a_key_that_was_deleted_opens_nothing_and_is_on_record(self, knock: Knock) -> None:
        """Whether a key is disabled the gateway has checked: it passed the request on."""
        check_problem(knock.request("POST", "/knock", key="gone"), 403, "not-allowed")
        assert executions(knock) == []
        assert [(refusal["principal_id"], refusal["call"]) for refusal in knock.refusals()] == [
            ("gone", "POST /knock")
        ]

    def test_rights_are_read_again_after_a_minute(self, knock: Knock) -> None:
        def shorten(longest: str) -> None:
            arn = f"arn:aws:apigateway:eu-west-1::/apikeys/{knock.keys['alice']}"
            knock.client("apigateway").tag_resource(resourceArn=arn, tags={"knock:max-duration": longest})

        assert knock.request("GET", "/whoami").json["max_duration"] == "1d"
        shorten("2h")
        knock.clock.advance(timedelta(seconds=55))
        assert knock.request("GET", "/whoami").json["max_duration"] == "1d"
        knock.clock.advance(timedelta(seconds=6))
        assert knock.request("GET", "/whoami").json["max_duration"] == "2h"

    def test_they_are_used_for_ten_minutes_more_while_aws_throttles_the_reading(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """API Gateway's control plane takes ten requests a second for the whole account.

        Mutation: functions/grants/rights.py: `if kept is None:` -> `if True:`
        Mutation: functions/grants/rights.py: `timedelta(minutes=10)` -> `timedelta(minutes=20)`
        """
        assert knock.request("GET", "/whoami").status == 200
        code = "TooManyRequestsException"

        def refused(*_: object, **__: object) -> None:
            raise ClientError({"Error": {"Code": code, "Message": ""}}, "GetTags")

        import api

        monkeypatch.setattr(api.wiring().rights._apigateway, "get_tags", refused)
        knock.clock.advance(timedelta(minutes=10, seconds=55))
        assert knock.request("POST", "/knock").status == 201
        code = "AccessDeniedException"
        check_problem(knock.request("GET", "/whoami"), 503, "rights-unavailable")
        code = "TooManyRequestsException"
        knock.clock.advance(timedelta(seconds=6))
        check_problem(knock.request("GET", "/whoami"), 503, "rights-throttled")


class TestMaxLive:
    def test_a_knock_too_many_names_grants_to_end_and_is_on_record(self, knock: Knock) -> None:
        """Mutation: functions/api.py:
        `_refuse_excess(rights, counting.result(), renewed)` -> `counting.result()`
        """
        knock.add_key("eve", targets="bastion", max_duration="1h", max_live="2")
        first, second = knock.open("eve"), knock.open("eve", caller="198.51.100.1")
        knock.open("alice")
        problem = check_problem(knock.request("POST", "/knock", key="eve"), 409, "too-many-grants")
        assert first["id"] in problem["detail"]
        assert second["id"] in problem["detail"]
        assert len(executions(knock)) == 3
        (refusal,) = knock.refusals()
        assert (refusal["principal_name"], refusal["call"]) == ("eve", "POST /knock")
        whoami = knock.request("GET", "/whoami", key="eve").json
        assert (whoami["live"], whoami["max_live"]) == (2, 2)

    def test_ended_grants_do_not_count(self, knock: Knock) -> None:
        knock.add_key("eve", targets="bastion", max_duration="1h", max_live="1")
        grant = knock.open("eve", duration="10m")
        assert knock.request("POST", "/knock", key="eve").status == 409
        knock.expire(grant)
        grant = knock.open("eve")
        knock.request("DELETE", f"/grants/{grant['id']}", key="eve")
        knock.open("eve")
        assert knock.request("GET", "/whoami", key="eve").json["live"] == 1

    def test_the_renewed_grant_does_not_count(self, knock: Knock) -> None:
        """Mutation: functions/api.py: `live -= bool(renewed and renewed.live_at(at))` -> `live -= 0`"""
        knock.add_key("eve", targets="bastion", max_duration="1h", max_live="1")
        old = knock.open("eve")
        new = knock.open("eve", renews=old["id"])
        assert knock.grant(old["id"])["status"] == "superseded"
        problem = check_problem(knock.request("POST", "/knock", key="eve"), 409, "too-many-grants")
        assert new["id"] in problem["detail"]
        assert old["id"] not in problem["detail"]
        # Renewing a grant that has ended makes no room.
        answer = knock.request("POST", "/knock", key="eve", body={"renews": old["id"]})
        check_problem(answer, 409, "too-many-grants")

    def test_the_stacks_own_limit_holds_for_a_key_without_one(self, knock: Knock) -> None:
        assert knock.request("GET", "/whoami").json["max_live"] == 20
        assert knock.request("GET", "/whoami", key="ci").json["max_live"] == 1000

    def test_the_refusal_of_a_full_source_names_no_grants(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("grants.ledger.MAX_CLAIMS", 2)
        alice, bob = knock.open("alice"), knock.open("bob")
        problem = check_problem(knock.request("POST", "/knock"), 409, "source-full")
        assert alice["id"] not in problem["detail"]
        assert bob["id"] not in problem["detail"]
        assert knock.open("bob", renews=bob["id"])["status"] == "active"
        assert knock.open("alice", caller="198.51.100.1")["status"] == "active"


class TestRenews:
    def test_a_grant_that_is_not_the_keys_own_is_404_and_nothing_starts(self, knock: Knock) -> None:
        """Mutation: functions/api.py:
        `if record is None or record.grant.principal.id != request.key_id:` -> `if record is None:`
        """
        bob = knock.open("bob")
        for name in (bob["id"], "none", "' or '1'='1", "../knock"):
            for key in ("alice", "operator"):
                answer = knock.request("POST", "/knock", key=key, body={"renews": name})
                check_problem(answer, 404, "grant-not-found")
        assert len(executions(knock)) == 1
        assert len(knock.refusals()) == 8
        assert knock.grant(bob["id"])["status"] == "active"

    def test_a_grant_that_has_ended_can_be_renewed_and_stays_as_it_ended(self, knock: Knock) -> None:
        old = knock.open()
        knock.request("DELETE", f"/grants/{old['id']}")
        new = knock.open(renews=old["id"])
        assert (new["status"], new["renews"]) == ("active", old["id"])
        assert knock.grant(old["id"])["status"] == "revoked"

    def test_a_grant_of_another_source_and_other_targets_is_ended_too(self, knock: Knock) -> None:
        old = knock.open(targets=["web"])
        new = knock.open(targets=["bastion"], caller="198.51.100.1", renews=old["id"])
        assert knock.rules() == {(knock.groups["bastion"][0], 22, "198.51.100.1/32")}
        assert knock.grant(old["id"])["ended_by"] == new["id"]


class TestSource:
    def test_headers_never_decide_it(self, knock: Knock) -> None:
        """Mutation: `identity["sourceIp"]` replaced by a header."""
        forged = {"X-Forwarded-For": "198.51.100.9", "X-Real-IP": "198.51.100.9", "Host": "198.51.100.9"}
        answer = knock.request("POST", "/knock", headers=forged)
        assert answer.json["source"] == "203.0.113.7/32"

    def test_another_may_be_named_with_the_right_to(self, knock: Knock) -> None:
        grant = knock.open("ci", source="203.0.113.9", targets=["bastion"])
        assert grant["source"] == "203.0.113.9/32"
        answer = knock.request("POST", "/knock", key="ci", body={"source": "198.51.100.16/28"})
        assert answer.json["source"] == "198.51.100.16/28"
        assert {cidr for _, _, cidr in knock.rules()} == {"203.0.113.9/32", "198.51.100.16/28"}


class TestCaller:
    def test_every_answer_about_a_grant_has_the_callers_address(self, knock: Knock) -> None:
        grant = knock.open("ci", source="198.51.100.16/28", caller="203.0.113.9")
        assert (grant["source"], grant["caller"]) == ("198.51.100.16/28", "203.0.113.9/32")
        details = knock.request("GET", f"/grants/{grant['id']}", key="ci", caller="2001:db8::7").json
        assert details["caller"] == "2001:db8::7/128"
        (listed,) = knock.request("GET", "/grants", key="ci", caller="203.0.113.8").json["grants"]
        assert listed["caller"] == "203.0.113.8/32"
        ended = knock.request("DELETE", f"/grants/{grant['id']}", key="ci", caller="203.0.113.8").json
        assert ended["caller"] == "203.0.113.8/32"


class TestWhoami:
    def test_it_lists_the_rights_of_the_key(self, knock: Knock) -> None:
        answer = knock.request("GET", "/whoami", key="ci")
        assert answer.json == {
            "principal": {"id": knock.keys["ci"], "name": "ci"},
            "source": "203.0.113.7/32",
            "targets": [
                {"name": "bastion", "ports": ["22/tcp"], "families": None},
                {"name": "web", "ports": ["80/tcp", "443/tcp"], "families": None},
            ],
            "default_duration": "1d",
            "max_duration": "1d",
            "any_source": {"ipv4": 28, "ipv6": 60},
            "until": None,
            "max_live": 1000,
            "live": 0,
            "operator": False,
            "faults": [],
        }

    def test_its_default_duration_is_the_one_that_a_knock_gets(self, knock: Knock) -> None:
        knock.add_key("short", targets="bastion", max_duration="1h")
        whoami = knock.request("GET", "/whoami", key="short").json
        assert (whoami["default_duration"], whoami["max_duration"]) == ("1h", "1h")
        grant = knock.open("short")
        end = round_up(parse_time(grant["requested_at"]) + timedelta(hours=1))
        assert grant["expires_at"] == show_second(end)

    def test_a_keys_name_is_its_tag_or_else_its_id(self, knock: Knock) -> None:
        """Its name at API Gateway is not read: the call that gives it can give the key's value too."""
        key = knock.client("apigateway").create_api_key(name="ignored", enabled=True)["id"]
        assert knock.request("GET", "/whoami", key=key).json["principal"] == {"id": key, "name": key}
        arn = f"arn:aws:apigateway:eu-west-1::/apikeys/{knock.keys['alice']}"
        knock.client("apigateway").tag_resource(resourceArn=arn, tags={"knock:name": "alice@example.com"})
        assert knock.request("GET", "/whoami").json["principal"]["name"] == "alice@example.com"

    def test_a_key_without_rights_is_told_that_it_has_none(self, knock: Knock) -> None:
        knock.add_key("eve")
        whoami = knock.request("GET", "/whoami", key="eve").json
        assert (whoami["targets"], whoami["max_duration"], whoami["operator"]) == ([], None, False)


class TestList:
    def test_it_shows_the_keys_own_live_grants_newest_first(self, knock: Knock) -> None:
        knock.open("bob")
        first = knock.open(targets=["web"])
        second = knock.open(targets=["bastion"])
        listed = knock.request("GET", "/grants").json
        assert [grant["id"] for grant in listed["grants"]] == [second["id"], first["id"]]
        assert listed["cursor"] is None

    def test_an_operator_sees_everyones_and_filters(self, knock: Knock) -> None:
        alice = knock.open("alice", targets=["web"])
        bob = knock.open("bob", caller="203.0.113.9", targets=["bastion"])
        knock.request("DELETE", f"/grants/{bob['id']}", key="bob")

        def ids(**query: str) -> list[str]:
            listed = knock.request("GET", "/grants", key="operator", **query).json["grants"]
            return [grant["id"] for grant in listed]

        assert ids() == [alice["id"]]
        assert ids(status="all") == [bob["id"], alice["id"]]
        assert ids(status="revoked") == [bob["id"]]
        assert ids(status="all", principal="bob") == [bob["id"]]
        assert ids(status="all", source="203.0.113.7/32") == [alice["id"]]
        assert ids(status="all", source="203.0.113.7") == [alice["id"]]
        assert ids(status="all", source="::ffff:203.0.113.7") == [alice["id"]]
        assert ids(status="all", target="web") == [alice["id"]]
        assert ids(status="all", target="web", principal="bob") == []

    def test_a_source_in_any_form_means_its_canonical_cidr(self, knock: Knock) -> None:
        """Mutation: functions/rest/requests.py:
        `return canonical_source(text) if text is not None else None` -> `return text`
        """
        grant = knock.open(caller="2001:db8::7")
        for source in ("2001:db8::7/128", "2001:DB8::7/128", "2001:db8:0:0::7", "2001:DB8:0000::0007"):
            listed = knock.request("GET", "/grants", source=source).json["grants"]
            assert [item["id"] for item in listed] == [grant["id"]], source
        knock.open("bob")
        answer = knock.request("DELETE", "/grants", key="operator", source="203.0.113.7")
        assert [item["status"] for item in answer.json["grants"]] == ["revoked"]
        assert {cidr for _, _, cidr in knock.rules()} == {"2001:db8::7/128"}

    def test_pages_follow_each_other_without_gap_or_repeat(self, knock: Knock) -> None:
        opened = [knock.open(targets=["web"], caller=f"203.0.113.{n}")["id"] for n in range(1, 8)]
        listed: list[str] = []
        query: dict[str, str] = {"limit": "3"}
        while True:
            page = knock.request("GET", "/grants", **query).json
            listed += [grant["id"] for grant in page["grants"]]
            if page["cursor"] is None:
                break
            query["cursor"] = page["cursor"]
        assert listed == opened[::-1]

    def test_a_malformed_query_is_refused_by_naming_the_parameter(self, knock: Knock) -> None:
        good = base64.urlsafe_b64encode(b"2026-11-23T21:17:19.123Z x").decode()
        for name, value in (
            ("limit", "0"),
            ("limit", "101"),
            ("limit", "ten"),
            ("limit", "٣"),
            ("status", "open"),
            ("cursor", "x"),
            ("cursor", "é"),
            ("cursor", base64.urlsafe_b64encode(b"2026' or 'a'='a").decode()),
            ("order", "asc"),
            ("a\nb", "asc"),
            ("source", "1" * 51),
            ("target", "t" * 64),
            ("source", "203.0.113.7\n"),
            ("source", "bastion"),
            ("source", ""),
            ("source", "203.0.113.7/24"),
            ("source", "203.0.113.7/33"),
            ("source", "fe80::1%eth0"),
            ("source", "' or 'a'='a"),
        ):
            answer = knock.request("GET", "/grants", **{name: value})
            assert check_problem(answer, 400, "invalid-knock")["field"] == name.replace("a\nb", "?")
        for value in ("p" * 257, "\x00", "a\nb"):
            answer = knock.request("GET", "/grants", key="operator", principal=value)
            assert check_problem(answer, 400, "invalid-knock")["field"] == "principal"
        assert knock.request("GET", "/grants", cursor=good).status == 200

    def test_only_an_operator_lists_a_principals_grants(self, knock: Knock) -> None:
        answer = knock.request("GET", "/grants", principal="bob")
        assert check_problem(answer, 403, "not-allowed")["right"] == "knock:operator"

    def test_fragments_of_a_select_are_data(self, knock: Knock) -> None:
        """Mutation: `_quote` that does not double quotes."""
        grant = knock.open("bob")
        for name in ("principal", "target"):  # a source that is no CIDR is refused before
            for value in ("' or 'a'='a", "x' or `kind` = 'grant", "'", "''", "\\'", "` or 1"):
                answer = knock.request("GET", "/grants", key="operator", status="all", **{name: value})
                assert (answer.status, answer.json["grants"]) == (200, []), value
        assert knock.request("GET", "/grants", key="operator").json["grants"][0]["id"] == grant["id"]


class TestShow:
    def test_another_keys_grant_and_a_missing_one_are_answered_alike(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/api.py:
        `    if record is None or not rights.operator:` -> `    if record is None:`
        """
        monkeypatch.setattr("api.SHOWS_WITHIN", 0.0)
        grant = knock.open("bob")
        answers = [
            knock.request(method, f"/grants/{grant_id}")
            for method in ("GET", "DELETE")
            for grant_id in (
                grant["id"],
                grant["id"][:-1] + ("0" if grant["id"][-1] != "0" else "1"),
                "../knock",
                "' or '1'='1",
                "%27",
                "a" * 81,
                "é",
            )
        ]
        for answer in answers:
            check_problem(answer, 404, "grant-not-found")
        assert knock.grant(grant["id"])["status"] == "active"

    def test_the_keys_own_grants_are_shown_and_ended_without_reading_rights(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """API Gateway's control plane takes ten requests a second for the whole account."""
        mine, bobs = knock.open(), knock.open("bob")
        monkeypatch.setattr(RightsReader, "of_key", down(RightsUnavailable("TooManyRequestsException")))
        assert knock.request("GET", f"/grants/{mine['id']}").json["status"] == "active"
        assert knock.request("DELETE", f"/grants/{mine['id']}").json["ended_by"] == "alice"
        for method in ("GET", "DELETE"):
            check_problem(knock.request(method, f"/grants/{bobs['id']}"), 503, "rights-unavailable")
        check_problem(knock.request("POST", "/knock"), 503, "rights-unavailable")
        assert len(executions(knock)) == 2


class TestNotRecordedYet:
    """Between the start of an execution and the record of its grant, only the execution exists."""

    @pytest.fixture(autouse=True)
    def _hasty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("api.OPENS_WITHIN", 0.0)

    def test_it_is_shown_to_its_owner_from_the_execution(self, knock: Knock) -> None:
        with held(knock, "-authorize") as gate:
            answer = knock.request("POST", "/knock", body={"reason": "on call"})
            assert (answer.status, answer.json["status"]) == (202, "pending")
            path = f"/grants/{answer.json['id']}"
            details = knock.request("GET", path)
            assert [event["event"] for event in details.json.pop("events")] == ["requested"]
            same = {k: v for k, v in answer.json.items() if k != "seconds_left"}
            assert {k: details.json[k] for k in same} == same
            assert knock.request("GET", path, key="operator").status == 200
            check_problem(knock.request("GET", path, key="bob"), 404, "grant-not-found")
            assert knock.request("GET", "/grants").json["grants"] == []  # lists show it from its record on
            gate.set()
            knock.wait(lambda: knock.grant(answer.json["id"])["status"] == "active", "it did not open")

    def test_a_grant_that_is_ended_then_opens_nothing_later(self, knock: Knock) -> None:
        """Mutation: functions/grants/closing.py:
        `        operations.trail.end(grant.id, end.how, now, end.by, end.reason, grant)` -> `        pass`
        """
        with held(knock, "-authorize") as gate:
            grant = knock.request("POST", "/knock").json
            ended = knock.request("DELETE", f"/grants/{grant['id']}", reason="never mind")
            assert (ended.status, ended.json["status"], ended.json["ended_by"]) == (200, "revoked", "alice")
            assert [event["event"] for event in ended.json["events"]] == ["requested", "revoked", "closed"]
            assert ended.json["targets"] == grant["targets"]
            gate.set()
            knock.wait(lambda: knock.execution_status(grant["id"]) == "ABORTED", "its execution runs on")
        assert knock.rules() == set()
        assert knock.grant(grant["id"]) == ended.json | {"caller": "203.0.113.7/32"}

    def test_an_execution_that_does_not_show_yet_is_read_again(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, tries = Executions.describe, [0]

        def lagging(self: Executions, grant_id: str) -> Any:
            tries[0] += 1
            return real(self, grant_id) if tries[0] > 2 else None

        with held(knock, "-authorize"):
            grant = knock.request("POST", "/knock").json
            monkeypatch.setattr(Executions, "describe", lagging)
            assert knock.request("GET", f"/grants/{grant['id']}").status == 200

    def test_the_execution_of_an_old_id_is_read_once(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = [0]

        def none(_self: Executions, _grant_id: str) -> None:
            tries[0] += 1

        monkeypatch.setattr(Executions, "describe", none)
        old = "alice_203-0-113-7_20200101T000000Z_0123456789abcdef"
        check_problem(knock.request("GET", f"/grants/{old}"), 404, "grant-not-found")
        assert tries == [1]

    def test_a_strange_executions_name_shows_nothing(self, knock: Knock) -> None:
        """An execution whose name is not the id of its input is no grant."""
        grant = knock.request("POST", "/knock").json
        text = knock.execution(grant["id"])["input"]
        forged = f"alice_203-0-113-7_{grant['id'].split('_')[2]}_0123456789abcdef"
        with held(knock, "-authorize"):
            for name, input_text in ((forged, text), (forged.replace("alice", "eve"), '{"grant_id": 1}')):
                knock.client("stepfunctions").start_execution(
                    stateMachineArn=MACHINE, name=name, input=input_text
                )
                check_problem(knock.request("GET", f"/grants/{name}"), 404, "grant-not-found")


class TestReasonOfAnEnd:
    @pytest.mark.parametrize("letter", ["\U0001f600", '"', "\\", "é"])
    def test_no_reason_is_too_long_for_the_trail(self, knock: Knock, letter: str) -> None:
        """256 letters of four bytes, and what JSON writes around them, are more than SimpleDB takes."""
        grant = knock.open(reason=letter * 256)
        assert grant["reason"] == letter * 256
        answer = knock.request("DELETE", f"/grants/{grant['id']}", reason=letter * 256)
        assert (answer.status, answer.json["status"]) == (200, "revoked")
        (reason,) = [event["reason"] for event in answer.json["events"] if event["event"] == "revoked"]
        assert reason
        assert set(reason) == {letter}
        assert knock.rules() == set()

    @pytest.mark.parametrize("cause", ["\U0001f600" * 5000, "one\ntwo\r\n\x00three", "\ufeff\u2028" * 900])
    def test_rules_are_closed_whatever_cause_an_operator_stops_the_execution_with(
        self, knock: Knock, cause: str
    ) -> None:
        grant = knock.open()
        knock.client("stepfunctions").stop_execution(
            executionArn=grant["execution_arn"], error="Stolen", cause=cause
        )
        knock.wait(lambda: not knock.rules(), "the rules stayed")
        knock.wait(lambda: knock.grant(grant["id"])["status"] == "revoked", "the grant lives on")
        (reason,) = [e["reason"] for e in knock.grant(grant["id"])["events"] if e["event"] == "revoked"]
        assert reason.startswith("execution aborted (Stolen: ")
        assert reason.isprintable()


class TestEndThatFailsAtFirst:
    @pytest.fixture
    def fail(self, knock: Knock) -> Callable[[type[KnockError], int], None]:
        """Have the revoke function fail so many times."""

        def fail(error: type[KnockError], times: int) -> None:
            left = [times]

            def before(name: str, _payload: object) -> None:
                if name.endswith("-revoke") and left[0]:
                    left[0] -= 1
                    raise error("once more")

            knock.before_invoke = before

        return fail

    def test_an_authorization_under_way_is_waited_for(
        self, knock: Knock, fail: Callable[[type[KnockError], int], None]
    ) -> None:
        grant = knock.open()
        fail(RuleUnsettled, 2)
        assert knock.request("DELETE", f"/grants/{grant['id']}").status == 200
        assert knock.rules() == set()

    def test_that_wait_has_an_end(
        self,
        knock: Knock,
        fail: Callable[[type[KnockError], int], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("api.CLOSES_WITHIN", 0.0)
        grant = knock.open()
        fail(RuleUnsettled, 1)
        answer = knock.request("DELETE", f"/grants/{grant['id']}")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")

    def test_it_goes_on_though_the_client_does_not_retry_and_its_execution_is_stopped_too(
        self, knock: Knock, fail: Callable[[type[KnockError], int], None]
    ) -> None:
        """Mutation: functions/rest/closing.py:
        `            self.start(grant_id, payload)` -> `            pass`
        """
        grant = knock.open()
        fail(StoreUnavailable, 2)
        assert knock.request("DELETE", f"/grants/{grant['id']}", reason="lost").status == 503
        knock.wait(lambda: not knock.rules(), "the rules stay", step=timedelta(seconds=30))
        knock.wait(lambda: knock.closings() == ["SUCCEEDED"] * len(knock.closings()), "it never ends")
        assert knock.grant(grant["id"])["ended_by"] == "alice"
        assert knock.execution(grant["id"])["cause"] == "revoked by alice: lost"


class TestEndByFilter:
    def test_an_operator_ends_all_of_a_principals_grants(self, knock: Knock) -> None:
        for n in range(1, 4):
            knock.open("alice", caller=f"203.0.113.{n}")
        bob = knock.open("bob")
        answer = knock.request("DELETE", "/grants", key="operator", principal="alice", reason="laptop stolen")
        assert answer.status == 200
        assert {grant["status"] for grant in answer.json["grants"]} == {"revoked"}
        assert (len(answer.json["grants"]), answer.json["more"]) == (3, False)
        assert {cidr for _, _, cidr in knock.rules()} == {"203.0.113.7/32"}
        assert knock.grant(bob["id"])["status"] == "active"

    def test_it_takes_an_operator_and_a_filter(self, knock: Knock) -> None:
        check_problem(knock.request("DELETE", "/grants", source="203.0.113.7/32"), 403, "not-allowed")
        check_problem(knock.request("DELETE", "/grants", key="operator"), 400, "invalid-knock")
        answer = knock.request("DELETE", "/grants", key="operator", source="everywhere")
        assert check_problem(answer, 400, "invalid-knock")["field"] == "source"

    def test_it_takes_live_grants_only(self, knock: Knock) -> None:
        """Mutation: functions/api.py:
        `page = wiring().trail.page(limit=LARGEST_PAGE, live_after=now(), **filters)` ->
        `page = wiring().trail.page(limit=LARGEST_PAGE, **filters)`
        """
        knock.expire(knock.open(duration="10m"))
        ended = knock.open()
        knock.request("DELETE", f"/grants/{ended['id']}")
        live = knock.open()
        answer = knock.request("DELETE", "/grants", key="operator", principal="alice")
        assert [grant["id"] for grant in answer.json["grants"]] == [live["id"]]

    def test_a_grant_that_cannot_be_closed_at_once_keeps_no_other_open(self, knock: Knock) -> None:
        """Mutation: functions/api.py: `            failure = failure or error` -> `            raise`"""
        grants = [knock.open("alice", caller=f"203.0.113.{n}")["id"] for n in range(1, 4)]

        def fail(name: str, payload: Any) -> None:
            newest = payload.get("grant", {}).get("grant_id") == grants[-1]  # the first to be ended
            if name.endswith("-revoke") and payload["how"] == "revoked" and newest:
                raise StoreUnavailable("once more")

        knock.before_invoke = fail
        answer = knock.request("DELETE", "/grants", key="operator", principal="alice", reason="lost")
        check_problem(answer, 503, "store-unavailable")
        assert {knock.grant(grant)["status"] for grant in grants[:2]} == {"revoked"}
        knock.wait(lambda: not knock.rules(), "the closings' machine does not close it")
        assert knock.grant(grants[-1])["ended_by"] == "operator"

    def test_it_says_when_there_is_more_to_end(self, knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
        knock.open()
        monkeypatch.setattr("api.ENDS_WITHIN", -1.0)
        answer = knock.request("DELETE", "/grants", key="operator", principal="alice")
        assert answer.json == {"grants": [], "more": True}


class TestRevokedBeforeItWasOpen:
    def test_a_persons_reason_is_not_read_as_an_error_of_knocks(self, knock: Knock) -> None:
        """Mutation: `_failure` that looks a revoked grant's reason up among the errors."""
        reasons = iter(("PoolExhausted: forged", "InvalidTag: forged", "KnockError"))

        def revoked_meanwhile(name: str, payload: Any) -> None:
            if name.endswith("authorize"):
                path = f"/grants/{payload['grant']['grant_id']}"
                assert knock.request("DELETE", path, reason=next(reasons)).status == 200

        knock.before_invoke = revoked_meanwhile
        for _ in range(3):
            problem = check_problem(knock.request("POST", "/knock"), 503, "engine-unavailable")
            assert "revoked before it was open" in problem["detail"]
            assert problem["grant_id"] in problem["detail"]
        assert knock.rules() == set()


class TestUnavailable:
    def test_a_start_without_an_answer_is_tried_again_with_the_same_name(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/api.py:
        `            logger.warning("start_retried", exc_info=True)` -> `            raise`
        """
        real, names = Executions.start, []

        def lost(self: Executions, grant: Any) -> None:
            real(self, grant)
            names.append(grant.id)
            if len(names) == 1:
                raise EngineUnavailable("Step Functions did not start the grant: ReadTimeoutError")

        monkeypatch.setattr(Executions, "start", lost)
        grant = knock.open()
        assert names == [grant["id"]] * 2
        assert len(executions(knock)) == 1

    @pytest.mark.parametrize("started", [False, True])
    def test_a_grant_that_may_have_started_is_named_and_closed(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch, started: bool
    ) -> None:
        """Its closing ends either way: a grant that never started is not retried for days.

        Mutation: functions/revoke.py:
        `    except GrantNotFound:  # its execution never started` -> `    except ZeroDivisionError:`
        """
        monkeypatch.setattr("api.SHOWS_WITHIN", 0.0)
        real = Executions.start

        def fail(self: Executions, grant: Any) -> None:
            if started:
                real(self, grant)
            raise EngineUnavailable("Step Functions did not start the grant: Timeout")

        monkeypatch.setattr(Executions, "start", fail)
        answer = knock.request("POST", "/knock")
        problem = check_problem(answer, 503, "engine-unavailable")
        assert answer.headers["Retry-After"] == "5"
        assert problem["grant_id"] in problem["detail"]
        knock.wait(
            lambda: set(knock.closings()) == {"SUCCEEDED"}, "it is not closed", step=timedelta(seconds=5)
        )
        assert knock.rules() == set()
        # The closing stops the execution, unless that has met the end of its grant and failed before.
        assert knock.execution_status(problem["grant_id"]) in (("ABORTED", "FAILED") if started else (None,))
        details = knock.request("GET", f"/grants/{problem['grant_id']}")
        assert details.status == (200 if started else 404)
        assert not started or details.json["status"] == "failed"

    def test_a_grant_whose_closing_does_not_start_is_named_too(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Executions, "start", down(EngineUnavailable("away")))
        monkeypatch.setattr(Closings, "start", down(EngineUnavailable("away")))
        assert check_problem(knock.request("POST", "/knock"), 503, "engine-unavailable")["grant_id"]

    @pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreRefused("no such domain")])
    def test_a_trail_that_fails_once_a_grant_has_started_means_pending(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch, error: KnockError
    ) -> None:
        """Mutation: functions/api.py:
        `        except (StoreUnavailable, StoreRefused):` -> `        except ZeroDivisionError:`
        """
        monkeypatch.setattr("api.OPENS_WITHIN", 0.0)
        with held(knock, "-authorize"), monkeypatch.context() as patch:
            patch.setattr(Trail, "get", down(error))
            answer = knock.request("POST", "/knock")
        assert (answer.status, answer.json["status"]) == (202, "pending")
        knock.wait(lambda: knock.grant(answer.json["id"])["status"] == "active", "it did not open")

    def test_a_failed_grant_that_is_not_closed_when_the_answer_is_due_is_named(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that is closed after the API has read of its end, and before the answer is due, is not named.

        Mutation: functions/api.py: `if record.closed_at or late:` -> `if record:`
        """
        reading, ended, get, close = threading.current_thread(), threading.Event(), Trail.get, Trail.close

        def get_and_note_the_end(trail: Trail, grant_id: str) -> Any:
            record = get(trail, grant_id)
            if threading.current_thread() is reading and record and record.state == "failed":
                ended.set()
            return record

        def close_after_the_end_was_read(*arguments: Any) -> bool:
            assert ended.wait(20)
            return close(*arguments)

        monkeypatch.setattr(Trail, "get", get_and_note_the_end)
        group = knock.add_group("full", "5432/tcp")
        for port in range(1, 61):
            knock.add_rule(group, port, "192.0.2.0/24")
        knock.add_key("eve", targets="full", max_duration="1h")
        with monkeypatch.context() as patch:
            patch.setattr("api.OPENS_WITHIN", 60.0)
            patch.setattr(Trail, "close", close_after_the_end_was_read)
            answer = knock.request("POST", "/knock", key="eve")
        assert "grant_id" not in check_problem(answer, 409, "pool-exhausted")
        ended.clear()
        due_at_the_end = SimpleNamespace(sleep=time.sleep, monotonic=lambda: 60.0 if ended.is_set() else 0.0)
        monkeypatch.setattr("api.time", due_at_the_end)
        monkeypatch.setattr(Trail, "close", down(StoreUnavailable("away")))
        assert check_problem(knock.request("POST", "/knock", key="eve"), 409, "pool-exhausted")["grant_id"]

    def test_without_the_trail_nothing_starts_and_the_answer_says_to_try_again(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SimpleDb, "_call", down(StoreUnavailable("SimpleDB did not answer")))
        answer = knock.request("POST", "/knock")
        check_problem(answer, 503, "store-unavailable")
        assert answer.headers["Retry-After"] == "5"
        for method, path in (("GET", "/grants"), ("GET", "/grants/g"), ("GET", "/whoami")):
            check_problem(knock.request(method, path), 503, "store-unavailable")
        assert executions(knock) == []

    def test_a_revocation_before_quiescence_says_to_try_again(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.CLOSES_WITHIN", 0.1)
        grant = knock.open()

        def unsettled(name: str, _payload: object) -> None:
            if name.endswith("revoke"):
                raise RuleUnsettled("whether it was authorized cannot be known yet")

        knock.before_invoke = unsettled
        check_problem(knock.request("DELETE", f"/grants/{grant['id']}"), 503, "rule-unsettled")

    def test_a_revoke_function_that_fails_is_never_reported_as_success(self, knock: Knock) -> None:
        grant = knock.open()

        def broken(name: str, _payload: object) -> None:
            if name.endswith("revoke"):
                raise ZeroDivisionError("no")

        knock.before_invoke = broken
        check_problem(knock.request("DELETE", f"/grants/{grant['id']}"), 503, "engine-unavailable")
        assert knock.execution(grant["id"])["status"] == "RUNNING"

    def test_a_fault_of_knocks_own_is_a_500_without_detail(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.read_knock", lambda _body: 1 / 0)
        answer = knock.request("POST", "/knock")
        assert answer.status == 500
        assert "division" not in answer.text


class TestSecrets:
    def test_no_key_value_reaches_a_log_an_answer_or_the_trail(
        self, knock: Knock, capfd: pytest.CaptureFixture[str]
    ) -> None:
        grant = knock.open(reason="quiet")
        texts = [
            knock.request("GET", "/whoami").text,
            knock.request("GET", f"/grants/{grant['id']}").text,
            knock.request("DELETE", f"/grants/{grant['id']}").text,
            knock.request("POST", "/knock", raw="not json").text,
            knock.request("POST", "/knock", body={"targets": ["vault"]}).text,
        ]
        texts += [json.dumps(knock.items(domain)) for domain in ("trail", "ledger", "refusals")]
        texts.append(json.dumps(knock.execution(grant["id"]), default=str))
        texts += capfd.readouterr()
        assert not [text for text in texts if "value-of-" in text]
