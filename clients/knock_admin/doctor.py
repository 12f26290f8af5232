"""`knock-admin doctor`: checks a deployment, and with `--test-grant` opens and closes a grant on it.

Each check has findings: `ok`, `warn` (it works, and needs attention) or `fail` (a key cannot knock, or a port
may stay open). A check that lacks a permission has a `warn` finding, and the other checks go on. With
`--test-grant` a real grant is made on a scratch group with a temporary key, through the knock API, and
watched until it has closed by itself. The group and the key are removed in any case.

Grants are decided by the tags that groups have at that time, so the scratch group has to be a target of the
stack for a while, and meanwhile a key that may open every target may open it. So it becomes a target when all
else is ready, and stops being one as soon as the test's grant is open: for about a minute, since the API
caches tags for that long.

    group and key made   key accepted   target seen   grant open   rule gone   group and key removed
                               ├── a target of the stack ──┤
"""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from knock_admin import grants, keys, ledger, stores, tags, targets
from knock_admin.errors import AdminError, Unreachable, code_of, translated
from knock_admin.output import Result, count, progress, table, warn
from knock_admin.stack import MODULES

if TYPE_CHECKING:
    from datetime import datetime

    from knock import Client
    from knock_admin.attach import Holder
    from knock_admin.stack import Stack

TEST_DURATION = 10
"""Duration of the test grant, in seconds."""
TEST_PATIENCE = 180.0
"""Seconds to wait for the temporary key and target: API Gateway may take 150 s to accept a new key, and the
functions cache rights for 60 s."""
CLOSING_PATIENCE = 30.0
"""Seconds to wait, after the grant's end, until its rule is revoked."""
PAUSE = 1.0
"""Seconds between two polls."""
RULES_PER_INTERFACE = 1000
ENDS_SOON = timedelta(days=7)
"""A key that ends within this time has a `warn` finding."""

MACHINES = (
    ("state machine", "STATE_MACHINE_ARN", "no grant can start"),
    ("closings", "CLOSINGS_ARN", "a grant that is stopped by hand stays open"),
)

Later = Callable[[str, Callable[[], object]], None]


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: str
    check: str
    detail: str


