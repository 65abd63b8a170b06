"""Scenarios: transactions, cursors, COPY, cancelling, notifications, TLS, settings, pools and lost connections."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

from drivers.scripts.play import Notes
from drivers.scripts.session import Driver, NotApplicable, Place, Session

ZONES = ("Asia/Kathmandu", "America/Caracas")
PATIENCE = 5.0
SILENCE = 0.3
TURNS_TLS = 8
IN_ORDER = "select id from items order by id"


def transactions(driver: Driver, place: Place, notes: Notes) -> None:
    table = f"work_{notes.worker}"
    with driver.connect(place.url) as session, driver.connect(place.url) as other:
        session.query(f"delete from {table}")
        counted = f"select count(*) from {table}"
        insert = f"insert into {table} values ($1::int4, 'x')"
        with session.transaction():
            session.query(insert, 1)
            notes.note("seen by itself, by another", (session.value(counted), other.value(counted)))
        notes.note("committed", other.value(counted))
        with notes.failing("rolled back"), session.transaction():
            session.query(insert, 2)
            session.query("select 1 / 0")
        notes.note("after rolling back", other.value(counted))
        with session.transaction():
            session.query(insert, 3)
            with notes.failing("savepoint"), session.transaction():
                session.query(insert, 4)
                session.query("selekt")
            with session.transaction():
                session.query(insert, 5)
        notes.note("with savepoints", other.query(f"select id from {table} order by id"))
        with notes.failing("left aborted"), session.transaction():
            with notes.failing("the error"):
                session.query("select no_such_column")
            with notes.failing("aborted"):
                session.query("select 1")
        with notes.failing("left read only"), session.transaction():
            notes.outcome("set", lambda: session.query("set transaction isolation level serializable, read only"))
            notes.outcome("characteristics", lambda: session.value("show transaction_isolation"))
            with notes.failing("read only"):
                session.query(insert, 6)
            with notes.failing("aborted after read only"):
                session.query("select 1")
        notes.note("characteristics after", session.value("show transaction_isolation"))
        with notes.failing("deferred constraint"), session.transaction():
            session.query("insert into children values ($1::int4, -1)", notes.worker)
        notes.note("one backend in a transaction", _same_backend(session))
        session.query(f"delete from {table}")
    with driver.connect(place.url) as session:
        notes.count_backends(lambda: session.value("select pg_backend_pid()"))


def _same_backend(session: Session) -> bool:
    with session.transaction():
        return len({session.value("select pg_backend_pid()") for _ in range(5)}) == 1


def errors(driver: Driver, place: Place, notes: Notes) -> None:
    failing = {
        "syntax": "selekt 1",
        "table": "select * from no_such_table",
        "column": "select nothing from items",
        "division": "select 1 / 0",
        "cast": "select 'x'::int4",
        "unique": "insert into items values (1, 'again')",
        "not null": "insert into items values (null, 'x')",
        "permission": "select * from pg_authid",
        "function": "select fail_with('P1234')",
        "row in the middle": "select 1 / (50 - id) from items order by id",
    }
    with driver.connect(place.url) as session:
        for name, sql in failing.items():
            with notes.failing(name):
                session.query(sql)
            notes.note(f"after {name}", session.query("select $1::int4", 1))
        for name, sql in failing.items():
            with notes.failing(f"{name} in a transaction"), session.transaction():
                session.query("select 1")
                session.query(sql)
        notes.note("after all", session.query("select $1::int4", 1))
        session.query("set statement_timeout to '100ms'")
        with notes.failing("statement_timeout"):
            session.query("select pg_sleep(10)")
        session.query("reset statement_timeout")

        def noticed() -> list[str]:
            session.query("do $do$ begin raise notice 'one'; raise warning 'two'; end $do$")
            return session.notices()

        notes.optional("notices", noticed)
        notes.optional("several statements", lambda: session.script("select 1; select 2; select 3"))
        with notes.failing("several, one fails"):
            notes.optional("asked", lambda: session.script("select 1; select 1 / 0; select 3"))
        notes.note("empty", _or_code(notes, session, ""))


def _or_code(notes: Notes, session: Session, sql: str) -> object:
    try:
        return session.query(sql)
    except notes.driver.errors as error:
        return notes.driver.sqlstate(error) or type(error).__name__


def cursors(driver: Driver, place: Place, notes: Notes) -> None:
    with driver.connect(place.url) as session, driver.connect(place.url) as other:
        with session.transaction():
            notes.note("all", sum(row[0] for row in session.stream("select id from items order by id", 7)))
        with session.transaction():
            rows = session.stream("select id from items order by id", 10)
            first = [row[0] for row in islice(rows, 15)]
            notes.note("meanwhile", other.value("select count(*) from items"))
            notes.note("some", first)
            _give_up(rows)
        notes.note("after some", session.query("select $1::int4", 1))
        with notes.failing("error in the middle"), session.transaction():
            list(session.stream("select 1 / (50 - id) from items order by id", 10))
        notes.note("after the error", session.query("select $1::int4", 1))
        with session.transaction():
            rows = session.stream("select generate_series(1, 10000)", 3000)
            notes.note("many", sum(row[0] for row in rows))
        notes.optional("with hold", lambda: sum(row[0] for row in session.held("select id from items", 10)))
        if notes.driver.streams_outside:
            notes.outcome("outside of a transaction", lambda: sum(r[0] for r in session.stream(IN_ORDER, 7)))
        with session.transaction():
            session.query("declare by_hand cursor for select id from items order by id")
            notes.note("by hand", [session.query("fetch 2 from by_hand"), session.query("fetch 2 from by_hand")])
        with notes.failing("gone with its transaction"):
            session.query("fetch 2 from by_hand")


def _give_up(rows: Iterator[object]) -> None:
    close = getattr(rows, "close", None)
    if close is not None:
        close()


def copy(driver: Driver, place: Place, notes: Notes) -> None:
    table = f"work_{notes.worker}"
    with driver.connect(place.url) as session:
        session.query(f"delete from {table}")
        lines = [f"{n}\trow {n} {'x' * 50}\n".encode() for n in range(20_000)]
        session.copy_in(f"copy {table} from stdin", lines)
        notes.note("rows", session.query(f"select count(*), sum(id) from {table}"))
        notes.note("out", len(session.copy_out(f"copy {table} to stdout")))
        notes.note(
            "out as csv", session.copy_out(f"copy (select id, note from {table} where id < 2) to stdout (format csv)")
        )
        with notes.failing("bad row"):
            session.copy_in(f"copy {table} from stdin", [b"30000\tgood\n", b"seven\tbad\n", *lines])
        notes.note("after it", session.value(f"select count(*) from {table}"))
        with notes.failing("error while copying out"):
            session.copy_out("copy (select 1 / (50 - id) from items) to stdout")
        notes.note("after that", session.value("select $1::int4", 1))
        with notes.failing("in a transaction"), session.transaction():
            session.copy_in(f"copy {table} from stdin", [b"40000\tgood\n"])
            notes.note("inside", session.value(f"select count(*) from {table}"))
            session.copy_in(f"copy {table} from stdin", [b"1\ttwice\n"])
        notes.note("rolled back", session.value(f"select count(*) from {table}"))
        with notes.failing("no such table"):
            session.copy_in("copy no_such_table from stdin", [b"1\n"])
        session.query(f"delete from {table}")


def cancel(driver: Driver, place: Place, notes: Notes) -> None:
    with driver.connect(place.url) as session:
        for turn in range(2):
            with notes.failing(f"cancelled, turn {turn}"):
                session.cancelled("select pg_sleep(30)")
            notes.outcome(f"after it, turn {turn}", lambda: session.query("select $1::int4", 1))
        with notes.failing("in a transaction"), session.transaction():
            session.query("select 1")
            session.cancelled("select pg_sleep(30)")
        notes.outcome("after the transaction", lambda: session.query("select $1::int4", 1))


def notify(driver: Driver, place: Place, notes: Notes) -> None:
    channel = f"channel_{notes.worker}"
    with driver.connect(place.url) as listener, driver.connect(place.url) as sender:
        listener.listen(channel)
        for number in range(3):
            sender.query(f"select pg_notify('{channel}', 'message {number}')")
        notes.note("received", listener.notifications(PATIENCE, 3))
        with sender.transaction():
            sender.query(f"notify {channel}, 'with the commit'")
        notes.note("committed", listener.notifications(PATIENCE, 1))
        listener.query(f"notify {channel}, 'to itself'")
        notes.note("to itself", listener.notifications(PATIENCE, 1))
        notes.note("queries meanwhile", [listener.value("select $1::int4", n) for n in range(5)])
        sender.query(f"notify {channel}, 'after queries'")
        notes.note("after queries", listener.notifications(PATIENCE, 1))
        listener.unlisten(channel)
        sender.query(f"notify {channel}, 'unheard'")
        notes.note("after unlisten", listener.notifications(SILENCE, 1))
        notes.note("afterwards", listener.value("select $1::int4", 1))


def tls(driver: Driver, place: Place, notes: Notes) -> None:
    with driver.connect_tls(place.tls_url, ca=None) as session:
        notes.note("required", session.query("select $1::int4", 1))
        notes.optional("encrypted", session.encrypted)
    with driver.connect_tls(place.tls_url, ca=place.ca) as session:
        notes.note("verified", session.query("select $1::int4", 1))
        notes.note("much", len(session.value("select repeat('x', 3000000)")))
        notes.optional("prepared", lambda: [session.prepare("select $1::int4")(n) for n in range(TURNS_TLS)])
        with notes.failing("an error"):
            session.query("select 1 / 0")
        with notes.failing("cancelled"):
            notes.optional("cancel", lambda: session.cancelled("select pg_sleep(30)"))
        notes.note("afterwards", session.query("select $1::int4", 2))
    refusals: tuple[type[Exception], ...] = (*driver.errors, OSError)
    try:
        driver.connect_tls(place.tls_url, ca=place.wrong_ca).close()
        notes.note("another authority", "accepted")
    except refusals:
        notes.note("another authority", "refused")
    for way in ("channel binding", "direct"):
        notes.optional(way, partial(_specially, driver, place, way, notes))


def _specially(driver: Driver, place: Place, way: str, notes: Notes) -> object:
    try:
        with driver.connect_tls_specially(place.tls_url, place.ca, way) as session:
            return session.query("select $1::int4", 1)
    except notes.driver.errors as error:
        return f"{notes.driver.sqlstate(error)} {error}"


def settings(driver: Driver, place: Place, notes: Notes) -> None:
    zone, number = ZONES[notes.worker % len(ZONES)], 11 + notes.worker
    with driver.connect(place.url) as session:
        start = session.value("show timezone")
        session.query(f"set timezone to '{zone}'")
        session.query(f"set work_mem to '{number}MB'")
        session.query(f"set my.own to 'worker {notes.worker}'")
        shown = [[session.value(f"show {name}") for name in ("timezone", "work_mem", "my.own")] for _ in range(6)]
        notes.note("set", shown)
        notes.optional("reported", lambda: session.parameter("TimeZone"))
        with session.transaction():
            session.query("set local work_mem to '99MB'")
            notes.note("set local", session.value("show work_mem"))
        notes.note("after set local", session.value("show work_mem"))
        with notes.failing("set and roll back"), session.transaction():
            session.query("set work_mem to '88MB'")
            session.query("select 1 / 0")
        notes.note("after rolling back", session.value("show work_mem"))
        session.query("reset work_mem")
        session.query("reset timezone")
        notes.note("reset", (session.value("show work_mem"), session.value("show timezone") == start))
        session.query(f"set search_path to own_{notes.worker}, public")
        notes.note("search_path", [session.value("select whose()") for _ in range(3)])
        session.query("reset search_path")
        _bound_state(session, notes)
        session.query(f"select set_config('work_mem', '{number}MB', false)")
        notes.note("set_config", [session.value("show work_mem") for _ in range(6)])
        session.query(f"select hide_setting('worker {notes.worker}')")
        notes.note("hidden", [session.value("select current_setting('my.hidden', true)") for _ in range(6)])
        notes.outcome("discard all", lambda: session.query("discard all"))
        notes.outcome(
            "after discard all", lambda: (session.value("show work_mem"), session.value("show timezone") == start)
        )


def _bound_state(session: Session, notes: Notes) -> None:
    session.query("create temp table mine (a int4)")
    session.query("insert into mine values ($1::int4)", notes.worker)
    notes.note("temporary table", [session.query("select a from mine") for _ in range(4)])
    session.query("drop table mine")
    key = 1000 + notes.worker
    session.query(f"select pg_advisory_lock({key})")
    notes.note("between", [session.value("select $1::int4", n) for n in range(4)])
    notes.note("advisory lock", session.value(f"select pg_advisory_unlock({key})"))
    session.query(f"prepare by_hand as select {notes.worker} + 100")
    notes.note("execute", [session.query("execute by_hand") for _ in range(4)])
    session.query("deallocate by_hand")
    with notes.failing("execute after deallocate"):
        session.query("execute by_hand")


def pool(driver: Driver, place: Place, notes: Notes) -> None:
    notes.note("shared", driver.pooled(place.url, 8, 10))
    notes.optional("after a loss", lambda: driver.pooled_after_loss(place.url))


def reconnect(driver: Driver, place: Place, notes: Notes) -> None:
    with driver.connect(place.url) as session, driver.connect(place.url) as killer:
        with notes.failing("cut in a transaction"), session.transaction():
            _cut(session, killer)
            session.query("select 1")
        notes.optional("usable", session.usable)
    with driver.connect(place.url) as session, driver.connect(place.url) as killer:
        notes.note("a new connection", session.query("select $1::int4", 1))
        with killer.transaction():
            killer.query("select 1")
            _cut(session, killer)
        notes.outcome("cut while idle", lambda: session.query("select $1::int4", 2))
    with driver.connect(place.url) as session:
        notes.note("another connection", session.query("select $1::int4", 3))
        with notes.failing("cut by its own query"):
            session.query("select pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")
    with driver.connect(place.url) as session:
        notes.note("the last connection", session.query("select $1::int4", 4))


def _cut(session: Session, killer: Session) -> None:
    pid = session.value("select pg_backend_pid()")
    killer.query(f"select pg_terminate_backend({pid}, 5000)")


def unavailable(_driver: Driver, _place: Place, _notes: Notes) -> None:
    raise NotApplicable("the driver has nothing of the kind")
