"""What an attacker sends: forged sources, ids of others' grants, fragments of a Select, broken HTTP.

Everything goes to one stack that logs all it does. The last tests look through its logs, answers, stores and
processes: no key's value is in any of them, and every line of the log is still one line.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote, urlsplit

import pytest
import requests

from tests.conftest import ROOT, program
from tests.e2e.conftest import Stack
from tests.local.test_gateway import KEY, LocalGateway


class Watched:
    """A stack, everything it answered, and the file it logs to."""

    def __init__(self, stack: Stack, log: Path) -> None:
        self.stack = stack
        self.log = log
        self.answers: list[str] = []
        stack.session.hooks["response"] = self._hear

    def _hear(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        self.answers.append(f"{answer.url} {dict(answer.headers)} {answer.text}")

    def call(self, method: str, path: str, key: str | None = "alice", **more: Any) -> requests.Response:
        answer = self.stack.call(method, path, key, **more)
        assert answer.status_code < 500, (method, path, more, answer.text)
        return answer

    def raw(self, data: bytes, seconds: float = 5) -> bytes:
        """Send bytes as they are, shut down sending, and give everything received."""
        url = urlsplit(self.stack.api_url)
        assert url.hostname
        with socket.create_connection((url.hostname, url.port or 80), seconds) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            try:
                while part := connection.recv(65_536):
                    received += part
            except ConnectionResetError:
                pass  # the stack reset the connection
        self.answers.append(received.decode(errors="replace"))
        return received

    def executions(self) -> list[str]:
        paginator = self.stack.client("stepfunctions").get_paginator("list_executions")
        pages = paginator.paginate(stateMachineArn=self.stack.state_machine_arn)
        return [execution["name"] for page in pages for execution in page["executions"]]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    log = tmp_path_factory.mktemp("attacks") / "log"
    with log.open("wb") as errors:
        stack = Stack.start("--verbose", errors=errors)
    with stack:
        yield Watched(stack, log)


@pytest.fixture(scope="module")
def bobs(watched: Watched) -> dict[str, Any]:
    """A grant of bob's, which only bob and an operator may see or end."""
    return watched.stack.open("bob", caller="203.0.113.200", reason="bob's own")


def is_active(watched: Watched, grant: dict[str, Any]) -> bool:
    return bool(watched.call("GET", f"/grants/{grant['id']}", "operator").json()["status"] == "active")


class TestForgedSource:
    @pytest.mark.parametrize(
        "name",
        ["X-Real-IP", "Forwarded", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Forwarded", "Via",
         "X-Original-Forwarded-For", "X-Cluster-Client-IP", "Host", "X-Forwarded-Host"],
    )  # fmt: skip
    def test_no_header_but_the_edges_says_where_a_call_comes_from(self, watched: Watched, name: str) -> None:
        for value in ("198.51.100.66", "for=198.51.100.66"):
            answer = watched.call("GET", "/whoami", caller="203.0.113.30", headers={name: value})
            assert answer.json()["source"] == "203.0.113.30/32"

    @pytest.mark.parametrize("address", ["198.51.100.66", "198.51.100.66, 198.51.100.67", "evil", "'", ",,"])
    def test_an_address_that_a_client_wrote_before_the_edges_is_ignored(
        self, watched: Watched, address: str
    ) -> None:
        answer = watched.call("GET", "/whoami", headers={"X-Forwarded-For": f"{address}, 203.0.113.31"})
        assert answer.json()["source"] == "203.0.113.31/32"

    def test_a_header_sent_twice_is_read_as_one(self, watched: Watched) -> None:
        key = watched.stack.keys["alice"]
        received = watched.raw(
            b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 198.51.100.66\r\n"
            b"X-Forwarded-For: 203.0.113.32\r\nx-api-key: " + key.encode() + b"\r\n\r\n"
        )
        assert b'"source": "203.0.113.32/32"' in received

    @pytest.mark.parametrize(
        "address", ["evil", "203.0.113.999", "203.0.113.0/24", "fe80::1%eth0", "1;2", "'"]
    )
    def test_an_edge_that_writes_no_address_is_refused(self, watched: Watched, address: str) -> None:
        assert watched.call("GET", "/knock", headers={"X-Forwarded-For": address}).status_code == 400


