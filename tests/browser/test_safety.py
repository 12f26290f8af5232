"""Texts of the trail are data: none becomes markup, and no foreign script runs in the page."""

from __future__ import annotations

import base64
import hashlib
import re
import urllib.request

import pytest
from playwright.sync_api import Route, expect

from tests.conftest import ROOT

from .conftest import Stack, Visitor

PAGE = ROOT / "functions" / "console.html"

HOSTILE = [
    "<img src=x onerror=window.hit=1>",
    "</script><script>window.hit=1</script>",
    "\"'><svg onload=window.hit=1>",
    "{{constructor.constructor('window.hit=1')()}} ${window.hit=1}",
    "javascript:window.hit=1",
    "שלום <b>bold</b> 夜間 𝔘𝔫𝔦",
    "&lt;b&gt; &amp; &#x27;",
]


def test_a_hostile_reason_is_shown_as_the_text_it_is(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    page.on("dialog", lambda dialog: visitor.troubles.append(f"a dialog: {dialog.message}"))
    for number, reason in enumerate(HOSTILE):
        page.locator("#reason").fill(reason)
        page.get_by_role("button", name="Knock").click()
        expect(page.locator("#live > li:not(.leaves) .reason")).to_have_text(reason)
        page.locator("#live > li:not(.leaves)").get_by_role("button", name="Timeline").click()
        shown_reason = page.locator("#grant-facts dd", has_text=reason)
        expect(shown_reason).to_have_text(reason)
        expect(shown_reason).to_have_attribute("dir", "auto")
        page.locator("#grant-revoke").click()
        page.get_by_role("dialog").get_by_label("Reason").fill(reason)
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.locator("#past > li")).to_have_count(number + 1)
        expect(page.locator("#live > li")).to_have_count(0)  # or the history may still move under the pointer
        page.locator("#past button").first.click()
        expect(page.locator("#events .detail", has_text=f"“{reason}”")).to_be_visible()
        page.keyboard.press("Escape")
    assert page.evaluate("window.hit") is None
    assert page.locator("main img, main script, main svg[onload], main b:text-is('bold')").count() == 0


def test_an_event_that_the_page_does_not_know_is_shown_as_data(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    stack.knock(key)
    page = visitor.open()
    hostile = "<img src=x onerror=window.hit=1>"
    events = [
        {"at": "2026-11-23T21:17:19.123Z", "event": "__proto__", "by": "knock", "note": [hostile]},
        {"at": "2026-11-23T21:17:20.123Z", "event": hostile, "by": hostile, hostile: {"deep": hostile}},
        {"at": "2026-11-23T21:17:21.123Z", "event": "closed", "by": "knock", "revoked": [hostile]},
    ]

    def with_events(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"events": events})

    page.route("**/v1/grants/*", with_events)
    visitor.sign_in(page, key)
    page.locator("#live").get_by_role("button", name="Timeline").click()
    items = page.locator("#events > li")
    expect(items).to_have_count(3)
    expect(items.nth(0)).to_contain_text(f'note: ["{hostile}"]')
    expect(items.nth(1)).to_contain_text(f"{hostile}, by {hostile}")
    expect(items.nth(2)).to_contain_text(f"Rules revoked: {hostile}")
    assert page.evaluate("window.hit") is None


def test_control_and_bidi_characters_in_a_reason_are_refused(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    reason = page.locator("#reason")
    for character in ("\u202e", "\u2066", "\u200b", "\x07", "\u2028"):
        reason.fill(f"on{character}call")
        with page.expect_response("**/v1/knock") as answered:
            page.get_by_role("button", name="Knock").click()
        assert answered.value.status == 400
        expect(page.get_by_role("alert")).to_contain_text("reason must be one line of printable text")
        expect(reason).to_be_focused()
        expect(reason).to_have_attribute("aria-invalid", "true")
    assert stack.call(key, "GET", "/grants?status=all")["grants"] == []


def test_the_page_is_served_with_a_policy_made_for_it(stack: Stack) -> None:
    with urllib.request.urlopen(stack.console_url, timeout=30) as answer:  # noqa: S310  # the stack's own
        headers, page = answer.headers, answer.read().decode()
    assert page == PAGE.read_text(encoding="utf-8")

    def hashed(tag: str) -> str:
        [text] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": hashed("script"),
        "style-src": hashed("style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_the_browser_enforces_the_policy(stack: Stack, visitor: Visitor) -> None:
    page = visitor.open(go=False)
    page.add_init_script(
        """window.violations = [];
        document.addEventListener("securitypolicyviolation", ({ effectiveDirective: directive }) => {
            violations.push(directive);
        });"""
    )
    injected = (
        "<script>window.hit=1</script><img src=x onerror='window.hit=2'>"
        "<p id=styled style='position:fixed'></p><style>#styled { position: sticky }</style>"
        "<form action='/elsewhere' id=sent><button>send</button></form><base href='https://example.com/'>"
    )

    def inject(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("<main>", f"<main>{injected}"))

    page.route("**/v1/console", inject)
    page.goto(stack.console_url)
    expect(page.locator("#key")).to_be_focused()  # the page's own script runs all the same
    assert page.evaluate("window.hit") is None
    assert page.evaluate("getComputedStyle(document.querySelector('#styled')).position") == "static"
    sinks = """() => [
        () => { document.querySelector("main").innerHTML = "<b>bold</b>"; },
        () => { document.createElement("script").textContent = "window.hit = 3"; },
        () => { document.write("<b>bold</b>"); },
        () => { new DOMParser().parseFromString("<b>bold</b>", "text/html"); },
        () => { setTimeout("window.hit = 4"); },
    ].map(act => { try { act(); return "done"; } catch (error) { return error.name; } })"""
    assert page.evaluate(sinks) == ["TypeError"] * 5
    reach = "fetch('https://example.com/').then(() => 'reached', error => error.name)"
    assert page.evaluate(reach) == "TypeError"
    assert page.evaluate("navigator.sendBeacon('https://example.com/', 'x') && 'queued'") in ("queued", False)
    page.evaluate("document.querySelector('#sent').requestSubmit()")
    page.wait_for_function("violations.includes('form-action')")
    violated = set(page.evaluate("violations"))
    assert violated >= {
        "script-src-elem",
        "script-src-attr",
        "style-src-elem",
        "style-src-attr",
        "img-src",
        "base-uri",
        "connect-src",
        "require-trusted-types-for",
    }
    assert page.url == stack.console_url
    assert not [trouble for trouble in visitor.troubles if not trouble.startswith("console:")]
    visitor.troubles.clear()  # Chromium's messages about the violations


def test_the_page_cannot_be_framed(stack: Stack, visitor: Visitor) -> None:
    page = visitor.open(go=False)
    body = f"<iframe src='{stack.console_url}'></iframe>"
    page.route("**/framing", lambda route: route.fulfill(body=body, content_type="text/html"))
    page.goto(stack.api_url + "/framing")
    frame = page.frames[1]
    frame.wait_for_load_state()
    assert frame.locator("#key").count() == 0
    visitor.troubles.clear()


@pytest.mark.parametrize("path", ["/v1/console", "/v1/console/"])
def test_the_page_finds_the_api_beside_it(stack: Stack, visitor: Visitor, path: str) -> None:
    page = visitor.open(go=False)
    page.goto(stack.console_url.replace("/v1/console", path))
    visitor.sign_in(page, stack.person())
    assert visitor.count_requests("GET", "/v1/whoami") == 1