def doctor(stack: Stack, *, now: datetime, test_grant: bool, vpc: str | None) -> Result:
    """Check a deployment; the exit code is 1 if there is a `fail` finding.

    `test_grant` makes a grant as well, on a scratch group in `vpc` (None for that of the targets).
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("functions", lambda: _functions(stack)),
        *(
            (name, partial(_state_machine, stack, name, variable, otherwise))
            for name, variable, otherwise in MACHINES
        ),
        ("trail", lambda: _domain(stack, "trail", stores.TRAIL)),
        ("ledger", lambda: _ledger(stack)),
        ("refusals", lambda: _domain(stack, "refusals", stores.REFUSALS)),
        ("targets", lambda: _targets(stack)),
        ("keys", lambda: _keys(stack, now)),
        ("usage plan", lambda: _usage_plan(stack)),
        ("limits", lambda: _limits(stack)),
        ("quotas", lambda: _quotas(stack)),
        ("events", lambda: _events(stack)),
        ("alarms", lambda: _alarms(stack)),
    ]
    if test_grant:
        checks.append(("test grant", lambda: _test_grant(stack, vpc)))
    findings = [Finding("ok", "stack", f"{stack.name} in {stack.aws.region}")]
    for name, check in checks:
        progress(f"checking {name}")
        findings += _tried(stack, name, check)
    rows = [(finding.level, finding.check, finding.detail) for finding in findings]
    return Result(
        {"findings": [{"level": level, "what": name, "detail": detail} for level, name, detail in rows]},
        table(rows, ("LEVEL", "CHECK", "WHAT IT SAW")),
        exit_code=1 if any(finding.level == "fail" for finding in findings) else 0,
    )


def _tried(stack: Stack, name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run one check; an error that stops it becomes a finding. Raises botocore's if AWS does not answer."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Unreachable:
        raise
    except AdminError as error:
        findings.append(Finding("fail", name, str(error)))
    except (ClientError, BotoCoreError) as error:
        failure = translated(error, stack.aws.calls.last)
        if isinstance(failure, Unreachable):
            raise
        denied = "Your credentials need" in str(failure)
        findings.append(Finding("warn" if denied else "fail", name, str(failure).replace("\n", " ")))
    return findings


def _functions(stack: Stack) -> Iterator[Finding]:
    missing = [module for module in MODULES if module not in stack.functions]
    if missing:
        yield Finding("fail", "functions", f"there is none for {', '.join(missing)}; deploy the stack again")
    for listed in stack.functions.values():
        name = listed["FunctionName"]
        # ListFunctions leaves the state out.
        function = stack.aws.client("lambda").get_function_configuration(FunctionName=name)
        state, update = function.get("State", "Active"), function.get("LastUpdateStatus", "Successful")
        # Inactive is a function that was idle for long; the next invocation wakes it.
        if state not in ("Active", "Inactive") or update not in ("Successful", "InProgress"):
            why = function.get("LastUpdateStatusReason") or function.get("StateReason") or "no reason given"
            yield Finding("fail", "functions", f"{name} is {state}, its last update {update}: {why}")
    for variable in (*stores.DOMAINS, "TRAIL_REGION", "STATE_MACHINE_ARN", "CLOSINGS_ARN"):
        values = {
            value
            for function in stack.functions.values()
            if (value := function["Environment"]["Variables"].get(variable))
        }
        if len(values) != 1:
            yield Finding(
                "fail", "functions", f"they do not agree on {variable}: {', '.join(sorted(values)) or 'none'}"
            )
    # Last: where an older policy lacks the permission, what was seen before is reported all the same.
    for listed in stack.functions.values():
        name = listed["FunctionName"]
        concurrency = stack.aws.client("lambda").get_function_concurrency(FunctionName=name)
        if concurrency.get("ReservedConcurrentExecutions") == 0:
            yield Finding("fail", "functions", f"{name} is switched off: its reserved concurrency is 0")
    yield Finding("ok", "functions", ", ".join(sorted(stack.functions)))


def _state_machine(stack: Stack, check: str, variable: str, otherwise: str) -> Iterator[Finding]:
    arn = stack.setting(variable)
    machine = stack.aws.client("stepfunctions").describe_state_machine(stateMachineArn=arn)
    if machine["status"] != "ACTIVE":
        yield Finding("fail", check, f"{machine['name']} is {machine['status']}: {otherwise}")
    called = _resources(json.loads(machine["definition"]))
    # A function is known by its ARN; a version or an alias may follow that.
    ours = {function["FunctionArn"].split(":")[6] for function in stack.functions.values()}
    for strange in sorted(name for name in called if name.split(":")[6] not in ours):
        yield Finding("fail", check, f"it calls {strange}, which is no function of this stack")
    yield Finding("ok", check, f"{machine['name']} calls {count(len(called), 'function')} of this stack")


def _resources(definition: dict[str, Any]) -> set[str]:
    return {
        state["Resource"]
        for state in definition["States"].values()
        if ":lambda:" in state.get("Resource", "")
    }


def _domain(stack: Stack, check: str, variable: str) -> Iterator[Finding]:
    yield from (Finding(level, check, detail) for level, detail in stores.of(stack, variable).health())


def _ledger(stack: Stack) -> Iterator[Finding]:
    """Check the domain or table, and that every source's ledger can be read and has room."""
    well = list(_domain(stack, "ledger", stores.LEDGER))
    yield from well
    if any(finding.level == "fail" for finding in well):
        return
    for source, values in stores.of(stack, stores.LEDGER).select():
        try:
            content = ledger.decode(source, values)
        except AdminError as error:
            yield Finding("fail", "ledger", f"{error}; nobody can knock from there")
            continue
        for section, most in (("claims", ledger.MOST_CLAIMS), ("rules", ledger.MOST_RULES)):
            used = len(content[section])
            if used * 5 >= most * 4:
                yield Finding(
                    "warn",
                    "ledger",
                    f"{source} has {used} of {most} {section}; beyond that, knocks from there are refused",
                )


def _limits(stack: Stack) -> Iterator[Finding]:
    yield Finding(
        "ok",
        "limits",
        f"{stack.setting('MAX_LIVE')} live grants a key (MaxLive), {ledger.MOST_CLAIMS} claims and "
        f"{ledger.MOST_RULES} rules a source",
    )


