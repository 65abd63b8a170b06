"""Caps and queues, cancel requests, pool modes, parameters and pins."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import psycopg
import pytest
from harness.databases import Database
from harness.proxy import ProxyProcess
from harness.registries import RegistryUnderTest
from harness.waiting import wait_until

from proxy.demo.facts import ServerFacts
from registry.contract import Limits, PoolMode

MakeDatabase = Callable[..., Database]
StartProxy = Callable[..., ProxyProcess]


def test_a_full_pool_makes_clients_wait_and_says_why_when_that_takes_too_long(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18), limits=Limits(pool_size=1, queue_wait_timeout=0.5))
    proxy = start_proxy()
    with (
        psycopg.connect(proxy.url_of(tenant)) as holder,
        psycopg.connect(proxy.url_of(tenant), autocommit=True) as waiting,
    ):
        holder.execute("select 1")
        with pytest.raises(psycopg.errors.TooManyConnections, match=r"within 0\.5 s.*pool_size") as caught:
            waiting.execute("select 1")
        assert "safe to try again" in str(caught.value.diag.message_hint)
        holder.rollback()
        assert waiting.execute("select 2").fetchone() == (2,), "the connection is still usable"


def test_a_pool_full_of_pinned_clients_says_so_in_the_hint(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18), limits=Limits(pool_size=1, queue_wait_timeout=0.5))
    proxy = start_proxy()
    with (
        psycopg.connect(proxy.url_of(tenant), autocommit=True) as pinned,
        psycopg.connect(proxy.url_of(tenant), autocommit=True) as waiting,
    ):
        pinned.execute("listen news")
        assert proxy.metric("pgtenant_pinned_clients", tenant="acme") == 1
        with pytest.raises(psycopg.errors.TooManyConnections, match="session state") as caught:
            waiting.execute("select 1")
        assert "prepared statements" in str(caught.value.diag.message_hint)
    wait_until(lambda: proxy.metric("pgtenant_pinned_clients", tenant="acme") == 0, what="the pin gone")


def test_no_cap_is_exceeded_and_everybody_is_served_in_the_end(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    databases = [make_database(pg18, f"c{n}") for n in range(3)]
    tenants = [registry.add_tenant(f"t{n}", database) for n, database in enumerate(databases)]
    registry.set_server("pg18", max_connections=5, reserve=1)
    proxy = start_proxy(pool={"pool_size": 3})
    names = ", ".join(f"'{database.name}'" for database in databases)
    # One look at all databases: between two looks a slot may rightly have moved from one to the other.
    count = f"select count(*) from pg_stat_activity where backend_type = 'client backend' and datname in ({names})"
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, int(pg18.psql(count)))

    def client(n: int) -> None:
        with psycopg.connect(proxy.url_of(tenants[n % 3]), autocommit=True, prepare_threshold=None) as connection:
            for _ in range(15):
                assert connection.execute("select 1 from pg_sleep(0.005)").fetchone() == (1,)

    watcher = threading.Thread(target=watch)
    watcher.start()
    clients = [threading.Thread(target=client, args=[n]) for n in range(12)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    done.set()
    watcher.join()
    assert 0 < most <= 4
    assert proxy.metric("pgtenant_transactions_total") >= 12 * 15
    assert proxy.metric("pgtenant_errors_total") == 0


def test_more_clients_than_a_tenant_may_have_are_refused(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18), limits=Limits(max_clients=1))
    proxy = start_proxy()
    with (
        psycopg.connect(proxy.url_of(tenant)),
        pytest.raises(psycopg.OperationalError, match="too many connections for tenant"),
    ):
        psycopg.connect(proxy.url_of(tenant))
    wait_until(lambda: proxy.metric("pgtenant_clients", tenant="acme") == 0, what="room again")
    psycopg.connect(proxy.url_of(tenant)).close()


def test_a_running_query_is_cancelled_and_the_connection_stays(
    any_pg: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    database = make_database(any_pg)
    tenant = registry.add_tenant("acme", database)
    proxy = start_proxy()
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connection:

        def cancel() -> None:
            wait_until(lambda: database.backends("query like '%pg_sleep%' and state = 'active'") == 1, what="a query")
            connection.cancel_safe()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(20)")
        thread.join()
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_queued_query_is_cancelled_before_it_runs(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18), limits=Limits(pool_size=1))
    proxy = start_proxy()
    with (
        psycopg.connect(proxy.url_of(tenant)) as holder,
        psycopg.connect(proxy.url_of(tenant), autocommit=True) as waiting,
    ):
        holder.execute("create table t (a int)")

        def cancel() -> None:
            wait_until(lambda: proxy.metric("pgtenant_clients", state="waiting") == 1, what="a waiter")
            waiting.cancel_safe()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            waiting.execute("select 1")
        thread.join()
        holder.commit()
        assert waiting.execute("select count(*) from t").fetchone() == (0,)


def test_startup_parameters_are_applied_and_follow_their_client_only(
    any_pg: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    tenant = registry.add_tenant("acme", make_database(any_pg), limits=Limits(pool_size=1))
    proxy = start_proxy()
    options = "-c statement_timeout=4321 -c search_path=pg_catalog,public -c DateStyle=German"
    with (
        psycopg.connect(proxy.url_of(tenant, application_name="one", options=options), autocommit=True) as one,
        psycopg.connect(proxy.url_of(tenant, application_name="it's two"), autocommit=True) as two,
    ):
        for _ in range(3):
            assert one.execute("show statement_timeout").fetchone() == ("4321ms",)
            assert one.execute("show search_path").fetchone() == ("pg_catalog,public",)
            assert one.execute("select date '2026-02-03'::text").fetchone() == ("03.02.2026",)
            assert one.execute("show application_name").fetchone() == ("one",)
            assert two.execute("show statement_timeout").fetchone() == ("0",)
            assert two.execute("show application_name").fetchone() == ("it's two",)
            assert two.execute("select date '2026-02-03'::text").fetchone() == ("2026-02-03",)
        assert one.info.parameter_status("DateStyle") == "German, DMY"
    with pytest.raises(psycopg.OperationalError, match='invalid value for parameter "work_mem"'):
        psycopg.connect(proxy.url_of(tenant, options="-c work_mem=lots"))


@pytest.mark.parametrize(
    ("statement", "check", "clean"),
    [
        ("set statement_timeout = 9999", "show statement_timeout", "0"),
        ("create temp table left_over (a int)", "select to_regclass('left_over')::text", None),
        ("select pg_advisory_lock(42)", "select count(*) from pg_locks where locktype = 'advisory'", 0),
        ("prepare p as select 1", "select count(*) from pg_prepared_statements", 0),
        ("listen news", "select count(*) from pg_listening_channels()", 0),
        ("select set_config('my.x', 'y', false)", "select current_setting('my.x', true)", None),
    ],
)
def test_session_state_stays_with_its_client_and_is_gone_for_the_next(
    statement: str,
    check: str,
    clean: object,
    pg18: ServerFacts,
    make_database: MakeDatabase,
    registry: RegistryUnderTest,
    start_proxy: StartProxy,
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18), limits=Limits(pool_size=1))
    proxy = start_proxy()
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as first:
        first.execute(statement)
        kept = first.execute(check).fetchone()
        assert kept is not None
        assert kept[0] not in {clean, "" if clean is None else clean}
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as second:
        found = second.execute(check).fetchone()
        assert found is not None
        assert found[0] in {clean, "" if clean is None else clean}


def test_session_mode_keeps_a_backend_and_resets_it_in_the_end(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18), pool_mode=PoolMode.SESSION, limits=Limits(pool_size=1))
    proxy = start_proxy()
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as first:
        pid = first.execute("select pg_backend_pid()").fetchone()
        first.execute("set statement_timeout = 1234")
        assert first.execute("show statement_timeout").fetchone() == ("1234ms",)
        assert first.execute("select pg_backend_pid()").fetchone() == pid
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as second:
        assert second.execute("select pg_backend_pid()").fetchone() == pid
        assert second.execute("show statement_timeout").fetchone() == ("0",)


def test_statement_mode_refuses_transaction_blocks(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18), pool_mode=PoolMode.STATEMENT)
    proxy = start_proxy()
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert connection.execute("begin; select 2; commit; select 3").nextset()
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="statement mode"):
            connection.execute("begin")


def test_sigterm_lets_a_transaction_finish_and_then_ends_with_status_0(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    database = make_database(pg18, seed="create table t (a int)")
    tenant = registry.add_tenant("acme", database)
    proxy = start_proxy(shutdown={"grace": 20})
    with (
        psycopg.connect(proxy.url_of(tenant), autocommit=True) as idle,
        psycopg.connect(proxy.url_of(tenant)) as connection,
    ):
        connection.execute("insert into t values (1)")
        proxy.send_signal(signal.SIGTERM)
        wait_until(lambda: proxy.metric("pgtenant_clients", tenant="acme") == 1, what="the idle client told")
        with pytest.raises(psycopg.errors.AdminShutdown):
            idle.execute("select 1")
        connection.execute("insert into t values (2)")
        connection.commit()
    assert proxy.wait(20) == 0
    assert database.psql("select count(*) from t").strip() == "2"
    assert database.backends() == 0


def test_kill_9_of_the_proxy_leaves_no_backend(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    database = make_database(pg18)
    tenant = registry.add_tenant("acme", database)
    proxy = start_proxy()
    with psycopg.connect(proxy.url_of(tenant)) as connection:
        connection.execute("select 1")
        proxy.kill()
        wait_until(lambda: database.backends() == 0, what="PostgreSQL to notice")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
