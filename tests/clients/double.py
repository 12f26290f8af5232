"""A small, honest double of the knock API, for the clients' tests.

It speaks HTTP on a free port of this machine, with the shapes of `docs/architecture.md` and of the
gateway before it, and keeps grants in memory. It answers wrongly, late or not at all if a test wants that.
What the clients do with a well-behaved API is also tested against the local stack, by the same tests.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

PORTS = {"bastion": ["22/tcp"], "web": ["80/tcp", "443/tcp"]}
KNOCK_FIELDS = ("targets", "duration", "source", "reason", "renews")
FILTERS = ("status", "limit", "cursor", "principal", "source", "target")
STATUSES = ("live", "all", "expired", "revoked", "superseded", "failed")

Answer = tuple[int, dict[str, str], Any]


class Request(NamedTuple):
    """A recorded request. The names of its headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Held:
    """A fault: the answer is held until it is released, or for a minute. `waiting` is True meanwhile.

    It proves a time limit without a stopwatch: a caller that returned while this waits did not wait for it.
    """

    def __init__(self) -> None:
        self.waiting = False
        self._released = threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.waiting = True
        self._released.wait(60)
        self.waiting = False
        handler.close_connection = True

    def release(self) -> None:
        self._released.set()


class Refused(Exception):
    """The answer is a problem, which this carries."""

    def __init__(self, status: int, name: str, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.answer = problem(status, name, detail, **more)


def stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


class Double:
    """The API. `source` is the address that callers seem to come from."""

    def __init__(self) -> None:
        self.keys = {name: f"{name}-{secrets.token_hex(16)}" for name in ("alice", "bob", "operator", "ci")}
        self.source = "203.0.113.7"
        self.ports = dict(PORTS)
        self.grants: dict[str, dict[str, Any]] = {}
        self.max_live = {"ci": 1000}  # the others: 20
        self.full: set[str] = set()  # sources that have as many claims and rules as a source may have
        self.no_room = 0  # how many knocks find the pool full, before there is room
        self.families: dict[str, list[str]] = {}  # of targets that one kind of address reaches alone
        self.sources: dict[str, str] = {}  # where callers come from that call another address of this API
        self.opens_after = 0.0  # seconds a grant stays pending; a knock answers 202 meanwhile
        self.fails = ""  # the reason a pending grant then fails
        self.page = 50
        self.clock = timedelta(0)  # how far this API's clock is off
        self.frozen: datetime | None = None  # the time at which this API's clock stands still
        self.faults: list[Any] = []  # what to do to the next requests instead of answering
        self.requests: list[Request] = []
        self.called = ""  # the address of this API that the last request was for
        self.lock = threading.RLock()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args: Any) -> None:
                pass

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(time.time() + double.clock.total_seconds())

            def do_GET(self) -> None:
                double.serve(self)

            do_POST = do_DELETE = do_GET  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *args: Any) -> None:
                pass  # a client that hung up is what some tests are about

        self.make = partial(Server, RequestHandlerClass=Handler)
        self.server = self.make(("127.0.0.1", 0))
        self.further_servers: list[ThreadingHTTPServer] = []
        self.url = f"http://127.0.0.1:{self.server.server_port}/prod"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def also_at(self, address: str, source: str) -> None:
        """Answer at another address of this machine too, whose callers come from this source."""
        self.sources[address] = source
        self.further_servers.append(self.make((address, self.server.server_port)))
        threading.Thread(target=self.further_servers[-1].serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        for server in (self.server, *self.further_servers):
            server.shutdown()
            server.server_close()

    def now(self) -> datetime:
        return (self.frozen or datetime.now(timezone.utc)) + self.clock

    def freeze(self) -> None:
        """Let this API's clock stand at a whole second: how long a grant has left is then an exact number."""
        self.frozen = datetime.now(timezone.utc).replace(microsecond=0)

    def calls(self, method: str, path: str = "") -> int:
        """Count the requests of a method, for paths that begin so."""
        return sum(
            1
            for request in self.requests
            if request.method == method and request.path.startswith(f"/prod{path}")
        )

    # ------------------------------------------------------------------ one request

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            self.requests.append(Request(handler.command, handler.path, headers, body))
            self.called = str(handler.connection.getsockname()[0])
            fault = self.faults.pop(0) if self.faults else None
        if fault == "drop":
            self.drop(handler)
            return
        if isinstance(fault, (int, float)):
            time.sleep(fault)  # a slow answer, but the right one
        if callable(fault):
            fault(handler)
            return
        if isinstance(fault, tuple):
            status, more, answer = fault
        else:
            status, more, answer = self.answer(handler.command, handler.path, headers, body)
        self.send(handler, status, more, answer)

    def drop(self, handler: BaseHTTPRequestHandler) -> None:
        """Close the connection in place of an answer."""
        with suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    def send(self, handler: BaseHTTPRequestHandler, status: int, more: dict[str, str], answer: Any) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer, ensure_ascii=False).encode()
        kind = (
            "application/problem+json"
            if isinstance(answer, dict) and "title" in answer
            else "application/json"
        )
        handler.send_response(status)
        for name, value in ({"Content-Type": kind} | more).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(content)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        # The gateway knows its routes before it looks at a key.
        if not re.fullmatch(r"/prod/(knock|whoami|grants(/[^/]+)?)", parts.path):
            return 403, {}, {"message": "Missing Authentication Token"}
        principal = next((name for name, key in self.keys.items() if key == headers.get("x-api-key")), None)
        if principal is None:
            return 403, {}, {"message": "Forbidden"}
        with self.lock:
            self.update_grants()
            try:
                listing = method == "GET" and parts.path == "/prod/grants"
                check_query(query, FILTERS if listing else ("reason",) if method == "DELETE" else ())
                return self.route(method, parts.path.removeprefix("/prod"), query, principal, body)
            except Refused as refused:
                return refused.answer

    def route(self, method: str, path: str, query: dict[str, str], principal: str, body: bytes) -> Answer:
        grant_path = re.fullmatch(r"/grants/([^/]+)", path)
        if path == "/knock" and method == "POST":
            return self.knock(principal, read_body(body))
        if path == "/knock" and method == "GET":
            if body:
                raise Refused(400, "invalid-knock", "GET /knock takes no body: POST it", field="body")
            return self.knock(principal, {})
        if path == "/whoami" and method == "GET":
            return 200, {}, self.whoami(principal)
        if path == "/grants" and method == "GET":
            return self.list_grants(principal, query)
        if grant_path and method in ("GET", "DELETE"):
            grant = self.visible(unquote(grant_path[1]), principal)
            if method == "DELETE" and is_live(grant):
                self.end(grant, "revoked", principal, query.get("reason", ""))
            return 200, {}, self.as_json(grant) | {"events": grant["events"]}
        return 403, {}, {"message": "Missing Authentication Token"}

    def visible(self, grant_id: str, principal: str) -> dict[str, Any]:
        grant = self.grants.get(grant_id)
        if grant is None or (principal != "operator" and grant["principal"]["id"] != f"id-{principal}"):
            raise Refused(404, "grant-not-found", f"there is no grant {grant_id!r} that this key may see")
        return grant

    # ------------------------------------------------------------------ the calls

    @property
    def caller(self) -> str:
        source = self.sources.get(self.called, self.source)
        return f"{source}/{128 if ':' in source else 32}"

    def live(self, principal: str) -> list[dict[str, Any]]:
        return [g for g in self.grants.values() if g["principal"]["id"] == f"id-{principal}" and is_live(g)]

    def knock(self, principal: str, request: dict[str, Any]) -> Answer:
        names = request.get("targets") or sorted(self.ports)
        for name in names:
            if name not in self.ports:
                detail = f"the key may not open {name}; it may open: {', '.join(sorted(self.ports))}"
                raise Refused(403, "not-allowed", detail, right="knock:targets")
        source = cidr(request.get("source") or self.caller, "source")
        if source != self.caller and principal != "ci":
            detail = f"the key may only open for the address it calls from, {self.caller}"
            raise Refused(403, "not-allowed", detail, right="knock:any-source")
        seconds = duration(request.get("duration") or "24h")
        if not seconds:
            detail = "a duration is like 90m, 8h, 1h30m, 1d, PT8H or a number of seconds"
            raise Refused(400, "invalid-knock", detail, field="duration")
        renews = request.get("renews")
        if renews and self.visible(renews, principal)["principal"]["id"] != f"id-{principal}":
            raise Refused(404, "grant-not-found", f"there is no grant {renews!r} of this key")
        live = [grant["id"] for grant in self.live(principal) if grant["id"] != renews]
        if len(live) >= (most := self.max_live.get(principal, 20)):
            detail = f"the key has {len(live)} live grants, and may have {most}; end one of: {' '.join(live)}"
            raise Refused(409, "too-many-grants", detail)
        reachable = self.check_room(source, names)
        if source in self.full:
            raise Refused(409, "source-full", f"{source} has as many grants as a source may have")
        at = self.now()
        end = at + timedelta(seconds=seconds)
        end = end.replace(microsecond=0) + timedelta(seconds=1 if end.microsecond else 0)
        address = re.sub(r"[^0-9A-Za-z]", "-", source.rpartition("/")[0])
        grant = {
            "id": f"{principal}_{address}_{at:%Y%m%dT%H%M%SZ}_{secrets.token_hex(8)}",
            "status": "pending",
            "principal": {"id": f"id-{principal}", "name": principal},
            "source": source,
            "targets": [{"name": name, "ports": self.ports[name]} for name in sorted(set(reachable))],
            "requested_at": stamp(at),
            "expires_at": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "reason": request.get("reason") or None,
            "renews": renews,
            "ended_at": None,
            "ended_by": None,
            "opens": time.monotonic() + self.opens_after,
            "end": end,
            "events": [{"at": stamp(at), "event": "requested", "by": principal}],
        }
        self.grants[grant["id"]] = grant
        self.update_grants()
        left_out = sorted(set(names) - set(reachable))
        answer = self.as_json(grant) | ({"left_out": left_out} if left_out else {})
        return (201 if grant["status"] == "active" else 202), {}, answer

    def check_room(self, source: str, names: list[str]) -> list[str]:
        """Refuse a knock without room, and give the targets that the source's address family reaches."""
        if self.no_room:
            self.no_room -= 1
            raise Refused(409, "pool-exhausted", "every security group of bastion is full")
        family = "ipv6" if ":" in source else "ipv4"
        reachable = [name for name in names if family in self.families.get(name, [family])]
        if not reachable:
            other_family = "ipv4" if family == "ipv6" else "ipv6"
            detail = f"{' '.join(names)} can be reached by {other_family} alone"
            raise Refused(409, "wrong-family", detail, families=[other_family])
        return reachable

    def update_grants(self) -> None:
        """Open or fail the grants that were pending for long enough, and end those that have expired."""
        for grant in list(self.grants.values()):
            if grant["status"] == "pending" and time.monotonic() >= grant["opens"]:
                if self.fails:
                    self.end(grant, "failed", "knock", self.fails)
                    continue
                grant["status"] = "active"
                grant["events"].append({"at": stamp(self.now()), "event": "authorized", "by": "knock"})
                if (old := self.grants.get(grant["renews"] or "")) and is_live(old):
                    self.end(old, "superseded", grant["id"])
            if grant["status"] == "active" and self.now() >= grant["end"]:
                self.end(grant, "expired", "knock")

    def end(self, grant: dict[str, Any], status: str, by: str, reason: str = "") -> None:
        at = stamp(self.now())
        grant |= {"status": status, "ended_at": at, "ended_by": by}
        grant["events"].append({"at": at, "event": status, "by": by} | ({"reason": reason} if reason else {}))

    def as_json(self, grant: dict[str, Any]) -> dict[str, Any]:
        seconds = (grant["end"] - self.now()).total_seconds() if is_live(grant) else 0
        hidden = ("opens", "end", "events")
        return {name: value for name, value in grant.items() if name not in hidden} | {
            "seconds_left": max(0, int(seconds)),
            "caller": self.caller,
            "execution_arn": f"arn:aws:states:eu-central-1:123456789012:execution:knock-grants:{grant['id']}",
        }

    def list_grants(self, principal: str, query: dict[str, str]) -> Answer:
        if "principal" in query and principal != "operator":
            detail = "only an operator may ask for a principal's grants"
            raise Refused(403, "not-allowed", detail, right="knock:operator")
        status = query.get("status", "live")
        if status not in STATUSES:
            raise Refused(400, "invalid-knock", f"status must be one of {STATUSES}", field="status")
        source = cidr(query["source"], "source") if "source" in query else None
        chosen = [
            grant
            for grant in self.grants.values()
            if (principal == "operator" or grant["principal"]["name"] == principal)
            and query.get("principal") in (None, grant["principal"]["name"])
            and source in (None, grant["source"])
            and (query.get("target") is None or query["target"] in [t["name"] for t in grant["targets"]])
            and (status in ("all", grant["status"]) or (status == "live" and is_live(grant)))
        ]
        chosen.reverse()
        first, size = int(query.get("cursor", 0)), min(int(query.get("limit", self.page)), self.page)
        after = str(first + size) if len(chosen) > first + size else None
        grants = [self.as_json(grant) for grant in chosen[first : first + size]]
        return 200, {}, {"grants": grants, "cursor": after}

    def whoami(self, principal: str) -> dict[str, Any]:
        return {
            "principal": {"id": f"id-{principal}", "name": principal},
            "source": self.caller,
            "targets": [
                {"name": name, "ports": ports, "families": self.families.get(name)}
                for name, ports in sorted(self.ports.items())
            ],
            "default_duration": "1d",
            "max_duration": "1d",
            "any_source": {"ipv4": 28, "ipv6": 128} if principal == "ci" else None,
            "until": None,
            "operator": principal == "operator",
            "max_live": self.max_live.get(principal, 20),
            "live": len(self.live(principal)),
            "faults": [],
        }