class TestAnothersGrant:
    def test_it_is_not_found_by_any_spelling_of_its_id(self, watched: Watched, bobs: dict[str, Any]) -> None:
        grant_id = bobs["id"]
        for path in (
            grant_id,
            f"{grant_id}?reason=x",
            f"%{ord(grant_id[0]):02x}{grant_id[1:]}",
            grant_id.upper(),
            f"{grant_id}%00",
            f"{grant_id}%0a",
            f"{grant_id}%20",
            f"../grants/{grant_id}",
            f"..%2fgrants%2f{grant_id}",
            f"x%2f..%2f{grant_id}",
            f"%2e%2e/{grant_id}",
            f"..%252fgrants%252f{grant_id}",
            f"{grant_id};x",
            f"{grant_id}/",
            f"/{grant_id}",
            f"./{grant_id}",
            f"{grant_id}' or '1'='1",
            quote("' or `kind` = 'grant"),
            "%",
            "*",
            "refusal_x",
            "a" * 5000,
            "%ff%fe",
            "%c0%ae",
            "{{id}}",
            "${jndi:ldap://x}",
        ):
            for method in ("GET", "DELETE"):
                url = f"{watched.stack.api_url}/grants/{path}"
                request = requests.Request(method, url, headers={"x-api-key": watched.stack.keys["alice"]})
                prepared = request.prepare()
                prepared.url = url  # as it is written: not normalised
                answer = watched.stack.session.send(prepared, timeout=35)
                assert answer.status_code in (400, 403, 404), (method, path, answer.text)
                assert "bob" not in answer.text.replace(grant_id, "").replace(grant_id.upper(), ""), (
                    answer.text
                )
        assert is_active(watched, bobs)


FRAGMENTS = (
    "'",
    "''",
    '"',
    "`",
    "\\'",
    "' or 'a'='a",
    "' or '1'='1' --",
    "x' or `kind` = 'grant",
    "alice' union select * from `x",
    "' intersection `kind` is not null or '",
    "%27%20or%20%27a%27=%27a",
    "203.0.113.200/32' or `source` like '%",
    "bob' or `principal_name` = 'bob",
    "＇ or ＇a＇=＇a",
    "; delete from `x`",
)


class TestSelectInjection:
    """Mutation: a `_quote` of functions/grants/simpledb.py that does not double quotes."""

    @pytest.mark.parametrize("name", ["status", "limit", "cursor", "principal", "source", "target", "x"])
    def test_no_parameter_shows_a_grant_of_another(
        self, watched: Watched, bobs: dict[str, Any], name: str
    ) -> None:
        for fragment in FRAGMENTS:
            for value in (fragment, base64.urlsafe_b64encode(fragment.encode()).decode()):
                answer = watched.call("GET", "/grants", params={name: value})
                assert answer.status_code in (200, 400, 403)
                assert bobs["id"] not in answer.text

    @pytest.mark.parametrize("name", ["principal", "source", "target"])
    def test_a_fragment_is_a_value_that_matches_nothing_for_an_operator_too(
        self, watched: Watched, bobs: dict[str, Any], name: str
    ) -> None:
        for fragment in FRAGMENTS:
            for method, query in (("GET", {"status": "all"}), ("DELETE", {})):
                answer = watched.call(method, "/grants", "operator", params={name: fragment} | query)
                if name == "source":  # a fragment is no CIDR
                    assert (answer.status_code, answer.json()["field"]) == (400, "source"), fragment
                else:
                    assert (answer.status_code, answer.json()["grants"]) == (200, []), fragment
        assert is_active(watched, bobs)

    def test_a_reason_is_kept_as_it_is(self, watched: Watched, bobs: dict[str, Any]) -> None:
        for fragment in FRAGMENTS:
            grant = watched.stack.open(caller="203.0.113.33", reason=fragment)
            answer = watched.call("DELETE", f"/grants/{grant['id']}", params={"reason": fragment})
            ended = answer.json()
            assert ended["reason"] == fragment
            assert [e["reason"] for e in ended["events"] if e["event"] == "revoked"] == [fragment]
        assert is_active(watched, bobs)

    def test_a_fragment_renews_no_grant_of_another(self, watched: Watched, bobs: dict[str, Any]) -> None:
        before = watched.executions()
        for fragment in (*FRAGMENTS, bobs["id"], f"{bobs['id']}' or 'a'='a"[:80], "*", "refusal_x"):
            answer = watched.call("POST", "/knock", json={"renews": fragment})
            assert (answer.status_code, answer.json()["title"]) == (404, "No such grant")
        assert watched.executions() == before
        assert is_active(watched, bobs)

    def test_a_source_that_is_a_fragment_is_no_source(self, watched: Watched) -> None:
        before = watched.executions()
        for fragment in FRAGMENTS:
            for body in ({"source": fragment}, {"targets": [fragment]}, {"duration": fragment}):
                assert watched.call("POST", "/knock", "ci", json=body).status_code == 400
        assert watched.executions() == before


