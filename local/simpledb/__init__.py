"""A complete SimpleDB inside moto: every operation, set semantics, conditions, limits and all of Select.

moto's own is a stub: it ignores `Expected`, keeps only one of several replaced values, empties a domain that
is created again, has no Select, no deletes and no batches, and does not answer for us-east-1. `install()`
replaces it, for the in-process mock and for the server.

Not simulated: reads that lag behind writes, throttling (503), Select's five seconds, the size limits of
a domain (10 GB) and of a request (1 MB), export to S3, and signatures, which moto does not check.
"""

from __future__ import annotations

import re

import moto.backend_index
import moto.sdb.urls

from local.simpledb.responses import Responses

__all__ = ["install"]

# moto's server reads a region from the end of the User-Agent, which is any text, or empty.
_HOST = r"https?://sdb(?:\.[^/]*)?\.amazonaws\.com"


def install() -> None:
    """Replace moto's SimpleDB with this one, in this process.

    Call it before a mock or a server starts. A second call changes nothing. It cannot be undone.
    """
    moto.sdb.urls.url_bases[:] = [_HOST]
    moto.sdb.urls.url_paths["{0}/$"] = Responses.dispatch
    patterns = moto.backend_index.backend_url_patterns
    at = next(at for at, (service, _) in enumerate(patterns) if service == "sdb")
    patterns[at] = ("sdb", re.compile(_HOST))
