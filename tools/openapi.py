"""Writes docs/openapi.json: the knock API in OpenAPI 3.1, derived from the code that answers.

    make openapi        (PYTHONPATH=functions python -m tools.openapi docs/openapi.json)

Methods, paths and who needs a key come from `template.yaml`, parameters and limits from `rest` and `values`,
problems from the tree of errors by having `rest.answers.problem` answer each, headers from what that module
sends. The shapes of answers are written here, and closed: `tests/adapters/test_openapi.py` holds real answers
against them, and schemathesis a whole stack. Decided against deriving them too: from examples they would be
guesses, and a library of models costs every cold start.

A resource is described as clients meet it, so the gateway's own answers are in it as well.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import api
from grants import errors
from grants.errors import InvalidKnock, KnockError, NotAllowed, Unavailable
from grants.policy import WIDEST
from grants.values import DURATION_SHAPES, ENDS, FAMILIES, GRANT_ID, LONGEST, TARGET_NAME
from local.deployment import Deployment, Route
from local.template import Place, load
from rest import answers, requests

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "openapi.json"

# Formats that JSON Schema does not have. The functions check them; here they are names for people, and
# for generators of test data.
DURATION, CIDR, LINE, CURSOR = "knock-duration", "cidr", "printable-line", "knock-cursor"

Json = dict[str, Any]

# ---------------------------------------------------------------------------- shapes


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def closed(description: str, properties: Mapping[str, Json], *optional: str) -> Json:
    """Describe an object that has these properties, all but the optional ones always, and no others."""
    return {
        "type": "object",
        "description": description,
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def text(description: str = "", **more: Any) -> Json:
    return {"type": "string"} | ({"description": description} if description else {}) | more


def exactly(pattern: str) -> str:
    return f"^{pattern}$"


def or_null(schema: Json) -> Json:
    return schema | {"type": [schema["type"], "null"]}


MILLISECOND = exactly(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
SECOND = exactly(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
GRANT_ID_TEXT = text("Says who, from where and when", pattern=exactly(GRANT_ID.pattern))


def moment(description: str, pattern: str = MILLISECOND) -> Json:
    return text(f"{description}. UTC", format="date-time", pattern=pattern)


def line(name: str, description: str) -> Json:
    """Describe one of the texts that `rest.requests.read_text` reads."""
    return text(description, maxLength=requests.LONGEST[name], format=LINE)


def schemas() -> Json:
    """Describe what is asked and answered, but for problems."""
    grant = {
        "id": GRANT_ID_TEXT,
        "status": text(enum=["pending", "active", *ENDS]),
        "principal": ref("Principal"),
        "source": text("The CIDR that is let in", format=CIDR),
        "targets": {"type": "array", "items": ref("Target")},
        "requested_at": moment("When it was knocked for"),
        "expires_at": moment("When it ends by itself", SECOND),
        "seconds_left": {"type": "integer", "minimum": 0, "description": "0 when it has ended"},
        "reason": or_null(text("As knocked")),
        "renews": or_null(GRANT_ID_TEXT | {"description": "The grant it replaces once it is open"}),
        "ended_at": or_null(moment("When it ended")),
        "ended_by": or_null(text("Who ended it: a name, the id of the grant that took its place, or knock")),
        "execution_arn": text("Its execution in Step Functions", pattern="^arn:"),
        "caller": text("The CIDR this call came from", format=CIDR),
    }
    left_out = {
        "type": "array",
        "items": text(pattern=exactly(TARGET_NAME.pattern)),
        "minItems": 1,
        "description": "Targets that the grant is not for, since none of their addresses is of its family",
    }
    target = {
        "name": text(pattern=exactly(TARGET_NAME.pattern)),
        "ports": {"type": "array", "minItems": 1, "items": text(examples=["22/tcp"])},
    }
    families = or_null(
        {
            "type": "array",
            "items": text(enum=list(FAMILIES)),
            "minItems": 1,
            "description": "The address families it can be reached by; null is not known",
        }
    )
    event = {
        "at": moment("When it happened"),
        "event": text(enum=["requested", "authorized", *ENDS, "closed"]),
        "by": text("Who did it"),
        "reason": text("Why it ended"),
        "left_out": {"type": "array", "items": text(), "description": "The targets that could not be opened"},
        "revoked": {"type": "array", "items": text(), "description": "The ids of the rules revoked"},
        "kept": {"type": "array", "items": text(), "description": "The rules other live grants claim"},
    }
    whoami = {
        "principal": ref("Principal"),
        "source": text("The CIDR the call came from", format=CIDR),
        "targets": {"type": "array", "items": ref("OpenableTarget"), "description": "What the key may open"},
        "default_duration": text("Of a grant when a knock names none", format=DURATION),
        "max_duration": or_null(text("The longest grant the key may have; null is none", format=DURATION)),
        "until": or_null(moment("When the key ends", SECOND)),
        "max_live": {"type": "integer", "minimum": 0, "description": "The most grants it may have at once"},
        "live": {"type": "integer", "minimum": 0, "description": "How many grants it has now"},
        "any_source": or_null(
            closed(
                "The shortest prefixes of sources the key may name; null is no other source than its own",
                {
                    "ipv4": {"type": "integer", "minimum": WIDEST[4], "maximum": 32},
                    "ipv6": {"type": "integer", "minimum": WIDEST[6], "maximum": 128},
                },
            )
        ),
        "operator": {"type": "boolean"},
        "faults": {"type": "array", "items": text(), "description": "Tags of the key that cannot be read"},
    }
    knock: Json = {
        "targets": {
            "type": ["array", "null"],
            "description": "Names of targets; without, all that the key may open",
            "items": text(pattern=exactly(TARGET_NAME.pattern)),
            "minItems": 1,
            "maxItems": requests.MOST_TARGETS,
            "examples": [["bastion"]],
        },
        "duration": {
            "description": f"{DURATION_SHAPES[0].upper()}{DURATION_SHAPES[1:]}",
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": int(LONGEST.total_seconds())},
                text(format=DURATION),
                {"type": "null"},
            ],
            "examples": ["8h"],
        },
        "source": or_null(
            text(
                "Another source than the caller's own address, for keys that may name one",
                maxLength=requests.LONGEST["source"],
                format=CIDR,
                examples=["203.0.113.7/32"],
            )
        ),
        "reason": or_null(line("reason", "One line for the trail") | {"examples": ["on call"]}),
        "renews": or_null(
            GRANT_ID_TEXT | {"description": "An own grant, which ends as superseded once the new one is open"}
        ),
    }
    return {
        "Principal": closed(
            "An API key, by id and name", {"id": text(minLength=1), "name": text(minLength=1)}
        ),
        "Target": closed("What an operator configured under a name", target),
        "OpenableTarget": closed("A target that the key may open", target | {"families": families}),
        "Event": closed("One thing that happened to a grant", event, "reason", "left_out", "revoked", "kept"),
        "Grant": closed("The decision to let one source reach targets, and what became of it", grant),
        "Knocked": closed(
            "The grant that a knock is answered with", grant | {"left_out": left_out}, "left_out"
        ),
        "WholeGrant": closed(
            "A grant with its events",
            grant | {"events": {"type": "array", "items": ref("Event"), "minItems": 1}},
        ),
        "Grants": closed(
            "Grants, newest first",
            {
                "grants": {"type": "array", "items": ref("Grant"), "maxItems": requests.LARGEST_PAGE},
                "cursor": or_null(text("Where the next page begins; null after the last one")),
            },
        ),
        "EndedGrants": closed(
            "The grants that were ended",
            {
                "grants": {"type": "array", "items": ref("Grant"), "maxItems": requests.LARGEST_PAGE},
                "more": {"type": "boolean", "description": "Whether the same call would go on to others"},
            },
        ),
        "Whoami": closed("What a key may do", whoami),
        "Knock": closed("What is asked for. Every field may be left out", knock, *requests.KNOCK_FIELDS),
        "GatewayAnswer": {
            "type": "object",
            "description": "What API Gateway answers by itself",
            "properties": {"message": or_null(text())},
            "required": ["message"],
            "additionalProperties": False,
        },
    }


PARAMETERS: dict[str, Json] = {
    "status": text("Which grants", enum=list(api.STATUSES), default="live"),
    "limit": {"type": "integer", "minimum": 1, "maximum": requests.LARGEST_PAGE, "default": requests.PAGE},
    "cursor": text("The `cursor` of the page before", format=CURSOR),
    "principal": line("principal", "The name of an API key; for operators"),
    "source": line("source", "A CIDR or an address, in any form") | {"format": CIDR},
    "target": line("target", "The name of a target"),
    "reason": line("reason", "One line for the trail"),
}

# ---------------------------------------------------------------------------- problems


def tree(root: type[KnockError] = KnockError) -> Iterator[type[KnockError]]:
    """Walk through the errors of `errors`, parents first."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def sample(error: type[KnockError]) -> tuple[Json, dict[str, str]]:
    """Have the API answer an error: (the problem, its headers)."""
    made = error("part", "detail") if issubclass(error, (InvalidKnock, NotAllowed)) else error("detail")
    said = answers.problem(made)
    return json.loads(said["body"]), said["headers"]


