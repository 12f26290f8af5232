"""The gateway is API Gateway: its events, its answers, its limits. Behind it is a fake function."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aws_lambda_powertools.utilities.parser.models import APIGatewayProxyEventModel
from werkzeug.test import Client, TestResponse

from local.deployment import RestApi, Route
from local.gateway import MAX_BODY, Caller, Gateway, UsageLimits
from local.invocation import InvocationError, InvocationResult
from local.lambdas import NotAnswered
from local.template import Place

ARN = "arn:aws:lambda:eu-west-1:123456789012:function:knock-api"
KEY = "Gd4W1T3pPq7mZs0Vb9Xc2Rk5Yh8Jn6La1Fe4Ud7T"
API = RestApi(
    id="abcdefghij",
    name="knock",
    stage="v1",
    routes=(
        Route("POST", "/knock", True, ARN),
        Route("GET", "/knock", True, ARN),
        Route("GET", "/console", False, ARN),
        Route("GET", "/grants/{id}", True, ARN),
        Route("DELETE", "/grants/{id}", True, ARN),
        Route("GET", "/grants/all", True, ARN),
        Route("GET", "/", False, ARN),
    ),
)


@dataclass
class LocalGateway:
    """A gateway with a fake function behind it, and a clock."""

    api: RestApi = API
    keys: list[Caller] = field(default_factory=lambda: [Caller("key-id", KEY, UsageLimits("plan"))])
    answer: Any = field(default_factory=lambda: {"statusCode": 200, "body": "{}"})
    now: datetime = datetime(2026, 11, 23, 21, 17, 19, 123000, UTC)
    seconds: float = 1000.0
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        place = Place("knock", "eu-west-1")
        self.app = Gateway(
            self.api, place, lambda: self.keys, self.invoke, steady=lambda: self.seconds, utc=lambda: self.now
        )
        self.client = Client(self.app)

    def invoke(self, arn: str, payload: bytes, patience: float) -> InvocationResult:
        assert arn == ARN
        self.patience = patience
        self.events.append(json.loads(payload))
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, InvocationResult):
            return self.answer
        return InvocationResult(json.dumps(self.answer).encode())

    def ask(
        self,
        method: str,
        path: str,
        *,
        key: str | None = KEY,
        peer: str = "127.0.0.1",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> TestResponse:
        request_headers = dict(headers or {})
        if key is not None:
            request_headers["x-api-key"] = key
        return self.client.open(
            path, method=method, headers=request_headers, environ_overrides={"REMOTE_ADDR": peer}, **options
        )

    @property
    def event(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def source(self) -> str:
        source: str = self.event["requestContext"]["identity"]["sourceIp"]
        return source


@pytest.fixture
def gateway() -> LocalGateway:
    return LocalGateway()


def status_and_message(answer: TestResponse) -> tuple[int, str | None]:
    """Return the status and the message of an answer that is the gateway's own."""
    return answer.status_code, (answer.json or {}).get("message")


# The event


