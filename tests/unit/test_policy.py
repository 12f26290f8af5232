"""Who may open what, for how long, from where: deny is the default, and a refusal names the right."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grants.errors import GrantNotFound, InvalidKnock, InvalidTag, KnockError, NotAllowed
from grants.policy import (
    Knock,
    Limits,
    Rights,
    check_visible,
    decide,
    openable,
    read_rights,
    read_targets,
)
from grants.values import Grant, Ports, Principal, Target

NOW = datetime(2026, 11, 23, 12, 0, 0, 400_000, tzinfo=timezone.utc)
ALICE = Principal("k1", "alice")
DAY = Limits(timedelta(hours=24), timedelta(hours=24))
SSH, HTTPS = Ports(22, 22, "tcp"), Ports(443, 443, "tcp")
TARGETS = {
    "bastion": Target("bastion", (SSH,), ("sg-1", "sg-2")),
    "web": Target("web", (Ports(80, 80, "tcp"), HTTPS), ("sg-3",)),
}
CALLER = "203.0.113.7/32"
TAGS = {"knock:targets": "bastion web", "knock:max-duration": "8h"}


def ask(knock: Knock | None = None, limits: Limits = DAY, caller: str = CALLER, **tags: str) -> Grant:
    given_tags = TAGS | {f"knock:{name.replace('_', '-')}": value for name, value in tags.items()}
    given_tags = {name: value for name, value in given_tags.items() if value != "none"}
    return decide(knock or Knock(), read_rights(ALICE, given_tags), TARGETS, caller, limits, NOW, "x7k2p9")


class TestKnockWithoutWishes:
    def test_it_opens_every_target_the_key_may_open_for_the_callers_address(self) -> None:
        grant = ask()
        assert [target.name for target in grant.targets] == ["bastion", "web"]
        assert grant.source == CALLER
        assert grant.principal == ALICE

    def test_it_lasts_for_the_stacks_default_and_ends_on_a_whole_second(self) -> None:
        grant = ask(max_duration="24h")
        assert grant.expires_at == datetime(2026, 11, 24, 12, 0, 1, tzinfo=timezone.utc)

    def test_it_lasts_no_longer_than_the_key_may(self) -> None:
        assert ask().expires_at == datetime(2026, 11, 23, 20, 0, 1, tzinfo=timezone.utc)

    def test_it_is_refused_when_no_target_may_be_opened(self) -> None:
        with pytest.raises(NotAllowed, match="no target") as refusal:
            ask(targets="none")
        assert refusal.value.right == "knock:targets"

    def test_a_private_address_of_the_callers_own_is_taken_as_the_gateway_gives_it(self) -> None:
        assert ask(caller="10.1.2.3/32").source == "10.1.2.3/32"


class TestTargets:
    def test_named_ones_alone_are_opened_each_once(self) -> None:
        grant = ask(Knock(targets=("web", "web")))
        assert [target.name for target in grant.targets] == ["web"]

    def test_one_the_key_may_not_open_is_refused_naming_the_right(self) -> None:
        with pytest.raises(NotAllowed, match="may not open web") as refusal:
            ask(Knock(targets=("bastion", "web")), targets="bastion")
        assert refusal.value.right == "knock:targets"

    def test_one_that_does_not_exist_reads_like_one_that_may_not_be_opened(self) -> None:
        with pytest.raises(NotAllowed, match="may not open vault"):
            ask(Knock(targets=("vault",)), targets="*")

    @pytest.mark.parametrize("every", ["*", "@all"])
    def test_a_star_is_every_target(self, every: str) -> None:
        assert [target.name for target in ask(targets=every).targets] == ["bastion", "web"]

    def test_more_rules_than_a_grants_record_holds_are_refused(self) -> None:
        many = {f"t{n}": Target(f"t{n}", (SSH,), ("sg-1",)) for n in range(81)}
        with pytest.raises(InvalidKnock, match="405 entries"):
            decide(Knock(), read_rights(ALICE, TAGS | {"knock:targets": "*"}), many, CALLER, DAY, NOW, "x")


class TestDuration:
    def test_it_is_counted_from_the_millisecond_that_is_recorded(self) -> None:
        just_after = NOW.replace(microsecond=7)
        grant = decide(
            Knock(duration=timedelta(minutes=90)),
            read_rights(ALICE, TAGS | {"knock:targets": "*"}),
            {"bastion": Target("bastion", (SSH,), ("sg-1",))},
            CALLER,
            DAY,
            just_after,
            "x",
        )
        assert grant.requested_at.microsecond == 0
        assert grant.expires_at - grant.requested_at == timedelta(minutes=90)

    def test_up_to_the_keys_maximum_is_given(self) -> None:
        grant = ask(Knock(duration=timedelta(hours=8)))
        assert grant.expires_at - NOW < timedelta(hours=8, seconds=1)

    def test_beyond_the_keys_maximum_is_refused_naming_the_right(self) -> None:
        """Mutation: functions/grants/policy.py: `if asked > longest:` -> `if asked > limits.max_duration:`"""
        with pytest.raises(NotAllowed, match="longer than the key allows: 8h") as refusal:
            ask(Knock(duration=timedelta(hours=8, seconds=1)))
        assert refusal.value.right == "knock:max-duration"

    def test_beyond_the_stacks_maximum_is_malformed_whatever_the_key_may(self) -> None:
        with pytest.raises(InvalidKnock, match="longer than this stack allows: 1d"):
            ask(Knock(duration=timedelta(days=2)), max_duration="30d")

    def test_a_key_without_a_maximum_may_open_nothing(self) -> None:
        with pytest.raises(NotAllowed) as refusal:
            ask(max_duration="none")
        assert refusal.value.right == "knock:max-duration"


class TestSource:
    def test_another_than_the_callers_is_refused_without_the_right(self) -> None:
        with pytest.raises(NotAllowed, match=r"only .* 203.0.113.7/32") as refusal:
            ask(Knock(source="198.51.100.1/32"))
        assert refusal.value.right == "knock:any-source"

    def test_the_callers_own_may_be_named_by_anyone(self) -> None:
        assert ask(Knock(source=CALLER)).source == CALLER

    @pytest.mark.parametrize(
        ("tag", "source"),
        [
            ("/28", "198.51.100.16/28"),
            ("/28", "198.51.100.1/32"),
            ("/28", "2001:db8::1/128"),
            ("/28 /60", "2001:db8::/60"),
            ("/24", "203.0.113.0/24"),
            ("/56", "2001:db8::/56"),
            ("/28", "198.51.100.1"),
        ],
    )
    def test_one_within_the_width_the_tag_allows_is_given(self, tag: str, source: str) -> None:
        given_source = ask(Knock(source=source), any_source=tag).source
        assert given_source == (source if "/" in source else f"{source}/32")

    @pytest.mark.parametrize(
        ("tag", "source"),
        [
            ("/28", "198.51.100.0/27"),
            ("/28", "2001:db8::/127"),
            ("/60", "198.51.100.0/31"),
            ("/56", "2001:db8::/55"),
        ],
    )
    def test_one_wider_than_the_tag_allows_is_refused(self, tag: str, source: str) -> None:
        with pytest.raises(NotAllowed, match="wider"):
            ask(Knock(source=source), any_source=tag)

    @pytest.mark.parametrize(
        "source",
        ["10.0.0.1/32", "172.16.0.1/32", "192.168.1.1/32", "100.64.0.1/32", "127.0.0.1/32",
         "169.254.1.1/32", "224.0.0.1/32", "0.0.0.0/32", "255.255.255.255/32", "240.0.0.1/32", "::/128",
         "::1/128", "fe80::1/128", "fc00::1/128", "ff02::1/128", "::ffff:198.51.100.1/128",
         "198.18.0.1/32", "192.0.0.1/32", "0.0.0.0/24"],
    )  # fmt: skip
    def test_one_that_is_not_public_is_refused_for_everybody(self, source: str) -> None:
        with pytest.raises(InvalidKnock, match="public"):
            ask(Knock(source=source), any_source="/24 /56")

    @pytest.mark.parametrize(
        "source", ["198.51.100.1/24", "2001:db8::1/64", "x", "198.51.100.0/33", "", "2001:db8::1%eth0"]
    )
    def test_one_that_is_not_in_canonical_form_is_malformed(self, source: str) -> None:
        with pytest.raises(InvalidKnock) as refusal:
            ask(Knock(source=source), any_source="/24 /56")
        assert refusal.value.field == "source"

    @given(st.ip_addresses(v=4), st.integers(0, 32))
    def test_no_source_is_ever_wider_than_its_tag(self, address: object, length: int) -> None:
        try:
            grant = ask(Knock(source=f"{address}/{length}"), any_source="/28")
        except KnockError:
            return
        assert int(grant.source.rpartition("/")[2]) >= 28


class TestTags:
    @pytest.mark.parametrize(
        ("tag", "value"),
        [
            ("knock:max-duration", "24 o'clock"),
            ("knock:max-duration", ""),
            ("knock:targets", "bastion,web"),
            ("knock:targets", "* bastion"),
        ],
    )
    def test_one_that_cannot_be_read_gives_no_right_and_says_so(self, tag: str, value: str) -> None:
        with pytest.raises(InvalidTag, match=f"{tag} of the key 'alice' cannot be read") as refusal:
            decide(Knock(), read_rights(ALICE, TAGS | {tag: value}), TARGETS, CALLER, DAY, NOW, "x")
        assert refusal.value.right == tag

    @pytest.mark.parametrize(
        "value", ["28", "/23", "/55", "/28 /29", "/28 /60 /61", "", "/x", "/129", "/-1", "/٢٨"]
    )
    def test_a_width_that_cannot_be_read_or_is_too_wide_gives_no_right(self, value: str) -> None:
        with pytest.raises(InvalidTag, match="knock:any-source"):
            ask(Knock(source="198.51.100.1/32"), any_source=value)

    def test_a_fault_in_one_tag_leaves_the_other_rights(self) -> None:
        assert ask(any_source="wide").source == CALLER

    @pytest.mark.parametrize("value", ["yes", "True", "1", ""])
    def test_only_true_makes_an_operator(self, value: str) -> None:
        rights = read_rights(ALICE, {"knock:operator": value})
        assert not rights.operator
        assert "knock:operator" in rights.faults[0]

    def test_no_tag_is_no_right(self) -> None:
        assert read_rights(ALICE, {}) == Rights(ALICE)


class TestPools:
    def test_groups_of_one_name_are_a_pool_in_order_of_group_id(self) -> None:
        tags = {"knock:target": "bastion", "knock:ports": "22/tcp"}
        targets, faults = read_targets({"sg-2": tags, "sg-1": tags})
        assert targets == {"bastion": Target("bastion", (SSH,), ("sg-1", "sg-2"))}
        assert not faults

    @pytest.mark.parametrize("ports", ["", "22", "22/tcp,443/tcp", "tcp"])
    def test_a_group_whose_ports_cannot_be_read_is_left_out_and_named(self, ports: str) -> None:
        targets, faults = read_targets({"sg-1": {"knock:target": "bastion", "knock:ports": ports}})
        assert not targets
        assert "sg-1" in faults[0]

    def test_a_group_whose_name_cannot_be_read_is_left_out_and_named(self) -> None:
        targets, faults = read_targets({"sg-1": {"knock:target": "a b", "knock:ports": "22/tcp"}})
        assert not targets
        assert "knock:target" in faults[0]

    def test_a_pool_whose_groups_differ_in_ports_is_left_out_and_named(self) -> None:
        targets, faults = read_targets(
            {
                "sg-1": {"knock:target": "web", "knock:ports": "80/tcp"},
                "sg-2": {"knock:target": "web", "knock:ports": "443/tcp"},
            }
        )
        assert not targets
        assert "web differ" in faults[0]

    def test_a_group_taken_out_of_its_pool_is_no_fault(self) -> None:
        assert read_targets({"sg-1": {"knock:stack": "knock"}}) == ({}, [])

    def test_openable_targets_are_those_that_exist_and_are_named(self) -> None:
        rights = read_rights(ALICE, {"knock:targets": "web vault"})
        assert [target.name for target in openable(rights, TARGETS)] == ["web"]


class TestVisible:
    def test_ones_own_grant_is_and_anothers_is_for_operators_only(self) -> None:
        grant = ask()
        assert check_visible(grant, Rights(ALICE), grant.id) is grant
        assert check_visible(grant, Rights(Principal("k9", "op"), operator=True), grant.id) is grant
        with pytest.raises(GrantNotFound):
            check_visible(grant, Rights(Principal("k2", "alice")), grant.id)
        with pytest.raises(GrantNotFound):
            check_visible(None, Rights(ALICE, operator=True), "x")