def problem(error: type[KnockError]) -> Json:
    """Describe one error's problem."""
    words = {
        "detail": text("What was wrong, for a person"),
        "field": text("Which part of the request is malformed"),
        "right": text("Which tag of the key is missing"),
        "families": {
            "type": "array",
            "items": text(enum=list(FAMILIES)),
            "minItems": 1,
            "description": "The address families by which the targets can be reached",
        },
        "grant_id": GRANT_ID_TEXT | {"description": "The grant that may have started"},
    }
    said, _ = sample(error)
    described = {name: words.get(name, {"const": value}) for name, value in said.items()}
    # Only of a knock whose grant has started, or may have.
    started = {"grant_id": words["grant_id"]} if error in RAISES["knock"] else {}
    return closed((inspect.getdoc(error) or "").partition("\n")[0], described | started, *started)


_ANY = [KnockError, InvalidKnock, NotAllowed, errors.RightsUnavailable]
_TRAIL = [*_ANY, errors.StoreUnavailable, errors.StoreRefused]
_EVERY = list(tree())
_LATER = [error for error in _EVERY if issubclass(error, Unavailable)]

RAISES: dict[str, list[type[KnockError]]] = {
    # A knock answers for the task that opens, too: whatever that task fails with.
    "knock": _EVERY,
    "knock_without_body": [error for error in _EVERY if error is not errors.GrantNotFound],
    "list_grants": _TRAIL,
    "end_grants": [*_TRAIL, *_LATER],
    "show_grant": [*_TRAIL, errors.EngineUnavailable, errors.GrantNotFound],
    "end_grant": [*_TRAIL, *_LATER, errors.GrantNotFound],
    "whoami": _TRAIL,
    "console": [KnockError],
}

