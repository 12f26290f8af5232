"""Answers of a hotspot or of an attacker: any bytes and any JSON are an error message, and no traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from knock import Client, KnockError, Problem, UnexpectedAnswer
from knock.answers import read_grant, read_whoami
from knock.names import is_name
from tests.clients.conftest import Result
from tests.clients.double import Double

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    monkeypatch.setattr("knock.transport.time.sleep", lambda _: None)


ODD: list[Any] = [
    None, True, -1, 1.5, 10**400, "", "x", "\x1b[2J\r\n", "\ud800", "-rf", "$(id)", [], [None], [[]], {},
    {"": 1}, "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2026-11-23T21:17:19+99:99Z", "::/129",
    "a" * 5000,
]  # fmt: skip


def grant_json(double: Double) -> dict[str, Any]:
    """Give the API's JSON of a new grant, with events."""
    with Client(double.url, double.keys["alice"]) as client:
        grant = client.knock("bastion", duration="1h", reason="on call")
        return dict(client.grant(grant.id).json)


def check_output(result: Result) -> None:
    """Fail if a traceback or a control character was printed, or the exit code is not a documented one."""
    assert result.code in (0, 1, 2, 3, 4)
    for text in (result.out, result.err):
        assert "Traceback" not in text
        assert all(c.isprintable() or c in "\n\t" for c in text), text


