"""The Resource Groups Tagging API, which lags behind EC2: it lists deleted groups, and new tags late.

GetResources lists resources that are "tagged or previously tagged"; users report deleted ones for minutes to
hours (aws/aws-cli#4173, boto/boto3#3341). A group that was untagged before it was deleted is not listed.

It watches the EC2 calls that change security groups' tags, and shows the tags before the change.
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
class _TagsBefore:
    """A group's tags before a change, shown until the delay is over."""

    tags: Tags
    until: datetime


class TaggingLag:
    """Shows the tags of security groups before their latest changes."""

    def __init__(self, dice: Dice, moment: Moment) -> None:
        self._dice, self._moment = dice, moment
        self._before: dict[str, _TagsBefore] = {}
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
                earlier = self._before.get(group)
                if earlier and earlier.until > now and not deleted:
                    continue  # an earlier change is not shown yet either
                self._before[group] = _TagsBefore(tags, now + lag)
                self._arns[group] = f"arn:aws:ec2:{call.region}:123456789012:security-group/{group}"
        return answer

    def _list(self, call: Call, forward: Forward) -> Answer:
        answer = forward()
        if answer.status != 200:
            return answer
        request, body = json.loads(call.body or b"{}"), json.loads(answer.body)
        with self._lock:
            now = self._moment.now()
            self._before = {group: before for group, before in self._before.items() if now < before.until}
            delayed = {self._arns[group]: before.tags for group, before in self._before.items()}
        if not delayed:
            return answer
        listed = [
            mapping for mapping in body["ResourceTagMappingList"] if mapping["ResourceARN"] not in delayed
        ]
        if not body.get("PaginationToken"):
            listed += [
                {"ResourceARN": arn, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
                for arn, tags in delayed.items()
                if tags and _matches(tags, request)
            ]
        return Answer(
            answer.status, answer.headers, json.dumps(body | {"ResourceTagMappingList": listed}).encode()
        )


def _matches(tags: Tags, request: dict[str, Any]) -> bool:
    types = request.get("ResourceTypeFilters") or ["ec2"]
    filters = request.get("TagFilters", [])
    return bool({"ec2", "ec2:security-group"} & set(types)) and all(
        tag["Key"] in tags and (not tag.get("Values") or tags[tag["Key"]] in tag["Values"]) for tag in filters
    )


def _tags_of(group: str, forward: Forward) -> Tags:
    request = {
        "Action": "DescribeTags",
        "Version": "2016-11-15",
        "Filter.1.Name": "resource-id",
        "Filter.1.Value.1": group,
    }
    root = parse(forward(urlencode(request).encode()).body)
    return {text(tag, "key"): text(tag, "value") for tag in root.iterfind("./tagSet/item")}