class TestBodies:
    def test_a_body_that_is_no_knock_is_refused_and_starts_no_execution(self, watched: Watched) -> None:
        before = watched.executions()
        for body in (
            b"x" * 4097,
            b" " * 100_000,
            b'{"reason":"' + b"x" * 5_000_000 + b'"}',
            b"[" * 4096,
            b'{"a":' * 800,
            b"[" * 1_000_000,
            b'{"duration":"1h","duration":"2h"}',
            b'{"duration":' + b"9" * 4000 + b"}",
            b'{"duration":1e999999}',
            b'{"duration":-0}',
            b'{"duration":NaN}',
            b'{"duration":Infinity}',
            b'{"duration":1.5}',
            b'{"duration":"\xff"}',
            b"\xff\xfe{}",
            b'{"reason":"\\ud800"}',
            b'{"reason":"\\u0000"}',
            b'{"reason":"a\\r\\nb"}',
            b'{"\\ud800":1}',
            b'{"__proto__":{}}',
            b'{"source":{"a":1}}',
            b'{"targets":{"0":"web"}}',
            b"null",
            b"0",
            b'"x"',
            b"{}{}",
            b"{",
            b"<xml/>",
            b"\x00",
            b"--x\r\nContent-Disposition: form-data\r\n\r\n{}",
        ):
            answer = watched.call("POST", "/knock", data=body)
            assert answer.status_code == 400, (body[:50], answer.text)
            assert answer.headers["Content-Type"] == "application/problem+json"
        assert watched.executions() == before

    def test_a_body_beyond_the_gateways_limit_is_refused_there(self, watched: Watched) -> None:
        assert watched.call("POST", "/knock", data=b"x" * (10 * 1024 * 1024 + 1)).status_code == 413


