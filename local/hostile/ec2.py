"""EC2's eventual consistency, its request limits, and its errors before and after the effect.

- https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html; users report over two minutes:
  https://github.com/hashicorp/terraform/issues/6325
- https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html
- https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RevokeSecurityGroupIngress.html (a default VPC)

The embedded EC2 stays consistent, and so does its state: only answers are changed here. Each change of a rule
has a delay of its own; until it is over, each list shows the rule after or, by a throw, before the change.
"""

from __future__ import annotations

import fnmatch
import re
import threading
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import parse_qsl, urlencode

from local.endpoint import Answer, Call, Forward, failure
from local.hostile.dice import Bucket, Dice, Moment
from local.hostile.xml import Element, parse, text, write

ERRS = 0.01  # before the effect, and after it as often
BEHIND = 0.5  # of the lists within a change's delay
LENIENT = 0.5

_DESCRIBES = ("Describe", "Get", "List")
_UNKNOWN = "InvalidSecurityGroupRuleId.NotFound"
_PAGE = "1000"
_ID = "securityGroupRuleId"

Form = dict[str, str]
_Key = tuple[str, str, str, str, str]  # group, protocol, first port, last port, CIDR

# Requests at once, and a second after that.
CHANGES, LISTS = (50, 5), (100, 20)


class Ec2Throttle:
    """Changes of security groups: 50, then 5 a second; lists: 100, then 20 a second."""

    def __init__(self, moment: Moment) -> None:
        self._changes, self._lists = Bucket(moment.now, *CHANGES), Bucket(moment.now, *LISTS)

    def __call__(self, call: Call, forward: Forward) -> Answer:
        bucket = self._lists if call.operation.startswith(_DESCRIBES) else self._changes
        return (
            forward()
            if bucket.take()
            else failure(call, "RequestLimitExceeded", "Request limit exceeded.", 503)
        )


class Ec2Errors:
    """A server error instead of the effect, or, of a change, after it."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice

    def __call__(self, call: Call, forward: Forward) -> Answer:
        dice = self._dice.throw("ec2 error", call.operation, call.access_key)
        chance = dice.random()
        code, status = dice.choice((("InternalError", 500), ("Unavailable", 503)))
        message = "An internal error has occurred"
        if chance < ERRS:
            return failure(call, code, message, status)
        answer = forward()
        if chance < 2 * ERRS and not call.operation.startswith(_DESCRIBES):
            return failure(call, code, message, status)
        return answer


class Ec2Lenient:
    """Revoking an unknown rule, as in a default VPC: often a success that names the revoked rules."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice

    def __call__(self, call: Call, forward: Forward) -> Answer:
        answer = forward()
        if call.operation != "RevokeSecurityGroupIngress" or answer.status != 400:
            return answer
        form = _read(call)
        ids = _numbered(form, "SecurityGroupRuleId")
        if not ids or b"NotFound" not in answer.body or b"InvalidGroup" in answer.body:
            return answer
        if self._dice.throw("lenient", call.access_key).random() >= LENIENT:
            return answer
        present = {text(rule, _ID) for rule in _described(form["GroupId"], forward)}
        return _revoke_only(form, [rule_id for rule_id in ids if rule_id in present], forward)


@dataclass(frozen=True, slots=True)
class _Change:
    """A rule before a recent change; `before` is None for a rule that was added."""

    before: Element | None
    group: str
    until: datetime


