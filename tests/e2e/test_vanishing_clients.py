"""Clients that vanish in the middle of something, one case after the other, and what the next client finds."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from harness.disasters import DISASTERS, SEED, leftovers, login
from harness.rawclient import RawClient, query, terminate
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

PROXY = {"pool": {"pool_size": 3}}
POOL_SIZE = 3


def vanish(client: RawClient) -> None:
    """As a killed machine."""
    client.reset()


def hang_up(client: RawClient) -> None:
    """As a killed process: what the kernel has received unread makes it a reset, else it is an orderly close."""
    client.sock.close()


def say_goodbye(client: RawClient) -> None:
    """As a program that ends in good order without waiting for its replies."""
    client.send(terminate())
    client.sock.close()


def close_one_half(client: RawClient) -> None:
    """As a program that says that nothing more will come, and reads on."""
    client.sock.shutdown(socket.SHUT_WR)
    take_all(client)
    client.sock.close()


def take_all(client: RawClient, seconds: float = 10.0) -> None:
    """Read until the connection ends, or nothing more comes for so long."""
    client.sock.settimeout(seconds)
    try:
        while client.sock.recv(1 << 20):
            pass
    except (TimeoutError, ConnectionError):
        pass


ENDINGS = [vanish, hang_up, say_goodbye, close_one_half]


@pytest.fixture(scope="module")
def alone(world: World, pg18: ServerFacts) -> TenantUnderTest:
    """A tenant with one backend: whoever comes next gets the one that was left."""
    return world.tenant(pg18, seed=SEED, limits=Limits(pool_size=1, queue_wait_timeout=10.0))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("disaster", DISASTERS)
def test_next_client_finds_a_clean_backend_after(
    disaster: str, ending: Callable[[RawClient], None], world: World, alone: TenantUnderTest
) -> None:
    client = login(world.proxy, alone)
    client.send(*DISASTERS[disaster])
    ending(client)
    assert leftovers(world.proxy, alone, 1) == set()
    assert alone.database.backends() == 1


@pytest.mark.parametrize("disaster", DISASTERS)
def test_next_client_finds_a_clean_backend_after_the_replies_have_come(
    disaster: str, world: World, alone: TenantUnderTest
) -> None:
    with login(world.proxy, alone) as client:
        client.send(*DISASTERS[disaster])
        take_all(client, 0.05)
    assert leftovers(world.proxy, alone, 1) == set()


@pytest.mark.parametrize("ending", [vanish, hang_up, close_one_half])
def test_nobodys_query_is_cancelled_at_once(
    ending: Callable[[RawClient], None], world: World, alone: TenantUnderTest
) -> None:
    client = login(world.proxy, alone)
    client.send(query("select pg_sleep(60)"))
    wait_until(lambda: alone.database.backends("query like '%pg_sleep(60)' and state = 'active'"), what="the query")
    ending(client)
    wait_until(lambda: alone.database.backends() == 0, seconds=2.0, what="the end of a query that nobody waits for")


def test_what_was_asked_before_a_goodbye_is_done(world: World, alone: TenantUnderTest) -> None:
    with login(world.proxy, alone) as client:
        client.rows("select 1")
        client.send(*[query(f"update mine set note = 'late {n}' where id = {n}") for n in (7, 8, 9)], terminate())
    count = "select count(*) from mine where note like 'late %'"
    wait_until(lambda: alone.database.psql(count) == "3", what="the statements before the goodbye")


def test_a_client_that_stays_is_not_disturbed_by_crowds_of_vanishing_ones(
    world: World, pg18: ServerFacts, pg17: ServerFacts
) -> None:
    tenants = [world.tenant(server, seed=SEED) for server in (pg18, pg18, pg17)]
    stop = threading.Event()

    def crash(seed: int) -> int:
        chance = random.Random(seed)
        count = 0
        while not stop.is_set():
            client = login(world.proxy, tenants[count % len(tenants)])
            pieces = chance.choice(list(DISASTERS.values()))
            # What is cut short makes nonsense of what follows, at which the proxy hangs up.
            with client, suppress(OSError):
                for piece in pieces:
                    client.send(piece[: chance.randrange(1, len(piece) + 1)] if chance.random() < 0.1 else piece)
                if chance.random() < 0.3:
                    take_all(client, 0.02)
                chance.choice(ENDINGS[:3])(client)
            count += 1
        return count

    def stay(tenant: TenantUnderTest) -> None:
        with login(world.proxy, tenant) as client:
            for turn in range(300):
                if turn % 3 == 0:
                    assert client.rows("select slug from mine where id = 5") == [(tenant.database.name,)]
                elif turn % 3 == 1:
                    client.rows("begin")
                    assert client.rows("update mine set note = 'ok' where id = 6 returning slug") == [
                        (tenant.database.name,)
                    ]
                    client.rows("commit")
                else:
                    slugs = client.rows("select slug, note from mine")
                    assert len(slugs) == 200
                    assert {slug for slug, _ in slugs} == {tenant.database.name}

    with ThreadPoolExecutor(8) as pool:
        crashing = [pool.submit(crash, seed) for seed in range(3)]
        staying = [pool.submit(stay, tenant) for tenant in tenants]
        try:
            for job in staying:
                job.result()
        finally:
            stop.set()
        assert sum(job.result() for job in crashing) > 20
    for tenant in tenants:
        world.wait_for_rest(tenant)
        assert leftovers(world.proxy, tenant, POOL_SIZE) == set()
        assert tenant.database.backends() <= POOL_SIZE
