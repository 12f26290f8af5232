"""Who may open what, for how long, from where: deny is the default, and a refusal names the right."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grants.errors import (
    InvalidGrant,
    InvalidKnock,
    InvalidTag,
    KnockError,
    NotAllowed,
    RuleUnsettled,
    TargetGone,
    TooManyGrants,
    WrongFamily,
)
from grants.policy import (
    Knock,
    Limits,
    Rights,
    confirm,
    decide,
    max_live,
    openable,
    read_rights,
    read_targets,
    refuse_excess,
)
from grants.timing import TAGS_LAG
from grants.values import LARGEST_INPUT, Grant, Ports, Principal, Target, compact_json

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

    def test_it_is_refused_when_the_key_may_open_no_target(self) -> None:
        with pytest.raises(NotAllowed, match="no target") as refusal:
            ask(targets="none")
        assert refusal.value.right == "knock:targets"

    def test_its_targets_were_not_named_and_it_renews_nothing(self) -> None:
        grant = ask()
        assert grant.by_name is False
        assert grant.renews is None
        assert grant.nonce == "x7k2p9"

    def test_its_id_is_that_of_its_content(self) -> None:
        assert Grant.from_input(ask().as_input()) == ask()
        assert ask(Knock(reason="on call")).id != ask().id

    def test_a_private_address_of_the_callers_own_is_granted(self) -> None:
        assert ask(caller="10.1.2.3/32").source == "10.1.2.3/32"


class TestTargets:
    def test_only_named_targets_are_opened_each_once(self) -> None:
        grant = ask(Knock(targets=("web", "web")))
        assert [target.name for target in grant.targets] == ["web"]
        assert grant.by_name is True

    def test_a_target_the_key_may_not_open_is_refused_naming_the_right(self) -> None:
        with pytest.raises(NotAllowed, match="may not open web") as refusal:
            ask(Knock(targets=("bastion", "web")), targets="bastion")
        assert refusal.value.right == "knock:targets"

    def test_a_target_that_does_not_exist_is_refused_like_a_forbidden_one(self) -> None:
        with pytest.raises(NotAllowed, match="may not open vault"):
            ask(Knock(targets=("vault",)), targets="*")

    @pytest.mark.parametrize("every", ["*", "@all"])
    def test_a_star_is_every_target(self, every: str) -> None:
        assert [target.name for target in ask(targets=every).targets] == ["bastion", "web"]

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ({f"t{n}": Target(f"t{n}", (SSH,), ("sg-1",)) for n in range(51)}, "51 targets, and 50 is"),
            ({"t": Target("t", tuple(Ports(n, n, "tcp") for n in range(1, 130)), ("sg-1",))}, "129 rules"),
            ({"t": Target("t", (SSH,), tuple(f"sg-{n:017}" for n in range(201)))}, "201 security groups"),
            ({"t": Target("t", (SSH,), tuple(f"sg-{n:0200}" for n in range(150)))}, "bytes to record"),
        ],
    )
    def test_more_than_a_grants_record_holds_are_refused(
        self, targets: dict[str, Target], message: str
    ) -> None:
        with pytest.raises(InvalidKnock, match=message) as refusal:
            decide(Knock(), read_rights(ALICE, TAGS | {"knock:targets": "*"}), targets, CALLER, DAY, NOW, "x")
        assert refusal.value.field == "targets"

    @given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 30), st.text(max_size=256))
    def test_every_grant_fits_the_input_of_an_execution(
        self, targets: int, ports: int, groups: int, reason: str
    ) -> None:
        reason = "".join(letter for letter in reason if letter.isprintable())
        ranges = tuple(Ports(n, n, "tcp") for n in range(60_000, 60_000 + ports))
        pool = tuple(f"sg-{n:017}" for n in range(groups))
        available = {f"t{n:050}": Target(f"t{n:050}", ranges, pool) for n in range(targets)}
        rights = read_rights(ALICE, TAGS | {"knock:targets": "*"})
        try:
            grant = decide(Knock(reason=reason), rights, available, CALLER, DAY, NOW, "x")
        except InvalidKnock:
            return
        assert Grant.from_input(grant.as_input()) == grant
        assert len(compact_json(grant.as_input()).encode()) <= LARGEST_INPUT


class TestRenewal:
    def test_a_knock_names_the_grant_it_renews(self) -> None:
        grant = ask(Knock(renews="alice_203-0-113-7_20261123T110000Z_0123456789abcdef"))
        assert grant.renews == "alice_203-0-113-7_20261123T110000Z_0123456789abcdef"
        assert grant.id != ask().id


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

    def test_a_duration_up_to_the_keys_maximum_is_granted(self) -> None:
        grant = ask(Knock(duration=timedelta(hours=8)))
        assert grant.expires_at - NOW < timedelta(hours=8, seconds=1)

    def test_a_duration_beyond_the_keys_maximum_is_refused_naming_the_right(self) -> None:
        """
        Mutation: functions/grants/policy.py:
            `if requested > longest:` -> `if requested > limits.max_duration:`
        """
        with pytest.raises(NotAllowed, match="longer than the key allows: 8h") as refusal:
            ask(Knock(duration=timedelta(hours=8, seconds=1)))
        assert refusal.value.right == "knock:max-duration"

    def test_a_duration_beyond_the_stacks_maximum_is_malformed_even_where_the_key_allows_it(self) -> None:
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

    def test_every_key_may_name_the_callers_own(self) -> None:
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
    def test_a_source_within_the_width_the_tag_allows_is_granted(self, tag: str, source: str) -> None:
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
    def test_a_source_wider_than_the_tag_allows_is_refused(self, tag: str, source: str) -> None:
        with pytest.raises(NotAllowed, match="wider"):
            ask(Knock(source=source), any_source=tag)

    @pytest.mark.parametrize(
        "source",
        ["10.0.0.1/32", "172.16.0.1/32", "192.168.1.1/32", "100.64.0.1/32", "127.0.0.1/32",
         "169.254.1.1/32", "224.0.0.1/32", "0.0.0.0/32", "255.255.255.255/32", "240.0.0.1/32", "::/128",
         "::1/128", "fe80::1/128", "fc00::1/128", "ff02::1/128", "::ffff:198.51.100.1/128",
         "198.18.0.1/32", "192.0.0.1/32", "0.0.0.0/24"],
    )  # fmt: skip
    def test_a_source_that_is_not_public_is_refused_for_every_key(self, source: str) -> None:
        with pytest.raises(InvalidKnock, match="public"):
            ask(Knock(source=source), any_source="/24 /56")

    @pytest.mark.parametrize(
        "source", ["198.51.100.1/24", "2001:db8::1/64", "x", "198.51.100.0/33", "", "2001:db8::1%eth0"]
    )
    def test_a_source_that_is_not_in_canonical_form_is_malformed(self, source: str) -> None:
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


class TestFamilies:
    """A rule for a target that has no address of the source's family would be of no use."""

    TARGETS: ClassVar = {
        "bastion": Target("bastion", (SSH,), ("sg-1",), ("ipv4",)),
        "web": Target("web", (HTTPS,), ("sg-3",), ("ipv4", "ipv6")),
        "db": Target("db", (HTTPS,), ("sg-4",)),
    }

    def open(self, caller: str, *names: str) -> list[str]:
        rights = read_rights(ALICE, TAGS | {"knock:targets": "*"})
        grant = decide(Knock(targets=names or None), rights, self.TARGETS, caller, DAY, NOW, "x")
        return [target.name for target in grant.targets]

    def test_a_source_of_a_family_that_a_target_has_is_let_in(self) -> None:
        assert self.open("203.0.113.7/32", "bastion") == ["bastion"]
        assert self.open("2001:db8::7/128", "web") == ["web"]

    def test_a_target_without_the_tag_takes_both_families(self) -> None:
        assert self.open("203.0.113.7/32", "db") == self.open("2001:db8::7/128", "db") == ["db"]

    def test_a_target_without_an_address_of_the_family_is_left_out(self) -> None:
        """Mutation: functions/grants/policy.py:
        `if not target.families or family in target.families)` -> `if True)`
        """
        assert self.open("2001:db8::7/128", "bastion", "web") == ["web"]
        assert self.open("2001:db8::7/128") == ["db", "web"]

    @pytest.mark.parametrize(
        ("families", "caller", "message"),
        [
            (("ipv4",), "2001:db8::7/128", "bastion can be reached by IPv4 alone: knock over IPv4"),
            (("ipv6",), "203.0.113.7/32", "bastion can be reached by IPv6 alone: .*curl -6"),
        ],
    )
    def test_a_knock_for_such_targets_alone_says_how_to_knock(
        self, families: tuple[str, ...], caller: str, message: str
    ) -> None:
        targets = {"bastion": Target("bastion", (SSH,), ("sg-1",), families)}
        with pytest.raises(WrongFamily, match=message) as refusal:
            decide(Knock(), read_rights(ALICE, TAGS), targets, caller, DAY, NOW, "x")
        assert refusal.value.families == families

    @pytest.mark.parametrize(
        ("tags", "families"),
        [
            (["ipv4", "ipv6 ipv4"], ("ipv4", "ipv6")),
            (["ipv6", "ipv6"], ("ipv6",)),
            (["ipv4", ""], ()),
            (["", ""], ()),
        ],
    )
    def test_a_pool_has_the_families_of_its_groups_where_each_has_the_tag(
        self, tags: list[str], families: tuple[str, ...]
    ) -> None:
        groups = {
            f"sg-{n}": {"knock:target": "bastion", "knock:ports": "22/tcp", "knock:families": value}
            for n, value in enumerate(tags)
        }
        targets, faults = read_targets(groups)
        assert (targets["bastion"].families, faults) == (families, [])

    def test_a_tag_that_cannot_be_read_is_passed_over_and_named(self) -> None:
        groups = {"sg-1": {"knock:target": "bastion", "knock:ports": "22/tcp", "knock:families": "ipv5"}}
        targets, faults = read_targets(groups)
        assert targets["bastion"].families == ()
        assert faults == ["sg-1: the tag knock:families is not ipv4, ipv6 or both: it is passed over"]


