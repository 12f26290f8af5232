"""EC2's answers as trees: names without their namespace, which botocore does not look at."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, fromstring, tostring

__all__ = ["Element", "parse", "text", "write"]


def parse(body: bytes) -> Element:
    """Read an answer of the embedded EC2's own."""
    return fromstring(re.sub(rb' xmlns="[^"]*"', b"", body, count=1))  # noqa: S314  # our own


def text(element: Element, name: str) -> str:
    """Give the text of an element's part, nothing where it has none."""
    return element.findtext(name) or ""


def write(root: Element) -> bytes:
    """Write an answer again."""
    return b'<?xml version="1.0" encoding="UTF-8"?>' + tostring(root)