class TestFraming:
    """The gateway parses HTTP with httptools; an ambiguous request is refused, or read in one way only."""

    @pytest.mark.parametrize(
        ("head", "body"),
        [
            (b"Content-Length: 50", b"{}"),
            (b"Content-Length: -1", b"{}"),
            (b"Content-Length: 2x", b"{}"),
            (b"Content-Length: 2\r\nContent-Length: 3", b"{}x"),
            (b"Content-Length: 99999999999999999999", b"{}"),
            (b"Transfer-Encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
            (b"Transfer-Encoding: chunked", b"2\r\n{}"),
            (b"Transfer-Encoding: chunked", b"-2\r\n{}\r\n0\r\n\r\n"),
            (b"Transfer-Encoding: xchunked", b"2\r\n{}\r\n0\r\n\r\n"),
            (b"Transfer-Encoding: gzip, chunked", b"2\r\n{}\r\n0\r\n\r\n"),
            (b"Transfer-Encoding : chunked", b"2\r\n{}\r\n0\r\n\r\n"),
            (b"Content-Length : 2", b"{}"),
            (b"X: a\nb\r\n c\r\nContent-Length: 2\r\n x", b"{}"),
            (b"X: \x00", b""),
        ],
    )
    def test_a_knock_in_broken_http_starts_no_execution(
        self, watched: Watched, head: bytes, body: bytes
    ) -> None:
        before = watched.executions()
        key = watched.stack.keys["alice"].encode()
        received = watched.raw(
            b"POST /v1/knock HTTP/1.1\r\nHost: x\r\nx-api-key: " + key + b"\r\n" + head + b"\r\n\r\n" + body
        )
        assert received[9:13] in (b"", b"400 ", b"413 ", b"501 "), received
        assert watched.executions() == before

    @pytest.mark.parametrize("encoding", [b"chunked", b"Chunked"])
    def test_a_request_hidden_in_a_body_has_no_key_of_the_one_around_it(
        self, watched: Watched, encoding: bytes
    ) -> None:
        """Where both lengths are given, the chunks count; the rest is a request of its own, without a key."""
        before = watched.executions()
        hidden = b"POST /v1/knock HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        received = watched.raw(
            b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nx-api-key: "
            + watched.stack.keys["alice"].encode()
            + b"\r\nContent-Length: %d\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n"
            % (5 + len(hidden), encoding)
            + hidden
        )
        answers = received.split(b"HTTP/1.1 ")[1:]
        assert [answer[:3] for answer in answers] in ([b"200", b"403"], [b"200"], [b"400"]), received
        assert watched.executions() == before

    def test_a_body_in_chunks_is_read(self, watched: Watched) -> None:
        def parts() -> Iterator[bytes]:
            yield b'{"dura'
            yield b'tion":"5m"}'

        answer = watched.call("POST", "/knock", data=parts(), caller="203.0.113.34")
        assert answer.status_code == 201
        grant = answer.json()
        lasts = datetime.fromisoformat(grant["expires_at"]) - datetime.fromisoformat(grant["requested_at"])
        assert timedelta(minutes=5) <= lasts < timedelta(minutes=5, seconds=1)  # expires_at is a whole second

    @pytest.mark.parametrize("name", ["X-Api-Key\r\nX-Evil", "X-Api-Key: x\r\nX-Forwarded-For"])
    def test_a_newline_in_a_header_makes_no_header(self, watched: Watched, name: str) -> None:
        """Not in an answer either: no text of a request comes back in a header."""
        received = watched.raw(
            (
                "GET /v1/grants/a%0d%0aSet-Cookie:%20x=1?reason=%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: x\r\n"
                f"{name}: {watched.stack.keys['alice']}\r\nConnection: close\r\n\r\n"
            ).encode()
        )
        head = received.partition(b"\r\n\r\n")[0].lower()
        assert received[9:10] == b"4", received
        assert b"set-cookie" not in head
        assert b"x-evil" not in head


class TestKeys:
    def test_a_key_is_compared_with_all_of_them_in_constant_time(self) -> None:
        """Mutation: `==` in place of `compare_digest`. On AWS this is API Gateway's own."""
        gateway = LocalGateway()
        gateway.keys = [*gateway.keys, *gateway.keys]
        with mock.patch(
            "local.gateway.hmac.compare_digest", wraps=__import__("hmac").compare_digest
        ) as compare:
            for key in (KEY, KEY[:-1] + "x", "x", "", KEY * 2):
                compare.reset_mock()
                gateway.ask("GET", "/v1/knock", key=key)
                assert compare.call_count == 2

    @pytest.mark.parametrize("key", ["", "*", "null", "alice", "' or 'a'='a", "é", "x" * 8000])
    def test_a_value_that_is_no_key_is_forbidden(self, watched: Watched, key: str) -> None:
        headers = {"x-api-key": key.encode()}
        answer = watched.call("POST", "/knock", None, headers=headers)
        assert (answer.status_code, answer.json()) == (403, {"message": "Forbidden"})

    def test_a_key_in_another_header_is_ignored(self, watched: Watched) -> None:
        value = watched.stack.keys["alice"]
        headers = {"Authorization": f"Bearer {value}", "Cookie": f"x-api-key={value}"}
        before = watched.executions()
        answer = watched.call("GET", "/knock", None, headers=headers)
        assert answer.status_code == 403
        assert watched.executions() == before