class TestUntil:
    """A key with an end: no grant begins or lasts after it."""

    END = datetime(2026, 11, 23, 17, 0, tzinfo=timezone.utc)
    TAG = "2026-11-23T17:00:00Z"

    def test_a_grant_lasts_no_longer(self) -> None:
        """Mutation: functions/grants/policy.py: `    return until` -> `    return end`"""
        assert ask(until=self.TAG).expires_at == self.END

    def test_a_shorter_grant_keeps_its_duration(self) -> None:
        knock = Knock(duration=timedelta(hours=1))
        assert ask(knock, until=self.TAG) == ask(knock)

    def test_a_duration_that_is_named_and_reaches_beyond_is_refused(self) -> None:
        with pytest.raises(NotAllowed, match="good until 2026-11-23T17:00:00Z: name a shorter") as refusal:
            ask(Knock(duration=timedelta(hours=6)), until=self.TAG)
        assert refusal.value.right == "knock:until"

    @pytest.mark.parametrize("tag", ["2026-11-23T12:00:00Z", "2026-11-22", "2026-11-01T00:00:00Z"])
    def test_no_grant_begins_after(self, tag: str) -> None:
        """Mutation: functions/grants/policy.py: `    if now >= until:` -> `    if False:`"""
        with pytest.raises(NotAllowed, match="the key was good until") as refusal:
            ask(until=tag)
        assert refusal.value.right == "knock:until"

    def test_a_date_is_good_to_the_end_of_its_day(self) -> None:
        end = datetime(2026, 11, 24, tzinfo=timezone.utc)
        assert ask(until="2026-11-23", max_duration="24h").expires_at == end

    @pytest.mark.parametrize("tag", ["tomorrow", "", "2026-11-31", "2026-11-23T17:00:00", "23.11.2026"])
    def test_a_tag_that_cannot_be_read_gives_no_right(self, tag: str) -> None:
        with pytest.raises(InvalidTag, match="a date like 2027-01-15"):
            ask(until=tag)


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
    def test_a_tag_that_cannot_be_read_is_named_by_the_refusal(self, tag: str, value: str) -> None:
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

    @pytest.mark.parametrize("value", ["0", "-1", "20.0", "many", "", "10000", "٢", " 5"])
    def test_a_number_of_grants_that_cannot_be_read_is_a_fault(self, value: str) -> None:
        rights = read_rights(ALICE, {"knock:max-live": value})
        assert rights.max_live is None
        with pytest.raises(InvalidTag, match="knock:max-live") as refusal:
            refuse_excess(rights, DAY, 0, [])
        assert refusal.value.right == "knock:max-live"

    @pytest.mark.parametrize("name", ["a\nb", "a\r", "\x00", "\u2028", "a" * 257])
    def test_a_name_that_cannot_be_recorded_is_a_fault_and_the_keys_id_stands_for_it(self, name: str) -> None:
        rights = read_rights(Principal("k1", name), TAGS)
        assert rights.principal == Principal("k1", "k1")
        (fault,) = rights.faults
        assert fault.startswith("the tag knock:name of the key 'k1' cannot be read")
        grant = decide(Knock(), rights, TARGETS, CALLER, DAY, NOW, "x")
        assert Grant.from_input(grant.as_input()) == grant

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


