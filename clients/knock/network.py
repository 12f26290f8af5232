"""Identifies this machine's network without traffic, and predicts the source of its next connection.

A grant lets in one address, as the API saw it. So a client has to know whether this machine is still on the
network that a grant was made from, and whether the next connection will come from the address that was let
in. Both follow from the routing table: a UDP socket that is "connected" has the local address that the system
would use, and sends nothing.

The local address alone does not identify a network: many have an address like 192.168.1.23. So the
fingerprint also has the default gateway and its hardware address, from the system's tables. It does not
change with the public address of a router; `knock watch` calls the API for that.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Client
    from .values import Grant

# Documentation addresses (RFC 5737, RFC 3849): the default route applies to them, and they are not in use.
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def local_address(family: int, to: str | None = None) -> str | None:
    """Give the address from which this machine would reach `to`, or the internet; None without a route."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((to or _SOMEWHERE[socket.AddressFamily(family)], 9))
            address: str = probe.getsockname()[0]
    except OSError:
        return None
    return address.partition("%")[0]


def fingerprint() -> str:
    """Identify the network that this machine is on: the same text means the same addresses and gateway."""
    addresses = [local_address(family) or "-" for family in (socket.AF_INET, socket.AF_INET6)]
    return " ".join([*addresses, *_gateways()])


def _gateways() -> list[str]:
    if sys.platform.startswith("linux"):
        return _gateways_linux(_read("/proc/net/route"), _read("/proc/net/arp"))
    if sys.platform == "darwin":
        gateway, interface = _gateway_mac(run("/sbin/route", "-n", "get", "default"))
        return [gateway, interface, _hardware_mac(run("/usr/sbin/arp", "-n", gateway))] if gateway else []
    return []


def _gateways_linux(routes: str, neighbours: str) -> list[str]:
    """Give each default route's interface, gateway and the gateway's hardware address.

    The tables' formats: https://www.kernel.org/doc/Documentation/networking/proc_net_tcp.txt and proc(5).
    """
    hardware = {}
    for line in neighbours.splitlines()[1:]:
        words = line.split()
        if len(words) >= 6 and words[3] != "00:00:00:00:00:00":
            hardware[words[0], words[5]] = words[3]
    gateways = []
    for line in routes.splitlines()[1:]:
        words = line.split()
        if len(words) >= 8 and words[1] == words[7] == "00000000":
            gateway = socket.inet_ntoa(struct.pack("=L", int(words[2], 16)))
            gateways += [words[0], gateway, hardware.get((gateway, words[0]), "")]
    return gateways


def _gateway_mac(answer: str) -> tuple[str, str]:
    fields = dict(line.strip().partition(": ")[::2] for line in answer.splitlines() if ": " in line)
    return fields.get("gateway", ""), fields.get("interface", "")


def _hardware_mac(answer: str) -> str:
    words = answer.split()
    return words[words.index("at") + 1] if "at" in words[:-1] else ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123 — importing pathlib would take too long here
            return file.read()
    except OSError:
        return ""


def run(*command: str) -> str:
    """Give the output of a command of the system; empty if it fails or takes longer than a second."""
    import subprocess

    try:
        process = subprocess.run(  # noqa: S603 — fixed words
            command, capture_output=True, text=True, timeout=1, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout


def differences(grant: Grant, client: Client, host: str | None = None) -> list[str]:
    """Give, a sentence each, reasons why the next connection may come from another address than
    `grant.source`.

    `host` is the destination of that connection, if known. There are no reasons if the API is on this
    machine, since its route then has no meaning.
    """
    import ipaddress

    path = client.path
    if path is None or (ipaddress.ip_address(path.peer.partition("%")[0]).is_loopback and not path.proxy):
        return []
    source = ipaddress.ip_network(grant.source, strict=False)
    if path.proxy:
        sentence = (
            f"the API was reached through the proxy {path.proxy}, so {grant.source} is the proxy's address: "
            "connections that go around it are not let in. Name the API's host in NO_PROXY, and knock again"
        )
        return [sentence]
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    if host is not None:
        return _towards(host, grant.source, source.version, family, path.local)
    sentences = []
    direct = local_address(family)
    if direct and direct != path.local and ipaddress.ip_address(path.local).version == source.version:
        sentences.append(
            f"the API was reached from {path.local}, and the default route leaves from {direct}: a VPN may "
            f"carry one and not the other, and only {grant.source} is let in"
        )
    if source.version == 6:
        ipv4 = local_address(socket.AF_INET)
        if ipv4:
            sentences.append(
                f"only the IPv6 address {grant.source} is let in: a host that has only IPv4 will see another "
                f"address of yours ({ipv4}, or your router's). Connect with IPv6 (ssh -6, curl -6)"
            )
    else:
        ipv6 = local_address(socket.AF_INET6)
        if ipv6 and ipaddress.ip_address(ipv6).is_global:
            sentences.append(
                f"only the IPv4 address {grant.source} is let in, and this machine also has IPv6 ({ipv6}): "
                "to a host that has IPv6 too, connect with IPv4 (ssh -4, curl -4)"
            )
    return sentences


def only_family(host: str) -> int | None:
    """Give 4 or 6 if a host can be reached from here over IPv4 or IPv6 only; None if not, or not known."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return None
    families = {info[0] for info in infos if local_address(info[0], str(info[4][0]))}
    if len(families) != 1:
        return None
    return {socket.AF_INET: 4, socket.AF_INET6: 6}.get(socket.AddressFamily(families.pop()))


def _towards(host: str, cidr: str, version: int, family: int, api_local: str) -> list[str]:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []  # the connection will fail with the error
    usable = [info for info in infos if local_address(info[0], str(info[4][0]))]
    if not usable:
        return []
    first, address = usable[0][0], str(usable[0][4][0])
    if first != family:
        local, way = local_address(first, address), "-4" if version == 4 else "-6"
        sentence = (
            f"{host} will be reached from {local}, and {cidr} is what was let in: connect with ssh {way}, "
            "or reach the API over the same kind of address"
        )
        return [sentence]
    local = local_address(first, address)
    if local == api_local:
        return []
    sentence = (
        f"{host} will be reached from {local}, and the API was from {api_local}: a VPN may carry one and "
        f"not the other, and only {cidr} is let in"
    )
    return [sentence]
