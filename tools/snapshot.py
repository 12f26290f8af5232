"""Writes a snapshot of a release: the deployed resources that grants which run during an update depend on.

`make release-snapshot` writes that of the current version to `tests/fixtures/releases/` when a release is
made. The tests in `tests/upgrades` compare the template with the newest snapshot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.template.policies import listed, statements_of
from tests.template.transform import STORES, transformed
from tools import ROOT, release

RELEASES = ROOT / "tests" / "fixtures" / "releases"
# The properties that name a resource. A change of one replaces the resource, as a change of its type does.
NAMES = (
    "AlarmName",
    "DashboardName",
    "FunctionName",
    "LogGroupName",
    "Name",
    "QueueName",
    "StateMachineName",
    "StateMachineType",
    "TableName",
    "TopicName",
    "UsagePlanName",
)


def snapshot() -> dict[str, Any]:
    """Give the resources of the template by logical id, and the permissions of each role, with each store."""
    by_store = [transformed(store) for store in STORES]
    merged = {name: resource for variant in by_store for name, resource in variant["Resources"].items()}
    template = {**by_store[0], "Resources": merged}
    resources = {
        name: {
            "type": resource["Type"],
            "named": {
                key: resource["Properties"][key] for key in NAMES if key in resource.get("Properties", {})
            },
            **{key: resource[key] for key in ("Condition", "DeletionPolicy") if key in resource},
        }
        for name, resource in sorted(template["Resources"].items())
        # Each change of the API makes a new deployment of API Gateway, by design.
        if resource["Type"] != "AWS::ApiGateway::Deployment"
    }
    roles = {
        name: sorted({text for variant in by_store for text in permissions(name, variant["Resources"])})
        for name, resource in sorted(template["Resources"].items())
        if resource["Type"] == "AWS::IAM::Role"
    }
    parameters = {
        name: {key: declared[key] for key in ("Type", "Default") if key in declared}
        for name, declared in sorted(template["Parameters"].items())
    }
    return {
        "resources": resources,
        "roles": roles,
        "parameters": parameters,
        "outputs": sorted(template["Outputs"]),
    }


def permissions(role: str, resources: dict[str, Any]) -> set[str]:
    """Write each permission of a role as a text: action, resource, condition."""
    return {
        json.dumps([action, resource, statement.get("Condition")], sort_keys=True)
        for statement in statements_of(role, resources)
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    }


def newest() -> Path:
    """Give the snapshot of the newest release."""
    releases: list[Path] = list(RELEASES.glob("*.json"))
    return max(releases, key=lambda path: [int(part) for part in path.stem.split(".")])


if __name__ == "__main__":
    target = release.snapshot_of(release.version())
    target.write_text(json.dumps(snapshot(), indent=1, sort_keys=True) + "\n")
    print(f"wrote {target.relative_to(ROOT)}")
