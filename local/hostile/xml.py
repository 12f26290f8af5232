"""EC2's answers as element trees, without XML namespaces, which botocore ignores."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, fromstring, tostring

__all__ = ["Element", "parse", "text", "write"]


def parse(body: bytes) -> Element:
    """Parse an answer of the embedded EC2."""
    return fromstring(re.sub(rb' xmlns="[^"]*"', b"", body, count=1))  # noqa: S314  # our own


def text(element: Element, name: str) -> str:
    """Return the text of a child element; empty where it is missing."""
    return element.findtext(name) or ""


def write(root: Element) -> bytes:
    """Serialize an answer."""
    return b'<?xml version="1.0" encoding="UTF-8"?>' + tostring(root)
