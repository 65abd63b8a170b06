"""Time passes: a few times a second the janitor sweeps what has reached a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

TICK: Final = 0.1
"""Seconds between two sweeps: no time limit is kept more exactly than that."""


async def run_janitor(
    sweep: Callable[[float], None],
    clock: Callable[[], float],
    failed: Callable[[Exception], None],
    tick: float = TICK,
) -> None:
    """Call `sweep` with the time, for ever, and `failed` with what it raises; ends only by being cancelled."""
    while True:
        await asyncio.sleep(tick)
        try:
            sweep(clock())
        except Exception as error:  # noqa: BLE001 - without the next sweep no time limit would hold any more
            failed(error)
