"""SQL speaks of prepared statements by the names that the protocol gave them, as on a connection of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness.rawclient import RawClient, bind, close, describe, execute, parse, query, sync
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from registry.contract import Limits

PROXY = {"pool": {"queue_wait_timeout": 10}}
SEED = "create table things (id int, label text); insert into things values (1, 'one'), (2, 'two')"
SELECT = "select id, label from things where id = $1"
USE = [bind(["1"], statement="s"), execute(), sync()]

STORIES: dict[str, list[list[bytes]]] = {
    "execute": [[query("execute s(1)")], [query("/* again */ EXECUTE S (2)")]],
    "unnamed": [[parse("execute s(1)"), describe(kind="S"), bind(), describe(), execute(), sync()]],
    "named": [
        [parse("execute s(1)", "e"), sync()],
        [bind(statement="e"), execute(), sync()],
        [bind(statement="e"), execute(), sync()],
    ],
    "explain": [[query("explain (costs off) execute s(1)")]],
    "block": [[query("do $$ begin execute 'execute s(1)'; end $$")]],
    "quoted": [[parse("select 4", "My Q"), sync()], [query('execute "My Q"')]],
    "deallocate two": [
        [parse("select 2", "t"), sync()],
        [query("deallocate s; deallocate t")],
        [bind(statement="t"), sync()],
        USE,
    ],
    "deallocate within": [
        [query("select 1; deallocate s")],
        USE,
        [parse("select 5", "s"), bind(statement="s"), execute(), sync()],
    ],
    "deallocate by name": [[parse("deallocate s", "d"), bind(statement="d"), execute(), sync()], USE],
    "deallocate in vain": [[query("begin")], [query("deallocate s; select 1 / 0")], [query("rollback")], USE],
    "deallocate all within": [
        [query("select 1; deallocate all"), parse("select 7", "s"), bind(statement="s"), execute(), sync()]
    ],
    "prepare": [[query("prepare s as select 1")], [query("execute s(1)")]],
    "parsed again": [[query("execute s(1)")], [parse("select 9", "s"), sync()], USE],
    "closed": [[query("execute s(1)")], [close("s"), sync()], [query("execute s(1)")], USE],
    "transaction": [[query("begin")], [query("execute s(1)")], [query("rollback")], [query("execute s(1)")]],
    "failed": [
        [query("begin")],
        [query("select 1 / 0")],
        [query("execute s(1)")],
        [query("rollback")],
        [query("execute s(1)")],
    ],
    "pipeline": [
        [parse("select 3", "t"), sync(), query("execute s(1)"), query("execute t"), bind(statement="t"), sync()],
        [bind(["1"], statement="s"), execute(), parse("execute s(2)"), bind(), execute(), sync()],
    ],
    "batch": [
        [parse("select 3"), describe(kind="S"), query("execute s(1)"), sync()],
        [parse("select 3"), bind(), execute(), query("execute s(1); select 4"), sync()],
        USE,
    ],
    "parsed after prepare": [
        [query("prepare x as select 1"), parse("select 2", "x"), bind(statement="x"), execute(), sync()],
        [query("execute x")],
        [parse("select 3", "y"), bind(statement="y"), execute(), sync()],
        [parse("select 4", "y"), sync()],
        [parse("select 5", "s"), sync()],
        [close("x"), parse("select 6", "x"), sync(), bind(statement="x"), execute(), sync()],
        [query("deallocate x"), parse("select 7", "x"), bind(statement="x"), execute(), sync()],
    ],
    "parsed behind prepare": [
        [parse("prepare x as select 1"), bind(), execute(), parse("select 2", "x"), bind(statement="x"), sync()],
        [bind(statement="x"), execute(), sync()],
    ],
    "another": [[query("execute s2")], [query("grant execute on function s to public")]],
}


@pytest.fixture(scope="module", params=[18, 17], ids=["pg18", "pg17"])
def tenant(request: pytest.FixtureRequest, world: World) -> TenantUnderTest:
    server = request.getfixturevalue(f"pg{request.param}")
    return world.tenant(server, seed=SEED, limits=Limits(pool_size=2))


@contextmanager
def proxied(world: World, tenant: TenantUnderTest) -> Iterator[RawClient]:
    with world.proxy.connect() as client:
        client.login(tenant.user, tenant.password, tenant.slug)
        yield client


@contextmanager
def direct(tenant: TenantUnderTest) -> Iterator[RawClient]:
    database = tenant.database
    with RawClient(database.server.port) as client:
        client.login(database.role, database.password, database.name)
        yield client


def answers(client: RawClient, count: int) -> list[tuple[str, object]]:
    """What comes up to so many times ReadyForQuery; of an error its SQLSTATE and text."""
    messages = [message for _ in range(count) for message in client.read_until("Z")]
    return [(one.kind, (one.fields["C"], one.fields["M"]) if one.kind in "EN" else one.body) for one in messages]


@pytest.mark.parametrize("steps", STORIES.values(), ids=STORIES)
def test_sql_knows_the_statements_of_the_protocol(
    steps: list[list[bytes]], world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client, proxied(world, tenant) as other, direct(tenant) as own:
        for step in [[parse(SELECT, "s"), sync()], *steps, [query("deallocate all")]]:
            readies = sum(message[:1] in b"QS" for message in step)
            said = []
            for one in (client, own):
                one.send(*step)
                said.append(answers(one, readies))
            assert said[0] == said[1], step
            other.rows("select 1")
        wait_until(lambda: world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug) == 0)


def test_error_of_a_statement_that_sql_executes_is_its_answer(world: World, tenant: TenantUnderTest) -> None:
    with proxied(world, tenant) as client, direct(tenant) as own:
        client.send(parse(SELECT, "s"), sync())
        answers(client, 1)
        own.rows("alter table things rename to moved")
        for begin, status in (([], b"I"), ([query("begin")], b"E")):
            for ask in ([query("execute s(1)")], [parse("execute s(1)"), bind(), execute(), sync()]):
                client.send(*begin, *ask)
                said = answers(client, len(begin) + 1)
                assert said[-2:] == [("E", ("42P01", 'relation "things" does not exist')), ("Z", status)]
                client.rows("rollback")
        own.rows("alter table moved rename to things")
        assert client.rows("execute s(1)") == [("1", "one")]
        wait_until(lambda: world.proxy.metric("pgtenant_pins", reason="statement") == 1)
        client.rows("select 1; deallocate s")
        wait_until(lambda: world.proxy.metric("pgtenant_pins", reason="statement") == 0)


@pytest.mark.parametrize("then", ["execute s(1)", "deallocate s"])
def test_rollback_that_a_text_begins_with_is_done_whatever_it_says_of_statements(
    then: str, world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client:
        client.send(parse(SELECT, "s"), sync(), query("begin"), query("select 1 / 0"), query(f"rollback; {then}"))
        said = answers(client, 4)
        assert ("C", b"ROLLBACK\0") in said
        assert said[-1] == ("Z", b"I")
        client.send(*USE)
        assert ("C", b"SELECT 1\0") in answers(client, 1)


def test_lock_taken_by_a_statement_that_sql_executes_is_not_left_to_others(
    world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client:
        client.send(parse("select pg_advisory_lock(7)", "lock"), sync())
        answers(client, 1)
        client.rows("execute lock")
        client.rows("select 1; deallocate lock")
        wait_until(lambda: world.proxy.metric("pgtenant_pins", reason="advisory_lock") == 1)
        client.rows("select pg_advisory_unlock(7)")
        wait_until(lambda: world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug) == 0)


def test_setting_made_by_a_statement_that_sql_executes_stays_with_its_client(
    world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client, proxied(world, tenant) as other:
        client.send(parse("select set_config('search_path', 'pg_catalog', false)", "set"), sync())
        answers(client, 1)
        client.rows("execute set")
        client.rows("select 1; deallocate set")
        assert client.rows("show search_path") == [("pg_catalog",)]
        assert other.rows("show search_path") != [("pg_catalog",)]