def _targets(stack: Stack) -> Iterator[Finding]:
    groups = targets.all_groups(stack)
    pools: dict[str, list[targets.Group]] = {}
    for group in groups:
        faults = targets.faults_of(group)
        yield from (Finding("fail", "targets", fault) for fault in faults)
        if not faults:
            pools.setdefault(group.tags[tags.TARGET], []).append(group)
    unfinished, foreign = targets.marked_unfinished(stack)
    yield from (Finding("warn", "targets", targets.forged(group)) for group in foreign)
    for group in unfinished:
        name = group.tags[tags.UNFINISHED].partition("/")[2]
        yield Finding(
            "warn",
            "targets",
            f"{group.id} is a group of {name} that no command has finished, so no knock opens it: if none is "
            f"running, `knock-admin target add {name}` finishes it, `target rm {name}` removes it",
        )
    if not groups:
        yield Finding(
            "warn", "targets", "there are none, so nobody can open anything; see `knock-admin target add`"
        )
    holders = targets.holders_of(stack.aws, (group.id for group in groups))
    for name, pool in sorted(pools.items()):
        yield from _target(stack, name, pool, holders)


def _target(stack: Stack, name: str, pool: list[targets.Group], holders: list[Holder]) -> Iterator[Finding]:
    ids = {group.id for group in pool}
    if len({group.ports for group in pool}) > 1:
        yield Finding(
            "fail", "targets", f"the groups of {name} differ in {tags.PORTS}, so no knock opens them"
        )
    if len({group.vpc for group in pool}) > 1:
        yield Finding("warn", "targets", f"the groups of {name} are in several VPCs; make one target a VPC")
    attached = [holder for holder in holders if ids & set(holder.groups)]
    if not attached:
        yield Finding("warn", "targets", f"{name} is attached to nothing, so a knock lets nobody in")
    for holder in attached:
        missing = ids - set(holder.groups)
        if missing:
            yield Finding(
                "fail",
                "targets",
                f"{holder} lacks {', '.join(sorted(missing))} of {name}: rules there open nothing; "
                f"`knock-admin target add {name}` attaches what is missing",
            )
    other_groups = {group for holder in attached for group in holder.groups} - ids
    for line in targets.world_open(stack.aws, None, ids):
        yield Finding("warn", "targets", f"{name} has a rule that Knock did not make: {line}")
    for line in targets.world_open(stack.aws, pool[0].ports, other_groups) if other_groups else ():
        yield Finding("warn", "targets", f"{name} guards nothing there: {line}, and is attached beside it")
    yield Finding(
        "ok", "targets", f"{name}: {count(len(pool), 'group')}, attached in {count(len(attached), 'place')}"
    )


def _keys(stack: Stack, now: datetime) -> Iterator[Finding]:
    known = {group.tags.get(tags.TARGET) for group in targets.all_groups(stack)}
    listing = keys.look(stack)
    yield from _not_in_plan(stack, listing.outside)
    listed = listing.inside
    if not listed:
        yield Finding("warn", "keys", "there are none, so nobody can knock; see `knock-admin key add`")
    for key in listed:
        who = key.who
        faults = keys.faults_of(key)
        yield from (Finding("fail", "keys", f"{who}: {fault}; it gives no right") for fault in faults)
        if faults:
            continue
        named = set(key.tags.get(tags.TARGETS, "").split()) - {"*", tags.EVERY_TARGET}
        if missing := sorted(named - known):
            do = "does" if len(missing) == 1 else "do"
            yield Finding("warn", "keys", f"{who} may open {', '.join(missing)}, which {do} not exist")
        if tags.NAME not in key.tags:
            yield Finding(
                "warn",
                "keys",
                f"{who} has no tag {tags.NAME}, so its grants are on record under its id; any change by "
                "`key set` adds it",
            )
        elif key.recorded_name != key.name:
            yield Finding("warn", "keys", f"{who}: its grants are on record under {key.recorded_name}")
        if key.retires_at and key.retires_at <= now:
            yield Finding(
                "warn", "keys", f"{who} was to retire at {key.tags[tags.RETIRES_AT]} and still works"
            )
        yield from _rights(stack, key, now)
    opened = {word for key in listed if _opens(key, now) for word in key.tags[tags.TARGETS].split()}
    if listed and not opened & {"*", tags.EVERY_TARGET} and (unused := known - opened - {None}):
        yield Finding("warn", "keys", f"nobody may open {', '.join(sorted(map(str, unused)))}")
    if disabled := [key.name for key in listed if not key.enabled]:
        yield Finding("ok", "keys", f"disabled: {', '.join(disabled)}")
    yield Finding("ok", "keys", f"{count(len(listed), 'key')}, {sum(key.enabled for key in listed)} enabled")


def _not_in_plan(stack: Stack, outside: list[keys.Key]) -> Iterator[Finding]:
    """Report the keys that a stopped `key add` made, and did not add to the usage plan."""
    for key in outside:
        if key.tags.get(tags.STACK) == stack.name:
            yield Finding(
                "warn",
                "keys",
                f"{key.who} is not in the usage plan, so it opens nothing: `knock-admin key add` of that "
                "name completes it",
            )


