"""The trail: the append-only record of what happened, in one SimpleDB domain.

One item is one grant (docs/architecture.md has the attributes); a refusal is an item of its own. A
grant's claims are values of its own item, not items of their own: so the one conditional write that
ends a grant ends all its claims with it, and nobody can see half of it. The alternative, an item a
rule with its claimants, needs one more write a rule at both ends and stops at 256 claimants.

Every method is one call to SimpleDB, or one a page. Reads are consistent: they show every write that
was answered before. Writes that matter carry `Expected`, so a second writer learns that it is second.

What fails is TrailUnavailable, whatever it was: callers have one question only, whether the trail
holds what they wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from .errors import GrantEnded, GrantNotFound, InvalidKnock, TrailUnavailable
from .values import (
    ENDS,
    Event,
    Grant,
    Ports,
    Principal,
    RuleKey,
    State,
    Target,
    compact_json,
    parse_time,
    show_second,
    show_time,
    stamped_at,
)

if TYPE_CHECKING:
    from botocore.client import BaseClient

NOT_YET = "-"  # SimpleDB cannot ask for what is missing by index, so "not yet closed" is a value
LIVE = "live"
WHILE_LIVE = {"Name": "state", "Value": LIVE}
CLOSED = "closed"  # the last decision about a grant's rules
MANY = (
    "claim",
    "rule",
    "condemned",
    "supersedes",
    "event",
    "target",
    "target_name",
)  # the others have one value


@dataclass(frozen=True, slots=True)
class Page:
    """Some grants, newest first, and the `order` to go on from, if there are more."""

    grants: tuple[Grant, ...]
    after: str | None


class Trail:
    """The SimpleDB domain `domain`, through a client of the region that holds it."""

    def __init__(self, client: BaseClient, domain: str) -> None:
        self._client: Any = client
        self._domain = domain

    # ------------------------------------------------------------------ writing

    def record_request(self, grant: Grant) -> None:
        """Record the intent, before anything is done about it. Twice is once: the first record stands."""
        event = Event(grant.requested_at, "requested", grant.principal.name)
        pairs = [
            ("kind", "grant"),
            ("state", LIVE),
            ("closed_at", NOT_YET),
            ("decided", "0"),
            ("principal_id", grant.principal.id),
            ("principal_name", grant.principal.name),
            ("source", grant.source),
            ("requested_at", show_time(grant.requested_at)),
            ("expires_at", show_second(grant.expires_at)),
            ("order", grant.order),
            ("event", compact_json(event.as_json())),
            *(("target", compact_json(target.as_json())) for target in grant.targets),
            *(("target_name", target.name) for target in grant.targets),
            *([("reason", grant.reason)] if grant.reason else []),
        ]
        # The id is random, so a record that is there is this one: written, and the answer lost.
        with suppress(_ConditionFailed):
            self._put(grant.id, pairs, expected={"Name": "kind", "Exists": False})

    def record_refusal(
        self, refusal_id: str, principal: Principal, source: str, at: datetime, right: str, detail: str
    ) -> None:
        """Record a knock that was refused. Twice with one id is one record."""
        self._put(
            refusal_id,
            [
                ("kind", "refusal"),
                ("principal_id", principal.id),
                ("principal_name", principal.name),
                ("source", source),
                ("requested_at", show_time(at)),
                ("right", right or NOT_YET),
                ("detail", _cut(detail, 1000)),
            ],
        )

    def add_claims(self, grant_id: str, keys: Iterable[RuleKey], stamp: str) -> None:
        """Stake claims in rules, while the grant is live. Raises GrantEnded. Twice is once.

        `stamp` names the run that will authorize them: until it records an outcome, nobody else knows it.
        """
        self._put_while_live(grant_id, [("claim", f"{key} {stamp}") for key in sorted(keys)])

    def drop_claims(self, grant_id: str, keys: Iterable[RuleKey], stamp: str) -> None:
        """Take back claims of a run that certainly authorized none of their rules. Twice is once."""
        self._call(
            "delete_attributes",
            ItemName=grant_id,
            Attributes=[{"Name": "claim", "Value": f"{key} {stamp}"} for key in sorted(keys)],
        )

    def record_rule(
        self,
        grant_id: str,
        key: RuleKey,
        rule_id: str,
        stamp: str,
        *,
        foreign: bool = False,
        authorized_at: datetime | None = None,
        supersedes: Iterable[str] = (),
    ) -> None:
        """Record what became of a run's claim, while the grant is live. Raises GrantEnded. Twice is once.

        `authorized_at` is given with the last rule of a grant, and the ids of the grants that it supersedes:
        one write then says that all is open.
        """
        outcome = {"key": str(key), "foreign" if foreign else "rule": rule_id, "run": stamp}
        pairs = [("rule", compact_json(outcome))]
        if authorized_at:
            event = Event(authorized_at, "authorized", "knock")
            pairs += [("authorized_at", show_time(authorized_at)), ("event", compact_json(event.as_json()))]
        pairs += [("supersedes", older) for older in sorted(supersedes)]
        self._put_while_live(grant_id, pairs)

    def hand_over(self, grant_id: str, rules: Mapping[RuleKey, Iterable[str]]) -> None:
        """Have a live grant answer for rules of others, by their ids. Raises GrantEnded. Twice is once."""
        self._put_while_live(grant_id, _rule_pairs("rule", rules))

    def end(self, grant_id: str, how: State, at: datetime, by: str, reason: str) -> bool:
        """Record the end of a grant and of all its claims. The first writer wins: True says it was this one.

        False says that it had ended before. Raises GrantNotFound.
        """
        event = Event(at, how, by, {"reason": _cut(reason, 300)} if reason else {})
        pairs = [
            ("state", how),
            ("ended_at", show_time(at)),
            ("ended_by", by),
            ("event", compact_json(event.as_json())),
            *([("end_reason", _cut(reason, 1000))] if reason else []),
        ]
        try:
            self._put(grant_id, pairs, expected=WHILE_LIVE)
        except _ConditionFailed as error:
            if error.missing:
                raise GrantNotFound(f"the trail holds no grant {grant_id!r}") from error
            return False
        return True

    def condemn(self, grant_id: str, decided: int, rules: Mapping[RuleKey, Iterable[str]]) -> bool:
        """Decide that rules of an ended grant go. False, with nothing written, where it was decided since.

        `decided` is the number of decisions that the grant had when the claims on its rules were read.
        """
        pairs = [*_rule_pairs("condemned", rules), ("decided", str(decided + 1))]
        return self._put_if_decided(grant_id, decided, pairs)

    def close(
        self, grant_id: str, decided: int, at: datetime, revoked: Iterable[str], kept: Iterable[str]
    ) -> bool:
        """Record that an ended grant answers for nothing any more. False where somebody decided since.

        `revoked` names rules by id, `kept` by what other live grants claim.
        """
        detail = {"revoked": sorted(revoked)[:20], "kept": sorted(kept)[:4]}
        event = Event(at, "closed", "knock", {key: value for key, value in detail.items() if value})
        pairs = [
            ("closed_at", show_time(at)),
            ("decided", CLOSED),
            ("event", compact_json(event.as_json())),
        ]
        return self._put_if_decided(grant_id, decided, pairs)

    # ------------------------------------------------------------------ reading

    def get(self, grant_id: str) -> Grant | None:
        """Read one grant as it is now, or None where there is none of that id."""
        answer = self._call("get_attributes", ItemName=grant_id, ConsistentRead=True)
        return _grant(grant_id, answer.get("Attributes", []))

    def unclosed(self, source: str) -> list[Grant]:
        """List the grants of one source that may have a rule open: the live ones and those being closed.

        All grants that claim one rule have its CIDR for a source, so this shows every claim on it.
        """
        return list(self._select(f"`source` = {_quote(source)} and `closed_at` = '{NOT_YET}'"))

    def all_unclosed(self) -> Iterator[Grant]:
        """Walk through every grant that may have a rule open. One call a page of 2,500 at most."""
        return self._select(f"`closed_at` = '{NOT_YET}'")

    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        live_after: datetime | None = None,
        principal_id: str | None = None,
        principal_name: str | None = None,
        source: str | None = None,
        target: str | None = None,
        state: str | None = None,
    ) -> Page:
        """List grants, newest first, from beyond `after`. All conditions given must hold.

        `live_after` keeps those live at that time. One call, or a few where a page of SimpleDB's is
        shorter than asked (it stops at 1 MB and at 5 s).
        """
        where = [f"`order` < {_quote(after)}" if after else "`order` is not null"]
        for name, value in (
            ("principal_id", principal_id),
            ("principal_name", principal_name),
            ("source", source),
            ("state", state),
            ("target_name", target),
        ):
            if value is not None:
                where.append(f"`{name}` = {_quote(value)}")
        if live_after:
            where.append(f"`state` = '{LIVE}' and `expires_at` > {_quote(show_second(live_after))}")
        found: list[Grant] = []
        for grant in self._select(" and ".join(where), order="`order` desc", page=limit + 1):
            found.append(grant)
            if len(found) > limit:
                return Page(tuple(found[:limit]), found[limit - 1].order)
        return Page(tuple(found), None)

    # ------------------------------------------------------------------ SimpleDB

    def _select(self, where: str, order: str = "", page: int = 2500) -> Iterator[Grant]:
        domain = self._domain.replace("`", "``")
        text = f"select * from `{domain}` where {where}"  # noqa: S608  # values are quoted by _quote
        text += f" order by {order}" if order else ""
        text += f" limit {min(page, 2500)}"
        token: dict[str, str] = {}
        while True:
            answer = self._call("select", domain=False, SelectExpression=text, ConsistentRead=True, **token)
            for item in answer.get("Items", []):
                grant = _grant(item["Name"], item["Attributes"])
                if grant:
                    yield grant
            if not answer.get("NextToken"):
                return
            token = {"NextToken": answer["NextToken"]}

    def _put_if_decided(self, grant_id: str, decided: int, pairs: list[tuple[str, str]]) -> bool:
        try:
            self._put(grant_id, pairs, expected={"Name": "decided", "Value": str(decided)})
        except _ConditionFailed:
            return False
        return True

    def _put_while_live(self, grant_id: str, pairs: list[tuple[str, str]]) -> None:
        try:
            self._put(grant_id, pairs, expected=WHILE_LIVE)
        except _ConditionFailed as error:
            raise GrantEnded(f"the grant {grant_id} has ended; nothing is opened for it") from error

    def _put(
        self, item: str, pairs: list[tuple[str, str]], expected: Mapping[str, Any] | None = None
    ) -> None:
        attributes = [{"Name": name, "Value": value, "Replace": name not in MANY} for name, value in pairs]
        extra: dict[str, Any] = {"Expected": expected} if expected else {}
        self._call("put_attributes", ItemName=item, Attributes=attributes, **extra)

    def _call(self, operation: str, *, domain: bool = True, **arguments: Any) -> dict[str, Any]:
        if domain:
            arguments["DomainName"] = self._domain
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            # Not in client.exceptions: SimpleDB's model does not name these.
            code = error.response["Error"]["Code"]
            if code in ("ConditionalCheckFailed", "AttributeDoesNotExist"):
                raise _ConditionFailed(missing=code == "AttributeDoesNotExist") from error
            if code == "NumberItemAttributesExceeded" and operation == "put_attributes":
                raise InvalidKnock("targets", "the grant has more to record than its item holds") from error
            raise TrailUnavailable(f"SimpleDB answered {code} to {operation}") from error
        except BotoCoreError as error:
            raise TrailUnavailable(f"SimpleDB did not answer {operation}: {type(error).__name__}") from error
        return answer


class _ConditionFailed(Exception):
    """The write's condition did not hold. `missing` says that there is no such attribute at all."""

    def __init__(self, *, missing: bool) -> None:
        super().__init__()
        self.missing = missing


