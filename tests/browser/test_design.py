"""Accessibility: by keyboard alone, by screen reader, on a phone, in light and dark, and with less motion."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import ROOT, WRITE_DOCS, need

from .conftest import Key, Stack, Visitor, seconds_granted

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
PICTURE = ROOT / "docs" / "console.png"
PICTURE_SIZE = (1280, 1020)
PHONE = {"width": 360, "height": 740}

LONG = "a-reason-that-somebody-wrote-without-a-single-space-" + "x" * 150


@pytest.fixture
def full(stack: Stack) -> Key:
    """An operator's key with every right, and live and ended grants with short and long texts."""
    key = stack.key("operator", operator="true", targets="*", max_duration="24h", any_source="/28")
    stack.knock(key, "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", targets=["web"], reason=LONG)
    stack.knock(key, "203.0.113.7", duration="9m", reason="on call")
    for source in ("198.51.100.1", "2001:db8:1111:2222:3333:4444:5555:6666"):
        grant = stack.knock(key, source, targets=["bastion"], reason=LONG)
        stack.call(key, "DELETE", f"/grants/{grant['id']}?reason={LONG}")
    return key


def show(page: Page, key: Key) -> None:
    """Let an operator's page show only the grants of its own key, and all of them."""
    page.get_by_label("Principal").fill(key.name)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#live > li")).to_have_count(2)
    expect(page.locator("#past > li")).to_have_count(2)


def scenes(page: Page, visitor: Visitor, key: Key) -> Any:
    """Bring the page into each of its states, and yield the name of each."""
    yield "the gate"
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_be_visible()
    yield "a wrong key"
    visitor.sign_in(page, key)
    show(page, key)
    yield "the rooms"
    page.locator("#duration").fill("soon")
    page.get_by_role("button", name="Knock").click()
    expect(page.get_by_role("alert")).to_be_visible()
    yield "a refused knock"
    page.locator("#past button").first.click()
    expect(page.locator("#events > li")).to_have_count(4)
    yield "a timeline"
    page.keyboard.press("Escape")
    page.locator("#live").get_by_role("button", name="Revoke").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    yield "revoking"
    page.keyboard.press("Escape")
    page.get_by_label("Principal").fill("nobody-of-that-name")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#live-empty")).to_be_visible()
    yield "nothing found"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(stack: Stack, visitor: Visitor, full: Key, scheme: str) -> None:
    need(AXE.exists(), "axe-core is not installed: npm ci")
    page = visitor.open(color_scheme=scheme)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for scene in scenes(page, visitor, full):
        violations = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        faults = [
            (rule["id"], rule["help"], [node["target"] for node in rule["nodes"]]) for rule in violations
        ]
        assert not faults, f"{scene}, {scheme}: {faults}"


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_scrolls_sideways(stack: Stack, visitor: Visitor, full: Key, width: int) -> None:
    page = visitor.open(viewport=PHONE | {"width": width}, has_touch=True)
    for scene in scenes(page, visitor, full):
        wide = page.evaluate(
            """() => [...document.querySelectorAll("body, body *")]
                .filter(node => node.checkVisibility() && !node.closest(".unseen") && !node.closest("svg"))
                .filter(node => node.getBoundingClientRect().right > innerWidth + 0.5)
                .map(node => node.outerHTML.slice(0, 120))"""
        )
        assert wide == [], scene
        assert page.evaluate("document.documentElement.scrollWidth") <= width, scene


