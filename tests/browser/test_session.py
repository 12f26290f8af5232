"""Signing in, staying signed in and signing out; what the page does when the API fails."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.waiting import wait_for

from .conftest import Stack, Visitor

LIST = re.compile(r"/v1/grants\?")


def storage(page: Page) -> Any:
    """Read everything that a page can store in a browser."""
    return page.evaluate("[{ ...sessionStorage }, { ...localStorage }, document.cookie]")


def test_a_wrong_key_is_refused_in_words_and_can_be_mended(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.open()
    field, alert = page.get_by_label("API key"), page.get_by_role("alert")
    page.get_by_role("button", name="Continue").click()
    expect(alert).to_have_text("Enter your API key")
    for wrong, words in (
        (key.value[:-1], "This key is not accepted"),
        ("clé d’accès", "This is not an API key"),
        (f"{key.value} {key.value}", "This is not an API key"),
    ):
        field.fill(wrong)
        page.get_by_role("button", name="Continue").click()
        expect(alert).to_contain_text(words)
        expect(field).to_be_focused()
        expect(field).to_have_attribute("aria-invalid", "true")
    visitor.sign_in(page, key)
    expect(alert).to_have_count(0)
    expect(page.locator("#door-title")).to_be_focused()
    expect(field).to_have_value("")


def test_a_key_stays_in_memory_unless_the_person_says_otherwise(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    assert storage(page) == [{}, {}, ""]
    page.reload()
    expect(page.get_by_label("API key")).to_be_focused()

    visitor.sign_in(page, key, keep=True)
    page.reload()
    expect(page.get_by_role("heading", name="The door is closed")).to_be_visible()
    assert storage(page)[0] == {"knock-key": key.value}

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_focused()
    expect(page.get_by_label("API key")).to_have_value("")
    expect(page.get_by_role("checkbox")).not_to_be_checked()
    expect(page.locator("#rooms")).to_be_hidden()
    assert storage(page) == [{}, {}, ""]
    page.reload()
    expect(page.get_by_label("API key")).to_be_focused()


def test_signing_out_leaves_nothing_of_the_last_person_on_the_page(stack: Stack, visitor: Visitor) -> None:
    alice, bob = stack.person("alice"), stack.person("bob")
    stack.knock(alice, reason="a matter of alice's")
    page = visitor.enter(alice)
    expect(page.locator("#live > li")).to_have_count(1)
    page.locator("#reason").fill("another matter")
    page.get_by_role("checkbox", name="web").uncheck()
    page.get_by_role("button", name="Sign out").click()
    assert alice.name not in page.content()
    assert "matter" not in page.content()
    page.route(LIST, lambda route: route.abort())  # the page shows what it remembers only
    visitor.sign_in(page, bob)
    expect(page.get_by_role("heading", name="The door is closed")).to_be_visible()
    expect(page.locator("#reason")).to_have_value("")
    expect(page.get_by_role("checkbox", name="web")).to_be_checked()
    expect(page.locator("#live > li")).to_have_count(0)


def test_the_key_is_sent_in_its_header_and_nowhere_else(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    page.get_by_role("button", name="Knock").click()
    expect(page.locator("#live > li")).to_have_count(1)
    page.locator("#live").get_by_role("button", name="Timeline").click()
    expect(page.locator("#events > li")).to_have_count(2)
    calls = [request for request in visitor.requests if request.resource_type == "fetch"]
    assert len(calls) >= 4
    for request in visitor.requests:
        headers = request.headers
        assert headers.pop("x-api-key", None) == (key.value if request in calls else None)
        assert key.value not in request.url + str(headers) + (request.post_data or "")
    assert key.value not in page.content()
    assert key.value not in page.url


def test_a_key_disabled_mid_session_ends_it_and_loses_nothing(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.open()
    visitor.sign_in(page, key, keep=True)
    page.locator("#reason").fill("the queue is stuck")
    page.get_by_role("checkbox", name="web").uncheck()
    stack.disable(key)
    page.get_by_role("button", name="Knock").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Your session has ended")
    expect(alert).to_contain_text("Your knock opened nothing; what you typed is still in the form")
    expect(alert).to_contain_text("Grants that run keep their end")
    expect(page.get_by_label("API key")).to_be_focused()
    expect(page.locator("#rooms")).to_be_hidden()
    assert storage(page)[0] == {}

    visitor.sign_in(page, stack.person())
    expect(page.locator("#reason")).to_have_value("the queue is stuck")
    expect(page.get_by_role("checkbox", name="web")).not_to_be_checked()


def test_a_key_disabled_while_a_timeline_is_open_ends_the_session(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    stack.knock(key)
    page = visitor.enter(key)
    page.locator("#live").get_by_role("button", name="Timeline").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    stack.disable(key)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.get_by_role("alert")).to_contain_text("Your session has ended")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_kept_key_that_is_no_longer_valid_is_removed_at_the_start(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.open()
    visitor.sign_in(page, key, keep=True)
    page.wait_for_load_state("networkidle")  # or a request of this page would end the session already
    stack.disable(key)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("Your session has ended")
    assert storage(page)[0] == {}


def test_a_kept_key_outlives_a_start_without_a_network(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.open()
    visitor.sign_in(page, key, keep=True)
    page.route("**/v1/whoami", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("Knock cannot be reached")
    page.unroute("**/v1/whoami")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", name="The door is closed")).to_be_visible()
    assert storage(page)[0] == {"knock-key": key.value}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({}, "This key may open no target"),
        ({"targets": "*"}, "This key has no longest duration"),
        ({"operator": "true"}, "It sees everyone’s grants"),
        (
            {"targets": "*", "max_duration": "soon"},
            "The tag knock:max-duration of the key",
        ),
    ],
)
def test_a_key_without_rights_reads_which_it_lacks(
    stack: Stack, visitor: Visitor, tags: dict[str, str], words: str
) -> None:
    page = visitor.enter(stack.key("newcomer", **tags))
    expect(page.locator("#hall")).to_contain_text(words)
    expect(page.get_by_role("button", name="Knock")).to_have_count(0)


# ---------------------------------------------------------------------------- failures, and refreshing


def fail_list(page: Page, status: int, body: dict[str, Any], **headers: str) -> None:
    """Have the API answer the list of grants with a failure from now on."""
    kind = {"content-type": "application/problem+json" if "type" in body else "application/json"}
    page.route(LIST, lambda route: route.fulfill(status=status, json=body, headers=kind | headers))


UNAVAILABLE = {
    "type": "urn:knock:problem:trail-unavailable",
    "title": "Try again in a moment",
    "status": 503,
    "detail": "SimpleDB did not answer select: ReadTimeoutError",
}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (503, UNAVAILABLE, "Try again in a moment. SimpleDB did not answer select"),
        (429, {"message": "Too Many Requests"}, "Too many requests. The key’s usage plan asks for a pause"),
        (429, {"message": "Limit Exceeded"}, "This key has made all its requests of today"),
        (504, {"message": "Endpoint request timed out"}, "(504). Endpoint request timed out"),
    ],
)
def test_a_list_that_fails_is_reported_and_the_last_one_stays(
    stack: Stack, visitor: Visitor, status: int, body: dict[str, Any], words: str
) -> None:
    key = stack.person()
    stack.knock(key)
    page = visitor.enter(key)
    expect(page.locator("#live > li")).to_have_count(1)
    fail_list(page, status, body)
    page.evaluate("dispatchEvent(new Event('online'))")
    notice = page.get_by_role("alert")
    expect(notice).to_contain_text(words)
    expect(notice).to_contain_text("What you see is from")
    expect(page.locator("#live > li")).to_have_count(1)
    page.unroute(LIST)
    page.get_by_role("button", name="Try now").click()
    expect(notice).to_have_count(0)


def test_a_knock_without_an_answer_says_that_it_may_have_arrived(stack: Stack, visitor: Visitor) -> None:
    page = visitor.enter(stack.person())
    page.route("**/v1/knock", lambda route: route.abort())
    page.locator("#reason").fill("on call")
    page.get_by_role("button", name="Knock").click()
    expect(page.get_by_role("alert")).to_contain_text("It is not known whether your knock arrived")
    expect(page.locator("#reason")).to_have_value("on call")
    expect(page.get_by_role("button", name="Knock")).to_be_focused()


def test_a_revocation_that_fails_says_so_in_its_dialog(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    grant = stack.knock(key)
    page = visitor.enter(key)
    grant_path = re.compile(r"/v1/grants/")
    kind = {"content-type": "application/problem+json"}
    page.route(grant_path, lambda route: route.fulfill(status=503, json=UNAVAILABLE, headers=kind))
    page.locator("#live").get_by_role("button", name="Revoke").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("done")
    dialog.get_by_role("button", name="Revoke").click()
    expect(dialog.get_by_role("alert")).to_contain_text("SimpleDB did not answer")
    expect(dialog.get_by_label("Reason")).to_have_value("done")
    assert stack.show(key, grant["id"])["status"] == "active"
    page.unroute(grant_path)
    dialog.get_by_role("button", name="Revoke").click()
    expect(page.locator("#past > li")).to_contain_text("revoked")


# Counts the answers that the page waits for, so that a test can wait for them too.
BUSY = """
    window.busy = 0;
    const { fetch } = window, { json } = Response.prototype;
    const counted = (call) => async function (...all) {
        try { return await call.apply(this, all); } finally { window.busy -= 1; }
    };
    Response.prototype.json = counted(json);
    window.fetch = (...all) => {
        window.busy += 1;
        return fetch(...all).catch(counted((error) => { throw error; }));
    };
