"""Writes botocore's data for the functions, with nothing in it but what they call.

    python -m tools.models

A file a service, with its model (the operations called, the shapes they reach, no documentation), the rules
for its endpoint, and the pages it is read by; and one of what is no service's: the partitions, and of the
list of endpoints the services that are called. `grants/models.py` reads them, and says why.
`tests/adapters/test_models.py` compares what is written with the botocore that is installed, and with what
the functions call.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from botocore.loaders import Loader

FOLDER = Path(__file__).resolve().parent.parent / "functions" / "models"
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
PAGED = {"resourcegroupstaggingapi": ("GetResources",)}  # what a paginator of botocore's is used for


@cache
def _loader() -> Loader:
    """Give botocore's own loader, which keeps what it has read."""
    return Loader()


def slim(name: str) -> dict[str, Any]:
    """Give what the file of a service's name holds, or that of SHARED."""
    return _shared() if name == SHARED else _service(name)


def _service(service: str) -> dict[str, Any]:
    loader = _loader()
    found = {
        "service-2": _model(service),
        "endpoint-rule-set-1": _undocumented(loader.load_service_model(service, "endpoint-rule-set-1")),
    }
    if service in PAGED:
        pages = loader.load_service_model(service, "paginators-1")["pagination"]
        found["paginators-1"] = {"pagination": {name: pages[name] for name in PAGED[service]}}
    return found


def _model(service: str) -> dict[str, Any]:
    """Give a service's model with the named operations, the shapes they reach, and no documentation."""
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
    """Give the partitions, and of the list of endpoints, in every partition, the services that are called.

    A region is in it by its name alone. One that is newer than this is known by its partition's pattern.
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
    """Read the list of endpoints from its file: botocore's resolver writes into what a loader has given."""
    plain = Path(Loader.BUILTIN_DATA_PATH) / "endpoints.json"
    text = plain.read_bytes() if plain.exists() else gzip.decompress(Path(f"{plain}.gz").read_bytes())
    read: dict[str, Any] = json.loads(text)
    return read


def _undocumented(part: Any) -> Any:
    if isinstance(part, list):
        return [_undocumented(member) for member in part]
    if isinstance(part, dict):
        # A documentation is a text; a member of a shape may be called so too.
        return {
            name: _undocumented(value)
            for name, value in part.items()
            if name != "documentation" or not isinstance(value, str)
        }
    return part


def path(name: str) -> Path:
    """Give the file of a service, or of SHARED, where `grants/models.py` looks for it."""
    return FOLDER / f"{name}.json"


def text(name: str) -> str:
    return json.dumps(slim(name), separators=(",", ":")) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in (*OPERATIONS, SHARED):
        path(name).write_text(text(name))


if __name__ == "__main__":
    main()
