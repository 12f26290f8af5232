"""Warnings that the program prints at its end, a line each.

They are collected here because the code that reads files and the keyring is also used as a library, without a
terminal.
"""

from __future__ import annotations

warnings: list[str] = []


def warn(text: str) -> None:
    """Note a warning, once."""
    if text not in warnings:
        warnings.append(text)
