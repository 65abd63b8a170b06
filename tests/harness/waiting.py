"""Waiting on conditions instead of sleeping, with limits that mean the same on a busy machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LOADAVG = Path("/proc/loadavg")
PATIENCE = 15.0
INTERVAL = 0.01
LAST_RESORT = 90.0


def crowding() -> float:
    """How many tasks want each processor, now and in the last minute; 1 where all have one of their own."""
    now = int(LOADAVG.read_text().split()[3].partition("/")[0]) if LOADAVG.exists() else 0
    return max(1.0, max(now, os.getloadavg()[0]) / len(os.sched_getaffinity(0)))


def allowed(seconds: float) -> float:
    """So many seconds of a machine of one's own: more where more is running than there are processors."""
    return seconds * crowding()


class Patience:
    """How long is waited yet: `seconds` of a machine of one's own, `LAST_RESORT` whatever happens."""

    def __init__(self, seconds: float, what: str) -> None:
        self._left = self._seconds = seconds
        self._what = what
        self._began = self._last = time.monotonic()

    def use(self) -> None:
        """Charge for the time since the last call; raises AssertionError when nothing is left."""
        now = time.monotonic()
        self._left -= (now - self._last) / crowding()
        self._last = now
        in_time = self._left > 0 and now - self._began < LAST_RESORT
        assert in_time, f"{self._what} did not come true within {self._seconds} s ({now - self._began:.1f} s here)"


def wait_until(condition: Callable[[], T], *, seconds: float = PATIENCE, what: str = "the condition") -> T:
    """Call `condition` until it is true and return its value; fail after `seconds` of a machine of one's own."""
    patience = Patience(seconds, what)
    while True:
        value = condition()
        # What came true too late has not come true in time.
        patience.use()
        if value:
            return value
        time.sleep(INTERVAL)


async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, seconds: float = PATIENCE, what: str = "the condition"
) -> T:
    """The same in a coroutine; `condition` may be a coroutine function."""
    patience = Patience(seconds, what)
    while True:
        outcome = condition()
        value = await outcome if isinstance(outcome, Awaitable) else outcome
        patience.use()
        if value:
            return value
        await asyncio.sleep(INTERVAL)