class Ec2Lag:
    """Lists that lag behind, ids that are not known yet, and duplicates of revoked rules."""

    def __init__(self, dice: Dice, moment: Moment, *, lenient: bool) -> None:
        self._dice, self._moment, self._lenient = dice, moment, lenient
        self._changes: dict[str, _Change] = {}
        self._lock = threading.Lock()
        self._handlers: dict[str, Callable[[Call, Forward], Answer]] = {
            "AuthorizeSecurityGroupIngress": self._authorize,
            "RevokeSecurityGroupIngress": self._revoke,
            "ModifySecurityGroupRules": self._modify,
            "DescribeSecurityGroupRules": self._describe_rules,
            "DescribeSecurityGroups": self._describe_groups,
        }

    def __call__(self, call: Call, forward: Forward) -> Answer:
        return self._handlers.get(call.operation, _plainly)(call, forward)

    def _recent(self) -> dict[str, _Change]:
        """Return the changes that lists may not show yet, by their rules' ids."""
        with self._lock:
            now = self._moment.now()
            self._changes = {name: change for name, change in self._changes.items() if now < change.until}
            return dict(self._changes)

    def _changed(self, operation: str, rules: Iterable[tuple[str, str, Element | None]]) -> None:
        for name, group, before in rules:
            lag = self._moment.delay(self._dice.throw("lag", operation), 10, 130)
            with self._lock:
                self._changes[name] = _Change(before, group, self._moment.now() + lag)

    # ---------------------------------------------------------------- changes

    def _authorize(self, call: Call, forward: Forward) -> Answer:
        requested = _requested_keys(_read(call))
        revoked = {_key(change.before) for change in self._recent().values() if change.before is not None}
        if requested & revoked and self._dice.throw("duplicate", call.access_key).random() < BEHIND:
            return failure(call, "InvalidPermission.Duplicate", "the specified rule already exists", 400)
        answer = forward()
        if answer.status == 200:
            rules = parse(answer.body).iterfind("./securityGroupRuleSet/item")
            added = [(text(rule, _ID), text(rule, "groupId"), None) for rule in rules]
            self._changed(call.operation, added)
        return answer

    def _revoke(self, call: Call, forward: Forward) -> Answer:
        form = _read(call)
        ids, group = _numbered(form, "SecurityGroupRuleId"), form.get("GroupId", "")
        dice = self._dice.throw("revoke", call.access_key)
        recent = self._recent()
        new = [rule_id for rule_id in ids if rule_id in recent and recent[rule_id].before is None]
        unknown = {rule_id for rule_id in new if dice.random() < BEHIND}
        if unknown and not (self._lenient and dice.random() < LENIENT):
            return failure(call, _UNKNOWN, f"The security group rule ID '{min(unknown)}' does not exist", 400)
        before = {text(rule, _ID): rule for rule in _described(group, forward)} if group else {}
        known_ids = [rule_id for rule_id in ids if rule_id not in unknown]
        answer = _revoke_only(form, known_ids, forward) if unknown else forward()
        if answer.status == 200:
            after = {text(rule, _ID) for rule in _described(group, forward)} if group else set()
            revoked = [(rule_id, group, rule) for rule_id, rule in before.items() if rule_id not in after]
            self._changed(call.operation, revoked)
        return answer

    def _modify(self, call: Call, forward: Forward) -> Answer:
        group = _read(call).get("GroupId", "")
        before = {text(rule, _ID): rule for rule in _described(group, forward)}
        answer = forward()
        if answer.status == 200:
            after = {text(rule, _ID): rule for rule in _described(group, forward)}
            changed = [
                (rule_id, group, rule)
                for rule_id, rule in before.items()
                if rule_id in after and _key(after[rule_id]) != _key(rule)
            ]
            self._changed(call.operation, changed)
        return answer

    # ---------------------------------------------------------------- lists

    def _describe_rules(self, call: Call, forward: Forward) -> Answer:
        answer, recent = forward(), self._recent()
        if answer.status != 200 or not recent:
            return answer
        form, dice = _read(call), self._dice.throw("rules", call.access_key)
        by_id, matches = set(_numbered(form, "SecurityGroupRuleId")), _filter(form)
        root = parse(answer.body)
        rules = root.find("./securityGroupRuleSet")
        if rules is None:
            return answer
        listed = {text(rule, _ID): rule for rule in rules}
        differs = False
        for name, change in sorted(recent.items()):
            if dice.random() >= BEHIND:
                continue
            if name in by_id and change.before is None:
                message = f"The security group rule ID '{name}' does not exist"
                return failure(call, _UNKNOWN, message, 400)
            if name in listed:
                rules.remove(listed[name])
                differs = True
            last = not text(root, "nextToken")
            if (
                change.before is not None
                and (name in listed or last)
                and not by_id
                and matches(change.before)
            ):
                rules.append(deepcopy(change.before))
                differs = True
        return Answer(answer.status, answer.headers, write(root)) if differs else answer

    def _describe_groups(self, call: Call, forward: Forward) -> Answer:
        answer, recent = forward(), self._recent()
        if answer.status != 200 or not recent:
            return answer
        dice, root = self._dice.throw("groups", call.access_key), parse(answer.body)
        groups = {text(group, "groupId"): group for group in root.iterfind("./securityGroupInfo/item")}
        differs = False
        for name, change in sorted(recent.items()):
            if dice.random() >= BEHIND or change.group not in groups:
                continue
            permissions = groups[change.group].find("./ipPermissions")
            if permissions is None:
                continue
            if change.before is not None:
                _add(permissions, change.before)
            elif (rule := _described_rule(name, change.group, forward)) is not None:
                _remove(permissions, rule)
            differs = True
        return Answer(answer.status, answer.headers, write(root)) if differs else answer


def _plainly(_call: Call, forward: Forward) -> Answer:
    return forward()


# -------------------------------------------------------------------- the protocol


def _read(call: Call) -> Form:
    return dict(parse_qsl(call.body.decode(), keep_blank_values=True))


def _numbered(form: Form, name: str) -> list[str]:
    return [value for key, value in form.items() if re.fullmatch(rf"{name}\.\d+", key)]


