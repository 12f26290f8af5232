"""`knock.sh`, in every shell that it supports. Many tests run on the double and on the local stack."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from knock.values import parse_time
from tests.clients.conftest import CLIENTS, Api, Result, check_time_left
from tests.clients.double import Double, is_live
from tests.conftest import need, program
from tests.waiting import wait_for

SCRIPT = CLIENTS / "knock.sh"
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "ash"], "mksh": ["mksh"]}
SETSID = shutil.which("setsid") or "setsid"  # found before a test has only busybox's programs
Run = Callable[..., Result]


# Patterns mean the same in every shell: one is enough for tests that only try many words.
one_shell = pytest.mark.parametrize("shell", ["dash"], indirect=True)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    program("curl", "apt install curl")
    path = program(SHELLS[request.param][0], f"apt install {request.param}")
    return [path, *SHELLS[request.param][1:]]


@pytest.fixture(scope="session")
def applets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with busybox's own sed, awk, ls … and curl: a machine that has nothing else."""
    folder = tmp_path_factory.mktemp("busybox")
    subprocess.run(["busybox", "--install", "-s", folder], check=True)
    (folder / "curl").unlink(missing_ok=True)
    (folder / "curl").symlink_to(shutil.which("curl") or "")
    return folder


@pytest.fixture
def sh(
    shell: list[str],
    home: Path,
    spawn: Run,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    if shell[-1] == "ash":
        monkeypatch.setenv("PATH", str(request.getfixturevalue("applets")))

    def run(*words: str, **more: str) -> Result:
        return spawn(*shell, str(SCRIPT), *words, **more)

    return run


@pytest.fixture
def as_alice(api: Api, monkeypatch: pytest.MonkeyPatch, home: Path) -> Api:
    monkeypatch.setenv("KNOCK_URL", api.url)
    monkeypatch.setenv("KNOCK_API_KEY", api.keys["alice"])
    return api


@pytest.fixture
def as_alice_on_double(double: Double, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


def test_open_ls_show_and_revoke_work_on_one_grant(sh: Run, as_alice: Api) -> None:
    began = datetime.now(timezone.utc)
    knock = sh("bastion", "web", "--for", "90m", "--reason", 'say "hi" \\ $(id) ü %41')
    match = re.fullmatch(
        r"open: bastion web from 203\.0\.113\.7/32 until (20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ) "
        r"\((\d+) s left\), grant (\S+)\n",
        knock.out,
    )
    assert match, knock
    assert (knock.code, knock.err) == (0, "")
    expires_at, seconds_left, grant_id = match.groups()
    check_time_left(
        timedelta(minutes=90),
        began=began,
        expires_at=parse_time(expires_at),
        seconds_left=int(seconds_left),
    )
    (listed,) = json.loads(sh("ls").out)["grants"]
    assert listed["id"] == grant_id
    assert listed["reason"] == 'say "hi" \\ $(id) ü %41'
    revoked = sh("revoke", grant_id, "--reason", "a&b=c %2f ü")
    assert (revoked.code, revoked.out) == (0, f"revoked: {grant_id}\n")
    grant = json.loads(sh("show", grant_id).out)
    assert grant["status"] == "revoked"
    assert "a&b=c %2f ü" in json.dumps(grant["events"], ensure_ascii=False)
    assert json.loads(sh("ls").out)["grants"] == []
    assert json.loads(sh("ls", "--all").out)["grants"][0]["id"] == grant_id
    assert json.loads(sh("whoami").out)["principal"]["name"] == "alice"


def opened(result: Result) -> str:
    """Give the id of the grant that a knock opened."""
    assert result.code == 0, result
    return result.out.split()[-1]


def test_two_jobs_of_one_address_never_close_each_others_access(sh: Run, as_alice: Api) -> None:
    for first, second in (("1h", "10m"), ("10m", "1h")):
        first_job, second_job = opened(sh("bastion", "--for", first)), opened(sh("bastion", "--for", second))
        result = sh("revoke", second_job)
        assert (result.code, result.out) == (0, f"revoked: {second_job}\n")
        assert re.fullmatch(rf"knock\.sh: still open until 20[-\dT:]+Z by {first_job}\n", result.err)
        assert as_alice.lets_in("203.0.113.7/32", "bastion")
        result = sh("revoke", first_job)
        assert (result.out, result.err) == (f"revoked: {first_job}\n", "")
        assert not as_alice.lets_in("203.0.113.7/32", "bastion")


def test_a_grant_to_renew_is_named(sh: Run, as_alice: Api) -> None:
    old = opened(sh("bastion", "--for", "1h"))
    new = opened(sh("bastion", "--for", "2h", "--renews", old))
    with as_alice.client("alice") as client:
        assert client.grant(new).renews == old
        wait_for(lambda: client.grant(old).status == "superseded")
    result = sh("bastion", "--renews", "nobodys")
    assert (result.code, result.out) == (1, "")
    assert "there is no grant" in result.err


def test_a_knock_that_ends_sooner_says_so_and_grants_of_other_keys_and_sources_do_not_count(
    sh: Run, double: Double, as_alice_on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = opened(sh("bastion", "web", "--for", "2h"))
    result = sh("bastion", "--for", "1h", "--reason", '"id": "x", {[')
    assert re.fullmatch(
        rf"knock\.sh: this ends sooner than what is open already: still open until \S+Z by {longer}\n",
        result.err,
    )
    assert sh("bastion", "--for", "3h").err == ""
    assert longer not in sh("bastion", "--for", "1h", "--renews", longer).err
    assert sh("revoke", *list(double.grants)).err == "", "grants that the same command ends are not reported"
    opened(sh("web", "--for", "2h"))
    assert sh("bastion", "web", "--for", "1h").err == "", "the longer grant opens only a part"
    double.source = "198.51.100.9"
    alices = opened(sh("web"))
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["bob"])
    opened(sh("web"))
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    opened(sh("web"))
    assert sh("revoke", alices).err == ""


def test_a_command_succeeds_though_the_remaining_grants_cannot_be_listed(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    double.faults = [0, (500, {}, {"title": "A fault", "status": 500, "detail": "x"})]
    result = sh("bastion")
    assert (result.code, result.err) == (0, "")
    double.faults = [0, "drop"]
    result = sh("revoke", opened(result))
    assert (result.code, result.err) == (0, "")


def test_a_full_key_a_full_source_a_lost_target_and_a_lost_start_say_what_to_do(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    double.max_live["alice"] = 1
    grant = opened(sh("bastion"))
    result = sh("web", "--wait", "0")
    assert (result.code, result.out) == (4, "")
    assert grant in result.err
    assert "end one with knock.sh revoke ID, or take the place of one with --renews ID" in result.err
    double.max_live["alice"], double.full = 20, {"203.0.113.7/32"}
    assert "must end first" in sh("web").err
    target_gone = {"type": "urn:knock:problem:target-gone", "title": "The target is gone", "detail": "web"}
    double.faults = [(409, {}, target_gone)]
    assert "knock.sh whoami shows what you may open now" in sh("web").err
    lost = {"type": "urn:knock:problem:engine-unavailable", "title": "Try again", "detail": "x"}
    double.faults = [(503, {"Retry-After": "5"}, lost | {"grant_id": grant})]
    result = sh("web")
    assert (result.code, double.calls("POST")) == (1, 5)
    assert (
        f"it may be open all the same: look with knock.sh ls, end it with knock.sh revoke {grant}"
        in result.err
    )


def test_ls_gives_the_grants_of_every_page(sh: Run, as_alice: Api) -> None:
    reasons = ['"]}, "cursor": "none", "grants": [{', "ends with \\", '\\" {[ü:,]} \\\\"', "", "plain"]
    with as_alice.client("alice") as client:
        for number, reason in enumerate(reasons):
            target = ("bastion", "web")[number % 2]
            grant = client.knock(target, duration=f"{number + 1}h", reason=reason or None)
            if number < 3:
                client.revoke(grant.id)
        grants = [grant.json for grant in client.grants(status="all")]
    as_alice.give_pages_of(2)
    result = sh("ls", "--all")
    assert (result.code, result.err) == (0, "")
    answer = json.loads(result.out)
    assert answer["cursor"] is None
    assert [timeless(grant) for grant in answer["grants"]] == [timeless(grant) for grant in grants]
    assert {grant["reason"] for grant in answer["grants"]} >= {*reasons[:3], None, "plain"}
    assert [grant["status"] for grant in json.loads(sh("ls").out)["grants"]] == ["active"] * 2


def timeless(grant: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a grant the field that differs a second later."""
    return {name: value for name, value in grant.items() if name != "seconds_left"}


def test_ls_asks_for_large_pages_and_a_further_one_only_when_there_is_one(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    assert sh("ls").out == '{"grants": [], "cursor": null}\n'
    for target in ("bastion", "web"):
        sh(target)
    double.requests.clear()
    double.page = 1
    assert sh("ls").code == 0
    paths = [request.path for request in double.requests]
    assert paths == ["/prod/grants?limit=100", "/prod/grants?limit=100&cursor=1"]
    assert double.keys["alice"] not in "".join(paths)


def test_ls_prints_nothing_when_a_later_page_does_not_come(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    for target in ("bastion", "web"):
        sh(target)
    double.page = 1
    double.faults = [0, "drop"]
    result = sh("ls")
    assert (result.code, result.out) == (3, "")
    double.faults = [0, (429, {}, {"message": "Too Many Requests"})]
    result = sh("ls")
    assert (result.code, result.out) == (1, "")
    double.faults = [0, (200, {}, {"items": []})]
    result = sh("ls")
    assert (result.code, result.out) == (3, "")
    assert "not from the Knock API" in result.err


def test_ls_stops_after_many_pages_and_says_so(
    shell: list[str], double: Double, as_alice_on_double: None, home: Path, spawn: Run
) -> None:
    text = SCRIPT.read_text()
    assert text.count("most=100") == 1
    short = home / "knock.sh"
    short.write_text(text.replace("most=100", "most=3"))
    double.page = 1
    grant = {**double.knock("alice", {})[2], "reason": "again and again"}
    double.faults = [(200, {}, {"grants": [grant], "cursor": "a+/="})] * 5
    result = spawn(*shell, str(short), "ls")
    assert (result.code, len(double.faults)) == (1, 2)
    assert json.loads(result.out) == {"grants": [grant] * 3, "cursor": "a+/="}
    assert result.err == "knock.sh: there are more grants than these, which are the newest\n"
    assert double.requests[-1].path.endswith("&cursor=a%2b%2f%3d"), "encoded for a URL"


def test_without_targets_all_are_opened_and_options_may_stand_anywhere(sh: Run, as_alice: Api) -> None:
    assert sh().out.startswith("open: bastion web from")
    assert sh("--for", "1h", "open", "bastion").code == 1, "only the first word can be a command"
    assert sh("open", "--for", "1h", "bastion").out.startswith("open: bastion from")


def test_the_source_is_named_by_a_key_that_may(
    sh: Run, as_alice: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = sh("bastion", "--source", "198.51.100.7/32")
    assert refused.code == 1
    assert "knock.sh: The key may not do this: the key may only open" in refused.err
    monkeypatch.setenv("KNOCK_API_KEY", as_alice.keys["ci"])
    assert "from 198.51.100.7/32 until" in sh("bastion", "--source", "198.51.100.7/32").out


def test_refusals_exit_with_1_and_say_why(sh: Run, as_alice: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    result = sh("nosuch")
    assert (result.code, result.out) == (1, "")
    assert "may not open nosuch" in result.err
    assert sh("show", "nobodys").code == 1
    grant = sh("bastion").out.split()[-1]
    result = sh("revoke", "nobodys", "a/b?c", grant)
    assert (result.code, result.out) == (1, f"revoked: {grant}\n"), "it goes on with the other ids"
    monkeypatch.setenv("KNOCK_API_KEY", "no-such-key-00000000")
    result = sh("ls")
    assert (result.code, result.err) == (
        1,
        "knock.sh: the key is not accepted: it is wrong, disabled or another API's\n",
    )


@one_shell
@pytest.mark.parametrize(
    "words",
    [
        ["show"], ["show", "a", "b"], ["ls", "x"], ["whoami", "x"], ["--nonsense"], ["--for"],
        ["ls", "--renews", "x"], ["revoke", "x", "--renews", "y"], ["--renews"],
        ["run", "bastion"], ["run", "bastion", "--"], ["run"], ["ls", "--", "x"], ["ls", "--wait", "1s"],
        ["revoke", "x", "--marked", "y"], ["revoke", "--all", "--marked", "y"], ["ls", "--marked", "y"],
        ["revoke", "--marked", "ü"], ["revoke", "--marked", "a\\b"], ["revoke", "--marked", ""],
        ["run", "bastion", "--renews", "x", "--", "true"], ["revoke", "x", "--all"],
        ["bastion", "--wait", "5"], ["bastion", "--wait", "h"], ["bastion", "--wait", "1h30m"],
        ["ls", "--for", "1h"], ["revoke", "x", "--source", "y"], ["bastion", "--all"], [""], ["a\nb"],
        ["--for", "a\tb"],
    ],
)  # fmt: skip
def test_misuse_exits_with_2_and_sends_nothing(
    sh: Run, double: Double, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    result = sh(*words)
    assert (result.code, result.out) == (2, "")
    assert "knock.sh --help" in result.err
    assert double.requests == []


def test_help_has_examples_and_needs_no_access(sh: Run) -> None:
    result = sh("ls", "--help")
    assert (result.code, result.err) == (0, "")
    assert "examples:\n  knock.sh bastion" in result.out


# ---------------------------------------------------------------------- an API that cannot be reached


def test_no_answer_exits_with_3(sh: Run, double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    double.faults = ["drop"]
    result = sh("bastion")
    assert result.code == 3
    assert "look with knock.sh ls" in result.err
    double.faults = [(200, {}, b"<html>please log in</html>")]
    assert sh("bastion").code == 3
    double.faults = [(302, {"Location": f"{double.url}/whoami"}, b"")]
    assert sh("whoami").code == 3
    double.faults = [(404, {}, b"<html>nothing here</html>")]
    assert sh("whoami").code == 3
    double.faults = [(429, {}, {"message": "Too Many Requests"})]
    result = sh("whoami")
    assert (result.code, result.err) == (1, "knock.sh: the gateway says: Too Many Requests (429)\n")
    monkeypatch.setenv("KNOCK_URL", f"{double.url}/elsewhere")
    result = sh("ls")
    assert result.code == 3
    assert "Is the stage (like /prod) missing?" in result.err
    double.stop()
    assert sh("ls").code == 3


@one_shell
@pytest.mark.parametrize(
    "url",
    [
        "", "api.example.com", "http://api.example.com", "http://127.0.0.1.example.com/",
        "ftp://api.example.com", "https://user@api.example.com", "https://api.example.com/?x",
        "https://api.example.com/#x", "https:// x",
        'https://api.example.com/"',
    ],
)  # fmt: skip
def test_a_url_that_is_malformed_or_would_expose_the_key_is_refused(
    sh: Run, home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("KNOCK_URL", url)
    monkeypatch.setenv("KNOCK_API_KEY", "k" * 30)
    result = sh("ls")
    assert result.code == 2
    assert "KNOCK_URL" in result.err


# ---------------------------------------------------------------------- the key


def stored(home: Path, url: str, key: str) -> Path:
    """Store a URL and a key as a person would, and give the key's file."""
    folder = home / ".config" / "knock"
    folder.mkdir(parents=True)
    (folder / "url").write_text(url + "/knock\n")
    (folder / "key").write_text(key + "\n")
    (folder / "key").chmod(0o600)
    return folder / "key"


def test_a_key_file_that_others_can_write_is_refused_and_one_they_can_read_is_a_warning(
    sh: Run, double: Double, home: Path
) -> None:
    file = stored(home, double.url, double.keys["alice"])
    assert (sh("ls").code, sh("ls").err) == (0, "")
    double.requests.clear()
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        result = sh("ls")
        assert (result.code, result.out) == (2, "")
        assert f"{file} can be changed by others; close it with: chmod 600 {file}" in result.err
    assert double.requests == []
    for mode in (0o640, 0o444):
        file.chmod(mode)
        result = sh("ls")
        assert result.code == 0
        assert f"others on this machine can read the key in {file}" in result.err
        assert sh("ls", "-q").err == ""
    (home / ".config" / "knock" / "url").chmod(0o666)
    assert sh("ls").code == 2, "the key would be sent to whatever URL others write there"


def test_a_key_file_can_be_named(
    sh: Run, double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "a key"
    file.write_text(double.keys["bob"])  # without a line's end
    file.chmod(0o600)
    (home / "link").symlink_to(file)  # as container platforms mount a secret
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", "")
    for name in (file, home / "link"):
        monkeypatch.setenv("KNOCK_KEY_FILE", str(name))
        assert json.loads(sh("whoami").out)["principal"]["name"] == "bob"
    file.write_bytes(double.keys["bob"].encode() + b"\r\n")
    assert sh("whoami", "-q").out == "bob\n", "a file from Windows"
    file.write_text("")
    assert f"{home / 'link'} is empty: the key is missing" in sh("whoami").err
    file.unlink()
    assert f"KNOCK_KEY_FILE is {home / 'link'}, and there is no such file" in sh("whoami").err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_key_file_of_another_user_is_refused(sh: Run, double: Double, home: Path) -> None:
    file = stored(home, double.url, double.keys["alice"])
    os.chown(file, 12345, 12345)
    assert f"{file} belongs to another user, who can change it" in sh("ls").err
    assert double.requests == []


def test_a_stored_key_goes_only_to_the_url_it_was_stored_with(
    sh: Run, double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stored(home, "https://api.example.com/prod", double.keys["alice"])
    monkeypatch.setenv("KNOCK_URL", double.url)
    result = sh("ls")
    assert result.code == 2
    assert (
        f"the key in {file} is for https://api.example.com/prod/knock: it is not sent elsewhere" in result.err
    )
    (file.parent / "url").unlink()
    assert "it is not sent elsewhere" in sh("ls").err
    assert double.requests == []
    (file.parent / "url").write_text(double.url)
    assert sh("ls").code == 0


def test_a_stored_key_that_is_named_goes_only_to_the_url_it_was_stored_with(
    sh: Run, double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: `if is_stored "$file"` -> `if false`."""
    file = stored(home, "https://api.example.com/prod", double.keys["alice"])
    (home / "link").symlink_to(file)
    (home / "second").symlink_to("link")
    (home / "up").symlink_to(file.parent.parent)
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("CDPATH", "/")
    monkeypatch.chdir(home)
    names = [file, home / "link", home / "second", home / "up/knock/key", "second", "up/knock/../knock/key"]
    for name in names:
        monkeypatch.setenv("KNOCK_KEY_FILE", str(name))
        result = sh("whoami")
        assert (result.code, result.out) == (2, ""), name
        assert f"the key in {name} is for https://api.example.com/prod/knock: it is not sent" in result.err
    assert double.requests == []
    (file.parent / "url").write_text(double.url)
    assert sh("whoami", "-q").out == "alice\n"


@one_shell
def test_a_missing_secret_is_named(sh: Run, double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KNOCK_API_KEY", "KNOCK_KEY_FILE"):
        monkeypatch.setenv("KNOCK_URL", double.url)
        monkeypatch.setenv(name, "")
        result = sh("bastion")
        assert (result.code, result.out) == (2, "")
        assert f"{name} is empty" in result.err
        monkeypatch.delenv(name)
    monkeypatch.setenv("KNOCK_URL", "")
    assert "KNOCK_URL is empty" in sh("bastion").err


def test_a_url_of_this_machine_goes_through_no_proxy(
    sh: Run, double: Double, as_alice_on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Double()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("all_proxy", proxy.url)
    assert sh("whoami").code == 0
    assert (len(double.requests), proxy.requests) == (1, [])
    proxy.stop()


def test_the_family_to_call_over_is_chosen(sh: Run, double: Double, as_alice_on_double: None) -> None:
    assert sh("whoami", "-4").code == 0
    for words in (("-6", "-q", "ls"), ("ls", "-6")):
        assert sh(*words).code == 3
    assert len(double.requests) == 1, "the double has no IPv6"
    assert "contradict" in sh("ls", "-6", "-4").err
    assert "contradict" in sh("ls", "-q", "--json").err


@one_shell
@pytest.mark.parametrize("key", ['a"b', "a\\b", "a b", "a\nheader: x"])
def test_a_malformed_key_is_refused_and_not_printed(
    sh: Run, double: Double, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", key)
    result = sh("ls")
    assert result.code == 2
    assert key not in result.err
    assert double.requests == []


def test_the_key_is_in_no_process_list_and_in_no_environment_of_curl(
    shell: list[str], double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    double.faults = [10]
    # The key must not be given to an external printf, since it would be an argument of a process.
    spy = home / "bin" / "printf"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\necho "$*" >>{home}/spied\nprintf "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}{os.pathsep}{os.environ['PATH']}")
    with subprocess.Popen([*shell, str(SCRIPT), "bastion"], stdout=subprocess.PIPE) as running:
        wait_for(lambda: double.calls("POST") == 1)
        listed = subprocess.run(
            ["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True
        ).stdout
        curls = [line.split()[0] for line in listed.splitlines() if "curl" in line and double.url in line]
        environments = [
            Path(f"/proc/{pid}/environ").read_bytes() for pid in curls if Path(f"/proc/{pid}").exists()
        ]
        subprocess.run(["kill", *curls], check=True)
        running.wait(timeout=5)
    assert len(curls) == 1
    assert double.keys["alice"] not in listed
    if shell[-1].endswith("mksh") or (home / "spied").exists():
        assert double.keys["alice"] not in (home / "spied").read_text()
    for environment in environments:
        assert double.keys["alice"].encode() not in environment


def test_a_verbose_curlrc_does_not_print_the_key(sh: Run, as_alice: Api, home: Path) -> None:
    (home / ".curlrc").write_text("verbose\n")
    result = sh("whoami")
    assert (result.code, result.err) == (0, "")


# ---------------------------------------------------------------------- pending grants


def test_a_pending_grant_is_waited_for(
    shell: list[str], sh: Run, double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    sleeps = home / "sleeps"
    spy = home / "spies" / "sleep"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\necho "$1" >>{sleeps}\nexec {shutil.which("sleep")} "$1"\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}{os.pathsep}{os.environ['PATH']}")
    double.opens_after = 0.5
    assert sh("bastion").out.startswith("open: bastion from")
    assert double.calls("GET", "/grants/") == 1, "it polls after a second, when the grant is active"
    if sleeps.exists() or not (shell[-1] == "ash" or shell[-1].endswith("mksh")):  # their sleep is built in
        assert sleeps.read_text() == "1\n"
    double.fails = "PoolExhausted: full"
    result = sh("bastion", "--wait", "1s")
    assert (result.code, result.out) == (4, "")
    assert re.search(r"knock\.sh: grant \S+ is failed: PoolExhausted: full\n", result.err)
    assert double.calls("POST") == 3, "the first knock, this one, and its repetition after a second"
    double.fails = "IngressRefused: no"
    assert sh("bastion", "--wait", "1s").code == 1
    assert double.calls("POST") == 4


PENDING = {"id": "alice_1", "status": "pending"}
DOWN = {"type": "urn:knock:problem:store-unavailable", "title": "Try again", "detail": "no answer"}


def with_a_short_minute(home: Path) -> Path:
    """Write a copy of the script that waits for a pending grant for two seconds in place of a minute.

    With one, the next second may have begun before its first look.
    """
    text = SCRIPT.read_text()
    assert text.count("minute=60") == 1
    short = home / "knock.sh"
    short.write_text(text.replace("minute=60", "minute=2"))
    return short


def test_a_failed_poll_does_not_lose_a_pending_grant(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    double.opens_after = 0.2
    double.faults = [0, "drop", (200, {}, {})]
    result = sh("bastion")
    assert (result.code, result.err) == (0, ""), result
    assert result.out.startswith("open: bastion from")
    assert double.calls("GET", "/grants/") == 3


@one_shell
@pytest.mark.parametrize(
    ("fault", "code", "why"),
    [
        ("drop", 3, r"whether grant alice_1 is open is not known: cannot reach the API at \S+;"),
        ((503, {}, DOWN), 1, "whether grant alice_1 is open is not known: Try again: no answer;"),
        ((200, {}, PENDING), 1, "grant alice_1 is still pending after a minute:"),
    ],
)
def test_a_grant_that_stays_pending_is_named_and_remembered(
    shell: list[str],
    double: Double,
    as_alice_on_double: None,
    home: Path,
    spawn: Run,
    fault: Any,
    code: int,
    why: str,
) -> None:
    def fail_looks(handler: BaseHTTPRequestHandler) -> None:
        double.faults.append(fail_looks)
        if handler.command == "DELETE":
            double.send(handler, 200, {}, PENDING | {"status": "revoked"})
        elif fault == "drop":
            double.drop(handler)
        else:
            double.send(handler, *fault)

    short = with_a_short_minute(home)
    double.faults = [(202, {}, PENDING), fail_looks]
    result = spawn(*shell, str(short), "bastion")
    look = "look with knock.sh show alice_1, end it with knock.sh revoke alice_1"
    assert (result.code, result.out) == (code, "")
    assert re.fullmatch(rf"knock\.sh: {why} {look}\n", result.err), result.err
    assert [file.name for file in home.rglob("sh/*")] == ["alice_1"], "revoke without an id ends it"
    double.faults = [(202, {}, PENDING), fail_looks]
    error = json.loads(spawn(*shell, str(short), "bastion", "--json").err)
    assert (error["grant_id"], error["exit_code"]) == ("alice_1", code)
    double.faults = [(202, {}, PENDING), fail_looks]
    assert spawn(*shell, str(short), "run", "bastion", "--", "true").code == code
    assert double.calls("DELETE", "/grants/alice_1") == 1


@one_shell
def test_a_pending_grant_is_named_at_ctrl_c(
    sh: Run, shell: list[str], double: Double, as_alice_on_double: None, home: Path
) -> None:
    double.opens_after = 60
    command = [*shell, str(SCRIPT), "bastion"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        wait_for(lambda: double.calls("GET") == 1)

        def pressed() -> bool:
            """Press Ctrl-C; dash may lose a signal that comes while it forks, so this is repeated."""
            os.killpg(running.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                running.wait(0.5)
            return running.poll() is not None

        wait_for(pressed)
        _, stderr = running.communicate(timeout=10)
    (grant,) = double.grants
    assert running.returncode == 130
    assert stderr.endswith(f"end it with knock.sh revoke {grant}\n")
    assert sh("revoke").out == f"revoked: {grant}\n"


# ---------------------------------------------------------------------- mistyped words


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("list", "ls"), ("help", "--help"), ("status", "ls"), ("close", "revoke"), ("rvoke", "revoke"),
        ("revkoe", "revoke"), ("whoani", "whoami"), ("shwo", "show"), ("renew", "open with --renews ID"),
    ],
)  # fmt: skip
def test_a_mistyped_command_is_no_target(
    spawn: Run, double: Double, as_alice_on_double: None, word: str, meant: str
) -> None:
    result = spawn("dash", str(SCRIPT), word)
    assert (result.code, result.out, double.requests) == (2, "", [])
    assert f"there is no command {word}; did you mean {meant}? A target of that name:" in result.err
    assert spawn("dash", str(SCRIPT), "open", word).code == 1, "the API knows no such target"


@one_shell
def test_a_word_unlike_every_command_is_a_target(sh: Run, double: Double, as_alice_on_double: None) -> None:
    double.ports |= {"shop": ["80/tcp"], "lab": ["80/tcp"]}
    assert sh("shop").out.startswith("open: shop from")
    assert sh("lab").out.startswith("open: lab from")
    result = sh("watch")
    assert (result.code, double.calls("POST")) == (2, 2)
    assert "knock.sh has no watch" in result.err


@one_shell
def test_commas_and_a_number_without_a_unit_are_usage_errors(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    result = sh("bastion,web")
    assert result.code == 2
    assert "targets are separated by spaces: bastion web" in result.err
    result = sh("bastion", "--for", "5")
    assert result.code == 2
    assert "--for 5: 5 what? Say 5m, 5h or 5s" in result.err
    assert double.requests == []


# ---------------------------------------------------------------------- output for programs


def test_quiet_prints_ids_and_json_the_answer_of_the_api(sh: Run, as_alice: Api) -> None:
    quiet = sh("bastion", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    grant_json = json.loads(sh("bastion", "--for", "1h", "--json").out)
    assert (grant_json["status"], grant_json["source"]) == ("active", "203.0.113.7/32")
    ids = [grant_json["id"], quiet.out.strip()]
    assert sh("ls", "-q").out.split() == ids
    assert sh("show", "-q", ids[0]).out.split() == [ids[0]]
    assert sh("whoami", "-q").out == "alice\n"
    ended = json.loads(sh("revoke", "--json", ids[0], "nobodys").out)
    assert [(grant["id"], grant["status"]) for grant in ended["grants"]] == [(ids[0], "revoked")]
    assert sh("revoke", "-q", ids[1]).out.split() == [ids[1]]


def test_with_json_errors_are_json(
    sh: Run, double: Double, as_alice_on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*words: str) -> dict[str, Any]:
        result = sh(*words, "--json")
        assert result.out == ""
        answer: dict[str, Any] = json.loads(result.err)
        assert answer["exit_code"] == result.code
        return answer

    refused = error("nosuch")
    assert (refused["status"], refused["error"], refused["exit_code"]) == (403, "NotAllowed", 1)
    assert refused["detail"] == "the key may not open nosuch; it may open: bastion, web"
    full = {"type": "urn:knock:problem:pool-exhausted", "title": "There is no room", "detail": 'a "b" \\'}
    double.faults = [(409, {}, full)]
    answer = error("bastion")
    assert (answer["status"], answer["error"], answer["exit_code"]) == (409, "PoolExhausted", 4)
    assert answer["detail"] == full["detail"]
    down = {"type": "urn:knock:problem:store-unavailable", "title": "Try again", "detail": "x"}
    double.faults = [(503, {"Retry-After": "5"}, down | {"grant_id": "a_b"})]
    answer = error("bastion")
    assert (answer["status"], answer["error"], answer["exit_code"]) == (503, "Unavailable", 1)
    assert answer["grant_id"] == "a_b"
    double.faults = ["drop"]
    assert error("bastion")["error"] == "AnswerLost"
    double.faults = [(200, {}, b"<html>")]
    assert error("ls")["error"] == "UnexpectedAnswer"
    assert error("rvoke")["error"] == "UsageError"
    monkeypatch.setenv("KNOCK_API_KEY", "x" * 30)
    assert error("ls")["error"] == "KeyRejected"
    monkeypatch.setenv("KNOCK_API_KEY", "")
    assert error("ls")["error"] == "ConfigurationError"


def test_a_json_error_is_not_cut_within_an_escape(sh: Run, double: Double, as_alice_on_double: None) -> None:
    """Break it: print the members as `cut` leaves them."""
    forged = ', "error": "Forged", "grant_id": "$(id)", "z": "'
    for tail in ("\\\\", "\\\\\\\\", '\\"', "\\u0041", "\\\\u004"):
        for length in range(1994, 2001):
            title = "a" * length + tail
            body = f'{{"type": "x:not-allowed", "title": "{title}", "detail": {json.dumps(forged)}}}'
            double.faults = [(403, {}, body.encode())]
            answer = json.loads(sh("ls", "--json").err)
            assert (answer["error"], answer["detail"]) == ("NotAllowed", forged), (tail, length)
            assert len(answer) == 6, answer
            whole = json.loads(f'"{title}"')
            assert whole.startswith(answer["title"])
            assert len(answer["title"]) >= length


def test_an_id_in_a_command_is_no_shell_syntax_and_no_option(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    """Break it: print the id as it is."""
    down = {"type": "urn:knock:problem:store-unavailable", "title": "Try again", "detail": "x"}
    for name, printed in (("x; id #", "ID"), ("$(id)", "ID"), ("--all", "ID"), ("a_b", "a_b")):
        double.faults = [(503, {"Retry-After": "5"}, down | {"grant_id": name})]
        assert sh("bastion").err.endswith(f"end it with knock.sh revoke {printed}\n")


def test_a_line_break_of_an_answer_begins_no_line(sh: Run, double: Double, as_alice_on_double: None) -> None:
    forged = "no\nknock.sh: mend it with:\r\n    id"
    for body in (
        json.dumps({"type": "x:not-allowed", "title": forged, "detail": forged}),
        f'{{"type": "x:not-allowed", "title": "{forged}", "detail": "{forged}"}}',  # no JSON, strictly
        json.dumps({"message": forged}),
    ):
        double.faults = [(400, {}, body.encode())]
        assert len(sh("whoami").err.splitlines()) == 1, body


def test_a_full_pool_is_waited_for(sh: Run, double: Double, as_alice_on_double: None) -> None:
    full = {"type": "urn:knock:problem:pool-exhausted", "title": "There is no room", "detail": "bastion"}
    double.faults = [(409, {}, full)]
    result = sh("bastion", "--wait", "5m")
    message = "knock.sh: not now (There is no room: bastion); trying again for 300 s\n"
    assert (result.code, result.err) == (0, message)
    double.faults = [(503, {}, {"title": "Try again", "detail": "x"})]
    assert sh("bastion", "-q", "--wait", "1s").code == 0
    lost = {"title": "Try again", "detail": "x", "grant_id": "a_b"}
    double.faults = [(503, {}, lost)]
    assert sh("bastion", "--wait", "1s").code == 1, "a knock that may have opened is not repeated"
    double.faults = [(409, {}, full)]
    result = sh("bastion")
    assert (result.code, result.out) == (4, "")
    assert "knock.sh: There is no room: bastion\n" in result.err
    assert "--wait 5m" in result.err


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_the_grant_is_named_on_standard_error_when_the_output_cannot_be_written(
    shell: list[str], sh: Run, double: Double, as_alice_on_double: None, spawn: Run, redirection: str
) -> None:
    for words in ((), ("-q",), ("--json",)):
        result = spawn("/bin/sh", "-c", f'"$@" {redirection}', "sh", *shell, str(SCRIPT), "bastion", *words)
        grant = [*double.grants][-1]
        assert result.code == 1
        assert f"end what is open with knock.sh revoke {grant}" in result.err


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&-"])
def test_a_closed_standard_error_or_input_changes_no_exit_code(
    shell: list[str], sh: Run, double: Double, as_alice_on_double: None, spawn: Run, redirection: str
) -> None:
    command = [*shell, str(SCRIPT), "run", "bastion", "-q", "--", "sh", "-c", "echo done; exit 7"]
    assert spawn("/bin/sh", "-c", f'"$@" {redirection}', "sh", *command) == Result(7, "done\n", "")
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"]
    command = [*shell, str(SCRIPT), "ls", "-q"]
    assert spawn("/bin/sh", "-c", f'"$@" {redirection}', "sh", *command) == Result(0, "", "")
    double.faults = [(409, {}, {"type": "urn:knock:problem:pool-exhausted", "title": "x"})]
    command = [*shell, str(SCRIPT), "bastion", "--json"]
    assert spawn("/bin/sh", "-c", f'"$@" {redirection}', "sh", *command).code == 4


# ---------------------------------------------------------------------- revoke


def test_revoke_without_an_id_ends_the_grants_opened_by_hand_here(
    sh: Run, double: Double, as_alice_on_double: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = sh("revoke")
    assert (result.code, result.out) == (1, "")
    assert "nothing that was opened from here is live" in result.err
    by_hand = {opened(sh("bastion")), opened(sh("web"))}
    of_jobs = {sh("bastion", "-q").out.strip(), json.loads(sh("bastion", "--json").out)["id"]}
    double.grants[opened(sh("bastion", "--for", "1h"))]["end"] = double.now()
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["bob"])
    result = sh("revoke")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "nothing to revoke" in result.err, "grants of another key are passed over, and stay remembered"
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    result = sh("revoke", "--reason", "done")
    assert result.code == 0
    assert {line.split()[1] for line in result.out.splitlines()} == by_hand
    assert {grant["id"] for grant in double.live("alice")} == of_jobs
    assert sh("revoke").code == 1
    monkeypatch.delenv("HOME")
    opened(sh("bastion"))
    monkeypatch.setenv("HOME", "/dev/null")
    assert sh("bastion").err == "", "a grant that cannot be remembered is no error"


def test_revoke_all_ends_the_keys_own_grants_only(
    sh: Run, double: Double, as_alice_on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alices = opened(sh("bastion"))
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    own = {opened(sh("web")), opened(sh("bastion"))}
    double.page = 1
    result = sh("revoke", "--all")
    assert result.code == 0
    assert {line.removeprefix("revoked: ") for line in result.out.splitlines()} == own
    assert double.grants[alices]["status"] == "active"
    result = sh("revoke", "--all")
    assert (result.code, result.out) == (1, "")
    assert "nothing to revoke: this key has no live grant" in result.err


# ---------------------------------------------------------------------- run


def job(shell: list[str], *words: str, **more: Any) -> subprocess.Popen[str]:
    """Start a job in the background."""
    return subprocess.Popen(
        [*shell, str(SCRIPT), "run", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_run_opens_a_grant_for_a_command_and_ends_it(sh: Run, as_alice: Api) -> None:
    result = sh("run", "bastion", "--for", "1h", "--reason", "nightly job", "--", "sh", "-c",
              'read line; echo "got $line"; echo "$KNOCK_API_KEY" >&2; exit 7', stdin="words\n")  # fmt: skip
    assert (result.code, result.out) == (7, "got words\n")
    first, key, last = result.err.splitlines()
    assert re.match(r"knock\.sh: open: bastion from 203\.0\.113\.7/32 until ", first)
    assert key == as_alice.keys["alice"], "the command has the environment of run"
    grant = first.split()[-1]
    assert last == f"knock.sh: ended: {grant}"
    closed = json.loads(sh("show", grant).out)
    assert (closed["status"], closed["reason"]) == ("revoked", "nightly job")
    assert sh("revoke").code == 1, "the grant of a job is not one opened by hand"


def test_run_opens_nothing_for_a_command_that_is_not_there(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    for command, code, why in (
        ("no-such-command", 127, "is not found"), ("./no-such", 127, "is not found"),
        ("/dev/null", 126, "may not be executed"), ("/", 126, "may not be executed"),
    ):  # fmt: skip
        result = sh("run", "bastion", "--", command)
        assert (result.code, result.err) == (code, f"knock.sh: {command} {why}; nothing was opened\n")
    assert sh("run", "nosuch", "--", "echo", "not run").out == ""
    assert list(double.grants) == []


def test_run_ends_its_grant_when_the_command_cannot_be_started(
    sh: Run, double: Double, as_alice_on_double: None, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    assert sh("run", "-q", "bastion", "--", str(broken)).code in (126, 127)
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_passes_signals_on_and_ends_its_grant(
    shell: list[str],
    sh: Run,
    double: Double,
    as_alice_on_double: None,
    number: signal.Signals,
) -> None:
    waits = "".join(f"trap 'echo got {name}; exit 3' {name}; " for name in ("INT", "TERM", "HUP"))
    with job(
        shell, "bastion", "--", "sh", "-c", waits + "echo ready; while :; do sleep 0.1; done"
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        output = running.stdout.read()
    name = number.name.removeprefix("SIG")
    if shell[-1] == "ash" and name == "INT":
        name = "TERM"  # its env cannot let a command in the background have SIGINT
    assert (running.returncode, output) == (3, f"got {name}\n")
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"]


def test_run_that_is_stopped_during_its_knock_ends_the_grant(
    shell: list[str], sh: Run, double: Double, as_alice_on_double: None
) -> None:
    double.faults = [0.5]
    with job(shell, "bastion", "--", "echo", "not run", start_new_session=True) as running:
        wait_for(lambda: double.calls("POST") == 1)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal sends it: to curl too
        out, _ = running.communicate(timeout=10)
    assert (running.returncode, out) == (130, "")
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"]


def at_a_terminal(command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a program at a terminal of its own. Gives its process, and a descriptor of the terminal."""
    terminal, program_end = pty.openpty()
    running = subprocess.Popen(
        [SETSID, "--ctty", *command], stdin=program_end, stdout=program_end, stderr=program_end
    )
    os.close(program_end)
    return running, terminal


def test_run_at_a_terminal_is_ended_by_ctrl_c(
    shell: list[str], sh: Run, double: Double, as_alice_on_double: None
) -> None:
    running, terminal = at_a_terminal([*shell, str(SCRIPT), "run", "bastion", "--", "cat"])
    os.write(terminal, b"words\n")  # the command has the terminal for its input
    output = b""
    while output.count(b"words") < 2:  # the terminal's echo is the first
        output += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    assert running.wait(timeout=20) == 130
    os.close(terminal)
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"]


def test_the_grant_of_a_killed_run_expires(double: Double, as_alice_on_double: None) -> None:
    with job(["dash"], "bastion", "--for", "2s", "--", "sleep", "60", start_new_session=True) as running:
        wait_for(lambda: double.live("alice"))
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate(timeout=10)
    (grant,) = double.grants.values()
    assert grant["status"] == "active"
    wait_for(lambda: double.now() > grant["end"])
    double.update_grants()
    assert grant["status"] == "expired"


def test_run_repeats_a_revocation_whose_answer_is_lost(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    double.faults = [0, "drop"]
    result = sh("run", "-q", "bastion", "--", "true")
    assert (result.code, result.err) == (0, "")
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"]
    double.faults = [0, "drop", "drop", "drop"]
    result = sh("run", "-q", "bastion", "--", "true")
    assert result.code == 0
    assert re.search(
        r"grant \S+ could not be ended: end it with knock.sh revoke \S+, or leave it", result.err
    )


@one_shell
@pytest.mark.parametrize("words", [(), ("run",)])
def test_a_knock_that_a_proxy_answers_is_reported_as_perhaps_open(
    sh: Run, double: Double, as_alice_on_double: None, words: tuple[str, ...]
) -> None:
    command = ("--", "echo", "not run") if words else ()
    for status, answer, code in (
        (200, b"<html>please log in</html>", 3), (200, {}, 3), (502, b"<html>bad gateway</html>", 3),
        (503, b"<html>", 3), (504, {"message": "Endpoint request timed out"}, 1),
    ):  # fmt: skip
        double.faults = [(status, {}, answer)]
        result = sh(*words, "bastion", "--wait", "1s", *command)
        assert (result.code, result.out) == (code, "")
        assert "whether something is open now is not known: look with knock.sh ls, end it with" in result.err
    for status, answer in ((404, b"<html>"), (302, b""), (503, {"message": "Service Unavailable"})):
        double.faults = [(status, {}, answer)]
        assert "not known" not in sh(*words, "bastion", *command).err
    assert double.calls("POST") == 8


def test_revoke_marked_ends_the_keys_own_grants_whose_reason_ends_with_the_mark(
    sh: Run, double: Double, as_alice_on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alices = opened(sh("bastion", "--reason", "x [job 1]"))
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    marked = {opened(sh("web", "--reason", "[job 1]")), opened(sh("web", "--reason", 'a "b" ü [job 1]'))}
    unmarked = {opened(sh("web", "--reason", text)) for text in ("[job 11]", "[job 1] x", "[job 1", " ")}
    double.page = 1
    result = sh("revoke", "--marked", "[job 1]")
    assert result.code == 0
    assert {line.removeprefix("revoked: ") for line in result.out.splitlines()} == marked
    assert {alices, *unmarked} == {grant["id"] for grant in double.grants.values() if is_live(grant)}


@one_shell
def test_revoke_marked_looks_again_for_a_grant_listed_late_and_finding_none_is_no_error(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    late = opened(sh("bastion", "--reason", "x [job 2]"))
    double.faults = [0, (200, {}, {"grants": [], "cursor": None})]
    assert sh("revoke", "--marked", "[job 2]").out == f"revoked: {late}\n"
    result = sh("revoke", "--marked", "[job 2]")
    message = "knock.sh: no live grant of this key has a reason that ends with [job 2]\n"
    assert result == Result(0, "", message)
    double.faults = [0, "drop"]
    assert sh("revoke", "--marked", "[job 2]").code == 3


def test_run_ends_a_grant_that_may_have_been_opened(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    grant = opened(sh("bastion"))
    lost = {"type": "urn:knock:problem:engine-unavailable", "title": "Try again", "detail": "x"}
    double.faults = [(503, {}, lost | {"grant_id": grant})]
    assert sh("run", "bastion", "--", "echo", "not run").code == 1
    assert double.grants[grant]["status"] == "revoked"


@pytest.mark.parametrize("api", ["stack"], indirect=True)
def test_jobs_at_once_and_a_shorter_one_begun_last_never_close_each_others_access(
    as_alice: Api, tmp_path: Path
) -> None:
    program("dash", "apt install dash")

    def start(name: str, lasting: str) -> subprocess.Popen[str]:
        waits = f'echo in; while ! [ -e "{tmp_path}/{name}" ]; do sleep 0.1; done'
        return job(["dash"], "bastion", "--for", lasting, "-q", "--", "sh", "-c", waits)

    def end(name: str, running: subprocess.Popen[str]) -> None:
        (tmp_path / name).touch()
        _, stderr = running.communicate(timeout=30)
        assert (running.returncode, stderr) == (0, "")

    def is_in(running: subprocess.Popen[str]) -> None:
        assert running.stdout is not None
        assert running.stdout.readline() == "in\n"

    ten = {f"job{number}": start(f"job{number}", "1h") for number in range(10)}
    for running in ten.values():
        is_in(running)
    for name, running in ten.items():
        assert as_alice.lets_in("203.0.113.7/32", "bastion")
        end(name, running)
    assert not as_alice.lets_in("203.0.113.7/32", "bastion")
    four = {}
    for name, lasting in (("a", "40m"), ("b", "30m"), ("c", "20m"), ("d", "1s")):
        four[name] = start(name, lasting)
        is_in(four[name])
    with as_alice.client("alice") as client:
        wait_for(lambda: len(list(client.grants())) == 3)
    for name, running in reversed(four.items()):
        assert as_alice.lets_in("203.0.113.7/32", "bastion")
        end(name, running)
    assert not as_alice.lets_in("203.0.113.7/32", "bastion")


# ---------------------------------------------------------------------- interrupted, and untrusted answers


def test_ctrl_c_before_the_answer_says_that_a_grant_may_be_open(
    shell: list[str], sh: Run, double: Double, as_alice_on_double: None
) -> None:
    double.faults = [2]
    command = [*shell, str(SCRIPT), "bastion"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        wait_for(lambda: double.calls("POST") == 1)
        os.killpg(running.pid, signal.SIGINT)
        _, stderr = running.communicate(timeout=10)
    assert running.returncode == 130
    assert "interrupted; something may be open all the same: look with knock.sh ls" in stderr


def test_a_revocation_answered_without_the_grant_is_an_error(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    grant = opened(sh("bastion"))
    for words in (("revoke",), ("revoke", grant)):
        double.faults = [(200, {}, {"login": "please"})]
        result = sh(*words)
        assert (result.code, result.out) == (3, "")
        assert f"answered with something that is not grant {grant}" in result.err
    assert sh("revoke").out == f"revoked: {grant}\n", "it is still remembered"


NASTY = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202e".encode() + b"\x9b\xff\x00\r\x08"


def test_no_answer_brings_a_control_character_to_a_terminal(
    shell: list[str], sh: Run, double: Double, as_alice_on_double: None, home: Path
) -> None:
    opened(sh("bastion"))
    (grant,) = double.grants.values()
    nasty = json.dumps(double.as_json(grant)).encode().replace(b"bastion", b"bas" + NASTY + b"tion")
    nasty = nasty.replace(b'"reason": null', b'"reason": "' + NASTY + b'"')
    title = b'{"title": "' + NASTY + b'", "detail": "' + NASTY + b'", "grant_id": "' + NASTY + b'"}'
    listing = b'{"grants": [' + nasty + b'], "cursor": null}'
    no_grant = nasty.replace(b'"id": "alice_', b'"id": "../' + NASTY)
    answers = [
        (("bastion",), 201, nasty, 0), (("bastion",), 409, title, 1), (("bastion",), 200, no_grant, 3),
        (("ls",), 200, listing, 0), (("ls", "-q"), 200, listing, 0), (("show", "x"), 200, nasty, 0),
        (("whoami",), 200, NASTY, 3), (("whoami",), 500, NASTY, 3),
        (("whoami",), 200, b"{" + NASTY + b"}", 0), (("whoami",), 403, b'{"message": "' + NASTY + b'"}', 1),
        (("bastion", "--json"), 503, title, 1),
    ]  # fmt: skip
    for words, status, answer, code in answers:
        double.faults = [(status, {}, answer)]
        running, terminal = at_a_terminal([*shell, str(SCRIPT), *words])
        output = b""
        with suppress(OSError):  # Linux's error when no process has the program's end open
            while chunk := os.read(terminal, 10000):
                output += chunk
        os.close(terminal)
        assert running.wait(timeout=10) == code, (words, status, output)
        assert re.fullmatch(rb"[\x20-\x7e\t\r\n]*", output), (words, status, output)
        assert b"\r" not in output.replace(b"\r\n", b"")
    assert sorted(file.name for file in home.rglob("sh/*")) == [*double.grants]


# ---------------------------------------------------------------------- the script itself


def test_shellcheck_finds_nothing() -> None:
    path = shutil.which("shellcheck")
    need(path, "shellcheck is not installed: apt install shellcheck")
    result = subprocess.run(
        ["shellcheck", SCRIPT],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_the_header_alone_is_enough_for_existing_users(api: Api, home: Path, spawn: Run) -> None:
    result = spawn("curl", "-s", "-H", f"x-api-key: {api.keys['alice']}", f"{api.url}/knock")
    grant = json.loads(result.out)
    assert (grant["status"], grant["source"]) == ("active", "203.0.113.7/32")
    assert [target["name"] for target in grant["targets"]] == ["bastion", "web"]
