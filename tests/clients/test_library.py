"""`from knock import Client`: what Python programs rely on, on the double and on the local stack."""

from __future__ import annotations

import pickle
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest

import knock
import knock.client
from knock import (
    AnswerLost,
    Client,
    ConfigurationError,
    GrantNotFound,
    GrantNotOpened,
    InvalidKnock,
    KeyRejected,
    NotAllowed,
    UnexpectedAnswer,
)
from knock.answers import read_grant
from tests.clients.conftest import CLIENTS, Api, check_time_left
from tests.clients.double import Double
from tests.waiting import wait_for


def test_a_knock_gives_the_active_grant(api: Api) -> None:
    began = datetime.now(timezone.utc)
    with api.client("alice") as client:
        grant = client.knock("bastion", duration="1h", reason="on call")
    check_time_left(
        timedelta(hours=1), began=began, expires_at=grant.expires_at, seconds_left=grant.seconds_left
    )
    assert grant.status == "active"
    assert grant.live
    assert grant.principal.name == "alice"
    assert grant.source == "203.0.113.7/32"
    assert [str(target) for target in grant.targets] == ["bastion (22/tcp)"]
    assert grant.reason == "on call"
    assert grant.duration == timedelta(hours=1)
    assert grant.expires_at.tzinfo is not None
    assert grant.expires_at.microsecond == 0
    assert grant.json["id"] == grant.id


def test_a_duration_is_a_text_seconds_or_a_timedelta(api: Api) -> None:
    with api.client("alice") as client:
        for duration in ("90m", 5400, timedelta(minutes=90)):
            assert client.knock("bastion", duration=duration).duration == timedelta(minutes=90)


def test_each_knock_is_a_grant_of_its_own(api: Api) -> None:
    with api.client("alice") as client:
        longer, shorter = client.knock("bastion", duration="1h"), client.knock("bastion", duration="10m")
        assert (longer.renews, shorter.renews) == ("", "")
        client.revoke(shorter.id)
        assert client.grant(longer.id).status == "active"
        assert api.lets_in("203.0.113.7/32", "bastion"), "the rules are shared by live grants"
        client.revoke(longer.id)
        assert not api.lets_in("203.0.113.7/32", "bastion")


def test_a_renewal_takes_the_place_of_the_grant_that_it_names(api: Api) -> None:
    with api.client("alice") as client:
        old, beside = client.knock("bastion", duration="1h"), client.knock("bastion", duration="1h")
        new = client.renew(old, duration="2h")
        assert new.renews == old.id
        wait_for(lambda: client.grant(old.id).status == "superseded")  # a moment after access is open
        assert client.grant(old.id).ended_by == new.id
        assert client.grant(beside.id).status == "active"
        assert new.duration == timedelta(hours=2)
        assert client.renew(new).duration == timedelta(hours=2)
        assert client.knock("bastion", renews=old.id).renews == old.id, (
            "a grant that has ended is no obstacle"
        )


def test_anothers_grant_cannot_be_renewed(api: Api) -> None:
    with api.client("alice") as alice, api.client("operator") as operator:
        alices = alice.knock("bastion", duration="1h")
        for named in (alices.id, "nobody_203-0-113-7_20261123T211719Z_0123456789abcdef"):
            with pytest.raises(GrantNotFound):
                operator.knock("bastion", renews=named)
        assert alice.grant(alices.id).status == "active"
        assert [grant.id for grant in alice.grants()] == [alices.id], "nothing was opened"


def test_every_answer_about_a_grant_says_where_the_call_came_from(api: Api) -> None:
    with api.client("alice") as client:
        grant = client.knock("bastion", duration="1h")
        assert grant.caller == grant.source == "203.0.113.7/32"
        api.come_from("198.51.100.9")
        assert client.grant(grant.id).caller == "198.51.100.9/32"
        assert [listed.caller for listed in client.grants()] == ["198.51.100.9/32"]
        ended = client.revoke(grant.id)
        assert (ended.caller, ended.source) == ("198.51.100.9/32", "203.0.113.7/32")


def test_a_grant_has_its_events(api: Api) -> None:
    with api.client("alice") as client:
        grant = client.knock("bastion", duration="1h")
        ended = client.revoke(grant.id, "laptop lost & found")
        assert (ended.status, ended.ended_by) == ("revoked", "alice")
        assert ended.ended_at is not None
        assert ended.seconds_left == 0
        events = client.grant(grant.id).events
        assert events[0]["event"] == "requested"
        assert "authorized" in [event["event"] for event in events]
        assert any("laptop lost & found" in str(event) for event in events)
        assert client.revoke(grant.id).status == "revoked", "a second revocation gives the same"


