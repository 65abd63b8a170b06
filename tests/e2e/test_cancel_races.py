"""A cancel request that is late: the backend serves somebody else only when nothing more can come of it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from harness.databases import Database
from harness.disasters import login
from harness.gate import Gate
from harness.proxy import ProxyProcess
from harness.rawclient import SSL_REQUEST, RawClient, cancel_request, query
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Address, Limits

PROXY = {"pool": {"cancel_wait": 30.0, "max_cancels": 1}}
CANCEL_REQUEST = struct.pack("!I", 80877102)
LOCK = "select pg_advisory_xact_lock(7)"
SHORT = "select pg_sleep(0.3)"


@pytest.fixture
def gate(pg18: ServerFacts) -> Iterator[Gate]:
    with Gate(pg18.port) as made:
        yield made


@pytest.fixture
def tenant(world: World, gate: Gate, pg18: ServerFacts) -> TenantUnderTest:
    """A tenant with a single backend, which lies behind the gate."""
    return world.tenant_on_own_server(pg18, addresses=(Address("127.0.0.1", gate.port),), limits=Limits(pool_size=1))


def pid_of(client: RawClient) -> str | None:
    ((pid,),) = client.rows("select pg_backend_pid()")
    return pid


def outcome(client: RawClient) -> str:
    """The SQLSTATE with which what is under way ends, or "" where it ends well."""
    return "".join(message.fields["C"] for message in client.read_until("Z") if message.kind == "E")


def ask_to_cancel(client: RawClient) -> None:
    """Send a cancel request without waiting for what becomes of it."""
    with RawClient(client.address[1]) as canceller:
        canceller.send(cancel_request(client.pid, client.key))


@contextmanager
def running(client: RawClient, tenant: TenantUnderTest) -> Iterator[None]:
    """Have a query run, which ends well when this ends."""
    with psycopg.connect(tenant.database.url) as holder:
        holder.execute(LOCK)
        client.send(query(LOCK))
        wait_until(lambda: tenant.database.backends("wait_event = 'advisory'") == 1, what="a query")
        yield
    assert outcome(client) == ""


def test_a_request_whose_query_is_over_before_it_can_be_sent_is_not_sent(
    world: World, gate: Gate, tenant: TenantUnderTest
) -> None:
    with login(world.proxy, tenant) as one, login(world.proxy, tenant) as other:
        pid = pid_of(one)
        with running(one, tenant):
            gate.hold(after=0)
            ask_to_cancel(one)
            wait_until(lambda: gate.passages and gate.passages[0].seen == SSL_REQUEST, what="a connection for it")
            other.send(query(SHORT))
        gate.release()
        assert outcome(other) == ""
        assert pid_of(other) == pid
        assert gate.passages[0].ended.wait(5)
        assert gate.passages[0].seen == SSL_REQUEST, "it was not sent any more"
    world.wait_for_rest(tenant)


def test_a_request_that_arrives_when_its_query_is_over_hits_nobody(
    world: World, gate: Gate, tenant: TenantUnderTest
) -> None:
    with login(world.proxy, tenant) as one, login(world.proxy, tenant) as other:
        pid = pid_of(one)
        with running(one, tenant):
            gate.hold(after=len(SSL_REQUEST))
            ask_to_cancel(one)
            wait_until(lambda: gate.passages and CANCEL_REQUEST in gate.passages[0].seen, what="the request on its way")
            other.send(query(SHORT))
        wait_until(lambda: world.clients(tenant, state="waiting") == 1, what="the other client waiting")
        assert tenant.database.backends("state <> 'idle'") == 0, "the backend serves nobody"
        gate.release()
        assert outcome(other) == ""
        assert pid_of(other) == pid, "and is as good as before"
    world.wait_for_rest(tenant)


def test_a_request_that_nobody_confirms_costs_the_backend(
    registry: RegistryUnderTest,
    start_proxy: Callable[..., ProxyProcess],
    gate: Gate,
    pg18: ServerFacts,
    make_database: Callable[..., Database],
) -> None:
    database = make_database(pg18)
    registry.add_server(pg18, addresses=(Address("127.0.0.1", gate.port),))
    tenant = registry.add_tenant("acme", database, limits=Limits(pool_size=1))
    proxy = start_proxy(pool={"cancel_wait": 1.0})
    with login(proxy, tenant) as one, login(proxy, tenant) as other:
        pid = pid_of(one)
        with running(one, tenant):
            gate.hold(after=len(SSL_REQUEST))
            ask_to_cancel(one)
            wait_until(lambda: gate.passages and CANCEL_REQUEST in gate.passages[0].seen, what="the request on its way")
            late = gate.passages[0]
        gate.hold(after=1_000_000)
        other.send(query("select pg_sleep(0)"))
        assert outcome(other) == ""
        assert pid_of(other) != pid
        other.send(query(SHORT))
        late.opened.set()
        assert outcome(other) == ""
        assert "cancel request not confirmed" in proxy.logs()
    gate.release()


def test_a_server_that_is_slow_to_answer_holds_up_no_other_servers_requests(
    world: World, gate: Gate, tenant: TenantUnderTest, pg18: ServerFacts
) -> None:
    neighbour = world.tenant_on_own_server(pg18)
    with login(world.proxy, tenant) as slow, login(world.proxy, neighbour) as quick:
        with running(slow, tenant):
            gate.hold(after=0)
            ask_to_cancel(slow)
            wait_until(lambda: gate.passages, what="a connection that waits")
            quick.send(query("select pg_sleep(30)"))
            wait_until(lambda: neighbour.database.backends("wait_event = 'PgSleep'") == 1, what="a query")
            ask_to_cancel(quick)
            assert outcome(quick) == "57014"
        gate.release()
    world.wait_for_rest(tenant)


def test_many_requests_for_one_query_are_not_all_sent(world: World, gate: Gate, tenant: TenantUnderTest) -> None:
    with login(world.proxy, tenant) as client:
        with running(client, tenant):
            gate.hold(after=0)
            for _ in range(20):
                ask_to_cancel(client)
            wait_until(lambda: gate.passages, what="a connection for one")
        assert 1 <= len(gate.passages) <= 2
        gate.release()
        assert client.rows("select 1") == [("1",)]
    world.wait_for_rest(tenant)