# https://docs.aws.amazon.com/apigateway/latest/developerguide/supported-gateway-response-types.html
GATEWAY = {
    400: "A header that cannot be",
    403: "No such key, or no such method",
    413: "More than 10 MB",
    429: "The key's or the stage's limit is reached; try again in a moment",
    502: "The function failed",
    504: "The function did not answer in time",
}

# ---------------------------------------------------------------------------- operations

ANSWERS = {
    "knock": {201: "Knocked", 202: "Knocked"},
    "knock_without_body": {201: "Knocked", 202: "Knocked"},
    "list_grants": {200: "Grants"},
    "end_grants": {200: "EndedGrants"},
    "show_grant": {200: "WholeGrant"},
    "end_grant": {200: "WholeGrant"},
    "whoami": {200: "Whoami"},
}
MEANS = {201: "Ingress is open", 202: "The grant has started, and its ingress is not open yet"}


def headers(every: list[dict[str, str]], *, always: bool) -> Json:
    """Describe the headers of the answers with one status; `always` when all of those are the function's."""
    described: Json = {}
    for name in sorted({name for one in every for name in one} - {"Content-Type"}):
        values = {one.get(name) for one in every}
        same: Json = {"const": values.pop()} if len(values) == 1 and name != "Content-Security-Policy" else {}
        required = always and all(name in one for one in every)
        described[name] = {"required": required, "schema": text(**same)}
    return described


