"""`knock watch`: access follows the address, and ends as it should."""

from __future__ import annotations

import json
import os
import pty
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from knock import KnockError, network, signals, state, watch
from tests.clients.conftest import Api, OnDouble, Result
from tests.clients.double import Double, Held
from tests.waiting import wait_for

Run = Callable[..., Result]


class Watching:
    """A running `knock watch`, and the events that it prints."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            ["knock", "watch", "bastion", "--every", "1", "--json", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def expect(self, event: str) -> dict[str, Any]:
        """Wait for the next line that it prints, which must be this event."""
        line: dict[str, Any] = json.loads(self._lines.get(timeout=15))
        assert line["event"] == event, line
        return line

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, and give the exit code and the output on standard error."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=15)
        assert self.process.stderr is not None
        return code, self.process.stderr.read()


@pytest.fixture
def as_alice(api: Api, home: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("KNOCK_URL", api.url)
    monkeypatch.setenv("KNOCK_API_KEY", api.keys["alice"])
    return api


@pytest.fixture
def on_double(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> OnDouble:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    return OnDouble(double)


@pytest.fixture
def start() -> Iterator[Callable[..., Watching]]:
    running: list[Watching] = []

    def begin(*words: str) -> Watching:
        running.append(Watching(*words))
        return running[-1]

    yield begin
    for watching in running:
        watching.process.kill()
        watching.process.wait()


def test_access_follows_the_address_and_the_old_grant_is_revoked(
    as_alice: Api, start: Callable[..., Watching]
) -> None:
    watching = start("--for", "1h", "--revoke")
    first = watching.expect("opened")["grant"]
    assert (first["source"], first["targets"][0]["name"]) == ("203.0.113.7/32", "bastion")
    as_alice.come_from("198.51.100.9")
    second = watching.expect("moved")["grant"]
    assert second["source"] == "198.51.100.9/32"
    assert first["id"] in watching.expect("revoked")["detail"]
    assert as_alice.lets_in("198.51.100.9/32", "bastion")
    assert not as_alice.lets_in("203.0.113.7/32", "bastion")
    assert watching.stop() == (0, "")
    assert watching.expect("stopped")["grant"]["status"] == "revoked"
    assert not as_alice.lets_in("198.51.100.9/32", "bastion")


def test_a_grant_is_renewed_before_it_ends(as_alice: Api, start: Callable[..., Watching]) -> None:
    watching = start("--for", "6s")
    first = watching.expect("opened")["grant"]
    second = watching.expect("renewed")["grant"]
    assert as_alice.lets_in("203.0.113.7/32", "bastion")
    with as_alice.client("alice") as client:
        wait_for(lambda: client.grant(first["id"]).status == "superseded")
        assert client.grant(first["id"]).ended_by == second["id"], "it had not ended by itself"


def test_without_revoke_the_grant_is_left_to_its_own_end(
    on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    watching = start()
    grant = watching.expect("opened")["grant"]["id"]
    code, stderr = watching.stop(signal.SIGINT)
    assert (code, stderr) == (0, "")
    assert "stays open until" in watching.expect("stopped")["detail"]
    with on_double.client("alice") as client:
        assert client.grant(grant).live


def test_revoking_a_watched_grant_ends_the_watch(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    watching = start()
    grant = watching.expect("opened")["grant"]["id"]
    with on_double.client("operator") as operator:
        operator.revoke(grant)
    assert watching.process.wait(timeout=10) == 1
    assert watching.process.stderr is not None
    error = json.loads(watching.process.stderr.read())
    assert error["detail"] == f"grant {grant} was revoked by operator: the watch ends"
    assert double.calls("POST") == 1, "it did not knock again"


def test_a_watch_ignores_grants_opened_by_hand_and_their_end(
    as_alice: Api, start: Callable[..., Watching]
) -> None:
    watching = start("--revoke", "--for", "1h")
    own = watching.expect("opened")["grant"]["id"]
    with as_alice.client("alice") as client:
        sooner, later = client.knock("bastion", duration="10m"), client.knock("bastion", duration="2h")
        client.revoke(sooner.id)
        before = as_alice.count_requests()
        wait_for(lambda: as_alice.count_requests() > before + 1)  # two checks
        assert [grant.id for grant in client.grants()] == [later.id, own], "a sibling's end does not stop it"
        assert watching.stop() == (0, "")
        stopped = watching.expect("stopped")
        assert f"revoked: grant {own}; still open until " in stopped["detail"]
        assert later.id in stopped["detail"]
        assert client.grant(later.id).status == "active", "the watch ends only what it opened"
        assert as_alice.lets_in("203.0.113.7/32", "bastion")


def test_a_watch_whose_grant_was_renewed_by_hand_opens_a_grant_of_its_own(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    watching = start("--revoke")
    first = watching.expect("opened")["grant"]["id"]
    with on_double.client("alice") as client:
        by_hand = client.knock("bastion", renews=first)
        second = watching.expect("found")["grant"]["id"]
        assert second == by_hand.id
        own = watching.expect("opened")["grant"]
        assert own["renews"] is None
        watching.stop()
        assert client.grant(by_hand.id).status == "active"
        assert client.grant(own["id"]).status == "revoked"


def test_a_grant_that_lets_the_address_in_already_is_reported_once_and_left_alone(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    with on_double.client("alice") as client, on_double.client("bob") as bob:
        by_hand = client.knock("bastion", "web", duration="2h")
        client.knock("web")
        bob.knock("bastion")
        double.faults = [None, None, (503, {}, {"title": "Try again", "status": 503, "detail": "no"})]
        watching = start("--revoke")
        event = watching.expect("found")
        assert event["grant"]["id"] == by_hand.id
        assert event["detail"].endswith(f"by {by_hand.id}, which this watch leaves alone")
        watching.expect("offline")
        own = watching.expect("opened")["grant"]["id"]
        watching.expect("online")
        client.revoke(by_hand.id)
        before = len(double.requests)
        wait_for(lambda: len(double.requests) > before + 1)
        assert watching.stop() == (0, "")
        assert double.grants[own]["status"] == "revoked"
        assert watching.expect("stopped")["detail"] == f"revoked: grant {own}"


def test_two_watches_of_one_target_end_only_their_own(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    first, own = start("--revoke"), []
    own.append(first.expect("opened")["grant"]["id"])
    second = start("--revoke")
    assert second.expect("found")["grant"]["id"] == own[0]
    own.append(second.expect("opened")["grant"]["id"])
    assert second.stop() == (0, "")
    assert [double.grants[grant_id]["status"] for grant_id in own] == ["active", "revoked"]
    assert first.stop() == (0, "")
    assert double.grants[own[0]]["status"] == "revoked"


def test_a_check_is_one_call(double: Double, on_double: OnDouble, start: Callable[..., Watching]) -> None:
    watching = start()
    own = watching.expect("opened")["grant"]["id"]
    before = len(double.requests)
    wait_for(lambda: len(double.requests) > before + 1)
    assert {request.path for request in double.requests[before:]} == {f"/prod/grants/{own}"}
    assert double.calls("GET", "/whoami") == 1


def test_a_full_key_or_source_is_waited_out(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    double.max_live["alice"] = 1
    with on_double.client("alice") as client:
        grant = client.knock("web")
        watching = start()
        assert grant.id in watching.expect("offline")["detail"]
        client.revoke(grant.id)
        watching.expect("opened")
    double.full = {"198.51.100.9/32"}
    watching.expect("online")
    double.source = "198.51.100.9"
    assert "as many grants as a source may have" in watching.expect("offline")["detail"]


def test_offline_is_reported_once_and_access_is_back_when_the_api_is(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    double.faults = [(200, {"Content-Type": "text/html"}, b"please log in")] * 2
    watching = start()
    assert "hotspot" in watching.expect("offline")["detail"]
    watching.expect("opened")
    watching.expect("online")


def test_a_refusal_ends_the_watch_with_its_reason(
    home: Path, on_double: OnDouble, start: Callable[..., Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_API_KEY", "no-such-key-00000000")
    watching = start()
    assert watching.process.wait(timeout=10) == 1
    assert watching.process.stderr is not None
    assert json.loads(watching.process.stderr.read())["error"] == "KeyRejected"


def test_a_signal_stops_a_call_that_hangs(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    held = Held()
    double.faults = [held]
    watching = start()
    wait_for(lambda: held.waiting)
    assert watching.stop() == (0, "")
    assert held.waiting, "it waited for the answer"
    held.release()


def test_a_signal_in_the_middle_of_an_answer_does_not_keep_the_grant_from_being_revoked(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    watching = start("--revoke")
    grant = watching.expect("opened")["grant"]["id"]
    held = Held()
    double.faults = [held]
    wait_for(lambda: held.waiting)
    assert watching.stop() == (0, "")
    assert held.waiting, "it waited for the answer"
    held.release()
    assert double.grants[grant]["status"] == "revoked"


def test_a_signal_during_a_knock_waits_for_its_answer_and_revokes_the_grant(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    double.faults = [None, None, 1.0]  # whoami and the live grants at once, the knock after a second
    watching = start("--revoke")
    wait_for(lambda: double.calls("POST") == 1)
    assert watching.stop() == (0, "")
    (grant,) = double.grants.values()
    assert grant["status"] == "revoked", "else the grant would stay open, and its id be unknown"


def test_a_closed_terminal_stops_it_and_the_grant_is_revoked(double: Double, on_double: OnDouble) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        words = ["knock", "watch", "bastion", "--for", "1h", "--revoke"]
        os.execvp("knock", words)  # noqa: S606 — the program under test
    wait_for(lambda: [grant["status"] for grant in double.grants.values()] == ["active"])
    output = b""
    while b"open: bastion" not in output:
        output += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"]


def test_an_ignored_hangup_stays_ignored(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup; it is inherited
    try:
        watching = start("--revoke")
    finally:
        signal.signal(signal.SIGHUP, before)
    watching.expect("opened")
    watching.process.send_signal(signal.SIGHUP)
    before = len(double.requests)
    wait_for(lambda: len(double.requests) > before + 1)  # two checks
    assert watching.process.poll() is None
    assert watching.stop() == (0, "")


def test_a_second_signal_ends_the_watch_at_once(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    held = Held()
    double.faults = [None, None, held]
    watching = start()
    wait_for(lambda: held.waiting)
    watching.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        watching.process.wait(timeout=signals.SAME_REQUEST + 0.2)
    watching.process.send_signal(signal.SIGTERM)
    assert watching.process.wait(timeout=15) == -signal.SIGTERM
    assert held.waiting, "it waited for the answer"
    held.release()


def test_two_signals_of_one_request_to_stop_still_revoke(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    watching = start("--revoke", "--every", "60")  # so that the next call is the one that revokes
    grant = watching.expect("opened")["grant"]["id"]
    double.faults = [0.5]
    watching.process.send_signal(signal.SIGTERM)
    wait_for(lambda: double.calls("DELETE") == 1)
    assert watching.stop() == (0, "")
    assert double.grants[grant]["status"] == "revoked"


def test_a_grant_that_could_not_be_revoked_at_the_end_is_named_and_found_by_the_next_watch(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    watching = start("--revoke", "--every", "60")
    grant = watching.expect("opened")["grant"]["id"]
    double.faults = ["drop"] * 3
    watching.process.send_signal(signal.SIGTERM)
    assert watching.process.wait(timeout=20) == 3
    assert f"not revoked; grant {grant} stays open until" in watching.expect("stopped")["detail"]
    assert start().expect("found")["grant"]["id"] == grant


def test_a_grant_of_a_killed_watch_at_another_address_is_ended_by_the_next_watch(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    killed = start("--revoke")
    left_behind = killed.expect("opened")["grant"]["id"]
    killed.process.kill()
    killed.process.wait()
    double.source = "198.51.100.9"
    watching = start("--revoke")
    assert watching.expect("found")["grant"]["id"] == left_behind
    moved = watching.expect("moved")["grant"]
    assert moved["renews"] == left_behind
    watching.expect("revoked")
    assert double.grants[left_behind]["status"] == "superseded"
    watching.stop()
    assert state.WatchSlot(f"{double.url} bastion").ids == []


def test_a_watch_stopped_before_it_reached_the_api_keeps_the_grants_of_a_killed_one(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    killed = start("--revoke")
    left_behind = killed.expect("opened")["grant"]["id"]
    killed.process.kill()
    killed.process.wait()
    double.faults = ["drop"] * 3
    watching = start("--revoke")
    watching.expect("offline")
    assert watching.stop() == (0, "")
    assert state.WatchSlot(f"{double.url} bastion").ids == [left_behind]


def test_a_pending_grant_is_waited_for_and_a_failed_one_tried_again(
    double: Double, on_double: OnDouble, start: Callable[..., Watching]
) -> None:
    double.opens_after, double.fails = 0.4, "PoolExhausted: full"
    watching = start()
    assert "is failed" in watching.expect("offline")["detail"]
    double.fails = ""
    assert watching.expect("opened")["grant"]["status"] == "active"
    watching.expect("online")


def test_lines_are_for_people_or_ids_when_quiet(on_double: OnDouble, home: Path) -> None:
    for words, expected in (
        ([], "open: bastion (22/tcp) from 203.0.113.7/32 until "),
        (["-q"], "alice_203-0-113-7_"),
    ):
        with subprocess.Popen(
            ["knock", "watch", "bastion", *words], stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout is not None
            assert expected in running.stdout.readline()
            running.terminate()
            assert running.wait(timeout=15) == 0


# ---------------------------------------------------------------------- one watch in this process


@pytest.fixture
def watcher(on_double: OnDouble) -> Iterator[watch.Watch]:
    from knock.screen import Screen
    from knock.session import Session, Wanted

    slot = state.WatchSlot("a watch")
    with Session(None, Screen(as_json=True)) as api:
        yield watch.Watch(api, Screen(as_json=True), slot, Wanted(["bastion"], "1h", None))
    slot.close()


class Clocks:
    """The clocks of a machine, which move by the pauses of the watch. `suspended` is the time it slept."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.suspended = 0.0
        self.suspend_at = 0  # the pause in which the machine sleeps for an hour; 0 for none

    def monotonic(self) -> float:
        return sum(self.pauses)

    def time(self) -> float:
        return 1_800_000_000 + sum(self.pauses) + self.suspended

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == self.suspend_at:
            self.suspended += 3600


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    fake = Clocks()
    monkeypatch.setattr(watch, "time", fake)
    return fake