class TestBrowsers:
    @pytest.mark.parametrize("path", ["/knock", "/grants", "/grants/x", "/whoami", "/console", "/nowhere"])
    def test_no_other_site_may_read_an_answer(self, watched: Watched, path: str) -> None:
        headers = {
            "Origin": "https://evil.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key",
        }
        for method in ("OPTIONS", "GET", "HEAD", "DELETE"):
            for key in (None, "alice"):
                answer = watched.call(method, path, key, headers=headers)
                assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert watched.call("OPTIONS", path, headers=headers).status_code == 403

    def test_the_console_is_served_with_a_strict_policy(self, watched: Watched) -> None:
        headers = watched.call("GET", "/console", None).headers
        rules = dict(
            rule.strip().partition(" ")[::2] for rule in headers["Content-Security-Policy"].split(";")
        )
        assert rules["default-src"] == "'none'"
        assert rules["connect-src"] == "'self'"
        for name in ("form-action", "base-uri", "frame-ancestors"):
            assert rules[name] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert re.fullmatch(r"('sha256-[\w+/]{43}=' ?)+", rules["script-src"])
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert "Set-Cookie" not in headers


FORGED = '{"level": "INFO", "message": "forged by a newline"}'


class TestLogs:
    """They run last, and look at what the tests above left behind, as far as those ran in this process."""

    def test_a_line_stays_a_line(self, watched: Watched) -> None:
        apigateway = watched.stack.client("apigateway")
        (plan,) = apigateway.get_usage_plans()["items"]
        name = f"eve\n{FORGED}"
        tags = {"knock:name": name, "knock:targets": "bastion", "knock:max-duration": "1h"}
        eve = apigateway.create_api_key(name=name, value="E" * 40, enabled=True, tags=tags)
        apigateway.create_usage_plan_key(usagePlanId=plan["id"], keyId=eve["id"], keyType="API_KEY")
        watched.stack.keys["eve"] = "E" * 40
        answer = watched.call("POST", "/knock", "eve", caller="203.0.113.35")
        assert answer.status_code == 201
        assert answer.json()["principal"]["name"] == eve["id"], "a name with a newline is not taken"
        watched.call("DELETE", f"/grants/{answer.json()['id']}", "eve")
        for end in ("\n", "\r\n", "\x0b", "\x1e", "\u2028", "\x85"):
            value = f"a{end}{FORGED}"
            assert watched.call("POST", "/knock", "eve", json={"reason": value}).status_code == 400
            assert watched.call("POST", "/knock", "eve", json={value: 1}).status_code == 400
            assert watched.call("POST", "/knock", "eve", json={"targets": [value]}).status_code == 400
            assert watched.call("GET", "/grants", "eve", params={value: value}).status_code == 400
            assert watched.call("GET", f"/grants/{quote(value)}", "eve").status_code == 404
        grant = watched.stack.open("eve", caller="203.0.113.35")
        watched.stack.client("stepfunctions").stop_execution(
            executionArn=grant["execution_arn"], error="Stolen", cause=f"a\n{FORGED}\n"
        )
        watched.stack.wait(lambda: not watched.stack.rules("203.0.113.35/32"), "the rules stayed")
        key = watched.stack.keys["eve"].encode()
        agent = b"User-Agent: x\r\n " + FORGED.encode()  # a folded header, which HTTP reads as one line
        watched.raw(
            b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-api-key: "
            + key
            + b"\r\n"
            + agent
            + b"\r\n\r\n"
        )
        lines = watched.log.read_text().splitlines()
        assert len([line for line in lines if line.startswith("local.gateway: ")]) > 30, (
            "a line for each request"
        )
        records = [json.loads(line) for line in lines if line.startswith("{")]
        assert {record.get("message") for record in records} >= {"started", "authorized", "refused", "closed"}
        assert not [line for line in lines if line.strip() == FORGED]
        assert "forged by a newline" not in {record.get("message") for record in records}
        plain = [line for line in lines if not line.startswith("{")]
        assert not [line for line in plain if not re.match(r"(local\.[a-z_]+|moto\S*): ", line)]

    def test_no_process_shows_a_key_and_neither_client_prints_one(
        self, watched: Watched, tmp_path: Path
    ) -> None:
        program("curl", "install curl")
        keys = list(watched.stack.keys.values())
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "clients"),
            "HOME": str(tmp_path),
            "KNOCK_URL": watched.stack.api_url,
            "KNOCK_API_KEY": watched.stack.keys["alice"],
        }
        commands: set[str] = set()
        ended = threading.Event()

        def look() -> None:
            while not ended.is_set():
                commands.update(command_lines())
                time.sleep(0.002)

        looking = threading.Thread(target=look)
        looking.start()
        output: list[str] = []
        try:
            for client in (
                [sys.executable, "-m", "knock"],
                [shutil.which("sh") or "sh", str(ROOT / "clients/knock.sh")],
            ):
                for arguments in (
                    ["open", "--for", "5m"],
                    ["ls"],
                    ["whoami"],
                    ["revoke", "nobody"],
                    ["open", "vault"],
                ):
                    result = subprocess.run(
                        [*client, *arguments],
                        env=environment,
                        capture_output=True,
                        text=True,
                        timeout=60,
                        check=False,
                    )
                    output += [result.stdout, result.stderr]
        finally:
            ended.set()
            looking.join()
        assert [line for line in commands if "-m knock" in line]
        assert [line for line in commands if "curl" in line]
        for key in keys:
            assert not [text for text in [*commands, *output] if key in text]

    def test_no_key_value_is_left_anywhere(self, watched: Watched, bobs: dict[str, Any]) -> None:
        # Write something of each kind, since other tests may have run in another process.
        watched.call("GET", f"/grants/{bobs['id']}", "bob")
        assert watched.call("POST", "/knock", "bob", json={"targets": ["vault"]}).status_code == 403
        stopped = watched.stack.open("bob", caller="203.0.113.201")
        watched.stack.client("stepfunctions").stop_execution(executionArn=stopped["execution_arn"])
        watched.stack.wait(lambda: not watched.stack.rules("203.0.113.201/32"), "the rules stayed")
        stored = domains(watched.stack)
        texts = {
            "log": watched.log.read_text(errors="replace"),
            "answers": "\n".join(watched.answers),
            "stores": json.dumps(stored, ensure_ascii=False),
            "executions": json.dumps(histories(watched.stack), default=str),
            "processes": "\n".join(command_lines()),
        }
        assert all(stored.values())
        summary = watched.stack.summary
        assert set(stored) == {summary[f"{kind}_domain"] for kind in ("trail", "ledger", "refusals")}
        # Each text is the one meant, and is not empty.
        for where, sign in (
            ("log", '"message":"started"'),
            ("answers", "bob's own"),
            ("stores", "bob's own"),
            ("executions", "bob's own"),
            ("executions", ":knock-closings:"),
            ("processes", "-m local up"),
        ):
            assert sign in texts[where], where
        for where, text in texts.items():
            for name, value in watched.stack.keys.items():
                assert value not in text, f"{name}'s key is in the {where}"
                assert base64.b64encode(value.encode()).decode() not in text, (
                    f"{name}'s key is in the {where}"
                )


