"""The naive knock API with Powertools' validation of bodies, by pydantic."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from aws_lambda_powertools.metrics import MetricUnit
from pydantic import BaseModel
from work import open_grant

logger = Logger()
metrics = Metrics()
app = APIGatewayRestResolver(enable_validation=True)


class Knock(BaseModel):
    """The body of a knock."""

    targets: list[str]
    duration: str = "8h"
    reason: str = ""


class Grant(BaseModel):
    """The answer to a knock."""

    grant_id: str
    status: str
    source: str
    expires_at: str
    authorized_at: str


@app.post("/knock")
def knock(body: Knock) -> tuple[Grant, int]:
    identity = app.current_event.request_context.identity
    grant = open_grant(identity.api_key_id or "", f"{identity.source_ip}/32", body.model_dump())
    logger.info("started", extra={"grant_id": grant["grant_id"]})
    metrics.add_metric(name="Knock", unit=MetricUnit.Count, value=1)
    return Grant(**{name: grant[name] for name in Grant.model_fields}), 201


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return app.resolve(event, context)
