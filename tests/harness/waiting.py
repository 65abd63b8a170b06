"""Waiting on conditions instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 15.0
INTERVAL = 0.01


def wait_until(condition: Callable[[], T], *, seconds: float = PATIENCE, what: str = "the condition") -> T:
    """Call `condition` until it is true and return its value; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(INTERVAL)
    return value


async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, seconds: float = PATIENCE, what: str = "the condition"
) -> T:
    """The same in a coroutine; `condition` may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        outcome = condition()
        value = await outcome if isinstance(outcome, Awaitable) else outcome
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(INTERVAL)
