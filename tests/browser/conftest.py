"""Chromium and a local stack, shared by all tests of this package.

Every page is watched: an error in its console, an exception in its script, or a request to another origin
than the page's own fails the test.
"""

from __future__ import annotations

import json
import secrets
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.conftest import program
from tests.local_stack import LocalStack

SOURCE = "203.0.113.7"

# Without a sandbox, since root in a container cannot have one; the others keep Chromium from calling Google.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=10_000)


@dataclass(frozen=True)
class Key:
    """An API key made for one test, so that no test sees the grants of another."""

    id: str
    name: str
    value: str


class Stack(LocalStack):
    """A running local stack, where tests make keys and knock as the people at the console."""

    def key(self, name: str, **tags: str) -> Key:
        """Make a key with tags: `targets="*"` makes `knock:targets`. Its name gets a random suffix."""
        name, value = f"{name}-{secrets.token_hex(3)}", secrets.token_hex(20)
        tags = {f"knock:{tag.replace('_', '-')}": text for tag, text in {**tags, "name": name}.items()}
        apigateway = self.client("apigateway")
        created = apigateway.create_api_key(name=name, value=value, enabled=True, tags=tags)
        plan = apigateway.get_usage_plans()["items"][0]["id"]
        apigateway.create_usage_plan_key(usagePlanId=plan, keyId=created["id"], keyType="API_KEY")
        return Key(created["id"], name, value)

    def person(self, name: str = "alice", **tags: str) -> Key:
        """Make a key that may open every target for a day."""
        return self.key(name, targets="*", max_duration="24h", **tags)

    def disable(self, key: Key) -> None:
        off = {"op": "replace", "path": "/enabled", "value": "false"}
        self.client("apigateway").update_api_key(apiKey=key.id, patchOperations=[off])

    def call(
        self, key: Key, method: str, path: str, body: Any = None, source: str = SOURCE
    ) -> dict[str, Any]:
        """Call the knock API; any answer but 2xx is an error."""
        request = urllib.request.Request(  # noqa: S310  # the local stack's own address
            self.api_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"x-api-key": key.value, "X-Forwarded-For": source},
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310  # as above
            answer: dict[str, Any] = json.load(response)
        return answer

    def knock(self, key: Key, source: str = SOURCE, **body: Any) -> dict[str, Any]:
        return self.call(key, "POST", "/knock", body, source)

    def show(self, key: Key, grant_id: str) -> dict[str, Any]:
        return self.call(key, "GET", f"/grants/{grant_id}")


def seconds_granted(grant: dict[str, Any]) -> int:
    """Give how long a grant lasts; `expires_at` is the next whole second, so the fraction is cut off."""
    requested_at, expires_at = (
        datetime.fromisoformat(grant[name]) for name in ("requested_at", "expires_at")
    )
    return int((expires_at - requested_at).total_seconds())


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    with Stack.start() as running:
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    chromium = program("chromium", "install it with your system's package manager", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


@dataclass
class Visitor:
    """Opens the console page, and watches what each page does."""

    browser: Browser
    stack: Stack
    troubles: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def open(self, *, source: str = SOURCE, script: str = "", go: bool = True, **options: Any) -> Page:
        """Open the page in a new context; `script` runs before the page's own."""
        shape = {
            "viewport": {"width": 1280, "height": 900},
            "locale": "en-GB",
            "timezone_id": "Europe/Berlin",
            "reduced_motion": "reduce",
        }
        context = self.browser.new_context(extra_http_headers={"X-Forwarded-For": source}, **shape | options)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        self.watch(page)
        if go:
            page.goto(self.stack.console_url)
            expect(page.locator("#key")).to_be_focused()
        return page

    def watch(self, page: Page) -> None:
        origin = urlsplit(self.stack.console_url).netloc

        def on_request(request: Request) -> None:
            self.requests.append(request)
            place = urlsplit(request.url)
            if place.scheme != "data" and place.netloc != origin:
                self.troubles.append(f"a request left the origin: {request.url}")

        def on_console(message: Any) -> None:
            # Chromium logs every answer of 4xx as well, which is no error of the page.
            if message.type == "error" and not message.text.startswith("Failed to load resource"):
                self.troubles.append(f"console: {message.text}")

        page.on("request", on_request)
        page.on("console", on_console)
        page.on("pageerror", lambda error: self.troubles.append(f"exception: {error}"))

    def sign_in(self, page: Page, key: Key, *, keep: bool = False) -> Page:
        page.get_by_label("API key").fill(key.value)
        if keep:
            page.get_by_label("Keep it until I close this tab").check()
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#rooms")).to_be_visible()
        return page

    def enter(self, key: Key, **options: Any) -> Page:
        """Open the page and sign in with a key."""
        return self.sign_in(self.open(**options), key)

    def count_requests(self, method: str, path: str) -> int:
        """Count the requests so far to a path of the API, whatever their query."""
        return sum(
            request.method == method and urlsplit(request.url).path.endswith(path)
            for request in self.requests
        )


@pytest.fixture
def visitor(browser: Browser, stack: Stack) -> Iterator[Visitor]:
    visiting = Visitor(browser, stack)
    yield visiting
    for context in browser.contexts:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")  # the page may be asking for its grants just now
        context.close()
    assert visiting.troubles == []
