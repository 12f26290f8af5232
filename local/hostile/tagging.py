"""The Resource Groups Tagging API, which is behind EC2: it lists deleted groups, and new tags late.

GetResources lists resources that are "tagged or previously tagged"; users report deleted ones for minutes to
hours (aws/aws-cli#4173, boto/boto3#3341). A group that was untagged before it was deleted is not listed.

It watches the EC2 calls that change security groups' tags, notes what the tags were before, and shows that.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlencode

from local.endpoint import Answer, Call, Forward
from local.hostile.dice import Dice, Moment
from local.hostile.xml import parse, text

_CHANGES = ("CreateTags", "DeleteTags", "CreateSecurityGroup", "DeleteSecurityGroup")
LINGERS = 300.0, 3 * 3600.0  # seconds a deleted group is listed

Tags = dict[str, str]


@dataclass(frozen=True, slots=True)
class _Was:
    """What a group's tags were until they were changed; shown so until the delay is over."""

    tags: Tags
    until: datetime


class TaggingLag:
    """Shows the tags of security groups as they were."""

    def __init__(self, dice: Dice, moment: Moment) -> None:
        self._dice, self._moment = dice, moment
        self._was: dict[str, _Was] = {}
        self._arns: dict[str, str] = {}
        self._lock = threading.Lock()

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.service == "ec2":
            return self._change(call, forward) if call.operation in _CHANGES else forward()
        return self._list(call, forward) if call.operation == "GetResources" else forward()

    def _change(self, call: Call, forward: Forward) -> Answer:
        form = {name: values[0] for name, values in parse_qs(call.body.decode()).items()}
        groups = [value for name, value in form.items() if name.startswith(("ResourceId", "GroupId"))]
        before = {group: _tags_of(group, forward) for group in groups if group.startswith("sg-")}
        answer = forward()
        if answer.status != 200:
            return answer
        if call.operation == "CreateSecurityGroup":
            before = {text(parse(answer.body), "groupId"): {}}
        for group, tags in before.items():
            dice = self._dice.throw("tags", call.operation)
            deleted = call.operation == "DeleteSecurityGroup"
            lag = (
                self._moment.delay(dice, LINGERS[1], least=LINGERS[0])
                if deleted
                else self._moment.delay(dice, 60)
            )
            with self._lock:
                now = self._moment.now()
                earlier = self._was.get(group)
                if earlier and earlier.until > now and not deleted:
                    continue  # still shown as it was before the change before
                self._was[group] = _Was(tags, now + lag)
                self._arns[group] = f"arn:aws:ec2:{call.region}:123456789012:security-group/{group}"
        return answer

    def _list(self, call: Call, forward: Forward) -> Answer:
        answer = forward()
        if answer.status != 200:
            return answer
        asked, body = json.loads(call.body or b"{}"), json.loads(answer.body)
        with self._lock:
            now = self._moment.now()
            self._was = {group: was for group, was in self._was.items() if now < was.until}
            late = {self._arns[group]: was.tags for group, was in self._was.items()}
        if not late:
            return answer
        listed = [one for one in body["ResourceTagMappingList"] if one["ResourceARN"] not in late]
        if not body.get("PaginationToken"):
            listed += [
                {"ResourceARN": arn, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
                for arn, tags in late.items()
                if tags and _asked_for(tags, asked)
            ]
        return Answer(
            answer.status, answer.headers, json.dumps(body | {"ResourceTagMappingList": listed}).encode()
        )


def _asked_for(tags: Tags, asked: dict[str, Any]) -> bool:
    types = asked.get("ResourceTypeFilters") or ["ec2"]
    filters = asked.get("TagFilters", [])
    return bool({"ec2", "ec2:security-group"} & set(types)) and all(
        one["Key"] in tags and (not one.get("Values") or tags[one["Key"]] in one["Values"]) for one in filters
    )


def _tags_of(group: str, forward: Forward) -> Tags:
    asked = {
        "Action": "DescribeTags",
        "Version": "2016-11-15",
        "Filter.1.Name": "resource-id",
        "Filter.1.Value.1": group,
    }
    root = parse(forward(urlencode(asked).encode()).body)
    return {text(one, "key"): text(one, "value") for one in root.iterfind("./tagSet/item")}
