"""Writes docs/openapi.json: the knock API in OpenAPI 3.1, derived from its code.

    make openapi        (PYTHONPATH=functions python -m tools.openapi docs/openapi.json)

Methods, paths and which of them need a key come from `template.yaml`; parameters and limits from `rest` and
`values`; problems from the tree of errors, by answering each with `rest.answers.problem`; headers from the
answers of that module. The schemas of bodies are written here, and closed: `tests/adapters/test_openapi.py`
validates real answers against them, and schemathesis a whole stack. Decided against deriving them too:
schemas from examples would be guesses, and a library of models would slow down every cold start.

Each path has all answers that a client may get, also those of API Gateway itself.
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
from tools import ROOT

DOCUMENT = ROOT / "docs" / "openapi.json"

# Formats that JSON Schema does not define. The functions check them; the names are for people, and for
# generators of test data.
DURATION, CIDR, LINE, CURSOR = "knock-duration", "cidr", "printable-line", "knock-cursor"

Json = dict[str, Any]

# ---------------------------------------------------------------------------- schemas


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def closed(description: str, properties: Mapping[str, Json], *optional: str) -> Json:
    """Describe an object with these properties and no others; all but the optional ones are required."""
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
GRANT_ID_TEXT = text("A grant's id: principal, source, time and a digest", pattern=exactly(GRANT_ID.pattern))


def moment(description: str, pattern: str = MILLISECOND) -> Json:
    return text(f"{description}. UTC", format="date-time", pattern=pattern)


def line(name: str, description: str) -> Json:
    """Describe a text that `rest.requests.read_text` reads."""
    return text(description, maxLength=requests.LONGEST[name], format=LINE)


def schemas() -> Json:
    """Describe the bodies of requests and answers, but for problems."""
    return shared_schemas() | grant_schemas() | whoami_schemas() | knock_schemas() | gateway_schemas()


def shared_schemas() -> Json:
    """Describe keys and targets, which several answers contain."""
    target = {
        "name": text(pattern=exactly(TARGET_NAME.pattern)),
        "ports": {"type": "array", "minItems": 1, "items": text(examples=["22/tcp"])},
    }
    families = or_null(
        {
            "type": "array",
            "items": text(enum=list(FAMILIES)),
            "minItems": 1,
            "description": "The address families it can be reached over; null if not known",
        }
    )
    return {
        "Principal": closed(
            "An API key, by id and name", {"id": text(minLength=1), "name": text(minLength=1)}
        ),
        "Target": closed("A name, and the ports that a grant of it opens", target),
        "OpenableTarget": closed("A target that the key may open", target | {"families": families}),
    }


def grant_schemas() -> Json:
    """Describe grants, one and many, with and without their events."""
    event = {
        "at": moment("The time of the event"),
        "event": text(enum=["requested", "authorized", *ENDS, "closed"]),
        "by": text("The cause: a principal's name, a grant's id, an AWS identity or service, or knock"),
        "reason": text("The reason of the end"),
        "left_out": {
            "type": "array",
            "items": text(),
            "description": "Names of targets that the knock did not name, and whose groups were gone",
        },
        "revoked": {
            "type": "array",
            "items": text(),
            "description": "The ids of rules that were revoked, at most 20",
        },
        "kept": {
            "type": "array",
            "items": text(),
            "description": "Rules that were kept, since other live grants claim them, at most 4",
        },
    }
    grant = {
        "id": GRANT_ID_TEXT,
        "status": text(enum=["pending", "active", *ENDS]),
        "principal": ref("Principal"),
        "source": text("The CIDR that the grant lets in", format=CIDR),
        "targets": {"type": "array", "items": ref("Target")},
        "requested_at": moment("The time of the knock"),
        "expires_at": moment("The time at which the grant expires", SECOND),
        "seconds_left": {
            "type": "integer",
            "minimum": 0,
            "description": "Seconds until it expires; 0 if it has ended",
        },
        "reason": or_null(text("The reason that the knock gave")),
        "renews": or_null(
            GRANT_ID_TEXT | {"description": "The grant that this one supersedes once it is active"}
        ),
        "ended_at": or_null(moment("The time at which it ended")),
        "ended_by": or_null(
            text("A principal's name, the grant that superseded it, an AWS identity or service, or knock")
        ),
        "execution_arn": text("The ARN of its execution in Step Functions", pattern="^arn:"),
        "caller": text("The address that this request came from, as a CIDR", format=CIDR),
    }
    left_out = {
        "type": "array",
        "items": text(pattern=exactly(TARGET_NAME.pattern)),
        "minItems": 1,
        "description": "Names of targets that the grant does not open: they have no address of its family",
    }
    grants = {"type": "array", "items": ref("Grant"), "maxItems": requests.LARGEST_PAGE}
    return {
        "Event": closed("An event in the life of a grant", event, "reason", "left_out", "revoked", "kept"),
        "Grant": closed("The decision to let a source reach targets for some time, and its state", grant),
        "Knocked": closed("The grant that a knock has started", grant | {"left_out": left_out}, "left_out"),
        "WholeGrant": closed(
            "A grant with its events",
            grant | {"events": {"type": "array", "items": ref("Event"), "minItems": 1}},
        ),
        "Grants": closed(
            "Grants, newest first",
            {
                "grants": grants,
                "cursor": or_null(text("The `cursor` of the next page; null on the last page")),
            },
        ),
        "EndedGrants": closed(
            "The grants that the call has ended",
            {
                "grants": grants,
                "more": {"type": "boolean", "description": "True if grants are left: repeat the call"},
            },
        ),
    }


def whoami_schemas() -> Json:
    """Describe the answer with the caller's rights."""
    whoami = {
        "principal": ref("Principal"),
        "source": text("The address that the request came from, as a CIDR", format=CIDR),
        "targets": {
            "type": "array",
            "items": ref("OpenableTarget"),
            "description": "The targets that the key may open",
        },
        "default_duration": text("The duration of a grant if the knock names none", format=DURATION),
        "max_duration": or_null(
            text(
                "The longest duration that the key may ask for; null if it may open nothing", format=DURATION
            )
        ),
        "until": or_null(moment("The time from which on the key opens nothing", SECOND)),
        "max_live": {
            "type": "integer",
            "minimum": 0,
            "description": "The most live grants that the key may have",
        },
        "live": {
            "type": "integer",
            "minimum": 0,
            "description": "The number of live grants that the key has",
        },
        "any_source": or_null(
            closed(
                "The shortest prefixes of sources that the key may name; null if it may name none",
                {
                    "ipv4": {"type": "integer", "minimum": WIDEST[4], "maximum": 32},
                    "ipv6": {"type": "integer", "minimum": WIDEST[6], "maximum": 128},
                },
            )
        ),
        "operator": {"type": "boolean", "description": "Whether the key may see and end everyone's grants"},
        "faults": {
            "type": "array",
            "items": text(),
            "description": "The malformed tags of the key, each with what is wrong",
        },
    }
    return {"Whoami": closed("The caller: its key, its address and its rights", whoami)}


