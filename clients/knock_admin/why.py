"""`knock-admin why sgr-…`: the live grants that use a rule in EC2.

A rule's tag names the grant that made it, which may have ended: other grants of the same source may claim the
rule, and it is revoked after its last claim. The claims are in the ledger of its source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from knock_admin import stores, tags
from knock_admin.errors import AdminError, code_of
from knock_admin.ledger import decode
from knock_admin.output import Result, table
from knock_admin.trail import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from knock_admin.stack import Stack


def rule(stack: Stack, rule_id: str, *, now: datetime) -> Result:
    """Describe a rule: the grants that claim it, the grant that made it, and what happens to it next."""
    described = _rule(stack, rule_id)
    source = described.get("CidrIpv4") or described.get("CidrIpv6") or ""
    its_tags = tags.of(described.get("Tags", []))
    ours = its_tags.get(tags.STACK) == stack.name
    maker = _entry(stack, its_tags.get("knock:grant", "")) if ours else None
    # A rule that was modified by hand keeps its id, and is in the ledger of the source it was made for.
    made_for = maker.text("source") if maker else ""
    sources = list(dict.fromkeys(filter(None, (source, made_for))))
    phase, holders = _claims(stack, rule_id, sources)
    entries = [(grant_id, _entry(stack, grant_id)) for grant_id in holders]
    data = {
        "rule": rule_id,
        "group": described["GroupId"],
        "target": _target(stack, described["GroupId"]),
        "ports": _ports(described),
        "source": source or None,
        "stack": its_tags.get(tags.STACK),
        "phase": phase,
        "held_by": [entry.as_json(now) if entry else {"id": grant_id} for grant_id, entry in entries],
        "made_by": maker.as_json(now) if maker else {"id": its_tags.get("knock:grant")} if ours else None,
    }
    lines = [
        f"{rule_id} opens {data['ports']} to {source or 'a group or a prefix list'} in {described['GroupId']}"
    ]
    if data["target"]:
        lines[0] += f" (target {data['target']})"
    lines += _explanation(stack, rule_id, data, its_tags, maker, now)
    if entries:
        lines += ["", *_who(entries, now)]
    return Result(data, lines)


def _rule(stack: Stack, rule_id: str) -> dict[str, Any]:
    try:
        answer = stack.aws.client("ec2").describe_security_group_rules(SecurityGroupRuleIds=[rule_id])
        rules: list[dict[str, Any]] = answer["SecurityGroupRules"]
    except ClientError as error:
        if code_of(error) not in (
            "InvalidSecurityGroupRuleId.NotFound",
            "InvalidSecurityGroupRuleId.Malformed",
        ):
            raise
        rules = []
    if not rules:
        raise AdminError(
            f"EC2 knows no rule {rule_id} in {stack.aws.region}: it has been revoked, or is too young to be "
            f"listed. `knock-admin trail --format jsonl | grep {rule_id}` finds the grants that it let in."
        )
    if rules[0]["IsEgress"]:
        raise AdminError(f"{rule_id} is a rule for the way out; Knock makes rules for the way in only.")
    return rules[0]


def _ports(described: dict[str, Any]) -> str:
    first, last, protocol = (
        described.get("FromPort", -1),
        described.get("ToPort", -1),
        described["IpProtocol"],
    )
    if protocol == "-1" or first == -1:
        return "everything" if protocol == "-1" else str(protocol)
    return f"{first}-{last}/{protocol}" if first != last else f"{first}/{protocol}"


def _target(stack: Stack, group: str) -> str | None:
    described = stack.aws.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
    its_tags = tags.of(described.get("Tags", []))
    return its_tags.get(tags.TARGET) if its_tags.get(tags.STACK) == stack.name else None


def _entry(stack: Stack, grant_id: str) -> Entry | None:
    """Read a grant's record; None if there is none."""
    values = stores.of(stack, stores.TRAIL).get(grant_id) if grant_id else {}
    return Entry(grant_id, values) if values else None


def _claims(stack: Stack, rule_id: str, sources: Sequence[str]) -> tuple[str, list[str]]:
    """Find a rule in the ledgers: its phase, `foreign` or `unknown`, and the grants that claim it."""
    for source in sources:
        ledger = decode(source, stores.of(stack, stores.LEDGER).get(source))
        for rule in ledger["rules"]:
            if rule_id in {known["rule"] for known in rule["ids"]}:
                return rule["phase"], rule["claimed_by"]
        foreign = [
            claim["grant_id"]
            for claim in ledger["claims"]
            if rule_id in {known["rule"] for known in claim["foreign"]}
        ]
        if foreign:
            return "foreign", foreign
    return "unknown", []


def _explanation(
    stack: Stack,
    rule_id: str,
    data: dict[str, Any],
    its_tags: dict[str, str],
    maker: Entry | None,
    now: datetime,
) -> Iterator[str]:
    """Explain in words what the rule is, and what to do about it."""
    phase, owner = data["phase"], its_tags.get(tags.STACK)
    if owner != stack.name:
        yield (
            f"The stack {owner} of Knock made it: `knock-admin why {rule_id} --stack {owner}`."
            if owner
            else "Knock did not make it, and never revokes it."
        )
        if phase == "foreign":
            yield "These grants found it open. Ending them does not close it; its owner has to:"
        return
    maker_id = its_tags.get("knock:grant", "?")
    yield f"The grant {maker_id} made it" + (
        f", and is {maker.status(now)} now." if maker else ", and is not on record."
    )
    if phase == "open":
        yield "These live grants claim it; it is revoked when the last of them ends:"
    elif phase == "closing":
        yield "No live grant claims it: it is being revoked. If it stays, `knock-admin guard` goes on with "
        "that."
    else:
        yield (
            f"The ledger of {data['source']} does not know it. `knock-admin guard` revokes it, unless the "
            "grant that made it is live and does so itself."
        )


def _who(entries: Sequence[tuple[str, Entry | None]], now: datetime) -> Iterator[str]:
    rows = (
        (
            grant_id,
            entry.text("principal_name"),
            entry.status(now),
            tags.left(entry.text("expires_at"), now),
            entry.text("expires_at"),
            entry.text("reason") or "-",
        )
        if entry
        else (grant_id, "?", "not on record", "?", "?", "-")
        for grant_id, entry in entries
    )
    return table(rows, ("GRANT", "PRINCIPAL", "STATUS", "LEFT", "EXPIRES AT", "REASON"))
