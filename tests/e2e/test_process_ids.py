"""The process id that a client is told: it is that of its notifications, and on wish that of its own server process."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import asyncpg
import psycopg
import pytest
from harness.disasters import login
from harness.rawclient import PROTOCOL_3_2, Disconnected, RawClient, ServerSaid, query
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits, PoolMode

PROXY = {"pool": {"real_pids": True}}
LOGINS = 64
MODES = [PoolMode.TRANSACTION, PoolMode.SESSION]


def running(tenant: TenantUnderTest) -> bool:
    return tenant.database.backends("state = 'active' and query like '%pg_sleep%'") > 0


def own_pid(client: RawClient) -> int:
    ((pid,),) = client.rows("select pg_backend_pid()")
    return int(pid or 0)


# Notifications.


@pytest.mark.parametrize("mode", MODES)
def test_own_notifications_carry_the_pid_that_the_client_was_told(
    world: World, any_pg: ServerFacts, mode: PoolMode
) -> None:
    tenant = world.tenant(any_pg, pool_mode=mode)
    with (
        psycopg.connect(world.url(tenant), autocommit=True) as listener,
        psycopg.connect(world.url(tenant), autocommit=True) as other,
    ):
        listener.execute("listen news")
        # In transaction mode the settings that are changed in between have the proxy ask a question of its own.
        with listener.transaction():
            listener.execute("set timezone to 'Asia/Tokyo'")
            listener.execute("notify news, 'mine'")
        ((theirs,),) = other.execute("select pg_backend_pid()").fetchall()
        other.execute("notify news, 'theirs'")
        got = {notice.payload: notice.pid for notice in listener.notifies(timeout=10, stop_after=2)}
        assert got == {"mine": listener.info.backend_pid, "theirs": theirs}


async def test_asyncpg_recognises_its_own_notifications(world: World, pg18: ServerFacts) -> None:
    tenant = await asyncio.to_thread(world.tenant, pg18)
    connection = await asyncpg.connect(world.url(tenant))
    seen: asyncio.Queue[tuple[int, object]] = asyncio.Queue()
    await connection.add_listener("news", lambda _, pid, __, payload: seen.put_nowait((pid, payload)))
    await connection.execute("notify news, 'mine'")
    assert await asyncio.wait_for(seen.get(), 10) == (connection.get_server_pid(), "mine")
    await connection.close()


# The server's own process ids.


@pytest.mark.parametrize("protocol", [3 << 16, PROTOCOL_3_2], ids=["3.0", "3.2"])
def test_a_client_in_session_mode_is_told_the_pid_of_its_own_server_process(
    protocol: int, world: World, any_pg: ServerFacts
) -> None:
    tenant = world.tenant(any_pg, pool_mode=PoolMode.SESSION)
    with world.proxy.connect() as client:
        client.login(
            tenant.user,
            tenant.password,
            tenant.slug,
            protocol=protocol,
            application_name="mine",
            options="-c statement_timeout=54321",
        )
        assert len(client.key) == (4 if protocol == 3 << 16 else 32)
        assert tenant.database.psql(f"select application_name from pg_stat_activity where pid = {client.pid}") == "mine"
        assert client.parameters["application_name"] == "mine"
        assert client.rows("show statement_timeout") == [("54321ms",)]
        assert own_pid(client) == client.pid
        client.send(query("select pg_sleep(30)"))
        wait_until(lambda: running(tenant), what="a query")
        client.cancel()
        with pytest.raises(ServerSaid, match="57014"):
            raise ServerSaid(next(message for message in client.read_until("Z") if message.kind == "E"))
        assert own_pid(client) == client.pid
    world.wait_for_rest(tenant)
    with login(world.proxy, tenant) as following:
        assert following.rows("show statement_timeout") == [("0",)], "another client's settings"
        assert own_pid(following) == following.pid


def test_other_modes_are_told_made_up_pids(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    with login(world.proxy, tenant) as client:
        assert own_pid(client) != client.pid
        assert world.backends(tenant, state="active") == 0


def test_a_login_waits_for_a_backend_and_gets_the_one_that_becomes_free(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.SESSION, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as holder, world.proxy.connect() as waiting:
        told: list[int] = []

        def come() -> None:
            waiting.login(tenant.user, tenant.password, tenant.slug)
            told.append(waiting.pid)

        coming = threading.Thread(target=come)
        coming.start()
        wait_until(lambda: world.clients(tenant, state="waiting") == 1, what="a login that waits")
        holder.rows("create temp table mine ()")
        holder.close()
        coming.join()
        assert own_pid(waiting) == waiting.pid == told[0] == holder.pid
        assert waiting.rows("select to_regclass('pg_temp.mine')") == [(None,)], "what the client before has left"


def test_a_login_that_gets_no_backend_in_time_is_told_as_a_request_would_be(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(
        pg18, pool_mode=PoolMode.SESSION, limits=Limits(pool_size=1, queue_wait_timeout=0.3, max_waiting=1)
    )
    with login(world.proxy, tenant), world.proxy.connect() as late, pytest.raises(ServerSaid, match="53300"):
        late.login(tenant.user, tenant.password, tenant.slug)
    world.wait_for_rest(tenant)


def test_settings_that_the_server_refuses_end_the_login_with_its_words(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.SESSION, limits=Limits(pool_size=1))
    with world.proxy.connect() as client, pytest.raises(ServerSaid, match="22023"):
        client.login(tenant.user, tenant.password, tenant.slug, TimeZone="Nowhere/Land")
    with login(world.proxy, tenant) as client:
        assert own_pid(client) == client.pid


@pytest.mark.parametrize("vanishing", [RawClient.close, RawClient.reset])
def test_a_client_that_leaves_while_its_login_waits_leaves_the_queue(
    world: World, pg18: ServerFacts, vanishing: object
) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.SESSION, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as holder:
        with world.proxy.connect() as leaving:
            coming = threading.Thread(target=_fails, args=(leaving, tenant))
            coming.start()
            wait_until(lambda: world.clients(tenant, state="waiting") == 1, what="a login that waits")
            leaving.sock.shutdown(socket.SHUT_WR)
            wait_until(lambda: world.clients(tenant, state="waiting") == 0, what="nobody waiting")
            coming.join()
            vanishing(leaving)  # type: ignore[operator]
        assert own_pid(holder) == holder.pid
    world.wait_for_rest(tenant)


def _fails(client: RawClient, tenant: TenantUnderTest) -> None:
    with pytest.raises(Disconnected):
        client.login(tenant.user, tenant.password, tenant.slug)


def test_logins_that_are_given_up_at_any_moment_leave_nothing_behind(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.SESSION, limits=Limits(pool_size=2))
    with login(world.proxy, tenant) as measured:
        began = time.monotonic()
        login(world.proxy, tenant).close()
        usual = time.monotonic() - began
        assert own_pid(measured) == measured.pid

    def give_up(number: int) -> None:
        client = world.proxy.connect()
        timer = threading.Timer(usual * 2 * number / LOGINS, client.sock.shutdown, (socket.SHUT_RDWR,))
        timer.start()
        with suppress(Disconnected, OSError):
            client.login(tenant.user, tenant.password, tenant.slug, application_name=f"n{number % 3}")
        timer.join()
        client.reset()

    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(give_up, range(LOGINS)))
    world.wait_for_rest(tenant)
    with login(world.proxy, tenant) as one, login(world.proxy, tenant) as other:
        assert (own_pid(one), own_pid(other)) == (one.pid, other.pid)


def test_a_server_that_dies_before_the_first_query_is_told(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.SESSION)
    with login(world.proxy, tenant) as client:
        tenant.database.psql(f"select pg_terminate_backend({client.pid})")
        last = client.read_to_end()[-1]
        assert (last.kind, last.fields["C"]) == ("E", "57P01")
    with login(world.proxy, tenant) as client:
        os.kill(client.pid, 0)
        assert own_pid(client) == client.pid


def test_an_idle_limit_counts_from_the_login(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.SESSION, limits=Limits(client_idle_timeout=0.5))
    with login(world.proxy, tenant) as client:
        last = client.read_to_end()[-1]
        assert (last.kind, last.fields["C"]) == ("E", "57P05")
    world.wait_for_rest(tenant)


def test_a_moved_tenant_ends_a_client_that_has_not_asked_anything(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.SESSION)
    with login(world.proxy, tenant) as client:
        world.registry.set_tenant(tenant.slug, database_name=world.database(pg18, "elsewhere").name)
        last = client.read_to_end()[-1]
        assert (last.kind, last.fields["C"]) == ("E", "57P01")


def test_signals_by_the_pid_that_was_told_reach_the_session(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.SESSION)
    with (
        psycopg.connect(world.url(tenant), autocommit=True) as one,
        psycopg.connect(world.url(tenant), autocommit=True) as other,
    ):
        pid = one.info.backend_pid
        caught: list[BaseException] = []

        def sleep() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled) as error:
                one.execute("select pg_sleep(30)")
            caught.append(error.value)

        sleeping = threading.Thread(target=sleep)
        sleeping.start()
        wait_until(lambda: running(tenant), what="a query")
        assert other.execute("select pg_cancel_backend(%s)", (pid,)).fetchone() == (True,)
        sleeping.join()
        assert caught
