"""The console page: one file, served as it is under a policy that allows its own script and style alone."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "console.html"


@cache
def read_page() -> tuple[str, str]:
    """Read the page, and write the policy that allows its own script and style alone.

    By hashes and not by nonces: the file is then served byte for byte, and a stolen nonce cannot exist.
    Trusted types make the browser refuse every string that would become markup.
    """
    page = PAGE.read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    directives = (
        "default-src 'none'",
        f"script-src {hashes('script')}",
        f"style-src {hashes('style')}",
        "img-src data:",  # the icon
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return page, "; ".join(directives)
