"""The embedded AWS as a whole: what `local.aws` puts over moto's server."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
from moto import backends
from moto.moto_server import werkzeug_app

from local.aws import _Dispatcher, _limits

HOSTS = ("sdb.eu-west-1.amazonaws.com", "ec2.eu-west-1.amazonaws.com", "states.us-east-1.amazonaws.com", None)


@pytest.mark.parametrize("host", HOSTS)
def test_a_call_goes_to_the_service_that_moto_itself_would_send_it_to(host: str | None) -> None:
    plain = werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
    ours = _Dispatcher(werkzeug_app.create_backend_app)
    assert ours.get_backend_for_host(host) == plain.get_backend_for_host(host)
    assert ours.get_backend_for_host(host) == plain.get_backend_for_host(host)


def test_motos_modules_are_listed_once_a_host_and_not_for_each_call() -> None:
    listing = mock.Mock(wraps=backends.list_of_moto_modules)
    with mock.patch.object(backends, "list_of_moto_modules", listing):
        for dispatcher, listed in (
            (werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app), 3),  # moto still does
            (_Dispatcher(werkzeug_app.create_backend_app), 1),
        ):
            listing.reset_mock()
            for _ in range(3):
                dispatcher.get_backend_for_host(HOSTS[0])
            assert listing.call_count == listed


@pytest.mark.parametrize("period", ["WEEK", "MONTH"])
def test_a_quota_that_is_not_by_day_is_refused_by_name(period: str) -> None:
    """The template's is refused before it gets here, but a plan may be changed while the stack runs."""
    plan = SimpleNamespace(id="p", throttle={}, quota={"limit": 5, "period": period})
    with pytest.raises(
        NotImplementedError, match=f"plan p has a quota a {period}; the local gateway counts by DAY"
    ):
        _limits(plan)
    plan.quota["period"] = "DAY"
    assert _limits(plan).quota == 5
