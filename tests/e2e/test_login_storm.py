"""A thousand logins at once do not stall those who are connected."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
from harness.disasters import login
from harness.storm import Storm
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

LOGINS = 1_000
CLIENTS = 4
EVERY = 0.001
SLOWER = 0.15
"""Seconds by which a request may be later through the proxy than on a direct connection at the same time, which shows
what the machine has to do besides.  All logins together take the proxy ten times as long."""


def p99(waits: list[float]) -> float:
    """The wait that one of a hundred requests exceeds, if one is made every millisecond whatever became of the others.

    Who asks again only when he has his answer meets a stall once, however long it is.
    """
    return statistics.quantiles(_of_all_requests(waits), n=100)[98]


def _of_all_requests(waits: list[float]) -> Iterator[float]:
    for wait in waits:
        yield wait
        yield from (wait - EVERY * step for step in range(1, int(wait / EVERY)))


def test_established_clients_are_served_during_a_thousand_logins(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(max_clients=2_000, pool_size=4))
    through: list[float] = []
    direct: list[float] = []
    everybody_is_in = threading.Event()
    with ExitStack() as stack:
        clients = [stack.enter_context(login(world.proxy, tenant)) for _ in range(CLIENTS)]
        bystander = stack.enter_context(psycopg.connect(tenant.database.url, autocommit=True))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        storm = stack.enter_context(Storm(world.proxy.port, tenant, LOGINS))
        storm.wait_for_connections()

        def wait_for_all() -> None:
            try:
                storm.wait()
            finally:
                everybody_is_in.set()

        began = time.monotonic()
        waiting = pool.submit(wait_for_all)
        while not everybody_is_in.is_set():
            for client in clients:
                started = time.monotonic()
                assert client.rows("select 1") == [("1",)]
                middle = time.monotonic()
                bystander.execute("select 1")
                through.append(middle - started)
                direct.append(time.monotonic() - middle)
        waiting.result()
        lasted = time.monotonic() - began
        assert world.clients(tenant) == LOGINS + CLIENTS
        assert tenant.database.backends() <= 4 + 1
    wait_until(lambda: world.clients(tenant) == 0, what="everybody gone")
    assert lasted > 1.5 * SLOWER, f"{LOGINS} logins in {lasted:.3f} s: a stall for all of them would not be noticed"
    late, noise = p99(through), p99(direct)
    assert late < noise + SLOWER, f"p99 {late:.3f} s, on a direct connection {noise:.3f} s"
