"""Writes the part of botocore's data that the functions need.

    python -m tools.models

There is one file for each service, with its model (the operations that are called, their shapes, and no
documentation), its endpoint rules and its paginators; and one shared file, with the partitions and the
services' part of the list of endpoints. `grants/models.py` reads the files, and says why they exist.
`tests/adapters/test_models.py` compares them with the botocore that is installed, and with the calls of the
functions.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from botocore.loaders import Loader

from tools import ROOT

FOLDER = ROOT / "functions" / "models"
SHARED = "shared"
OPERATIONS = {
    "apigateway": ("GetTags",),
    "dynamodb": ("DeleteItem", "GetItem", "Query", "Scan", "UpdateItem"),
    "ec2": (
        "AuthorizeSecurityGroupIngress",
        "DescribeSecurityGroupRules",
        "DescribeSecurityGroups",
        "RevokeSecurityGroupIngress",
    ),
    "events": ("PutEvents",),
    "lambda": ("Invoke",),
    "resourcegroupstaggingapi": ("GetResources",),
    "sdb": ("DeleteAttributes", "GetAttributes", "PutAttributes", "Select"),
    "sns": ("Publish",),
    "stepfunctions": ("DescribeExecution", "ListExecutions", "StartExecution", "StopExecution"),
}
PAGED = {"resourcegroupstaggingapi": ("GetResources",)}  # operations that are called with a paginator


@cache
def _loader() -> Loader:
    """Give botocore's loader, which caches the files it has read."""
    return Loader()


def slim(name: str) -> dict[str, Any]:
    """Give the content of a service's file, or of the shared one."""
    return _shared() if name == SHARED else _service(name)


def _service(service: str) -> dict[str, Any]:
    loader = _loader()
    content = {
        "service-2": _model(service),
        "endpoint-rule-set-1": _undocumented(loader.load_service_model(service, "endpoint-rule-set-1")),
    }
    if service in PAGED:
        pages = loader.load_service_model(service, "paginators-1")["pagination"]
        content["paginators-1"] = {"pagination": {name: pages[name] for name in PAGED[service]}}
    return content


def _model(service: str) -> dict[str, Any]:
    """Give a service's model with the operations of OPERATIONS, their shapes, and no documentation."""
    model = _loader().load_service_model(service, "service-2")
    operations = {name: model["operations"][name] for name in OPERATIONS[service]}
    shapes: dict[str, Any] = {}
    wanted = {
        shape["shape"]
        for operation in operations.values()
        for shape in (operation.get("input"), operation.get("output"), *operation.get("errors", ()))
        if shape
    }
    while wanted:
        name = wanted.pop()
        shape = shapes[name] = model["shapes"][name]
        members = [
            *shape.get("members", {}).values(),
            *(shape[m] for m in ("member", "key", "value") if m in shape),
        ]
        wanted |= {member["shape"] for member in members} - set(shapes)
    return {
        "metadata": model["metadata"],
        "operations": _undocumented(operations),
        "shapes": _undocumented(dict(sorted(shapes.items()))),
    }


def _shared() -> dict[str, Any]:
    """Give the partitions, and the list of endpoints with the services of OPERATIONS only.

    Regions have their names only. A region that is newer than the file matches its partition's pattern.
    """
    endpoints = _endpoints()
    prefixes = {_model(service)["metadata"]["endpointPrefix"] for service in OPERATIONS}
    partitions = [
        partition
        | {
            "regions": {region: {} for region in partition["regions"]},
            "services": {
                name: partition["services"][name] for name in partition["services"] if name in prefixes
            },
        }
        for partition in endpoints["partitions"]
    ]
    return {
        "endpoints": endpoints | {"partitions": partitions},
        "partitions": _loader().load_data("partitions"),
    }


def _endpoints() -> dict[str, Any]:
    """Read the list of endpoints from its file, since botocore's resolver changes the loader's copy."""
    plain = Path(Loader.BUILTIN_DATA_PATH) / "endpoints.json"
    text = plain.read_bytes() if plain.exists() else gzip.decompress(Path(f"{plain}.gz").read_bytes())
    read: dict[str, Any] = json.loads(text)
    return read


def _undocumented(part: Any) -> Any:
    if isinstance(part, list):
        return [_undocumented(member) for member in part]
    if isinstance(part, dict):
        # Documentation is a text. A shape may have a member of that name, which is no text.
        return {
            name: _undocumented(value)
            for name, value in part.items()
            if name != "documentation" or not isinstance(value, str)
        }
    return part


def path(name: str) -> Path:
    """Give the path of a service's file, or of the shared one, from which `grants/models.py` reads it."""
    return FOLDER / f"{name}.json"


def text(name: str) -> str:
    return json.dumps(slim(name), separators=(",", ":")) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in (*OPERATIONS, SHARED):
        path(name).write_text(text(name))


if __name__ == "__main__":
    main()
