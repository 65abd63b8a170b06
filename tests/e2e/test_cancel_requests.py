"""Cancel requests: they reach what they were meant for, or nothing."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from harness.disasters import login
from harness.rawclient import PROTOCOL_3_2, RawClient, ServerSaid, bind, cancel_request, execute, parse, query, sync
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits, PoolMode

PROXY = {"pool": {"pool_size": 2}}
TURNS = 60


def running(tenant: TenantUnderTest) -> bool:
    return tenant.database.backends("state = 'active' and query like '%pg_sleep%'") > 0


def outcome(client: RawClient) -> str:
    """The SQLSTATE with which what is under way ends, or "" where it ends well."""
    return "".join(message.fields["C"] for message in client.read_until("Z") if message.kind == "E")


@pytest.mark.parametrize("protocol", [3 << 16, PROTOCOL_3_2], ids=["3.0", "3.2"])
def test_a_cancel_reaches_the_query_and_the_transaction_fails_as_on_postgresql(
    protocol: int, world: World, any_pg: ServerFacts
) -> None:
    tenant = world.tenant(any_pg)
    with world.proxy.connect() as client:
        client.send()
        client.login(tenant.user, tenant.password, tenant.slug, protocol=protocol)
        assert len(client.key) == (4 if protocol == 3 << 16 else 32)
        client.rows("begin")
        client.send(query("select pg_sleep(30)"))
        wait_until(lambda: running(tenant), what="a query")
        client.cancel()
        assert outcome(client) == "57014"
        with pytest.raises(ServerSaid, match="aborted"):
            client.rows("select 1")
        client.rows("rollback")
        assert client.rows("select 1") == [("1",)]


def test_a_cancelled_pipeline_is_skipped_to_its_sync(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as client:
        client.send(parse("select pg_sleep(30)"), bind(), execute(), parse("select 1"), bind(), execute(), sync())
        wait_until(lambda: running(tenant), what="a query")
        client.cancel()
        assert outcome(client) == "57014"
        assert client.rows("select 2") == [("2",)]


def test_a_queued_pipeline_is_cancelled_whole(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed="create table t (a int)", limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as holder, login(world.proxy, tenant) as client:
        holder.rows("begin")
        client.send(parse("insert into t values (1)"), bind(), execute(), sync(), query("insert into t values (2)"))
        wait_until(lambda: world.clients(tenant, state="waiting") == 1, what="a waiter")
        client.cancel()
        assert outcome(client) == "57014"
        holder.rows("commit")
        assert outcome(client) == "", "what came after the cancelled request runs"
    assert tenant.database.psql("select a from t") == "2"


def test_strangers_cannot_cancel(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    with login(world.proxy, tenant) as client:
        client.send(query("select pg_sleep(0.5)"))
        wait_until(lambda: running(tenant), what="a query")
        wrong = [
            (client.pid, secrets.token_bytes(4)),
            (client.pid ^ 1, client.key),
            (client.pid, client.key + b"\0" * 4),
            (client.pid, b"\0" * 256),
            (0, client.key),
            (2**32 - 1, client.key),
        ]
        for pid, key in wrong:
            with world.proxy.connect() as stranger:
                stranger.send(cancel_request(pid, key))
                assert stranger.read_to_end() == []
        assert outcome(client) == ""


def test_a_cancel_that_comes_late_never_hits_the_next_user_of_the_backend(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, limits=Limits(pool_size=1))
    done = threading.Event()

    def innocent() -> int:
        count = 0
        with login(world.proxy, tenant) as client:
            while not done.is_set():
                assert client.rows("select 1 from pg_sleep(0.001)") == [("1",)]
                count += 1
        return count

    def trigger_happy(number: int) -> set[str]:
        seen = set()
        with login(world.proxy, tenant) as client, ThreadPoolExecutor(2) as canceller:
            for turn in range(TURNS):
                client.send(query(f"select pg_sleep({turn % 4 / 1000})"))
                cancelling = [canceller.submit(client.cancel) for _ in range(1 + turn % 2)]
                seen.add(outcome(client))
                if turn % 3:
                    # Its own next query may rightly be hit by what it has asked for; one after the answer may not.
                    for one in cancelling:
                        one.result()
                    client.rows("select 1")
                else:
                    client.query("select 1")
                    for one in cancelling:
                        one.result()
        return seen

    with ThreadPoolExecutor(5) as pool:
        innocents = [pool.submit(innocent) for _ in range(2)]
        guilty = [pool.submit(trigger_happy, number) for number in range(2)]
        try:
            outcomes = [job.result() for job in guilty]
        finally:
            done.set()
        assert sum(job.result() for job in innocents) > 20
    assert set().union(*outcomes) <= {"", "57014"}
    assert "57014" in set().union(*outcomes)
    world.wait_for_rest(tenant)


def test_cancelling_in_session_mode_and_with_a_pinned_backend(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, pool_mode=PoolMode.SESSION)
    with psycopg.connect(world.url(tenant), autocommit=True) as connection:
        connection.execute("set my.x = 'kept'")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(connection.execute, "select pg_sleep(30)")
            wait_until(lambda: running(tenant), what="a query")
            connection.cancel_safe()
            with pytest.raises(psycopg.errors.QueryCanceled):
                asked.result()
        assert connection.execute("show my.x").fetchone() == ("kept",)


def test_a_cancel_while_the_settings_of_a_client_are_brought_in_line(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1))
    with (
        world.proxy.connect() as one,
        world.proxy.connect() as two,
        ThreadPoolExecutor(2) as pool,
    ):
        one.login(tenant.user, tenant.password, tenant.slug, application_name="one", search_path="pg_catalog")
        two.login(tenant.user, tenant.password, tenant.slug, application_name="two", DateStyle="German")
        for _ in range(TURNS):
            # Each of them takes the backend with the settings of the other one.
            for client in (one, two):
                client.send(query("select 1"))
                cancelling = pool.submit(client.cancel)
                assert outcome(client) in {"", "57014"}
                cancelling.result()
        assert one.rows("show application_name") == [("one",)]
        assert two.rows("show application_name") == [("two",)]