def is_live(grant: dict[str, Any]) -> bool:
    return grant["status"] in ("pending", "active")


def check_query(query: dict[str, str], known: tuple[str, ...]) -> None:
    for name in query:
        if name not in known:
            raise Refused(400, "invalid-knock", f"there is no query parameter {name!r} here", field=name)


def read_body(body: bytes) -> dict[str, Any]:
    request = json.loads(body or b"{}")
    for name, value in request.items():
        if name not in KNOCK_FIELDS:
            raise Refused(400, "invalid-knock", f"there is no field {name!r}", field=name)
        types = {"targets": list, "duration": (int, str)}.get(name, str)
        if not isinstance(value, types) or value == []:
            raise Refused(400, "invalid-knock", f"{name} has a wrong type or is empty", field=name)
    return dict(request)


def cidr(text: str, field: str) -> str:
    """Write a source in its canonical form, and refuse a malformed one."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise Refused(400, "invalid-knock", f"{text!r} is not a CIDR", field=field) from None


def problem(status: int, name: str, detail: str, **more: Any) -> Answer:
    titles = {
        400: "The request is malformed",
        403: "The key may not do this",
        404: "No such grant",
        409: "There is no room",
    }
    body = {"type": f"urn:knock:problem:{name}", "title": titles.get(status, "Refused"), "status": status}
    return status, {}, body | {"detail": detail} | more


def duration(value: object) -> int:
    """Read the few shapes the clients' tests use; 0 for anything else."""
    match = re.fullmatch(r"(?:PT)?(\d+)([smhd]?)", str(value), re.IGNORECASE)
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2].lower()] if match else 0
