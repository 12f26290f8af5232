"""What an operator's tools need of moto and do not find: tags on API keys, and a filter that means "or".

- API Gateway's TagResource, UntagResource and GetTags know only stages in moto 5.2.5. On AWS they take every
  resource that can be tagged, API keys and usage plans among them
  (https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-tagging-supported-resources.html).
- A key that is deleted stays in its usage plan in moto.
- DescribeNetworkInterfaces with several values of the filter `group-id` finds what has any of them
  (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Using_Filtering.html); moto wants all of them.
"""

from __future__ import annotations

import fnmatch
import json
from typing import Any
from urllib.parse import unquote

import moto.apigateway.urls
from moto.apigateway.exceptions import ApiKeyNotFoundException, UsagePlanNotFoundException
from moto.apigateway.models import APIGatewayBackend
from moto.apigateway.responses import APIGatewayResponse
from moto.ec2 import utils
from moto.ec2.models.elastic_network_interfaces import NetworkInterface

__all__ = ["install"]


def install() -> None:
    """Mend moto in this process, before a mock or a server starts.

    Calling it again changes nothing; nothing takes it back.
    """
    moto.apigateway.urls.url_paths[_TAGS] = APIGatewayResponse.dispatch
    for owner, name, mended in (
        (APIGatewayResponse, "tag_resource", _tag_resource),
        (APIGatewayResponse, "untag_resource", _untag_resource),
        (APIGatewayResponse, "get_tags", _get_tags),
        (APIGatewayBackend, "delete_api_key", _delete_api_key),
        (utils, "is_filter_matching", _is_filter_matching),
    ):
        if getattr(owner, name) is not mended:
            _moto.setdefault(name, getattr(owner, name))
            setattr(owner, name, mended)


_moto: dict[str, Any] = {}

# A server sees the slashes of an ARN in a path as slashes, and moto has a route for a stage's ARN only.
_TAGS = (
    "{0}/tags/arn:(?P<partition>[^/]+):apigateway:(?P<region_name>[^/]+)::"
    "/(?P<kind>apikeys|usageplans)/(?P<resource>[^/]+)$"
)


def _tagged(response: APIGatewayResponse) -> Any:
    """Find the key or usage plan that a request to /tags/{arn} names; None where it is neither."""
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
    gone = self.querystring.get("tagKeys", [])
    resource.tags = {tag: value for tag, value in (resource.tags or {}).items() if tag not in gone}
    return 204, {"status": 204}, ""


def _get_tags(self: APIGatewayResponse) -> Any:
    resource = _tagged(self)
    return _moto["get_tags"](self) if resource is None else json.dumps({"tags": resource.tags or {}})


def _delete_api_key(self: APIGatewayBackend, api_key_id: str) -> None:
    _moto["delete_api_key"](self, api_key_id)
    for members in self.usage_plan_keys.values():
        members.pop(api_key_id, None)


def _is_filter_matching(obj: Any, filter_: str, filter_value: Any) -> bool:
    if isinstance(obj, NetworkInterface) and filter_ == "group-id":
        groups = obj.get_filter_value("group-id")
        return any(fnmatch.fnmatchcase(group, value) for group in groups for value in filter_value)
    return bool(_moto["is_filter_matching"](obj, filter_, filter_value))
