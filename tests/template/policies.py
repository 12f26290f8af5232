"""The policy statements of `template.yaml`'s roles, inline and in the stack's own managed policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Statement = Mapping[str, Any]


def listed(value: object) -> list[Any]:
    """Give a list, where IAM takes a single value or a list."""
    return value if isinstance(value, list) else [value]


def statements_of(role: str, resources: Mapping[str, Any]) -> Iterator[Statement]:
    """Walk through the statements of a role, given by its logical id. AWS's own policies are left out."""
    properties = resources[role]["Properties"]
    for policy in properties.get("Policies", []):
        yield from policy["PolicyDocument"]["Statement"]
    for reference in properties.get("ManagedPolicyArns", []):
        if "Ref" in reference:
            yield from resources[reference["Ref"]]["Properties"]["PolicyDocument"]["Statement"]


def actions_of(role: str, resources: Mapping[str, Any]) -> set[str]:
    """Give every action that a role may take, somewhere."""
    return {action for statement in statements_of(role, resources) for action in listed(statement["Action"])}


def documents(resources: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Walk through every policy document in the template, trust and resource policies included."""
    for name, resource in resources.items():
        properties = resource.get("Properties", {})
        for key in ("AssumeRolePolicyDocument", "PolicyDocument"):
            if key in properties:
                yield name, properties[key]
        for policy in properties.get("Policies", []):
            if isinstance(policy, Mapping) and "PolicyDocument" in policy:
                yield name, policy["PolicyDocument"]
