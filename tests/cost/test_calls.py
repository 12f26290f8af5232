"""How many calls of AWS a grant may take from knock to expiry, by name: a new call is decided on here.

Everything is counted, the second decision and the count of live grants too, and one read by the API of
whether the ingress is open. Tags of keys and targets are not: they are read once a minute.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest

from grants.simpledb import SimpleDb
from grants.trail import Trail
from grants.values import Grant, Ports, Principal, Target
from tests.cost.counted import ASKED, Calls, await_closings, counting
from tests.harness import ENVIRONMENT, Knock, running

OPENED = Counter(
    {
        ("api", "sdb.Select"): 1,  # the count of the key's live grants
        ("api", "stepfunctions.StartExecution"): 1,
        ASKED: 1,
        ("authorize", "ec2.DescribeSecurityGroups"): 1,  # tags, rules and room
        ("authorize", "sdb.GetAttributes"): 1,  # the ledger
        ("authorize", "sdb.PutAttributes"): 4,  # claim, record, result, authorized
        ("authorize", "ec2.AuthorizeSecurityGroupIngress"): 1,
    }
)
EXPIRED = Counter(
    {
        ("revoke", "sdb.GetAttributes"): 1,  # the ledger
        ("revoke", "sdb.PutAttributes"): 4,  # end, release, revoked, closed
        ("revoke", "ec2.RevokeSecurityGroupIngress"): 1,
    }
)
ONE_RULE = OPENED + EXPIRED
# The ports of one group go in one call.
THREE_RULES = ONE_RULE + Counter(
    {
        ("authorize", "ec2.AuthorizeSecurityGroupIngress"): 1,
        ("revoke", "ec2.RevokeSecurityGroupIngress"): 1,
    }
)
# A rule that exists is requested all the same, and looked up after its refusal; it stays, for other grants.
ONE_SHARED_RULE = ONE_RULE + Counter({("authorize", "ec2.DescribeSecurityGroupRules"): 1})
ONE_SHARED_RULE -= Counter(
    {("revoke", "ec2.RevokeSecurityGroupIngress"): 1, ("revoke", "sdb.PutAttributes"): 1}
)
# Each is requested singly, and all are looked up together.
THREE_SHARED_RULES = ONE_SHARED_RULE + Counter({("authorize", "ec2.AuthorizeSecurityGroupIngress"): 2})

DEFAULT = None  # the targets of a knock that names none


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running() as knock:
        yield knock


def from_knock_to_expiry(
    knock: Knock, targets: list[str] | None, key: str = "alice", caller: str = "203.0.113.7"
) -> Calls:
    """Count the calls of one grant, with one read of the API whether it is open."""
    body = {} if targets is None else {"targets": targets}
    with counting(knock) as calls:
        grant = knock.open(key, caller, duration="1h", **body)
        knock.expire(grant)
    assert calls.pop(ASKED) >= 1
    for function in ("api", "authorize", "revoke"):
        assert calls.pop((function, "invocations")) == 1
    calls[ASKED] = 1
    return calls


def record_live(knock: Knock, number: int, principal_id: str) -> None:
    """Put live grants of one principal into the trail, each from an address of its own, a day long.

    Of others' grants only their records can matter to a knock: it reads its own source's ledger and its own
    targets' groups. What a group full of rules does is a case of its own.
    """
    trail = Trail(SimpleDb(knock.client("sdb"), ENVIRONMENT["TRAIL_DOMAIN"]))
    target = Target("bastion", (Ports.parse("22/tcp"),), tuple(knock.groups["bastion"]))
    at = knock.clock.now()
    end = at.replace(microsecond=0) + timedelta(days=1)
    for index in range(number):
        principal, source = Principal(principal_id, "somebody"), f"198.51.{index // 250}.{index % 250}/32"
        trail.record(Grant.decide(principal, source, (target,), at, end, nonce=secrets.token_hex(8)))


# ---------------------------------------------------------------------------- alone


def test_a_grant_of_one_rule_takes_sixteen_calls(knock: Knock) -> None:
    calls = from_knock_to_expiry(knock, ["bastion"])
    assert calls == ONE_RULE
    assert calls.total() == 16


def test_the_default_three_rules_in_two_groups_take_eighteen_calls(knock: Knock) -> None:
    calls = from_knock_to_expiry(knock, DEFAULT)
    assert calls == THREE_RULES
    assert calls.total() == 18


def test_a_grant_ended_early_takes_five_calls_more_and_one_closing(knock: Knock) -> None:
    """The stop of its execution raises an event, and the closing that it starts finds the grant closed."""
    with counting(knock) as calls:
        grant = knock.open(duration="1h", targets=["bastion"])
        assert knock.request("DELETE", f"/grants/{grant['id']}").status == 200
        await_closings(knock, 1)
    assert calls.pop(ASKED) >= 3  # of the knock, and before and after the end
    assert calls.pop(("revoke", "sdb.GetAttributes")) == 2  # the ledger; the trail, by the closing
    assert calls.pop(("revoke", "stepfunctions.StopExecution")) == 1
    assert calls.pop(("revoke", "invocations")) == 2
    assert calls.pop(("api", "invocations")) == 2
    assert calls.pop(("authorize", "invocations")) == 1
    expected = ONE_RULE.copy()
    del expected[ASKED], expected["revoke", "sdb.GetAttributes"]
    assert calls == expected


# ---------------------------------------------------------------------------- among others


@pytest.mark.parametrize("live", [10, 1000])
@pytest.mark.parametrize("owner", ["bob", "ci"])
def test_others_live_grants_add_no_call(live: int, owner: str) -> None:
    """Also the key's own (ci's): counting them is one call, however many there are."""
    with running() as knock:
        record_live(knock, live - 1, knock.keys[owner])
        assert from_knock_to_expiry(knock, ["bastion"], "ci") == ONE_RULE
        assert from_knock_to_expiry(knock, DEFAULT, "ci") == THREE_RULES


def test_five_full_groups_in_front_of_the_one_with_room_add_no_call() -> None:
    with running() as knock:
        groups = sorted(knock.add_group("pool", "22/tcp") for _ in range(6))
        for number, group in enumerate(groups[:-1]):
            ranges = [{"CidrIp": f"192.0.{number}.{host}/32"} for host in range(60)]
            permission = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": ranges}
            knock.client("ec2").authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
        knock.add_key("dave", targets="pool", max_duration="24h")
        assert from_knock_to_expiry(knock, ["pool"], "dave") == ONE_RULE


# ---------------------------------------------------------------------------- the sixty-fourth of one source


def crowd(knock: Knock, targets: list[str]) -> None:
    """Open 63 grants behind one address."""
    knock.add_key("carol", targets="@all", max_duration="24h", max_live="100")
    for _ in range(63):
        knock.open("carol", duration="20h", targets=targets)


def test_the_sixty_fourth_of_one_source_opens_rules_of_its_own_with_no_call_more(knock: Knock) -> None:
    knock.add_group("other", "2222/tcp")
    crowd(knock, ["other"])
    assert from_knock_to_expiry(knock, ["bastion"]) == ONE_RULE
    assert from_knock_to_expiry(knock, DEFAULT) == THREE_RULES
    knock.open(duration="1h", targets=["bastion"])
    assert knock.request("POST", "/knock").json["type"] == "urn:knock:problem:source-full"  # it was the last


def test_the_sixty_fourth_of_one_source_that_shares_its_rules_takes_fewer(knock: Knock) -> None:
    """Rules that other grants claim are not revoked."""
    crowd(knock, ["bastion", "web"])
    assert from_knock_to_expiry(knock, ["bastion"]) == ONE_SHARED_RULE
    assert from_knock_to_expiry(knock, DEFAULT) == THREE_SHARED_RULES
    assert (ONE_SHARED_RULE.total(), THREE_SHARED_RULES.total()) == (15, 17)


def test_a_grant_that_shares_its_rules_and_ends_last_takes_two_calls_more(knock: Knock) -> None:
    """It looks the rules up like a grant that shares them, and closes them like a grant that is alone."""
    first = knock.open(duration="1h")
    with counting(knock) as calls:
        last = knock.open("bob", duration="2h")
        knock.expire(first)
        before = calls.copy()
        knock.expire(last)
    calls[ASKED] = before[ASKED] = 1
    opened = Counter({call: times for call, times in before.items() if call[0] in ("api", "authorize")})
    assert {**opened, **(calls - before)} == {
        **{call: times for call, times in THREE_SHARED_RULES.items() if call[0] != "revoke"},
        **{call: times for call, times in THREE_RULES.items() if call[0] == "revoke"},
        ("api", "invocations"): 1,
        ("authorize", "invocations"): 1,
        ("revoke", "invocations"): 1,
    }
