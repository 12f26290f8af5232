"""Durations, times, sources, ports, ids: what is read means what it says, and nothing else is read."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grants.errors import InvalidGrant
from grants.values import (
    GRANT_ID,
    Grant,
    Ports,
    Principal,
    RuleKey,
    Target,
    name_grant,
    parse_duration,
    parse_time,
    round_up,
    show_duration,
    show_second,
    show_time,
    source_of,
)

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc)


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
        """A day read as no time at all is how doors stay open.

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
    def test_what_is_no_address_is_refused(self, address: str) -> None:
        with pytest.raises(ValueError, match=r"address"):
            source_of(address)


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
        name = name_grant(Principal("k1", "alice"), "203.0.113.7/32", NOON, "x7k2p9")
        assert name == "alice_203-0-113-7_20261123T120000Z_x7k2p9"

    @given(
        st.text(min_size=0, max_size=300),
        st.sampled_from(["203.0.113.7/32", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff/128", "203.0.113.0/28"]),
    )
    def test_a_grants_id_is_a_valid_name_of_an_execution_whatever_the_keys_name(
        self, name: str, source: str
    ) -> None:
        grant_id = name_grant(Principal("k1", name), source, NOON, "0123abcd")
        assert GRANT_ID.fullmatch(grant_id)
        assert grant_id.endswith("_20261123T120000Z_0123abcd")


def grant(**changes: object) -> Grant:
    values: dict[str, object] = {
        "id": "alice_203-0-113-7_20261123T120000Z_x7k2p9",
        "principal": Principal("k1", "alice"),
        "source": "203.0.113.7/32",
        "targets": (Target("bastion", (Ports(22, 22, "tcp"),), ("sg-0a", "sg-0b")),),
        "requested_at": NOON,
        "expires_at": NOON + timedelta(hours=8),
        "reason": "on call",
    }
    return Grant(**(values | changes))  # type: ignore[arg-type]


class TestInput:
    def test_an_input_reads_back_as_the_grant_that_wrote_it(self) -> None:
        assert Grant.from_input(grant().as_input()) == grant()

    def test_what_tasks_added_to_the_state_is_passed_over(self) -> None:
        state = grant().as_input() | {"rules": [], "error": {"Error": "X"}, "anything": 1}
        assert Grant.from_input(state) == grant()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("expires_at", "2026-11-23T20:00:00+00:00"),
            ("expires_at", "2026-11-23T20:00:00.5Z"),
            ("expires_at", "soon"),
            ("expires_at", None),
            ("source", "203.0.113.7/24"),
            ("source", "everywhere"),
            ("grant_id", ""),
            ("grant_id", 7),
            ("principal", "alice"),
            ("principal", {}),
            ("targets", [{"name": "bastion"}]),
            ("targets", [{"name": "bastion", "ports": ["22"], "groups": []}]),
            ("targets", None),
            ("requested_at", "yesterday"),
            ("version", 2),
        ],
    )
    def test_an_input_that_is_no_grant_is_refused_by_the_name_asl_knows(
        self, field: str, value: object
    ) -> None:
        with pytest.raises(InvalidGrant, match="not a grant"):
            Grant.from_input(grant().as_input() | {field: value})

    @pytest.mark.parametrize(
        "field", ["expires_at", "source", "grant_id", "targets", "principal", "requested_at"]
    )
    def test_an_input_without_a_field_is_refused_by_naming_it(self, field: str) -> None:
        value = grant().as_input()
        del value[field]
        with pytest.raises(InvalidGrant, match=f"'{field}' is missing"):
            Grant.from_input(value)

    @pytest.mark.parametrize("value", [None, [], "grant", 5])
    def test_an_input_that_is_no_object_is_refused(self, value: object) -> None:
        with pytest.raises(InvalidGrant):
            Grant.from_input(value)


class TestStatus:
    @pytest.mark.parametrize(
        ("changes", "after", "status", "live"),
        [
            ({}, 0, "pending", True),
            ({"authorized_at": NOON}, 0, "active", True),
            ({"authorized_at": NOON}, 8 * 3600 - 1, "active", True),
            ({"authorized_at": NOON}, 8 * 3600, "expired", False),
            ({"state": "revoked"}, 0, "revoked", False),
            ({"state": "superseded"}, 9 * 3600, "superseded", False),
            ({"state": "failed"}, 0, "failed", False),
        ],
    )
    def test_a_grants_status_follows_from_what_is_recorded_and_the_time(
        self, changes: dict[str, object], after: int, status: str, live: bool
    ) -> None:
        at = NOON + timedelta(seconds=after)
        assert grant(**changes).status_at(at) == status
        assert grant(**changes).live_at(at) is live

    def test_an_expires_at_is_shown_as_a_wait_state_reads_it(self) -> None:
        assert show_second(grant().expires_at) == "2026-11-23T20:00:00Z"
