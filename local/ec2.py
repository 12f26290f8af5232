"""EC2 security group rules as EC2 keeps them, on moto.

moto 5.2.5 adds the permissions of a call one by one, so a call that fails has added some of its rules, and a
call that succeeds names only the last permission's rules; it counts IPv4 and IPv6 together, compares CIDRs as
text, accepts any port, protocol and description, and does not page. This module replaces AuthorizeSecurity-
GroupIngress, RevokeSecurityGroupIngress, ModifySecurityGroupRules, DescribeSecurityGroupRules and Describe-
SecurityGroups, and leaves the rules where moto keeps them, so moto's other operations see them too. Each
function's docstring names its mend; `tests/local/test_ec2.py` proves each, and fails when a new moto makes it
needless.

Facts are from each operation's page in https://docs.aws.amazon.com/AWSEC2/latest/APIReference/, its page of
error codes (errors-overview.html), and https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html
(the quota).

One lock guards every change of a rule, so each call is atomic.
"""

from __future__ import annotations

import base64
import functools
import ipaddress
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from xml.sax.saxutils import escape

from moto.core import responses, utils
from moto.ec2.exceptions import (
    EC2ClientError,
    InvalidPermissionNotFoundError,
    InvalidSecurityGroupNotFoundError,
    InvalidSecurityGroupRuleIdNotFoundError,
    MissingParameterError,
    RulesPerSecurityGroupLimitExceededError,
    TagLimitExceeded,
)
from moto.ec2.models import EC2Backend
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.models.security_groups import SecurityGroup, SecurityGroupRule
from moto.ec2.responses import EC2Response
from moto.ec2.responses.security_groups import SecurityGroups
from moto.ec2.utils import (
    EC2_PREFIX_TO_RESOURCE,
    get_prefix,
    is_valid_security_group_id,
    simple_aws_filter_to_re,
)

RULES_PER_GROUP = 60  # by default; IPv4 and IPv6 each