def _revoke_only(form: Form, ids: list[str], forward: Forward) -> Answer:
    """Revoke some of the rules that a call names; with no ids it is a success too, as in a default VPC."""
    if not ids:
        body = (
            '<RevokeSecurityGroupIngressResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
            "<requestId>local</requestId><return>true</return><revokedSecurityGroupRuleSet/>"
            "</RevokeSecurityGroupIngressResponse>"
        )
        return Answer(200, [("Content-Type", "text/xml")], body.encode())
    changed = {key: value for key, value in form.items() if not key.startswith("SecurityGroupRuleId.")}
    changed |= {f"SecurityGroupRuleId.{number}": name for number, name in enumerate(ids, 1)}
    return forward(urlencode(changed).encode())


def _described(group: str, forward: Forward) -> list[Element]:
    """List a group's ingress rules in their true state."""
    request = {
        "Action": "DescribeSecurityGroupRules",
        "Version": "2016-11-15",
        "Filter.1.Name": "group-id",
        "Filter.1.Value.1": group,
        "MaxResults": _PAGE,
    }
    answer = forward(urlencode(request).encode())
    rules = parse(answer.body).iterfind("./securityGroupRuleSet/item")
    return [rule for rule in rules if text(rule, "isEgress") == "false"]


def _described_rule(rule_id: str, group: str, forward: Forward) -> Element | None:
    return next((rule for rule in _described(group, forward) if text(rule, _ID) == rule_id), None)


def _cidr(rule: Element) -> str:
    return text(rule, "cidrIpv4") or text(rule, "cidrIpv6")


def _key(rule: Element) -> _Key:
    return (
        text(rule, "groupId"),
        text(rule, "ipProtocol"),
        text(rule, "fromPort"),
        text(rule, "toPort"),
        _cidr(rule),
    )


def _requested_keys(form: Form) -> set[_Key]:
    """Read the rules that an authorize call requests. CIDRs are compared as they are written."""
    keys = set()
    for name, cidr in form.items():
        match = re.fullmatch(r"(IpPermissions\.\d+)\.Ip(?:v6)?Ranges\.\d+\.CidrIp(?:v6)?", name)
        if match:
            permission = match[1]
            ports = form.get(f"{permission}.FromPort", "-1"), form.get(f"{permission}.ToPort", "-1")
            keys.add((form.get("GroupId", ""), form.get(f"{permission}.IpProtocol", ""), *ports, cidr))
    return keys


def _filter(form: Form) -> Callable[[Element], bool]:
    """Read a list's filters as a test; a revoked rule is shown where all are known and match it."""
    tests: list[Callable[[Element], bool]] = []
    for key, name in form.items():
        if not (match := re.fullmatch(r"(Filter\.\d+)\.Name", key)):
            continue
        values = [value for field, value in form.items() if field.startswith(f"{match[1]}.Value.")]
        tests.append(lambda rule, n=name, v=values: _any_of(_values(rule, n), v))  # type: ignore[misc]
    return lambda rule: all(test(rule) for test in tests)


def _values(rule: Element, name: str) -> list[str]:
    if name.startswith("tag:"):
        tags = rule.iterfind("./tagSet/item")
        return [text(tag, "value") for tag in tags if text(tag, "key") == name.removeprefix("tag:")]
    fields = {"group-id": "groupId", "security-group-rule-id": "securityGroupRuleId"}
    return [text(rule, fields[name])] if name in fields else []


def _any_of(values: list[str], patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(value, pattern) for value in values for pattern in patterns)


# -------------------------------------------------------------------- a group's permissions


def _ranges(permissions: Element, rule: Element) -> Iterable[tuple[Element, Element, Element]]:
    """Find a rule among permissions: the permission, its ranges, the range."""
    family, name = ("ipRanges", "cidrIp") if text(rule, "cidrIpv4") else ("ipv6Ranges", "cidrIpv6")
    for permission in list(permissions):
        _, protocol, first, last, cidr = _key(rule)
        ports = text(permission, "fromPort"), text(permission, "toPort")
        if text(permission, "ipProtocol") == protocol and ports == (first, last):
            for ranges in permission.iterfind(f"./{family}"):
                for range_ in list(ranges):
                    if text(range_, name) == cidr:
                        yield permission, ranges, range_


def _remove(permissions: Element, rule: Element) -> None:
    for permission, ranges, range_ in list(_ranges(permissions, rule)):
        ranges.remove(range_)
        if not permission.findall("./*/item"):
            permissions.remove(permission)


def _add(permissions: Element, rule: Element) -> None:
    if any(True for _ in _ranges(permissions, rule)):
        return
    item = Element("item")
    for name in ("ipProtocol", "fromPort", "toPort"):
        _child(item, name, text(rule, name))
    family, name = ("ipRanges", "cidrIp") if text(rule, "cidrIpv4") else ("ipv6Ranges", "cidrIpv6")
    ranges = _child(item, family, "")
    _child(_child(ranges, "item", ""), name, _cidr(rule))
    permissions.append(item)


def _child(parent: Element, name: str, value: str) -> Element:
    child = Element(name)
    child.text = value
    parent.append(child)
    return child
