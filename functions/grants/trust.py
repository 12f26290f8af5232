"""Whom a function trusts to be AWS: Amazon's own roots alone, where AWS's certificates are Amazon's.

botocore trusts the 120 and more authorities that browsers do, and reads all of them for every new connection:
20 ms of CPU, four times in a knock that meets closed connections. functions/roots/amazon.pem has the five
that Amazon names for trust stores such as this one, all five of them as it asks, and takes 1 ms. They are
certifi's (`tools/roots.py`).
https://www.amazontrust.com/repository/
https://aws.amazon.com/blogs/security/how-to-prepare-for-aws-move-to-its-own-certificate-authority/

They are roots, valid until 2037 at least, and no pins of what AWS may change without a word. botocore's are
used

- outside the partition `aws`: no page of AWS's says whose certificates China, GovCloud, the European
  Sovereign Cloud (whose roots are not in certifi) and the isolated partitions have;
- where somebody names authorities of their own, by AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE;
- behind a proxy, which may show a certificate of its own, and at an endpoint of somebody's
  (AWS_ENDPOINT_URL…);
- with TRUSTED_ROOTS=botocore, the parameter TrustedRoots of template.yaml: the way back, should AWS ever show
  a certificate of another root. The log then says so (`aws_not_trusted`).

The alternative, to go on with botocore's by itself after a failure, would have a certificate that is wrong
accepted at the second look.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import SSLError

from .settings import BadSetting

ROOTS = Path(__file__).resolve().parent.parent / "roots" / "amazon.pem"
CHOICES = ("amazon", "botocore")

ELSEWHERE = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")

logger = logging.getLogger("knock")


def roots(environment: Mapping[str, str], partition: str) -> str | None:
    """Give the file of the roots to trust; None leaves it to botocore. Raises BadSetting."""
    choice = environment.get("TRUSTED_ROOTS") or "amazon"
    if choice not in CHOICES:
        raise BadSetting(f"TRUSTED_ROOTS is {choice!r}; there are {' and '.join(CHOICES)}")
    own = any(environment.get(name) for name in ELSEWHERE) or any(
        name.startswith("AWS_ENDPOINT_URL") for name in environment
    )
    if choice == "botocore" or partition != "aws" or own:
        return None
    return str(ROOTS)


def explain(caught_exception: object = None, **_named: Any) -> None:
    """Log what to do when AWS's certificate is not trusted: a handler of botocore's event `needs-retry`."""
    if isinstance(caught_exception, SSLError):
        logger.error(
            "aws_not_trusted",
            extra={
                "detail": str(caught_exception),
                "do": "If AWS shows a certificate of another authority than Amazon's five roots now, update"
                " the stack with TrustedRoots=botocore; if a proxy shows its own, name its authority in"
                " AWS_CA_BUNDLE.",
            },
        )