def test_the_event_is_a_rest_proxy_event_in_every_field(gateway: LocalGateway) -> None:
    gateway.ask(
        "POST",
        "/v1/knock?a=1&a=2&b=%C3%A9&empty=",
        headers={"User-Agent": "curl/8", "X-Forwarded-For": "203.0.113.7", "Host": "knock.example"},
        data='{"duration":"8h"}',
        content_type="application/json",
    )
    event = gateway.event
    context = event.pop("requestContext")
    headers = event.pop("headers")
    assert event == {
        "resource": "/knock",
        "path": "/knock",
        "httpMethod": "POST",
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": {"a": "2", "b": "é", "empty": ""},
        "multiValueQueryStringParameters": {"a": ["1", "2"], "b": ["é"], "empty": [""]},
        "pathParameters": None,
        "stageVariables": None,
        "body": '{"duration":"8h"}',
        "isBase64Encoded": False,
    }
    assert headers["X-Api-Key"] == KEY
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Forwarded-For"] == "203.0.113.7"
    assert headers["X-Forwarded-Proto"] == "http"
    assert headers["X-Amzn-Trace-Id"].startswith("Root=1-")
    identity = context.pop("identity")
    assert {name: value for name, value in identity.items() if value is not None} == {
        "sourceIp": "203.0.113.7",
        "userAgent": "curl/8",
        "apiKey": KEY,
        "apiKeyId": "key-id",
    }
    assert len(context.pop("requestId")) == 36
    assert len(context.pop("resourceId")) == 6
    assert context.pop("extendedRequestId").endswith("=")
    assert context == {
        "resourcePath": "/knock",
        "operationName": None,
        "httpMethod": "POST",
        "requestTime": "23/Nov/2026:21:17:19 +0000",
        "path": "/v1/knock",
        "accountId": "123456789012",
        "protocol": "HTTP/1.1",
        "stage": "v1",
        "domainPrefix": "knock",
        "requestTimeEpoch": 1795468639123,
        "domainName": "knock.example",
        "deploymentId": "local",
        "apiId": "abcdefghij",
    }


def test_the_event_is_valid_by_powertools_model(gateway: LocalGateway) -> None:
    gateway.ask("GET", "/v1/console", key=None)
    APIGatewayProxyEventModel.model_validate(gateway.event)


def test_a_method_without_a_key_has_none_in_its_event(gateway: LocalGateway) -> None:
    gateway.ask("GET", "/v1/console")
    assert "apiKey" not in gateway.event["requestContext"]["identity"]


def test_no_body_and_no_query_are_null(gateway: LocalGateway) -> None:
    gateway.ask("GET", "/v1/console")
    assert gateway.event["body"] is None
    assert gateway.event["queryStringParameters"] is None
    assert gateway.event["multiValueQueryStringParameters"] is None


def test_a_body_that_is_not_utf_8_does_not_break_the_gateway(gateway: LocalGateway) -> None:
    gateway.ask("POST", "/v1/knock", data=b"\xff{")
    assert gateway.event["body"] == "�{"


# Routing


@pytest.mark.parametrize(
    ("method", "path", "resource", "parameters"),
    [
        ("GET", "/v1/knock", "/knock", None),
        ("GET", "/v1/knock/", "/knock", None),
        ("GET", "/v1/grants/abc-1", "/grants/{id}", {"id": "abc-1"}),
        ("GET", "/v1/grants/a%2Fb%20c", "/grants/{id}", {"id": "a/b c"}),
        ("GET", "/v1/grants/all", "/grants/all", None),
        ("GET", "/v1/", "/", None),
        ("GET", "/v1", "/", None),
    ],
)
def test_a_path_goes_to_its_resource(
    gateway: LocalGateway, method: str, path: str, resource: str, parameters: object
) -> None:
    assert gateway.ask(method, path).status_code == 200
    assert gateway.event["resource"] == resource
    assert gateway.event["pathParameters"] == parameters


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/nowhere"),
        ("PUT", "/v1/knock"),
        ("OPTIONS", "/v1/knock"),
        ("GET", "/v1/grants/a/b"),
        ("DELETE", "/v1/grants/all"),
        ("GET", "/v1/grants/"),
        ("GET", "/v1//knock"),
    ],
)
def test_no_such_route_is_answered_as_aws_answers_it(gateway: LocalGateway, method: str, path: str) -> None:
    answer = gateway.ask(method, path)
    assert status_and_message(answer) == (403, "Missing Authentication Token")
    assert answer.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
    assert not gateway.events


@pytest.mark.parametrize("path", ["/", "/knock", "/v2/knock", "/v1x/knock"])
def test_no_such_stage_is_forbidden(gateway: LocalGateway, path: str) -> None:
    assert status_and_message(gateway.ask("GET", path)) == (403, "Forbidden")


# Keys


