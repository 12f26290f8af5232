"""A task that only returns the time, to measure the engine's own lag."""

import time


def handler(_event: object, _context: object) -> dict[str, float]:
    return {"at": time.time()}
