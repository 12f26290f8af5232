"""How tests wait: by polling a condition, with a deadline after which they fail with a reason.

Tests that move the clock while they wait use `harness.Knock.wait`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(
    condition: Callable[[], Any],
    why: str = "it did not happen",
    seconds: float = 15,
    pause: float = 0.01,
    longest: float = 0.05,
) -> Any:
    """Wait until a condition is true, and give its value.

    `pause` is the time between two calls of it, in seconds; it grows to `longest`. Fails with `why` after
    `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{why} (within {seconds} s)"
        time.sleep(pause)
        pause = min(pause * 1.5, longest)
    return value
