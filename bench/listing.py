"""The time of GET /grants with a long trail: ended grants are put directly into its domain."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

from bench import grants
from bench.report import Table, spread
from bench.scale import BenchError, Scale
from bench.stacks import Stack, local_up, new_source

LIVE = 20


def listing(scale: Scale) -> list[Table]:
    """Measure each kind of request, at each length of the trail."""
    table = Table(
        "GET /grants, by how many ended grants the trail holds",
        notes=[
            f"beside {LIVE} live ones; pages of 50",
            "deep page: from the middle of the trail; SimpleDB here is the local one, in memory",
        ],
    )
    with local_up() as stack:
        stack.add_target("bench", 1)
        live = [_open(stack) for _ in range(LIVE)]
        copies = grants.Past(stack)
        past: list[grants.Record] = []
        now = datetime.now(UTC)
        for length in scale.ended:
            new = [copies.grant(number, now) for number in range(len(past), length)]
            copies.put(new)
            past += new
            for name, path, query, count in _requests(past, live):
                answers = [stack.call("GET", path, "operator", **query) for _ in range(scale.listings)]
                _check(answers[-1].status, answers[-1].json, count)
                table.rows.append(
                    {
                        "ended grants": length,
                        "GET": name,
                        "grants in the answer": count,
                        **spread(answer.ms for answer in answers),
                    }
                )
    return [table]


def _open(stack: Stack) -> str:
    answer = stack.call("POST", "/knock", "ci", new_source(), {"targets": ["bench"], "duration": "8h"})
    if answer.status != 201:
        raise BenchError(f"a knock was answered with {answer.status}: {answer.json}")
    grant_id: str = answer.json["id"]
    return grant_id


def _requests(past: list[grants.Record], live: list[str]) -> list[tuple[str, str, dict[str, str], int]]:
    """List the kinds of requests: name, path, query, and how many grants the answer must have."""
    middle = base64.urlsafe_b64encode(past[len(past) // 2].grant.order.encode()).decode()
    of_user = sum(record.grant.principal.name == "user-07" for record in past)
    older = len(past) - len(past) // 2 - 1
    return [
        ("/grants (live)", "/grants", {}, len(live)),
        ("/grants?status=all", "/grants", {"status": "all"}, min(50, len(past) + len(live) + 1)),
        ("…&cursor=… (deep page)", "/grants", {"status": "all", "cursor": middle}, min(50, older)),
        (
            "…&principal=user-07",
            "/grants",
            {"status": "all", "principal": "user-07"},
            min(50, of_user),
        ),
        ("/grants/{id}, ended", f"/grants/{past[len(past) // 2].id}", {}, 1),
    ]


def _check(status: int, answer: dict[str, object], count: int) -> None:
    listed = answer.get("grants", [answer])
    if status != 200 or not isinstance(listed, list) or len(listed) != count:
        raise BenchError(f"GET /grants answered {status}, and not with {count} grants: {str(answer)[:200]}")
