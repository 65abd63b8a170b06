"""Scenarios: connecting, values, and statements of every kind."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from functools import partial
from typing import Any

from drivers.scripts.play import Notes
from drivers.scripts.session import Driver, Place, Session

TURNS = 12
LONG = 100_000

EXPRESSIONS = [
    "null",
    "true",
    "32767::int2",
    "-2147483648::int4",
    "9223372036854775807::int8",
    "1.5::float8",
    "'NaN'::float8",
    "12345678901234567890.000100::numeric",
    "'héllo \u2603'::text",
    "'padded'::char(8)",
    "'\\x00ff10'::bytea",
    "'2024-02-29'::date",
    "'12:34:56.789'::time",
    "'2024-02-29 12:34:56.789+02'::timestamptz",
    "'2024-02-29 12:34:56'::timestamp",
    "'3 days 04:05:06'::interval",
    "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid",
    '\'{"a": [1, null, "x"]}\'::jsonb',
    "array[1, 2, null]::int4[]",
    "array['a', 'b,c', null]::text[]",
    "'192.168.1.5/24'::inet",
    "'[1,5)'::int4range",
    "row(1, 'two')",
    "'happy'::mood",
]

VALUES = [
    ("int4", 42),
    ("int8", 1 << 40),
    ("float8", 0.1),
    ("numeric", Decimal("1234567.8900")),
    ("text", "quote ' backslash \\ percent % snow \u2603"),
    ("text", ""),
    ("text", None),
    ("bool", False),
    ("bytea", bytes(range(256))),
    ("date", dt.date(1999, 12, 31)),
    ("timestamptz", dt.datetime(2024, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)),
    ("uuid", uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    ("int4[]", [1, 2, 3]),
    ("text[]", ["a", 'b"c', "d,e"]),
]


def connect(driver: Driver, place: Place, notes: Notes) -> None:
    name = f"drivers {notes.worker}"
    with driver.connect(place.url, application_name=name) as session:
        notes.note("first answer", session.query("select 1"))
        notes.note("application_name", session.value("show application_name"))
        notes.note("client_encoding", session.value("show client_encoding"))
        notes.note("users agree", session.value("select current_user = session_user"))
        notes.note("database name", session.value("select current_database()") == place.database)
        for parameter in ("server_version", "TimeZone", "integer_datetimes", "standard_conforming_strings"):
            notes.optional(f"reported {parameter}", partial(session.parameter, parameter))
        notes.optional("process number", lambda: session.pid() == session.value("select pg_backend_pid()"))
        notes.optional("usable", session.usable)

    def with_options() -> list[object]:
        with driver.connect_with_options(place.url, {"timezone": "Asia/Tokyo", "work_mem": "7MB"}) as session:
            return [(session.value("show timezone"), session.value("show work_mem")) for _ in range(3)]

    notes.optional("settings at the start", with_options)
    with notes.failing("wrong password"):
        driver.connect(place.changed(password="wrong")).query("select 1")
    with notes.failing("unknown database"):
        driver.connect(place.changed(database="no_such_database")).query("select 1")
    sessions = [driver.connect(place.url) for _ in range(4)]
    try:
        for turn in range(3):
            notes.note(f"several, turn {turn}", [s.value("select $1::int4", n) for n, s in enumerate(sessions)])
    finally:
        for session in sessions:
            session.close()


def types(driver: Driver, place: Place, notes: Notes) -> None:
    with driver.connect(place.url) as session:
        for expression in EXPRESSIONS:
            notes.outcome(expression, partial(_asked, session, f"select {expression}"))
        notes.note("many columns", sum(session.query("select " + ", ".join(f"{n} as c{n}" for n in range(300)))[0]))
        notes.note("no columns", session.query("select from items limit 3"))
        notes.note("no rows", session.query("select id from items where false"))


def parameters(driver: Driver, place: Place, notes: Notes) -> None:
    with driver.connect(place.url) as session:
        for kind, value in VALUES:
            notes.outcome(f"{kind} {value!r:.30}", partial(_asked, session, f"select $1::{kind}", value))
        text = "x\u2603" * LONG
        notes.note("long text", session.value("select $1::text", text) == text)
        data = bytes(range(256)) * (LONG // 256)
        notes.note("long bytea", bytes(session.value("select $1::bytea", data)) == data)
        found = session.query("select id, name from items where id between $1::int4 and $2::int4 order by id", 3, 5)
        notes.note("several", found)
        with notes.failing("bad value"):
            session.query("select $1::text::int4", "seven")
        notes.note("after it", session.query("select $1::int4", 7))
        # Some drivers ask for the type first, and then refuse the value themselves.
        with notes.failing("value of another type", TypeError):
            session.query("select $1::int4 + 0", "seven")
        with session.transaction():
            notes.note("in a transaction after it", session.value("select 1"))


def named(driver: Driver, place: Place, notes: Notes) -> None:
    mine = f"named_{notes.worker}"
    with driver.connect(place.url) as session, driver.connect(place.url) as other:
        plus = session.prepare("select $1::int4 + 1")
        item = session.prepare("select name from items where id = $1::int4")
        times = other.prepare("select $1::int4 * 2")
        notes.note("turns", [(plus(n), item(n + 1), times(n)) for n in range(TURNS)])
        divide = session.prepare("select 10 / $1::int4")
        notes.note("division", divide(5))
        with notes.failing("division by zero"):
            divide(0)
        notes.note("after it", divide(2))
        with session.transaction():
            notes.note("in a transaction", [plus(1), item(2), divide(1)])
        with notes.failing("error in a transaction"), session.transaction():
            plus(1)
            divide(0)
        notes.note("after the transaction", [plus(2), item(3), divide(10)])
        late = session.prepare("select $1::int4 + 2")
        with session.transaction():
            notes.note("prepared before its transaction", late(1))
        with notes.failing("syntax error"):
            session.prepare("selekt $1::int4")(1)
        _schema_change(session, other, mine, notes)
        for count in range(30):
            session.prepare(f"select {count} + $1::int4")(count)
        notes.note("many statements", plus(41))
        notes.optional("forgotten", lambda: session.forget(item))
        notes.note("prepared again", session.prepare("select name from items where id = $1::int4")(9))


def _schema_change(session: Session, other: Session, mine: str, notes: Notes) -> None:
    session.query(f"drop table if exists {mine}")
    session.query(f"create table {mine} (a int4)")
    session.query(f"insert into {mine} values (1)")
    everything = session.prepare(f"select * from {mine} where a = $1::int4")
    notes.note("before the change", [everything(1) for _ in range(TURNS)])
    other.query(f"alter table {mine} add column b text default 'new'")
    for turn in range(3):
        notes.outcome(f"after the change, turn {turn}", lambda: everything(1))
    notes.outcome("a new one after the change", lambda: session.prepare(f"select * from {mine} where a = $1::int4")(1))
    session.query(f"drop table {mine}")


def unnamed(driver: Driver, place: Place, notes: Notes) -> None:
    with driver.connect(place.url) as session:
        notes.note("turns", [session.unnamed("select $1::int4 + $2::int4", n, 1) for n in range(TURNS)])
        with notes.failing("division by zero"):
            session.unnamed("select 1 / $1::int4", 0)
        notes.note("after it", session.unnamed("select 1 / $1::int4", 1))
        with session.transaction():
            notes.note("in a transaction", [session.unnamed("select $1::text", "a") for _ in range(3)])
        with notes.failing("error in a transaction"), session.transaction():
            session.unnamed("select 1 / $1::int4", 0)
        notes.note("after the transaction", session.unnamed("select $1::text", "b"))
        notes.note("many rows", len(session.unnamed("select generate_series(1, $1::int4)", 20_000)))


def batch(driver: Driver, place: Place, notes: Notes) -> None:
    table = f"work_{notes.worker}"
    with driver.connect(place.url) as session:
        session.query(f"delete from {table}")
        insert = f"insert into {table} (id, note) values ($1::int4, $2::text)"
        notes.note("what the driver says", session.many(insert, [(n, f"row {n}") for n in range(250)]))
        notes.note("rows", session.query(f"select count(*), sum(id) from {table}"))
        with notes.failing("a row twice, in a transaction"), session.transaction():
            session.many(insert, [(1000, "new"), (1, "twice"), (1001, "never")])
        notes.note("rows after it", session.query(f"select count(*), sum(id) from {table}"))
        with notes.failing("a row twice"):
            session.many(insert, [(2000, "new"), (1, "twice"), (2001, "never")])
        notes.note("usable after it", session.query("select $1::int4", 1))
        session.query(f"delete from {table}")


def pipeline(driver: Driver, place: Place, notes: Notes) -> None:
    with driver.connect(place.url) as session:
        sums: list[tuple[str, tuple[object, ...]]] = [("select $1::int4 * 10", (n,)) for n in range(50)]
        notes.note("many", session.together(sums))
        for turn in range(TURNS):
            notes.note(f"turn {turn}", session.together(sums[turn : turn + 3]))
        with session.transaction():
            notes.note("in a transaction", session.together(sums[:5]))
        with notes.failing("error in the middle"):
            session.together([*sums[:3], ("select 1 / $1::int4", (0,)), *sums[3:6]])
        notes.note("after it", session.together(sums[:2]))
        with notes.failing("error in a transaction"), session.transaction():
            session.together([*sums[:3], ("select 1 / $1::int4", (0,)), *sums[3:6]])
        notes.note("after the transaction", session.together(sums[2:4]))
        notes.note("alone", session.query("select $1::int4", 1))


def _asked(session: Session, sql: str, *values: Any) -> str:
    return _shown(session.value(sql, *values))


def _shown(value: object) -> str:
    """A text that is the same for equal values and tells their types."""
    if isinstance(value, memoryview):
        value = bytes(value)
    return f"{type(value).__name__} {value}"
