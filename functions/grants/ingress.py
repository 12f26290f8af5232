"""EC2 security group rules, several of one group a call.

RuleDuplicate, RuleNotFound, GroupFull and GroupGone say that EC2 refused a call as a whole and changed
nothing. Every method is one call to EC2, or one a page.

EC2 adds the permissions of one call all or none
(https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AuthorizeSecurityGroupIngress.html): after a
refusal, `opening` and `closing` send one rule a call.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from .errors import IngressRefused, IngressThrottled, IngressUnavailable, KnockError
from .operations import GroupFull, GroupGone, RuleDuplicate, RuleNotFound
from .policy import TAG_GRANT, TAG_STACK
from .values import Ports, Rule, RuleKey

if TYPE_CHECKING:
    from botocore.client import BaseClient

THROTTLED = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled"}
# EC2's own errors; it may have acted all the same.
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
TRANSIENT = {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable", "InsufficientCapacity"}
MOST_VALUES = 200  # of the filters of one call: https://github.com/gjbae1212/gossm/issues/31
GONE = {"InvalidPermission.NotFound", "InvalidSecurityGroupRuleId.NotFound", "InvalidGroup.NotFound"}


@dataclass(frozen=True, slots=True)
class Group:
    """A security group as EC2 shows it: its tags, its rules, and how many count for each IP version."""

    id: str
    tags: Mapping[str, str]
    rule_keys: frozenset[RuleKey]
    used: Mapping[int, int]


class Ingress:
    """The security groups of one region. Rules made here carry the tags of `stack`."""

    def __init__(self, client: BaseClient, stack: str) -> None:
        self._client: Any = client
        self.stack = stack

    def authorize(self, group: str, ports: Sequence[Ports], cidr: str, grant_id: str) -> dict[RuleKey, str]:
        """Add rules to one group in one call, tagged with the stack and the grant. Gives their ids by key.

        Raises RuleDuplicate, GroupFull and GroupGone where EC2 added none; IngressThrottled when it did not
        act; IngressUnavailable when that is not known; IngressRefused.
        """
        tags = [{"Key": TAG_STACK, "Value": self.stack}, {"Key": TAG_GRANT, "Value": grant_id}]
        try:
            answer = self._client.authorize_security_group_ingress(
                GroupId=group,
                IpPermissions=[_permission(range_, cidr, grant_id) for range_ in ports],
                TagSpecifications=[{"ResourceType": "security-group-rule", "Tags": tags}],
            )
        except ClientError as error:
            code = _code(error)
            if code == "InvalidPermission.Duplicate":
                raise RuleDuplicate(f"{group} has one of the rules already") from error
            if code == "RulesPerSecurityGroupLimitExceeded":
                raise GroupFull(f"{group} has no room for another rule") from error
            if code == "InvalidGroup.NotFound":
                raise GroupGone(f"{group} does not exist any more") from error
            raise _translate(error, "authorize_security_group_ingress", group) from error
        except BotoCoreError as error:
            raise IngressUnavailable(f"EC2 did not answer: {type(error).__name__}") from error
        rules = [rule for value in answer["SecurityGroupRules"] if (rule := _rule(value))]
        rule_ids = {rule.key: rule.id for rule in rules}
        if rule_ids.keys() != {RuleKey(group, range_, cidr) for range_ in ports}:
            raise IngressUnavailable(f"EC2's answer about {group} names other rules than were asked for")
        return rule_ids

    def revoke(self, group: str, rule_ids: Sequence[str]) -> frozenset[str]:
        """Remove rules of one group by their ids, in one call. Gives the ids that EC2 names as removed.

        EC2 may answer success for an id that it does not know, so one that the answer does not name is not
        among them:
        https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RevokeSecurityGroupIngress.html
        Raises RuleNotFound where it refused the call as a whole; IngressThrottled, IngressUnavailable,
        IngressRefused.
        """
        try:
            answer = self._client.revoke_security_group_ingress(
                GroupId=group, SecurityGroupRuleIds=sorted(rule_ids)
            )
        except ClientError as error:
            if _code(error) in GONE:
                raise RuleNotFound(f"{group} has not all of {', '.join(sorted(rule_ids))}") from error
            raise _translate(error, "revoke_security_group_ingress", group) from error
        except BotoCoreError as error:
            raise IngressUnavailable(f"EC2 did not answer: {type(error).__name__}") from error
        removed = {rule["SecurityGroupRuleId"] for rule in answer.get("RevokedSecurityGroupRules", [])}
        return frozenset(removed & set(rule_ids))

    def groups(self, groups: Iterable[str]) -> dict[str, Group]:
        """Describe those of some groups that exist: tags, rules and room at once. Eventually consistent."""
        pages = self._pages("describe_security_groups", "SecurityGroups", "group-id", groups)
        return {value["GroupId"]: _group(value) for value in pages}

    def find(self, groups: Iterable[str]) -> list[Rule]:
        """List the ingress rules of some groups. Groups that are gone have none.

        Eventually consistent: a rule made in the last seconds may be missing, one removed may be there.
        https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html
        """
        return self._describe("group-id", groups)

    def tagged(self, grant_id: str) -> list[Rule]:
        """List the rules tagged with a grant's id, in all groups. Eventually consistent, as `find`."""
        matching = self._describe(f"tag:{TAG_GRANT}", [grant_id])
        # A filter reads * and ? as wildcards: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html
        return [rule for rule in matching if self.is_ours(rule) and rule.grant_id == grant_id]

    def show(self, rule_ids: Iterable[str]) -> list[Rule]:
        """List those of some rules, by id, that EC2 shows. Eventually consistent, as `find`."""
        wanted = set(rule_ids)
        return [rule for rule in self._describe("security-group-rule-id", wanted) if rule.id in wanted]

    def ours(self) -> list[Rule]:
        """List every rule tagged for this stack, in all groups. Eventually consistent, as `find`."""
        return self._describe(f"tag:{TAG_STACK}", [self.stack])

    def is_ours(self, rule: Rule) -> bool:
        """Say whether Knock made the rule. Any other is foreign, and never touched."""
        return rule.stack == self.stack

    def _describe(self, name: str, values: Iterable[str]) -> list[Rule]:
        pages = self._pages("describe_security_group_rules", "SecurityGroupRules", name, values)
        return [rule for value in pages if (rule := _rule(value))]

    def _pages(self, operation: str, what: str, name: str, values: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Walk through what a filter matches, with as many calls as its values and the pages need."""
        wanted = sorted(set(values))
        for at in range(0, len(wanted), MOST_VALUES):
            arguments: dict[str, Any] = {
                "Filters": [{"Name": name, "Values": wanted[at : at + MOST_VALUES]}],
                "MaxResults": 1000,
            }
            while True:
                try:
                    answer = getattr(self._client, operation)(**arguments)
                except ClientError as error:
                    raise _translate(error, operation, "") from error
                except BotoCoreError as error:
                    raise IngressUnavailable(f"EC2 did not answer: {type(error).__name__}") from error
                yield from answer[what]
                if not answer.get("NextToken"):
                    break
                arguments["NextToken"] = answer["NextToken"]


def _permission(ports: Ports, cidr: str, grant_id: str) -> dict[str, Any]:
    version = ipaddress.ip_network(cidr).version
    # The description is for people: Knock reads the tags alone.
    range_ = {"CidrIp" if version == 4 else "CidrIpv6": cidr, "Description": f"Knock {grant_id}"}
    return {
        "IpProtocol": ports.protocol,
        "FromPort": ports.first,
        "ToPort": ports.last,
        "IpRanges" if version == 4 else "Ipv6Ranges": [range_],
    }


def _group(value: dict[str, Any]) -> Group:
    """Read a group. A rule that names a group counts for both families, as in the quota.

    https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html
    """
    keys: set[RuleKey] = set()
    used = {4: 0, 6: 0}
    for permission in value.get("IpPermissions", []):
        v4 = [range_["CidrIp"] for range_ in permission.get("IpRanges", [])]
        v6 = [range_["CidrIpv6"] for range_ in permission.get("Ipv6Ranges", [])]
        both = len(permission.get("UserIdGroupPairs", [])) + len(permission.get("PrefixListIds", []))
        used[4] += len(v4) + both
        used[6] += len(v6) + both
        if permission["IpProtocol"] in ("tcp", "udp"):
            ports = Ports(permission["FromPort"], permission["ToPort"], permission["IpProtocol"])
            keys |= {RuleKey(value["GroupId"], ports, str(ipaddress.ip_network(cidr))) for cidr in (*v4, *v6)}
    tags = {tag["Key"]: tag["Value"] for tag in value.get("Tags", [])}
    return Group(value["GroupId"], tags, frozenset(keys), used)


def _rule(value: dict[str, Any]) -> Rule | None:
    """Read an ingress rule, also one that an operator changed to what Knock never makes; None for egress."""
    if value["IsEgress"]:
        return None
    cidr = value.get("CidrIpv4") or value.get("CidrIpv6")
    other = value.get("PrefixListId") or value.get("ReferencedGroupInfo", {}).get("GroupId", "")
    tags = {tag["Key"]: tag["Value"] for tag in value.get("Tags", [])}
    ports = Ports(value.get("FromPort", -1), value.get("ToPort", -1), value["IpProtocol"])
    key = RuleKey(value["GroupId"], ports, str(ipaddress.ip_network(cidr)) if cidr else other)
    return Rule(value["SecurityGroupRuleId"], key, tags.get(TAG_STACK), tags.get(TAG_GRANT))


def _code(error: ClientError) -> str:
    code: str = error.response["Error"]["Code"]
    return code


def _translate(error: ClientError, operation: str, group: str) -> KnockError:
    code = _code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in THROTTLED:
        return IngressThrottled(f"EC2's request limit is reached ({code})")
    if code in TRANSIENT or status >= 500:
        return IngressUnavailable(f"EC2 answered {code} to {operation}")
    on_group = f" on {group}" if group else ""
    return IngressRefused(
        f"EC2 answered {code} to {operation}{on_group}; look at the stack's role and the group's tags"
    )