def _opens(key: keys.Key, now: datetime) -> bool:
    """Say whether a key can open something: it is enabled, has not ended, and its rights can be read."""
    readable = not keys.faults_of(key) and {tags.TARGETS, tags.MAX_DURATION} <= key.tags.keys()
    return key.enabled and readable and not (key.until and key.until <= now)


def _rights(stack: Stack, key: keys.Key, now: datetime) -> Iterator[Finding]:
    """Check that a key's rights name targets and a duration, within the stack's limits and until its end."""
    who = key.who
    if lacks := [tag for tag in (tags.TARGETS, tags.MAX_DURATION) if tag not in key.tags]:
        yield Finding("warn", "keys", f"{who} opens nothing: it has no tag {' and no tag '.join(lacks)}")
    elif beyond := keys.beyond_limit(stack, key.tags):
        yield Finding("warn", "keys", f"{who} {beyond}")
    if key.until and key.until <= now:
        yield Finding("warn", "keys", f"{who} opens nothing since {key.tags[tags.UNTIL]}, its end")
    elif key.until and key.until <= now + ENDS_SOON:
        yield Finding("warn", "keys", f"{who} ends soon: it is good until {key.tags[tags.UNTIL]}")


def _usage_plan(stack: Stack) -> Iterator[Finding]:
    plan = stack.read_plan()
    if not plan.get("apiStages"):
        yield Finding("fail", "usage plan", f"{plan['name']} is connected to no API, so no key works")
    for limit in ("throttle", "quota"):
        if not plan.get(limit):
            yield Finding(
                "warn", "usage plan", f"{plan['name']} has no {limit}: one key can use up everything"
            )
    yield Finding("ok", "usage plan", plan["name"])


def _quotas(stack: Stack) -> Iterator[Finding]:
    rules, groups = (
        targets.quota(stack.aws, which) for which in (targets.RULES_PER_GROUP, targets.GROUPS_PER_INTERFACE)
    )
    if rules * groups > RULES_PER_INTERFACE:
        yield Finding(
            "warn",
            "quotas",
            f"{rules} rules a group in {groups} groups an interface pass {RULES_PER_INTERFACE} in all",
        )
    pools: dict[str, list[str]] = {}
    for group in targets.all_groups(stack):
        pools.setdefault(group.tags.get(tags.TARGET, ""), []).append(group.id)
    for name, pool in sorted(pools.items()):
        for family, used in zip(
            ("IPv4", "IPv6"), targets.used(targets.rules_of(stack.aws, pool)), strict=True
        ):
            room = rules * len(pool)
            if used * 5 >= room * 4:
                yield Finding(
                    "warn",
                    "quotas",
                    f"{name} uses {used} of {room} {family} rules; `target grow {name}` makes room",
                )
    yield Finding("ok", "quotas", f"{rules} rules a group, {groups} groups an interface")


def _events(stack: Stack) -> Iterator[Finding]:
    events, name = stack.aws.client("events"), f"{stack.name}-stopped"
    try:
        rule = events.describe_rule(Name=name)
    except ClientError as error:
        if code_of(error) != "ResourceNotFoundException":
            raise
        yield Finding(
            "fail", "events", f"there is no rule {name}: stopping an execution by hand leaves its rules open"
        )
        return
    if rule["State"] != "ENABLED":
        yield Finding(
            "fail", "events", f"the rule {name} is off: stopping an execution by hand leaves its rules open"
        )
    started = [target["Arn"] for target in events.list_targets_by_rule(Rule=name)["Targets"]]
    closings = stack.setting("CLOSINGS_ARN")
    if closings not in started:
        yield Finding(
            "fail",
            "events",
            f"the rule {name} starts {', '.join(started) or 'nothing'}, not {closings}: stopping an "
            "execution by hand leaves its rules open",
        )
    yield Finding("ok", "events", f"{name} is {rule['State'].lower()}")


def _alarms(stack: Stack) -> Iterator[Finding]:
    prefix = f"{stack.name}-"
    listed = stack.aws.pages("cloudwatch", "describe_alarms", "MetricAlarms", AlarmNamePrefix=prefix)
    # The template's names have no dash of their own; with one, it is an alarm of the stack `knock-2`, say.
    alarms = [alarm for alarm in listed if "-" not in alarm["AlarmName"].removeprefix(prefix)]
    firing = [alarm for alarm in alarms if alarm["StateValue"] == "ALARM"]
    for alarm in firing:
        yield Finding(
            "fail", "alarms", f"{alarm['AlarmName']} is firing: {alarm.get('AlarmDescription', '')}"
        )
    if not alarms:
        yield Finding("warn", "alarms", "there are none: a revocation that fails is not reported")
    else:
        yield Finding("ok", "alarms", f"{count(len(alarms), 'alarm')}, {len(firing)} firing")


