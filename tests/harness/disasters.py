"""What clients are in the middle of when they vanish, and how to see whether anything of it is left.

Every disaster runs on a table `mine (id int primary key, slug text, note text)`; none of them ever commits the note
`dirty`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from harness.proxy import ProxyProcess
from harness.rawclient import RawClient, bind, describe, execute, flush, frame, parse, query, sync
from harness.registries import TenantUnderTest

SEED = """
create table mine (id int primary key, slug text not null, note text not null default '');
insert into mine select g, current_database() from generate_series(1, 200) g;
"""
DIRTY = "update mine set note = 'dirty' where id = 1"

DISASTERS: dict[str, list[bytes]] = {
    "an open transaction": [query("begin"), query(DIRTY)],
    "a failed transaction": [query("begin"), query(DIRTY), query("select 1 / 0")],
    "a savepoint": [query("begin"), query("savepoint s"), query(DIRTY), query("select nothing")],
    "a query that runs": [query(f"begin; {DIRTY}; select pg_sleep(2)")],
    "many queries that are queued": [query("begin"), query(DIRTY), *[query("select pg_sleep(0.01)")] * 20],
    "a result that nobody reads": [query("select repeat('x', 1000) from generate_series(1, 50000)")],
    "a copy to the server": [query("copy mine from stdin"), frame("d", b"900\tdirty\tdirty\n")],
    "a copy inside a transaction": [query("begin"), query("copy mine from stdin"), frame("d", b"900\tdirty\tdirty\n")],
    "half a row of a copy": [query("copy mine from stdin"), frame("d", b"900\tdirty\tdirty\n")[:-7]],
    "a copy by the extended protocol": [
        parse("copy mine from stdin"),
        bind(),
        execute(),
        sync(),
        frame("d", b"900\tdirty\tdirty\n"),
    ],
    "a failed copy with more to come": [
        query("copy mine from stdin"),
        frame("d", b"not a number\tdirty\tdirty\n"),
        *[frame("d", b"900\tdirty\tdirty\n")] * 20,
    ],
    "a copy from the server": [query("copy (select * from mine, generate_series(1, 500)) to stdout")],
    "half a message": [parse(DIRTY)[:-3]],
    "half a query in a transaction": [query("begin"), query(DIRTY), query("commit")[:-2]],
    "a pipeline without its end": [query("begin"), parse(DIRTY), bind(), execute(), flush()],
    "a pipeline in an implicit transaction": [parse(DIRTY), bind(), describe(), execute(), flush()],
    "a pipeline after its error": [
        parse("select nothing"),
        bind(),
        execute(),
        parse(DIRTY),
        bind(),
        execute(),
        flush(),
    ],
    "an open portal": [query("begin"), parse("select * from mine"), bind(portal="p"), execute("p", limit=3), flush()],
    "a named statement": [parse(DIRTY, "named"), sync()],
    "a prepared statement": [query(f"prepare dirty as {DIRTY}")],
    "a temporary table": [query("create temp table leftover (a int)")],
    "settings": [query("set search_path = pg_catalog"), query("set statement_timeout = 1")],
    "a setting by a function": [query("select set_config('statement_timeout', '1', false)")],
    "a setting of all transactions": [query("set session characteristics as transaction read only")],
    "an advisory lock": [query("select pg_advisory_lock(4711)")],
    "a channel": [query("listen leftover"), query("notify leftover")],
    "a cursor with hold": [query("declare leftover cursor with hold for select 1")],
    "another role": [query("set role none")],
    "a function call": [frame("F", b"\0\0\4\xba\0\1\0\0\0\0\0\1")],
}

LEFTOVERS = """
select 'cursor ' || name from pg_catalog.pg_cursors
union all select 'statement ' || name from pg_catalog.pg_prepared_statements where name !~ '^pgtenant_'
union all select 'table ' || relname from pg_catalog.pg_class where relnamespace = pg_catalog.pg_my_temp_schema()
union all select 'lock ' || objid from pg_catalog.pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
union all select 'channel ' || c from pg_catalog.pg_listening_channels() c
union all select 'setting ' || name from pg_catalog.pg_settings where source = 'session' and name !~ '^transaction_'
union all select 'note ' || note from public.mine where note = 'dirty'
union all select 'role ' || current_user where current_user <> session_user
"""


def login(proxy: ProxyProcess, tenant: TenantUnderTest) -> RawClient:
    """A raw client of the tenant; it is not closed when it goes out of scope, as drivers' connections are."""
    client = proxy.connect()
    client.login(tenant.user, tenant.password, tenant.slug)
    return client


def leftovers(proxy: ProxyProcess, tenant: TenantUnderTest, pool_size: int) -> set[str]:
    """What clients find in the tenant's backends that they have not put there; looks at `pool_size` of them at once."""
    with ExitStack() as stack:
        clients = [stack.enter_context(login(proxy, tenant)) for _ in range(pool_size)]
        for client in clients:
            client.rows("begin")
        return set(_found(clients))


def _found(clients: list[RawClient]) -> Iterator[str]:
    for client in clients:
        for (row,) in client.rows(LEFTOVERS):
            assert row is not None
            yield row
        client.rows("rollback")
