"""The console with real clients: what operators see, who may do what, and what strangers learn."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg
import psycopg
import pytest
from harness.process import run
from harness.rawclient import RawClient, frame, query
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World
from psycopg.rows import dict_row

from proxy.demo.facts import ServerFacts
from registry.contract import Limits
from registry.verifiers import build_verifier

ADMIN, STATS = "the-admins-own", "the-watchers-own"
PROXY = {
    "console": {
        "admins": {"ann": build_verifier(ADMIN, os.urandom(16))},
        "stats": {"watcher": build_verifier(STATS, os.urandom(16))},
        "max_sessions": 4,
    },
}


def url(world: World, user: str = "ann", password: str = ADMIN) -> str:
    return world.proxy.url("pgtenant", user, password)


@contextmanager
def console(world: World, user: str = "ann", password: str = ADMIN) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with psycopg.connect(url(world, user, password), autocommit=True, row_factory=dict_row) as connection:
        yield connection


def show(world: World, command: str) -> list[dict[str, Any]]:
    with console(world) as connection:
        return connection.execute(command.encode()).fetchall()


def only_client(world: World, tenant: TenantUnderTest) -> dict[str, Any]:
    (row,) = show(world, f"SHOW CLIENTS {tenant.slug}")
    return row


def test_a_pinned_client_shows_its_reason_until_it_is_gone(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    with psycopg.connect(world.url(tenant, application_name="shop"), autocommit=True) as client:
        assert (row := only_client(world, tenant))["state"] == "idle"
        assert (row["user"], row["addr"], row["application_name"]) == (tenant.user, "127.0.0.1", "shop")
        assert (row["pinned"], row["backend"], row["pool_mode"]) == ("", None, "transaction")
        client.execute("listen news")
        assert only_client(world, tenant)["pinned"] == "listen"
        client.execute("create temp table t ()")
        row = only_client(world, tenant)
        assert (row["state"], row["pinned"], row["transaction"]) == ("active", "listen, temporary", "idle")
        client.execute("set application_name to 'checkout'")
        assert only_client(world, tenant)["application_name"] == "checkout"
        (server,) = [one for one in show(world, "SHOW SERVERS") if one["tenant"] == tenant.slug]
        assert (server["backend"], server["client"], server["state"]) == (row["backend"], row["id"], "active")
        assert client.execute("select pg_backend_pid()").fetchall() == [(server["pid"],)]
        assert show(world, f"SHOW POOLS {tenant.slug}")[0]["cl_pinned"] == 1
        client.execute("unlisten *")
        client.execute("drop table t")
        wait_until(lambda: only_client(world, tenant)["state"] == "idle", what="a client that shares again")
        assert only_client(world, tenant)["pinned"] == ""
    wait_until(lambda: show(world, f"SHOW CLIENTS {tenant.slug}") == [], what="a client gone")


def test_a_client_that_waits_shows_for_what_and_one_in_a_transaction_since_when(
    world: World, pg18: ServerFacts
) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1))
    with psycopg.connect(world.url(tenant)) as first, RawClient(world.proxy.port) as second:
        second.login(tenant.user, tenant.password, tenant.slug)
        first.execute("select 1")
        second.send(query("select 2"))
        wait_until(lambda: show(world, f"SHOW POOLS {tenant.slug}")[0]["cl_waiting"] == 1, what="a client that waits")
        rows = {row["state"]: row for row in show(world, f"SHOW CLIENTS {tenant.slug}")}
        assert rows["active"]["transaction"] == "open"
        assert rows["active"]["active_seconds"] >= rows["waiting"]["wait_seconds"] >= 0
        assert rows["waiting"]["waits_for"] == "the tenant's pool_size"
        first.rollback()
        assert [message.row for message in second.read_until() if message.kind == "D"] == [("2",)]
    assert show(world, f"SHOW STATS {tenant.slug}")[0]["total_xact_count"] == 2


def test_psql_runs_what_an_operator_types(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    commands = ["show help;", f"show route '{tenant.user}' '{tenant.slug}'", "SHOW TENANTS; SHOW VERSION", "reload"]
    ran = run(
        [pg18.bin_dir / "psql", "-X", url(world), *(part for one in commands for part in ("-c", one))],
        env={"PATH": os.environ["PATH"], "PGCLIENTENCODING": "UTF8"},
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "SHOW CLIENTS [tenant]" in ran.stdout
    assert f"database {tenant.database.name}" in ran.stdout
    assert ran.stdout.rstrip().endswith("RELOAD")


@pytest.mark.parametrize("topic", ["SERVERS", "POOLS", "TENANTS", "STATS", "TOTALS", "SLOTS", "LISTS", "STATE"])
def test_every_table_of_a_busy_node_has_rows(world: World, pg18: ServerFacts, topic: str) -> None:
    tenant = world.tenant(pg18)
    with psycopg.connect(world.url(tenant), autocommit=True) as client:
        client.execute("select 1")
        assert show(world, f"show {topic.lower()}")


async def test_asyncpg_gets_types_in_binary_prepares_and_resets(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    client = await psycopg.AsyncConnection.connect(world.url(tenant))
    connection = await asyncpg.connect(url(world, "watcher", STATS))
    try:
        statement = await connection.prepare("SHOW CLIENTS")
        (row,) = [row for row in await statement.fetch() if row["tenant"] == tenant.slug]
        assert isinstance(row["port"], int)
        assert isinstance(row["active_seconds"], float | None)
        assert await connection.fetchval("SELECT 1") == 1
        assert str(await connection.fetchval("select version()")).startswith("PostgreSQL 18.0 (pgtenant ")
        async with connection.transaction():
            pages = [row["command"] async for row in connection.cursor("SHOW HELP", prefetch=3)]
        assert pages == [row["command"] for row in await connection.fetch("SHOW HELP")]
        await connection.reset()
    finally:
        await connection.close()
        await client.close()


def test_contradictory_options_do_not_tell_the_consoles_users_from_strangers(world: World) -> None:
    said = []
    for user in ("ann", "nobody"):
        with pytest.raises(psycopg.OperationalError) as refused:
            psycopg.connect(url(world, user, "wrong"), options="-c tenant=one -c tenant=two")
        said.append(str(refused.value).replace(user, "").partition("FATAL")[2])
    assert said[0] == said[1] != ""


def test_a_transaction_of_a_driver_is_accepted_and_an_error_in_it_names_the_commands(world: World) -> None:
    with psycopg.connect(url(world)) as connection:
        connection.execute("SHOW VERSION")
        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        with pytest.raises(psycopg.errors.SyntaxError) as refused:
            connection.execute("delete from customers")
        assert refused.value.diag.message_primary == "this is no command of the console: delete from customers"
        assert "SHOW CLIENTS" not in str(refused.value.diag.message_primary)
        assert "CLIENTS, SERVERS" in str(refused.value.diag.message_hint)
        connection.rollback()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_who_may_only_look_cannot_reload_and_an_admins_reload_is_logged(world: World) -> None:
    with console(world, "watcher", STATS) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match='user "watcher" may only look, not RELOAD'):
            connection.execute("RELOAD")
        assert connection.execute("SHOW VERSION").fetchall()
    with console(world) as connection:
        assert connection.execute("RELOAD").statusmessage == "RELOAD"
    assert '"user": "ann"' in next(line for line in world.proxy.logs().splitlines() if '"reloaded"' in line)


def test_settings_are_shown_without_secrets(world: World) -> None:
    values = {row["key"]: row["value"] for row in show(world, "SHOW CONFIG")}
    assert values["console.max_sessions"] == "4"
    assert values["http.admin_token"] == "**********"
    assert "SCRAM" not in str(values)
    assert world.registry.url not in str(values)


def test_the_console_is_full_before_it_is_a_burden(world: World) -> None:
    sessions = [psycopg.connect(url(world)) for _ in range(4)]
    try:
        with pytest.raises(psycopg.OperationalError, match="the console has 4 sessions already"):
            psycopg.connect(url(world))
        assert world.proxy.metric("pgtenant_console_sessions") == 4
    finally:
        for session in sessions:
            session.close()
    wait_until(lambda: world.proxy.metric("pgtenant_console_sessions") == 0, what="sessions that have ended")
    assert show(world, "SHOW VERSION")


def test_who_may_only_look_leaves_sessions_for_admins(world: World) -> None:
    sessions = [psycopg.connect(url(world, "watcher", STATS)) for _ in range(3)]
    try:
        with pytest.raises(psycopg.OperationalError, match="the console has 3 sessions of users who may only look"):
            psycopg.connect(url(world, "watcher", STATS))
        assert show(world, "SHOW VERSION")
    finally:
        for session in sessions:
            session.close()
    wait_until(lambda: world.proxy.metric("pgtenant_console_sessions") == 0, what="sessions that have ended")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"Q\x7f\xff\xff\xff", id="a huge length"),
        pytest.param(b"Q\x00\x00\x00\x00", id="a length that cannot be"),
        pytest.param(frame("?"), id="an unknown kind"),
        pytest.param(frame("Q", b"no terminator"), id="a text without an end"),
        pytest.param(frame("p", b"secret\0"), id="a password after the login"),
        pytest.param(frame("B", b"\0\0\0\0\xff\xff"), id="a Bind that is too short"),
    ],
)
def test_what_is_no_message_ends_the_session_with_a_clear_error(world: World, data: bytes) -> None:
    with RawClient(world.proxy.port) as client:
        client.login("ann", ADMIN, "pgtenant")
        client.send(data)
        assert client.read_to_end()[-1].fields["C"] == "08P01"


def test_a_session_that_does_not_read_holds_up_nobody(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    with RawClient(world.proxy.port) as deaf, psycopg.connect(world.url(tenant), autocommit=True) as client:
        deaf.login("ann", ADMIN, "pgtenant")
        deaf.sock.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                deaf.sock.send(query("SHOW HELP;" * 1000))
        begun = time.monotonic()
        for _ in range(20):
            client.execute("select 1")
        assert time.monotonic() - begun < 5
        assert show(world, "SHOW LISTS")
