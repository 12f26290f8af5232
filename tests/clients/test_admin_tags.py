"""The grammar of tags: what an operator may write, and that the functions read it the same way."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grants import policy, values
from grants.values import Principal
from knock_admin import tags

WRITTEN = st.text(alphabet="0123456789abcdhmstuPT*@/-_. :ü٣", max_size=12)


def rights(**written: str) -> policy.Rights:
    """Read tags as the functions do."""
    names = {
        "targets": tags.TARGETS,
        "max": tags.MAX_DURATION,
        "any_source": tags.ANY_SOURCE,
        "operator": tags.OPERATOR,
    }
    return policy.read_rights(
        Principal("id", "alice"), {names[name]: value for name, value in written.items()}
    )


def test_the_tags_have_the_functions_names() -> None:
    assert (tags.STACK, tags.TARGET, tags.PORTS) == (policy.TAG_STACK, policy.TAG_TARGET, policy.TAG_PORTS)
    assert (tags.TARGETS, tags.MAX_DURATION) == (policy.TAG_TARGETS, policy.TAG_MAX_DURATION)
    assert (tags.ANY_SOURCE, tags.OPERATOR) == (policy.TAG_ANY_SOURCE, policy.TAG_OPERATOR)


@given(WRITTEN | st.from_regex(r"\d{1,4}[dhms](\d{1,3}[hms])?", fullmatch=True))
def test_every_duration_that_is_taken_means_the_same_to_the_functions(text: str) -> None:
    try:
        duration = tags.parse_duration(text)
    except ValueError:
        return
    assert values.parse_duration(text) == duration
    assert values.parse_duration(tags.show_duration(duration)) == duration
    assert rights(max=tags.show_duration(duration)).max_duration == duration


@given(WRITTEN | st.from_regex(r"\d{1,5}(-\d{1,5})?/(tcp|udp)", fullmatch=True))
def test_every_port_range_that_is_taken_means_the_same_to_the_functions(text: str) -> None:
    try:
        ports = tags.Ports.parse(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"ports"):
            values.Ports.parse(text)
        return
    theirs = values.Ports.parse(text)
    assert (theirs.first, theirs.last, theirs.protocol) == (ports.first, ports.last, ports.protocol)
    assert str(theirs) == str(ports)


@given(WRITTEN | st.from_regex(r"/\d{1,3}( /\d{1,3})?", fullmatch=True))
def test_every_source_width_that_is_taken_means_the_same_to_the_functions(text: str) -> None:
    try:
        written = tags.parse_any_source(text)
    except ValueError:
        assert rights(any_source=text).faults
        return
    read = rights(any_source=written)
    assert not read.faults
    assert read.any_source is not None
    assert {f"/{length}" for length in read.any_source.values()} >= set(written.split())


@given(WRITTEN)
def test_every_list_of_targets_that_is_taken_means_the_same_to_the_functions(text: str) -> None:
    try:
        written = tags.parse_targets(text)
    except ValueError:
        read = rights(targets=text)
        assert read.faults or not (read.targets or read.every_target)
        return
    read = rights(targets=written)
    assert not read.faults
    assert read.every_target == (written == tags.EVERY_TARGET)
    assert read.every_target or read.targets == set(text.split())


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
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        tags.parse_duration(text)


@pytest.mark.parametrize("text", ["", "* web", "@all @all", "-web", "web,bastion"])
def test_what_is_no_list_of_targets_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"target"):
        tags.parse_targets(text)


@pytest.mark.parametrize("text", ["", "28", "/23", "/33", "/129", "/28 /29", "/28 /60 /64", "/٣"])
def test_what_is_no_source_width_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"/2"):
        tags.parse_any_source(text)
    assert rights(any_source=text).faults


def test_a_time_that_was_written_is_read_back() -> None:
    assert tags.show_time(tags.parse_time("2026-11-23T21:17:19Z")) == "2026-11-23T21:17:19Z"
    with pytest.raises(ValueError, match="a time like"):
        tags.parse_time("2026-11-23 21:17")
