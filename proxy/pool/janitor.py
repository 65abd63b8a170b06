"""Time passes: a few times a second the janitor sweeps what has reached a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

TICK: Final = 0.1
"""Seconds between two sweeps: no time limit is kept more exactly than that."""


async def run_janitor(sweep: Callable[[float], None], clock: Callable[[], float], tick: float = TICK) -> None:
    """Call `sweep` with the time, for ever; ends only by being cancelled."""
    while True:
        await asyncio.sleep(tick)
        sweep(clock())
