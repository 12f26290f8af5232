"""A browser before the local stack: one of each for all tests here.

Every page is watched. An error in its console, an exception in its script, or a request to anywhere but the
page's own origin fails the test that did it, whatever else that test is about.
"""

from __future__ import annotations

import json
import os
import secrets
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.conftest import program
from tests.local_stack import LocalStack

SOURCE = "203.0.113.7"

# Without a sandbox, since a container's root has none; the others keep Chromium from calling its makers.
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
    """An API key made for one test, so that no test sees another's grants."""

    id: str
    name: str
    value: str


class Stack(LocalStack):
    """A running local stack, and the keys and knocks of the people before its console."""

    def key(self, name: str, **tags: str) -> Key:
        """Make a key; `targets="*"` is the tag `knock:targets`. Its name gets a random end."""
        name, value = f"{name}-{secrets.token_hex(3)}", secrets.token_hex(20)
        tags = {f"knock:{tag.replace('_', '-')}": text for tag, text in {**tags, "name": name}.items()}
        apigateway = self.client("apigateway")
        made = apigateway.create_api_key(name=name, value=value, enabled=True, tags=tags)
        plan = apigateway.get_usage_plans()["items"][0]["id"]
        apigateway.create_usage_plan_key(usagePlanId=plan, keyId=made["id"], keyType="API_KEY")
        return Key(made["id"], name, value)

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
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # as above
            said: dict[str, Any] = json.load(answer)
        return said

    def knock(self, key: Key, source: str = SOURCE, **asked: Any) -> dict[str, Any]:
        return self.call(key, "POST", "/knock", asked, source)

    def show(self, key: Key, grant_id: str) -> dict[str, Any]:
        return self.call(key, "GET", f"/grants/{grant_id}")


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

        def asked(request: Request) -> None:
            self.requests.append(request)
            place = urlsplit(request.url)
            if place.scheme != "data" and place.netloc != origin:
                self.troubles.append(f"a request left the origin: {request.url}")

        def said(message: Any) -> None:
            # That the API refused something is an answer, and no fault of the page.
            if message.type == "error" and not message.text.startswith("Failed to load resource"):
                self.troubles.append(f"console: {message.text}")

        page.on("request", asked)
        page.on("console", said)
        page.on("pageerror", lambda error: self.troubles.append(f"exception: {error}"))

    def come_in(self, page: Page, key: Key, *, keep: bool = False) -> Page:
        page.get_by_label("API key").fill(key.value)
        if keep:
            page.get_by_label("Keep it until I close this tab").check()
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#rooms")).to_be_visible()
        return page

    def enter(self, key: Key, **options: Any) -> Page:
        """Open the page and come in with a key."""
        return self.come_in(self.open(**options), key)

    def asked(self, method: str, path: str) -> int:
        """Count the requests so far to a path of the API, whatever their query."""
        return sum(
            1
            for request in self.requests
            if request.method == method and urlsplit(request.url).path.endswith(path)
        )


@pytest.fixture
def visitor(browser: Browser, stack: Stack) -> Iterator[Visitor]:
    visiting = Visitor(browser, stack)
    yield visiting
    for context in browser.contexts:
        context.close()
    assert visiting.troubles == []


UPDATE_SCREENSHOTS = os.environ.get("UPDATE_SCREENSHOTS") == "1"
