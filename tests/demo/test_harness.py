from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import psycopg
import pytest
from harness import fakeserver
from harness.databases import Database
from harness.fakeserver import FakeServer, FakeSession
from harness.process import output
from harness.rawclient import Disconnected, RawClient, ServerSaid, bind, describe, execute, parse, query, sync
from harness.shared import ca_file
from harness.waiting import wait_until

from proxy.demo.facts import ServerFacts

MakeDatabase = Callable[..., Database]


def test_fresh_database_belongs_to_its_role(any_pg: ServerFacts, make_database: MakeDatabase) -> None:
    database = make_database(any_pg, seed="create table seeded as select 1 as n")
    connection = psycopg.connect(database.url)
    assert connection.execute("select n, current_user from seeded").fetchone() == (1, database.role)
    assert database.backends() == 1
    assert database.terminate_backends() == 1
    wait_until(lambda: database.backends() == 0)
    connection.close()


def test_two_databases_may_have_one_owner(pg18: ServerFacts, make_database: MakeDatabase) -> None:
    first = make_database(pg18)
    second = make_database(pg18, owned_by=first)
    assert (first.role, first.password) == (second.role, second.password)
    assert (
        second.psql("select pg_get_userbyid(datdba) from pg_database where datname = current_database()") == first.role
    )


def test_raw_client_logs_in_and_queries(any_pg: ServerFacts, make_database: MakeDatabase) -> None:
    database = make_database(any_pg)
    with RawClient(any_pg.port) as client:
        client.login(database.role, database.password, database.name, application_name="raw")
        assert client.parameters["application_name"] == "raw"
        assert client.pid > 0
        assert client.rows("select 1, null, 'x'") == [("1", None, "x")]
        with pytest.raises(ServerSaid, match="22012"):
            client.rows("select 1/0")
        client.send(parse("select $1::int + 1"), bind(["41"]), describe(), execute(), sync())
        assert [message.kind for message in client.read_until()] == ["1", "2", "T", "D", "C", "Z"]


def test_raw_client_is_refused_with_a_wrong_password(any_pg: ServerFacts, make_database: MakeDatabase) -> None:
    database = make_database(any_pg)
    with RawClient(any_pg.port) as client, pytest.raises(ServerSaid) as refusal:
        client.login(database.role, "wrong", database.name)
    assert refusal.value.sqlstate == "28P01"


def test_shared_server_17_speaks_tls_with_the_runs_authority(pg17: ServerFacts) -> None:
    context = ssl.create_default_context(cafile=str(ca_file(pg17)))
    with RawClient(pg17.port) as client:
        client.start_tls(context, server_hostname="localhost")
        client.login(pg17.superuser, pg17.password, "postgres")
        assert client.rows("select ssl from pg_stat_ssl where pid = pg_backend_pid()") == [("t",)]


def test_raw_client_cancels_its_query(any_pg: ServerFacts) -> None:
    with RawClient(any_pg.port) as client:
        client.login(any_pg.superuser, any_pg.password, "postgres")
        client.send(query("select pg_sleep(60)"))
        busy = f"select count(*) from pg_stat_activity where pid = {client.pid} and wait_event = 'PgSleep'"
        wait_until(lambda: any_pg.psql(busy) == "1")
        client.cancel()
        assert client.read_until()[-2].fields["C"] == "57014"


async def test_fake_server_passes_for_a_server(pg18: ServerFacts) -> None:
    async with FakeServer() as server:
        command = [str(pg18.bin_dir / "psql"), "-X", "-Atc", "hello", f"postgresql://u@127.0.0.1:{server.port}/d"]
        said = await asyncio.to_thread(output, command)
    assert said == "hello\n"
    assert server.sessions[0].startup["user"] == "u"


async def test_fake_server_sends_half_a_message_byte_by_byte_and_hangs_up() -> None:
    async def script(session: FakeSession) -> None:
        await session.accept()
        await session.read_until("Q")
        await session.send_split(fakeserver.echo("x")[:9])
        session.close()

    def play(port: int) -> bytes:
        with RawClient(port) as client:
            client.login("u")
            with pytest.raises(Disconnected) as end:
                client.query("x")
            return end.value.received

    async with FakeServer(script) as server:
        assert await asyncio.to_thread(play, server.port) == fakeserver.echo("x")[5:9]


async def test_mistake_in_a_script_fails_the_test() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        raise KeyError("mistake")

    def play(port: int) -> None:
        with RawClient(port) as client, pytest.raises(Disconnected):
            client.login("u")

    with pytest.raises(KeyError, match="mistake"):
        async with FakeServer(script) as server:
            await asyncio.to_thread(play, server.port)
