"""Finds the resources of a deployment.

The functions of a stack have in their environment `KNOCK_STACK` and the resources that they use, so a list of
the region's functions gives the stack's name, its domains, its state machines and the functions to invoke.
That works in the same way on AWS and on the local stack, without the right to read CloudFormation stacks, and
without configuration. CloudFormation's outputs were no alternative: the local stack has none.

The functions' environment lacks the usage plan and the API's URL. The plan has the stack's name, and is for
one stage, which has a URL; options override both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from knock_admin.errors import AdminError, UsageError
from knock_admin.output import visible, warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from knock_admin.aws import Aws

MODULES = ("api", "authorize", "revoke", "guard")
OPTIONAL = ("notify",)
"""Modules that have a function in some stacks only."""


@dataclass(frozen=True)
class Stack:
    """One deployment of Knock."""

    aws: Aws
    name: str
    functions: Mapping[str, Mapping[str, Any]]
    """The configuration of each function, as Lambda gives it, by module (`api`, `authorize`, …)."""
    usage_plan: str | None = None
    api_url: str | None = None
    _plan: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def setting(self, variable: str) -> str:
        """Give a variable of the functions' environment. Raises AdminError if no function has it."""
        for module in MODULES:
            function = self.functions.get(module)
            if function and (value := function["Environment"]["Variables"].get(variable)):
                return str(value)
        raise AdminError(f"No function of the stack {self.name} has {variable} in its environment.")

    @property
    def store(self) -> str:
        """The kind of store of trail and ledger: `simpledb` or `dynamodb`. Raises AdminError if unclear."""
        stores = {
            str(store)
            for module, function in self.functions.items()
            if module in MODULES and (store := function["Environment"]["Variables"].get("TRAIL_STORE"))
        }
        if len(stores) > 1 or stores - {"simpledb", "dynamodb"}:
            raise AdminError(
                f"The functions of the stack {self.name} name as TRAIL_STORE: {', '.join(sorted(stores))}. "
                "One of simpledb and dynamodb was expected; an update that goes on may be why."
            )
        return stores.pop() if stores else "simpledb"  # stacks from before TRAIL_STORE use SimpleDB

    def function(self, module: str) -> str:
        """Give the name of the function that runs a module. Raises AdminError if there is none."""
        if module not in self.functions:
            raise AdminError(
                f"The stack {self.name} has no function for {module}; `knock-admin doctor` says more."
            )
        return str(self.functions[module]["FunctionName"])

    def read_plan(self) -> dict[str, Any]:
        """Read the usage plan of the stack's keys, once. Raises AdminError unless one fits."""
        if not self._plan:
            self._plan.update(self._find_plan())
        return self._plan

    def _find_plan(self) -> dict[str, Any]:
        wanted = self.usage_plan or self.name
        plans = list(self.aws.pages("apigateway", "get_usage_plans", "items"))
        fitting = [plan for plan in plans if wanted in (plan["id"], plan["name"])]
        if len(fitting) == 1:
            return fitting[0]
        named = (visible(f"{plan['name']} ({plan['id']})") for plan in fitting or plans)
        known = ", ".join(sorted(named)) or "none"
        raise AdminError(
            f"Which usage plan do the keys of the stack {self.name} belong to? There are: {known}. "
            "Name one with --usage-plan or KNOCK_USAGE_PLAN."
        )

    def read_api_url(self) -> str:
        """Give the knock API's URL: as named, or of the usage plan's stage. Raises AdminError if unclear."""
        if self.api_url:
            return self.api_url
        stages = self.read_plan().get("apiStages") or []
        domain = self.aws.read_domain()
        if len(stages) != 1 or not domain:
            raise AdminError("Where is the knock API? Name it with --api-url or KNOCK_URL.")
        return f"https://{stages[0]['apiId']}.execute-api.{self.aws.region}.{domain}/{stages[0]['stage']}"


def find(aws: Aws, name: str | None, *, usage_plan: str | None = None, api_url: str | None = None) -> Stack:
    """Find the stack called `name`, or the only one of the region. Raises UsageError when there is none.

    A function of another project may have KNOCK_STACK in its environment. So a function counts only if it has
    the name that template.yaml gives it, which is unique in a region. For other functions there is a warning;
    they are not invoked.
    """
    stacks: dict[str, dict[str, Any]] = {}
    strangers: dict[str, list[str]] = {}
    for function in aws.pages("lambda", "list_functions", "Functions"):
        stack = function.get("Environment", {}).get("Variables", {}).get("KNOCK_STACK")
        module = _module(stack, function) if stack else None
        if module in stacks.get(stack, {}):
            arns = f"{stacks[stack][module]['FunctionArn']} and {function['FunctionArn']}"
            raise AdminError(f"The stack {stack} has two functions for {module}: {arns}.")
        if module:
            stacks.setdefault(stack, {})[module] = function
        elif stack:
            strangers.setdefault(stack, []).append(function["FunctionName"])
    known = ", ".join(sorted(stacks)) or "none"
    if name is None and len(stacks) != 1:
        raise UsageError(
            f"Which stack? Name it with --stack or KNOCK_STACK. In {aws.region} there are: {known}."
        )
    chosen = name or next(iter(stacks))
    if chosen in strangers:
        warn(
            f"{', '.join(sorted(strangers[chosen]))}: says to be of the stack {visible(chosen)}, and is none "
            "of its functions by its name; it is left alone"
        )
    if chosen not in stacks:
        raise UsageError(f"There is no stack {chosen} of Knock in {aws.region}; there are: {known}.")
    return Stack(aws, chosen, stacks[chosen], usage_plan, api_url)


def _module(stack: str, function: Mapping[str, Any]) -> str | None:
    """Give the module that a function of the stack runs; None for a function of another name."""
    for module in (*MODULES, *OPTIONAL):
        if function["FunctionName"] == f"{stack}-{module}":
            return module
    return None
