"""What was noticed on the way and is no error: the program says it at its end, a line each.

A module of its own, since files and the keyring are read where nobody knows whether a person is there.
"""

from __future__ import annotations

warnings: list[str] = []


def warn(text: str) -> None:
    """Note a warning, once."""
    if text not in warnings:
        warnings.append(text)