def test_live_grants_are_listed_and_others_on_request(api: Api) -> None:
    with api.client("alice") as client:
        bastion, web = client.knock("bastion", duration="1h"), client.knock("web", duration="1h")
        client.revoke(web.id)
        assert [grant.id for grant in client.grants()] == [bastion.id]
        assert [grant.id for grant in client.grants(status="all")] == [web.id, bastion.id], "newest first"
        assert [grant.id for grant in client.grants(status="revoked")] == [web.id]
        assert [grant.id for grant in client.grants(status="all", target="web")] == [web.id]
        assert list(client.grants(source="198.51.100.1/32")) == []
        assert [grant.id for grant in client.grants(source="203.0.113.7")] == [bastion.id], "in any form"
        with pytest.raises(InvalidKnock, match="home"):
            list(client.grants(source="home"))


def test_grants_follow_from_page_to_page_and_stop_at_the_limit(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knock.client, "PAGE", 2)
    with api.client("alice") as client:
        ids = [client.knock("bastion", duration="1h").id for _ in range(5)]
        assert [grant.id for grant in client.grants(status="all")] == ids[::-1]
        assert [grant.id for grant in client.grants(status="all", limit=3)] == ids[:1:-1]
        assert list(client.grants(limit=0)) == []


def test_an_operators_own_grants_are_not_everyones(api: Api) -> None:
    with api.client("alice") as alice, api.client("operator") as operator:
        alices, own = alice.knock("bastion", duration="1h"), operator.knock("web", duration="1h")
        assert {grant.id for grant in operator.grants()} == {alices.id, own.id}
        assert [grant.id for grant in operator.own_grants()] == [own.id]
        assert [grant.id for grant in alice.own_grants()] == [alices.id]


def test_whoami_tells_the_principal_the_source_and_the_limits(api: Api) -> None:
    with api.client("ci") as client:
        me = client.whoami()
    assert me.principal.name == "ci"
    assert me.source == "203.0.113.7/32"
    assert [target.name for target in me.targets] == ["bastion", "web"]
    assert me.max_duration
    assert me.default_duration
    assert not me.operator
    assert me.json["any_source"]
    assert (me.live, me.max_live) == (0, 1000)


def test_a_key_with_the_right_names_another_source(api: Api) -> None:
    with api.client("ci") as client:
        assert client.knock("bastion", duration="1h", source="198.51.100.7/32").source == "198.51.100.7/32"


def test_each_refusal_has_its_class_and_its_reason(api: Api) -> None:
    with api.client("alice") as client:
        with pytest.raises(
            NotAllowed, match=r"may not open nosuch.*bastion, web.*knock:targets"
        ) as not_allowed:
            client.knock("nosuch")
        with pytest.raises(NotAllowed, match=r"203\.0\.113\.7/32"):
            client.knock("bastion", source="198.51.100.7/32")
        with pytest.raises(InvalidKnock, match="duration is like") as invalid:
            client.knock("bastion", duration="a while")
        with pytest.raises(GrantNotFound, match="there is no grant"):
            client.grant("nobody_203-0-113-7_20261123T211719Z_x")
        with pytest.raises(GrantNotFound):
            client.revoke("../whoami?x=#")
    assert (not_allowed.value.right, not_allowed.value.status) == ("knock:targets", 403)
    assert (invalid.value.field, invalid.value.status) == ("duration", 400)
    assert invalid.value.type == "urn:knock:problem:invalid-knock"
    assert invalid.value.json["detail"] == invalid.value.detail


def test_anothers_grant_is_not_found(api: Api) -> None:
    with api.client("alice") as alice, api.client("bob") as bob:
        grant = alice.knock("bastion", duration="1h")
        with pytest.raises(GrantNotFound):
            bob.grant(grant.id)
        with pytest.raises(GrantNotFound):
            bob.revoke(grant.id)
        assert alice.grant(grant.id).status == "active"


def test_a_wrong_key_is_told_from_a_wrong_url(api: Api) -> None:
    with (
        Client(api.url, "no-such-key-" + "0" * 20) as client,
        pytest.raises(KeyRejected, match="wrong, disabled"),
    ):
        client.whoami()
    key = api.keys["alice"]
    with Client(api.url + "/nowhere", key) as client, pytest.raises(UnexpectedAnswer, match="with its stage"):
        client.whoami()


def test_a_url_pasted_with_its_last_part_is_cut(api: Api) -> None:
    for end in ("/", "/knock", "/console", "/whoami/"):
        with Client(api.url + end, api.keys["alice"]) as client:
            assert client.url == api.url
            assert client.whoami().principal.name == "alice"


def test_an_ipv6_caller_gets_a_128(api: Api) -> None:
    api.come_from("2001:db8::7")
    with api.client("alice") as client:
        assert client.knock("bastion", duration="1h").source == "2001:db8::7/128"


def test_grants_of_another_principal_of_the_same_name_are_not_own_grants(double: Double) -> None:
    with Client(double.url, double.keys["operator"]) as operator:
        own, namesakes = operator.knock("web"), operator.knock("bastion")
        double.grants[namesakes.id]["principal"] = {"id": "another", "name": "operator"}
        assert [grant.id for grant in operator.own_grants()] == [own.id]
    assert "principal=operator" in double.requests[-1].path, "the API filters by name"


