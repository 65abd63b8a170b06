"""Servers that stop, crash, hang, fill up or refuse the proxy, and what clients of this and of other servers see."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from harness.databases import create_database
from harness.disasters import SEED, login
from harness.rawclient import query
from harness.registries import TenantUnderTest
from harness.waiting import allowed, wait_until
from harness.world import World

from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts
from registry.contract import Address, Limits, Secret
from registry.domain.models import ServerChange

PROXY = {"pool": {"pool_size": 4, "retry_most": 0.4, "connect_timeout": 0.5}}
BACK_IN_SERVICE = 5.0
"""Seconds after which a server that is back must be in use again, with the `retry_most` above."""
TURNS = 300
ENDED_BY_SERVER = {"57P01", "57P02", "57P03", "08006"}


@pytest.fixture(scope="module")
def fragile(world: World) -> Iterator[EmbeddedServer]:
    """A server that every test may break and must leave running."""
    with EmbeddedServer(18, durable=False, max_connections=13) as server:
        world.registry.add_server(server.facts, "fragile")
        yield server


@pytest.fixture
def tenant(world: World, fragile: EmbeddedServer) -> TenantUnderTest:
    """A tenant on the fragile server, with its backends open."""
    made = world.tenant(fragile.facts, database=create_database(fragile.facts, seed=SEED))
    assert works(world, made)
    return made


def works(world: World, tenant: TenantUnderTest) -> bool:
    """Whether a new client can connect and ask."""
    try:
        with psycopg.connect(world.url(tenant), autocommit=True) as connection:
            return connection.execute("select 1").fetchone() == (1,)
    except psycopg.Error:
        return False


@contextmanager
def untroubled(world: World, tenant: TenantUnderTest) -> Iterator[None]:
    """A client of another server works all the while and never waits for long."""
    done = threading.Event()

    def work() -> float:
        slowest = 0.0
        with psycopg.connect(world.url(tenant), autocommit=True) as connection:
            while not done.is_set():
                started = time.monotonic()
                assert connection.execute("select 1").fetchone() == (1,)
                slowest = max(slowest, time.monotonic() - started)
                done.wait(0.005)
        return slowest

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield
        finally:
            done.set()
        assert working.result() < allowed(1.0)


def ask(connection: psycopg.Connection[tuple[object, ...]], sql: str = "select 1") -> str | None:
    """The SQLSTATE with which a statement fails, "lost" without one, None where it works."""
    try:
        connection.execute(sql)
    except psycopg.Error as error:
        return error.sqlstate or "lost"
    return None


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_is_stopped_and_started(
    mode: str, world: World, pg17: ServerFacts, fragile: EmbeddedServer, tenant: TenantUnderTest
) -> None:
    with (
        untroubled(world, world.tenant(pg17)),
        psycopg.connect(world.url(tenant), autocommit=True) as idle,
        psycopg.connect(world.url(tenant)) as in_transaction,
    ):
        idle.execute("select 1")
        in_transaction.execute("update mine set note = 'dirty'")
        fragile.stop(mode)
        assert ask(in_transaction) in ENDED_BY_SERVER
        wait_until(lambda: ask(idle) == "57P03", what="a clear refusal")
        with pytest.raises(psycopg.errors.CannotConnectNow, match="cannot be reached") as caught:
            idle.execute("select 1")
        assert "nothing has run" in str(caught.value.diag.message_hint)
        fragile.start()
        wait_until(lambda: ask(idle) is None, seconds=BACK_IN_SERVICE, what="the idle client served again")
        assert idle.execute("select count(*) from mine where note = 'dirty'").fetchone() == (0,)
    world.wait_for_rest(tenant)
    told = [line for line in world.proxy.logs().splitlines() if "backends can be opened again" in line]
    assert sum(f'"{tenant.slug}"' in line for line in told) == 1


def test_a_crash_of_one_backend_restarts_the_server_and_service_resumes(
    world: World, fragile: EmbeddedServer, tenant: TenantUnderTest
) -> None:
    with (
        psycopg.connect(world.url(tenant), autocommit=True) as victim,
        psycopg.connect(world.url(tenant), autocommit=True) as other,
    ):
        other.execute("select 1")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, victim, "select pg_sleep(30)")
            running = "select pid from pg_stat_activity where query like '%pg_sleep(30)%' and pid <> pg_backend_pid()"
            pid = int(wait_until(lambda: fragile.psql(running), what="a query that runs"))
            os.kill(pid, signal.SIGKILL)
            assert asked.result() in ENDED_BY_SERVER
        wait_until(lambda: ask(other) is None, seconds=BACK_IN_SERVICE, what="service again")
    wait_until(lambda: works(world, tenant), seconds=BACK_IN_SERVICE, what="new clients served")


def test_the_whole_server_killed_in_the_middle_of_everything(
    world: World, pg17: ServerFacts, fragile: EmbeddedServer, tenant: TenantUnderTest
) -> None:
    with untroubled(world, world.tenant(pg17)):
        clients = [login(world.proxy, tenant) for _ in range(6)]
        for number, client in enumerate(clients):
            client.send(query("begin; select pg_sleep(30)" if number % 2 else "copy mine from stdin"))
        wait_until(lambda: tenant.database.backends("state = 'active'") == 4, what="a full pool")
        fragile.kill()
        for client in clients:
            states = [message.fields["C"] for message in client.read_until("E") if message.kind == "E"]
            assert set(states) <= ENDED_BY_SERVER
            client.close()
        fragile.start()
        wait_until(lambda: works(world, tenant), seconds=BACK_IN_SERVICE, what="service again")
    world.wait_for_rest(tenant)


def test_killing_backends_all_the_time_loses_no_slot(
    world: World, fragile: EmbeddedServer, tenant: TenantUnderTest
) -> None:
    done = threading.Event()

    def kill() -> int:
        killed = 0
        while not done.is_set():
            killed += tenant.database.terminate_backends("random() < 0.5")
        return killed

    def work() -> int:
        served = 0
        while served < TURNS:
            # Named statements would pin: a client that is idle then loses its backend, and so its session.
            with psycopg.connect(world.url(tenant), autocommit=True, prepare_threshold=None) as connection:
                while served < TURNS and (state := ask(connection, "select slug from mine where id = 3")) is None:
                    served += 1
                assert served == TURNS or state in ENDED_BY_SERVER
        return served

    with ThreadPoolExecutor(5) as pool:
        killing = pool.submit(kill)
        working = [pool.submit(work) for _ in range(4)]
        try:
            assert [job.result() for job in working] == [TURNS] * 4
        finally:
            done.set()
        assert killing.result() > 3
    world.wait_for_rest(tenant)


def test_a_server_that_has_fewer_connections_than_the_registry_believes(world: World, fragile: EmbeddedServer) -> None:
    tenant = world.tenant(
        fragile.facts, database=create_database(fragile.facts), limits=Limits(pool_size=20, queue_wait_timeout=20)
    )

    def work(number: int) -> None:
        with psycopg.connect(world.url(tenant), autocommit=True) as connection:
            for _ in range(5):
                assert connection.execute("select %s::int from pg_sleep(0.01)", [number]).fetchone() == (number,)

    # The first one opens a backend, so that the others have something to wait for when no more can be had.
    work(0)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    world.wait_for_rest(tenant)
    tenant.database.terminate_backends()


def test_a_server_that_hangs_is_given_up_after_a_time_and_troubles_nobody_else(
    world: World, pg18: ServerFacts, pg17: ServerFacts
) -> None:
    tenant, other = world.tenant(pg18), world.tenant(pg17)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = ServerChange(addresses=(Address("127.0.0.1", silent.getsockname()[1]),))
        world.registry.do(lambda service: service.add_server("silent", hanging))
        world.registry.set_tenant(tenant.slug, server="silent")
        with untroubled(world, other):
            started = time.monotonic()
            with pytest.raises(psycopg.OperationalError, match="cannot be reached"):
                psycopg.connect(world.url(tenant), connect_timeout=20)
            assert time.monotonic() - started < allowed(3.0)
        real = (Address("127.0.0.1", 1), Address("127.0.0.1", pg18.port))
        world.registry.set_server("silent", addresses=real)
        wait_until(lambda: works(world, tenant), what="the second address tried where the first refuses")


@pytest.mark.parametrize(
    ("wrong", "sqlstate"), [({"role_password": Secret("wrong")}, "28P01"), ({"database_name": "nowhere"}, "3D000")]
)
def test_a_backend_that_cannot_log_in_is_explained_without_secrets_and_repaired_live(
    wrong: dict[str, Any], sqlstate: str, world: World, pg18: ServerFacts
) -> None:
    tenant = world.tenant(pg18, **wrong)
    with pytest.raises(psycopg.OperationalError, match=f"did not accept.*SQLSTATE {sqlstate}") as caught:
        psycopg.connect(world.url(tenant))
    assert "not the client's password" in str(caught.value)
    assert tenant.database.role not in str(caught.value)
    assert f'"sqlstate": "{sqlstate}"' in world.proxy.logs()
    world.registry.repoint(tenant.slug, tenant.database)
    wait_until(lambda: works(world, tenant), seconds=2.0, what="the repair in force")


def test_a_role_that_may_have_few_connections_only(
    world: World, make_role_limit: Callable[[int], TenantUnderTest]
) -> None:
    tenant = make_role_limit(2)

    def work(number: int) -> None:
        with psycopg.connect(world.url(tenant), autocommit=True) as connection:
            for _ in range(10):
                assert connection.execute("select %s::int", [number]).fetchone() == (number,)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert tenant.database.backends() <= 2


@pytest.fixture
def make_role_limit(world: World, pg18: ServerFacts) -> Callable[[int], TenantUnderTest]:
    def make(limit: int) -> TenantUnderTest:
        tenant = world.tenant(pg18)
        pg18.psql(f"alter role {tenant.database.role} connection limit {limit}")
        assert works(world, tenant)
        return tenant

    return make
