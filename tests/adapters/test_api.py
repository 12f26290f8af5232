"""The knock API's answers: what it takes, what it refuses and in which words, who sees what."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from grants.errors import EngineUnavailable, KnockError, RuleUnsettled, TrailUnavailable
from grants.executions import Executions
from tests.harness import MACHINE, Answer, Context, Knock, running


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running() as stack:
        yield stack


def executions(knock: Knock) -> list[Any]:
    found: list[Any] = knock.client("stepfunctions").list_executions(stateMachineArn=MACHINE)["executions"]
    return found


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

    def test_a_query_parameter_is_refused_so_that_nobody_believes_it_did_something(
        self, knock: Knock
    ) -> None:
        for method in ("GET", "POST"):
            problem = check_problem(knock.request(method, "/knock", duration="5s"), 400, "invalid-knock")
            assert problem["field"] == "duration"
        assert executions(knock) == []

    def test_a_query_parameter_given_twice_is_refused_since_one_would_not_count(self, knock: Knock) -> None:
        """Whoever ends alice's and bob's grants in one call would have ended bob's only."""
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
        said = api.handler(event, Context())
        assert (said["statusCode"], json.loads(said["body"])["field"]) == (400, "principal")
        assert knock.grant(grant["id"])["status"] == "active"

    def test_nulls_mean_the_defaults(self, knock: Knock) -> None:
        raw = '{"targets": null, "duration": null, "source": null, "reason": null}'
        assert knock.request("POST", "/knock", raw=raw).status == 201

    def test_a_body_in_base64_is_read(self, knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
        import api

        event: dict[str, Any] = {
            "requestContext": {"identity": {"sourceIp": "203.0.113.7", "apiKeyId": knock.keys["alice"]}},
            "isBase64Encoded": True,
            "body": base64.b64encode(b'{"duration": "5m"}').decode(),
        }
        assert api.Request.read(event).body == b'{"duration": "5m"}'
        with pytest.raises(api.InvalidKnock):
            api.Request.read(event | {"body": "***"})


class TestRefusedKnock:
    def test_it_says_which_right_is_missing_and_is_in_the_trail_and_counted(self, knock: Knock) -> None:
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
        import os

        select = f"select * from `{os.environ['TRAIL_DOMAIN']}` where kind = 'refusal'"  # noqa: S608  # no value in it
        items = knock.client("sdb").select(SelectExpression=select, ConsistentRead=True)["Items"]
        recorded = [{a["Name"]: a["Value"] for a in item["Attributes"]} for item in items]
        assert {one["right"] for one in recorded} == {
            "knock:targets",
            "knock:max-duration",
            "knock:any-source",
        }
        assert {one["principal_name"] for one in recorded} == {"eve"}

    def test_a_tag_that_cannot_be_read_is_named_and_gives_no_right(self, knock: Knock) -> None:
        knock.add_key("eve", targets="bastion", max_duration="soon")
        answer = knock.request("POST", "/knock", key="eve")
        assert "knock:max-duration" in check_problem(answer, 403, "invalid-tag")["detail"]

    def test_a_disabled_or_deleted_key_opens_nothing(self, knock: Knock) -> None:
        patch = [{"op": "replace", "path": "/enabled", "value": "false"}]
        knock.client("apigateway").update_api_key(apiKey=knock.keys["alice"], patchOperations=patch)
        check_problem(knock.request("POST", "/knock"), 403, "not-allowed")
        check_problem(knock.request("POST", "/knock", key="gone"), 403, "not-allowed")
        assert executions(knock) == []

    def test_rights_are_read_again_after_a_minute(self, knock: Knock) -> None:
        assert knock.request("GET", "/whoami").json["max_duration"] == "1d"
        patch = [{"op": "replace", "path": "/enabled", "value": "false"}]
        knock.client("apigateway").update_api_key(apiKey=knock.keys["alice"], patchOperations=patch)
        assert knock.request("GET", "/whoami").status == 200
        knock.clock.advance(timedelta(seconds=61))
        assert knock.request("GET", "/whoami").status == 403


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


class TestWhoami:
    def test_it_tells_a_person_what_they_may_do(self, knock: Knock) -> None:
        answer = knock.request("GET", "/whoami", key="ci")
        assert answer.json == {
            "principal": {"id": knock.keys["ci"], "name": "ci"},
            "source": "203.0.113.7/32",
            "targets": [
                {"name": "bastion", "ports": ["22/tcp"]},
                {"name": "web", "ports": ["80/tcp", "443/tcp"]},
            ],
            "default_duration": "1d",
            "max_duration": "1d",
            "any_source": {"ipv4": 28, "ipv6": 60},
            "operator": False,
            "faults": [],
        }

    def test_the_default_it_tells_is_the_one_that_a_knock_gets(self, knock: Knock) -> None:
        knock.add_key("short", targets="bastion", max_duration="1h")
        said = knock.request("GET", "/whoami", key="short").json
        assert (said["default_duration"], said["max_duration"]) == ("1h", "1h")
        assert knock.request("POST", "/knock", key="short").json["seconds_left"] in (3599, 3600)

    def test_a_key_without_rights_learns_just_that(self, knock: Knock) -> None:
        knock.add_key("eve")
        said = knock.request("GET", "/whoami", key="eve").json
        assert (said["targets"], said["max_duration"], said["operator"]) == ([], None, False)


class TestList:
    def test_it_shows_ones_own_live_grants_newest_first(self, knock: Knock) -> None:
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
        assert ids(status="all", target="web") == [alice["id"]]
        assert ids(status="all", target="web", principal="bob") == []

    def test_pages_follow_each_other_without_gap_or_repeat(self, knock: Knock) -> None:
        made = [knock.open(targets=["web"], caller=f"203.0.113.{n}")["id"] for n in range(1, 8)]
        seen: list[str] = []
        query: dict[str, str] = {"limit": "3"}
        while True:
            page = knock.request("GET", "/grants", **query).json
            seen += [grant["id"] for grant in page["grants"]]
            if page["cursor"] is None:
                break
            query["cursor"] = page["cursor"]
        assert seen == made[::-1]

    def test_a_malformed_question_is_refused_by_naming_the_parameter(self, knock: Knock) -> None:
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
        ):
            answer = knock.request("GET", "/grants", **{name: value})
            assert check_problem(answer, 400, "invalid-knock")["field"] == name.replace("a\nb", "?")
        for value in ("p" * 257, "\x00", "a\nb"):
            answer = knock.request("GET", "/grants", key="operator", principal=value)
            assert check_problem(answer, 400, "invalid-knock")["field"] == "principal"
        assert knock.request("GET", "/grants", cursor=good).status == 200

    def test_only_an_operator_asks_for_a_principals(self, knock: Knock) -> None:
        answer = knock.request("GET", "/grants", principal="bob")
        assert check_problem(answer, 403, "not-allowed")["right"] == "knock:operator"

    def test_fragments_of_a_select_are_data(self, knock: Knock) -> None:
        """Mutation: `_quote` that does not double quotes."""
        grant = knock.open("bob")
        for name in ("principal", "source", "target"):
            for value in ("' or 'a'='a", "x' or `kind` = 'grant", "'", "''", "\\'", "` or 1"):
                answer = knock.request("GET", "/grants", key="operator", status="all", **{name: value})
                assert (answer.status, answer.json["grants"]) == (200, []), value
        assert knock.request("GET", "/grants", key="operator").json["grants"][0]["id"] == grant["id"]


