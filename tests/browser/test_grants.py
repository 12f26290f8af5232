"""Knocking, watching and revoking on the console page, for a person and for an operator."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.waiting import wait_for

from .conftest import SOURCE, Stack, Visitor, seconds_granted


def cards(page: Page) -> Any:
    """Locate the cards of live grants, without those that fade out."""
    return page.locator("#live > li:not(.leaves)")


def form(page: Page) -> Any:
    return page.locator("#knock-form")


def seconds_shown(page: Page) -> int:
    """Read a countdown: `7h 59m 42s`, without the spaces that only the style makes."""
    text = page.locator("#live .clock").first.inner_text()
    parts = re.findall(r"(\d+)\s*([dhms])", text)
    assert parts, f"this is no countdown: {text!r}"
    return sum(int(number) * {"d": 86_400, "h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def test_the_page_shows_the_keys_name_and_rights(stack: Stack, visitor: Visitor) -> None:
    key = stack.key("alice", targets="bastion web", max_duration="8h")
    page = visitor.enter(key, source="2001:db8::7")
    expect(page.get_by_role("banner")).to_contain_text(key.name)
    hall = page.get_by_role("region", name="The door is closed")
    expect(hall).to_contain_text("2001:db8::7/128")
    expect(hall).to_contain_text("8h a grant")
    expect(hall.get_by_role("checkbox")).to_have_count(2)
    expect(hall.locator("label", has_text="web")).to_contain_text("80/tcp 443/tcp")
    expect(form(page).get_by_label("Source")).to_be_hidden()
    expect(page.get_by_role("search")).to_be_hidden()
    assert page.locator("#quick").inner_text().split() == ["15m", "1h", "4h", "8h"]


def test_a_knock_opens_the_door_counts_down_and_vanishes(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    page.evaluate(
        """() => {
            window.clocks = [];
            new MutationObserver(() => {
                const clock = document.querySelector("#live > li:not(.leaves) .clock");
                const text = clock?.textContent;
                if (text && window.clocks.at(-1) !== text) window.clocks.push(text);
            }).observe(document.querySelector("#live"), { childList: true, subtree: true });
        }"""
    )
    form(page).get_by_label("For how long").fill("6s")
    form(page).get_by_label("Reason").fill("on call")
    page.get_by_role("button", name="Knock").click()

    expect(page.get_by_role("heading", name="The door is open")).to_be_visible()
    expect(page).to_have_title("Open · Knock")
    expect(cards(page)).to_have_count(1)
    expect(cards(page)).to_contain_text(f"{key.name} (you)")
    expect(cards(page)).to_contain_text(f"{SOURCE}/32")
    expect(cards(page)).to_contain_text("on call")
    expect(cards(page).locator("h3")).to_have_text("bastion 22/tcpweb 80/tcp 443/tcp")
    expect(page.locator("#news")).to_contain_text("The door is open: bastion and web for 203.0.113.7/32")
    grant = stack.call(key, "GET", "/grants")["grants"][0]
    assert grant["status"] == "active"

    expect(cards(page)).to_have_count(0)
    vanished = datetime.now(timezone.utc)
    end = datetime.fromisoformat(grant["expires_at"].replace("Z", "+00:00"))
    assert vanished >= end
    expect(page.get_by_role("status").filter(has_text="Your access to bastion and web")).to_contain_text(
        "has expired"
    )
    expect(page.get_by_role("heading", name="The door is closed")).to_be_visible()
    expect(page.locator("#past > li")).to_have_count(1)
    expect(page.locator("#past > li")).to_contain_text("expired")
    clocks = [text for text in page.evaluate("window.clocks") if text != "Closing"]
    counted = [int(text.removesuffix("s")) for text in clocks]
    assert len(counted) >= 3
    assert counted == sorted(set(counted), reverse=True)
    assert max(counted) <= 6


@pytest.mark.parametrize("hours", [-3, 3])
def test_the_countdown_goes_by_the_servers_clock(stack: Stack, visitor: Visitor, hours: int) -> None:
    """The browser's clock is wrong and stands still, so the countdown shows what the API answered."""
    key = stack.person()
    stack.knock(key, duration="30m")

    def with_seconds_left(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        for grant in body["grants"]:
            grant["seconds_left"] = 1234
        route.fulfill(response=answer, json=body)

    script = f"{{ const wrong = Date.now() + {hours} * 3_600_000; Date.now = () => wrong; }}"
    page = visitor.open(script=script)
    page.route(re.compile(r"/v1/grants\?"), with_seconds_left)
    visitor.sign_in(page, key)
    expect(cards(page)).to_have_count(1)
    assert seconds_shown(page) == 1234


def test_a_pending_grant_is_shown_open_once_the_api_says_active(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    pending = True

    def as_pending(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        for grant in body.get("grants", [body]):
            if pending and grant["status"] == "active":
                grant["status"] = "pending"
        status = 202 if route.request.method == "POST" else answer.status
        route.fulfill(response=answer, status=status, json=body)

    page.route(re.compile(r"/v1/(knock|grants)(\?|$)"), as_pending)
    page.get_by_role("button", name="Knock").click()
    expect(page.get_by_role("heading", name="The door is opening")).to_be_visible()
    expect(cards(page).locator(".clock")).to_have_text("Opening")
    pending = False
    expect(page.get_by_role("heading", name="The door is open")).to_be_visible()
    expect(page.locator("#news")).to_contain_text("The door is open: bastion and web")
    assert seconds_shown(page) > 86_000


def test_a_grant_that_fails_to_open_says_why(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    detail = "every security group of the target bastion is full (2 tried)"
    problem = {"type": "urn:knock:problem:pool-exhausted", "title": "No room left", "detail": detail}
    page.route(
        "**/v1/knock",
        lambda route: route.fulfill(
            status=409, json=problem, headers={"content-type": "application/problem+json"}
        ),
    )
    page.get_by_role("button", name="Knock").click()
    expect(page.get_by_role("alert").filter(has_text="No room left")).to_contain_text(detail)
    expect(page.get_by_role("heading", name="The door is closed")).to_be_visible()
    expect(cards(page)).to_have_count(0)


def test_a_wrong_value_is_refused_at_its_field_and_not_sent(stack: Stack, visitor: Visitor) -> None:
    key = stack.key("ci", targets="bastion web", max_duration="8h", any_source="/28")
    page = visitor.enter(key)
    form(page).get_by_label("Reason").fill("on call")
    wrong = [
        ("For how long", "9h", "9h is longer than your key allows: 8h at most."),
        ("For how long", "soon", "“soon” is no duration: A duration is like 90m, 8h, 1h30m or 1d."),
        ("For how long", "5", "5 what? Say 5m, 5h or 5s."),
        ("Source", "198.51.100", "“198.51.100” is no address: A source is like 203.0.113.7/32"),
        ("Source", "2001:db8::g", "“2001:db8::g” is no address"),
        ("Source", "198.51.100.0/24", "/24 is wider than your key allows: /28 at most."),
        ("Source", "198.51.100.7/33", "“198.51.100.7/33” is no address"),
    ]
    for label, typed, message in wrong:
        field = form(page).get_by_label(label)
        before = field.input_value()
        field.fill(typed)
        if typed == "9h":
            expect(page.locator("#duration-hint")).to_have_text("your key allows 8h at most")
        page.get_by_role("button", name="Knock").click()
        expect(page.get_by_role("alert")).to_contain_text(message)
        expect(field).to_be_focused()
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_have_accessible_description(re.compile(re.escape(message)))
        field.fill(before)
    for name in ("bastion", "web"):
        page.get_by_role("checkbox", name=name).uncheck()
    page.get_by_role("button", name="Knock").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a target")
    expect(form(page).get_by_label("Source")).not_to_have_attribute("aria-invalid", "true")
    assert visitor.count_requests("POST", "/knock") == 0
    page.get_by_role("checkbox", name="web").check()
    form(page).get_by_label("For how long").fill("PT1H30M")
    page.get_by_role("button", name="Knock").click()
    expect(cards(page)).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_refusal_of_the_api_is_shown_at_its_field(stack: Stack, visitor: Visitor) -> None:
    key = stack.key("alice", targets="bastion web", max_duration="8h")
    page = visitor.enter(key)
    detail = "9h is longer than the key allows: 8h"
    problem = {"type": "urn:knock:problem:not-allowed", "title": "The key may not do this", "detail": detail}
    answer = {**problem, "field": ""}
    headers = {"content-type": "application/json"}
    page.route("**/v1/knock", lambda route: route.fulfill(status=403, json=answer, headers=headers))
    for field, place in (("duration", "#duration-wrong"), ("source", "#knock-trouble")):
        answer["field"] = field
        page.get_by_role("button", name="Knock").click()
        expect(page.locator(place)).to_contain_text(detail)  # this key is shown no field for a source
        expect(page.get_by_role("alert")).to_have_count(1)


def test_a_knock_asks_for_the_ticked_targets_and_the_typed_values(stack: Stack, visitor: Visitor) -> None:
    key = stack.key("ci", targets="*", max_duration="24h", any_source="/28 /60")
    page = visitor.enter(key)
    page.get_by_role("checkbox", name="web").uncheck()
    page.get_by_role("button", name="15m").click()
    expect(page.get_by_role("button", name="15m")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#source-hint")).to_have_text(
        "A CIDR other than yours: up to /28 (IPv4), up to /60 (IPv6)."
    )
    form(page).get_by_label("Source").fill("198.51.100.16/28")
    page.get_by_role("button", name="Knock").click()
    expect(cards(page)).to_contain_text("198.51.100.16/28")
    [grant] = stack.call(key, "GET", "/grants")["grants"]
    assert [target["name"] for target in grant["targets"]] == ["bastion"]
    assert seconds_granted(grant) == 900
    assert grant["source"] == "198.51.100.16/28"


def test_a_person_who_has_moved_reads_that_the_door_is_open_elsewhere(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    stack.knock(key, source="198.51.100.77")
    page = visitor.enter(key)
    expect(page.locator("#door-text")).to_contain_text(f"But not from {SOURCE}/32, where you are now")
    page.get_by_role("button", name="Knock").click()
    expect(cards(page)).to_have_count(2)
    expect(cards(page).first).to_contain_text(f"{SOURCE}/32")  # the newest
    expect(page.locator("#door-text")).not_to_contain_text("But not from")


def test_knocking_again_renews_without_closing_the_door(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    page.get_by_role("button", name="1h").click()
    page.get_by_role("button", name="Knock").click()
    expect(page.get_by_role("heading", name="The door is open")).to_be_visible()
    page.evaluate(
        """() => {
            window.doors = [];
            new MutationObserver(() => window.doors.push(document.body.dataset.door))
                .observe(document.body, { attributeFilter: ["data-door"] });
        }"""
    )
    page.get_by_role("button", name="8h").click()
    page.get_by_role("button", name="Knock again").click()
    expect(page.locator("#past > li")).to_contain_text("superseded")
    expect(cards(page)).to_have_count(1)
    assert seconds_shown(page) > 7 * 3600
    assert "closed" not in page.evaluate("window.doors")
    expect(page.locator("#news")).to_contain_text("The door is open")
    [grant] = stack.call(key, "GET", "/grants")["grants"]
    assert grant["renews"] is not None
    cards(page).get_by_role("button", name="Timeline").click()
    expect(page.locator("#grant-facts")).to_contain_text(f"In place of{grant['renews']}")


def test_only_what_the_page_itself_opened_is_renewed(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    job = stack.knock(key, duration="2h", targets=["bastion", "web"])
    page = visitor.enter(key)
    page.get_by_role("button", name="1h").click()
    beside = page.locator("#beside")
    expect(beside).to_contain_text("This ends sooner than a grant of yours, which is open until")
    page.get_by_role("button", name="4h").click()
    expect(beside).to_have_text("This opens a grant of its own beside what is open.")
    page.get_by_role("button", name="Knock", exact=True).click()
    expect(cards(page)).to_have_count(2)

    page.get_by_role("button", name="8h").click()
    expect(beside).to_contain_text("This takes the place of what you opened here before")
    page.get_by_role("checkbox", name="web").uncheck()
    expect(beside).to_have_text("This opens a grant of its own beside what is open.")
    page.get_by_role("button", name="1h").click()
    page.get_by_role("button", name="Knock", exact=True).click()
    expect(page.locator("#news")).to_contain_text("That ends sooner than another grant of yours")
    expect(cards(page)).to_have_count(3)
    page.reload()
    visitor.sign_in(page, key)
    page.get_by_role("button", name="8h").click()
    page.get_by_role("button", name="Knock", exact=True).click()
    expect(cards(page)).to_have_count(4)
    grants = stack.call(key, "GET", "/grants")["grants"]
    assert {grant["renews"] for grant in grants} == {None}
    assert stack.show(key, job["id"])["status"] == "active"


def test_a_grant_that_the_api_no_longer_knows_is_opened_anew(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    page = visitor.enter(key)
    page.get_by_role("button", name="1h").click()
    page.get_by_role("button", name="Knock").click()
    expect(cards(page)).to_have_count(1)
    unknown = {
        "type": "urn:knock:problem:grant-not-found",
        "title": "No such grant",
        "status": 404,
        "detail": "gone",
    }
    page.route("**/v1/knock", lambda route: route.fulfill(status=404, json=unknown), times=1)
    page.get_by_role("button", name="8h").click()
    page.get_by_role("button", name="Knock again").click()
    expect(cards(page)).to_have_count(2)
    assert {grant["renews"] for grant in stack.call(key, "GET", "/grants")["grants"]} == {None}


def test_a_revocation_names_the_targets_that_stay_open_before_and_after(
    stack: Stack, visitor: Visitor
) -> None:
    alice, bob = stack.person(), stack.person("bob")
    job = stack.knock(alice, duration="2h", targets=["bastion"])
    stack.knock(alice, "198.51.100.7", targets=["bastion"])
    stack.knock(bob, targets=["bastion"])
    grant = stack.knock(alice, duration="1h")
    page = visitor.enter(alice)
    still_open = re.compile(rf"Still open until \d\d:\d\d.* by {job['id']}: bastion\.$")
    cards(page).first.get_by_role("button", name="Revoke").click()
    dialog = page.get_by_role("dialog", name="Revoke your access?")
    expect(dialog.locator("#revoke-text")).to_contain_text("at once, but for:")
    expect(dialog.locator("#revoke-text")).to_have_text(still_open)
    dialog.get_by_role("button", name="Revoke").click()
    expect(page.locator("#news")).to_contain_text("was revoked by you.")
    expect(page.locator("#news")).to_have_text(still_open)
    assert stack.show(alice, grant["id"])["status"] == "revoked"
    expect(page.get_by_role("heading", name="The door is open")).to_be_visible()


@pytest.mark.parametrize(
    ("status", "name", "title", "detail"),
    [
        (409, "too-many-grants", "Too many grants", "end one of: alice_1"),
        (409, "source-full", "The source is full", "203.0.113.7/32 has as many grants as it may have"),
        (409, "target-gone", "The target is gone", "web lost its security groups"),
        (503, "engine-unavailable", "Try again in a moment", "no answer about alice_1"),
    ],
)
def test_a_refused_knock_says_why(
    stack: Stack, visitor: Visitor, status: int, name: str, title: str, detail: str
) -> None:
    page = visitor.enter(stack.person())
    problem = {"type": f"urn:knock:problem:{name}", "title": title, "status": status, "detail": detail}
    problem |= {"grant_id": "alice_1"} if status == 503 else {}
    page.route("**/v1/knock", lambda route: route.fulfill(status=status, json=problem))
    page.get_by_role("button", name="Knock").click()
    alert = page.locator("#knock-trouble")
    expect(alert).to_contain_text(f"{title}{detail}")
    maybe = "It may be open all the same; the live grants will show it."
    expect(alert).to_contain_text(maybe) if status == 503 else expect(alert).not_to_contain_text(maybe)


def test_revoking_asks_once_and_answers_when_it_is_closed(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    grant = stack.knock(key, targets=["bastion"])
    page = visitor.enter(key)
    revoke = cards(page).get_by_role("button", name="Revoke")
    revoke.click()
    dialog = page.get_by_role("dialog", name="Revoke your access?")
    expect(dialog).to_contain_text(f"bastion will be closed to {SOURCE}/32 at once")
    expect(dialog).to_contain_text("Connections that are open now live on")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_be_hidden()
    expect(revoke).to_be_focused()
    assert stack.show(key, grant["id"])["status"] == "active"

    revoke.click()
    dialog.get_by_label("Reason").fill("done for today")
    dialog.get_by_role("button", name="Revoke").click()
    expect(dialog).to_be_hidden()
    expect(cards(page)).to_have_count(0)
    expect(page.locator("#news")).to_have_text(f"Your access to bastion from {SOURCE}/32 was revoked by you.")
    expect(page.locator("#live-title")).to_be_focused()
    expect(page.locator("#past > li")).to_contain_text("revoked")
    ended = stack.show(key, grant["id"])
    assert (ended["status"], ended["ended_by"]) == ("revoked", key.name)
    assert any(event.get("reason") == "done for today" for event in ended["events"])


def test_the_timeline_tells_the_trail_in_plain_words(stack: Stack, visitor: Visitor) -> None:
    key = stack.person()
    grant = stack.knock(key, "198.51.100.150", targets=["bastion"], reason="on call")
    stack.call(key, "DELETE", f"/grants/{grant['id']}?reason=went+home")
    page = visitor.enter(key)
    page.locator("#past button").click()
    dialog = page.get_by_role("dialog", name="bastion")
    events = dialog.get_by_role("list", name="Timeline").get_by_role("listitem")
    expect(events).to_have_count(4)
    for item, text in zip(
        events.all(),
        [f"{key.name} knocked", "The door opened", f"{key.name} revoked it", "The door closed"],
        strict=True,
    ):
        expect(item.locator("p").first).to_have_text(text)
    expect(events.nth(2)).to_contain_text("“went home”")
    expect(events.nth(3)).to_contain_text(re.compile(r"Rules revoked: sgr-\w+"))

    first = events.first.locator("time")
    at = datetime.fromisoformat(grant["requested_at"].replace("Z", "+00:00"))
    assert first.get_attribute("datetime") == grant["requested_at"]
    assert first.get_attribute("title") == grant["requested_at"].replace("T", " ").replace("Z", " UTC")
    hour = page.evaluate("at => new Date(at).getHours()", grant["requested_at"])
    assert f" {hour:02d}:{at.minute:02d}:{at.second:02d}" in first.inner_text()
    expect(dialog).to_contain_text("Times are those of Europe/Berlin")
    expect(dialog.get_by_role("button", name="Revoke")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.locator("#past button")).to_be_focused()


@pytest.mark.parametrize(
    ("arn", "host"),
    [
        ("arn:aws:states:eu-central-1:123456789012:execution:k:a_1", "eu-central-1.console.aws.amazon.com"),
        ("arn:aws-cn:states:cn-north-1:123456789012:execution:k:a", "cn-north-1.console.amazonaws.cn"),
        (
            "arn:aws-us-gov:states:us-gov-west-1:123456789012:execution:k:a",
            "us-gov-west-1.console.amazonaws-us-gov.com",
        ),
        ("arn:aws-iso:states:us-iso-east-1:123456789012:execution:k:a", None),
        ("javascript:alert(1)", None),
        (None, None),
    ],
)
def test_the_execution_is_one_click_away_in_the_aws_console(
    stack: Stack, visitor: Visitor, arn: str | None, host: str | None
) -> None:
    key = stack.person()
    stack.knock(key, targets=["bastion"])
    page = visitor.open()

    def with_arn(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"execution_arn": arn})

    page.route("**/v1/grants/*", with_arn)
    visitor.sign_in(page, key)
    with page.expect_response("**/v1/grants/*"):
        cards(page).get_by_role("button", name="Timeline").click()
    expect(page.locator("#events > li")).to_have_count(2)
    link = page.locator("#aws")
    if arn is None or host is None:
        expect(link).to_be_hidden()
    else:
        region = host.partition(".")[0]
        address = f"https://{host}/states/home?region={region}#/v2/executions/details/{arn}"
        expect(link).to_have_attribute("href", address)
        expect(link).to_have_attribute("rel", "noopener noreferrer")


# ---------------------------------------------------------------------------- operators


def test_an_operator_sees_all_grants_and_searches_them(stack: Stack, visitor: Visitor) -> None:
    alice, bob = stack.person("alice"), stack.person("bob")
    operator = stack.key("operator", operator="true")
    stack.knock(alice, targets=["bastion"])
    stack.knock(bob, source="198.51.100.3", targets=["web"])
    stack.knock(bob, source="2001:db8::9", targets=["bastion"])
    page = visitor.enter(operator)
    expect(page.get_by_role("heading", name="You mind the doors")).to_be_visible()
    expect(page.locator("#knock-form")).to_be_hidden()
    for key in (alice, bob):
        expect(cards(page).filter(has_text=key.name)).not_to_have_count(0)

    search = page.get_by_role("search")

    def find(**fields: str) -> None:
        for label in ("Principal", "Source", "Target"):
            search.get_by_label(label).fill(fields.get(label.lower(), ""))
        search.get_by_role("button", name="Search").click()

    find(principal=bob.name)
    expect(cards(page)).to_have_count(2)
    expect(page.locator("#news")).to_have_text("2 live grants match.")
    find(principal=bob.name, target="web")
    expect(cards(page)).to_have_count(1)
    expect(cards(page)).to_contain_text("198.51.100.3/32")
    find(principal=bob.name, source="2001:DB8::9")  # a bare address finds its /128
    expect(cards(page)).to_have_count(1)
    expect(cards(page)).to_contain_text("2001:db8::9/128")
    lists = visitor.count_requests("GET", "/grants")
    find(source="bastion")
    expect(search.get_by_role("alert")).to_have_text("“bastion” is no address")
    expect(search.get_by_label("Source")).to_be_focused()
    assert not any("source=bastion" in request.url for request in visitor.requests[lists:])
    find(principal="nobody-of-that-name")
    expect(search.get_by_role("alert")).to_have_count(0)
    expect(cards(page)).to_have_count(0)
    expect(page.locator("#live-empty")).to_contain_text("No live grant matches")
    expect(page.locator("#past-empty")).to_have_text("No ended grant matches.")
    search.get_by_role("button", name="Clear").click()
    expect(cards(page).filter(has_text=alice.name)).to_have_count(1)
    expect(search.get_by_label("Principal")).to_have_value("")


def test_an_operators_own_door_is_not_hidden_by_a_search(stack: Stack, visitor: Visitor) -> None:
    operator = stack.key("operator", operator="true", targets="*", max_duration="1h")
    page = visitor.enter(operator)
    page.get_by_role("button", name="Knock").click()
    expect(page.get_by_role("heading", name="The door is open")).to_be_visible()
    page.get_by_label("Principal").fill("nobody-of-that-name")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#live-empty")).to_contain_text("No live grant matches")
    expect(page.get_by_role("heading", name="The door is open")).to_be_visible()
    expect(page.locator("#news")).to_have_text("0 live grants match.")


def test_an_operator_revokes_another_keys_grant_and_its_owner_sees_it(stack: Stack, visitor: Visitor) -> None:
    alice, operator = stack.person(), stack.key("operator", operator="true")
    stack.knock(alice, targets=["bastion"])
    alice_page, operator_page = visitor.enter(alice), visitor.enter(operator)
    expect(cards(alice_page)).to_have_count(1)
    cards(operator_page).filter(has_text=alice.name).get_by_role("button", name="Revoke").click()
    dialog = operator_page.get_by_role("dialog", name=f"Revoke {alice.name}’s access?")
    dialog.get_by_label("Reason").fill("laptop stolen")
    dialog.get_by_role("button", name="Revoke").click()
    expect(operator_page.locator("#news")).to_contain_text(f"{alice.name}’s access to bastion")
    expect(cards(alice_page)).to_have_count(0)
    expect(alice_page.locator("#news")).to_contain_text(f"was revoked by {operator.name}.")
    expect(alice_page.get_by_role("heading", name="The door is closed")).to_be_visible()


def test_history_goes_back_page_by_page(stack: Stack, visitor: Visitor) -> None:
    key, operator = stack.person(max_live="100"), stack.key("operator", operator="true")
    sources = [f"198.51.100.{number}" for number in range(1, 24)]
    with ThreadPoolExecutor(8) as pool:
        grants = list(pool.map(lambda source: stack.knock(key, source, targets=["bastion"]), sources))
    live = stack.knock(key, "198.51.100.200", targets=["bastion"])
    ids = {grant["id"] for grant in grants}

    def revoke_all() -> bool:
        answer = stack.call(operator, "GET", f"/grants?principal={key.name}&limit=100")
        if ids.isdisjoint(grant["id"] for grant in answer["grants"]):
            return True
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda grant: stack.call(key, "DELETE", f"/grants/{grant['id']}"), grants))
        return False

    wait_for(revoke_all, "a revoked grant is still listed as live", 30)
    page = visitor.enter(operator)
    page.get_by_label("Principal").fill(key.name)
    page.get_by_role("button", name="Search").click()
    rows = page.locator("#past > li")
    expect(rows).to_have_count(19)  # 20 a page, and the newest of them is live
    page.get_by_role("button", name="Show older grants").click()
    expect(rows).to_have_count(23)
    expect(page.get_by_role("button", name="Show older grants")).to_be_hidden()
    expect(rows.nth(19).get_by_role("button")).to_be_focused()
    times = [element.get_attribute("datetime") for element in rows.locator("time").all()]
    assert times == sorted((grant["requested_at"] for grant in grants), reverse=True)
    expect(rows.first).to_contain_text(re.compile(r"lasted \d+s, to \d\d:\d\d"))
    expect(cards(page)).to_have_count(1)
    cards(page).filter(has_text=live["source"]).get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(rows).to_have_count(24)
    expect(rows.first).to_contain_text(live["source"])
