"""The end of a node: transactions in flight finish, everybody is told, nothing is left, and it can start again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from harness.databases import Database
from harness.disasters import login
from harness.proxy import ProxyProcess
from harness.rawclient import frame, query
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

StartProxy = Callable[..., ProxyProcess]
QUICK = 12.0
"""Seconds within which a node ends that has nothing to wait for."""


@pytest.fixture
def tenant(pg18: ServerFacts, make_database: Callable[..., Database], registry: RegistryUnderTest) -> TenantUnderTest:
    database = make_database(pg18, seed="create table t (a int)")
    return registry.add_tenant("acme", database, limits=Limits(pool_size=3))


def refuses_connections(proxy: ProxyProcess) -> bool:
    try:
        proxy.connect().close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_ends_well(number: signal.Signals, tenant: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(shutdown={"grace": 30})
    with login(proxy, tenant) as running, login(proxy, tenant) as copying, login(proxy, tenant) as open_one:
        running.send(query("insert into t select 1 from pg_sleep(0.5)"))
        copying.send(query("copy t from stdin"), frame("d", b"2\n"))
        copying.read_until("G")
        open_one.rows("begin")
        open_one.rows("insert into t values (3)")
        wait_until(lambda: tenant.database.backends("state <> 'idle'") == 3, what="three busy backends")
        proxy.send_signal(number)
        wait_until(lambda: refuses_connections(proxy), what="no more connections accepted")
        assert proxy.http("GET", "/readyz")[0] == 503
        assert "E" not in {message.kind for message in running.read_until("Z")}
        copying.send(frame("d", b"2\n"), frame("c"))
        assert "E" not in {message.kind for message in copying.read_until("Z")}
        open_one.rows("commit")
        for client in (running, copying, open_one):
            (farewell,) = client.read_to_end()
            assert farewell.fields["C"] == "57P01"
            assert "shutting down" in farewell.fields["M"]
        assert proxy.wait(QUICK) == 0
    assert tenant.database.psql("select string_agg(a::text, '' order by a) from t") == "1223"
    assert tenant.database.backends() == 0


def test_the_grace_time_ends_what_does_not_end_itself(tenant: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(shutdown={"grace": 0.5})
    with login(proxy, tenant) as forgotten, login(proxy, tenant) as slow:
        forgotten.rows("begin")
        forgotten.rows("insert into t values (1)")
        slow.send(query("select pg_sleep(60)"))
        wait_until(lambda: tenant.database.backends("state <> 'idle'") == 2, what="two busy backends")
        proxy.send_signal(signal.SIGTERM)
        for client in (forgotten, slow):
            (farewell,) = client.read_to_end()
            assert farewell.fields["C"] == "57P01"
        assert proxy.wait(QUICK) == 0
    wait_until(lambda: tenant.database.backends() == 0, seconds=3.0, what="the query cancelled, too")
    assert tenant.database.psql("select count(*) from t") == "0"


def test_a_second_signal_ends_the_grace_time(tenant: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(shutdown={"grace": 60})
    with login(proxy, tenant) as forgotten:
        forgotten.rows("begin")
        proxy.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses_connections(proxy), what="the shutdown begun")
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(QUICK) == 0


def test_every_commit_that_was_confirmed_is_there_after_a_shutdown_under_load(
    tenant: TenantUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy()
    confirmed = [0] * 8
    started = threading.Barrier(len(confirmed) + 1)

    def work(number: int) -> str | None:
        with psycopg.connect(proxy.url_of(tenant), prepare_threshold=None) as connection:
            started.wait()
            try:
                while True:
                    connection.execute("insert into t values (%s)", [number])
                    connection.commit()
                    confirmed[number] += 1
            except psycopg.OperationalError as error:
                return error.sqlstate or str(error)

    with ThreadPoolExecutor(len(confirmed)) as pool:
        working = [pool.submit(work, number) for number in range(len(confirmed))]
        started.wait()
        wait_until(lambda: min(confirmed) > 5, what="some load")
        before = time.monotonic()
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(QUICK) == 0
        assert time.monotonic() - before < QUICK
        ends = {job.result() for job in working}
    rows = tenant.database.psql("select a, count(*) from t group by a order by a").splitlines()
    assert rows == [f"{number}|{count}" for number, count in enumerate(confirmed)]
    assert all(end == "57P01" or (end and "closed" in end) for end in ends), ends
    assert tenant.database.backends() == 0


def test_a_node_starts_again_on_its_port_at_once(tenant: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy()
    for end in (proxy.stop, proxy.kill, proxy.stop):
        with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connection:
            connection.execute("select 1")
            end()
        proxy.start()
    with login(proxy, tenant) as client:
        assert client.rows("select 1") == [("1",)]


@pytest.mark.parametrize("section", ["listen", "http"])
def test_a_taken_port_is_said_and_ends_with_status_1(
    section: str, registry: RegistryUnderTest, tenant: TenantUnderTest, start_proxy: StartProxy, tmp_path: Path
) -> None:
    proxy = start_proxy()
    taken = proxy.port if section == "listen" else proxy.http_port
    second = ProxyProcess(tmp_path, registry.url, registry.keys, **{section: {"port": taken}})  # type: ignore[arg-type]
    second.start(wait=False)
    assert second.wait(15) == 1
    said = " ".join(second.logs().split())
    assert str(taken) in said
    assert "hint:" in said
    assert "Traceback" not in said
    with login(proxy, tenant) as client:
        assert client.rows("select 1") == [("1",)]