def test_another_network_ends_the_wait_and_the_backoff(
    watcher: watch.Watch, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "fingerprint", lambda: "home")
    watcher.network = "home"
    watcher.failures = 5
    watcher._wait(2 * watch.LOOK + 1)
    assert clocks.pauses == [watch.LOOK, watch.LOOK, 1]
    assert watcher.failures == 5
    monkeypatch.setattr(network, "fingerprint", lambda: "a café")
    clocks.pauses.clear()
    watcher._wait(60)
    assert clocks.pauses == [watch.LOOK]
    assert watcher.failures == 0


def test_a_grant_that_a_killed_watch_opened_with_another_key_is_left_alone(
    double: Double, on_double: OnDouble, monkeypatch: pytest.MonkeyPatch, start: Callable[..., Watching]
) -> None:
    """Mutation: clients/knock/watch.py: `or grant.principal.id != me:` -> `:`"""
    first = start("--revoke")
    alices = first.expect("opened")["grant"]["id"]
    first.process.kill()
    first.process.wait()
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    second = start("--revoke")
    assert second.expect("opened")["grant"]["id"] != alices
    assert second.stop() == (0, "")
    assert double.grants[alices]["status"] == "active"


def test_waking_from_sleep_ends_the_wait(
    watcher: watch.Watch, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "fingerprint", lambda: "home")
    watcher.network = "home"
    clocks.suspend_at = 2
    watcher._wait(60)
    assert clocks.pauses == [watch.LOOK] * 2


