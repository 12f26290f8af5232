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
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from knock import state
from knock.answers import read_grant
from knock.session import read_duration
from tests.clients.conftest import CLIENTS, ROOT, Api, Result
from tests.clients.double import Double
from tests.waiting import wait_for

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


def test_a_knock_prints_targets_source_and_end_in_one_line(run: Run, double: Double) -> None:
    double.freeze()
    result = run("bastion", "--for", "8h")
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(
        r"open: bastion \(22/tcp\) from 203\.0\.113\.7/32 until (\w{3} \d\d \w{3} )?\d\d:\d\d:\d\d UTC "
        r"\(8 h\)\n",
        result.out,
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
    double.freeze()
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["ci"])
    result = run("web", "--for", "90m", "--reason", "on call", "--source", "198.51.100.0/28", "--json")
    grant = json.loads(result.out)
    assert (grant["source"], grant["reason"], grant["targets"][0]["name"]) == (
        "198.51.100.0/28",
        "on call",
        "web",
    )
    assert grant["seconds_left"] == 90 * 60


# ---------------------------------------------------------------------- ls, show, revoke and renew


def test_ls_shows_a_table_and_ids_when_quiet(run: Run) -> None:
    first, second = run("-q", "bastion").out.strip(), run("-q", "web").out.strip()
    lines = run("ls").out.splitlines()
    assert lines[0].split() == ["GRANT", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "UNTIL", "LEFT"]
    assert lines[1].startswith(second)
    assert run("ls", "-q").out.splitlines() == [second, first]
    assert run("ls", "-q", "--target", "web").out.splitlines() == [second]
    assert run("ls", "-q", "--limit", "1").out.splitlines() == [second]


def test_ls_of_nothing_is_no_error_and_prints_no_data(run: Run) -> None:
    result = run("ls")
    assert (result.code, result.out, result.err) == (0, "", "knock: no live grants\n")
    result = run("ls", "--status", "expired")
    assert (result.code, result.out, result.err) == (0, "", "knock: no such grants\n")
    assert json.loads(run("ls", "--json").out) == {"grants": []}
    assert run("ls", "-q").err == ""


def test_ls_all_shows_ended_grants_too(run: Run) -> None:
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


def test_revoke_ends_a_grant_by_id_those_opened_by_hand_here_or_all(run: Run) -> None:
    first = run("-q", "bastion").out.strip()
    run("web")
    (second,) = set(run("ls", "-q").out.split()) - {first}
    result = run("revoke", first)
    assert result.out == f"revoked: bastion (22/tcp) from 203.0.113.7/32, grant {first}\n"
    assert run("revoke", "-q").out == f"{second}\n"
    run("bastion"), run("-q", "web")
    ended = json.loads(run("revoke", "--all", "--json").out)["grants"]
    assert [grant["status"] for grant in ended] == ["revoked", "revoked"]


def test_a_revocation_that_ends_nothing_is_an_error_with_exit_code_1(run: Run) -> None:
    result = run("revoke", "--all")
    message = "knock: nothing to revoke: this key has no live grant\n"
    assert (result.code, result.out, result.err) == (1, "", message)
    error = json.loads(run("revoke", "--json").err)
    assert (error["error"], error["exit_code"]) == ("NothingToRevoke", 1)


def test_revoke_without_an_id_ends_all_grants_opened_by_hand_and_none_of_a_job(
    run: Run, double: Double
) -> None:
    job = run("-q", "bastion").out.strip()
    result = run("revoke")
    assert (result.code, result.out) == (1, "")
    assert "nothing that was opened by hand on this machine is live; this key has others" in result.err
    run("bastion", "--for", "1h"), run("web", "--for", "1h")
    result = run("revoke")
    assert (result.code, result.out.count("revoked: ")) == (0, 2)
    assert run("ls", "-q").out == f"{job}\n", "a grant of a script is revoked by its id"