def _cut(text: str, most: int) -> str:
    """Make one printable line of a text of somebody's, of so many bytes of UTF-8 at most.

    SimpleDB refuses a value of more than 1,024 bytes, and an end must not fail for its reason. JSON makes
    two bytes of some letters, which leaves room for 300 in an event.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line.encode()[:most].decode(errors="ignore")


def _rule_pairs(name: str, rules: Mapping[RuleKey, Iterable[str]]) -> list[tuple[str, str]]:
    return [
        (name, compact_json({"key": str(key), "rule": rule_id}))
        for key, ids in sorted(rules.items())
        for rule_id in sorted(ids)
    ]


def _quote(value: str) -> str:
    """Quote a value for a Select: single quotes, doubled inside.

    https://docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/QuotingRulesSelect.html
    """
    return "'" + value.replace("'", "''") + "'"


def _rules(claims: list[str], rules: list[str], condemned: list[str]) -> dict[str, Any]:
    """Read what a grant claims, and what became of it."""
    unsettled: dict[RuleKey, set[str]] = {}
    for text in claims:
        of, _, stamp = text.partition(" ")
        stamped_at(stamp)
        unsettled.setdefault(RuleKey.parse(of), set()).add(stamp)
    keys = frozenset(unsettled)
    ids: dict[str, dict[RuleKey, frozenset[str]]] = {"rules": {}, "condemned": {}}
    outcomes: dict[RuleKey, tuple[str, bool]] = {}
    for name, texts in (("rules", rules), ("condemned", condemned)):
        for value in map(json.loads, sorted(texts)):
            key = RuleKey.parse(value["key"])
            if "rule" in value:
                ids[name][key] = ids[name].get(key, frozenset()) | {value["rule"]}
            if "run" in value:
                unsettled.get(key, set()).discard(value["run"])
                outcomes[key] = (value.get("rule") or value["foreign"], "foreign" in value)
    left = {key: frozenset(stamps) for key, stamps in unsettled.items() if stamps}
    return {"claims": keys, "unsettled": left, "outcomes": outcomes, **ids}


def _grant(name: str, pairs: list[dict[str, str]]) -> Grant | None:
    """Read an item. None for one that is no grant; TrailUnavailable for one that cannot be read."""
    one: dict[str, str] = {}
    many: dict[str, list[str]] = {name: [] for name in MANY}
    for pair in pairs:
        if pair["Name"] in many:
            many[pair["Name"]].append(pair["Value"])
        else:
            one[pair["Name"]] = pair["Value"]
    if one.get("kind") != "grant":
        return None
    try:
        targets = sorted(
            (
                Target(value["name"], tuple(Ports.parse(ports) for ports in value["ports"]))
                for value in map(json.loads, many["target"])
            ),
            key=lambda target: target.name,
        )
        events = sorted((Event.from_json(json.loads(text)) for text in many["event"]), key=lambda e: e.at)
        state = one["state"]
        if state != LIVE and state not in ENDS:
            raise ValueError(f"unknown state {state!r}")
        closed = one["closed_at"]
        return Grant(
            id=name,
            principal=Principal(one["principal_id"], one["principal_name"]),
            source=one["source"],
            targets=tuple(targets),
            requested_at=parse_time(one["requested_at"]),
            expires_at=parse_time(one["expires_at"]),
            reason=one.get("reason", ""),
            state=state,  # type: ignore[arg-type]  # checked just above
            authorized_at=parse_time(one["authorized_at"]) if "authorized_at" in one else None,
            supersedes=frozenset(many["supersedes"]),
            ended_at=parse_time(one["ended_at"]) if "ended_at" in one else None,
            ended_by=one.get("ended_by", ""),
            end_reason=one.get("end_reason", ""),
            closed_at=None if closed == NOT_YET else parse_time(closed),
            **_rules(many["claim"], many["rule"], many["condemned"]),
            decided=-1 if one["decided"] == CLOSED else int(one["decided"]),
            events=tuple(events),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise TrailUnavailable(f"the trail's item {name!r} cannot be read: {error}") from error