def knock_schemas() -> Json:
    """Describe the body of a knock."""
    knock: Json = {
        "targets": {
            "type": ["array", "null"],
            "description": "Names of targets; all that the key may open if left out",
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
                "The source to let in, for keys that may name one; the caller's address if left out",
                maxLength=requests.LONGEST["source"],
                format=CIDR,
                examples=["203.0.113.7/32"],
            )
        ),
        "reason": or_null(
            line("reason", "Why access is needed: one line, for the trail") | {"examples": ["on call"]}
        ),
        "renews": or_null(
            GRANT_ID_TEXT
            | {"description": "A grant of the same key, which is superseded once the new one is active"}
        ),
    }
    return {"Knock": closed("A knock. Every field may be left out", knock, *requests.KNOCK_FIELDS)}


def gateway_schemas() -> Json:
    """Describe the body of an answer by API Gateway itself."""
    return {
        "GatewayAnswer": {
            "type": "object",
            "description": "An answer of API Gateway itself",
            "properties": {"message": or_null(text())},
            "required": ["message"],
            "additionalProperties": False,
        },
    }


PARAMETERS: dict[str, Json] = {
    "status": text(
        "The state of the grants; `live` is pending or active, `all` is any",
        enum=list(api.STATUSES),
        default="live",
    ),
    "limit": {"type": "integer", "minimum": 1, "maximum": requests.LARGEST_PAGE, "default": requests.PAGE},
    "cursor": text("The `cursor` of the previous page", format=CURSOR),
    "principal": line("principal", "The name of a principal; for operators"),
    "source": line("source", "A CIDR or an address") | {"format": CIDR},
    "target": line("target", "The name of a target"),
    "reason": line("reason", "Why the grant ends: one line, for the trail"),
}

# ---------------------------------------------------------------------------- problems


