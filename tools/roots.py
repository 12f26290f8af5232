"""Writes Amazon's root certificates, which the functions trust (`grants/trust.py`), from certifi.

    python -m tools.roots

They are checked by their public keys, which Amazon lists at https://www.amazontrust.com/repository/ : a root
may have several certificates, and all have the same key.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path

import certifi

from tools import ROOT

FILE = ROOT / "functions" / "roots" / "amazon.pem"

# SHA-256 of the subject's public key, as Amazon lists them.
KEYS = {
    "Amazon Root CA 1": "fbe3018031f9586bcbf41727e417b7d1c45c2f47f93be372a17b96b50757d5a2",
    "Amazon Root CA 2": "7f4296fc5b6a4e3b35d3c369623e364ab1af381d8fa7121533c9d6c633ea2461",
    "Amazon Root CA 3": "36abc32656acfc645c61b71613c4bf21c787f5cabbee48348d58597803d7abc9",
    "Amazon Root CA 4": "f7ecded5c66047d28ed6466b543c40e0743abe81d109254dcf845d4c2c7853c5",
    "Starfield Services Root Certificate Authority - G2": (
        "2b071c59a0a0ae76b0eadb2bad23bad4580b69c3601b630c2eaf0613afa83f92"
    ),
}


class RootMissing(Exception):
    """certifi lacks a root of Amazon's, or has another key under its name."""


def text() -> str:
    """Give the content of the file: Amazon's roots, each below its name. Raises RootMissing."""
    bundle = Path(certifi.where()).read_text()
    return "".join(_root(bundle, name, key) for name, key in KEYS.items())


def _root(bundle: str, name: str, key: str) -> str:
    match = re.search(rf'^# Label: "{re.escape(name)}"\n(?:#.*\n)*(-----BEGIN[^#]*)', bundle, re.MULTILINE)
    if match is None:
        raise RootMissing(f"certifi {certifi.__version__} has no root called {name}")
    pem = match[1].strip()
    if hashlib.sha256(_public_key(ssl.PEM_cert_to_DER_cert(pem))).hexdigest() != key:
        raise RootMissing(f"the key of {name} in certifi {certifi.__version__} is not the one Amazon lists")
    return f"# {name}\n{pem}\n"


def _public_key(certificate: bytes) -> bytes:
    """Give the subjectPublicKeyInfo of a certificate in DER: the seventh element of its signed part (RFC
    5280, 4.1).

    It is read here because `cryptography` will refuse certificates with the serial number 0, as Starfield's.
    """
    content, _ = _parts(certificate)[0]
    signed, _ = _parts(content)[0]
    return _parts(signed)[6][1]


def _parts(value: bytes) -> list[tuple[bytes, bytes]]:
    """Split a DER value into its elements: of each its content, and the whole element."""
    parts, at = [], 0
    while at < len(value):
        begin, length = at + 2, value[at + 1]
        if length > 0x7F:  # the length of the length
            begin += length - 0x80
            length = int.from_bytes(value[at + 2 : begin])
        parts.append((value[begin : begin + length], value[at : begin + length]))
        at = begin + length
    return parts


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())


if __name__ == "__main__":
    main()