def response(status: int, schema: Json | None, problems: list[type[KnockError]]) -> Json:
    """Describe the answers with one status: a schema's, problems, the gateway's own, or several of these."""
    content: Json = {}
    sent: list[dict[str, str]] = []
    if schema:
        content["application/json"] = {"schema": schema}
        sent.append(answers.answer(status, {})["headers"])
    if problems:
        content["application/problem+json"] = {"schema": {"oneOf": [ref(e.__name__) for e in problems]}}
        sent += [sample(error)[1] for error in problems]
    if status in GATEWAY:
        content["application/json"] = {"schema": ref("GatewayAnswer")}
    titles = sorted({error.title for error in problems})
    words = [MEANS.get(status, HTTPStatus(status).phrase)] if schema else titles
    described = {"description": ". ".join([*words, *filter(None, [GATEWAY.get(status)])]), "content": content}
    sent_headers = headers(sent, always=status not in GATEWAY)
    return described | ({"headers": sent_headers} if sent_headers else {})


def responses(call: Callable[..., Any]) -> Json:
    """Describe every answer of one call, by status."""
    name = call.__name__
    by_status: dict[int, list[type[KnockError]]] = {}
    for error in dict.fromkeys(RAISES[name]):
        by_status.setdefault(error.status, []).append(error)
    good = ANSWERS.get(name, {})
    described = {
        str(status): response(
            status, ref(good[status]) if status in good else None, by_status.get(status, [])
        )
        for status in sorted({*good, *by_status, *GATEWAY})
    }
    if name == "console":
        page = api.console(None)["headers"]  # type: ignore[arg-type]  # it reads nothing of a request
        described["200"] = {
            "description": "The page",
            "content": {page["Content-Type"]: {"schema": text()}},
            "headers": headers([page], always=True),
        }
    if 201 in good:
        parameters = {"parameters": {"id": "$response.body#/id"}}
        links = {name: {"operationId": name} | parameters for name in ("show_grant", "end_grant")}
        for status in good:
            described[str(status)]["links"] = links
    return dict(sorted(described.items()))


def operation(route: Route) -> Json:
    """Describe one method of one resource."""
    answering = api.ROUTES[route.method, route.path]
    call = answering.call
    summary, _, rest = (inspect.getdoc(call) or "").partition("\n\n")
    described: Json = {"operationId": call.__name__, "summary": summary}
    if rest:
        described["description"] = rest
    parameters: list[Json] = [
        {"name": name, "in": "query", "schema": PARAMETERS[name]} for name in answering.query or ()
    ]
    if "{id}" in route.path:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": GRANT_ID_TEXT})
    if parameters:
        described["parameters"] = parameters
    if call is api.knock:
        described["requestBody"] = {
            "required": False,
            "description": f"{requests.MOST_BYTES} bytes at most",
            "content": {"application/json": {"schema": ref("Knock")}},
        }
    described["responses"] = responses(call)
    described["security"] = [{"key": []}] if route.key_required else []
    return described


def document() -> Json:
    """Describe the API that the template deploys."""
    deployed = Deployment(load(ROOT / "template.yaml", Place("knock", "eu-west-1"), {})).rest_api
    paths: Json = {}
    order = list(api.ROUTES)
    for route in sorted(deployed.routes, key=lambda route: order.index((route.method, route.path))):
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route)
    host = "https://{api}.execute-api.{region}.amazonaws.com"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Knock",
            "version": "1",
            "summary": "Knock for access: open ports to your own address, for a bounded time",
            "description": "Errors are problems (RFC 9457), but for what API Gateway answers by itself.",
        },
        "servers": [
            {
                "url": f"{host}/{deployed.stage}",
                "variables": {name: {"default": name} for name in ("api", "region")},
            }
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "x-api-key"}},
            "schemas": schemas() | {error.__name__: problem(error) for error in tree()},
        },
    }


def written() -> str:
    """Give the document as the file has it."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(written(), encoding="utf-8")