def tree(root: type[KnockError] = KnockError) -> Iterator[type[KnockError]]:
    """Walk through the errors of `errors`, parents first."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def sample(error: type[KnockError]) -> tuple[Json, dict[str, str]]:
    """Answer an error as the API does: (the problem, its headers)."""
    instance = error("part", "detail") if issubclass(error, (InvalidKnock, NotAllowed)) else error("detail")
    answer = answers.problem(instance)
    return json.loads(answer["body"]), answer["headers"]


def problem(error: type[KnockError]) -> Json:
    """Describe the problem of an error."""
    members = {
        "detail": text("An explanation, for people"),
        "field": text("The part of the request that is malformed"),
        "right": text("The tag of the key that is missing or malformed"),
        "families": {
            "type": "array",
            "items": text(enum=list(FAMILIES)),
            "minItems": 1,
            "description": "The address families over which the targets can be reached",
        },
        "grant_id": GRANT_ID_TEXT | {"description": "The grant that was started, or may have been"},
    }
    body, _ = sample(error)
    described = {name: members.get(name, {"const": value}) for name, value in body.items()}
    # Only in the answer to a knock, if its grant was started or may have been.
    started = {"grant_id": members["grant_id"]} if error in RAISES["knock"] else {}
    return closed((inspect.getdoc(error) or "").partition("\n")[0], described | started, *started)


_ANY = [KnockError, InvalidKnock, NotAllowed, errors.RightsUnavailable]
_TRAIL = [*_ANY, errors.StoreUnavailable, errors.StoreRefused]
_EVERY = list(tree())
_LATER = [error for error in _EVERY if issubclass(error, Unavailable)]

RAISES: dict[str, list[type[KnockError]]] = {
    # A knock that waits for its grant answers with the error of the task that opens it, which may be any.
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
    400: "A malformed header",
    403: "API Gateway does not know the key or the method",
    413: "The request has more than 10 MB",
    429: "The request limit of the key or the stage is reached; try again in a moment",
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
MEANS = {201: "The grant is active", 202: "The grant has started, and is not active yet"}


def headers(every: list[dict[str, str]], *, always: bool) -> Json:
    """Describe the headers of the answers with one status; `always` if the function sends all of those."""
    described: Json = {}
    for name in sorted({name for answer_headers in every for name in answer_headers} - {"Content-Type"}):
        values = {answer_headers.get(name) for answer_headers in every}
        same: Json = {"const": values.pop()} if len(values) == 1 and name != "Content-Security-Policy" else {}
        required = always and all(name in answer_headers for answer_headers in every)
        described[name] = {"required": required, "schema": text(**same)}
    return described


def response(status: int, schema: Json | None, problems: list[type[KnockError]]) -> Json:
    """Describe the answers with one status: of a schema, problems, the gateway's, or several of these."""
    content: Json = {}
    header_sets: list[dict[str, str]] = []
    if schema:
        content["application/json"] = {"schema": schema}
        header_sets.append(answers.answer(status, {})["headers"])
    if problems:
        content["application/problem+json"] = {"schema": {"oneOf": [ref(e.__name__) for e in problems]}}
        header_sets += [sample(error)[1] for error in problems]
    if status in GATEWAY:
        content["application/json"] = {"schema": ref("GatewayAnswer")}
    titles = sorted({error.title for error in problems})
    if len(titles) > 1:
        *some, last = (f'"{title}"' for title in titles)
        titles = [f"A problem with the title {', '.join(some)} or {last}"]
    words = [MEANS.get(status, HTTPStatus(status).phrase)] if schema else titles
    described = {"description": ". ".join([*words, *filter(None, [GATEWAY.get(status)])]), "content": content}
    described_headers = headers(header_sets, always=status not in GATEWAY)
    return described | ({"headers": described_headers} if described_headers else {})


def responses(call: Callable[..., Any]) -> Json:
    """Describe all answers of a call, by status."""
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
        page = api.console(None)["headers"]  # type: ignore[arg-type]  # it does not read the request
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
    """Describe a method of a resource."""
    answering = api.ROUTES[route.method, route.path]
    call = answering.call
    summary, _, details = (inspect.getdoc(call) or "").partition("\n\n")
    described: Json = {"operationId": call.__name__, "summary": summary}
    if details:
        described["description"] = details
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
            "description": "Errors are problems (RFC 9457), but for the answers of API Gateway itself.",
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
    """Give the text of the document's file."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(written(), encoding="utf-8")