class TestExcess:
    """How many grants a principal may hold at once."""

    @pytest.mark.parametrize(("tags", "most"), [({}, 20), ({"knock:max-live": "1000"}, 1000)])
    def test_the_keys_tag_says_how_many_and_else_the_stack(self, tags: dict[str, str], most: int) -> None:
        rights = read_rights(ALICE, tags)
        assert max_live(rights, DAY) == most
        refuse_excess(rights, DAY, most - 1, [])
        with pytest.raises(TooManyGrants, match=f"{most} is the most"):
            refuse_excess(rights, DAY, most, ["g1"])

    def test_a_refusal_names_grants_to_end(self) -> None:
        """Mutation: functions/grants/policy.py: `if live >= most:` -> `if live > most:`"""
        rights = read_rights(ALICE, {"knock:max-live": "2"})
        with pytest.raises(TooManyGrants, match=r"end one of g1, g2$"):
            refuse_excess(rights, DAY, 2, ["g1", "g2"])

    def test_a_refusal_names_five_of_many_grants(self) -> None:
        names = [f"g{n}" for n in range(30)]
        with pytest.raises(TooManyGrants, match=r"holds 30 live grants.* g0, g1, g2, g3, g4, …$"):
            refuse_excess(read_rights(ALICE, {}), DAY, 30, names)