_DESCRIPTION = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")
_RULE_ID = re.compile(r"sgr-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "all": "-1"}
_PAGE_SIZES = range(5, 1001)

_changing = threading.RLock()
_rules_per_group = RULES_PER_GROUP

_plain_do_resources_exist = EC2Backend.do_resources_exist
_plain_method_names = utils.method_names_from_class


def install(*, rules_per_group: int = RULES_PER_GROUP) -> None:
    """Mend moto's security group rules in this process. A second call changes the quota only."""
    global _rules_per_group
    _rules_per_group = rules_per_group
    for owner, name, mended in (
        (SecurityGroups, "authorize_security_group_ingress", _authorize),
        (SecurityGroups, "revoke_security_group_ingress", _revoke),
        (SecurityGroups, "modify_security_group_rules", _modify),
        (SecurityGroups, "describe_security_group_rules", _describe),
        (SecurityGroups, "describe_security_groups", _describe_groups),
        (EC2Backend, "do_resources_exist", _do_resources_exist),
        (TaggedEC2Resource, "get_tags", _get_tags),
        (responses, "method_names_from_class", _method_names),
    ):
        setattr(owner, name, mended)


@dataclass(frozen=True, slots=True)
class _Permission:
    """The identity of a rule: protocol, ports and peer. Description and tags are no part of it."""

    protocol: str
    from_port: int | None
    to_port: int | None
    family: str  # CidrIp, CidrIpv6, GroupId or PrefixListId
    peer: str

    @classmethod
    def of(cls, rule: SecurityGroupRule) -> _Permission:
        for family in ("CidrIp", "CidrIpv6"):
            if family in rule.ip_range:
                peer = rule.ip_range[family]
                break
        else:
            family, peer = (
                ("PrefixListId", rule.prefix_list_id)
                if rule.prefix_list_id
                else ("GroupId", rule.source_group.get("GroupId", ""))
            )
        return cls(rule.ip_protocol or "-1", rule.from_port, rule.to_port, family, peer)

    @property
    def counts(self) -> set[str]:
        """The address families whose quota it counts against: both, for a group or a prefix list."""
        return {self.family} if self.family in ("CidrIp", "CidrIpv6") else {"CidrIp", "CidrIpv6"}

    def __str__(self) -> str:
        return (
            f"peer: {self.peer}, {self.protocol.upper()}, from port: {self.from_port}, "
            f"to port: {self.to_port}, ALLOW"
        )


def _authorize(self: Any) -> str:
    """Add all the rules of a call or none, and name each of them in the answer.

    moto adds rules until one fails, and answers with the rules of the last permission.
    """
    self.error_on_dryrun()
    tags = _tags(self)
    with _changing:
        group = _group(self)
        requested = _permissions(self)
        present = {_Permission.of(rule) for rule in group.ingress_rules}
        for permission in requested:
            if permission in present:
                raise EC2ClientError(
                    "InvalidPermission.Duplicate", f'the specified rule "{permission}" already exists'
                )
        for family in ("CidrIp", "CidrIpv6"):
            present_count = sum(family in permission.counts for permission in present)
            added_count = sum(family in permission.counts for permission in requested)
            if added_count and present_count + added_count > _rules_per_group:
                raise RulesPerSecurityGroupLimitExceededError
        added = [
            _new_rule(self.ec2_backend, group, permission, peer, tags)
            for permission, peer in requested.items()
        ]
        group.ingress_rules = [*group.ingress_rules, *added]
        elements = [_rule_element(rule) for rule in added]
    return _answer("AuthorizeSecurityGroupIngress", {"return": True, "securityGroupRuleSet": elements})


def _new_rule(
    backend: Any, group: SecurityGroup, permission: _Permission, peer: dict[str, Any], tags: dict[str, str]
) -> SecurityGroupRule:
    peer = {"ip_range": None, "source_group": None, "prefix_list_id": None, **peer}
    return SecurityGroupRule(
        backend,
        permission.protocol,
        group.id,
        permission.from_port,  # type: ignore[arg-type] # moto's type says text, its code takes numbers
        permission.to_port,  # type: ignore[arg-type]
        **peer,
        is_egress=False,
        tags=tags,
    )


def _revoke(self: Any) -> str:
    """Remove all the rules of a call or none, with their tags, and name each of them in the answer.

    moto keeps the tags, answers InvalidPermission.NotFound for an unknown rule id, and of several permissions
    removes those before the first unknown one. In a default VPC EC2 ignores an unknown permission; here it is
    always an error, the harder case.
    """
    self.error_on_dryrun()
    ids = self._get_param("SecurityGroupRuleIds", [])
    with _changing:
        group = _group(self)
        if ids:
            by_id = {rule.id: rule for rule in group.ingress_rules}
            rules = {rule_id: by_id.get(_well_formed(rule_id)) for rule_id in ids}
            for rule_id, rule in rules.items():
                if rule is None:
                    raise InvalidSecurityGroupRuleIdNotFoundError(rule_id)
            removed = [rule for rule in rules.values() if rule]
        else:
            present = {_Permission.of(rule): rule for rule in group.ingress_rules}
            try:
                removed = [present[permission] for permission in _permissions(self)]
            except KeyError as error:
                raise InvalidPermissionNotFoundError from error
        elements = [
            {**_rule_element(rule), "referencedGroupId": rule.source_group.get("GroupId")} for rule in removed
        ]
        removed_ids = {rule.id for rule in removed}
        group.ingress_rules = [rule for rule in group.ingress_rules if rule.id not in removed_ids]
        for rule_id in removed_ids:
            self.ec2_backend.tags.pop(rule_id, None)
    return _answer("RevokeSecurityGroupIngress", {"return": True, "revokedSecurityGroupRuleSet": elements})


def _modify(self: Any) -> str:
    """Change all the rules of a call or none; their ids and tags stay.

    moto accepts any port and any CIDR as it is written, ignores an unknown id, and lets two rules of a group
    become equal.
    """
    self.error_on_dryrun()
    with _changing:
        group = _group(self)
        by_id = {rule.id: rule for rule in (*group.ingress_rules, *group.egress_rules)}
        changes: list[tuple[SecurityGroupRule, _Permission, dict[str, Any]]] = []
        for change in self._get_param("SecurityGroupRules", []):
            rule = by_id.get(_well_formed(change["SecurityGroupRuleId"]))
            if rule is None:
                raise InvalidSecurityGroupRuleIdNotFoundError(change["SecurityGroupRuleId"])
            changes.append((rule, *_changed(self, change.get("SecurityGroupRule", {}))))
        changed = {rule.id: permission for rule, permission, _ in changes}
        for rules in (group.ingress_rules, group.egress_rules):
            after = [changed.get(rule.id) or _Permission.of(rule) for rule in rules]
            if len(set(after)) < len(after):
                raise EC2ClientError("InvalidPermission.Duplicate", "the specified rule already exists")
        for rule, permission, peer in changes:
            rule.ip_protocol, rule.from_port, rule.to_port = (
                permission.protocol,
                permission.from_port,
                permission.to_port,
            )
            rule.ip_range = peer.get("ip_range", {})
            rule.source_group = peer.get("source_group", {})
            rule.prefix_list_id = peer.get("prefix_list_id")
    return _answer("ModifySecurityGroupRules", {"return": True})


def _changed(self: Any, request: dict[str, Any]) -> tuple[_Permission, dict[str, Any]]:
    """Read the new value of a rule; it names a single peer, where a permission names lists of peers."""
    description = {"Description": request["Description"]} if "Description" in request else {}
    lists = {
        "CidrIpv4": ("IpRanges", "CidrIp"),
        "CidrIpv6": ("Ipv6Ranges", "CidrIpv6"),
        "ReferencedGroupId": ("UserIdGroupPairs", "GroupId"),
        "PrefixListId": ("PrefixListIds", "PrefixListId"),
    }
    part: dict[str, Any] = {
        name: request[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in request
    }
    peers = [name for name in lists if name in request]
    if len(peers) != 1:
        raise _invalid("A rule names one CIDR block, security group or prefix list")
    plural, singular = lists[peers[0]]
    traffic = _traffic(part)
    ((family, peer, stored_peer),) = _peers(self, {plural: [{singular: request[peers[0]], **description}]})
    return _Permission(*traffic, family, peer), stored_peer


def _describe(self: Any) -> str:
    """Return rules in pages, by id, group and tags; an unknown id or filter is an error.

    moto has no pages and copies every rule of the region to find those of one group. The pages are in the
    order of the rules' ids, so a rule that is added or removed between two pages neither hides nor repeats
    another.
    """
    self.error_on_dryrun()
    ids = [_well_formed(rule_id) for rule_id in self._get_param("SecurityGroupRuleIds", [])]
    filters = self._filters_from_querystring()
    size = self._get_int_param("MaxResults")
    if size is not None and ids:
        raise EC2ClientError(
            "InvalidParameterCombination",
            "The parameter SecurityGroupRuleIds cannot be used with the parameter MaxResults",
        )
    if size is not None and size not in _PAGE_SIZES:
        raise _invalid(
            f"Value ( {size} ) for parameter maxResults is invalid. Expecting a value from 5 to 1000."
        )
    tests = [_test(self.ec2_backend, name, values) for name, values in filters.items()]
    rules = [rule for rule in _rules(self.ec2_backend, filters) if all(test(rule) for test in tests)]
    if ids:
        present = {rule.id for rule in _rules(self.ec2_backend, {})}
        for rule_id in ids:
            if rule_id not in present:
                raise InvalidSecurityGroupRuleIdNotFoundError(rule_id)
        rules = [rule for rule in rules if rule.id in ids]
    after = _after(self._get_param("NextToken"))
    rules = sorted((rule for rule in rules if rule.id > after), key=lambda rule: rule.id)
    page = rules[: size or _PAGE_SIZES[-1]]
    more = len(page) < len(rules)
    token = base64.urlsafe_b64encode(page[-1].id.encode()).decode() if more else None
    elements = [_rule_element(rule) for rule in page]
    return _answer("DescribeSecurityGroupRules", {"securityGroupRuleSet": elements, "nextToken": token})


def _describe_groups(self: Any) -> str:
    """Return groups in pages; an unknown or malformed id is an error that names it.

    moto has no pages, names all ids of a call where one is unknown, and takes 0.2 ms a rule to write it.
    """
    self.error_on_dryrun()
    ids = self._get_param("GroupIds", [])
    filters = self._filters_from_querystring()
    for group_id in (*ids, *filters.get("group-id", [])):
        if not is_valid_security_group_id(group_id):
            raise _malformed_group(group_id)
    present = {
        group.id for groups in list(self.ec2_backend.groups.values()) for group in list(groups.values())
    }
    for group_id in ids:
        if group_id not in present:
            raise InvalidSecurityGroupNotFoundError(group_id)
    size = self._get_int_param("MaxResults")
    if size is not None and size not in _PAGE_SIZES:
        raise _invalid(
            f"Value ( {size} ) for parameter maxResults is invalid. Expecting a value from 5 to 1000."
        )
    matches = self.ec2_backend.describe_security_groups(ids, self._get_param("GroupNames", []), filters)
    after = _after(self._get_param("NextToken"))
    groups = sorted((group for group in matches if group.id > after), key=lambda group: str(group.id))
    page = groups[:size]
    more = len(page) < len(groups)
    token = base64.urlsafe_b64encode(page[-1].id.encode()).decode() if more else None
    elements = [_group_element(group) for group in page]
    return _answer("DescribeSecurityGroups", {"securityGroupInfo": elements, "nextToken": token})


def _group_element(group: SecurityGroup) -> dict[str, Any]:
    """Describe a group with the element names of EC2's XML."""
    backend = group.ec2_backend
    return {
        "ownerId": group.owner_id,
        "groupId": group.id,
        "groupName": group.name,
        "groupDescription": group.description,
        "vpcId": group.vpc_id,
        "securityGroupArn": group.arn,
        "ipPermissions": _permission_elements(group.ingress_rules),
        "ipPermissionsEgress": _permission_elements(group.egress_rules),
        "tagSet": [{"key": key, "value": value} for key, value in _tags_of(backend, group.id).items()],
    }


def _permission_elements(rules: list[SecurityGroupRule]) -> list[dict[str, Any]]:
    elements: dict[tuple[str, int | None, int | None], dict[str, Any]] = {}
    for rule in rules:
        permission = _Permission.of(rule)
        ports = (
            {}
            if permission.from_port is None
            else {"fromPort": permission.from_port, "toPort": permission.to_port}
        )
        described = elements.setdefault(
            (permission.protocol, permission.from_port, permission.to_port),
            {
                "ipProtocol": permission.protocol,
                **ports,
                "groups": [],
                "ipRanges": [],
                "ipv6Ranges": [],
                "prefixListIds": [],
            },
        )
        peer = rule.ip_range or rule.source_group or rule.prefix_list_id or {}
        description = peer.get("Description") if isinstance(peer, dict) else None
        user = rule.source_group.get("UserId") if permission.family == "GroupId" else None
        element, name = _PEER_ELEMENTS[permission.family]
        described[element].append({"userId": user, name: permission.peer, "description": description})
    return list(elements.values())


_PEER_ELEMENTS = {
    "CidrIp": ("ipRanges", "cidrIp"),
    "CidrIpv6": ("ipv6Ranges", "cidrIpv6"),
    "GroupId": ("groups", "groupId"),
    "PrefixListId": ("prefixListIds", "prefixListId"),
}


def _do_resources_exist(self: EC2Backend, resource_ids: list[str]) -> bool:
    """Refuse to tag an unknown rule; moto tags any id that has the form of a rule's."""
    rule_ids = [resource_id for resource_id in resource_ids if get_prefix(resource_id) == "sgr"]
    present = {rule.id for rule in _rules(self, {})} if rule_ids else set()
    for rule_id in rule_ids:
        if rule_id not in present:
            raise InvalidSecurityGroupRuleIdNotFoundError(rule_id)
    return _plain_do_resources_exist(self, resource_ids)


def _get_tags(self: Any) -> list[dict[str, str]]:
    """Return a resource's own tags; moto matches a pattern against every tag of the region."""
    return [
        {
            "resource_id": self.id,
            "key": key,
            "value": value,
            "resource_type": EC2_PREFIX_TO_RESOURCE.get(get_prefix(self.id), ""),
        }
        for key, value in _tags_of(self.ec2_backend, self.id).items()
    ]


@functools.cache
def _ec2_methods() -> list[str]:
    return _plain_method_names(EC2Response)


def _method_names(clazz: type) -> list[str]:
    """List EC2's operations once; moto lists the class's 700 methods for every call, 1 ms each."""
    return _ec2_methods() if clazz is EC2Response else _plain_method_names(clazz)


def _tags_of(backend: Any, resource_id: str) -> dict[str, str]:
    return dict(backend.tags.get(resource_id, {}))


def _rules(backend: Any, filters: dict[str, list[str]]) -> Iterator[SecurityGroupRule]:
    group_ids = filters.get("group-id")
    for groups in list(backend.groups.values()):
        chosen = (
            list(groups.values())
            if group_ids is None
            else [groups[group_id] for group_id in group_ids if group_id in groups]
        )
        for group in chosen:
            yield from itertools.chain(group.egress_rules, group.ingress_rules)


def _test(backend: Any, name: str, values: list[str]) -> Callable[[SecurityGroupRule], bool]:
    """Return the test that a filter makes of a rule (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSecurityGroupRules.html)."""
    match = re.compile("|".join(f"(?:{simple_aws_filter_to_re(value)})" for value in values)).fullmatch
    if name == "group-id":
        for value in values:
            if not is_valid_security_group_id(value):
                raise _malformed_group(value)
        return lambda rule: rule.group_id in values
    if name == "security-group-rule-id":
        return lambda rule: match(rule.id) is not None
    if name == "tag-key":
        return lambda rule: any(match(key) for key in _tags_of(backend, rule.id))
    if name.startswith("tag:"):
        key = name[4:]
        return lambda rule: (
            (tag := _tags_of(backend, rule.id).get(key)) is not None and match(tag) is not None
        )
    raise _invalid(f"The filter '{name}' is invalid")


def _after(token: str | None) -> str:
    try:
        return base64.urlsafe_b64decode(token or "").decode()
    except ValueError as error:
        raise _invalid("Invalid value for parameter NextToken") from error


def _group(self: Any) -> SecurityGroup:
    """Find the group a call names. moto accepts a name as an id, and any text as an id."""
    group_id, name = self._get_param("GroupId"), self._get_param("GroupName")
    if group_id is not None:
        if not is_valid_security_group_id(group_id):
            raise _malformed_group(group_id)
        group = self.ec2_backend.get_security_group_from_id(group_id)
    elif name is not None:
        group = self.ec2_backend.get_security_group_from_name(name)
    else:
        raise MissingParameterError("groupName or groupId")
    if group is None:
        raise InvalidSecurityGroupNotFoundError(group_id or name)
    named_group: SecurityGroup = group
    return named_group


def _permissions(self: Any) -> dict[_Permission, dict[str, Any]]:
    """Read the rules a call names, each with its peer as moto stores it, description included."""
    parts = self._get_param("IpPermissions", []) or [self._get_params()]
    permissions: dict[_Permission, dict[str, Any]] = {}
    for part in parts:
        protocol, from_port, to_port = _traffic(part)
        for family, peer, stored_peer in _peers(self, part):
            permission = _Permission(protocol, from_port, to_port, family, peer)
            if permission in permissions:
                raise _invalid("The same permission must not appear multiple times")
            permissions[permission] = stored_peer
    if not permissions:
        raise MissingParameterError("ipPermissions")
    return permissions


def _traffic(part: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """Read protocol and ports; moto accepts any number as a port and any word as a protocol."""
    protocol_name = part.get("IpProtocol")
    if protocol_name is None:
        raise _invalid(
            "Invalid value 'null' for protocol. VPC security group rules must specify protocols explicitly."
        )
    protocol = _PROTOCOLS.get(str(protocol_name).lower(), str(protocol_name).lower())
    from_port, to_port = part.get("FromPort"), part.get("ToPort")
    if protocol in ("tcp", "udp"):
        return protocol, *_ports(from_port, to_port)
    if protocol in ("icmp", "icmpv6"):
        kind, code = (-1 if value is None else value for value in (from_port, to_port))
        for word, value in (("type", kind), ("code", code)):
            if not -1 <= value <= 255:
                raise _invalid(f"ICMP {word} ({value}) out of range")
        return protocol, kind, code
    if protocol != "-1" and not (protocol.isdecimal() and int(protocol) <= 255):
        raise _invalid(f"Invalid value '{protocol_name}' for IP protocol. Unknown protocol.")
    return (protocol, None, None) if protocol == "-1" else (protocol, -1, -1)


def _ports(from_port: int | None, to_port: int | None) -> tuple[int, int]:
    if from_port is None or to_port is None:
        raise _invalid("Invalid value for portRange. Must specify both from and to ports with TCP/UDP.")
    for port in (from_port, to_port):
        if not 0 <= port <= 65535:
            raise _invalid(f"TCP/UDP port ({port}) out of range")
    if from_port > to_port:
        raise _invalid(f"Invalid TCP/UDP port range ({from_port}:{to_port})")
    return from_port, to_port


def _peers(self: Any, part: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    ranges = [*part.get("IpRanges", []), *part.get("Ipv6Ranges", [])]
    ranges += [{key: part[key]} for key in ("CidrIp", "CidrIpv6") if key in part]
    for peer in ranges:
        family = "CidrIp" if "CidrIp" in peer else "CidrIpv6"
        cidr = _canonical(peer.get(family, ""), 4 if family == "CidrIp" else 6)
        yield family, cidr, {"ip_range": {family: cidr, **_description(peer)}}
    for peer in self.ec2_backend._add_source_group(part.get("UserIdGroupPairs", []), None):
        yield "GroupId", peer["GroupId"], {"source_group": {**peer, **_description(peer)}}
    for peer in part.get("PrefixListIds", []):
        yield "PrefixListId", peer["PrefixListId"], {"prefix_list_id": peer}


def _canonical(cidr: str, version: int) -> str:
    """Write a CIDR as EC2 does: 203.0.113.9/24 is 203.0.113.0/24. moto compares it as it was sent."""
    address, _, prefix = cidr.partition("/")
    try:
        network = ipaddress.ip_network(cidr, strict=False)
    except ValueError as error:
        raise _invalid(f"CIDR block {cidr} is malformed") from error
    if network.version != version or not prefix.isdecimal() or "%" in address:
        raise _invalid(f"CIDR block {cidr} is malformed")
    return str(network)


def _description(peer: dict[str, Any]) -> dict[str, str]:
    """Take a rule's description, up to 255 characters of EC2's set; moto accepts anything."""
    description = peer.get("Description")
    if description is None:
        return {}
    if not _DESCRIPTION.fullmatch(description):
        raise _invalid(
            "Invalid rule description. Valid descriptions are strings less than 256 characters from the "
            "following set:  a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*"
        )
    return {"Description": description}


def _tags(self: Any) -> dict[str, str]:
    tags: dict[str, str] = {}
    for spec in self._get_param("TagSpecifications", []):
        if spec.get("ResourceType") != "security-group-rule":
            kind = spec.get("ResourceType")
            raise _invalid(f"'{kind}' is not a valid taggable resource type for this operation.")
        tags.update({tag["Key"]: tag.get("Value", "") for tag in spec.get("Tags", [])})
    for key, value in tags.items():
        if key.startswith("aws:"):
            raise _invalid("Tag keys starting with 'aws:' are reserved for internal use")
        if not 0 < len(key) <= 128:
            raise _invalid(f"Tag key exceeds the maximum length of 128 characters, or is empty: '{key}'")
        if len(value) > 256:
            raise _invalid(f"Tag value exceeds the maximum length of 256 characters: '{value}'")
    if len(tags) > 50:
        raise TagLimitExceeded
    return tags


def _well_formed(rule_id: str) -> str:
    if not _RULE_ID.fullmatch(rule_id):
        raise EC2ClientError(
            "InvalidSecurityGroupRuleId.Malformed", f'Invalid id: "{rule_id}" (expecting "sgr-...")'
        )
    return rule_id


def _rule_element(rule: SecurityGroupRule) -> dict[str, Any]:
    """Describe a rule with the element names of EC2's XML."""
    backend = rule.ec2_backend
    peer = rule.source_group.get("GroupId")
    return {
        "securityGroupRuleId": rule.id,
        "groupId": rule.group_id,
        "groupOwnerId": backend.account_id,
        "isEgress": rule.is_egress,
        "ipProtocol": rule.ip_protocol,
        "fromPort": -1 if rule.from_port is None else rule.from_port,
        "toPort": -1 if rule.to_port is None else rule.to_port,
        "cidrIpv4": rule.cidr_ipv4,
        "cidrIpv6": rule.cidr_ipv6,
        "prefixListId": rule.prefix_list_id,
        "referencedGroupInfo": {"groupId": peer, "userId": rule.source_group["UserId"]} if peer else None,
        "description": rule.ip_range.get("Description") or rule.source_group.get("Description"),
        "securityGroupRuleArn": (
            f"arn:{backend.partition}:ec2:{backend.region_name}:{backend.account_id}"
            f":security-group-rule/{rule.id}"
        ),
        "tagSet": [{"key": key, "value": value} for key, value in _tags_of(backend, rule.id).items()],
    }


def _answer(operation: str, content: dict[str, Any]) -> str:
    """Write an answer in EC2's XML.

    moto's serializer tries several spellings of every field of every rule, some 0.2 ms a rule; this takes a
    twentieth of that, and a group of 60 rules is described in 1 ms.
    """
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<{operation}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        f"{_xml({'requestId': str(uuid4()), **content})}</{operation}Response>"
    )


def _xml(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(f"<{key}>{_xml(part)}</{key}>" for key, part in value.items() if part is not None)
    if isinstance(value, list):
        return "".join(f"<item>{_xml(part)}</item>" for part in value)
    return str(value).lower() if isinstance(value, bool) else escape(str(value))


def _malformed_group(group_id: str) -> EC2ClientError:
    return EC2ClientError("InvalidGroupId.Malformed", f'Invalid id: "{group_id}" (expecting "sg-...")')


def _invalid(message: str) -> EC2ClientError:
    return EC2ClientError("InvalidParameterValue", message)
