"""Durations, times, sources, ports, ids: what is read means what it says, and nothing else is read."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grants.errors import InvalidGrant
from grants.values import (
    DIGITS,
    GRANT_ID,
    LARGEST_INPUT,
    MOST_GROUPS,
    MOST_RULES,
    MOST_TARGETS,
    Event,
    Grant,
    Opened,
    Ports,
    Principal,
    Record,
    RuleKey,
    Target,
    canonical_source,
    compact_json,
    cut_to_milliseconds,
    name_grant,
    parse_duration,
    parse_time,
    requested_at_of,
    round_up,
    show_duration,
    show_second,
    show_time,
    source_of,
)
from tests.conftest import ROOT

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc)
SSH = Ports(22, 22, "tcp")


class TestDuration:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("1 s", 1),
            ("1s", 1),
            ("90m", 5400),
            ("8h", 28_800),
            ("8 h", 28_800),
            ("8H", 28_800),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("1d", 86_400),
            ("24h", 86_400),
            ("PT8H", 28_800),
            ("P1D", 86_400),
            ("PT1H30M", 5400),
            ("P1DT1S", 86_401),
            ("86400", 86_400),
            (86_400, 86_400),
            (86_400.0, 86_400),
        ],
    )
    def test_a_duration_means_what_it_says(self, text: object, seconds: int) -> None:
        """A duration that is misread leaves rules open.

        Mutation: functions/grants/values.py: `"h": 3_600` -> `"h": 60`
        """
        assert parse_duration(text) == timedelta(seconds=seconds)

    def test_a_bare_number_is_seconds(self) -> None:
        assert parse_duration("8") == timedelta(seconds=8)

    @pytest.mark.parametrize(
        "text",
        ["24 o'clock", "", " ", "0", 0, "0s", -1, "-1h", "PT", "P", "P1DT", "h", "1 2h", "1h1h", "1m1h",
         "٣h", "1e3", "8h\n8h", "1" * 400, 10**30, "99999999999", 1.5, float("nan"), float("inf"), True,
         None, [], "366d"],
    )  # fmt: skip
    def test_anything_else_is_refused_in_words(self, text: object) -> None:
        with pytest.raises(ValueError, match=r"duration|longer"):
            parse_duration(text)

    @given(st.integers(1, 365 * 86_400))
    def test_a_duration_shown_reads_back_the_same(self, seconds: int) -> None:
        assert parse_duration(show_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


class TestTime:
    @given(st.datetimes(datetime(2020, 1, 1), datetime(2200, 1, 1)))
    def test_texts_of_times_sort_as_the_times_do(self, at: datetime) -> None:
        at = at.replace(tzinfo=timezone.utc)
        later = at + timedelta(milliseconds=1)
        assert show_time(at) < show_time(later)
        assert parse_time(show_time(at)) == at.replace(microsecond=at.microsecond // 1000 * 1000)

    @given(st.datetimes(datetime(2020, 1, 1), datetime(2200, 1, 1)))
    def test_an_end_is_rounded_up_to_a_whole_second_and_never_down(self, at: datetime) -> None:
        at = at.replace(tzinfo=timezone.utc)
        end = round_up(at)
        assert end.microsecond == 0
        assert timedelta(0) <= end - at < timedelta(seconds=1)

    @pytest.mark.parametrize(
        "text",
        ["2026-11-23T12:00:00", "2026-11-23T12:00:00+00:00", "2026-11-23 12:00:00Z", "2026-13-23T12:00:00Z",
         "tomorrow", "", None, 5, "2026-11-23T12:00:00Z ", "２026-11-23T12:00:00Z"],
    )  # fmt: skip
    def test_a_time_of_another_shape_is_refused(self, text: object) -> None:
        with pytest.raises(ValueError, match=r"time|match|day|month|expected"):
            parse_time(text)


class TestSource:
    @pytest.mark.parametrize(
        ("address", "cidr"),
        [
            ("203.0.113.7", "203.0.113.7/32"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("2001:DB8:0:0::1", "2001:db8::1/128"),
            ("::ffff:203.0.113.7", "203.0.113.7/32"),
            ("fe80::1%eth0", "fe80::1/128"),
        ],
    )
    def test_a_callers_address_becomes_one_cidr(self, address: str, cidr: str) -> None:
        assert source_of(address) == cidr

    @pytest.mark.parametrize("address", ["", "203.0.113", "203.0.113.7/24", "localhost", "1.2.3.4, 5.6.7.8"])
    def test_a_text_that_is_no_address_is_refused(self, address: str) -> None:
        with pytest.raises(ValueError, match=r"address"):
            source_of(address)

    @pytest.mark.parametrize(
        ("text", "cidr"),
        [
            ("203.0.113.7", "203.0.113.7/32"),
            ("203.0.113.7/32", "203.0.113.7/32"),
            ("203.0.113.0/28", "203.0.113.0/28"),
            ("2001:DB8:0::7", "2001:db8::7/128"),
            ("2001:DB8::7/128", "2001:db8::7/128"),
            ("2001:0DB8::/56", "2001:db8::/56"),
            ("::ffff:203.0.113.7", "203.0.113.7/32"),
        ],
    )
    def test_a_source_in_any_form_means_its_canonical_cidr(self, text: str, cidr: str) -> None:
        assert canonical_source(text) == canonical_source(cidr) == cidr

    @pytest.mark.parametrize(
        "text",
        ["", "alice", "203.0.113.7/24", "203.0.113.7/33", "203.0.113", "fe80::1%eth0", "fe80::1%1/128"],
    )
    def test_a_text_that_is_no_source_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"address|host bits|IPv4|zone"):
            canonical_source(text)


class TestPorts:
    @pytest.mark.parametrize("text", ["22/tcp", "8000-8010/tcp", "53/udp", "1/tcp", "65535/tcp"])
    def test_ports_read_back_as_written(self, text: str) -> None:
        assert str(Ports.parse(text)) == text

    @pytest.mark.parametrize(
        "text",
        ["22", "tcp/22", "0/tcp", "65536/tcp", "10-5/tcp", "22/icmp", "22/TCP", "", "²2/tcp", "22/tcp "],
    )
    def test_ports_of_another_shape_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"ports"):
            Ports.parse(text)

    @pytest.mark.parametrize("cidr", ["203.0.113.7/32", "2001:db8::/56"])
    def test_a_rule_key_reads_back_as_written(self, cidr: str) -> None:
        key = RuleKey("sg-0a", Ports(8000, 8010, "tcp"), cidr)
        assert RuleKey.parse(str(key)) == key


class TestGrantId:
    def test_a_grants_id_says_who_from_where_and_when(self) -> None:
        name = name_grant(Principal("k1", "alice"), "203.0.113.7/32", NOON, "9f86d081884c7d65")
        assert name == "alice_203-0-113-7_20261123T120000Z_9f86d081884c7d65"

    @given(
        st.text(min_size=0, max_size=300),
        st.sampled_from(["203.0.113.7/32", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff/128", "203.0.113.0/28"]),
    )
    def test_a_grants_id_is_a_valid_name_of_an_execution_whatever_the_keys_name(
        self, name: str, source: str
    ) -> None:
        grant_id = name_grant(Principal("k1", name), source, NOON, "0123456789abcdef")
        assert GRANT_ID.fullmatch(grant_id)
        assert grant_id.endswith("_20261123T120000Z_0123456789abcdef")
        assert requested_at_of(grant_id) == NOON

    @given(st.datetimes(datetime(2020, 1, 1), datetime(2200, 1, 1)))
    def test_a_grants_id_says_when_it_was_asked_for_to_the_second(self, at: datetime) -> None:
        at = at.replace(tzinfo=timezone.utc)
        name = name_grant(Principal("k1", "alice"), "203.0.113.7/32", at, "0" * DIGITS)
        assert requested_at_of(name) == at.replace(microsecond=0)

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "alice",
            "alice_203-0-113-7_20261123T120000Z_x7k2p9",
            "alice_203-0-113-7_20261123T120000Z_9f86d081884c7d65_",
            "alice_203-0-113-7_20261323T120000Z_9f86d081884c7d65",
            "alice_203-0-113-7_20261123T120000Z_9F86D081884C7D65",
            "203-0-113-7_20261123T120000Z_9f86d081884c7d65",
        ],
    )
    def test_a_name_of_another_shape_does_not_say_when(self, name: str) -> None:
        assert requested_at_of(name) is None


def grant(**changes: object) -> Grant:
    values: dict[str, object] = {
        "principal": Principal("k1", "alice"),
        "source": "203.0.113.7/32",
        "targets": (Target("bastion", (Ports(22, 22, "tcp"),), ("sg-0a", "sg-0b")),),
        "requested_at": NOON,
        "expires_at": NOON + timedelta(hours=8),
        "reason": "on call",
        "nonce": "0123456789abcdef",
    }
    return Grant.decide(**(values | changes))  # type: ignore[arg-type]


CHANGES: dict[str, object] = {
    "principal": {"id": "k2", "name": "alice"},
    "source": "203.0.113.8/32",
    "targets": [{"name": "bastion", "ports": ["1-65535/tcp"], "groups": ["sg-0a", "sg-0b"]}],
    "by_name": False,
    "requested_at": "2026-11-23T12:00:00.001Z",
    "expires_at": "2027-11-23T12:00:00Z",
    "reason": "another",
    "renews": "alice_203-0-113-7_20261123T110000Z_0123456789abcdef",
    "nonce": "fedcba9876543210",
}


class TestDigest:
    def test_a_grants_id_ends_with_the_digest_of_its_content(self) -> None:
        content = {name: value for name, value in grant().as_input().items() if name != "grant_id"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        assert grant().id == f"alice_203-0-113-7_20261123T120000Z_{digest}"

    @pytest.mark.parametrize("field", CHANGES)
    def test_an_input_with_another_field_is_not_that_grants(self, field: str) -> None:
        """Else an execution under a live grant's id could open anything.

        Mutation: functions/grants/values.py: `if own_id != grant.id:` -> `if False:`
        """
        assert set(CHANGES) | {"version", "grant_id"} == {*grant().as_input(), "renews"}
        with pytest.raises(InvalidGrant, match="not that of the grant"):
            Grant.from_input(grant().as_input() | {field: CHANGES[field]})

    @pytest.mark.parametrize("groups", [["sg-0a"], ["sg-0b", "sg-0a"], ["sg-0a", "sg-0b", "sg-0c"]])
    def test_nor_is_an_input_with_other_groups(self, groups: list[str]) -> None:
        value = grant().as_input()
        value["targets"][0]["groups"] = groups
        with pytest.raises(InvalidGrant, match="its own id is"):
            Grant.from_input(value)

    def test_the_order_of_an_inputs_keys_does_not_matter(self) -> None:
        value = json.loads(compact_json(grant().as_input()))
        assert Grant.from_input(dict(reversed(value.items()))) == grant()

    def test_two_knocks_of_one_moment_are_two_grants(self) -> None:
        assert grant(nonce="a").id != grant(nonce="b").id


class TestInput:
    @pytest.mark.parametrize(
        "changes",
        [{}, {"by_name": False}, {"renews": "alice_x"}, {"reason": ""}, {"source": "2001:db8::/60"}],
    )
    def test_an_input_reads_back_as_the_grant_that_wrote_it(self, changes: dict[str, object]) -> None:
        assert Grant.from_input(grant(**changes).as_input()) == grant(**changes)

    def test_what_tasks_added_to_the_state_is_ignored(self) -> None:
        state = grant().as_input() | {"rules": [], "error": {"Error": "X"}, "anything": 1}
        assert Grant.from_input(state) == grant()

    def test_the_first_versions_input_is_read(self) -> None:
        value = json.loads((ROOT / "tests" / "fixtures" / "inputs" / "v1.json").read_text())
        assert Grant.from_input(value).as_input() == value

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("expires_at", "2026-11-23T20:00:00+00:00"),
            ("expires_at", "2026-11-23T20:00:00.5Z"),
            ("expires_at", "soon"),
            ("expires_at", None),
            ("source", "203.0.113.7/24"),
            ("source", "203.0.113.7"),
            ("source", "2001:DB8::7/128"),
            ("source", "everywhere"),
            ("grant_id", ""),
            ("grant_id", 7),
            ("principal", "alice"),
            ("principal", {}),
            ("principal", {"id": "k1", "name": ""}),
            ("principal", {"id": "k1", "name": "a\nb"}),
            ("targets", [{"name": "bastion"}]),
            ("targets", [{"name": "bastion", "ports": ["22"], "groups": ["sg-0a"]}]),
            ("targets", [{"name": "bastion", "ports": [], "groups": ["sg-0a"]}]),
            ("targets", [{"name": "bastion", "ports": ["22/tcp"], "groups": []}]),
            ("targets", [{"name": "bastion", "ports": ["22/tcp"], "groups": [7]}]),
            ("targets", "bastion"),
            ("targets", []),
            ("targets", None),
            ("requested_at", "yesterday"),
            ("reason", None),
            ("reason", "two\nlines"),
            ("reason", "x" * 257),
            ("reason", "\ud800"),
            ("renews", None),
            ("renews", ""),
            ("nonce", 7),
            ("version", 2),
        ],
    )
    def test_an_input_that_is_no_grant_is_refused_with_the_error_that_asl_names(
        self, field: str, value: object
    ) -> None:
        with pytest.raises(InvalidGrant, match="not a grant"):
            Grant.from_input(grant().as_input() | {field: value})

    @pytest.mark.parametrize(
        "field",
        ["expires_at", "source", "grant_id", "targets", "principal", "requested_at", "by_name", "reason",
         "nonce"],
    )  # fmt: skip
    def test_an_input_without_a_field_is_refused_by_naming_it(self, field: str) -> None:
        value = grant().as_input()
        del value[field]
        with pytest.raises(InvalidGrant, match=f"'{field}' is missing"):
            Grant.from_input(value)

    @pytest.mark.parametrize("value", [None, [], "grant", 5])
    def test_an_input_that_is_no_object_is_refused(self, value: object) -> None:
        with pytest.raises(InvalidGrant):
            Grant.from_input(value)

    @pytest.mark.parametrize(
        "targets",
        [
            tuple(Target(f"t{n}", (SSH,), ("sg-0a",)) for n in range(MOST_TARGETS + 1)),
            (Target("t", tuple(Ports(n, n, "tcp") for n in range(1, MOST_RULES + 2)), ("sg-0a",)),),
            (Target("t", (SSH,), tuple(f"sg-{n}" for n in range(MOST_GROUPS + 1))),),
        ],
    )
    def test_more_targets_rules_or_groups_than_a_grant_may_have_are_refused(
        self, targets: tuple[Target, ...]
    ) -> None:
        """Else the end of a forged grant could not be recorded, and its closing would be tried for days.

        Mutation: functions/grants/values.py: `if len(targets) > MOST_TARGETS or` -> `if`
        """
        with pytest.raises(InvalidGrant, match=r"50 targets and 128 rules are the most|more than 200 groups"):
            Grant.from_input(grant(targets=targets).as_input())

    def test_more_bytes_than_a_record_holds_are_refused(self) -> None:
        """Mutation: functions/grants/values.py: `if size > LARGEST_INPUT:` -> `if False:`"""
        fits, groups = grant(), ["sg-" + "é" * 200] * 2
        while len(compact_json(fits.as_input()).encode()) <= LARGEST_INPUT - 1000:
            groups = [*groups, f"sg-{len(groups):0200}"]
            fits = grant(targets=(Target("bastion", (SSH,), tuple(groups)),))
        assert Grant.from_input(fits.as_input()) == fits
        too_large = grant(targets=(Target("bastion", (SSH,), (*groups, *groups[:8])),))
        with pytest.raises(InvalidGrant, match="30000 are the most"):
            Grant.from_input(too_large.as_input())

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*CHANGES, "id", "name"]), inner),
        )
    )
    def test_any_other_value_raises_invalid_grant_and_nothing_else(self, value: object) -> None:
        for candidate in (value, grant().as_input() | value if isinstance(value, dict) else value):
            try:
                assert Grant.from_input(candidate).as_input()["grant_id"] == grant().id
            except InvalidGrant:
                continue


class TestRuleKeys:
    def test_they_are_every_port_in_every_group_of_the_targets_pools(self) -> None:
        web = Target("web", (Ports(80, 80, "tcp"), Ports(443, 443, "tcp")), ("sg-0c", "sg-0d"))
        assert {str(key) for key in grant(targets=(web,)).rule_keys} == {
            "sg-0c/tcp/80/80/203.0.113.7/32",
            "sg-0c/tcp/443/443/203.0.113.7/32",
            "sg-0d/tcp/80/80/203.0.113.7/32",
            "sg-0d/tcp/443/443/203.0.113.7/32",
        }


class TestOpened:
    @pytest.mark.parametrize("foreign", [True, False])
    def test_it_reads_back_as_written(self, foreign: bool) -> None:
        key = RuleKey("sg-0a", Ports(8000, 8010, "udp"), "203.0.113.7/32")
        rule = Opened(key, "sgr-1", "bastion", foreign)
        assert Opened.from_json(json.loads(compact_json(rule.as_json())), key.cidr) == rule

    @pytest.mark.parametrize(
        "change", [{"rule": ""}, {"rule": 7}, {"ports": "22"}, {"group": None}, {"target": ["x"]}]
    )
    def test_a_rule_with_a_bad_field_is_refused(self, change: dict[str, object]) -> None:
        rule = Opened(RuleKey("sg-0a", SSH, "203.0.113.7/32"), "sgr-1", "bastion")
        with pytest.raises((KeyError, TypeError, ValueError)):
            Opened.from_json(rule.as_json() | change, "203.0.113.7/32")


class TestEvent:
    def test_it_reads_back_with_its_detail(self) -> None:
        event = Event(NOON, "revoked", "bob", {"reason": "lost laptop"})
        assert event.as_json()["reason"] == "lost laptop"
        assert Event.from_json(event.as_json()) == event


class TestRecord:
    @pytest.mark.parametrize(
        ("changes", "after", "status", "live"),
        [
            ({}, 0, "pending", True),
            ({"authorized_at": NOON}, 0, "active", True),
            ({"authorized_at": NOON}, 8 * 3600 - 1, "active", True),
            ({"authorized_at": NOON}, 8 * 3600, "expired", False),
            ({}, 8 * 3600, "expired", False),
            ({"state": "revoked"}, 0, "revoked", False),
            ({"state": "superseded"}, 9 * 3600, "superseded", False),
            ({"state": "failed"}, 0, "failed", False),
        ],
    )
    def test_a_grants_status_follows_from_what_is_recorded_and_the_time(
        self, changes: dict[str, object], after: int, status: str, live: bool
    ) -> None:
        record = Record(grant(), **changes)  # type: ignore[arg-type]
        at = NOON + timedelta(seconds=after)
        assert record.status_at(at) == status
        assert record.live_at(at) is live

    def test_it_has_the_grants_id(self) -> None:
        assert Record(grant()).id == grant().id

    def test_an_expires_at_is_shown_as_a_wait_state_reads_it(self) -> None:
        assert show_second(grant().expires_at) == "2026-11-23T20:00:00Z"

    def test_grants_sort_as_they_were_asked_for(self) -> None:
        later = grant(requested_at=NOON + timedelta(milliseconds=1))
        assert grant().order < later.order
        assert cut_to_milliseconds(NOON.replace(microsecond=123_999)) == NOON.replace(microsecond=123_000)
