"""The ledger of one source: which grants claim which rules, and each rule's state. Pure.

Everything about the rules of one source is decided in one item, by compare-and-set: `operations` reads the
ledger, applies one of the transitions below, and writes it if its token still holds. A transition is a
function `ledger, event, now → ledger`; applying it twice gives the same as once. docs/protocol.md has the
whole protocol.

What holds of every ledger here:

- A rule is *open* or *closing*. A rule that no live grant claims is closing.
- A rule with an id that is closing never becomes open again: the id goes first, and the rule is then
  authorized anew.
- An id is revoked only once the ledger has it as closing. Ids never return, so a late revoke is harmless.
- An *attempt* is one run that may create the rule, until its result is recorded. A rule leaves the ledger
  when it has neither an id nor an attempt.
- A *tombstone* is an id lately revoked: EC2 may still list it, or call its rule a duplicate. It stays for
  SETTLES.
- A grant that has ended is on record as *released*, for SETTLES too: a retried close knows that the ledger
  was not lost, and a late run claims nothing.

The alternative, an item a grant, needs several writes that have to be seen together, and an item a rule
cannot be ended with its grant in one write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from .errors import GrantEnded, SourceFull
from .timing import SETTLES, SKEW
from .values import RuleKey, compact_json, cut_to_milliseconds, parse_time, show_second, show_time

MAX_CLAIMS = 64
MAX_RULES = 128

# Bytes. What a store holds of one ledger (`ledgers`), and how much of it a claim may fill: ids that are found
# and tombstones need the rest, so that closing never needs room.
LARGEST = 250 * 1024
CLAIM_ROOM = 160 * 1024
ID_BYTES = 60  # one id with its time, as text

# Released grants on record: grants may fail as fast as executions are started, and must not fill the item.
MOST_RELEASED = 256

TRY_LATER = "end some, or try again in a few minutes"


@dataclass(frozen=True, slots=True)
class Claim:
    """A live grant's reference to rules.

    `foreign` are rules that Knock did not make, by key, with their ids.
    """

    expires_at: datetime
    rule_keys: frozenset[RuleKey] = frozenset()
    foreign: Mapping[RuleKey, str] = field(default_factory=dict)

    def counts_at(self, now: datetime) -> bool:
        """Say whether it is valid: clocks differ, so it is for SKEW longer than its grant."""
        return now < self.expires_at + SKEW


@dataclass(frozen=True, slots=True)
class LedgerRule:
    """One rule's state: its ids with the time of their record, and the attempts without a result."""

    closing: bool = False
    ids: Mapping[str, datetime] = field(default_factory=dict)
    attempts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ledger:
    """The claims on, and the rules of, one source. An empty one proves nothing: an item can be lost."""

    source: str
    claims: Mapping[str, Claim] = field(default_factory=dict)
    rules: Mapping[RuleKey, LedgerRule] = field(default_factory=dict)
    tombstones: Mapping[str, datetime] = field(default_factory=dict)
    released: Mapping[str, datetime] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.claims or self.rules or self.tombstones or self.released)

    def closing(self, rule_keys: Iterable[RuleKey]) -> dict[RuleKey, LedgerRule]:
        """Give those of some rules that are closing."""
        wanted = frozenset(rule_keys)
        return {key: rule for key, rule in sorted(self.rules.items()) if rule.closing and key in wanted}

    def knows(self, rule_id: str) -> bool:
        """Say whether an id is on record, as a rule's or as a tombstone."""
        return rule_id in self.tombstones or any(rule_id in rule.ids for rule in self.rules.values())

    def has_trace(self, grant_id: str) -> bool:
        """Say whether it holds or held a grant's claim. If not, an open grant's ledger was lost."""
        return grant_id in self.claims or grant_id in self.released

    def claimed(self, without: Iterable[str] = ()) -> frozenset[RuleKey]:
        """Give the keys that grants claim, other than those in `without`."""
        left_out = set(without)
        return frozenset(
            key for grant, claim in self.claims.items() if grant not in left_out for key in claim.rule_keys
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A ledger as it was read, and its token; None where there was no item."""

    ledger: Ledger
    token: str | None


def name_attempt(at: datetime, token: str) -> str:
    """Name an attempt that begins now: `2026-11-23T21:17:19.123Z/1f0c9a3e`. The token makes it unique."""
    return f"{show_time(at)}/{token}"


def attempted_at(attempt: str) -> datetime:
    """Read from its name when an attempt began. Raises ValueError."""
    return parse_time(attempt.partition("/")[0])


def quiescent(attempt: str, now: datetime) -> bool:
    """Say whether an attempt's effect, if it has one, is final and visible."""
    return now >= attempted_at(attempt) + SETTLES


# ---------------------------------------------------------------------------- results of an attempt


@dataclass(frozen=True, slots=True)
class Own:
    """The rule has this id: the attempt authorized it, or met it as one of Knock's own."""

    rule_id: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A rule that Knock did not make lets the source in already."""

    rule_id: str


@dataclass(frozen=True, slots=True)
class NoRule:
    """The attempt certainly made no rule, since the group is full or gone: the grant claims it no more."""


@dataclass(frozen=True, slots=True)
class Unsent:
    """The attempt made no rule: its run sent no call for it. The claim stays for the grant's next run."""


Result = Own | Foreign | NoRule | Unsent


# ---------------------------------------------------------------------------- transitions


def claim(
    ledger: Ledger,
    grant_id: str,
    expires_at: datetime,
    rule_keys: Iterable[RuleKey],
    attempt: str,
    now: datetime,
    renews: str | None = None,
) -> Ledger:
    """Add a grant's claim on some rules, and its attempt to each that it may create.

    A closing rule with an id is claimed and gets no attempt: its id is revoked first. A closing rule with
    attempts alone is open again, since there is no id that another run could be revoking. Raises SourceFull;
    the grant that is renewed counts in no bound. Raises GrantEnded for a grant that was released: its close
    is over, so nothing would close what is authorized now.
    """
    if grant_id in ledger.released:
        raise GrantEnded(f"the grant {grant_id} has ended; nothing is opened for it")
    new_keys = frozenset(rule_keys)
    before = _drop_expired(ledger, now)
    claims, rules = dict(before.claims), dict(before.rules)
    own_claim = claims.get(grant_id, Claim(expires_at))
    claims[grant_id] = replace(own_claim, rule_keys=own_claim.rule_keys | new_keys)
    for key in new_keys:
        rule = rules.get(key, LedgerRule())
        if not (rule.closing and rule.ids):
            rules[key] = LedgerRule(False, rule.ids, rule.attempts | {attempt})
    after = _tidy(replace(before, claims=claims, rules=rules), now)
    _refuse_excess(after, grant_id, new_keys, {renews} if renews else set())
    return after


def _refuse_excess(ledger: Ledger, grant_id: str, new_keys: frozenset[RuleKey], renewed: set[str]) -> None:
    """Raise SourceFull where a claim exceeds the bounds, which bound the cost of every operation."""
    others = ledger.claims.keys() - renewed - {grant_id}
    if len(others) >= MAX_CLAIMS:
        raise SourceFull(
            f"the source has {len(others)} live grants, and {MAX_CLAIMS} is the most: {TRY_LATER}"
        )
    only_renewed = ledger.claimed(without=ledger.claims.keys() - renewed) - ledger.claimed(without=renewed)
    rules = (ledger.rules.keys() | ledger.claimed()) - only_renewed
    if len(rules) > MAX_RULES:
        raise SourceFull(
            f"the source would have {len(rules)} rules, and {MAX_RULES} is the most: {TRY_LATER}"
        )
    reserved = ID_BYTES * sum(len(rule.attempts) for rule in ledger.rules.values())
    if new_keys and len(encode(ledger)) + reserved > CLAIM_ROOM:
        raise SourceFull(f"too much has happened to the source's rules in the last minutes: {TRY_LATER}")


def record_results(
    ledger: Ledger, grant_id: str, attempt: str, results: Mapping[RuleKey, Result], now: datetime
) -> Ledger:
    """Record an attempt's results. A rule without a live claim is closing, and one that was closing stays so.

    An id on record under another key is of a rule that was changed by hand: it moves to the key that EC2
    shows. Where that other rule is closing, the id is revoked there, and is no result here.
    """
    ledger = _tidy(ledger, now)
    claims, rules = dict(ledger.claims), dict(ledger.rules)
    own_claim = claims.get(grant_id)
    for key, result in results.items():
        rule = rules.get(key, LedgerRule())
        ids = dict(rule.ids)
        if isinstance(result, Own) and result.rule_id not in ledger.tombstones:
            other_key = next((k for k, r in rules.items() if k != key and result.rule_id in r.ids), None)
            if other_key and not rules[other_key].closing:
                other = rules[other_key]
                left = {name: at for name, at in other.ids.items() if name != result.rule_id}
                rules[other_key] = replace(other, ids=left)
            if not other_key or not rules[other_key].closing:
                ids.setdefault(result.rule_id, cut_to_milliseconds(now))
        rules[key] = replace(rule, ids=ids, attempts=rule.attempts - {attempt})
        if own_claim and isinstance(result, Foreign):
            foreign = {**own_claim.foreign, key: result.rule_id}
            own_claim = replace(own_claim, rule_keys=own_claim.rule_keys - {key}, foreign=foreign)
        elif own_claim and isinstance(result, NoRule) and not ids:
            own_claim = replace(own_claim, rule_keys=own_claim.rule_keys - {key})
    if own_claim:
        claims[grant_id] = own_claim
    return _tidy(replace(ledger, claims=claims, rules=rules), now)


def release(ledger: Ledger, grant_id: str, now: datetime, untouched: str | None = None) -> Ledger:
    """Drop the claim of a grant that has ended. `untouched` is its own attempt that sent EC2 no call."""
    rules = ledger.rules
    if untouched:
        rules = {key: replace(rule, attempts=rule.attempts - {untouched}) for key, rule in rules.items()}
    ledger = replace(ledger, rules=rules)
    released_before = grant_id in ledger.released and grant_id not in ledger.claims
    return _tidy(ledger if released_before else _drop(ledger, {grant_id}, now), now)


def record_revoked(
    ledger: Ledger,
    gone: Mapping[RuleKey, Iterable[str]],
    without_effect: Mapping[RuleKey, Iterable[str]],
    now: datetime,
) -> Ledger:
    """Record ids that are gone, and quiescent attempts that EC2 shows nothing of."""
    rules, tombstones = dict(ledger.rules), dict(ledger.tombstones)
    for key in gone.keys() | without_effect.keys():
        lost, quiet = set(gone.get(key, ())), set(without_effect.get(key, ()))
        tombstones |= dict.fromkeys(sorted(lost), cut_to_milliseconds(now))
        if rule := rules.get(key):
            left = {name: at for name, at in rule.ids.items() if name not in lost}
            rules[key] = replace(rule, ids=left, attempts=rule.attempts - quiet)
    return _tidy(replace(ledger, rules=rules, tombstones=tombstones), now)


def record_lost(ledger: Ledger, rule_ids: Iterable[str], now: datetime) -> Ledger:
    """Record ids that force revoked: they become tombstones, also where other grants claim their rules."""
    lost = set(rule_ids)
    gone = {key: lost & rule.ids.keys() for key, rule in ledger.rules.items() if lost & rule.ids.keys()}
    return record_revoked(ledger, gone, {}, now)


def record_ids(ledger: Ledger, ids_by_key: Mapping[RuleKey, Iterable[str]], now: datetime) -> Ledger:
    """Record ids of Knock's own that the ledger lacked. A rule that no live grant claims is closing."""
    ledger = _tidy(ledger, now)
    rules = dict(ledger.rules)
    for key, rule_ids in ids_by_key.items():
        for rule_id in sorted(rule_ids):
            if ledger.knows(rule_id):
                continue
            rule = rules.get(key, LedgerRule())  # closing, by _tidy, where no grant claims it
            rules[key] = replace(rule, ids={**rule.ids, rule_id: cut_to_milliseconds(now)})
    return _tidy(replace(ledger, rules=rules), now)


def tidy(ledger: Ledger, now: datetime) -> Ledger:
    """Drop expired claims, and the tombstones and released grants more than SETTLES old, or in the future."""
    return _tidy(ledger, now)


def _drop_expired(ledger: Ledger, now: datetime) -> Ledger:
    return _drop(ledger, {name for name, claim in ledger.claims.items() if not claim.counts_at(now)}, now)


def _drop(ledger: Ledger, grants: set[str], now: datetime) -> Ledger:
    if not grants:
        return ledger
    claims = {name: claim for name, claim in ledger.claims.items() if name not in grants}
    released = {**ledger.released, **dict.fromkeys(sorted(grants), cut_to_milliseconds(now))}
    return replace(ledger, claims=claims, released=released)


def _tidy(ledger: Ledger, now: datetime) -> Ledger:
    """Restore after a transition what holds of every ledger: see the module's list."""
    ledger = _drop_expired(ledger, now)
    claimed = ledger.claimed()
    rules = {}
    for key, rule in ledger.rules.items():
        attempts = rule.attempts
        # Of the quiescent attempts one stands for all: it says that EC2 has to be asked before the rule
        # leaves the ledger. The ids do not tell: one may be gone, or changed by hand, while an attempt made
        # another.
        old = sorted(name for name in attempts if quiescent(name, now))
        attempts -= set(old[:-1])
        if rule.ids or attempts:
            rules[key] = LedgerRule(rule.closing or key not in claimed, rule.ids, attempts)
    return replace(
        ledger,
        rules=rules,
        tombstones={name: at for name, at in ledger.tombstones.items() if abs(now - at) < SETTLES},
        released=_latest({name: at for name, at in ledger.released.items() if abs(now - at) < SETTLES}),
    )


def _latest(released: Mapping[str, datetime]) -> Mapping[str, datetime]:
    """Give the latest MOST_RELEASED: of one that is left out, a retried close asks EC2 once more."""
    if len(released) <= MOST_RELEASED:
        return released
    return dict(sorted(released.items(), key=lambda item: (item[1], item[0]))[-MOST_RELEASED:])


# ---------------------------------------------------------------------------- as text


def encode(ledger: Ledger) -> bytes:
    """Write a ledger as JSON in ASCII, its rule keys once. Equal ledgers are equal texts."""
    keys = sorted(
        ledger.rules.keys() | {k for c in ledger.claims.values() for k in (*c.rule_keys, *c.foreign)}
    )
    number = {key: n for n, key in enumerate(keys)}
    content = {
        "keys": [_show_key(key, ledger.source) for key in keys],
        "claims": {
            grant: {
                "until": show_second(claim.expires_at),
                "rules": sorted(number[key] for key in claim.rule_keys),
            }
            | ({"foreign": _foreign(claim, number)} if claim.foreign else {})
            for grant, claim in ledger.claims.items()
        },
        "rules": {
            str(number[key]): {
                "phase": "closing" if rule.closing else "open",
                "ids": {name: show_time(at) for name, at in rule.ids.items()},
                "attempts": sorted(rule.attempts),
            }
            for key, rule in ledger.rules.items()
        },
        "tombstones": {name: show_time(at) for name, at in ledger.tombstones.items()},
        "released": {name: show_time(at) for name, at in ledger.released.items()},
    }
    return compact_json(content).encode("ascii")


def _foreign(claim: Claim, number: Mapping[RuleKey, int]) -> dict[str, str]:
    return {str(number[key]): rule_id for key, rule_id in claim.foreign.items()}


def _show_key(key: RuleKey, source: str) -> str:
    text = str(key)
    return text.removesuffix("/" + source) if key.cidr == source else text


def _read_key(text: str, source: str) -> RuleKey:
    return RuleKey.parse(text if text.count("/") > 3 else f"{text}/{source}")


def decode(text: bytes, source: str) -> Ledger:
    """Read what `encode` wrote. Raises ValueError on anything else."""
    try:
        content = json.loads(text)
        keys = [_read_key(key, source) for key in content["keys"]]
        return Ledger(
            source,
            {
                grant: Claim(
                    parse_time(value["until"]),
                    frozenset(keys[n] for n in value["rules"]),
                    {keys[int(n)]: _name(rule_id) for n, rule_id in value.get("foreign", {}).items()},
                )
                for grant, value in content["claims"].items()
            },
            {keys[int(n)]: _read_rule(value) for n, value in content["rules"].items()},
            {name: parse_time(at) for name, at in content["tombstones"].items()},
            {name: parse_time(at) for name, at in content["released"].items()},
        )
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is no ledger: {type(error).__name__} {error}"[:200]) from error


def _read_rule(value: Mapping[str, object]) -> LedgerRule:
    phase, ids, attempts = value["phase"], value["ids"], value["attempts"]
    if phase not in ("open", "closing") or not isinstance(ids, dict) or not isinstance(attempts, list):
        raise ValueError(f"no rule's phase, ids and attempts: {value!r}"[:200])
    for attempt in attempts:
        attempted_at(attempt)
    return LedgerRule(
        phase == "closing", {_name(name): parse_time(at) for name, at in ids.items()}, frozenset(attempts)
    )


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a rule's id was expected, not {value!r}"[:100])
    return value