def test_pauses_between_attempts_double_up_to_a_minute(watcher: watch.Watch) -> None:
    pauses = [watcher._pause_after(KnockError("offline")) for _ in range(9)]
    assert all(0.75 * 2**n <= pause <= 2**n for n, pause in enumerate(pauses[:6]))
    assert all(45 <= pause <= 60 for pause in pauses[6:])


def test_for_a_grant_that_is_gone_from_the_trail_a_new_one_is_opened(
    watcher: watch.Watch, double: Double
) -> None:
    watcher._check()
    assert watcher.grant is not None
    first = watcher.grant.id
    del double.grants[first]
    watcher._check()
    assert watcher.grant is not None
    assert watcher.grant.id != first


def test_for_an_expired_grant_a_new_one_is_opened(watcher: watch.Watch, double: Double) -> None:
    watcher._check()
    assert watcher.grant is not None
    first = double.grants[watcher.grant.id]
    first["end"] = double.now()
    watcher._check()
    assert first["status"] == "expired"
    assert double.calls("POST") == 2


def test_an_old_grant_that_could_not_be_revoked_is_revoked_by_the_next_check(
    watcher: watch.Watch, double: Double
) -> None:
    watcher._check()
    assert watcher.grant is not None
    first = watcher.grant.id
    double.source = "198.51.100.9"
    busy = (
        409,
        {},
        {"type": "urn:knock:problem:pool-exhausted", "title": "No", "status": 409, "detail": "x"},
    )
    double.faults = [None, None, busy]
    watcher._check()
    double.grants[first]["status"] = "active"  # as if the renewal had died before it ended the old grant
    assert watcher.left_behind == [first]
    watcher._check()
    assert double.grants[first]["status"] == "revoked"
    assert watcher.left_behind == []
    assert double.calls("POST") == 2