"""


class Clocked:
    """A page whose timers a test moves; its requests to the API take real time."""

    def __init__(self, visitor: Visitor, page: Page) -> None:
        self.visitor, self.page = visitor, page

    def wait_until_idle(self) -> None:
        idle = lambda: self.page.evaluate("!window.busy")  # noqa: E731
        wait_for(idle, "the page waits for an answer that does not come", 20)

    def count_refreshes(self, seconds: int, step: int = 1) -> int:
        """Move the page's timers, and count the requests for the list of grants meanwhile."""
        self.wait_until_idle()
        before = self.visitor.count_requests("GET", "/v1/grants")
        for _ in range(0, seconds, step):
            self.page.clock.run_for(step * 1000)
            self.wait_until_idle()
        return self.visitor.count_requests("GET", "/v1/grants") - before


@pytest.fixture
def clocked(stack: Stack, visitor: Visitor) -> Clocked:
    page = visitor.open(go=False, script=BUSY)
    page.clock.install()
    page.goto(stack.console_url)
    visitor.sign_in(page, stack.person())
    expect(page.locator("#live-empty")).to_be_visible()
    return Clocked(visitor, page)


def test_the_page_refreshes_often_while_it_is_used_and_seldom_when_it_is_not(clocked: Clocked) -> None:
    assert 4 <= clocked.count_refreshes(25, 5) <= 6
    clocked.count_refreshes(120, 20)
    assert 1 <= clocked.count_refreshes(90, 10) <= 4
    clocked.page.keyboard.press("Shift")
    assert 4 <= clocked.count_refreshes(25, 5) <= 7


