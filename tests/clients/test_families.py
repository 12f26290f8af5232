"""IPv4 and IPv6: the API lets in an address of the family over which it is called."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from knock import CannotReach, Client, WrongFamily, network
from tests.clients.conftest import Result
from tests.clients.double import Double

Run = Callable[..., Result]

V6 = "2001:db8::7"


@pytest.fixture
def two_ways(double: Double, home: object, monkeypatch: pytest.MonkeyPatch) -> Double:
    """The API under one name with two addresses, of which this machine takes the second for IPv6."""
    double.also_at("127.0.0.2", V6)
    real = socket.getaddrinfo
    port = double.server.server_port

    def addresses(
        host: str, service: object = None, family: int = 0, kind: int = 0, *more: Any, **named: Any
    ) -> Any:
        if host != "localhost":
            return real(host, service, family, kind, *more, **named)  # type: ignore[arg-type]
        v4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        # Reached over IPv4 all the same: not every machine has an IPv6 loopback.
        v6 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port))
        return {socket.AF_INET: [v4], socket.AF_INET6: [v6]}.get(socket.AddressFamily(family), [v4, v6])

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    monkeypatch.setenv("KNOCK_URL", double.url.replace("127.0.0.1", "localhost"))
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    return double


def test_the_family_can_be_named_for_every_call(run: Run, two_ways: Double) -> None:
    """Mutation: clients/knock/transport.py: `if self.family:` -> `if False:`"""
    assert " from 203.0.113.7/32 " in run("bastion", "-4").out
    assert f" from {V6}/128 " in run("bastion", "-6", "--new").out
    assert json.loads(run("whoami", "-6", "--json").out)["source"] == f"{V6}/128"
    assert run("ls", "-6", "-q").code == 0
    assert run("bastion", "-4", "-6").code == 2
    with Client(two_ways.url.replace("127.0.0.1", "localhost"), two_ways.keys["alice"], family=6) as client:
        assert client.whoami().source == f"{V6}/128"
        client.family = 4
        assert client.whoami().source == "203.0.113.7/32"


def test_a_target_of_the_other_family_alone_is_knocked_for_over_that_family(
    run: Run, two_ways: Double
) -> None:
    two_ways.families = {"bastion": ["ipv6"]}
    result = run("bastion")
    assert (result.code, f"from {V6}/128" in result.out) == (0, True)
    assert "knocked over IPv6, the only way to bastion" in result.err
    assert two_ways.calls("POST") == 2
    result = run("run", "bastion", "--", "true")
    assert result.code == 0
    assert f"from {V6}/128" in result.err


def test_a_family_named_by_an_option_is_kept_and_the_refusal_shown(run: Run, two_ways: Double) -> None:
    two_ways.families = {"bastion": ["ipv6"]}
    result = run("bastion", "-4")
    assert (result.code, two_ways.calls("POST")) == (1, 1)
    assert "bastion can be reached by ipv6 alone" in result.err
    assert "-6 over IPv6" in result.err
    error = json.loads(run("bastion", "-4", "--json").err)
    assert (error["error"], error["status"], error["families"]) == ("WrongFamily", 409, ["ipv6"])


def test_a_target_left_out_is_named_with_the_command_that_opens_it(run: Run, two_ways: Double) -> None:
    two_ways.families = {"web": ["ipv6"]}
    note = "web cannot be reached over IPv4 and is not open: knock -6 web"
    for words in (["bastion", "web"], ["--for", "1h"], ["run", "bastion", "web", "--", "true"]):
        assert note in run(*words).err
    two_ways.opens_after = 0.1
    result = run("bastion", "web", "--new", "--json")
    assert json.loads(result.out)["left_out"] == ["web"], "also after a wait"
    assert note in result.err
    two_ways.opens_after = 0
    assert run("web", "-6").out.startswith("open: web")
    assert "web can be reached over IPv6 alone" in run("whoami").out


def test_a_named_source_is_not_changed(run: Run, two_ways: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_API_KEY", two_ways.keys["ci"])
    two_ways.families = {"bastion": ["ipv6"]}
    result = run("bastion", "--source", "198.51.100.7/32")
    assert (result.code, two_ways.calls("POST")) == (1, 1)


def test_an_api_without_the_other_family_leaves_the_refusal_and_a_note_on_the_attempt(
    run: Run, double: Double, home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    double.families = {"bastion": ["ipv6"]}
    result = run("bastion")
    assert (result.code, double.calls("POST")) == (1, 1)
    assert "to knock over IPv6 was tried: 127.0.0.1 has no IPv6 address" in result.err
    assert "bastion can be reached by ipv6 alone" in result.err
    with pytest.raises(CannotReach, match=r"127\.0\.0\.1 has no IPv6 address: try without -6"):
        Client(double.url, double.keys["alice"], family=6).whoami()


def test_an_answer_lost_over_the_other_family_is_not_reported_as_a_refusal(
    run: Run, two_ways: Double
) -> None:
    """Break it: raise the first refusal also if the answer to the second knock is lost."""
    two_ways.families = {"bastion": ["ipv6"]}
    two_ways.faults = [0, "drop"]
    result = run("bastion")
    assert (result.code, two_ways.calls("POST")) == (3, 2)
    assert "The grant may have been made: look with `knock ls`" in result.err


@pytest.mark.parametrize("families", [None, "ipv6", [6], [], {"ipv6": 1}])
def test_malformed_families_in_a_refusal_are_read_as_none(families: object) -> None:
    refused = WrongFamily(
        409, {"type": "urn:knock:problem:wrong-family", "title": "No", "families": families}
    )
    assert refused.families == ()
    assert WrongFamily(409, {"families": ["ipv6", "ipv4", "ipx"]}).families == (4, 6)


def test_the_hook_knocks_by_the_family_that_its_host_has(
    run: Run, two_ways: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "only_family", {"six": 6, "both": None}.get)
    assert f" from {V6}/128 " in run("ssh-hook", "--target", "bastion", "--host", "six").err
    assert " from 203.0.113.7/32 " in run("ssh-hook", "--target", "web", "--host", "both").err
    assert " from 203.0.113.7/32 " in run("ssh-hook", "--target", "bastion", "-4").err, (
        "the grant that is known is for IPv6"
    )
    assert run("ssh-hook", "--target", "bastion", "-6").err == ""
    assert (
        "ssh-hook --target bastion -6 --host six" in run("ssh-config", "six", "--target", "bastion", "-6").out
    )


def test_a_hook_whose_api_lacks_the_hosts_family_knocks_as_it_can(
    run: Run, double: Double, home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    monkeypatch.setattr(network, "only_family", lambda _: 6)
    assert " from 203.0.113.7/32 " in run("ssh-hook", "--target", "bastion", "--host", "six").err


def test_the_only_family_of_a_host_follows_from_its_addresses_and_this_machines_routes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    v4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("198.51.100.1", 0))
    v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))
    addresses = [v4]
    routes = {socket.AF_INET: "192.0.2.9", socket.AF_INET6: "2001:db8::9"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    monkeypatch.setattr(network, "local_address", lambda family, _=None: routes.get(family))
    assert network.only_family("bastion") == 4
    addresses[:] = [v6]
    assert network.only_family("bastion") == 6
    addresses[:] = [v6, v4]
    assert network.only_family("bastion") is None
    del routes[socket.AF_INET6]
    assert network.only_family("bastion") == 4, "there is no route over IPv6"
    monkeypatch.undo()
    assert network.only_family("no-such-host.invalid") is None