@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", KEY.lower(), "é" * 40])
def test_no_key_and_a_wrong_key_are_forbidden(gateway: LocalGateway, key: str | None) -> None:
    answer = gateway.ask("POST", "/v1/knock", key=key)
    assert status_and_message(answer) == (403, "Forbidden")
    assert answer.headers["x-amzn-ErrorType"] == "ForbiddenException"
    assert not gateway.events


def test_the_console_needs_no_key(gateway: LocalGateway) -> None:
    assert gateway.ask("GET", "/v1/console", key=None).status_code == 200


def test_a_key_is_known_among_others_until_it_is_removed(gateway: LocalGateway) -> None:
    other_caller = Caller("other", "x" * 40, UsageLimits("plan"))
    gateway.keys = [other_caller, *gateway.keys, replace(other_caller, key_id="third", value="y" * 40)]
    gateway.ask("GET", "/v1/knock")
    assert gateway.event["requestContext"]["identity"]["apiKeyId"] == "key-id"
    gateway.keys = [other_caller]
    assert status_and_message(gateway.ask("GET", "/v1/knock")) == (403, "Forbidden")


def test_a_key_is_taken_from_its_header_alone(gateway: LocalGateway) -> None:
    assert status_and_message(gateway.ask("GET", f"/v1/knock?x-api-key={KEY}", key=None)) == (
        403,
        "Forbidden",
    )


# The source


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("::1", None, "::1"),
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("::1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "nonsense,  203.0.113.7 ", "203.0.113.7"),
        ("127.0.0.1", "2001:DB8::0001", "2001:db8::1"),
        ("127.0.0.1", "::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("198.51.100.9", "203.0.113.7", "198.51.100.9"),
        ("2001:db8::9", "203.0.113.7", "2001:db8::9"),
    ],
)
def test_the_source_is_the_peer_or_behind_loopback_the_last_forwarder(
    gateway: LocalGateway, peer: str, forwarded: str | None, source: str
) -> None:
    gateway.ask("GET", "/v1/knock", peer=peer, headers={"X-Forwarded-For": forwarded} if forwarded else None)
    assert gateway.source == source
    assert gateway.event["headers"]["X-Forwarded-For"].rsplit(", ")[-1] == source


@pytest.mark.parametrize(
    "forwarded", ["nonsense", "203.0.113.7, x", "203.0.113.7:80", "203.0.113.0/24", "fe80::1%1", ","]
)
def test_a_forwarder_that_is_no_address_is_refused_and_not_guessed(
    gateway: LocalGateway, forwarded: str
) -> None:
    assert status_and_message(gateway.ask("GET", "/v1/knock", headers={"X-Forwarded-For": forwarded})) == (
        400,
        "Bad Request",
    )
    assert not gateway.events


def test_the_edge_appends_the_peer_to_the_clients_x_forwarded_for(gateway: LocalGateway) -> None:
    gateway.ask("GET", "/v1/knock", headers={"X-Forwarded-For": "10.0.0.1, 203.0.113.7"})
    assert gateway.event["headers"]["X-Forwarded-For"] == "10.0.0.1, 203.0.113.7"
    gateway.ask("GET", "/v1/knock", peer="198.51.100.9", headers={"X-Forwarded-For": "10.0.0.1"})
    assert gateway.event["headers"]["X-Forwarded-For"] == "10.0.0.1, 198.51.100.9"


# Limits


def limited(**limits: Any) -> LocalGateway:
    return LocalGateway(
        keys=[
            Caller("key-id", KEY, UsageLimits("plan", **limits)),
            Caller("b", "b", UsageLimits("plan", **limits)),
        ]
    )


