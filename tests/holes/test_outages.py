"""Outages in the middle of a grant's end: it ends all the same, and its end is recorded and counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from grants.errors import EngineUnavailable, IngressThrottled, KnockError, StoreUnavailable
from grants.executions import Executions
from grants.ingress import Ingress
from grants.simpledb import SimpleDb
from tests.harness import Knock


@contextmanager
def outage(owner: type, method: str, error: KnockError, times: float = float("inf")) -> Iterator[None]:
    """Have a method of an adapter fail `times` times."""
    real: Callable[..., Any] = getattr(owner, method)
    left = [times]

    def call(*arguments: Any, **options: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise error
        return real(*arguments, **options)

    with mock.patch.object(owner, method, call):
        yield


OUTAGES: dict[str, tuple[type, str, KnockError]] = {
    "stores": (SimpleDb, "_call", StoreUnavailable("SimpleDB did not answer")),
    "EC2": (Ingress, "revoke", IngressThrottled("RequestLimitExceeded")),
}


class TestStopInAnOutage:
    @pytest.mark.parametrize("hours", [5 / 60, 5])
    @pytest.mark.parametrize("service", OUTAGES)
    def test_the_rules_are_closed_soon_after_the_outage_without_the_guard(
        self, knock: Knock, service: str, hours: float
    ) -> None:
        """An event is delivered three times at most, and an execution that was stopped has no timer.

        Mutation: statemachine/close.asl.json: `"MaxAttempts": 1000,` -> `"MaxAttempts": 0,`
        """
        grant = knock.open(duration="8h")
        outage_ends = knock.clock.now() + timedelta(hours=hours)
        with outage(*OUTAGES[service]):
            knock.client("stepfunctions").stop_execution(
                executionArn=grant["execution_arn"], cause="laptop stolen"
            )
            step = timedelta(hours=hours) / 100
            knock.wait(lambda: knock.clock.now() >= outage_ends, "the outage lasts", 60, step=step)
            closed = len(knock.rules()) == 0
            assert closed == (service == "stores")  # by force, from the event's own input
        ended = knock.clock.now()
        knock.wait(
            lambda: knock.closings() == ["SUCCEEDED"], "the grant is not closed", step=timedelta(seconds=10)
        )
        assert knock.clock.now() - ended < timedelta(minutes=20)
        assert knock.rules() == set()
        revoked = knock.grant(grant["id"])
        assert (revoked["status"], revoked["ended_by"]) == ("revoked", "an AWS operator")
        assert revoked["events"][-1]["event"] == "closed"

    def test_a_closing_without_an_input_goes_by_tags_while_the_stores_are_down(self, knock: Knock) -> None:
        """The closing of an event without an input, or of an id alone.

        Mutation: functions/revoke.py: `            revoke_own(operations, grant_id)` -> `            pass`
        """
        by = {"by": {"id": "k", "name": "operator"}, "how": "revoked"}
        for number, closing in enumerate(({"detail": {"status": "ABORTED"}}, by)):
            grant = knock.open(caller=f"198.51.100.{number}")
            neighbour = knock.open("bob", caller=f"198.51.100.{number + 100}")
            knock.clock.advance(timedelta(minutes=4))  # longer than an id may be unknown to EC2
            payload: dict[str, Any] = closing | {"grant": {"grant_id": grant["id"]}}
            if "detail" in closing:
                payload = {"detail": closing["detail"] | {"name": grant["id"]}}  # type: ignore[operator]
            with outage(*OUTAGES["stores"]):
                knock.invoke("knock-revoke", _json({"how": "close", "closing": payload}))
                assert len(knock.rules()) == 6
                knock.invoke("knock-revoke", _json({"how": "force-close", "closing": payload}))
                assert len(knock.rules()) == 3
            knock.call("revoke", {"how": "force-close", "closing": payload})
            assert knock.grant(grant["id"])["status"] == "revoked"
            knock.request("DELETE", f"/grants/{neighbour['id']}", key="bob")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


class TestDeleteHalfDone:
    @pytest.mark.parametrize("service", OUTAGES)
    def test_the_grant_is_closed_and_its_execution_stopped(self, knock: Knock, service: str) -> None:
        """Mutation: functions/revoke.py:
        `    operations.executions.stop(grant_id, how.capitalize(), cause)` -> `    pass`
        """
        grant = knock.open(duration="8h")

        def cut(name: str, payload: Any) -> None:
            if name.endswith("-revoke") and payload["how"] == "revoked":
                raise OUTAGES[service][2]

        knock.before_invoke = cut
        assert knock.request("DELETE", f"/grants/{grant['id']}").status == 503
        knock.wait(lambda: not knock.rules(), "the rules stay open")
        knock.wait(lambda: set(knock.closings()) == {"SUCCEEDED"}, "its closing does not end")
        assert knock.execution_status(grant["id"]) == "ABORTED"
        revoked = knock.grant(grant["id"])
        assert (revoked["status"], revoked["ended_by"]) == ("revoked", "alice")
        knock.clock.advance(timedelta(hours=1))
        assert knock.call("guard", {})["findings"] == []

    def test_an_execution_whose_stop_failed_is_stopped_later(self, knock: Knock) -> None:
        """The rules are gone by then; the execution would run on, and be listed as a live grant."""
        grant = knock.open(duration="8h")
        with outage(Executions, "stop", EngineUnavailable("ThrottlingException"), times=1):
            assert knock.request("DELETE", f"/grants/{grant['id']}").status == 503
        assert knock.rules() == set()
        knock.wait(lambda: knock.execution_status(grant["id"]) == "ABORTED", "its execution runs on")


class TestRecords:
    def test_a_stop_that_fails_in_a_renewal_is_tried_again(self, knock: Knock) -> None:
        """Mutation: functions/grants/opening.py:
        `            logger.warning("supersede_queued", extra={"grant_id": grant.id}, exc_info=True)` ->
        `            raise`
        """
        old = knock.open(duration="8h")
        with outage(Executions, "stop", EngineUnavailable("ThrottlingException"), times=1):
            new = knock.open(duration="8h", renews=old["id"])
            knock.wait(lambda: knock.execution_status(old["id"]) == "ABORTED", "its execution runs on")
        assert knock.grant(old["id"])["status"] == "superseded"
        assert knock.grant(new["id"])["status"] == "active"
        assert len(knock.rules()) == 3

    def test_a_close_whose_answer_was_lost_is_counted_once(self, knock: Knock) -> None:
        """Mutation: functions/grants/trail.py:
        `            return self._store.get(grant_id).get("closer") == (values["closer"],)` ->
        `            return False`
        """
        grant = knock.open(duration="1h")
        real, lost = SimpleDb._call, [1]

        def call(self: SimpleDb, operation: str, **arguments: Any) -> Any:
            answer = real(self, operation, **arguments)
            if "closer" in str(arguments) and lost[0]:
                lost[0] -= 1
                raise StoreUnavailable("SimpleDB did not answer")
            return answer

        with mock.patch.object(SimpleDb, "_call", call):
            knock.advance_to(grant["expires_at"])
            knock.wait_status(grant["id"], "SUCCEEDED", step=timedelta(seconds=1))
        names = [name for name, _ in knock.metrics]
        assert lost == [0]
        assert (names.count("GrantEnded"), names.count("RevocationLag")) == (1, 1)

    def test_every_refusal_is_on_record(self, knock: Knock) -> None:
        """Mutation: functions/api.py:
        `        error = NotAllowed(TAG_OPERATOR, "only an operator may end grants by a filter")` ->
        `        raise NotAllowed(TAG_OPERATOR, "only an operator may end grants by a filter")`
        """
        for method in ("GET", "DELETE"):
            assert knock.request(method, "/grants", principal="bob").status == 403
        assert [refusal["call"] for refusal in knock.refusals()] == ["GET /grants", "DELETE /grants"]
