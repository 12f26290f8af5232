"""Writes the models of AWS services that functions make clients of, with nothing in them but what is called.

    python -m local.models

EC2's has 750 operations, and to read it is a third of what a cold start costs the functions that open and
close doors: 70 ms of CPU and 24 MiB. With the operations they call alone it is 3 ms. botocore looks for
models in its setting `data_path` first (`grants/wiring.py` names the folder); what is not there (endpoints,
and any newer version of the API) it takes from its own. `tests/adapters/test_models.py` compares what is
written with the botocore that is installed, and with what `grants/ingress.py` calls.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from botocore.loaders import Loader

FOLDER = Path(__file__).resolve().parent.parent / "functions" / "models"
OPERATIONS = {
    "ec2": (
        "AuthorizeSecurityGroupIngress",
        "DescribeSecurityGroupRules",
        "DescribeSecurityGroups",
        "RevokeSecurityGroupIngress",
    )
}


def slim(service: str) -> dict[str, Any]:
    """Give a service's model with the named operations, the shapes they reach, and no documentation."""
    model = Loader().load_service_model(service, "service-2")
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
        "version": model["version"],
        "metadata": model["metadata"],
        "operations": _undocumented(operations),
        "shapes": _undocumented(dict(sorted(shapes.items()))),
    }


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


def path(service: str) -> Path:
    """Give the file of a service's model, where botocore looks for it."""
    version = Loader().determine_latest_version(service, "service-2")
    return FOLDER / service / version / "service-2.json"


def text(service: str) -> str:
    return json.dumps(slim(service), indent=1) + "\n"


def main() -> None:
    for service in OPERATIONS:
        file = path(service)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text(service))


if __name__ == "__main__":
    main()
