"""The network that this machine is on, found without traffic, and the grants remembered for it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from knock import KnockError, config, network, state
from knock.transport import Path as Way

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
wlan0\t0001A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0
"""
NEIGHBOURS = """\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         a4:91:b1:00:00:01     *        wlan0
192.168.1.9      0x1         0x0         00:00:00:00:00:00     *        wlan0
"""


def test_a_local_address_is_found_without_a_byte_sent() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        assert network.local_address(socket.AF_INET, "127.0.0.1") == "127.0.0.1"
        with pytest.raises(BlockingIOError):
            listener.recv(1)


def test_no_route_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any) -> Any:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", unreachable)
    assert network.local_address(socket.AF_INET) is None
    assert network.fingerprint().startswith("- -")


@pytest.mark.skipif(sys.byteorder != "little", reason="the table holds words of the machine's byte order")
def test_the_gateway_and_its_hardware_address_name_a_linux_machines_network() -> None:
    assert network._gateways_linux(ROUTES, NEIGHBOURS) == ["wlan0", "192.168.1.1", "a4:91:b1:00:00:01"]
    assert network._gateways_linux(ROUTES, "") == ["wlan0", "192.168.1.1", ""]
    assert network._gateways_linux("", NEIGHBOURS) == []


MAC_ROUTE = """\
   route to: default
destination: default
       mask: default
    gateway: 192.168.1.1
  interface: en0
      flags: <UP,GATEWAY,DONE,STATIC,PRCLONING,GLOBAL>
"""


