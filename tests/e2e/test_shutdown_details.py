"""The end of a node in the middle of things: half a row, a queue, logins, a server that hangs, SIGKILL."""

from __future__ import annotations

import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest
from harness.certificates import Certificates
from harness.databases import Database
from harness.disasters import login
from harness.proxy import ProxyProcess
from harness.rawclient import Disconnected, bind, execute, flush, frame, parse, query, startup, sync
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until

from proxy.demo.facts import ServerFacts
from proxy.net.link_host import FAREWELL_TIME
from registry.contract import Address, Limits, PoolMode
from registry.domain.models import ServerChange

StartProxy = Callable[..., ProxyProcess]
QUICK = 12.0
"""Seconds within which a node ends that has nothing to wait for."""


@pytest.fixture
def tenant(pg18: ServerFacts, make_database: Callable[..., Database], registry: RegistryUnderTest) -> TenantUnderTest:
    database = make_database(pg18, seed="create table t (a int)")
    return registry.add_tenant("acme", database, limits=Limits(pool_size=2))


def stopping(proxy: ProxyProcess) -> bool:
    return proxy.http("GET", "/readyz")[0] == 503


def test_clients_in_the_queue_are_served_before_the_end(tenant: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(shutdown={"grace": 30})
    clients = [login(proxy, tenant) for _ in range(6)]
    for number, client in enumerate(clients):
        client.send(query(f"insert into t select {number} from pg_sleep(0.2)"))
    wait_until(lambda: proxy.metric("pgtenant_clients", state="waiting") == 4, what="a queue")
    proxy.send_signal(signal.SIGTERM)
    for client in clients:
        assert "E" not in {message.kind for message in client.read_until("Z")}
        (farewell,) = client.read_to_end()
        assert farewell.fields["C"] == "57P01"
        client.close()
    assert proxy.wait(QUICK) == 0
    assert tenant.database.psql("select count(*) from t") == "6"


def test_a_pipeline_that_is_open_may_be_finished(tenant: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(shutdown={"grace": 30})
    with login(proxy, tenant) as client:
        client.send(parse("insert into t values (7)"), bind(), execute(), flush())
        client.read_until("C")
        proxy.send_signal(signal.SIGTERM)
        wait_until(lambda: stopping(proxy), what="the shutdown begun")
        client.send(parse("insert into t values (8)"), bind(), execute(), sync())
        assert "E" not in {message.kind for message in client.read_until("Z")}
        (farewell,) = client.read_to_end()
        assert farewell.fields["C"] == "57P01"
    assert proxy.wait(QUICK) == 0
    assert tenant.database.psql("select sum(a) from t") == "15"


def test_a_slow_reader_gets_the_answers_to_all_that_it_has_committed(
    tenant: TenantUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(shutdown={"grace": 30})

    def are_served(count: int) -> bool:
        return proxy.metric("pgtenant_transactions_total", tenant=tenant.slug) == count

    with login(proxy, tenant) as client:
        sent = 0
        while are_served(sent):
            sent += 1
            client.send(query("insert into t values (1) returning repeat('x', 60000)"))
            with suppress(AssertionError):
                # Once too much is on its way to the client, it is not read any more.
                wait_until(partial(are_served, sent), seconds=0.5)
        assert sent > 1, "the first answer fits, and something is on its way"
        proxy.send_signal(signal.SIGTERM)
        wait_until(lambda: stopping(proxy), what="the shutdown begun")
        time.sleep(FAREWELL_TIME + 0.2)
        for _ in range(sent):
            assert [message.kind for message in client.read_until("Z")] == ["T", "D", "C", "Z"]
        (farewell,) = client.read_to_end()
        assert farewell.fields["C"] == "57P01"
    assert proxy.wait(QUICK) == 0
    assert tenant.database.psql("select count(*) from t") == str(sent)


def test_a_row_that_is_half_sent_at_the_end_of_the_grace_is_not_completed_with_the_farewell(
    tenant: TenantUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(shutdown={"grace": 0.3})
    with login(proxy, tenant) as client:
        client.send(query("select repeat('x', 100000000)"))
        client.read_until("T")
        proxy.send_signal(signal.SIGTERM)
        wait_until(lambda: not proxy.running, seconds=QUICK, what="the end")
        kind, size = struct.unpack("!cI", client.read_exactly(5))
        assert kind == b"D"
        with pytest.raises(Disconnected) as caught:
            client.read_exactly(size - 4)
    assert set(caught.value.received[6:]) == {ord("x")}
    assert proxy.wait(QUICK) == 0


def test_session_mode_clients_that_are_idle_do_not_keep_a_node(
    tenant: TenantUnderTest, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    registry.set_tenant("acme", pool_mode=PoolMode.SESSION)
    proxy = start_proxy(shutdown={"grace": 30})
    with login(proxy, tenant) as idle, psycopg.connect(proxy.url_of(tenant), autocommit=True) as pinned:
        idle.rows("select 1")
        pinned.execute("listen news")
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(QUICK) == 0
        assert [message.fields["C"] for message in idle.read_to_end()] == ["57P01"]
        with pytest.raises(psycopg.errors.AdminShutdown, match="shutting down"):
            pinned.execute("select 1")
    assert tenant.database.backends() == 0


def test_logins_that_are_under_way_do_not_keep_a_node(tenant: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(shutdown={"grace": 30})
    half = [proxy.connect() for _ in range(20)]
    for number, client in enumerate(half):
        client.send(startup({"user": tenant.user, "database": tenant.slug})[: None if number % 2 else 11])
    wait_until(lambda: half[1].read().kind == "R", what="logins under way")
    proxy.send_signal(signal.SIGTERM)
    assert proxy.wait(QUICK) == 0
    for client in half:
        client.close()


def test_a_server_that_hangs_does_not_keep_a_node(
    tenant: TenantUnderTest, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address("127.0.0.1", silent.getsockname()[1])
        registry.do(lambda service: service.add_server("silent", ServerChange(addresses=(address,))))
        proxy = start_proxy(shutdown={"grace": 1}, pool={"connect_timeout": 60})
        with login(proxy, tenant) as client:
            registry.set_tenant("acme", server="silent")
            wait_until(lambda: tenant.database.backends() == 0, what="the route changed")
            client.send(query("select 1"))
            wait_until(lambda: proxy.metric("pgtenant_clients", state="waiting") == 1, what="the client waiting")
            started = time.monotonic()
            proxy.send_signal(signal.SIGTERM)
            assert [message.fields["C"] for message in client.read_to_end()] == ["57P01"]
            assert proxy.wait(QUICK) == 0
            assert time.monotonic() - started < QUICK


def test_clients_over_tls_are_told_as_well(tenant: TenantUnderTest, start_proxy: StartProxy, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    proxy = start_proxy(listen=certificates.listen("require"))
    with psycopg.connect(proxy.url_of(tenant, **certificates.verify_full()), autocommit=True) as connection:
        connection.execute("select 1")
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(QUICK) == 0
        with pytest.raises(psycopg.errors.AdminShutdown, match="shutting down"):
            connection.execute("select 1")


def test_a_killed_node_leaves_no_backend(tenant: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(pool={"pool_size": 6})
    with (
        login(proxy, tenant) as idle,
        login(proxy, tenant) as in_transaction,
        login(proxy, tenant) as copying,
        login(proxy, tenant) as reading,
        login(proxy, tenant) as working,
    ):
        del idle
        in_transaction.rows("begin")
        in_transaction.rows("insert into t values (1)")
        copying.send(query("copy t from stdin"), frame("d", b"2\n"))
        copying.read_until("G")
        # The tenant has two backends: these wait.
        reading.send(query("select repeat('x', 1000) from generate_series(1, 100000)"))
        working.send(query("insert into t select 3 from pg_sleep(1)"))
        wait_until(lambda: proxy.metric("pgtenant_clients", state="waiting") == 2, what="a queue")
        proxy.kill()
        wait_until(lambda: tenant.database.backends() == 0, seconds=QUICK, what="PostgreSQL to notice")
        for client in (in_transaction, copying, reading, working):
            with pytest.raises((Disconnected, ConnectionError)):
                client.rows("select 1")
    assert tenant.database.psql("select count(*) from t") == "0"


def test_a_killed_node_leaves_running_queries_to_their_end_only(
    tenant: TenantUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy()
    with login(proxy, tenant) as reading, login(proxy, tenant) as working:
        reading.send(query("select repeat('x', 1000) from generate_series(1, 100000)"))
        working.send(query("select pg_sleep(1)"))
        wait_until(lambda: tenant.database.backends("state = 'active'") == 2, what="two queries")
        proxy.kill()
        wait_until(lambda: tenant.database.backends() == 0, seconds=QUICK, what="their end")