def test_a_grant_that_may_be_open_is_ended_by_the_next_check(watcher: watch.Watch, double: Double) -> None:
    lost = double.knock("alice", {"targets": ["bastion"]})[2]["id"]
    unavailable = {"type": "urn:knock:problem:engine-unavailable", "title": "Try again", "status": 503}
    unavailable |= {"detail": "no answer", "grant_id": lost}
    double.faults = [None, None, (503, {"Retry-After": "0"}, unavailable)]
    watcher._check()
    assert watcher.slot.ids == [lost]
    watcher.reported.clear()
    watcher._check()
    assert watcher.reported == set(), "a grant that the watch is about to end is not reported as another's"
    assert watcher.grant is not None
    assert watcher.slot.ids == [watcher.grant.id]
    assert double.grants[lost]["status"] == "revoked"
    assert watcher.left_behind == []
    assert double.calls("POST") == 2


def test_a_renewal_whose_old_grant_is_gone_opens_a_new_one(watcher: watch.Watch, double: Double) -> None:
    watcher._check()
    double.grants.clear()
    watcher._open("renewed", watcher.grant)
    (grant,) = double.grants.values()
    assert watcher.grant is not None
    assert (grant["id"], grant["renews"]) == (watcher.grant.id, None)


def test_a_renewal_that_does_not_open_leaves_the_old_grant_to_the_watch(
    watcher: watch.Watch, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher._check()
    old = watcher.grant
    assert old is not None
    double.opens_after, double.fails = 0.1, "PoolExhausted: full"
    monkeypatch.setattr(watcher, "_until_renewal", lambda: 0.0)
    watcher._check()
    assert watcher.failures == 1
    assert watcher.grant is not None
    assert watcher.grant.id == old.id
    assert double.grants[old.id]["status"] == "active"
    double.fails = ""
    watcher._check()
    assert watcher.grant.id != old.id
    assert double.grants[old.id]["status"] == "superseded"
    assert watcher.slot.ids == [watcher.grant.id]
    assert watcher.left_behind == []


def test_the_watch_stops_though_the_remaining_grants_cannot_be_listed(
    watcher: watch.Watch, double: Double
) -> None:
    watcher.revoke = True
    watcher._check()
    double.faults = [None, *["drop"] * 4]
    watcher._stopped()
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"]
    assert watcher.slot.ids == []


def test_the_seconds_between_checks_are_bounded(run: Run) -> None:
    for words in (["--every", "0.1"], ["--every", "7200"], ["--every", "often"]):
        result = run("watch", *words)
        assert result.code == 2
        assert "a number of seconds from 1 to 3600 was expected" in result.err
