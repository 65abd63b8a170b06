"""The janitor goes on, whatever a sweep meets."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from proxy.pool.janitor import run_janitor


async def test_a_sweep_that_fails_is_told_of_and_not_the_last() -> None:
    swept: list[float] = []
    failures: list[Exception] = []
    enough = asyncio.Event()

    def sweep(now: float) -> None:
        swept.append(now)
        if len(swept) == 1:
            raise ValueError("a fault")
        enough.set()

    janitor = asyncio.create_task(run_janitor(sweep, lambda: 7.0, failures.append, tick=0.001))
    async with asyncio.timeout(5):
        await enough.wait()
    janitor.cancel()
    with suppress(asyncio.CancelledError):
        await janitor
    assert set(swept) == {7.0}
    assert [str(failure) for failure in failures] == ["a fault"]