def test_a_hidden_page_sends_no_request_and_refreshes_when_it_is_shown(clocked: Clocked) -> None:
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    count = clocked.visitor.count_requests
    before = count("GET", "/v1/grants")
    clocked.page.evaluate(hide, True)
    clocked.count_refreshes(300, 60)
    assert count("GET", "/v1/grants") == before

    before = count("GET", "/v1/whoami")
    clocked.page.evaluate(hide, False)
    clocked.wait_until_idle()  # whoami as well: the network, and so the source, may have changed
    assert count("GET", "/v1/whoami") == before + 1

    before = count("GET", "/v1/grants")
    # Hidden again while a request has no answer yet.
    clocked.page.evaluate(f"dispatchEvent(new Event('online')); ({hide})(true)")
    clocked.count_refreshes(300, 60)
    assert count("GET", "/v1/grants") == before + 1


def test_a_busy_api_is_not_asked_again_before_its_retry_after(clocked: Clocked) -> None:
    clocked.page.route(
        LIST,
        lambda route: route.fulfill(
            status=429, json={"message": "Too Many Requests"}, headers={"retry-after": "90"}
        ),
    )
    assert clocked.count_refreshes(6) == 1
    expect(clocked.page.get_by_role("alert")).to_contain_text("Too many requests")
    assert clocked.count_refreshes(80, 10) == 0
    assert clocked.count_refreshes(10) == 1


def test_a_failing_api_is_asked_less_and_less_often(clocked: Clocked) -> None:
    def abort(route: Route) -> None:
        route.abort()

    clocked.page.route(LIST, abort)
    counts = [clocked.count_refreshes(60, 5) for _ in range(3)]
    assert counts[0] >= 3
    assert counts[2] <= 1
    clocked.page.unroute(LIST, abort)
    clocked.count_refreshes(60, 10)
    expect(clocked.page.get_by_role("alert")).to_have_count(0)
