"""A naive knock API: clients created on import, Powertools' resolver without validation."""

from __future__ import annotations

import json
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.metrics import MetricUnit
from work import open_grant

logger = Logger()
metrics = Metrics()
app = APIGatewayRestResolver()


@app.post("/knock")
def knock() -> Response[str]:
    identity = app.current_event.request_context.identity
    grant = open_grant(identity.api_key_id or "", f"{identity.source_ip}/32", app.current_event.json_body)
    logger.info("started", extra={"grant_id": grant["grant_id"]})
    metrics.add_metric(name="Knock", unit=MetricUnit.Count, value=1)
    return Response(status_code=201, content_type="application/json", body=json.dumps(grant))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return app.resolve(event, context)