class TestShow:
    def test_anothers_grant_and_one_that_is_not_look_the_same(self, knock: Knock) -> None:
        """Mutation: `check_visible` that lets everyone see."""
        grant = knock.open("bob")
        answers = [
            knock.request(method, f"/grants/{grant_id}")
            for method in ("GET", "DELETE")
            for grant_id in (
                grant["id"],
                grant["id"][:-1] + "0",
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


class TestReasonOfAnEnd:
    @pytest.mark.parametrize("letter", ["\U0001f600", '"', "\\", "é"])
    def test_no_reason_is_too_long_for_the_trail(self, knock: Knock, letter: str) -> None:
        """256 letters of four bytes, and what JSON writes around them, are more than SimpleDB takes."""
        grant = knock.open(reason=letter * 256)
        assert grant["reason"] == letter * 256
        answer = knock.request("DELETE", f"/grants/{grant['id']}", reason=letter * 256)
        assert (answer.status, answer.json["status"]) == (200, "revoked")
        (said,) = [event["reason"] for event in answer.json["events"] if event["event"] == "revoked"]
        assert said
        assert set(said) == {letter}
        assert knock.rules() == set()

    @pytest.mark.parametrize("cause", ["\U0001f600" * 5000, "one\ntwo\r\n\x00three", "\ufeff\u2028" * 900])
    def test_whatever_an_operator_stops_an_execution_with_its_rules_are_closed(
        self, knock: Knock, cause: str
    ) -> None:
        grant = knock.open()
        knock.client("stepfunctions").stop_execution(
            executionArn=grant["execution_arn"], error="Stolen", cause=cause
        )
        knock.wait(lambda: not knock.rules(), "the rules stayed")
        knock.wait(lambda: knock.grant(grant["id"])["status"] == "revoked", "the grant lives on")
        (said,) = [e["reason"] for e in knock.grant(grant["id"])["events"] if e["event"] == "revoked"]
        assert said.startswith("execution aborted (Stolen: ")
        assert said.isprintable()


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

    def test_but_not_for_long(
        self,
        knock: Knock,
        fail: Callable[[type[KnockError], int], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("api.SETTLES_WITHIN", 0.0)
        grant = knock.open()
        fail(RuleUnsettled, 1)
        answer = knock.request("DELETE", f"/grants/{grant['id']}")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")

    def test_it_is_tried_again_though_nobody_asks_again(
        self, knock: Knock, fail: Callable[[type[KnockError], int], None]
    ) -> None:
        """Mutation: functions/api.py: `_invoke_revoke_later(payload)` -> `pass`"""
        grant = knock.open()
        fail(TrailUnavailable, 2)
        assert knock.request("DELETE", f"/grants/{grant['id']}").status == 503
        knock.wait(lambda: not knock.rules(), "the rules stay", step=timedelta(seconds=30))
        assert knock.grant(grant["id"])["ended_by"] == "alice"


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

    def test_it_says_when_there_is_more_to_end(self, knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
        knock.open()
        monkeypatch.setattr("api.ENDS_WITHIN", -1.0)
        answer = knock.request("DELETE", "/grants", key="operator", principal="alice")
        assert answer.json == {"grants": [], "more": True}


class TestRevokedBeforeItWasOpen:
    def test_the_reason_given_is_no_error_of_knocks(self, knock: Knock) -> None:
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
        assert knock.rules() == set()


class TestUnavailable:
    def test_an_execution_that_did_not_start_is_recorded_as_failed_and_answers_503(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_self: Executions, _grant: object) -> None:
            raise EngineUnavailable("Step Functions did not start the grant: Timeout")

        monkeypatch.setattr(Executions, "start", fail)
        answer = knock.request("POST", "/knock")
        check_problem(answer, 503, "engine-unavailable")
        assert answer.headers["Retry-After"] == "5"
        listed = knock.request("GET", "/grants", status="failed").json["grants"]
        assert len(listed) == 1
        assert knock.rules() == set()

    def test_a_revocation_that_cannot_settle_yet_says_to_try_again(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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
        said = [
            knock.request("GET", "/whoami").text,
            knock.request("GET", f"/grants/{grant['id']}").text,
            knock.request("DELETE", f"/grants/{grant['id']}").text,
            knock.request("POST", "/knock", raw="not json").text,
            knock.request("POST", "/knock", body={"targets": ["vault"]}).text,
        ]
        import os

        select = f"select * from `{os.environ['TRAIL_DOMAIN']}`"  # noqa: S608  # no value in it
        said.append(json.dumps(knock.client("sdb").select(SelectExpression=select)["Items"]))
        said.append(json.dumps(knock.execution(grant["id"]), default=str))
        said += capfd.readouterr()
        assert not [text for text in said if "value-of-" in text]
