"""Transforms `template.yaml` as CloudFormation would, offline, for the tests of the deployed resources.

`sam validate` does the same with the same library, but does not print the result. `local.template` goes
further: it resolves the intrinsic functions for a region and parameters. Here they stay, since the template
is tested for every region.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from tests.conftest import ROOT

TEMPLATE = ROOT / "template.yaml"
CONDITIONS = {"TrailIsInSimpleDb": "simpledb", "TrailIsInDynamoDb": "dynamodb"}
STORES = tuple(CONDITIONS.values())
NO_VALUE = {"Ref": "AWS::NoValue"}


def read() -> dict[str, Any]:
    """Read the template as it is written, a new copy each time."""
    source: dict[str, Any] = yaml_parse(TEMPLATE.read_text())
    return source


@cache
def transformed(store: str = "simpledb") -> dict[str, Any]:
    """Give the template with SAM's resources turned into CloudFormation's, as it is for one store.

    The result is cached: do not change it.
    """
    source = read()
    # The translator takes S3 addresses alone; `sam deploy` puts them there. The key says which path it was.
    for section in [*source["Resources"].values(), {"Properties": source["Globals"]["Function"]}]:
        for name in ("CodeUri", "DefinitionUri"):
            if isinstance(path := section.get("Properties", {}).get(name), str):
                section["Properties"][name] = {"Bucket": "uploads", "Key": path}
    defaults = {name: declared["Default"] for name, declared in source["Parameters"].items()}
    # The map of managed policies serves roles that SAM makes; every role here is written out. The region
    # decides which partition SAM puts into the ARNs it writes itself.
    session = boto3.session.Session(region_name="eu-west-1")
    result: dict[str, Any] = Translator({}, Parser(), boto_session=session).translate(source, defaults)
    chosen = {name: store == its for name, its in CONDITIONS.items()}
    result["Resources"] = {
        name: resource
        for name, resource in result["Resources"].items()
        if chosen.get(resource.get("Condition"), True)
    }
    resolved: dict[str, Any] = _choose(result, chosen)
    return resolved


def _choose(value: Any, chosen: Mapping[str, bool]) -> Any:
    """Resolve the Fn::If of some conditions, with what AWS::NoValue leaves out."""
    if isinstance(value, list):
        return [part for item in value if (part := _choose(item, chosen)) != NO_VALUE]
    if not isinstance(value, dict):
        return value
    condition, *branches = value.get("Fn::If", (None,)) if len(value) == 1 else (None,)
    if condition in chosen:
        return _choose(branches[0 if chosen[condition] else 1], chosen)
    if condition is not None:
        return {"Fn::If": [condition, *(_choose(branch, chosen) for branch in branches)]}
    return {key: part for key, item in value.items() if (part := _choose(item, chosen)) != NO_VALUE}