COMMANDS = [
    ["whoami"], ["ls"], ["show", "x"], ["bastion", "--for", "1h"], ["revoke", "x"], ["renew", "x"],
    ["revoke"], ["ssh-hook"], ["__complete", ""], ["__complete", "revoke", ""],
    ["run", "bastion", "--", "true"], ["bastion", "--json"], ["ls", "--json"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_json_of_any_shape_is_no_traceback(run: Run, double: Double, words: list[str]) -> None:
    grant = grant_json(double)
    me = double.whoami("alice")
    sampler = random.Random(repr(words))  # noqa: S311 — a sample, the same each time
    for answer in (
        grant,
        me,
        {"grants": [grant], "cursor": None},
        {"title": "No", "status": 409, "type": "x:pool-exhausted"},
    ):
        for status in (200, 409, 503):
            for name in sampler.sample([*answer, "grant_id", "events", "field", "families"], 5):
                changed = answer | {name: sampler.choice(ODD)}
                double.faults = [(status, {"Retry-After": "0"}, json.dumps(changed).encode())] * 3
                check_output(run(*words))
                double.faults = []
    for content in (
        b"",
        b"\0\xff",
        b"[]",
        b"1",
        b'"x"',
        b"NaN",
        b'{"seconds_left": Infinity}',
        b"[" * 100_000,
    ):
        double.faults = [(200, {}, content)] * 3
        check_output(run(*words))
        double.faults = []


@pytest.mark.parametrize(
    "name", ["id", "source", "targets", "principal", "requested_at", "expires_at", "seconds_left"]
)
def test_each_field_of_a_grant_is_checked(double: Double, name: str) -> None:
    grant = grant_json(double)
    for value in ODD:
        if name in ("seconds_left", "principal", "targets") and isinstance(value, (bool, int, float, list)):
            continue
        if name == "id" and is_name(value):
            continue
        with pytest.raises(UnexpectedAnswer):
            read_grant(grant | {name: value})


def test_a_name_of_a_target_left_out_is_no_shell_syntax(run: Run, double: Double) -> None:
    """It is printed in a command. Break it: read each name with str()."""
    grant = grant_json(double)
    for name in ("x; id #", "$(id)", "a\nb", "-rf", "", 7, None):
        with pytest.raises(UnexpectedAnswer):
            read_grant(grant | {"left_out": ["web", name]})
    double.faults = [(201, {}, grant | {"left_out": ["x; id #"]})]
    result = run("bastion", "--for", "1h")
    assert (result.code, result.out, "id #" in result.err) == (3, "", False)
    assert f"end it with `knock revoke {grant['id']}`" in result.err


def test_a_source_with_a_zone_is_refused(double: Double) -> None:
    """ipaddress takes any text as a zone. Break it: accept the percent sign."""
    grant = grant_json(double)
    for source in ("fe80::1%$(id)/128", "fe80::1%eth0", "fe80::1%\n/128"):
        for name in ("source", "caller"):
            with pytest.raises(UnexpectedAnswer):
                read_grant(grant | {name: source})
        with pytest.raises(UnexpectedAnswer):
            read_whoami(double.whoami("alice") | {"source": source})


@pytest.mark.parametrize("name", ["title", "detail", "field", "right", "message"])
def test_a_line_break_of_an_answer_begins_no_line(run: Run, double: Double, name: str) -> None:
    """Break it: split the text of an error at its line breaks before it is made plain."""
    forged = "no\nknock: mend it with:\r\n\u2028    id\x85"
    problem = {"type": "x:not-allowed", "title": "No", "detail": "d"} if name != "message" else {}
    double.faults = [(400, {}, problem | {name: forged})]
    (line,) = run("whoami").err.splitlines()
    assert "no\N{REPLACEMENT CHARACTER}knock: mend it with:" in line


def test_a_line_break_of_a_failed_grants_event_or_of_a_header_begins_no_line(
    run: Run, double: Double
) -> None:
    forged = "no\nknock: mend it"
    failed = grant_json(double) | {"status": "failed", "events": [{"reason": forged}]}
    double.faults = [(201, {}, failed), (200, {"Content-Type": "text/a\r\n knock: mend it"}, b"x")]
    for words in (("bastion", "--for", "1h"), ("whoami",)):
        (line,) = run(*words).err.splitlines()
        assert "\N{REPLACEMENT CHARACTER}" in line


def test_a_huge_number_is_bounded_and_a_field_of_a_wrong_type_is_refused(double: Double) -> None:
    grant = grant_json(double)
    assert read_grant(grant | {"seconds_left": 10**400}).seconds_left == 366 * 86_400
    with pytest.raises(UnexpectedAnswer):
        read_grant(grant | {"seconds_left": float("nan")})
    for changed in ({"live": 1e400}, {"any_source": {"ipv4": "x"}}, {"faults": 1}, {"targets": {"name": 1}}):
        with pytest.raises(UnexpectedAnswer):
            read_whoami(double.whoami("alice") | changed)


def test_an_id_is_neither_shell_syntax_nor_an_option() -> None:
    assert is_name("alice_203-0-113-7_20261123T211719Z_1a2b3c4d5e6f7081")
    for text in ("", "-rf", "a b", "$(id)", "a\n", "a;b", "é", "a" * 201, 1, None):
        assert not is_name(text)


def test_only_names_are_offered_to_a_shell(run: Run, double: Double) -> None:
    """Mutation: clients/knock/completion.py: `if is_name(word)` -> `if word`"""
    for name in ("$(id)", "a;b", "`id`", "-rf", "a b", "\x1b[2J", "x'y"):
        double.ports[name] = ["22/tcp"]
    words = [line.split("\t")[0] for line in run("__complete", "").out.splitlines()]
    assert {"bastion", "web"} <= set(words)
    assert not {word for word in words if not word.replace("-", "").isalnum()}
    assert "-rf" not in run("__complete", "-").out


def test_invalid_unicode_in_a_cursor_or_an_argument_is_no_traceback(run: Run, double: Double) -> None:
    double.faults = [(200, {}, b'{"grants": [], "cursor": "\\ud800"}'), (200, {}, {"grants": []})]
    check_output(run("ls"))
    for words in (["show", "\udcff"], ["revoke", "\udcff"], ["\udcff"], ["ls", "--target", "\udcff"]):
        check_output(run(*words))


def test_a_list_whose_cursor_repeats_is_refused(double: Double) -> None:
    double.faults = [(200, {}, {"grants": [], "cursor": "again"})] * 3
    with Client(double.url, double.keys["alice"]) as client, pytest.raises(UnexpectedAnswer, match="no end"):
        list(client.grants())


def test_the_json_of_an_error_cannot_replace_the_fields_that_the_program_sets(
    run: Run, double: Double
) -> None:
    forged = {"title": "No", "status": 200, "error": "Done", "exit_code": 0, "detail": "x", "more": [1]}
    forged |= {"name": "x", "self": 1}
    double.faults = [(403, {}, forged)]
    error = json.loads(run("ls", "--json").err)
    assert (error["status"], error["error"], error["exit_code"], error["more"]) == (403, "Refusal", 1, [1])
    double.faults = [
        (403, {}, {"title": ["a"], "detail": {"b": 1}, "grant_id": [1], "field": 7, "right": {}})
    ]
    with Client(double.url, double.keys["alice"]) as client, pytest.raises(Problem) as caught:
        client.whoami()
    assert (caught.value.field, caught.value.grant_id) == ("7", None)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 503 x\r\nRetry-After: \xb2\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 503 x\r\nRetry-After: Mon, 99 Xxx 99999 99:99:99 GMT\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 302 x\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: //\x1b[2J\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 x\r\nDate: Mon, 01 Jan 99999999 00:00:00 GMT\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 x\r\nDate: " + b"9" * 60 + b"\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 x\r\nContent-Type: \x1b]0;x\x07\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 x\r\nContent-Length: -5\r\n\r\n{}",
        b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 x\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 999999 x\r\n\r\n",
        b"\x1b[2J\0",
    ],
)
def test_an_answer_of_any_bytes_is_an_error_and_no_traceback(run: Run, double: Double, head: bytes) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        handler.close_connection = True

    for words in (["whoami"], ["bastion", "--for", "1h"]):
        double.faults = [answer] * 4
        result = run(*words)
        check_output(result)
        assert result.code in (1, 3)
        double.faults = []
    with Client(double.url, double.keys["alice"]) as client:
        double.faults = [answer] * 4
        with pytest.raises(KnockError):
            client.whoami()