def test_the_gateway_and_its_hardware_address_name_a_macs_network(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {
        ("/sbin/route", "-n", "get", "default"): MAC_ROUTE,
        (
            "/usr/sbin/arp",
            "-n",
            "192.168.1.1",
        ): "? (192.168.1.1) at a4:91:b1:0:0:1 on en0 ifscope [ethernet]\n",
    }
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(network, "run", lambda *command: outputs.get(command, ""))
    assert network._gateways() == ["192.168.1.1", "en0", "a4:91:b1:0:0:1"]
    outputs.clear()
    assert network._gateways() == []
    monkeypatch.setattr(sys, "platform", "win32")
    assert network._gateways() == []


def test_a_command_that_is_missing_or_hangs_gives_an_empty_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.run("echo", "x") == "x\n"
    assert network.run("no-such-program-anywhere") == ""

    def hang(*args: Any, **more: Any) -> Any:
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(subprocess, "run", hang)
    assert network.run("echo", "x") == ""
    assert network._read("/no/such/file") == ""


def test_the_same_address_behind_another_router_is_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = ["wlan0", "192.168.1.1", "a4:91:b1:00:00:01"]
    monkeypatch.setattr(network, "local_address", lambda *_: "192.168.1.23")
    monkeypatch.setattr(network, "_gateways", lambda: gateways)
    home = network.fingerprint()
    assert network.fingerprint() == home
    gateways[2] = "00:11:22:33:44:55"
    assert network.fingerprint() != home


# ---------------------------------------------------------------------- the next connection's address


class Machine:
    """Addresses of a machine: by family for the world, and by destination."""

    def __init__(self, v4: str | None = None, v6: str | None = None, **routes: str) -> None:
        self.world = {socket.AF_INET: v4, socket.AF_INET6: v6}
        self.routes = routes

    def local_address(self, family: int, to: str | None = None) -> str | None:
        return self.routes.get(to or "", self.world[socket.AddressFamily(family)])


def differences(
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    source: str,
    local: str,
    peer: str = "192.0.2.80",
    proxy: str | None = None,
    host: str | None = None,
) -> str:
    """Give the notes on other addresses that the next connection may come from."""
    monkeypatch.setattr(network, "local_address", machine.local_address)
    grant: Any = SimpleNamespace(source=source)
    client: Any = SimpleNamespace(path=Way(local, peer, proxy))
    return "\n".join(network.differences(grant, client, host))


def test_behind_one_router_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert differences(monkeypatch, Machine("192.168.1.23"), "203.0.113.7/32", "192.168.1.23") == ""


def test_an_api_on_this_machine_tells_nothing_about_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert differences(monkeypatch, Machine("192.168.1.23"), "203.0.113.7/32", "127.0.0.1", "127.0.0.1") == ""
    client: Any = SimpleNamespace(path=None)
    assert network.differences(SimpleNamespace(source="203.0.113.7/32"), client) == []  # type: ignore[arg-type]


def test_a_proxys_address_is_said_to_be_the_proxys(monkeypatch: pytest.MonkeyPatch) -> None:
    text = differences(
        monkeypatch, Machine("10.0.0.5"), "203.0.113.7/32", "10.0.0.5", "10.0.0.1", "proxy.example.net:3128"
    )
    assert "203.0.113.7/32 is the proxy's address" in text


def test_an_address_of_the_other_family_that_is_not_let_in_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dual_stack = Machine("192.168.1.23", "2a00:1450:4001::23")
    text = differences(monkeypatch, dual_stack, "203.0.113.7/32", "192.168.1.23")
    assert "only the IPv4 address 203.0.113.7/32 is let in" in text
    assert "2a00:1450:4001::23" in text
    text = differences(
        monkeypatch, dual_stack, "2a00:1450:4001::23/128", "2a00:1450:4001::23", "2001:db8::80"
    )
    assert "only the IPv6 address 2a00:1450:4001::23/128 is let in" in text
    ipv6_only = Machine(None, "2a00:1450:4001::23")
    assert (
        differences(monkeypatch, ipv6_only, "2a00:1450:4001::23/128", "2a00:1450:4001::23", "2001:db8::80")
        == ""
    )
    private = Machine("192.168.1.23", "fd00::23")
    assert differences(monkeypatch, private, "203.0.113.7/32", "192.168.1.23") == ""


def test_a_vpn_that_carries_the_api_only_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    text = differences(monkeypatch, Machine("192.168.1.23"), "203.0.113.7/32", "10.8.0.2")
    assert "the API was reached from 10.8.0.2, and the default route leaves from 192.168.1.23" in text


def test_for_a_known_host_only_the_route_to_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[tuple[int, str]] = []

    def resolve(*args: Any, **more: Any) -> Any:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(family, socket.SOCK_STREAM, 6, "", (address, 0)) for family, address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    dual_stack = Machine("192.168.1.23", "2a00:1450:4001::23")
    over_ipv4: dict[str, Any] = {"source": "203.0.113.7/32", "local": "192.168.1.23", "host": "bastion"}
    assert differences(monkeypatch, dual_stack, **over_ipv4) == ""
    addresses[:] = [(socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")]
    assert differences(monkeypatch, dual_stack, **over_ipv4) == ""
    addresses.reverse()
    assert "bastion will be reached from 2a00:1450:4001::23" in differences(
        monkeypatch, dual_stack, **over_ipv4
    )
    assert "ssh -4" in differences(monkeypatch, dual_stack, **over_ipv4)
    assert differences(monkeypatch, Machine("192.168.1.23"), **over_ipv4) == "", (
        "without a route IPv6 is not tried"
    )
    assert differences(monkeypatch, Machine(), **over_ipv4) == ""
    addresses[:] = [(socket.AF_INET, "198.51.100.1")]
    split = Machine("192.168.1.23", **{"198.51.100.1": "10.8.0.2"})
    assert "reached from 10.8.0.2, and the API was from 192.168.1.23" in differences(
        monkeypatch, split, **over_ipv4
    )
    over_ipv6: dict[str, Any] = {"source": "2001:db8::7/128", "local": "2001:db8::7", "host": "bastion"}
    assert "ssh -6" in differences(monkeypatch, Machine("192.168.1.23", "2001:db8::7"), **over_ipv6)


# ---------------------------------------------------------------------- remembered grants

URL = "https://api.example.com/prod"


def grant(name: str = "g", *targets: str, seconds: int = 3600) -> Any:
    return SimpleNamespace(
        id=name,
        principal=SimpleNamespace(id="id-alice"),
        targets=[SimpleNamespace(name=target) for target in targets or ("bastion",)],
        source="203.0.113.7/32",
        seconds_left=seconds,
    )


def remember(
    granted: Any, everything: bool = False, fingerprint: str = "here", by: state.Opener = "hand"
) -> None:
    state.remember(URL, granted, fingerprint, everything=everything, asked_at=time.time(), by=by)


def test_a_grant_is_remembered_for_its_api_network_and_targets(home: Path) -> None:
    remember(grant("g", "bastion", "web"))
    assert state.known(URL, ["bastion"], "here")
    assert state.known(URL, ["web", "bastion"], "here")
    assert not state.known(URL, ["bastion", "db"], "here")
    assert not state.known(URL, ["bastion"], "elsewhere")
    assert not state.known(URL + "2", ["bastion"], "here")
    assert not state.known(URL, [], "here"), "two named targets need not be all targets"
    remember(grant("h", "bastion", "web"), everything=True)
    assert state.known(URL, [], "here")


def test_a_grant_is_not_used_in_its_last_minute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    remember(grant("long", "bastion", seconds=3600))
    remember(grant("short", "web", seconds=20))
    for later, bastion, web in (
        (0, True, True),
        (17, True, True),
        (19, True, False),
        (3530, True, False),
        (3545, False, False),
    ):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        assert bool(state.known(URL, ["bastion"], "here")) == bastion
        assert bool(state.known(URL, ["web"], "here")) == web


def test_a_remembered_grant_is_forgotten_by_id_by_api_and_by_time(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(grant("a", "bastion"))
    remember(grant("b", "web"))
    state.forget("a")
    assert not state.known(URL, ["bastion"], "here")
    assert state.known(URL, ["web"], "here")
    state.forget(url=URL)
    assert not state.known(URL, ["web"], "here")
    remember(grant("c", "bastion"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 4000)
    remember(grant("d", "web"))
    entries = json.loads((config.state_folder() / "grants.json").read_text())
    assert [entry["id"] for entry in entries] == ["d"], "the file does not grow for ever"


def test_the_state_file_is_its_owners_alone_and_ignored_when_others_can_write_it(
    home: Path, no_umask: None
) -> None:
    remember(grant())
    file = config.state_folder() / "grants.json"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o666)
    assert not state.known(URL, ["bastion"], "here"), "others could have written the file"


@pytest.mark.parametrize("content", ["not json", "{}", "[1]", "null", '[{"until": 1}]'])
def test_a_broken_state_file_is_treated_as_missing(home: Path, content: str) -> None:
    slot = state.WatchSlot("w")
    slot.keep([])
    (watches,) = (file.name for file in config.state_folder().glob("watch-*.json"))
    for name in ("grants.json", "completion.json", watches):
        config.write_private(config.state_folder() / name, [])
        (config.state_folder() / name).write_text(content)
    assert state.known(URL, ["bastion"], "here") is None
    assert state.opened_by("hand", URL, ["bastion"]) == []
    assert state.kept_words(URL, "targets", 60) is None
    assert slot.ids == []
    state.forget("g")
    remember(grant())
    state.keep_words(URL, "targets", {"bastion": "22/tcp"})
    slot.keep(["g"])
    assert state.known(URL, ["bastion"], "here")
    assert state.kept_words(URL, "targets", 60) == {"bastion": "22/tcp"}
    assert slot.ids == ["g"]
    slot.close()


def test_a_grant_is_remembered_with_its_opener(home: Path) -> None:
    remember(grant("short", "bastion", seconds=60))
    remember(grant("long", "bastion", seconds=600), fingerprint="")
    remember(grant("all", "bastion", "web"), everything=True)
    remember(grant("job", "bastion"), by="script")
    remember(grant("ssh", "bastion"), by="hook")
    assert [entry["id"] for entry in state.opened_by("hand", URL, ["bastion"])] == ["long", "short"]
    assert [entry["id"] for entry in state.opened_by("hand", URL, [])] == ["all"]
    assert [entry["id"] for entry in state.opened_by("hook", URL, ["bastion"])] == ["ssh"]
    assert state.opened_by("watch", URL, ["bastion"]) == []
    assert state.opened_by("hand", URL + "2", ["bastion"]) == []
    state.forget("long", "short")
    assert state.opened_by("hand", URL, ["bastion"]) == []


def test_a_watch_finds_the_grants_of_a_dead_watch_and_not_of_a_running_one(home: Path) -> None:
    first, second = state.WatchSlot("w"), state.WatchSlot("w")
    first.keep(["a"])
    second.keep(["b"])
    assert (first.ids, second.ids) == (["a"], ["b"])
    other_name = state.WatchSlot("another name")
    assert other_name.ids == []
    first.close()
    assert first.ids == []
    third = state.WatchSlot("w")
    assert third.ids == ["a"], "its lock went with the process"
    for slot in (second, third, other_name):
        slot.close()


def test_a_watch_without_file_locks_or_a_folder_remembers_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as windows:
        windows.setitem(sys.modules, "fcntl", None)
        slot = state.WatchSlot("w")
        slot.keep(["a"])
        assert slot.ids == []
        slot.close()
    (home / ".local").write_text("in the way")
    slot = state.WatchSlot("w")
    slot.keep(["a"])
    assert slot.ids == []


def test_a_file_that_cannot_be_written_is_no_error(home: Path) -> None:
    (home / ".local").write_text("in the way")
    remember(grant())
    with state.opening():
        assert state.known(URL, ["bastion"], "here") is None


def test_one_caller_opens_at_a_time_and_the_wait_for_it_is_bounded(home: Path) -> None:
    inside: list[int] = []
    at_once: list[int] = []

    def open_once() -> None:
        with state.opening():
            inside.append(1)
            at_once.append(len(inside))
            threading.Event().wait(0.02)
            inside.pop()

    threads = [threading.Thread(target=open_once) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == [1] * 5
    with state.opening(), pytest.raises(KnockError, match="under way for too long"), state.opening(wait=0.1):
        pass


def test_without_file_locks_opening_does_not_wait(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with state.opening(), state.opening(wait=0):
        pass