SOON = NOW + timedelta(seconds=1)
SETTLED = NOW + TAGS_LAG
LIVE_TAGS: dict[str, dict[str, str]] = {
    group: {
        "knock:stack": "knock",
        "knock:target": target.name,
        "knock:ports": " ".join(map(str, target.ports)),
    }
    for target in TARGETS.values()
    for group in target.groups
}


def pools(targets: tuple[Target, ...]) -> dict[str, tuple[str, ...]]:
    return {target.name: target.groups for target in targets}


def second(
    grant: Grant,
    changes: dict[str, dict[str, str] | None] | None = None,
    now: datetime = SETTLED,
    **more: Any,
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Decide again with these groups' tags changed (None: the group is gone)."""
    tags = {group: tags for group, tags in (LIVE_TAGS | (changes or {})).items() if tags is not None}
    confirmed, left_out = confirm(grant, tags, more.get("stack", "knock"), more.get("limits", DAY), now)
    for target in confirmed:
        assert target.ports == TARGETS[target.name].ports
    return pools(confirmed), left_out


def forged(**changes: Any) -> Grant:
    """Make a grant that was never decided on; its id is that of its content."""
    first = ask()
    values: dict[str, Any] = {
        "principal": first.principal,
        "source": first.source,
        "targets": first.targets,
        "requested_at": first.requested_at,
        "expires_at": first.expires_at,
        "by_name": first.by_name,
        "nonce": "forged",
    }
    return Grant.from_input(Grant.decide(**(values | changes)).as_input())


class TestSecondDecision:
    def test_a_grant_that_was_decided_is_confirmed(self) -> None:
        assert second(ask()) == ({"bastion": ("sg-1", "sg-2"), "web": ("sg-3",)}, ())

    @pytest.mark.parametrize(
        "source", ["203.0.112.0/23", "2001:d00::/24", "0.0.0.0/0", "::/0", "2001:db8::/55"]
    )
    def test_a_source_wider_than_any_key_may_name_is_refused(self, source: str) -> None:
        """Mutation: functions/grants/policy.py:
        `if network.prefixlen < WIDEST[network.version]:` -> `if False:`
        """
        with pytest.raises(InvalidGrant, match="wider"):
            second(forged(source=source))

    @pytest.mark.parametrize("source", ["203.0.113.0/24", "2001:db8::/56", "203.0.113.7/32"])
    def test_the_widest_source_a_key_may_name_is_confirmed(self, source: str) -> None:
        assert second(forged(source=source))[1] == ()

    @pytest.mark.parametrize(
        "source",
        ["10.0.0.0/24", "192.168.1.0/31", "100.64.0.0/30", "fd00::/64", "169.254.0.0/24", "224.0.0.0/24"],
    )
    def test_a_range_that_is_not_public_is_refused(self, source: str) -> None:
        """Mutation: functions/grants/policy.py:
        `if network.num_addresses > 1 and _refused(network):` -> `if False:`
        """
        with pytest.raises(InvalidGrant, match="not a single address"):
            second(forged(source=source))

    @pytest.mark.parametrize("source", ["10.0.0.1/32", "fd00::1/128", "127.0.0.1/32"])
    def test_a_single_private_address_may_be_a_callers_own(self, source: str) -> None:
        assert second(forged(source=source))[1] == ()

    @pytest.mark.parametrize(
        ("at", "end"),
        [
            (-timedelta(hours=1, seconds=1), timedelta(hours=2)),
            (-timedelta(days=30), timedelta(days=31)),
            (timedelta(minutes=1, seconds=1), timedelta(hours=1)),
            (timedelta(days=1), timedelta(hours=1)),
        ],
    )
    def test_a_grant_that_was_not_requested_just_now_is_refused(self, at: timedelta, end: timedelta) -> None:
        """Mutation: functions/grants/policy.py:
        `if not now - OLDEST_REQUEST <= grant.requested_at <= now + CLOCKS_DIFFER:` -> `if False:`
        """
        now = NOW.replace(microsecond=0)
        with pytest.raises(InvalidGrant, match="asked for at"):
            second(forged(requested_at=now + at, expires_at=now + at + end), now=now)

    @pytest.mark.parametrize("at", [-timedelta(hours=1), timedelta(0), timedelta(minutes=1)])
    def test_clocks_may_differ_and_retries_may_take_an_hour(self, at: timedelta) -> None:
        now = NOW.replace(microsecond=0)
        grant = forged(requested_at=now + at, expires_at=now + at + timedelta(hours=2))
        try:
            assert second(grant, now=now)[1] == ()
        except RuleUnsettled:
            pytest.fail("its tags are all there")

    @pytest.mark.parametrize(
        "lasts", [timedelta(hours=24, seconds=2), timedelta(days=364), timedelta(0), -timedelta(hours=1)]
    )
    def test_a_grant_longer_than_the_stack_allows_is_refused(self, lasts: timedelta) -> None:
        """Mutation: functions/grants/policy.py:
        ` <= round_up(grant.requested_at + limits.max_duration):` -> `:`
        """
        end = NOW.replace(microsecond=0) + lasts
        with pytest.raises(InvalidGrant, match="longer than this stack allows: 1d"):
            second(forged(expires_at=end))

    def test_a_grant_as_long_as_the_stack_allows_is_confirmed(self) -> None:
        assert second(ask(Knock(duration=timedelta(hours=24)), max_duration="24h"))[1] == ()

    @pytest.mark.parametrize(
        "ports",
        [
            (Ports(1, 65_535, "tcp"),),
            (SSH, HTTPS),
            (SSH, SSH),
            (Ports(22, 22, "udp"),),
            (Ports(22, 23, "tcp"),),
        ],
    )
    def test_other_ports_than_the_tags_say_are_refused(self, ports: tuple[Ports, ...]) -> None:
        """Mutation: functions/grants/policy.py:
        `elif _read_ports(live.get(TAG_PORTS, "")) != target.ports:` -> `elif False:`
        """
        with pytest.raises(InvalidGrant, match=r"tags say otherwise: sg-2 has the ports '22/tcp'"):
            second(forged(targets=(Target("bastion", ports, ("sg-1", "sg-2")),)))

    @pytest.mark.parametrize("ports", ["", "22", "80/tcp"])
    def test_so_are_groups_whose_tags_changed_or_cannot_be_read(self, ports: str) -> None:
        changes = {name: LIVE_TAGS[name] | {"knock:ports": ports} for name in ("sg-1", "sg-2")}
        with pytest.raises(InvalidGrant, match="tags say otherwise"):
            second(ask(), changes)

    def test_another_stacks_groups_are_refused(self) -> None:
        """Mutation: functions/grants/policy.py:
        `live[TAG_STACK] != stack or` -> ``
        """
        with pytest.raises(InvalidGrant, match="sg-2 is not of the target bastion"):
            second(ask(), stack="another")

    def test_another_targets_groups_are_refused(self) -> None:
        """Mutation: functions/grants/policy.py:
        ` or live[TAG_TARGET] != target.name:` -> `:`
        """
        tags = {"sg-3": LIVE_TAGS["sg-3"] | {"knock:ports": "22/tcp"}}
        with pytest.raises(InvalidGrant, match="sg-3 is not of the target bastion"):
            second(forged(targets=(Target("bastion", (SSH,), ("sg-3",)),)), tags)

    @pytest.mark.parametrize(
        "changes",
        [
            {"sg-2": None},
            {"sg-2": {}},
            {"sg-2": {"knock:stack": "knock"}},
            {"sg-2": LIVE_TAGS["sg-2"] | {"knock:ports": "2222/tcp"}},
            {"sg-2": LIVE_TAGS["sg-2"] | {"knock:target": "web"}},
            {"sg-2": LIVE_TAGS["sg-2"] | {"knock:stack": "another"}},
        ],
    )
    def test_only_groups_that_the_tags_still_give_to_the_pool_are_confirmed(
        self, changes: dict[str, dict[str, str] | None]
    ) -> None:
        assert second(ask(), changes) == ({"bastion": ("sg-1",), "web": ("sg-3",)}, ())

    def test_a_group_that_was_not_decided_on_is_not_confirmed(self) -> None:
        grant = forged(targets=(Target("bastion", (SSH,), ("sg-2",)),))
        assert second(grant) == ({"bastion": ("sg-2",)}, ())

    @pytest.mark.parametrize("tags", [None, {}, {"knock:stack": "knock"}])
    def test_tags_that_do_not_show_yet_are_read_again(self, tags: dict[str, str] | None) -> None:
        """Mutation: functions/grants/policy.py: `if now < grant.requested_at + TAGS_LAG:` -> `if False:`"""
        grant = ask(Knock(targets=("web",)))
        for at in (NOW, SOON, SETTLED - timedelta(milliseconds=1)):
            with pytest.raises(RuleUnsettled, match="tags of web"):
                second(grant, {"sg-3": tags}, now=at)
        with pytest.raises(TargetGone, match="tagged for web any more"):
            second(grant, {"sg-3": tags}, now=SETTLED + timedelta(milliseconds=1))

    def test_a_target_asked_for_by_name_that_cannot_be_opened_fails_the_grant(self) -> None:
        """Mutation: functions/grants/policy.py:
        `if left_out and (grant.by_name or not confirmed):` -> `if left_out and not confirmed:`
        """
        with pytest.raises(TargetGone, match="tagged for web"):
            second(ask(Knock(targets=("bastion", "web"))), {"sg-3": None})

    @pytest.mark.parametrize("now", [SOON, SETTLED])
    def test_a_target_not_asked_for_by_name_is_left_out(self, now: datetime) -> None:
        assert second(ask(), {"sg-3": None}, now=now) == ({"bastion": ("sg-1", "sg-2")}, ("web",))

    def test_a_grant_of_which_nothing_can_be_opened_fails(self) -> None:
        with pytest.raises(TargetGone, match="bastion, web"):
            second(ask(), dict.fromkeys(LIVE_TAGS))

    @pytest.mark.parametrize(
        "targets",
        [
            (Target("bastion", (SSH,), ("sg-1",)), Target("bastion", (SSH,), ("sg-2",))),
            (Target("a b", (SSH,), ("sg-1",)),),
            (Target("é", (SSH,), ("sg-1",)),),
        ],
    )
    def test_targets_with_invalid_or_repeated_names_are_refused(self, targets: tuple[Target, ...]) -> None:
        tags = LIVE_TAGS | {"sg-1": LIVE_TAGS["sg-1"] | {"knock:target": targets[0].name}}
        with pytest.raises(InvalidGrant, match="names, each its own"):
            confirm(forged(targets=targets), tags, "knock", DAY, SETTLED)

    @given(
        st.dictionaries(
            st.sampled_from(["sg-1", "sg-2", "sg-3", "sg-4"]),
            st.fixed_dictionaries(
                {},
                optional={
                    "knock:stack": st.sampled_from(["knock", "another"]),
                    "knock:target": st.sampled_from(["bastion", "web", "vault"]),
                    "knock:ports": st.sampled_from(["22/tcp", "80/tcp 443/tcp", "443/tcp 80/tcp", "x"]),
                },
            ),
        ),
        st.lists(
            st.builds(
                Target,
                st.sampled_from(["bastion", "web", "vault"]),
                st.lists(st.sampled_from([SSH, HTTPS, Ports(80, 80, "tcp")]), min_size=1, max_size=3).map(
                    tuple
                ),
                st.lists(st.sampled_from(["sg-1", "sg-2", "sg-3", "sg-9"]), min_size=1, max_size=3).map(
                    tuple
                ),
            ),
            min_size=1,
            max_size=3,
        ).map(tuple),
        st.sampled_from([CALLER, "203.0.113.0/24", "203.0.112.0/23", "10.0.0.0/24"]),
        st.integers(-7200, 7200),
        st.integers(-10, 200_000),
        st.booleans(),
    )
    def test_nothing_is_confirmed_that_live_tags_and_limits_do_not_allow(
        self,
        tags: dict[str, dict[str, str]],
        targets: tuple[Target, ...],
        source: str,
        offset: int,
        lasts: int,
        by_name: bool,
    ) -> None:
        at = NOW.replace(microsecond=0) + timedelta(seconds=offset)
        end = at + timedelta(seconds=lasts)
        grant = forged(targets=targets, source=source, requested_at=at, expires_at=end, by_name=by_name)
        try:
            confirmed, left_out = confirm(grant, tags, "knock", DAY, NOW)
        except (InvalidGrant, TargetGone, RuleUnsettled):
            return
        assert source in (CALLER, "203.0.113.0/24")
        assert -3600 <= offset <= 60
        assert 0 < lasts <= 86_400
        opened = {target.name for target in confirmed}
        assert opened
        assert opened | set(left_out) == {target.name for target in targets}
        assert not (by_name and left_out)
        for target in confirmed:
            for group in target.groups:
                assert tags[group]["knock:stack"] == "knock"
                assert tags[group]["knock:target"] == target.name
                assert {str(ports) for ports in target.ports} == set(tags[group]["knock:ports"].split())