def test_controls_are_large_enough_to_touch_on_a_phone(stack: Stack, visitor: Visitor, full: Key) -> None:
    page = visitor.open(viewport=PHONE, has_touch=True)
    for scene in scenes(page, visitor, full):
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, a, input, label:has(input)")]
                .filter(node => node.checkVisibility() && !node.matches("label input"))
                .filter(node => node.closest("dialog") || !document.querySelector("dialog[open]"))
                .map(node => [node.getBoundingClientRect(), node])
                .filter(([box, node]) => node.tagName !== "A" && (box.height < 32 || box.width < 32))
                .map(([box, node]) => `${node.outerHTML.slice(0, 80)} ${box.width}x${box.height}`)"""
        )
        assert small == [], scene


def test_the_knock_brings_the_door_into_view_on_a_phone(stack: Stack, visitor: Visitor) -> None:
    page = visitor.open(viewport=PHONE)
    visitor.sign_in(page, stack.person())
    button = page.get_by_role("button", name="Knock")
    button.scroll_into_view_if_needed()
    expect(page.locator("#door-title")).not_to_be_in_viewport()
    button.click()
    expect(page.get_by_role("heading", name="The door is open")).to_be_in_viewport()


def test_an_error_is_shown_right_below_its_field_on_a_phone(stack: Stack, visitor: Visitor) -> None:
    page = visitor.open(viewport=PHONE, has_touch=True, reduced_motion="no-preference")
    visitor.sign_in(page, stack.person(any_source="/28"))
    for field in ("duration", "source"):
        page.locator(f"#{field}").fill("soon")
        knock = page.get_by_role("button", name="Knock")
        knock.evaluate("node => node.scrollIntoView({ block: 'start', behavior: 'instant' })")
        knock.click()
        alert = page.locator(f"#{field}-wrong")
        expect(alert).to_be_in_viewport(ratio=1)
        expect(page.locator(f"#{field}")).to_be_in_viewport(ratio=1)
        above, below = page.locator(f"#{field}").bounding_box(), alert.bounding_box()
        assert above
        assert below
        assert 0 < below["y"] - above["y"] - above["height"] < 20
        page.locator(f"#{field}").fill("")


def test_an_operators_phone_shows_the_live_grants_first(stack: Stack, visitor: Visitor, full: Key) -> None:
    page = visitor.open(viewport=PHONE, has_touch=True)
    visitor.sign_in(page, full)
    expect(page.locator("#live-title")).to_be_focused()
    expect(page.locator("#live .clock").first).to_be_in_viewport(ratio=1)
    expect(page.locator("#live [data-part=source]").first).to_be_in_viewport(ratio=1)
    first = "document.querySelector('#rooms').firstElementChild.id"
    assert page.evaluate(first) == "lists"
    page.locator("#duration").focus()
    page.set_viewport_size({"width": 1280, "height": 900})  # turned, or another screen
    page.wait_for_function(f"{first} === 'hall'")
    expect(page.locator("#duration")).to_be_focused()
    page.context.close()
    person = visitor.open(viewport=PHONE)
    visitor.sign_in(person, stack.person())
    assert person.evaluate(first) == "hall"


def luminance(page: Page, selector: str, colour_of: str) -> float:
    """Read how light a colour is, from 0 to 1."""
    colour = page.evaluate(
        "([at, name]) => getComputedStyle(document.querySelector(at))[name]", [selector, colour_of]
    )
    red, green, blue = (int(part) for part in colour.strip("rgb()").split(","))
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


def test_the_page_follows_the_systems_light_and_dark(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    light, dark = visitor.enter(key, color_scheme="light"), visitor.enter(key, color_scheme="dark")
    for selector in ("body", "#hall", "#duration"):
        if selector != "body":
            assert luminance(light, selector, "backgroundColor") > 0.9
            assert luminance(dark, selector, "backgroundColor") < 0.15
        assert luminance(light, selector, "color") < 0.2
        assert luminance(dark, selector, "color") > 0.8
    dark.emulate_media(color_scheme="light")
    assert luminance(dark, "#hall", "backgroundColor") > 0.9


def test_less_motion_is_respected(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    timing = "getComputedStyle(document.querySelector('.leaf')).transitionDuration"
    animated, reduced = visitor.enter(key, reduced_motion="no-preference"), visitor.enter(key)
    assert animated.evaluate(timing) == "0.9s"
    assert reduced.evaluate(timing) == "0s"


# ---------------------------------------------------------------------------- the keyboard


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus, and check that every element on the way shows it."""
    for _ in range(40):
        page.keyboard.press("Tab")
        outlined = page.evaluate(
            """() => {
                const style = getComputedStyle(document.activeElement);
                return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
            }"""
        )
        at_body = page.evaluate("document.activeElement === document.body")
        assert outlined or at_body, page.evaluate("document.activeElement.outerHTML")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"Tab, pressed 40 times, did not reach {selector}")