def test_a_burst_is_let_through_and_refilled_at_the_rate() -> None:
    gateway = limited(rate=2, burst=3)
    statuses = [gateway.ask("GET", "/v1/knock").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    gateway.seconds += 0.49
    assert gateway.ask("GET", "/v1/knock").status_code == 429
    gateway.seconds += 0.02
    assert [gateway.ask("GET", "/v1/knock").status_code for _ in range(2)] == [200, 429]
    gateway.seconds += 100
    assert [gateway.ask("GET", "/v1/knock").status_code for _ in range(4)] == [200, 200, 200, 429]


def test_a_throttled_request_is_answered_as_aws_answers_it() -> None:
    gateway = limited(rate=1, burst=1)
    gateway.ask("GET", "/v1/knock")
    answer = gateway.ask("GET", "/v1/knock")
    assert status_and_message(answer) == (429, "Too Many Requests")
    assert answer.headers["x-amzn-ErrorType"] == "TooManyRequestsException"


def test_keys_are_throttled_apart() -> None:
    gateway = limited(rate=1, burst=1)
    assert [gateway.ask("GET", "/v1/knock", key=key).status_code for key in (KEY, "b", KEY)] == [
        200,
        200,
        429,
    ]


def test_a_method_is_throttled_for_all_callers_together() -> None:
    gateway = LocalGateway(api=replace(API, rate=1.0, burst=2))
    paths = ["/v1/console", "/v1/console", "/v1/console", "/v1/knock"]
    assert [gateway.ask("GET", path).status_code for path in paths] == [200, 200, 429, 200]


def test_a_quota_holds_for_a_day() -> None:
    gateway = limited(quota=2)
    began = gateway.now  # 21:17
    assert [gateway.ask("GET", "/v1/knock").status_code for _ in range(2)] == [200, 200]
    assert gateway.app.used("plan", "key-id") == 2
    gateway.now = began + timedelta(hours=2)
    answer = gateway.ask("GET", "/v1/knock")
    assert status_and_message(answer) == (429, "Limit Exceeded")
    assert answer.headers["x-amzn-ErrorType"] == "LimitExceededException"
    gateway.now = began + timedelta(hours=3)
    assert gateway.app.used("plan", "key-id") == 0
    assert gateway.ask("GET", "/v1/knock").status_code == 200


def test_a_changed_usage_plan_holds_at_once() -> None:
    gateway = limited(rate=1, burst=1)
    gateway.ask("GET", "/v1/knock")
    assert gateway.ask("GET", "/v1/knock").status_code == 429
    gateway.keys = [replace(gateway.keys[0], limits=UsageLimits("plan", rate=1, burst=5))]
    assert gateway.ask("GET", "/v1/knock").status_code == 200


def test_a_throttle_counts_exactly_under_concurrent_requests() -> None:
    gateway = limited(rate=1, burst=20)
    with ThreadPoolExecutor(16) as threads:
        statuses = list(threads.map(lambda _: gateway.ask("GET", "/v1/knock").status_code, range(64)))
    assert statuses.count(200) == 20


def test_a_body_over_ten_megabytes_is_refused(gateway: LocalGateway) -> None:
    assert gateway.ask("POST", "/v1/knock", data=b"x" * MAX_BODY).status_code == 200
    answer = gateway.ask("POST", "/v1/knock", data=b"x" * (MAX_BODY + 1))
    assert status_and_message(answer) == (413, "Request Too Long")
    assert len(gateway.events) == 1


# The answer


def test_the_functions_answer_is_the_answer(gateway: LocalGateway) -> None:
    gateway.answer = {
        "statusCode": 201,
        "headers": {"Content-Type": "text/plain", "X-Number": 5, "X-Yes": True, "Date": "never"},
        "multiValueHeaders": {"Set-Cookie": ["a=1", "b=2"], "Content-Type": ["text/html"]},
        "body": "é",
        "isBase64Encoded": False,
    }
    answer = gateway.ask("POST", "/v1/knock")
    assert answer.status_code == 201
    assert answer.text == "é"
    assert answer.headers["Content-Type"] == "text/html"
    assert answer.headers.getlist("Set-Cookie") == ["a=1", "b=2"]
    assert (answer.headers["X-Number"], answer.headers["X-Yes"]) == ("5", "true")
    assert answer.headers["x-amzn-Remapped-Date"] == "never"
    assert len(answer.headers["x-amzn-RequestId"]) == 36
    assert answer.headers["x-amz-apigw-id"]


def test_an_answer_without_a_content_type_is_json(gateway: LocalGateway) -> None:
    gateway.answer = {"statusCode": "204"}
    answer = gateway.ask("GET", "/v1/knock")
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        [],
        {},
        {"body": "no status"},
        {"statusCode": "ok"},
        {"statusCode": 99},
        {"statusCode": 200, "body": {"not": "a string"}},
        {"statusCode": 200, "headers": {"X": {"nested": 1}}},
        {"statusCode": 200, "headers": {"X": "a\r\nSet-Cookie: b"}},
        {"statusCode": 200, "headers": {"X Y": "a"}},
        {"statusCode": 200, "headers": {"X": "☃"}},
        {"statusCode": 200, "headers": ["X"]},
        {"statusCode": 200, "unknown": 1},
        InvocationResult(b"not json"),
        InvocationResult(b'{"errorMessage": "secret of the function"}', "Unhandled"),
        InvocationResult(b'{"statusCode": 200, "body": "secret"}', "Unhandled"),
    ],
)
def test_a_malformed_answer_or_a_failed_function_is_502_without_its_text(
    gateway: LocalGateway, answer: Any
) -> None:
    gateway.answer = answer
    response = gateway.ask("GET", "/v1/knock")
    assert status_and_message(response) == (502, "Internal server error")
    assert response.headers["x-amzn-ErrorType"] == "InternalServerErrorException"
    assert "secret" not in response.text