# ---------------------------------------------------------------------------- the test grant


@dataclass
class Scratch:
    """A group that is attached to nothing, and is a target of the stack only while the test needs it."""

    stack: Stack
    name: str
    group: str
    is_target: bool = False

    @classmethod
    def make(cls, stack: Stack, name: str, vpc: str | None) -> Scratch:
        """Create the group, with tags that mark it as no target yet."""
        where = targets.vpc_of(stack.aws, vpc, [] if vpc else targets.all_groups(stack)[:1], [])
        ec2 = stack.aws.client("ec2")
        marks = {tags.MADE_BY: tags.KNOCK_ADMIN, tags.UNFINISHED: f"{stack.name}/{name}"}
        created = ec2.create_security_group(
            GroupName=f"{stack.name}-{name}",
            Description=targets.SCRATCH_DESCRIPTION,
            VpcId=where["VpcId"],
            TagSpecifications=[
                {
                    "ResourceType": "security-group",
                    "Tags": [{"Key": key, "Value": value} for key, value in marks.items()],
                }
            ],
        )
        return cls(stack, name, str(created["GroupId"]))

    def become_target(self) -> None:
        """Tag it as a target."""
        ec2 = self.stack.aws.client("ec2")
        if not self.stack.aws.calls.dry_run:
            ec2.get_waiter("security_group_exists").wait(GroupIds=[self.group], WaiterConfig={"Delay": 1})
        self.is_target = True  # before the call, whose answer may be lost
        wanted = {tags.STACK: self.stack.name, tags.TARGET: self.name, tags.PORTS: "9/tcp"}
        ec2.create_tags(
            Resources=[self.group], Tags=[{"Key": key, "Value": value} for key, value in wanted.items()]
        )
        ec2.delete_tags(Resources=[self.group], Tags=[{"Key": tags.UNFINISHED}])

    def become_none(self) -> None:
        """Remove the target's tags; `knock:stack` stays, so that Knock may still revoke its rules."""
        if self.is_target:
            self.stack.aws.client("ec2").delete_tags(
                Resources=[self.group], Tags=[{"Key": tags.TARGET}, {"Key": tags.PORTS}]
            )
            self.is_target = False

    def delete(self) -> None:
        """Delete it. Raises AdminError while it has a rule, which a grant of another key may claim."""
        self.become_none()
        if rules := [] if self.stack.aws.calls.dry_run else self.rules():
            ids = ", ".join(rule["SecurityGroupRuleId"] for rule in rules)
            raise AdminError(
                f"it holds {ids}, which a grant of another key may have opened: wait for its end"
            )
        # First without its tags: for hours, the tagging API lists deleted groups with the tags they had.
        targets.untag(self.stack, self.name, [self.group])
        self.stack.aws.client("ec2").delete_security_group(GroupId=self.group)

    def rules(self) -> list[dict[str, Any]]:
        """List its rules."""
        return targets.rules_of(self.stack.aws, [self.group])


def _test_grant(stack: Stack, vpc: str | None) -> Iterator[Finding]:
    """Make a grant, watch it open and close, and remove the key and the group."""
    name = f"doctor-{secrets.token_hex(4)}"
    left_behind: list[str] = []
    with _terminable(), ExitStack() as cleanup:

        def later(resource: str, remove: Callable[[], object]) -> None:
            cleanup.callback(_clean, stack, resource, remove, left_behind)

        scratch = Scratch.make(stack, name, vpc)
        later(f"the group {scratch.group}", scratch.delete)
        gateway = stack.aws.client("apigateway")
        _, value = keys.make(
            stack,
            name,
            {
                tags.STACK: stack.name,
                tags.NAME: name,
                tags.TARGETS: name,
                tags.MAX_DURATION: f"{TEST_DURATION}s",
            },
            on_id=lambda key: later(f"the key {key}", lambda: gateway.delete_api_key(apiKey=key)),
        )
        if stack.aws.calls.dry_run:
            scratch.become_target()
            stack.aws.calls.plan("knock:POST /knock", {"targets": [name], "duration": TEST_DURATION})
            scratch.become_none()
        else:
            yield from _watch(stack, _client(stack, value), scratch, later)
    yield from (Finding("fail", "test grant", text) for text in left_behind)


