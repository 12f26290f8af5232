"""Finds the proxy for the API's host: HTTPS_PROXY, ALL_PROXY and NO_PROXY, or the system's setting.

Proxies are only used for tunnels (CONNECT): the key goes through them inside TLS, and never in clear text.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from .errors import ConfigurationError


class Proxy(NamedTuple):
    """A proxy, and the headers to send to it."""

    host: str
    port: int
    headers: dict[str, str]


def proxy_for(host: str, port: int) -> Proxy | None:
    """Find the proxy for a host; None for a direct connection. Raises ConfigurationError if malformed."""
    names = {name.lower() for name in os.environ}
    if sys.platform not in ("darwin", "win32") and not names & {"https_proxy", "all_proxy"}:
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    address = proxies.get("https") or proxies.get("all")
    if not address or proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        proxy_host, proxy_port = parts.hostname, parts.port or 80
    except ValueError:
        proxy_host, proxy_port = None, 0
    if not proxy_host or parts.scheme != "http":
        raise ConfigurationError(
            f"the proxy setting for {host} is not one of http://PROXY:PORT (its kind is {parts.scheme!r}): "
            "change HTTPS_PROXY, or name the API's host in NO_PROXY"
        )
    headers = {}
    if parts.username is not None:
        import base64

        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["proxy-authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    return Proxy(proxy_host, proxy_port, headers)
