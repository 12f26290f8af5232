"""Mends of moto for an operator's tools: tags and usage of API keys, and filters with several values.

- API Gateway's TagResource, UntagResource and GetTags know only stages in moto 5.2.5. On AWS they take every
  resource that can be tagged, API keys and usage plans among them
  (https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-tagging-supported-resources.html).
- A key that is deleted stays in its usage plan in moto.
- moto has no GetUsage: how many requests each key has made, and has left, a day
  (https://docs.aws.amazon.com/apigateway/latest/api/API_GetUsage.html). The gateway's counts answer it.
- DescribeNetworkInterfaces with several values of the filter `group-id` finds interfaces with any of them
  (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Using_Filtering.html); moto requires all of them.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import moto.apigateway.urls
from moto.apigateway.exceptions import ApiKeyNotFoundException, UsagePlanNotFoundException
from moto.apigateway.models import APIGatewayBackend
from moto.apigateway.responses import APIGatewayResponse
from moto.ec2 import utils
from moto.ec2.models.elastic_network_interfaces import NetworkInterface

__all__ = ["count_usage_by", "install"]


def install() -> None:
    """Mend moto in this process, before a mock or a server starts.

    A second call changes nothing. The mends cannot be undone.
    """
    moto.apigateway.urls.url_paths[_TAGS] = APIGatewayResponse.dispatch
    moto.apigateway.urls.url_paths[_USAGE] = APIGatewayResponse.dispatch
    count_usage_by(lambda _plan, _key: 0)
    for owner, name, mended in (
        (APIGatewayResponse, "tag_resource", _tag_resource),
        (APIGatewayResponse, "untag_resource", _untag_resource),
        (APIGatewayResponse, "get_tags", _get_tags),
        (APIGatewayResponse, "get_usage", _get_usage),
        (APIGatewayBackend, "delete_api_key", _delete_api_key),
        (utils, "is_filter_matching", _is_filter_matching),
    ):
        if getattr(owner, name, None) is not mended:
            _moto.setdefault(name, getattr(owner, name, None))
            setattr(owner, name, mended)


_moto: dict[str, Any] = {}

# A server sees the slashes of an ARN in a path as slashes, and moto has a route for a stage's ARN only.
_TAGS = (
    "{0}/tags/arn:(?P<partition>[^/]+):apigateway:(?P<region_name>[^/]+)::"
    "/(?P<kind>apikeys|usageplans)/(?P<resource>[^/]+)$"
)
_USAGE = "{0}/usageplans/(?P<usage_plan_id>[^/]+)/usage$"


def count_usage_by(counter: Callable[[str, str], int]) -> None:
    """Answer GetUsage from a counter: (usage plan's id, key's id) → requests in this period."""
    _counting["counter"] = counter


_counting: dict[str, Callable[[str, str], int]] = {}


def _tagged(response: APIGatewayResponse) -> Any:
    """Find the key or usage plan that a request to /tags/{arn} names; None for another resource."""
    kind, _, name = unquote(response.path.split("/tags/")[1]).split("::/")[1].partition("/")
    backend = response.backend
    if kind == "apikeys":
        if name not in backend.keys:
            raise ApiKeyNotFoundException
        return backend.keys[name]
    if kind == "usageplans":
        if name not in backend.usage_plans:
            raise UsagePlanNotFoundException
        return backend.usage_plans[name]
    return None


def _tag_resource(self: APIGatewayResponse) -> Any:
    resource = _tagged(self)
    if resource is None:
        return _moto["tag_resource"](self)
    resource.tags = {**(resource.tags or {}), **self._get_param("tags")}
    return 204, {"status": 204}, ""


def _untag_resource(self: APIGatewayResponse) -> Any:
    resource = _tagged(self)
    if resource is None:
        return _moto["untag_resource"](self)
    removed = self.querystring.get("tagKeys", [])
    resource.tags = {tag: value for tag, value in (resource.tags or {}).items() if tag not in removed}
    return 204, {"status": 204}, ""


def _get_tags(self: APIGatewayResponse) -> Any:
    resource = _tagged(self)
    return _moto["get_tags"](self) if resource is None else json.dumps({"tags": resource.tags or {}})


def _get_usage(self: APIGatewayResponse) -> str:
    """Answer for today, for any days requested; like AWS, leave out keys that made no request."""
    plan_id = self.path.split("/")[-2]
    plan = self.backend.get_usage_plan(plan_id)
    limit = (plan.quota or {}).get("limit", 0)
    key_id = self._get_param("keyId")
    keys = [key for key in self.backend.usage_plan_keys.get(plan_id, {}) if key_id in (None, key)]
    counts = {key: _counting["counter"](plan_id, key) for key in keys}
    days = {name: self._get_param(name) for name in ("startDate", "endDate")}
    values = {key: [[number, max(limit - number, 0)]] for key, number in counts.items() if number}
    return json.dumps({"usagePlanId": plan_id, **days, "values": values})


def _delete_api_key(self: APIGatewayBackend, api_key_id: str) -> None:
    _moto["delete_api_key"](self, api_key_id)
    for members in self.usage_plan_keys.values():
        members.pop(api_key_id, None)


def _is_filter_matching(obj: Any, filter_: str, filter_value: Any) -> bool:
    if isinstance(obj, NetworkInterface) and filter_ == "group-id":
        groups = obj.get_filter_value("group-id")
        return any(fnmatch.fnmatchcase(group, value) for group in groups for value in filter_value)
    return bool(_moto["is_filter_matching"](obj, filter_, filter_value))