def test_everything_can_be_done_by_keyboard_alone(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.open()
    keyboard = page.keyboard
    keyboard.type(key.value)
    keyboard.press("Enter")
    expect(page.locator("#door-title")).to_be_focused()

    tab_to(page, "#choices input[value=web]")
    keyboard.press("Space")
    tab_to(page, "#quick button")
    keyboard.press("Enter")
    tab_to(page, "#reason")
    keyboard.type("on call")
    tab_to(page, "#knock")
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="The door is open")).to_be_visible()
    expect(page.locator("#knock")).to_be_focused()
    [grant] = stack.call(key, "GET", "/grants")["grants"]
    assert [target["name"] for target in grant["targets"]] == ["bastion"]
    assert seconds_granted(grant) == 900

    tab_to(page, "[data-part=timeline]")
    keyboard.press("Enter")
    expect(page.locator("#grant-title")).to_be_focused()
    for _ in range(6):  # the focus stays in the dialog, or goes to the browser itself
        keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    keyboard.press("Escape")
    expect(page.locator("[data-part=timeline]")).to_be_focused()

    tab_to(page, "[data-part=revoke]")
    keyboard.press("Enter")
    expect(page.locator("#revoke-title")).to_be_focused()
    tab_to(page, "#revoke-reason")
    keyboard.type("done")
    keyboard.press("Enter")
    expect(page.locator("#live-title")).to_be_focused()
    expect(page.locator("#past > li")).to_contain_text("revoked")
    tab_to(page, "#past button")
    keyboard.press("Space")
    expect(page.locator("#grant-title")).to_be_focused()
    expect(page.locator("#events > li")).to_have_count(4)


def test_a_screen_reader_finds_landmarks_names_and_live_regions(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    stack.knock(key, duration="8h", reason="on call")
    page = visitor.enter(key)
    expect(page.locator("#live > li")).to_have_count(1)
    for role in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]  # all three are roles
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for name in ("The door is open", "Live grants", "History"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    card = page.get_by_role("region", name="Live grants").get_by_role("listitem")
    for button in ("Timeline of", "Revoke"):
        expect(card.get_by_role("button")).to_have_count(2)
        name = f"{button} bastion and web for 203.0.113.7/32, {key.name}"
        expect(card.get_by_role("button", name=name, exact=True)).to_be_visible()
    expect(page.get_by_role("status")).to_have_attribute("id", "news")
    # A countdown that is read out every second would drown everything else.
    expect(card.get_by_role("timer")).not_to_have_attribute("aria-live", "polite")
    assert page.locator("html").get_attribute("lang") == "en"


# ---------------------------------------------------------------------------- the picture in the README


def size_of(png: bytes) -> tuple[int, ...]:
    """Read a PNG's width and height. https://www.w3.org/TR/png-3/#11IHDR"""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def take_picture(visitor: Visitor) -> None:
    """Take the picture on a stack of its own, with just the grants that it is to show."""
    with Stack.start() as stack:
        keys = {name: Key("", name, value) for name, value in stack.keys.items()}
        apigateway = stack.client("apigateway")
        [alice] = [key for key in apigateway.get_api_keys()["items"] if key["name"] == "alice"]
        arn = f"arn:aws:apigateway:{stack.region}::/apikeys/{alice['id']}"
        apigateway.tag_resource(resourceArn=arn, tags={"knock:operator": "true"})
        for source in ("198.51.100.24", "198.51.100.25"):
            ended = stack.knock(keys["bob"], source, targets=["bastion"], duration="1h")
            stack.call(keys["bob"], "DELETE", f"/grants/{ended['id']}")
        stack.knock(keys["ci"], "198.51.100.9", targets=["bastion"], duration="45m", reason="Restore test")
        stack.knock(keys["bob"], "198.51.100.24", targets=["web"], duration="7m", reason="Deploying the shop")
        stack.knock(keys["alice"], duration="8h", reason="On call: the queue is stuck")
        visitor.stack = stack
        page = visitor.open(viewport=dict(zip(("width", "height"), PICTURE_SIZE, strict=True)))
        visitor.sign_in(page, keys["alice"])
        expect(page.locator("#live > li")).to_have_count(3)
        expect(page.locator("#past > li")).to_have_count(2)
        page.screenshot(path=PICTURE, animations="disabled")
        page.context.close()


def test_the_readmes_picture_is_there(visitor: Visitor) -> None:
    if WRITE_DOCS:
        take_picture(visitor)
    assert size_of(PICTURE.read_bytes()) == PICTURE_SIZE, "`make docs` takes it"