def test_a_grant_that_is_about_to_be_superseded_is_not_counted(run: Run, double: Double) -> None:
    run("bastion", "--for", "1h")
    old = run("ls", "-q").out.strip()
    run("bastion", "--for", "2h")
    new = run("ls", "-q").out.strip()
    state.remember(
        double.url,
        read_grant(double.as_json(double.grants[old])),
        "",
        everything=False,
        asked_at=time.time(),
        by="hand",
    )
    double.grants[old]["status"] = "active"  # as in the moment before the real API ends it
    assert run("revoke", "-q").out == f"{new}\n"


def test_revoke_all_by_an_operator_ends_only_their_own_grants(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    alices = run("-q", "bastion").out.strip()
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    own = run("-q", "web").out.strip()
    assert run("revoke", "--all", "-q").out == f"{own}\n"
    assert double.grants[alices]["status"] == "active"


def test_revoke_shows_a_refusal_and_goes_on_with_the_other_ids(run: Run) -> None:
    grant = run("-q", "bastion").out.strip()
    result = run("revoke", "nobodys", grant)
    assert result.code == 1
    assert result.out.startswith("revoked: bastion")
    assert result.err == "knock: No such grant: there is no grant 'nobodys' that this key may see\n"


def test_revoke_names_the_grants_revoked_before_the_api_was_gone(run: Run, double: Double) -> None:
    first, second = run("-q", "bastion").out.strip(), run("-q", "web").out.strip()
    double.faults = [None, *["drop"] * 4]  # one more: the kept connection costs no try
    result = run("revoke", first, second)
    assert (result.code, result.out.count("revoked: ")) == (3, 1)
    assert first in result.out
    double.faults = [None, *["drop"] * 4]  # one more: the kept connection costs no try
    result = run("revoke", first, second, "--json")
    assert [grant["id"] for grant in json.loads(result.out)["grants"]] == [first]
    assert json.loads(result.out)["still_open"] is None, "an unreachable API is not called again"
    assert json.loads(result.err)["exit_code"] == 3


def test_renew_renews_the_grants_of_this_address(run: Run, double: Double) -> None:
    double.freeze()
    run("bastion", "--for", "2h", "--reason", "on call")
    old = run("ls", "-q").out.strip()
    double.source = "198.51.100.9"
    run("web")
    (new,) = json.loads(run("renew", "--json").out)["grants"]
    assert new["targets"][0]["name"] == "web", "bastion is open from another address"
    double.source = "203.0.113.7"
    (new,) = json.loads(run("renew", "--json").out)["grants"]
    assert (new["targets"][0]["name"], new["reason"]) == ("bastion", "on call")
    assert new["seconds_left"] == 2 * 3600
    assert double.grants[old]["status"] == "superseded"
    assert "(4 h)" in run("renew", new["id"], "--for", "4h").out


def test_renew_with_nothing_open_here_names_the_sources_that_have_grants(run: Run, double: Double) -> None:
    assert run("renew").err == "knock: nothing is open from 203.0.113.7/32: knock to open\n"
    run("bastion")
    double.source = "198.51.100.9"
    result = run("renew")
    assert result.code == 1
    assert "nothing is open from 198.51.100.9/32, only from 203.0.113.7/32 (renew --all)" in result.err
    result = run("renew", "--all")
    assert (result.code, result.out) == (1, ""), "alice's key may not name another source"
    assert "knock:any-source" in result.err


def test_whoami_prints_the_principal_the_source_and_the_rights(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run("whoami").out.splitlines()
    assert lines == [
        f"alice (id-alice), seen from 203.0.113.7/32 by {double.url}",
        "may open bastion (22/tcp), web (80/tcp, 443/tcp)",
        "for 1d at most, 1d if nothing is said",
        "0 of at most 20 grants at once are live",
    ]
    run("bastion")
    assert "1 of at most 20 grants at once are live" in run("whoami").out
    assert run("whoami", "-q").out == "alice\n"
    assert json.loads(run("whoami", "--json").out)["principal"] == {"id": "id-alice", "name": "alice"}
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["ci"])
    assert "from another source too, up to /28 (IPv4), /128 (IPv6)" in run("whoami").out
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    assert "as an operator" in run("whoami").out
    answer = double.whoami("alice") | {
        "faults": ["the tag cannot be read"],
        "targets": [],
        "max_duration": None,
    }
    double.faults = [(200, {}, answer)]
    result = run("whoami")
    assert "may open nothing" in result.out
    assert result.err == "knock: the tag cannot be read\n"


# ---------------------------------------------------------------------- several grants of one key


def ids(run: Run) -> list[str]:
    return run("ls", "-q").out.split()


def test_two_jobs_of_one_key_and_address_never_close_each_others_access(
    run: Run, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", api.url)
    monkeypatch.setenv("KNOCK_API_KEY", api.keys["alice"])
    for first, second in (("1h", "10m"), ("10m", "1h"), ("1h", "1h")):
        first_job = run("bastion", "-q", "--for", first).out.strip()
        second_job = json.loads(run("bastion", "--for", second, "--json").out)["id"]
        assert run("revoke", second_job, "-q").code == 0
        assert run("ls", "-q").out == f"{first_job}\n"
        assert api.lets_in("203.0.113.7/32", "bastion")
        assert run("revoke", first_job, "-q").code == 0
        assert not api.lets_in("203.0.113.7/32", "bastion")


def test_each_of_ten_jobs_ends_its_own_grant_only(run: Run, double: Double) -> None:
    jobs = [run("bastion", "-q", "--for", f"{minutes}m").out.strip() for minutes in range(60, 10, -5)]
    assert len(set(jobs)) == 10
    for ended, job in enumerate([*reversed(jobs[5:]), *jobs[:5]], start=1):
        assert [grant["status"] for grant in double.grants.values()].count("active") == 11 - ended
        assert run("revoke", job, "-q").out == f"{job}\n"


@pytest.mark.parametrize("source", ["203.0.113.7", "203.0.113.7/32", "203.0.113.99/24"])
def test_a_source_in_any_form_is_its_cidr(run: Run, double: Double, source: str) -> None:
    grant = run("bastion", "-q").out.strip()
    ids_of_source = run("ls", "--source", source, "-q").out.split()
    assert ids_of_source == ([grant] if "/24" not in source else [])
    assert double.requests[-1].path.endswith(
        "source=203.0.113.0%2F24&limit=100" if "/24" in source else "7%2F32&limit=100"
    )
    double.source = "2001:db8::7"
    ipv6_grant = run("bastion", "-q").out.strip()
    assert run("ls", "--source", "2001:DB8:0::7", "-q").out == f"{ipv6_grant}\n"
    assert run("ls", "--source", "home").code == 1, "the API refuses it"


def test_a_longer_knock_by_hand_renews_the_grant_opened_by_hand(run: Run, double: Double) -> None:
    run("bastion", "--for", "1h")
    (old,) = ids(run)
    result = run("bastion", "--for", "2h")
    assert result.code == 0
    assert (
        result.err == f"knock: it takes the place of {old}, opened here before (--new opens one beside it)\n"
    )
    (new,) = ids(run)
    assert double.grants[new]["renews"] == old
    assert double.grants[old]["status"] == "superseded"
    assert "takes the place of " + new in run("bastion").err, "the default time is longer than two hours"


def test_a_knock_for_the_same_time_or_for_all_targets_is_a_renewal_too(run: Run) -> None:
    for words in (["--for", "PT2H"], ["bastion"], ["bastion", "web", "--for", "3600s"]):
        run("revoke", "--all")
        run(*words)
        (old,) = ids(run)
        assert old in run(*words).err
        assert len(ids(run)) == 1


def test_a_knock_that_ends_sooner_is_a_second_grant_and_says_so(run: Run, double: Double) -> None:
    run("bastion", "web", "--for", "2h")
    (longer,) = ids(run)
    result = run("bastion", "--for", "1h")
    assert re.fullmatch(
        rf"knock: this ends sooner than what is open already: still open until [\w :]+ UTC by {longer}: "
        r"bastion \(22/tcp\), web \(80/tcp, 443/tcp\) from 203\.0\.113\.7/32\n",
        result.err,
    )
    assert len(ids(run)) == 2
    assert longer in run("bastion", "--for", "30m", "--json").err, "also beside JSON"
    assert run("bastion", "--for", "30m", "-q").err == ""
    run("web", "--for", "1h", "--new")
    assert run("bastion", "web", "--for", "90m", "--new").err.count(longer) == 1
    assert double.calls("POST") == 6


def test_a_shorter_knock_renews_the_shorter_of_two(run: Run, double: Double) -> None:
    run("bastion", "--for", "4h")
    run("bastion", "--for", "1h")
    short, long = ids(run)
    assert short in run("bastion", "--for", "2h").err
    assert double.grants[short]["status"] == "superseded"
    assert double.grants[long]["status"] == "active"


def test_a_knock_by_hand_renews_no_grant_of_a_job_a_hook_or_another_machine(
    run: Run, double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run("bastion", "-q", "--for", "1h").out.strip()
    run("ssh-hook", "--target", "web", "--for", "1h")
    (hook, _) = ids(run)
    with monkeypatch.context() as elsewhere:
        (home / "other").mkdir()
        elsewhere.setenv("HOME", str(home / "other"))
        run("bastion", "--for", "1h")
    run("web", "--for", "2h")
    run("bastion", "--for", "2h")
    assert len(ids(run)) == 5
    assert [double.grants[grant_id]["status"] for grant_id in (job, hook)] == ["active"] * 2
    assert {grant["renews"] for grant in double.grants.values()} == {None}


def test_a_grant_of_another_source_or_key_is_not_renewed(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("bastion", "--for", "1h")
    double.source = "198.51.100.9"
    run("bastion", "--for", "2h")
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["ci"])
    run("bastion", "--for", "3h")
    run("bastion", "--for", "4h", "--source", "203.0.113.7")
    (latest, *_) = (grant["id"] for grant in reversed(double.grants.values()))
    assert {grant["renews"] for grant in double.grants.values()} == {None}
    assert latest in run("bastion", "--for", "5h", "--source", "203.0.113.7/32").err, "in any form"


def test_a_pending_grant_is_renewed_too_and_a_failed_one_forgotten(run: Run, double: Double) -> None:
    double.opens_after = 60
    run("bastion", "--for", "1h", "--wait", "0")
    (pending,) = double.grants
    assert pending in run("bastion", "--for", "2h", "--wait", "0").err
    assert run("bastion", "--for", "3h", "--wait", "1s").code == 1, "it is remembered though the wait is over"
    double.opens_after, double.fails = 0.1, "PoolExhausted: full"
    latest = list(double.grants)[-1]
    assert run("bastion", "--for", "4h").code == 4
    double.opens_after, double.fails = 0, ""
    assert latest in run("bastion", "--for", "5h").err
    assert list(double.grants.values())[-1]["status"] == "active"


def test_a_grant_that_the_api_no_longer_knows_is_forgotten_and_a_new_one_opened(
    run: Run, double: Double
) -> None:
    run("bastion", "--for", "1h")
    double.grants.clear()
    result = run("bastion", "--for", "2h")
    assert (result.code, result.err) == (0, "")
    (grant,) = double.grants.values()
    assert grant["renews"] is None


def test_a_malformed_duration_or_source_renews_nothing_and_is_refused_by_the_api(
    run: Run, double: Double
) -> None:
    run("bastion", "--for", "1h")
    for duration in ("soon", "PT", "0h", "p"):
        assert run("bastion", "--for", duration).code == 1
    assert run("bastion", "--source", "home").code == 1
    assert len(double.grants) == 1


@pytest.mark.parametrize(
    "text",
    [
        "90m", "8h", "1h30m", "1d", "1d 2h 3m 4s", "PT8H", "P1D", "P1DT2H3M4S", "pt90m", "3600", " 8H ",
        "1 s", "", "P", "PT", "P1DT", "8", "h", "soon", "1h 1d", "-1h", "0", "1.5h", "\u0663h", "1w",
    ],
)  # fmt: skip
def test_a_duration_is_read_as_the_api_reads_it(text: str) -> None:
    from grants.values import parse_duration

    try:
        expected = int(parse_duration(text).total_seconds())
    except ValueError:
        expected = 0
    assert read_duration(text) == expected


def test_renews_names_the_grant_to_renew_and_new_renews_none(run: Run, double: Double) -> None:
    job = run("bastion", "-q", "--for", "8h").out.strip()
    result = run("bastion", "--for", "1h", "--renews", job, "-q")
    assert double.grants[result.out.strip()]["renews"] == job
    run("bastion", "--for", "2h")
    run("bastion", "--for", "3h", "--new")
    assert len(ids(run)) == 3
    assert run("bastion", "--renews", job, "--new").code == 2
    result = run("bastion", "--renews", "nobodys")
    assert (result.code, result.out) == (1, ""), "a named grant that does not exist is an error"
    assert "there is no grant 'nobodys'" in result.err


def test_renew_names_the_grants_not_opened_by_hand_here_and_leaves_them_alone(
    run: Run, double: Double
) -> None:
    job = run("bastion", "-q", "--for", "1h").out.strip()
    result = run("renew")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"knock: what is open was not opened by hand on this machine: name one: {job}\n"
    run("web", "--for", "1h")
    result = run("renew")
    assert result.out.startswith("open: web")
    assert "1 more that were not opened by hand on this machine are not renewed" in result.err
    assert job in result.err
    assert double.grants[job]["status"] == "active"
    (named,) = json.loads(run("renew", job, "--json").out)["grants"]
    assert named["renews"] == job
    assert run("renew", named["id"], "-q").code == 0
    assert [grant["status"] for grant in double.grants.values()].count("active") == 2


def test_revoke_names_the_grants_that_keep_the_same_targets_open(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("bastion", "-q", "--for", "1h").out.strip()
    second = run("bastion", "web", "-q", "--for", "10m").out.strip()
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["bob"])
    run("bastion", "-q")
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    double.source = "198.51.100.9"
    run("bastion", "-q")
    double.source = "203.0.113.7"
    run("web", "-q", "--renews", run("web", "-q").out.strip())
    result = run("revoke", second)
    assert (
        result.out
        == f"revoked: bastion (22/tcp), web (80/tcp, 443/tcp) from 203.0.113.7/32, grant {second}\n"
    )
    web, bastion = result.err.splitlines()
    assert re.fullmatch(
        rf"knock: still open until [\w :]+ UTC by {first}: bastion \(22/tcp\) from 203\.0\.113\.7/32", bastion
    )
    assert ": web (" in web
    result = run("revoke", second, "--json")
    still_open = json.loads(result.out)["still_open"]
    assert [grant["targets"][0]["name"] for grant in still_open] == ["web", "bastion"]
    assert (run("revoke", second, "-q").err, run("revoke", "--all").err) == ("", "")


def test_revoke_by_an_operator_names_remaining_grants_of_the_same_principal_only(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    alices = [run("bastion", "-q").out.strip() for _ in range(2)]
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["bob"])
    run("bastion", "-q")
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    result = run("revoke", alices[0])
    assert result.code == 0
    assert result.err.count("still open") == 1
    assert alices[1] in result.err


def test_a_command_succeeds_though_the_remaining_grants_cannot_be_listed(run: Run, double: Double) -> None:
    grant = run("bastion", "-q").out.strip()
    double.faults = [0, (500, {}, {"title": "A fault", "status": 500, "detail": "x"})] + ["drop"] * 4
    result = run("revoke", grant)
    assert (result.code, result.out.startswith("revoked: ")) == (0, True)
    assert "what other grants keep open could not be asked" in result.err
    double.faults = [0, *["drop"] * 4]
    assert json.loads(run("revoke", grant, "--json").out)["still_open"] is None
    double.faults = [0, *["drop"] * 4]
    assert run("bastion").out.startswith("open: "), "nor does a knock fail if its grants cannot be listed"


def test_a_full_key_a_full_source_and_a_lost_target_say_what_to_do(run: Run, double: Double) -> None:
    double.max_live["alice"] = 1
    grant = run("bastion", "-q").out.strip()
    result = run("web")
    assert (result.code, result.out) == (4, "")
    assert grant in result.err
    assert "end one with `knock revoke ID`" in result.err
    assert json.loads(run("web", "--json").err)["error"] == "TooManyGrants"
    assert run("bastion", "--renews", grant).code == 0, "a grant that is renewed does not count"
    double.max_live["alice"] = 20
    double.full = {"203.0.113.7/32"}
    result = run("web")
    assert result.code == 4
    assert "grants of this source, yours or others', must end first" in result.err
    target_gone = {"type": "urn:knock:problem:target-gone", "title": "The target is gone", "status": 409}
    double.faults = [(409, {}, target_gone | {"detail": "web lost its security groups"})]
    result = run("web", "--new")
    assert result.code == 1
    assert result.err == (
        "knock: The target is gone: web lost its security groups\n"
        "knock: `knock whoami` shows what you may open now\n"
    )


def test_a_503_that_names_a_grant_is_not_tried_again_and_says_how_to_look(run: Run, double: Double) -> None:
    known = "alice_203-0-113-7_20261123T211719Z_0123456789abcdef"
    unavailable = {"type": "urn:knock:problem:engine-unavailable", "title": "Try again", "status": 503}
    unavailable |= {"detail": f"no answer about {known}", "grant_id": known}
    double.faults = [(503, {"Retry-After": "0"}, unavailable)]
    result = run("bastion")
    assert (result.code, double.calls("POST")) == (1, 1)
    assert f"Grant {known} may be open all the same: look with `knock ls`" in result.err
    assert f"end it with `knock revoke {known}`" in result.err
    double.faults = [(503, {"Retry-After": "0"}, unavailable)]
    assert json.loads(run("bastion", "--json").err)["grant_id"] == known


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
    result = run("ls")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("knock: 127.0.0.1:")
    monkeypatch.delenv("KNOCK_URL")
    result = run("ls")
    assert result.code == 2
    assert "run `knock login`, or set KNOCK_URL and KNOCK_API_KEY" in result.err


GRANT = {
    *("id", "status", "principal", "source", "targets", "requested_at", "expires_at", "seconds_left"),
    *("reason", "renews", "ended_at", "ended_by", "execution_arn", "caller"),
}  # fmt: skip
WHOAMI = {
    *("principal", "source", "targets", "default_duration", "max_duration", "any_source", "operator"),
    *("faults", "max_live", "live", "until"),
}  # fmt: skip


def test_the_fields_of_json_are_those_that_the_page_promises(
    run: Run, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", api.url)
    monkeypatch.setenv("KNOCK_API_KEY", api.keys["alice"])
    monkeypatch.setattr("sys.stdin", io.StringIO(api.keys["alice"] + "\n"))

    def print_json(*words: str) -> dict[str, Any]:
        result = run(*words, "--json")
        answer: dict[str, Any] = json.loads(result.out or result.err)
        return answer

    opened = print_json("bastion")
    grants = [print_json("ls"), print_json("renew", opened["id"]), print_json("revoke", "--all")]
    assert set(opened) == GRANT
    assert set(print_json("show", opened["id"])) == GRANT | {"events"}
    assert [set(answer) for answer in grants] == [{"grants"}, {"grants"}, {"grants", "still_open"}]
    assert [set(answer["grants"][0]) >= GRANT for answer in grants] == [True] * 3
    assert set(print_json("whoami")) == WHOAMI
    assert set(print_json("login", "--url", api.url, "--no-keyring")) == {
        "profile",
        "url",
        "principal",
        "key_in",
    }
    (profile,) = print_json("profiles")["profiles"]
    assert set(profile) == {"name", "url", "key_in", "current"}
    assert set(print_json("logout")) == {"profile"}
    assert set(print_json("ssh-config", "bastion")) == {"hosts", "config"}
    assert set(print_json("completion", "bash")) == {"shell", "script"}
    assert {"error", "exit_code", "detail", "status", "type", "title"} <= set(print_json("show", "nope"))

    page = (ROOT / "docs" / "knock" / "scripts.md").read_text()
    further_fields = {
        "events",
        "error",
        "exit_code",
        "detail",
        "hosts",
        "config",
        "shell",
        "script",
        "still_open",
    }
    for name in GRANT | WHOAMI | set(profile) | further_fields:
        assert f"`{name}`" in page


def test_json_holds_the_same_text_of_ssh_config_and_completion(run: Run) -> None:
    for words in (["ssh-config", "bastion", "db", "--for", "8h"], ["completion", "zsh"]):
        answer = json.loads(run(*words, "--json").out)
        text = answer.pop("config", None) or answer.pop("script")
        assert text == run(*words).out
        assert answer in ({"hosts": ["bastion", "db"]}, {"shell": "zsh"})
    result = run("ssh-config", "no host", "--json")
    assert (result.code, result.out, json.loads(result.err)["error"]) == (2, "", "ConfigurationError")
    for command in ("ssh-config", "completion"):
        assert run(command, "bash", "--quiet").code == 2


def test_with_json_an_error_is_json_on_standard_error(run: Run, double: Double) -> None:
    result = run("nosuch", "--json")
    error = json.loads(result.err)
    assert result.out == ""
    assert error["type"] == "urn:knock:problem:not-allowed"
    assert (error["status"], error["right"], error["error"], error["exit_code"]) == (
        403,
        "knock:targets",
        "NotAllowed",
        1,
    )
    double.opens_after, double.fails = 0.1, "PoolExhausted: full"
    error = json.loads(run("bastion", "--json").err)
    assert (error["error"], error["grant"]["status"]) == ("GrantNotOpened", "failed")


def test_a_pending_grant_is_waited_for_as_long_as_wait_says(run: Run, double: Double) -> None:
    double.opens_after = 30
    result = run("bastion", "--wait", "1s")
    assert result.code == 1
    assert "still pending after 1 s" in result.err
    assert run("bastion", "--wait", "0").out.startswith("pending: bastion")


def test_control_characters_of_answers_are_replaced(run: Run, double: Double) -> None:
    grant = run("-q", "bastion").out.strip()
    double.grants[grant]["reason"] = "\x1b[2J\rgone\x9b1A"
    output = run("show", grant).out
    assert "\x1b" not in output
    assert "\x9b" not in output
    assert "reason:    \ufffd[2J\ufffdgone\ufffd1A" in output
    double.faults = [(403, {}, {"title": "No\x1b[2J", "status": 403, "detail": "a\nb"})]
    assert "\x1b" not in run("ls").err


def test_a_wrong_clock_is_reported(run: Run, double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time() // 1
    monkeypatch.setattr(time, "time", lambda: now)
    double.clock = timedelta(minutes=-5)
    result = run("bastion")
    # The Date of an answer has whole seconds, so it is taken for half a second later.
    assert "knock: this machine's clock is 4 min 59 s ahead of the API's" in result.err
    double.clock = timedelta(minutes=5)
    assert "behind the API's" in run("whoami").err
    assert run("whoami", "-q").err == ""


def test_colour_is_for_a_terminal_that_wants_it(
    home: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_terminal(**environment: str) -> str:
        terminal, program_end = pty.openpty()
        result = subprocess.run(
            ["knock", "nosuch"],
            stdin=program_end,
            stdout=program_end,
            stderr=program_end,
            check=False,
            env={**os.environ, **environment},
        )
        assert result.returncode == 1
        os.close(program_end)
        output = os.read(terminal, 65536).decode()
        os.close(terminal)
        return output

    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[31mknock: \x1b[0m" in on_a_terminal()
    assert "\x1b[3" not in on_a_terminal(NO_COLOR="1")
    assert "\x1b[3" not in on_a_terminal(TERM="dumb")


def test_the_spinner_turns_on_a_terminal_and_is_gone_when_done(home: Path, double: Double) -> None:
    double.faults = [0.7]
    terminal, program_end = pty.openpty()
    result = subprocess.run(
        ["knock", "ls"], stdin=program_end, stdout=program_end, stderr=program_end, check=False
    )
    os.close(program_end)
    output = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert result.returncode == 0
    assert "\r| asking" in output
    assert output.index("\r\x1b[K") > output.index("asking")


def test_a_reader_that_goes_away_is_no_traceback(spawn: Run) -> None:
    spawn("knock", "bastion")
    result = spawn("bash", "-c", "set -o pipefail; knock ls --json | :")
    assert (result.code, result.out, result.err) == (1, "", "")


def test_a_character_that_the_encoding_lacks_is_no_traceback(
    spawn: Run, run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = run("bastion", "--reason", "für heute", "-q").out.strip()
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PYTHONPATH", str(CLIENTS))
    knock = (sys.executable, "-m", "knock")
    assert spawn(*knock, "--help").out.startswith("usage: knock [TARGET?]")
    assert "reason:    f?r heute\n" in spawn(*knock, "show", grant).out
    result = spawn(*knock, "show", "größe")
    assert (result.code, "Traceback" in result.err) == (1, False)


def test_an_invalid_limit_is_a_usage_error(run: Run) -> None:
    for limit in ("0", "-1", "many"):
        result = run("ls", f"--limit={limit}")
        assert (result.code, f"a number from 1 on was expected, not '{limit}'" in result.err) == (2, True)


def test_ctrl_c_ends_with_130_and_without_a_traceback(home: Path, double: Double) -> None:
    double.faults = [10]
    with subprocess.Popen(
        ["knock", "ls"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # as a shell's foreground has it
    ) as running:
        wait_for(lambda: double.calls("GET") == 1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=5)
    assert (running.returncode, out, err) == (130, "", "knock: interrupted\n")


def test_the_key_is_in_no_process_list_while_a_call_is_under_way(home: Path, double: Double) -> None:
    double.faults = [10]
    with subprocess.Popen(["knock", "bastion"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        wait_for(lambda: double.calls("POST") == 1)
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
    result = run(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert re.search(r"examples:\n +\S", result.out)
    assert max(len(line) for line in result.out.splitlines()) <= 110
    assert double.requests == []


def test_the_first_help_names_every_command(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    assert "examples:\n  knock " in result.out
    for command in SHOWN:
        assert re.search(rf"\b{command}\b", result.out)
    assert run("-h").out == result.out


def test_the_version_costs_no_import_of_a_command(spawn: Run) -> None:
    import knock

    assert spawn("knock", "--version").out == f"knock {knock.__version__}\n"
    code = "import sys; from knock.cli import main; main(['--version']); print(*sys.modules)"
    result = spawn(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(CLIENTS)!r}); {code}")
    loaded = set(result.out.split())
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
