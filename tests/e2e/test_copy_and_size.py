"""Much data, wide rows and large values: byte for byte, in bounded memory, whoever is slow."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from harness.bystander import undisturbed
from harness.disasters import login
from harness.process import memory, peak_memory
from harness.rawclient import bind, execute, frame, parse, query, sync
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

MEGABYTE = 1_000_000
COPY_SIZE = 300 * MEGABYTE
BOUND = 16 * MEGABYTE
"""How much more memory the proxy may take than it had, whatever goes through it."""
SEED = """
create unlogged table lines (line text);
create unlogged table big (data bytea);
alter table big alter data set storage external;
create unlogged table gated (n int);
create function wait_for_gate() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(1);
    return new;
end $$;
create trigger gate before insert on gated for each row execute function wait_for_gate();
"""
LINES = b"".join(b"%0199d\n" % number for number in range(5_000))


@pytest.fixture(scope="module")
def tenant(world: World, pg18: ServerFacts) -> TenantUnderTest:
    made = world.tenant(pg18, seed=SEED, limits=Limits(pool_size=3))
    with psycopg.connect(world.url(made), autocommit=True) as connection:
        connection.execute("select repeat('warm', 100000)")
    return made


@contextmanager
def bounded(world: World, tenant: TenantUnderTest) -> Iterator[None]:
    """Meanwhile the proxy takes no memory worth mentioning, and another client is served."""
    before = peak_memory(world.proxy.pid)
    with undisturbed(world.url(tenant)):
        yield
    taken = peak_memory(world.proxy.pid) - before
    assert taken < BOUND, f"{taken / MEGABYTE:.1f} MB more"


def test_copy_out_of_hundreds_of_megabytes(world: World, tenant: TenantUnderTest) -> None:
    lines = COPY_SIZE // 1_000
    sql = f"copy (select lpad(g::text, 999, '-') from generate_series(1, {lines}) g) to stdout"
    expected, got = hashlib.md5(usedforsecurity=False), hashlib.md5(usedforsecurity=False)
    with (
        bounded(world, tenant),
        psycopg.connect(world.url(tenant), autocommit=True) as connection,
        connection.cursor() as cursor,
        cursor.copy(sql) as copy,
    ):
        for block in copy:
            got.update(block)
    for number in range(1, lines + 1):
        expected.update(b"%s\n" % str(number).encode().rjust(999, b"-"))
    assert got.digest() == expected.digest()


def test_copy_in_of_hundreds_of_megabytes(world: World, tenant: TenantUnderTest) -> None:
    pieces = COPY_SIZE // len(LINES)
    with psycopg.connect(world.url(tenant), autocommit=True) as connection, connection.cursor() as cursor:
        with bounded(world, tenant), cursor.copy("copy lines from stdin (freeze false)") as copy:
            for _ in range(pieces):
                copy.write(LINES)
        found = cursor.execute("select count(*), count(distinct line), sum(line::numeric) from lines").fetchone()
        cursor.execute("truncate lines")
    assert found == (5_000 * pieces, 5_000, pieces * sum(range(5_000)))


def test_a_reader_that_pauses_stops_the_server_and_costs_no_memory(world: World, tenant: TenantUnderTest) -> None:
    size = 100 * MEGABYTE
    stuck = "state = 'active' and wait_event = 'ClientWrite'"

    def passed_on() -> float:
        return world.proxy.metric("pgtenant_client_sent_bytes_total", tenant=tenant.slug)

    before = passed_on()
    with bounded(world, tenant), login(world.proxy, tenant) as client:
        client.send(query(f"copy (select repeat('x', 999) from generate_series(1, {size // 1000})) to stdout"))
        wait_until(lambda: tenant.database.backends(stuck) == 1, what="the server held up by its reader")
        assert 0 < passed_on() - before < size
        rows = sum(len(message.body) for message in client.read_until() if message.kind == "d")
        assert rows == size
        assert client.rows("select 1") == [("1",)]
    assert passed_on() - before > size


def test_a_server_that_pauses_stops_the_writer_and_costs_no_memory(world: World, tenant: TenantUnderTest) -> None:
    rows = 10 * MEGABYTE
    data = b"1234567\n" * 8_000
    sent = 0
    with (
        bounded(world, tenant),
        psycopg.connect(tenant.database.url, autocommit=True) as gate,
        login(world.proxy, tenant) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        gate.execute("select pg_advisory_lock(1)")

        def write() -> None:
            nonlocal sent
            while sent < rows:
                client.send(frame("d", data))
                sent += len(data) // 8
            client.send(frame("c"))

        client.send(query("copy gated from stdin"))
        assert client.read().kind == "G"
        writing = pool.submit(write)
        wait_until(lambda: tenant.database.backends("wait_event = 'advisory'") == 1, what="the server held up")
        wait_until(lambda: stands_still(lambda: sent), what="the writer held up")
        assert sent < rows, "the kernel's buffers alone took everything"
        tenant.database.terminate_backends("wait_event = 'advisory'")
        client.sock.shutdown(2)
        with pytest.raises(ConnectionError):
            writing.result()


def stands_still(value: Callable[[], int]) -> bool:
    before = value()
    return not threading.Event().wait(0.3) and value() == before


def test_a_writer_that_sends_byte_by_byte_keeps_nobody_waiting(world: World, tenant: TenantUnderTest) -> None:
    with bounded(world, tenant), login(world.proxy, tenant) as client:
        client.send(query("copy lines from stdin"))
        assert client.read().kind == "G"
        client.send_bytewise(frame("d", b"x" * 5_000 + b"\n") + frame("c"))
        assert client.read_until()[-1].text == "I"
        assert client.rows("select count(*), max(length(line)) from lines") == [("1", "5000")]
        client.rows("truncate lines")


def test_rows_of_1600_columns(world: World, tenant: TenantUnderTest) -> None:
    names = [f"column_number_{number}" for number in range(1_600)]
    with psycopg.connect(world.url(tenant), autocommit=True) as connection:
        connection.execute(f"create table wide ({', '.join(f'{name} smallint' for name in names)})".encode())
        values = ", ".join(["%s::smallint"] * 1_600)
        for row in range(20):
            connection.execute(f"insert into wide values ({values})".encode(), [row] * 1_600)
        cursor = connection.execute("select * from wide order by 1")
        assert [column.name for column in cursor.description or ()] == names
        assert cursor.fetchall() == [(row,) * 1_600 for row in range(20)]
        connection.execute("drop table wide")


def test_the_most_parameters_that_a_bind_may_have(world: World, tenant: TenantUnderTest) -> None:
    count = 65_535
    marks = ", ".join(f"${number}" for number in range(1, count + 1))
    with bounded(world, tenant), login(world.proxy, tenant) as client:
        body = (
            b"\0\0\0\0" + struct.pack("!H", count) + b"".join(b"\0\0\0\1%d" % (n % 10) for n in range(count)) + b"\0\0"
        )
        client.send(parse(f"select cardinality(array[{marks}]::int[])"), frame("B", body), execute(), sync())
        assert [message.row for message in client.read_until() if message.kind == "D"] == [(str(count),)]


@pytest.mark.parametrize(("megabytes", "binary"), [(100, True), (20, False)])
def test_a_value_of_a_hundred_megabytes(megabytes: int, binary: bool, world: World, tenant: TenantUnderTest) -> None:
    data = os.urandom(MEGABYTE) * megabytes
    with bounded(world, tenant), psycopg.connect(world.url(tenant), autocommit=True) as connection:
        connection.execute("insert into big values (%b)" if binary else "insert into big values (%t)", [data])
        row = connection.execute("select data from big", binary=binary).fetchone()
        connection.execute("truncate big")
        assert row is not None
        assert row[0] == data


def test_a_statement_of_thirty_megabytes(world: World, tenant: TenantUnderTest) -> None:
    size = 30 * MEGABYTE
    with bounded(world, tenant), login(world.proxy, tenant) as client:
        assert client.rows(f"select length('{'x' * size}')") == [(str(size),)]
        client.send(parse(f"select length('{'y' * size}')"), bind(), execute(), sync())
        assert [message.row for message in client.read_until() if message.kind == "D"] == [(str(size),)]


def test_many_readers_that_pause_cost_a_bounded_amount_each(world: World, tenant: TenantUnderTest) -> None:
    """A client that does not read at all: its backend is stopped, and what the proxy keeps for it is little."""
    before = memory(world.proxy.pid)
    clients = [login(world.proxy, tenant) for _ in range(3)]
    for client in clients:
        client.send(query("select repeat('x', 1000) from generate_series(1, 30000)"))
    wait_until(lambda: tenant.database.backends("wait_event = 'ClientWrite'") == 3, what="three servers held up")
    assert memory(world.proxy.pid) - before < 5 * MEGABYTE
    for client in clients:
        assert len(client.read_until()) == 30_003
        client.close()