def command_lines() -> set[str]:
    """List the command lines of all processes, as any user of the machine can see them."""
    commands = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return commands


def domains(stack: Stack) -> dict[str, list[Any]]:
    """Read everything in the stores: the trail, the ledger and the refusals."""
    if stack.store == "dynamodb":
        dynamodb = stack.client("dynamodb")
        scans = dynamodb.get_paginator("scan")
        return {
            table: [item for page in scans.paginate(TableName=table) for item in page["Items"]]
            for table in dynamodb.list_tables()["TableNames"]
        }
    sdb = stack.client("sdb")
    pages = sdb.get_paginator("select")

    def items(domain: str) -> list[Any]:
        text = f"select * from `{domain}`"  # noqa: S608  # no value in it
        return [item for page in pages.paginate(SelectExpression=text) for item in page.get("Items", [])]

    return {domain: items(domain) for domain in sdb.list_domains()["DomainNames"]}


def histories(stack: Stack) -> list[Any]:
    """Read all executions, the grants' and the closings'."""
    client = stack.client("stepfunctions")
    machines = [machine["stateMachineArn"] for machine in client.list_state_machines()["stateMachines"]]
    assert {arn.rpartition("-")[2] for arn in machines} == {"grants", "closings"}
    paginator = client.get_paginator("list_executions")
    pages = (page for arn in machines for page in paginator.paginate(stateMachineArn=arn))
    arns = [execution["executionArn"] for page in pages for execution in page["executions"]]
    return [
        (client.describe_execution(executionArn=arn), client.get_execution_history(executionArn=arn))
        for arn in arns
    ]
