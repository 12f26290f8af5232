"""Transform `template.yaml` as CloudFormation would, offline, for the tests of what gets deployed.

`sam validate` does the same with the same library but keeps the result to itself. `local.template` goes
further: it resolves the intrinsic functions for one place and one set of parameters. Here they stay, since
what is tested is the template as it is for every place.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "template.yaml"


def read() -> dict[str, Any]:
    """Read the template as it is written, a new copy each time."""
    source: dict[str, Any] = yaml_parse(TEMPLATE.read_text())
    return source


@cache
def transformed() -> dict[str, Any]:
    """Give the template with SAM's resources turned into CloudFormation's. Do not change what it gives."""
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
    return result
