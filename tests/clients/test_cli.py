"""The `knock` program: what it prints where, and how it exits."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CLIENTS, ROOT, Api, Done, wait_until
from tests.clients.double import Double

Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


def test_open_says_in_one_line_what_is_open_from_where_and_until_when(run: Run) -> None:
    done = run("bastion", "--for", "8h")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(
        r"open: bastion \(22/tcp\) from 203\.0\.113\.7/32 until (\w{3} \d\d \w{3} )?\d\d:\d\d:\d\d UTC "
        r"\((8 h|7 h 59 min)\)\n",
        done.out,
    )


def test_a_knock_without_targets_opens_all_the_key_may_open(run: Run) -> None:
    assert "open: bastion (22/tcp), web (80/tcp, 443/tcp) from" in run().out


def test_a_target_named_like_a_command_is_opened_with_open(run: Run, double: Double) -> None:
    double.ports["ls"] = ["22/tcp"]
    assert run("open", "ls").out.startswith("open: ls (22/tcp)")
    assert run("ls").out.startswith("GRANT")
    assert run("--for", "1h", "--", "ls").out.startswith("open: ls (22/tcp)")


def test_the_command_is_found_behind_options_and_their_values(run: Run) -> None:
    grant = run("-q", "--reason", "revoke", "bastion").out
    assert grant.startswith("alice_")
    assert run("--quiet", "--profile", "revoke", "ls").out == grant
    assert run("--limit", "1", "-q", "ls").out == grant


def test_the_reason_the_duration_and_the_source_are_sent(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["ci"])
    done = run("web", "--for", "90m", "--reason", "on call", "--source", "198.51.100.0/28", "--json")
    grant = json.loads(done.out)
    assert (grant["source"], grant["reason"], grant["targets"][0]["name"]) == (
        "198.51.100.0/28",
        "on call",
        "web",
    )
    assert 5395 <= grant["seconds_left"] <= 5400


# ---------------------------------------------------------------------- seeing and ending


def test_ls_shows_a_table_and_ids_when_quiet(run: Run) -> None:
    first, second = run("-q", "bastion").out.strip(), run("-q", "web").out.strip()
    lines = run("ls").out.splitlines()
    assert lines[0].split() == ["GRANT", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "UNTIL", "LEFT"]
    assert lines[1].startswith(second)
    assert run("ls", "-q").out.splitlines() == [second, first]
    assert run("ls", "-q", "--target", "web").out.splitlines() == [second]
    assert run("ls", "-q", "--limit", "1").out.splitlines() == [second]


def test_ls_of_nothing_is_no_error_and_prints_no_data(run: Run) -> None:
    done = run("ls")
    assert (done.code, done.out, done.err) == (0, "", "knock: no live grants\n")
    done = run("ls", "--status", "expired")
    assert (done.code, done.out, done.err) == (0, "", "knock: no such grants\n")
    assert json.loads(run("ls", "--json").out) == {"grants": []}
    assert run("ls", "-q").err == ""


def test_ls_all_shows_the_ended_ones_too(run: Run) -> None:
    run("bastion")
    run("revoke")
    assert run("ls").out == ""
    assert " revoked " in run("ls", "--all").out
    assert " revoked " in run("ls", "--status", "revoked").out


def test_show_prints_a_grant_and_its_events(run: Run) -> None:
    grant = run("-q", "bastion", "--reason", "on call").out.strip()
    run("revoke", grant, "--reason", "done")
    lines = run("show", grant).out.splitlines()
    assert lines[0] == f"grant:     {grant}"
    assert "reason:    on call" in lines
    assert "targets:   bastion (22/tcp)" in lines
    assert any(line.startswith("ended:") and line.endswith(" by alice") for line in lines)
    assert [line.split()[2] for line in lines[-3:]] == ["requested", "authorized", "revoked"]
    assert lines[-1].endswith("revoked by alice (reason: done)")
    assert run("show", grant, "-q").out == f"{grant}\n"
    assert json.loads(run("show", grant, "--json").out)["events"][0]["event"] == "requested"


def test_revoke_ends_grants_by_id_the_only_one_or_all(run: Run) -> None:
    first, second = run("-q", "bastion").out.strip(), run("-q", "web").out.strip()
    done = run("revoke", first)
    assert done.out == f"revoked: bastion (22/tcp) from 203.0.113.7/32, grant {first}\n"
    assert run("revoke", "-q").out == f"{second}\n"
    run("bastion"), run("web")
    ended = json.loads(run("revoke", "--all", "--json").out)["grants"]
    assert [grant["status"] for grant in ended] == ["revoked", "revoked"]
    done = run("revoke", "--all")
    assert (done.code, done.out, done.err) == (0, "", "knock: nothing to revoke: you have no live grant\n")


def test_revoke_without_an_id_asks_which_when_there_are_several(run: Run) -> None:
    first, second = run("-q", "bastion").out.strip(), run("-q", "web").out.strip()
    done = run("revoke")
    assert done.code == 2
    assert "several grants are live: name one, or say --all" in done.err
    assert first in done.err
    assert second in done.err
    assert len(run("ls", "-q").out.splitlines()) == 2, "nothing was ended"


def test_a_grant_that_is_about_to_be_superseded_is_not_counted(run: Run, double: Double) -> None:
    old, new = run("-q", "bastion").out.strip(), run("-q", "bastion").out.strip()
    double.grants[old]["status"] = "active"  # as in the moment before the real API ends it
    (renewed,) = json.loads(run("renew", "--json").out)["grants"]
    double.grants[new]["status"] = "active"
    assert run("revoke", "-q").out == f"{renewed['id']}\n"


def test_an_operator_who_revokes_all_ends_only_their_own(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    hers = run("-q", "bastion").out.strip()
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    own = run("-q", "web").out.strip()
    assert run("revoke", "--all", "-q").out == f"{own}\n"
    assert double.grants[hers]["status"] == "active"


def test_one_refusal_among_several_is_shown_and_the_others_go_on(run: Run) -> None:
    grant = run("-q", "bastion").out.strip()
    done = run("revoke", "nobodys", grant)
    assert done.code == 1
    assert done.out.startswith("revoked: bastion")
    assert done.err == "knock: No such grant: there is no grant 'nobodys' that this key may see\n"


def test_what_was_revoked_before_the_api_was_gone_is_told(run: Run, double: Double) -> None:
    first, second = run("-q", "bastion").out.strip(), run("-q", "web").out.strip()
    double.faults = [None, *["drop"] * 4]  # one more: the kept connection costs no try
    done = run("revoke", first, second)
    assert (done.code, done.out.count("revoked: ")) == (3, 1)
    assert first in done.out
    double.faults = [None, *["drop"] * 4]  # one more: the kept connection costs no try
    done = run("revoke", first, second, "--json")
    assert [grant["id"] for grant in json.loads(done.out)["grants"]] == [first]
    assert json.loads(done.err)["exit_code"] == 3


def test_renew_knocks_again_for_what_is_open_from_here(run: Run, double: Double) -> None:
    old = run("-q", "bastion", "--for", "2h", "--reason", "on call").out.strip()
    double.source = "198.51.100.9"
    run("web")
    done = run("renew", "--json")
    (new,) = json.loads(done.out)["grants"]
    assert new["targets"][0]["name"] == "web", "the other is open from another address"
    double.source = "203.0.113.7"
    (new,) = json.loads(run("renew", "--json").out)["grants"]
    assert (new["targets"][0]["name"], new["reason"]) == ("bastion", "on call")
    assert 7195 <= new["seconds_left"] <= 7200
    assert double.grants[old]["status"] == "superseded"
    assert "(4 h)" in run("renew", new["id"], "--for", "4h").out


def test_renew_of_nothing_here_says_where_something_is_open(run: Run, double: Double) -> None:
    assert run("renew").err == "knock: nothing is open from 203.0.113.7/32: knock to open\n"
    run("bastion")
    double.source = "198.51.100.9"
    done = run("renew")
    assert done.code == 1
    assert "nothing is open from 198.51.100.9/32, only from 203.0.113.7/32 (renew --all)" in done.err
    done = run("renew", "--all")
    assert (done.code, done.out) == (1, ""), "alice's key may not name another source"
    assert "knock:any-source" in done.err


def test_whoami_tells_who_from_where_and_what_is_allowed(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run("whoami").out.splitlines()
    assert lines == [
        f"alice (id-alice), seen from 203.0.113.7/32 by {double.url}",
        "may open bastion (22/tcp), web (80/tcp, 443/tcp)",
        "for 1d at most, 1d if nothing is said",
    ]
    assert run("whoami", "-q").out == "alice\n"
    assert json.loads(run("whoami", "--json").out)["principal"] == {"id": "id-alice", "name": "alice"}
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["ci"])
    assert "from another source too, up to /28 (IPv4), /128 (IPv6)" in run("whoami").out
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    assert "as an operator" in run("whoami").out
    told = double.whoami("alice") | {
        "faults": ["the tag cannot be read"],
        "targets": [],
        "max_duration": None,
    }
    double.faults = [(200, {}, told)]
    done = run("whoami")
    assert "may open nothing" in done.out
    assert done.err == "knock: the tag cannot be read\n"


# ---------------------------------------------------------------------- errors, exit codes, streams


def test_exit_codes_are_as_documented(run: Run, double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("bastion").code == 0
    assert run("nosuch").code == 1
    assert run("show").code == 2
    assert run("ls", "--nonsense").code == 2
    assert run("ls", "--limit", "0").code == 2
    assert run("ls", "--all", "--status", "live").code == 2
    assert run("revoke", "x", "--all").code == 2
    assert run("renew", "x", "--all").code == 2
    monkeypatch.setenv("KNOCK_API_KEY", "no-such-key-00000000")
    assert run("ls").code == 1
    monkeypatch.setenv("KNOCK_URL", double.url + "/elsewhere")
    assert run("ls").code == 3
    double.stop()
    monkeypatch.setenv("KNOCK_URL", double.url)
    done = run("ls")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("knock: 127.0.0.1:")
    monkeypatch.delenv("KNOCK_URL")
    done = run("ls")
    assert done.code == 2
    assert "run `knock login`, or set KNOCK_URL and KNOCK_API_KEY" in done.err


GRANT = {
    *("id", "status", "principal", "source", "targets", "requested_at", "expires_at", "seconds_left"),
    *("reason", "ended_at", "ended_by", "execution_arn"),
}  # fmt: skip
WHOAMI = {
    *("principal", "source", "targets", "default_duration", "max_duration", "any_source", "operator"),
    "faults",
}  # fmt: skip


def test_the_fields_of_json_are_those_that_the_page_promises(
    run: Run, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", api.url)
    monkeypatch.setenv("KNOCK_API_KEY", api.keys["alice"])
    monkeypatch.setattr("sys.stdin", io.StringIO(api.keys["alice"] + "\n"))

    def said(*words: str) -> dict[str, Any]:
        done = run(*words, "--json")
        told: dict[str, Any] = json.loads(done.out or done.err)
        return told

    opened = said("bastion")
    grants = [said("ls"), said("renew"), said("revoke")]
    assert set(opened) == GRANT
    assert set(said("show", opened["id"])) == GRANT | {"events"}
    assert [set(told) for told in grants] == [{"grants"}] * 3
    assert [set(told["grants"][0]) >= GRANT for told in grants] == [True] * 3
    assert set(said("whoami")) == WHOAMI
    assert set(said("login", "--url", api.url, "--no-keyring")) == {"profile", "url", "principal", "key_in"}
    (profile,) = said("profiles")["profiles"]
    assert set(profile) == {"name", "url", "key_in", "current"}
    assert set(said("logout")) == {"profile"}
    assert set(said("ssh-config", "bastion")) == {"hosts", "config"}
    assert set(said("completion", "bash")) == {"shell", "script"}
    assert {"error", "exit_code", "detail", "status", "type", "title"} <= set(said("show", "nope"))

    page = (ROOT / "docs" / "knock" / "scripts.md").read_text()
    others = {"events", "error", "exit_code", "detail", "hosts", "config", "shell", "script"}
    for name in GRANT | WHOAMI | set(profile) | others:
        assert f"`{name}`" in page


def test_what_is_text_for_other_programs_is_the_same_text_in_json(run: Run) -> None:
    for words in (["ssh-config", "bastion", "db", "--for", "8h"], ["completion", "zsh"]):
        told = json.loads(run(*words, "--json").out)
        text = told.pop("config", None) or told.pop("script")
        assert text == run(*words).out
        assert told in ({"hosts": ["bastion", "db"]}, {"shell": "zsh"})
    done = run("ssh-config", "no host", "--json")
    assert (done.code, done.out, json.loads(done.err)["error"]) == (2, "", "ConfigurationError")
    for command in ("ssh-config", "completion"):
        assert run(command, "bash", "--quiet").code == 2


def test_with_json_an_error_is_json_on_standard_error(run: Run, double: Double) -> None:
    done = run("nosuch", "--json")
    told = json.loads(done.err)
    assert done.out == ""
    assert told["type"] == "urn:knock:problem:not-allowed"
    assert (told["status"], told["right"], told["error"], told["exit_code"]) == (
        403,
        "knock:targets",
        "NotAllowed",
        1,
    )
    double.opens_after, double.fails = 0.1, "PoolExhausted: full"
    told = json.loads(run("bastion", "--json").err)
    assert (told["error"], told["grant"]["status"]) == ("GrantNotOpened", "failed")


def test_a_pending_grant_is_waited_for_as_long_as_is_said(run: Run, double: Double) -> None:
    double.opens_after = 30
    done = run("bastion", "--wait", "0.2")
    assert done.code == 1
    assert "still pending after 0.2 s" in done.err
    assert run("bastion", "--wait", "0").out.startswith("pending: bastion")


def test_text_of_others_cannot_move_the_cursor(run: Run, double: Double) -> None:
    grant = run("-q", "bastion").out.strip()
    double.grants[grant]["reason"] = "\x1b[2J\rgone\x9b1A"
    shown = run("show", grant).out
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "reason:    \ufffd[2J\ufffdgone\ufffd1A" in shown
    double.faults = [(403, {}, {"title": "No\x1b[2J", "status": 403, "detail": "a\nb"})]
    assert "\x1b" not in run("ls").err


def test_a_clock_that_is_off_is_mentioned(run: Run, double: Double) -> None:
    from datetime import timedelta

    double.clock = timedelta(minutes=-5)
    done = run("bastion")
    assert re.search(
        r"knock: this machine's clock is (5 min|4 min 59 s)( \d s)? ahead of the API's", done.err
    )
    double.clock = timedelta(minutes=5)
    assert "behind the API's" in run("whoami").err
    assert run("whoami", "-q").err == ""


def test_colour_is_for_a_terminal_that_wants_it(
    home: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_terminal(**environment: str) -> str:
        near, far = pty.openpty()
        done = subprocess.run(
            ["knock", "nosuch"],
            stdin=far,
            stdout=far,
            stderr=far,
            check=False,
            env={**os.environ, **environment},
        )
        assert done.returncode == 1
        os.close(far)
        said = os.read(near, 65536).decode()
        os.close(near)
        return said

    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[31mknock: \x1b[0m" in on_a_terminal()
    assert "\x1b[3" not in on_a_terminal(NO_COLOR="1")
    assert "\x1b[3" not in on_a_terminal(TERM="dumb")


def test_the_spinner_turns_on_a_terminal_and_is_gone_when_done(home: Path, double: Double) -> None:
    double.faults = [0.7]
    near, far = pty.openpty()
    done = subprocess.run(["knock", "ls"], stdin=far, stdout=far, stderr=far, check=False)
    os.close(far)
    said = os.read(near, 65536).decode()
    os.close(near)
    assert done.returncode == 0
    assert "\r| asking" in said
    assert said.index("\r\x1b[K") > said.index("asking")


def test_a_reader_that_goes_away_is_no_traceback(spawn: Run) -> None:
    spawn("knock", "bastion")
    done = spawn("bash", "-c", "set -o pipefail; knock ls --json | :")
    assert (done.code, done.out, done.err) == (1, "", "")


def test_what_the_terminals_encoding_lacks_is_no_traceback(
    spawn: Run, run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = run("bastion", "--reason", "für heute", "-q").out.strip()
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PYTHONPATH", str(CLIENTS))
    knock = (sys.executable, "-m", "knock")
    assert spawn(*knock, "--help").out.startswith("usage: knock [TARGET?]")
    assert "reason:    f?r heute\n" in spawn(*knock, "show", grant).out
    said = spawn(*knock, "show", "größe")
    assert (said.code, "Traceback" in said.err) == (1, False)


def test_a_limit_that_is_none_is_said_to_be_one(run: Run) -> None:
    for limit in ("0", "-1", "many"):
        done = run("ls", f"--limit={limit}")
        assert (done.code, f"a number from 1 on was expected, not '{limit}'" in done.err) == (2, True)


def test_ctrl_c_ends_with_130_and_without_a_traceback(home: Path, double: Double) -> None:
    double.faults = [10]
    with subprocess.Popen(
        ["knock", "ls"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # as a shell's foreground has it
    ) as running:
        wait_until(lambda: double.calls("GET") == 1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=5)
    assert (running.returncode, out, err) == (130, "", "knock: interrupted\n")


def test_the_key_is_in_no_process_list_while_a_call_is_under_way(home: Path, double: Double) -> None:
    double.faults = [10]
    with subprocess.Popen(["knock", "bastion"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        wait_until(lambda: double.calls("POST") == 1)
        listed = subprocess.run(
            ["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True
        ).stdout
        running.kill()
    assert "knock bastion" in listed
    assert double.keys["alice"] not in listed


# ---------------------------------------------------------------------- help and start-up

SHOWN = [
    "open",
    "ls",
    "show",
    "renew",
    "revoke",
    "whoami",
    "watch",
    "ssh-config",
    "login",
    "logout",
    "profiles",
]


@pytest.mark.parametrize("command", [*SHOWN, "completion", "ssh-hook", "ssh-proxy"])
def test_every_help_has_an_example(run: Run, double: Double, command: str) -> None:
    done = run(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"examples:\n +\S", done.out)
    assert max(len(line) for line in done.out.splitlines()) <= 110
    assert double.seen == []


def test_the_first_help_names_every_command(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert "examples:\n  knock " in done.out
    for command in SHOWN:
        assert re.search(rf"\b{command}\b", done.out)
    assert run("-h").out == done.out


def test_the_version_costs_no_import_of_a_command(spawn: Run) -> None:
    import knock

    assert spawn("knock", "--version").out == f"knock {knock.__version__}\n"
    code = "import sys; from knock.cli import main; main(['--version']); print(*sys.modules)"
    done = spawn(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(CLIENTS)!r}); {code}")
    loaded = set(done.out.split())
    assert "knock.cli" in loaded
    assert not loaded & {
        "http.client",
        "ssl",
        "json",
        "dataclasses",
        "asyncio",
        "knock.client",
        "knock.commands",
    }


def test_python_m_knock_is_knock(spawn: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CLIENTS))
    assert spawn(sys.executable, "-m", "knock", "-q", "bastion").code == 0
    assert spawn(sys.executable, "-m", "knock", "nosuch").code == 1
