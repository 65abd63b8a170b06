"""Random pipelines: what clients may send in one breath, and at which byte each of their rows may be committed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness.rawclient import bind, close, describe, execute, flush, frame, parse, query, sync

SEED = """
create table journal (client int, entry int);
create table sink (a int, b text);
"""
END = "the end of this pipeline"
GOODBYE = frame("f", b"over\0") + sync() + query("rollback") + query(f"select '{END}'") + frame("X")
ENDS = "QSF"
"""Messages at whose end the server may commit."""
NAMES = ["", "", "", "one", "two"]
MOST_UNITS = 10

STATEMENTS = [
    "select 1",
    "select repeat('x', 9000), null, ''",
    "select g from generate_series(1, 200) g",
    "select 1 / 0",
    "no SQL",
    "",
    "begin",
    "begin isolation level serializable",
    "commit",
    "rollback",
    "savepoint s",
    "rollback to savepoint s",
    "insert into sink values (1, 'x') returning a, b",
    "copy (select g, 'row' from generate_series(1, 50) g) to stdout",
    "copy sink from stdin",
    "set work_mem = '5MB'",
    "set timezone = 'Asia/Tokyo'",
    "set local timezone = 'Europe/Paris'",
    "reset all",
    "discard all",
    "show timezone",
    "show work_mem",
    "prepare p as select 'prepared'",
    "execute p",
    "deallocate p",
    "deallocate all",
    "declare c cursor with hold for select generate_series(1, 9)",
    "declare c cursor for select generate_series(1, 9)",
    "fetch 3 from c",
    "close c",
    "create temp table kept (a int)",
    "select count(*) from kept",
    "select set_config('work_mem', '7MB', true)",
    "do $$ begin raise notice 'noticed'; end $$",
]


@dataclass
class Pipeline:
    """All that one client says; `entries` has the end of each unit that writes into the journal."""

    client: int
    data: bytes = b""
    entries: dict[int, int] = field(default_factory=dict)

    def committed_within(self, count: int) -> set[int]:
        """The entries that may be committed by a server that has seen so many bytes."""
        ends = [end for kind, end in boundaries(self.data) if kind in ENDS]
        return {entry for entry, start in self.entries.items() if any(start <= end <= count for end in ends)}


def boundaries(data: bytes) -> Iterator[tuple[str, int]]:
    """Type and end of each message."""
    pos = 0
    while pos < len(data):
        kind = chr(data[pos])
        pos += 1 + int.from_bytes(data[pos + 1 : pos + 5], "big")
        yield kind, pos


def make_pipeline(client: int, chance: random.Random) -> Pipeline:
    """A pipeline of up to `MOST_UNITS` units, most of which belong together as those of an application do."""
    made = Pipeline(client)
    for entry in range(chance.randrange(1, MOST_UNITS)):
        if chance.random() < 0.3:
            insert = f"insert into journal values ({client}, {entry})"
            unit = query(insert) if chance.random() < 0.3 else _statement(insert, chance)
            made.data += unit
            made.entries[entry] = len(made.data)
        else:
            made.data += _unit(client, chance)
        if chance.random() < 0.35:
            made.data += sync()
    made.data += sync()
    return made


def _statement(sql: str, chance: random.Random) -> bytes:
    name = chance.choice(NAMES)
    again = close(name) if name and chance.random() < 0.7 else b""
    return again + parse(sql, name) + bind(statement=name) + chance.choice([b"", describe()]) + execute()


def _unit(client: int, chance: random.Random) -> bytes:
    kind = chance.randrange(20)
    statement, name, portal = chance.choice(STATEMENTS), chance.choice(NAMES), chance.choice(NAMES)
    if kind < 5:
        return query(statement)
    if kind < 9:
        return _statement(statement, chance)
    if kind == 9:
        return query("begin") + _statement(statement, chance) + sync() + query(chance.choice(["commit", "rollback"]))
    if kind == 10:
        rows = frame("d", b"%d\tgood\n" % client) * chance.randrange(3)
        bad = chance.choice([b"", frame("d", b"no number\tbad\n")])
        return query("copy sink from stdin") + rows + bad + chance.choice([frame("c"), frame("f", b"given up\0")])
    mine = f"select 'of client {client}', $1::int"
    return chance.choice(
        [
            parse(mine, name) + sync(),
            parse(mine, name) + bind([str(client)], statement=name) + execute(),
            parse(mine, "kept") + bind([str(client)], statement="kept") + execute() + sync(),
            bind([str(client)], statement="kept", portal=portal) + execute(portal) + sync(),
            bind(["no number"], statement="kept") + execute() + sync(),
            describe("kept", kind="S") + sync(),
            close("kept") + sync(),
            parse("select generate_series(1, 9)") + bind(portal=portal) + execute(portal, limit=4),
            execute(portal, limit=3),
            describe(portal),
            close(portal, kind="P"),
            close(name),
            flush(),
            frame("F", b"\0\0\4\xba\0\1\0\0\0\0\0\1"),
            frame("c"),
            sync() + sync(),
        ]
    )