@contextmanager
def _terminable() -> Iterator[None]:
    """Clean up on SIGTERM, as on Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _client(stack: Stack, value: str) -> Client:
    from knock import Client

    return Client(stack.read_api_url(), value)


def _watch(stack: Stack, client: Client, scratch: Scratch, later: Later) -> Iterator[Finding]:
    """Knock, and poll the scratch group's rules until the grant's rule is there, and until it is gone."""
    from knock import KnockError

    try:
        _await_key(client)
        scratch.become_target()
        _await_target(client, scratch.name)
        grant = client.knock(scratch.name, duration=TEST_DURATION, reason="knock-admin doctor")
    except KnockError as error:
        raise AdminError(f"the knock failed: {error}") from error
    later(f"the grant {grant.id}", lambda: _end(stack, grant.id, scratch))
    scratch.become_none()
    opened = [rule for rule in scratch.rules() if grant.source in _cidrs(rule)]
    if not opened:
        yield Finding(
            "fail",
            "test grant",
            f"the API says that {grant.id} is open, and {scratch.group} has no rule for it",
        )
        return
    rule_id = opened[0]["SecurityGroupRuleId"]
    yield Finding("ok", "test grant", f"{grant.id} opened {rule_id} for {grant.source}")
    progress(f"waiting for {grant.id} to expire")
    deadline = time.monotonic() + TEST_DURATION + CLOSING_PATIENCE
    while any(rule["SecurityGroupRuleId"] == rule_id for rule in scratch.rules()):
        if time.monotonic() > deadline:
            yield Finding("fail", "test grant", f"the rule of {grant.id} is still there after its end")
            return
        time.sleep(PAUSE)
    # The trail records the closing a moment after the rule is revoked.
    while not (closed := _events_of(client, grant.id).get("closed")) and time.monotonic() < deadline:
        time.sleep(PAUSE)
    status = client.grant(grant.id).status
    level = "ok" if closed and status == "expired" else "fail"
    yield Finding(
        level, "test grant", f"{grant.id} is {status}, its rule gone; closed at {closed or 'no time yet'}"
    )


def _await(goal: str, ask: Callable[[], str | None]) -> None:
    """Poll until `ask` gives None instead of a reason. Raises AdminError with it after TEST_PATIENCE."""
    progress(f"waiting for the API to {goal}; up to two minutes")
    deadline = time.monotonic() + TEST_PATIENCE
    while reason := ask():
        if time.monotonic() > deadline:
            raise AdminError(f"the API still {reason}")
        time.sleep(PAUSE)


def _await_key(client: Client) -> None:
    """Wait until the gateway accepts the temporary key, with a call for which the API reads no targets."""
    from knock import KeyRejected

    def ask() -> str | None:
        try:
            list(client.grants())
        except KeyRejected as error:
            return f"does not accept the temporary key ({error})"
        return None

    _await("accept the temporary key", ask)


def _await_target(client: Client, name: str) -> None:
    """Wait until the API knows the scratch target.

    It asks for the key's targets and does not knock, because a refused knock is on record and counts for an
    alarm.
    """

    def ask() -> str | None:
        known = any(target.name == name for target in client.whoami().targets)
        return None if known else "does not know the scratch target"

    _await("know the scratch target", ask)


def _events_of(client: Client, grant_id: str) -> dict[str, str]:
    return {event["event"]: event["at"] for event in client.grant(grant_id).events}


def _end(stack: Stack, grant_id: str, scratch: Scratch) -> None:
    """Close the test grant if its rule is still there."""
    if scratch.rules():
        grants.end(stack, grant_id, _BY, "cleaning up")


_BY = {"id": "knock-admin", "name": "knock-admin doctor"}


def _cidrs(rule: dict[str, Any]) -> tuple[str | None, str | None]:
    return rule.get("CidrIpv4"), rule.get("CidrIpv6")


def _clean(stack: Stack, resource: str, remove: Callable[[], object], left_behind: list[str]) -> None:
    """Remove a resource of the test. A failure is reported at once, and the other removals go on."""
    try:
        remove()
    except (ClientError, BotoCoreError, AdminError) as error:
        failure = error if isinstance(error, AdminError) else translated(error, stack.aws.calls.last)
        left_behind.append(f"{resource} was left behind, remove it by hand: {failure}")
        warn(left_behind[-1])
