"""A small, honest double of the knock API, for the clients' tests.

It speaks HTTP on a free port of this machine, with the shapes of `docs/architecture.md` and of the
gateway before it, keeps grants in memory, and can be told to misbehave: that is what it is for. What the
clients do with a well-behaved API is also tested against the local stack, by the same tests.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PORTS = {"bastion": ["22/tcp"], "web": ["80/tcp", "443/tcp"]}


def stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


class Double:
    """The API. `source` is the address that callers seem to come from."""

    def __init__(self) -> None:
        self.keys = {name: f"{name}-{secrets.token_hex(16)}" for name in ("alice", "bob", "operator", "ci")}
        self.source = "203.0.113.7"
        self.ports = dict(PORTS)
        self.grants: dict[str, dict[str, Any]] = {}
        self.opens_after = 0.0  # seconds a grant stays pending; a knock answers 202 meanwhile
        self.fails = ""  # the reason a pending grant then fails
        self.page = 50
        self.clock = timedelta(0)  # how far this API's clock is off
        self.faults: list[Any] = []  # what to do to the next requests instead of answering
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
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

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/prod"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self.clock

    def calls(self, method: str, path: str = "") -> int:
        return sum(1 for call in self.seen if call[0] == method and call[1].startswith(f"/prod{path}"))

    # ------------------------------------------------------------------ one request

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            self.seen.append((handler.command, handler.path, headers, body))
            fault = self.faults.pop(0) if self.faults else None
        if fault == "drop":
            with suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
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

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        parts = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        # The gateway knows its routes before it looks at a key.
        if not re.fullmatch(r"/prod/(knock|whoami|grants(/[^/]+)?)", parts.path):
            return 403, {}, {"message": "Missing Authentication Token"}
        who = next((name for name, key in self.keys.items() if key == headers.get("x-api-key")), None)
        if who is None:
            return 403, {}, {"message": "Forbidden"}
        with self.lock:
            self.settle()
            return self.route(method, parts.path.removeprefix("/prod"), query, who, body)

    def route(
        self, method: str, path: str, query: dict[str, str], who: str, body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        one = re.fullmatch(r"/grants/([^/]+)", path)
        if path == "/knock" and method in ("GET", "POST"):
            return self.knock(who, json.loads(body or b"{}"))
        if path == "/whoami" and method == "GET":
            return 200, {}, self.whoami(who)
        if path == "/grants" and method == "GET":
            return self.listed(who, query)
        if one and method in ("GET", "DELETE"):
            grant = self.grants.get(unquote(one[1]))
            if grant is None or (who != "operator" and grant["principal"]["name"] != who):
                return problem(
                    404, "grant-not-found", f"there is no grant {unquote(one[1])!r} that this key may see"
                )
            if method == "DELETE" and grant["status"] in ("pending", "active"):
                self.end(grant, "revoked", who, query.get("reason", ""))
            return 200, {}, self.shown(grant) | {"events": grant["events"]}
        return 403, {}, {"message": "Missing Authentication Token"}

    # ------------------------------------------------------------------ the calls

    def knock(self, who: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        names = asked.get("targets") or sorted(self.ports)
        for name in names:
            if name not in self.ports:
                detail = f"the key may not open {name}; it may open: {', '.join(sorted(self.ports))}"
                return problem(403, "not-allowed", detail, right="knock:targets")
        caller = f"{self.source}/{128 if ':' in self.source else 32}"
        source = asked.get("source", caller)
        if source != caller and who != "ci":
            detail = f"the key may only open for the address it calls from, {caller}"
            return problem(403, "not-allowed", detail, right="knock:any-source")
        seconds = duration(asked.get("duration", "24h"))
        if not seconds:
            detail = "a duration is like 90m, 8h, 1h30m, 1d, PT8H or a number of seconds"
            return problem(400, "invalid-knock", detail, field="duration")
        at = self.now()
        end = at + timedelta(seconds=seconds)
        end = end.replace(microsecond=0) + timedelta(seconds=1 if end.microsecond else 0)
        where = re.sub(r"[^0-9A-Za-z]", "-", source.rpartition("/")[0])
        grant = {
            "id": f"{who}_{where}_{at:%Y%m%dT%H%M%SZ}_{secrets.token_hex(4)}",
            "status": "pending",
            "principal": {"id": f"id-{who}", "name": who},
            "source": source,
            "targets": [{"name": name, "ports": self.ports[name]} for name in sorted(set(names))],
            "requested_at": stamp(at),
            "expires_at": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "reason": asked.get("reason") or None,
            "ended_at": None,
            "ended_by": None,
            "opens": time.monotonic() + self.opens_after,
            "end": end,
            "events": [{"at": stamp(at), "event": "requested", "by": who}],
        }
        self.grants[grant["id"]] = grant
        self.settle()
        return (201 if grant["status"] == "active" else 202), {}, self.shown(grant)

    def settle(self) -> None:
        """Do what time alone does: open what was pending, end what is over."""
        for grant in list(self.grants.values()):
            if grant["status"] == "pending" and time.monotonic() >= grant["opens"]:
                if self.fails:
                    self.end(grant, "failed", "knock", self.fails)
                    continue
                grant["status"] = "active"
                grant["events"].append({"at": stamp(self.now()), "event": "authorized", "by": "knock"})
                for old in self.grants.values():
                    same = all(old[part] == grant[part] for part in ("principal", "source", "targets"))
                    if same and old is not grant and old["status"] == "active":
                        self.end(old, "superseded", grant["id"])
            if grant["status"] == "active" and self.now() >= grant["end"]:
                self.end(grant, "expired", "knock")

    def end(self, grant: dict[str, Any], status: str, by: str, reason: str = "") -> None:
        at = stamp(self.now())
        grant |= {"status": status, "ended_at": at, "ended_by": by}
        grant["events"].append({"at": at, "event": status, "by": by} | ({"reason": reason} if reason else {}))

    def shown(self, grant: dict[str, Any]) -> dict[str, Any]:
        live = grant["status"] in ("pending", "active")
        left = (grant["end"] - self.now()).total_seconds() if live else 0
        hidden = ("opens", "end", "events")
        return {name: value for name, value in grant.items() if name not in hidden} | {
            "seconds_left": max(0, int(left)),
            "execution_arn": f"arn:aws:states:eu-central-1:123456789012:execution:knock-grants:{grant['id']}",
        }

    def listed(self, who: str, query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        unknown = set(query) - {"status", "limit", "cursor", "principal", "source", "target"}
        if unknown:
            return problem(
                400, "invalid-knock", f"there is no query parameter {unknown}", field=unknown.pop()
            )
        if "principal" in query and who != "operator":
            return problem(
                403,
                "not-allowed",
                "only an operator may ask for a principal's grants",
                right="knock:operator",
            )
        status = query.get("status", "live")
        chosen = [
            grant
            for grant in self.grants.values()
            if (who == "operator" or grant["principal"]["name"] == who)
            and query.get("principal") in (None, grant["principal"]["name"])
            and query.get("source") in (None, grant["source"])
            and (query.get("target") is None or query["target"] in [t["name"] for t in grant["targets"]])
            and (
                status == "all"
                or grant["status"] in (("pending", "active") if status == "live" else (status,))
            )
        ]
        chosen.reverse()
        first, size = int(query.get("cursor", 0)), min(int(query.get("limit", self.page)), self.page)
        after = str(first + size) if len(chosen) > first + size else None
        shown = [self.shown(grant) for grant in chosen[first : first + size]]
        return 200, {}, {"grants": shown, "cursor": after}

    def whoami(self, who: str) -> dict[str, Any]:
        return {
            "principal": {"id": f"id-{who}", "name": who},
            "source": f"{self.source}/{128 if ':' in self.source else 32}",
            "targets": [{"name": name, "ports": ports} for name, ports in sorted(self.ports.items())],
            "default_duration": "1d",
            "max_duration": "1d",
            "any_source": {"ipv4": 28, "ipv6": 128} if who == "ci" else None,
            "operator": who == "operator",
            "faults": [],
        }


def problem(status: int, name: str, detail: str, **more: str) -> tuple[int, dict[str, str], Any]:
    titles = {400: "The request is malformed", 403: "The key may not do this", 404: "No such grant"}
    body = {"type": f"urn:knock:problem:{name}", "title": titles.get(status, "Refused"), "status": status}
    return status, {}, body | {"detail": detail} | more


def duration(asked: object) -> int:
    """Read the few shapes the clients' tests use; 0 for anything else."""
    match = re.fullmatch(r"(\d+)([smhd]?)", str(asked))
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0