def test_a_function_that_does_not_answer_in_29_seconds_is_504(gateway: LocalGateway) -> None:
    gateway.answer = NotAnswered()
    assert status_and_message(gateway.ask("GET", "/v1/knock")) == (504, "Endpoint request timed out")
    assert gateway.patience == 29


def test_an_invocation_that_lambda_refuses_is_500(gateway: LocalGateway) -> None:
    gateway.answer = InvocationError("TooManyRequestsException", "Rate Exceeded.")
    assert status_and_message(gateway.ask("GET", "/v1/knock")) == (500, "Internal server error")


def test_gateway_responses_of_the_template_are_used() -> None:
    responses = {
        "INVALID_API_KEY": {
            "statusCode": "401",
            "responseTemplates": {"application/problem+json": '{"detail":$context.error.messageString}'},
            "responseParameters": {
                "gatewayresponse.header.X-Fixed": "'value'",
                "gatewayresponse.header.X-Request": "$context.requestId",
                "gatewayresponse.header.x-amzn-errortype": "'Ours'",
            },
        },
        "DEFAULT_5XX": {"responseParameters": {"gatewayresponse.header.Retry-After": "'1'"}},
    }
    gateway = LocalGateway(api=replace(API, responses=responses))
    answer = gateway.ask("GET", "/v1/knock", key="wrong")
    assert (answer.status_code, answer.json) == (401, {"detail": "Forbidden"})
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Fixed"] == "value"
    assert answer.headers["X-Request"] == answer.headers["x-amzn-RequestId"]
    assert answer.headers.getlist("x-amzn-ErrorType") == ["Ours"]
    gateway.answer = NotAnswered()
    slow = gateway.ask("GET", "/v1/knock")
    assert (status_and_message(slow), slow.headers["Retry-After"]) == (
        (504, "Endpoint request timed out"),
        "1",
    )


def test_the_log_has_each_request_and_never_a_key(
    gateway: LocalGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway.ask("GET", f"/v1/knock?key={KEY}")
    gateway.ask("GET", "/v1/knock", key="almost" + KEY)
    assert "GET /v1/knock 200" in caplog.text
    assert "GET /v1/knock 403" in caplog.text
    assert KEY not in caplog.text
