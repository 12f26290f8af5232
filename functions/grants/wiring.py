"""The only place that makes clients, and puts the pieces together for the entry points.

Clients are made once a process, and only those a function names: what it does not call it does not load, nor
the modules around it, which is why some are imported where they are used.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.logging.utils import copy_config_to_registered_loggers
from aws_lambda_powertools.metrics import MetricUnit
from botocore.config import Config

from .executions import Closings, Executions
from .models import SlimLoader
from .settings import Settings
from .store import Store
from .timing import CONNECT_TIMEOUT, FORCE_CONNECT_TIMEOUT, FORCE_READ_TIMEOUT, READ_TIMEOUT
from .trail import Trail
from .trust import explain, roots

if TYPE_CHECKING:
    from botocore.client import BaseClient

    from .ingress import Ingress
    from .ledgers import Ledgers
    from .operations import Operations

# Most invocations have nothing to count, and Powertools would say so in the log of each.
warnings.filterwarnings("ignore", message="No application metrics to publish")

logger = Logger()
metrics = Metrics(namespace="Knock")

# One more try after a lost answer, then the state machine's Retry decides, where everybody can see it. EC2
# gets none: its throttling is to be backed off from for seconds, not in a paid-for sleep. A user agent of
# one's own: botocore makes up its own twice a call, which is a sixth of a call's CPU. botocore checks every
# call's arguments against its model, which AWS does again; the tests have it checked here.
KNOCK = Config(user_agent="Knock", parameter_validation=False)
TWICE = KNOCK.merge(
    Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})
)
ONCE = KNOCK.merge(
    Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
)
HASTY = KNOCK.merge(
    Config(
        connect_timeout=FORCE_CONNECT_TIMEOUT,
        read_timeout=FORCE_READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
)


# What template.yaml's rule Warmth calls a function with, and nothing else does: an event of API Gateway and a
# state machine's payload have other names in them. The function answers at once and does nothing.
WARM = {"warm": True}


def now() -> datetime:
    """Read the wall clock, in UTC: the only place that does."""
    return datetime.now(timezone.utc)


def count(metric: str, value: float = 1, unit: MetricUnit = MetricUnit.Count) -> None:
    """Add to a metric of the stack's."""
    metrics.add_metric(name=metric, unit=unit, value=value)


def prepare(make: Callable[[], object]) -> None:
    """Make what every invocation needs while Lambda starts the function, before anybody waits for an answer.

    Half of a cold start is making clients. As the function starts it has a whole CPU for that; in an
    invocation only the share that its memory buys. Anywhere else (tests, tools) importing a function's module
    makes nothing and reads no environment.
    https://docs.aws.amazon.com/lambda/latest/dg/best-practices.html#function-code
    """
    if "AWS_LAMBDA_INITIALIZATION_TYPE" in os.environ:
        try:
            make()
        finally:
            gc.freeze()  # what is made by now stays: no collection needs to look at it
            gc.enable()  # grants/__init__.py has disabled it


@cache
def _session() -> boto3.Session:
    """Make a session of the slim data."""
    core = botocore.session.get_session()
    core.register_component("data_loader", SlimLoader())
    return boto3.Session(botocore_session=core)


class Wiring:
    """One function's clients and what is built on them. Raises BadSetting on a bad environment."""

    def __init__(self) -> None:
        copy_config_to_registered_loggers(logger, include={"knock"})
        self.settings = Settings.read(os.environ)
        self._clients: dict[tuple[str, Config, str | None], BaseClient] = {}
        self._verify = roots(os.environ, self.settings.partition)

    def client(self, service: Any, config: Config = TWICE, region: str | None = None) -> BaseClient:
        """Give the one client of its kind, so that all that use it share its connections."""
        known = service, config, region
        if known not in self._clients:
            self._clients[known] = self._make(service, config, region)
        return self._clients[known]

    def _make(self, service: Any, config: Config, region: str | None) -> BaseClient:
        """Make a client of the slim data; of botocore's own where a newer botocore does not take that."""
        client: BaseClient
        named: dict[str, Any] = {"config": config, "region_name": region, "verify": self._verify}
        try:
            client = _session().client(service, **named)
        except Exception:  # whatever it is: a function that starts late is better than one that does not
            logger.exception("slim_data_not_used", extra={"of": service})
            client = boto3.Session().client(service, **named)
        client.meta.events.register("needs-retry", explain)
        return client

    def store(self, domain: str, config: Config = TWICE) -> Store:
        """Make the store of a domain or table, of the kind that the stack has chosen."""
        region = self.settings.trail_region
        if self.settings.store == "dynamodb":
            from .dynamodb import DynamoDb

            return DynamoDb(self.client("dynamodb", config, region), domain)
        from .simpledb import SimpleDb

        return SimpleDb(self.client("sdb", config, region), domain)

    @cached_property
    def trail(self) -> Trail:
        return Trail(self.store(self.settings.trail_domain))

    @cached_property
    def ledgers(self) -> Ledgers:
        from .ledgers import Ledgers

        return Ledgers(self.store(self.settings.ledger_domain))

    @cached_property
    def executions(self) -> Executions:
        return Executions(self.client("stepfunctions"), self.settings.machine_arn)

    @cached_property
    def closings(self) -> Closings:
        return Closings(self.client("stepfunctions"), self.settings.closings_arn)

    @cached_property
    def ingress(self) -> Ingress:
        from .ingress import Ingress

        return Ingress(self.client("ec2", ONCE), self.settings.stack)

    @cached_property
    def operations(self) -> Operations:
        from .operations import Operations

        return Operations(
            self.trail, self.ledgers, self.ingress, self.executions, self.closings, now, count=count
        )

    @cached_property
    def forcing(self) -> Operations:
        """Give the operations for force, which waits seconds for trail and ledger, and does without them."""
        from .ledgers import Ledgers

        return replace(
            self.operations,
            trail=Trail(self.store(self.settings.trail_domain, HASTY)),
            ledgers=Ledgers(self.store(self.settings.ledger_domain, HASTY)),
        )
