"""Checks the API's URL and the key, before anything is sent.

A key is sent only to its URL. Plain http is refused, except to this machine.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from .errors import ConfigurationError


def clean_url(url: str) -> str:
    """Check the API's URL, and remove a resource's path that was pasted along. Raises ConfigurationError."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not _printable(url):
        raise ConfigurationError(f"{url[:200]!r} is not a URL like https://api.example.com/prod")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            "the URL is only https://HOST/STAGE: no user, no ?, no #; a key has no place in it"
        )
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigurationError(
            f"http:// would show the key to the network on the way to {host}: use https://"
        )
    path = parts.path.rstrip("/")
    for end in ("/knock", "/console", "/whoami", "/grants"):
        path = path.removesuffix(end)
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}"


def check_key(key: str) -> str:
    """Check that a key can be the value of a header. Raises ConfigurationError, without the key."""
    key = key.strip()
    if not key:
        raise ConfigurationError("the API key is empty")
    if not _printable(key):
        raise ConfigurationError(
            "the API key holds a space or a character that no key has: was it pasted whole?"
        )
    return key


def _printable(text: str) -> bool:
    """Say whether a text is ASCII without spaces and control characters, as in a header or a URL."""
    return all("!" <= character <= "~" for character in text)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine, from its name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
