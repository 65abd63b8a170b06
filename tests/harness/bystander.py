"""A client that works all the while that something happens to others, and must notice nothing of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

from harness.waiting import allowed

PATIENCE = 3.0
PAUSE = 0.005


@contextmanager
def undisturbed(url: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Keep one connection busy with transactions and queries; raise where one fails, or takes `patience` seconds."""
    done = threading.Event()

    def work(connection: psycopg.Connection[tuple[object, ...]]) -> tuple[int, float]:
        turns, slowest = 0, 0.0
        while not done.is_set() or turns == 0:
            started = time.monotonic()
            with connection.transaction():
                assert connection.execute("select %s::int", [turns]).fetchone() == (turns,)
            assert connection.execute("select 'whole'").fetchone() == ("whole",)
            slowest = max(slowest, time.monotonic() - started)
            turns += 1
            done.wait(PAUSE)
        return turns, slowest

    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection, ThreadPoolExecutor(1) as pool:
        working = pool.submit(work, connection)
        try:
            yield
        finally:
            done.set()
        turns, slowest = working.result()
        assert slowest < allowed(patience), f"the slowest of {turns} turns took {slowest:.1f} s"
