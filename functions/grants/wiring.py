"""The only place that makes clients, and puts the pieces together for the entry points.

Clients are made once a process, and only those a function names: what it does not call it does not load.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.logging.utils import copy_config_to_registered_loggers
from aws_lambda_powertools.metrics import MetricUnit
from botocore.config import Config

from .dynamodb import DynamoDb
from .executions import Closings, Executions
from .ingress import Ingress
from .ledgers import Ledgers
from .operations import Operations
from .settings import Settings
from .simpledb import SimpleDb
from .store import Store
from .timing import CONNECT_TIMEOUT, FORCE_CONNECT_TIMEOUT, FORCE_READ_TIMEOUT, READ_TIMEOUT
from .trail import Trail

if TYPE_CHECKING:
    from botocore.client import BaseClient

# Most invocations have nothing to count, and Powertools would say so in the log of each.
warnings.filterwarnings("ignore", message="No application metrics to publish")

logger = Logger()
metrics = Metrics(namespace="Knock")

# One more try after a lost answer, then the state machine's Retry decides, where everybody can see it.
# EC2 gets none: its throttling is to be backed off from for seconds, not in a paid-for sleep.
# A user agent of one's own: botocore makes up its own twice a call, which is a sixth of a call's CPU.
KNOCK = Config(user_agent="Knock")
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


# EC2's model, with the operations of grants/ingress.py alone: local/models.py writes it, and says why.
MODELS = Path(__file__).resolve().parent.parent / "models"


# What template.yaml's rule Warmth calls a function with, and nothing else does: an event of API Gateway and a state
# machine's payload have other names in them. The function answers at once and does nothing.
WARM = {"warm": True}


def now() -> datetime:
    """Read the clock: the only place that does."""
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
        make()


@cache
def _session() -> boto3.Session:
    core = botocore.session.get_session()
    core.set_config_variable("data_path", str(MODELS))
    return boto3.Session(botocore_session=core)


class Wiring:
    """One function's clients and what is built on them. Raises BadSetting on a bad environment."""

    def __init__(self) -> None:
        copy_config_to_registered_loggers(logger, include={"knock"})
        self.settings = Settings.read(os.environ)

    def client(self, service: Any, config: Config = TWICE, region: str | None = None) -> BaseClient:
        client: BaseClient = _session().client(service, config=config, region_name=region)
        return client

    def store(self, domain: str, config: Config = TWICE) -> Store:
        """Make the store of a domain or table, of the kind that the stack has chosen."""
        region = self.settings.trail_region
        if self.settings.store == "dynamodb":
            return DynamoDb(self.client("dynamodb", config, region), domain)
        return SimpleDb(self.client("sdb", config, region), domain)

    @cached_property
    def trail(self) -> Trail:
        return Trail(self.store(self.settings.trail_domain))

    @cached_property
    def ledgers(self) -> Ledgers:
        return Ledgers(self.store(self.settings.ledger_domain))

    @cached_property
    def executions(self) -> Executions:
        return Executions(self.client("stepfunctions"), self.settings.machine_arn)

    @cached_property
    def closings(self) -> Closings:
        return Closings(self.client("stepfunctions"), self.settings.closings_arn)

    @cached_property
    def ingress(self) -> Ingress:
        return Ingress(self.client("ec2", ONCE), self.settings.stack)

    @cached_property
    def operations(self) -> Operations:
        return Operations(
            self.trail, self.ledgers, self.ingress, self.executions, self.closings, now, count=count
        )

    @cached_property
    def forcing(self) -> Operations:
        """Give the operations for force: trail and ledger are given seconds, since there is a way without
        them."""
        return replace(
            self.operations,
            trail=Trail(self.store(self.settings.trail_domain, HASTY)),
            ledgers=Ledgers(self.store(self.settings.ledger_domain, HASTY)),
        )
