"""Waiting on conditions instead of sleeping, with limits that mean the same on a busy machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 15.0
INTERVAL = 0.01
MOST_PER_LOOK = 0.1
"""Seconds that one look at a condition may be charged with: more is the fault of whatever else runs."""
LAST_RESORT = 90.0


def allowed(seconds: float) -> float:
    """So many seconds of a machine of one's own: more where more is running than there are processors."""
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


class Patience:
    """How long is waited yet: `seconds` of a machine of one's own, `LAST_RESORT` whatever happens."""

    def __init__(self, seconds: float, what: str) -> None:
        self._left = self._seconds = seconds
        self._what = what
        self._began = self._last = time.monotonic()

    def use(self) -> None:
        """Charge for the time since the last call; raises AssertionError when nothing is left."""
        now = time.monotonic()
        self._left -= min(now - self._last, MOST_PER_LOOK) / allowed(1.0)
        self._last = now
        in_time = self._left > 0 and now - self._began < LAST_RESORT
        assert in_time, f"{self._what} did not come true within {self._seconds} s ({now - self._began:.1f} s here)"


def wait_until(condition: Callable[[], T], *, seconds: float = PATIENCE, what: str = "the condition") -> T:
    """Call `condition` until it is true and return its value; fail after `seconds` of a machine of one's own."""
    patience = Patience(seconds, what)
    while not (value := condition()):
        patience.use()
        time.sleep(INTERVAL)
    return value


async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, seconds: float = PATIENCE, what: str = "the condition"
) -> T:
    """The same in a coroutine; `condition` may be a coroutine function."""
    patience = Patience(seconds, what)
    while True:
        outcome = condition()
        value = await outcome if isinstance(outcome, Awaitable) else outcome
        if value:
            return value
        patience.use()
        await asyncio.sleep(INTERVAL)