def test_the_duration_is_the_requested_one_though_the_end_is_rounded_up(double: Double) -> None:
    with Client(double.url, double.keys["alice"]) as client:
        grant = client.knock("bastion", duration="1h")
    for millisecond in ("000", "001", "500", "999"):
        end = "10:00:00" if millisecond == "000" else "10:00:01"
        answer = {
            **grant.json,
            "requested_at": f"2026-11-23T09:00:00.{millisecond}Z",
            "expires_at": f"2026-11-23T{end}Z",
        }
        assert read_grant(answer).duration == timedelta(hours=1)


# ---------------------------------------------------------------------- pending grants


def test_a_pending_grant_is_waited_for(double: Double) -> None:
    double.opens_after = 0.6
    with Client(double.url, double.keys["alice"]) as client:
        grant = client.knock("bastion")
    assert grant.status == "active"
    assert double.calls("POST") == 1
    assert double.calls("GET", "/grants/") >= 2


def test_without_waiting_a_pending_grant_is_given_as_it_is(double: Double) -> None:
    double.opens_after = 60
    with Client(double.url, double.keys["alice"]) as client:
        assert client.knock("bastion", wait=0).status == "pending"


def test_a_pending_grant_that_fails_is_an_error_that_holds_it(double: Double) -> None:
    double.opens_after, double.fails = 0.3, "PoolExhausted: full"
    with (
        Client(double.url, double.keys["alice"]) as client,
        pytest.raises(GrantNotOpened, match="failed") as caught,
    ):
        client.knock("bastion")
    assert caught.value.grant.status == "failed"
    assert caught.value.grant.events[-1]["reason"] == "PoolExhausted: full"


def test_a_grant_that_stays_pending_is_given_up_at_the_deadline(double: Double) -> None:
    double.opens_after = 60
    with (
        Client(double.url, double.keys["alice"]) as client,
        pytest.raises(GrantNotOpened, match="still pending"),
    ):
        client.knock("bastion", wait=0.5)


def test_an_unreachable_api_does_not_end_the_wait_for_a_pending_grant(double: Double) -> None:
    double.opens_after = 0.5
    with Client(double.url, double.keys["alice"]) as client:
        grant = client.knock("bastion", wait=0)
        double.faults = [(503, {}, {"title": "Try again", "status": 503, "detail": "no"})] * 3
        assert client.wait_until_active(grant).status == "active"
        assert double.faults == []


def test_a_wait_without_any_answer_ends_with_the_last_error(double: Double) -> None:
    double.opens_after = 60
    with Client(double.url, double.keys["alice"]) as client:
        grant = client.knock("bastion", wait=0)
        double.faults = [(500, {}, {"title": "Fault", "status": 500, "detail": "its log says more"})] * 3
        with pytest.raises(GrantNotOpened, match="could not be asked: Fault: its log says more"):
            client.wait_until_active(grant, 0.3)


# ---------------------------------------------------------------------- the package


def test_the_key_is_in_no_repr_and_no_error(double: Double) -> None:
    key = double.keys["alice"]
    client = Client(double.url, key)
    assert key not in repr(client)
    assert repr(client) == f"Client({double.url!r})"
    with pytest.raises(ConfigurationError) as caught:
        Client(double.url, key + " " + key)
    assert key not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        Client(f"https://user:{key}@api.example.com/prod", key)
    assert key not in str(caught.value)


def test_every_exported_name_exists_and_another_is_an_attribute_error() -> None:
    for name in knock.__all__:
        assert getattr(knock, name).__name__ == name
    assert set(dir(knock)) >= set(knock.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = knock.Nonsense


def test_importing_the_package_imports_no_http() -> None:
    code = "import sys, knock; print(*{'http.client', 'ssl', 'json', 'dataclasses'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=CLIENTS, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


def test_values_are_frozen_and_can_be_pickled(double: Double) -> None:
    with Client(double.url, double.keys["alice"]) as client:
        grant = client.knock("bastion")
    with pytest.raises(AttributeError):
        grant.status = "revoked"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(grant)) == grant  # noqa: S301 — our own


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"id": "x", "status": "active"},
        {"grants": None},
        [],
        {"id": "x", "status": "active", "principal": "alice", "source": "", "targets": [], "requested_at": "",
         "expires_at": "", "seconds_left": 1},
        {"id": "x", "status": "active", "principal": {"id": "a", "name": "a"}, "source": "", "targets": [],
         "requested_at": "yesterday", "expires_at": "soon", "seconds_left": 1},
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_refused(double: Double, answer: object) -> None:
    with Client(double.url, double.keys["alice"]) as client:
        for call in (client.knock, lambda: list(client.grants())):
            double.faults = [(200, {}, answer)]
            with pytest.raises((UnexpectedAnswer, AnswerLost)):
                call()
        double.faults = [(200, {}, {"principal": "alice"})]
        with pytest.raises(UnexpectedAnswer, match="who is calling"):
            client.whoami()
