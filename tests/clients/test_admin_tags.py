"""The grammar of tags: what an operator may write, and that the functions read it the same way."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grants import policy, values
from grants.values import Principal
from knock_admin import tags

TEXTS = st.text(alphabet="0123456789abcdhmstuPT*@/-_. :ü٣", max_size=12)


def rights(**texts: str) -> policy.Rights:
    """Read tags as the functions do."""
    names = {
        "targets": tags.TARGETS,
        "max": tags.MAX_DURATION,
        "any_source": tags.ANY_SOURCE,
        "operator": tags.OPERATOR,
        "max_live": tags.MAX_LIVE,
    }
    return policy.read_rights(Principal("id", "alice"), {names[name]: value for name, value in texts.items()})


def test_tags_have_the_names_that_the_functions_read() -> None:
    assert (tags.STACK, tags.TARGET, tags.PORTS) == (policy.TAG_STACK, policy.TAG_TARGET, policy.TAG_PORTS)
    assert (tags.TARGETS, tags.MAX_DURATION) == (policy.TAG_TARGETS, policy.TAG_MAX_DURATION)
    assert (tags.ANY_SOURCE, tags.OPERATOR) == (policy.TAG_ANY_SOURCE, policy.TAG_OPERATOR)
    assert (tags.MAX_LIVE, tags.NAME) == (policy.TAG_MAX_LIVE, policy.TAG_NAME)


@given(TEXTS | st.from_regex(r"\d{1,4}[dhms](\d{1,3}[hms])?", fullmatch=True))
def test_every_duration_that_is_accepted_means_the_same_to_the_functions(text: str) -> None:
    try:
        duration = tags.parse_duration(text)
    except ValueError:
        return
    assert values.parse_duration(text) == duration
    assert values.parse_duration(tags.show_duration(duration)) == duration
    assert rights(max=tags.show_duration(duration)).max_duration == duration


@given(TEXTS | st.from_regex(r"\d{1,5}(-\d{1,5})?/(tcp|udp)", fullmatch=True))
def test_every_port_range_that_is_accepted_means_the_same_to_the_functions(text: str) -> None:
    try:
        ports = tags.Ports.parse(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"ports"):
            values.Ports.parse(text)
        return
    expected = values.Ports.parse(text)
    assert (expected.first, expected.last, expected.protocol) == (ports.first, ports.last, ports.protocol)
    assert str(expected) == str(ports)


@given(TEXTS | st.from_regex(r"/\d{1,3}( /\d{1,3})?", fullmatch=True))
def test_every_source_width_that_is_accepted_means_the_same_to_the_functions(text: str) -> None:
    try:
        value = tags.parse_any_source(text)
    except ValueError:
        assert rights(any_source=text).faults
        return
    read = rights(any_source=value)
    assert not read.faults
    assert read.any_source is not None
    assert {f"/{length}" for length in read.any_source.values()} >= set(value.split())


@given(TEXTS)
def test_every_list_of_targets_that_is_accepted_means_the_same_to_the_functions(text: str) -> None:
    try:
        value = tags.parse_targets(text)
    except ValueError:
        read = rights(targets=text)
        assert read.faults or not (read.targets or read.every_target)
        return
    read = rights(targets=value)
    assert not read.faults
    assert read.every_target == (value == tags.EVERY_TARGET)
    assert read.every_target or read.targets == set(text.split())


@given(TEXTS | st.from_regex(r"\d{1,5}", fullmatch=True))
def test_every_number_of_live_grants_that_is_accepted_means_the_same_to_the_functions(text: str) -> None:
    try:
        number = tags.parse_max_live(text)
    except ValueError:
        assert rights(max_live=text).faults
        return
    assert rights(max_live=text).max_live == number


ADDRESSES = st.ip_addresses().map(str)
CIDRS = st.tuples(ADDRESSES, st.integers(0, 128)).map(lambda pair: f"{pair[0]}/{pair[1]}")


@given(TEXTS | ADDRESSES | CIDRS | ADDRESSES.map("::ffff:{}".format) | ADDRESSES.map("{}%eth0".format))
def test_every_source_is_written_as_the_functions_write_it(text: str) -> None:
    try:
        expected = values.canonical_source(text)
    except ValueError:
        with pytest.raises(ValueError, match="an address or a CIDR"):
            tags.canonical_source(text)
        return
    assert tags.canonical_source(text) == expected


@given(st.text(max_size=12) | TEXTS)
def test_every_name_that_is_accepted_can_be_on_record(text: str) -> None:
    try:
        name = tags.principal_name(text)
    except ValueError:
        return
    now = datetime(2026, 11, 23, tzinfo=timezone.utc)
    target = values.Target("web", (values.Ports.parse("80/tcp"),), ("sg-0a",))
    grant = values.Grant.decide(
        Principal("id", name), "203.0.113.7/32", (target,), now, now + timedelta(hours=1)
    )
    assert values.Grant.from_input(grant.as_input()).principal.name == text


def test_every_target_is_written_in_characters_that_api_gateway_allows_in_a_tag() -> None:
    assert tags.parse_targets("*") == tags.parse_targets("@all") == "@all"
    assert rights(targets="@all").every_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", timedelta(minutes=90)),
        ("1h30m", timedelta(minutes=90)),
        ("7d", timedelta(7)),
        ("60", timedelta(0, 60)),
    ],
)
def test_a_duration_is_read(text: str, expected: timedelta) -> None:
    assert tags.parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0h", "h", "1y", "366d", "-1h", "1h 30m", "٣h", "9" * 10])
def test_a_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        tags.parse_duration(text)


@pytest.mark.parametrize("text", ["", "* web", "@all @all", "-web", "web,bastion"])
def test_a_text_that_is_no_list_of_targets_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"target"):
        tags.parse_targets(text)


@pytest.mark.parametrize("text", ["", "28", "/23", "/33", "/129", "/28 /29", "/28 /60 /64", "/٣"])
def test_a_text_that_is_no_source_width_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"/2"):
        tags.parse_any_source(text)
    assert rights(any_source=text).faults


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (59, "59s"), (3599, "59m59s"), (3661, "1h1m"), (90_000, "1d1h")]
)
def test_the_time_left_is_shown_in_two_units(seconds: int, text: str) -> None:
    now = datetime(2026, 11, 23, tzinfo=timezone.utc)
    assert tags.left(tags.show_time(now + timedelta(seconds=seconds)), now) == text
    assert tags.left("soon", now) == "?"


def test_a_shown_time_is_read_back() -> None:
    assert tags.show_time(tags.parse_time("2026-11-23T21:17:19Z")) == "2026-11-23T21:17:19Z"
    with pytest.raises(ValueError, match="a time like"):
        tags.parse_time("2026-11-23 21:17")
