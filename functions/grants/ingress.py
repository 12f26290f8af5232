"""EC2 security group rules, one at a time.

"Already there" and "already gone" are answers, not errors: `authorize` gives None for a rule that
exists, `revoke` False for one that does not. Every method is one call to EC2 (`find` one a page).

One permission a call: several are all or nothing, and a rule that is already there would keep the
others out. https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AuthorizeSecurityGroupIngress.html
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from .errors import IngressRefused, IngressThrottled, IngressUnavailable, KnockError
from .policy import TAG_GRANT, TAG_STACK
from .values import Ports, Rule, RuleKey

if TYPE_CHECKING:
    from botocore.client import BaseClient

THROTTLED = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled"}
# EC2's own errors; it may have acted all the same.
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
TRANSIENT = {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable", "InsufficientCapacity"}
GONE = {"InvalidPermission.NotFound", "InvalidSecurityGroupRuleId.NotFound", "InvalidGroup.NotFound"}


class GroupFull(KnockError):
    """The security group has as many rules as its quota allows."""


class GroupGone(KnockError):
    """There is no such security group any more."""


class Ingress:
    """The security groups of one region. Rules made here carry the tags of `stack`."""

    def __init__(self, client: BaseClient, stack: str) -> None:
        self._client: Any = client
        self.stack = stack

    def authorize(self, key: RuleKey, grant_id: str) -> str | None:
        """Add one rule, tagged with the stack and the grant. Gives its id, or None where it is already there.

        Raises GroupFull, GroupGone; IngressThrottled when EC2 did not act; IngressUnavailable when that
        is not known; IngressRefused.
        """
        version = ipaddress.ip_network(key.cidr).version
        # The description is for people: what counts are the tags.
        range_ = {"CidrIp" if version == 4 else "CidrIpv6": key.cidr, "Description": f"Knock {grant_id}"}
        try:
            answer = self._client.authorize_security_group_ingress(
                GroupId=key.group,
                IpPermissions=[
                    {
                        "IpProtocol": key.ports.protocol,
                        "FromPort": key.ports.first,
                        "ToPort": key.ports.last,
                        "IpRanges" if version == 4 else "Ipv6Ranges": [range_],
                    }
                ],
                TagSpecifications=[
                    {
                        "ResourceType": "security-group-rule",
                        "Tags": [
                            {"Key": TAG_STACK, "Value": self.stack},
                            {"Key": TAG_GRANT, "Value": grant_id},
                        ],
                    }
                ],
            )
        except ClientError as error:
            code = _code(error)
            if code == "InvalidPermission.Duplicate":
                return None
            if code == "RulesPerSecurityGroupLimitExceeded":
                raise GroupFull(f"{key.group} has no room for another rule") from error
            if code == "InvalidGroup.NotFound":
                raise GroupGone(f"{key.group} does not exist any more") from error
            raise _translate(error, "authorize_security_group_ingress", key.group) from error
        except BotoCoreError as error:
            raise IngressUnavailable(f"EC2 did not answer: {type(error).__name__}") from error
        rule_id: str = answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        return rule_id

    def revoke(self, group: str, rule_id: str) -> bool:
        """Remove one rule by its id. True says it was there, False that it was already gone."""
        try:
            self._client.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[rule_id])
        except ClientError as error:
            if _code(error) in GONE:
                return False
            raise _translate(error, "revoke_security_group_ingress", group) from error
        except BotoCoreError as error:
            raise IngressUnavailable(f"EC2 did not answer: {type(error).__name__}") from error
        return True

    def find(self, groups: Iterable[str]) -> list[Rule]:
        """List the ingress rules of some groups that name a CIDR. Groups that are gone have none.

        Eventually consistent: a rule made in the last seconds may be missing, one removed may be there.
        https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html
        """
        return self._describe([{"Name": "group-id", "Values": sorted(set(groups))}])

    def used(self, group: str) -> dict[int, int]:
        """Count a group's ingress rules by IP version, as its quota counts them. Eventually consistent.

        A rule that names a group counts for both; one that names a prefix list counts for more than is seen.
        https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html
        """
        used = {4: 0, 6: 0}
        for value in self._list([{"Name": "group-id", "Values": [group]}]):
            for version, other in ((4, "CidrIpv6"), (6, "CidrIpv4")):
                used[version] += not value["IsEgress"] and other not in value
        return used

    def ours(self) -> list[Rule]:
        """List every rule tagged for this stack, in whatever group. Eventually consistent, as `find`."""
        return self._describe([{"Name": f"tag:{TAG_STACK}", "Values": [self.stack]}])

    def is_ours(self, rule: Rule) -> bool:
        """Say whether Knock made the rule. Any other is foreign, and never touched."""
        return rule.stack == self.stack

    def _describe(self, filters: list[dict[str, Any]]) -> list[Rule]:
        return [rule for value in self._list(filters) if (rule := _rule(value))]

    def _list(self, filters: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            try:
                answer = self._client.describe_security_group_rules(Filters=filters, MaxResults=1000, **token)
            except ClientError as error:
                if _code(error) == "InvalidGroup.NotFound":
                    return
                raise _translate(error, "describe_security_group_rules", "") from error
            except BotoCoreError as error:
                raise IngressUnavailable(f"EC2 did not answer: {type(error).__name__}") from error
            yield from answer["SecurityGroupRules"]
            if not answer.get("NextToken"):
                return
            token = {"NextToken": answer["NextToken"]}


def _rule(value: dict[str, Any]) -> Rule | None:
    cidr = value.get("CidrIpv4") or value.get("CidrIpv6")
    if value["IsEgress"] or not cidr or value["IpProtocol"] not in ("tcp", "udp"):
        return None
    tags = {tag["Key"]: tag["Value"] for tag in value.get("Tags", [])}
    ports = Ports(value["FromPort"], value["ToPort"], value["IpProtocol"])
    key = RuleKey(value["GroupId"], ports, str(ipaddress.ip_network(cidr)))
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
    what = f" on {group}" if group else ""
    return IngressRefused(
        f"EC2 answered {code} to {operation}{what}; look at the stack's role and the group's tags"
    )
