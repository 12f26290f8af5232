"""How tests wait: they look again until something holds, and fail, saying why, when it does not in time.

`harness.Knock.wait` is the other way, for tests that move the clock while they wait.
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
    """Wait until a condition holds, and give what it answered.

    `pause` is that between two looks, in seconds; it grows to `longest`. Fails with `why` after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{why} (within {seconds} s)"
        time.sleep(pause)
        pause = min(pause * 1.5, longest)
    return answer
