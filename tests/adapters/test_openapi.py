"""The API's description is made of the code, and real answers match the description."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

import api
from grants.errors import EngineUnavailable
from grants.executions import Executions
from grants.values import parse_time, round_up, show_second
from tests.harness import Answer, Knock, running
from tools import openapi

DOCUMENT = json.loads(openapi.DOCUMENT.read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running() as stack:
        yield stack


class Reader:
    """Holds answers against the document, and remembers which properties were not null."""

    def __init__(self) -> None:
        self.filled: dict[str, set[str]] = defaultdict(set)
        self.statuses: dict[str, set[int]] = defaultdict(set)
        self.events: set[str] = set()
        self.states: set[str] = set()

    def read(self, method: str, resource: str, answer: Answer) -> Any:
        operation = DOCUMENT["paths"][resource][method.lower()]
        described = operation["responses"][str(answer.status)]
        self.statuses[operation["operationId"]].add(answer.status)
        for name, header in described.get("headers", {}).items():
            if header["required"]:
                assert name in answer.headers, f"{method} {resource} {answer.status} has no {name}"
            if name in answer.headers:
                _validate(header["schema"], answer.headers[name])
        assert set(answer.headers) - {"Content-Type"} <= set(described.get("headers", {}))
        schema = described["content"][answer.headers["Content-Type"]]["schema"]
        content = answer.text if answer.headers["Content-Type"].startswith("text/") else answer.json
        _validate(schema, content)
        self._walk(schema, content)
        return content

    def _walk(self, schema: Any, content: Any, name: str = "") -> None:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = SCHEMAS[name]
        if "oneOf" in schema:
            for alternative in schema["oneOf"]:
                if _validator(alternative).is_valid(content):
                    self._walk(alternative, content, name)
        elif isinstance(content, dict):
            for key, value in content.items():
                if value is not None:
                    self.filled[name].add(key)
                    self._walk(schema["properties"][key], value, f"{name}.{key}")
            self.events |= {content["event"]} if name == "Event" else set()
            self.states |= {content["status"]} if name in ("Grant", "Knocked", "WholeGrant") else set()
        elif isinstance(content, list):
            for item in content:
                self._walk(schema["items"], item, name)


def _validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator(schema | {"components": DOCUMENT["components"]})


def _validate(schema: Any, content: Any) -> None:
    faults = list(_validator(schema).iter_errors(content))
    assert not faults, (content, [(list(fault.path), fault.message) for fault in faults])


class TestDocument:
    def test_it_is_what_the_code_gives(self) -> None:
        assert openapi.DOCUMENT.read_text() == openapi.written(), "docs/openapi.json is stale: make openapi"

    def test_it_is_openapi(self) -> None:
        validate(DOCUMENT)

    def test_it_has_every_call_that_the_code_answers(self) -> None:
        described = {
            (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
        }
        assert described == set(api.ROUTES)

    def test_only_the_console_is_served_without_a_key(self) -> None:
        without = [
            operation["operationId"]
            for methods in DOCUMENT["paths"].values()
            for operation in methods.values()
            if not operation["security"]
        ]
        assert without == ["console"]

    def test_every_object_in_it_is_closed(self) -> None:
        for name, schema in SCHEMAS.items():
            assert schema["additionalProperties"] is False, name

    def test_each_error_of_the_tree_is_a_problem_in_it(self) -> None:
        types = {schema["properties"]["type"]["const"] for schema in map(SCHEMAS.get, _problems()) if schema}
        assert len(types) == len(_problems())
        assert "urn:knock:problem:pool-exhausted" in types


def _problems() -> list[str]:
    return [error.__name__ for error in openapi.tree()]


class TestAnswers:
    def test_each_is_as_described_and_each_property_described_is_answered(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutations: a property added to `api.show`, one renamed, one that is always null."""
        reader = Reader()

        def ask(method: str, path: str, expected: int, resource: str = "", **more: Any) -> Any:
            answer = knock.request(method, path, **more)
            assert answer.status == expected, answer.text
            return reader.read(method, resource or path, answer)

        def end(grant: dict[str, Any], **more: Any) -> Any:
            return ask("DELETE", f"/grants/{grant['id']}", 200, "/grants/{id}", **more)

        def show(grant: dict[str, Any]) -> Any:
            return ask("GET", f"/grants/{grant['id']}", 200, "/grants/{id}", key="operator")

        # grants, in every state
        old = ask("POST", "/knock", 201, body={"reason": "on call"})
        ask("GET", "/knock", 201)
        show(ask("POST", "/knock", 201, body={"renews": old["id"]}))
        knock.wait(lambda: show(old)["status"] == "superseded", "it is not superseded")
        bobs = ask("POST", "/knock", 201, key="bob", body={"targets": ["bastion"], "duration": "8h"})
        end(bobs, key="bob", reason="done")
        last = ask("POST", "/knock", 201, key="ci", body={"source": "198.51.100.0/28", "duration": 60})
        ask("GET", "/grants", 200, limit="1", key="operator")
        ask("DELETE", "/grants", 200, key="operator", principal="alice", reason="laptop stolen")
        knock.expire(last)
        show(last)
        with monkeypatch.context() as patch:
            patch.setattr(api, "OPENS_WITHIN", 0.0)
            patch.setattr(api.wiring().trail, "get", lambda _id: None)
            pending = ask("POST", "/knock", 202, caller="203.0.113.99")
            assert pending["status"] == "pending"
        knock.wait(lambda: show(pending)["status"] == "active", "it is not open")
        ask("GET", "/grants", 200, status="all")

        # rights
        knock.add_key("eve", max_duration="soon", until="2099-01-01")
        for key in ("ci", "eve", "operator"):
            ask("GET", "/whoami", 200, key=key)
        ask("GET", "/console", 200)

        # problems
        for call in ("POST /knock", "GET /grants", "DELETE /grants", "GET /whoami"):
            method, path = call.split()
            ask(method, path, 400, x="1")
            ask(method, path, 403, key="gone")
        ask("GET", "/knock", 400, body={"duration": "1m"})
        ask("GET", "/grants", 400, source="everywhere")
        assert ask("POST", "/knock", 404, body={"renews": "none"})["type"].endswith("grant-not-found")
        ask("POST", "/knock", 403, key="eve")
        knock.add_key("ted", targets="web", max_duration="soon")
        assert ask("POST", "/knock", 403, key="ted")["type"].endswith("invalid-tag")
        for method in ("GET", "DELETE"):
            ask(method, "/grants/none", 404, "/grants/{id}")
        knock.add_key("joe", targets="web", max_duration="1h", max_live="1")
        ask("POST", "/knock", 201, key="joe")
        assert ask("POST", "/knock", 409, key="joe")["type"].endswith("too-many-grants")
        permissions = [
            {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}
            for port in range(1000, 1060 - len(knock.rules(*knock.groups["web"])))
        ]
        knock.client("ec2").authorize_security_group_ingress(
            GroupId=knock.groups["web"][0], IpPermissions=permissions
        )
        full = ask("POST", "/knock", 409, caller="203.0.113.77", body={"targets": ["web"]})
        assert full["type"].endswith("pool-exhausted")
        (failed,) = ask("GET", "/grants", 200, status="failed")["grants"]
        assert [e["event"] for e in show(failed)["events"]] == ["requested", "failed", "closed"]

        def fail(_self: Executions, _grant: object) -> None:
            raise EngineUnavailable("Step Functions did not start the grant: Timeout")

        gone = knock.add_group("gone", "5432/tcp")
        knock.add_key("max", targets="bastion gone", max_duration="1h")
        ask("GET", "/whoami", 200, key="max")
        knock.client("ec2").delete_security_group(GroupId=gone)
        left_out = show(ask("POST", "/knock", 201, key="max"))["events"][1]
        assert left_out["left_out"] == ["gone"]
        tags = [{"Key": "knock:families", "Value": "ipv4"}]
        knock.client("ec2").create_tags(Resources=knock.groups["bastion"], Tags=tags)
        knock.clock.advance(timedelta(minutes=2))  # the targets' tags are read anew
        assert ask("POST", "/knock", 201, caller="2001:db8::9")["left_out"] == ["bastion"]
        body = {"targets": ["bastion"]}
        assert ask("POST", "/knock", 409, caller="2001:db8::9", body=body)["families"] == ["ipv4"]
        ask("GET", "/whoami", 200)
        monkeypatch.setattr(Executions, "start", fail)
        problem = ask("POST", "/knock", 503)
        assert problem["grant_id"] in problem["detail"]
        monkeypatch.setattr(api, "read_knock", lambda _body: 1 / 0)
        ask("POST", "/knock", 500)

        # every property, event, state and status was answered
        described = {name: set(schema["properties"]) for name, schema in SCHEMAS.items()}
        described["Knocked"] -= {"ended_at", "ended_by"}  # null, but of a grant that is over in a second
        for name in set(SCHEMAS) - {"Knock", "GatewayAnswer", *_problems()}:
            assert reader.filled[name] == described[name], name
        assert reader.filled["Whoami.any_source"] == {"ipv4", "ipv6"}
        assert reader.events == set(SCHEMAS["Event"]["properties"]["event"]["enum"])
        assert reader.states == set(SCHEMAS["Grant"]["properties"]["status"]["enum"])
        assert reader.statuses["knock"] == {201, 202, 400, 403, 404, 409, 500, 503}

    def test_each_problem_is_as_described_with_its_headers(self) -> None:
        for error in openapi.tree():
            problem, headers = openapi.sample(error)
            _validate({"$ref": f"#/components/schemas/{error.__name__}"}, problem)
            assert headers["Content-Type"] == "application/problem+json"

    def test_a_description_that_is_wrong_is_noticed(self) -> None:
        """The check itself: an answer with a property too many, too few, or of another type fails."""
        problem, _ = openapi.sample(EngineUnavailable)
        for wrong in ({}, problem | {"more": 1}, problem | {"detail": 1}):
            with pytest.raises(AssertionError):
                _validate({"$ref": "#/components/schemas/EngineUnavailable"}, wrong)


def test_a_duration_in_an_answer_is_one_that_a_knock_takes(knock: Knock) -> None:
    whoami = knock.request("GET", "/whoami").json
    grant = knock.open(duration=whoami["max_duration"])
    end = round_up(parse_time(grant["requested_at"]) + timedelta(days=1))
    assert grant["expires_at"] == show_second(end)
