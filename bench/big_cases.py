"""The big things: values, rows and COPY of gigabytes, and many who are slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self

from bench.model import BenchError, Endpoint
from bench.rawsession import RawSession, message

GIGABYTE: Final = 1_000_000_000
COLUMNS: Final = 1_600
LINE: Final = b"x" * 999 + b"\n"
BLOCK: Final = 128
"""Lines in one message of a COPY to the server."""
STILL: Final = 0.5
"""Seconds without a byte after which everything counts as held up."""
SLOW_READ: Final = 16_384
GATE: Final = 4711
MAKE_GATE: Final = f"""
drop table if exists gated;
create unlogged table gated (line text);
create or replace function wait_for_gate() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock_shared({GATE});
    return null;
end $$;
create trigger gate before insert on gated for each row execute function wait_for_gate();
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much: bytes of a value and of a COPY, numbers of rows and of slow sessions, and seconds of slowness."""

    value: int
    rows: int
    wide_rows: int
    copied: int
    sessions: int
    slow: float = 3.0

    @classmethod
    def scaled(cls, scale: float, sessions: int) -> Self:
        """1 is as much as PostgreSQL can: a field of 1 GB."""
        return cls(
            value=min(GIGABYTE, int(GIGABYTE * scale)),
            rows=max(1, int(10_000_000 * scale)),
            wide_rows=max(1, int(100_000 * scale)),
            copied=max(len(LINE), int(4 * GIGABYTE * scale)),
            sessions=sessions,
        )


@dataclass(frozen=True, slots=True)
class Big:
    """One case: `run` returns the bytes that went through, `many` says that it takes many sessions."""

    name: str
    amount: Callable[[Sizes], str]
    run: Callable[[Endpoint, Sizes], int]
    many: bool = False
    setup: str = ""

    def prepare(self, server: Endpoint) -> None:
        """Make on the server what is needed."""
        if self.setup:
            with RawSession(server) as session:
                session.query(self.setup)
                session.answer()

    def warm_up(self, proxy: Endpoint) -> None:
        """Have the proxy open a backend, and do once what it does in every session."""
        with RawSession(proxy) as session:
            session.query("select repeat('x', 100000)")
            session.answer()


def value_to_client(proxy: Endpoint, sizes: Sizes) -> int:
    """Read one field that is as large as it can be."""
    with RawSession(proxy) as session:
        session.query(f"select repeat('x', {sizes.value})")
        return _at_least(session.answer(), sizes.value)


def value_to_server(proxy: Endpoint, sizes: Sizes) -> int:
    """Send one parameter that is as large as it can be."""
    with RawSession(proxy) as session:
        session.execute("select octet_length($1::bytea)", sizes.value)
        session.answer()
    return sizes.value


def many_rows(proxy: Endpoint, sizes: Sizes) -> int:
    """Read many short rows."""
    with RawSession(proxy) as session:
        session.query(f"select g, 'row ' || g, now() from generate_series(1, {sizes.rows}) g")
        return _at_least(session.answer(), sizes.rows)


def wide_rows(proxy: Endpoint, sizes: Sizes) -> int:
    """Read rows of as many columns as a table can have."""
    columns = ", ".join(f"g + {number}" for number in range(COLUMNS))
    with RawSession(proxy) as session:
        session.query(f"select {columns} from generate_series(1, {sizes.wide_rows}) g")
        return _at_least(session.answer(), COLUMNS * sizes.wide_rows)


def copy_out(proxy: Endpoint, sizes: Sizes) -> int:
    """Read a COPY."""
    with RawSession(proxy) as session:
        session.query(_copy_sql(sizes))
        return _at_least(session.answer(), sizes.copied)


def copy_in(proxy: Endpoint, sizes: Sizes) -> int:
    """Write a COPY, of which the server keeps nothing."""
    block = message(b"d", LINE * BLOCK)
    blocks = max(1, sizes.copied // (len(LINE) * BLOCK))
    with RawSession(proxy) as session:
        session.query("create temp table sink (line text); copy sink from stdin where false")
        session.answer(b"G")
        for _ in range(blocks):
            session.send(block)
        session.send(message(b"c"))
        session.answer()
    return blocks * len(block)


def slow_readers(proxy: Endpoint, sizes: Sizes) -> int:
    """Every one asks for everything, reads nothing until all are held up, then a little at a time, and leaves."""
    moved = 0
    with ExitStack() as stack:
        sessions = [stack.enter_context(RawSession(proxy)) for _ in range(sizes.sessions)]
        for session in sessions:
            session.query(_copy_sql(sizes))
        time.sleep(STILL)
        until = time.monotonic() + sizes.slow
        while time.monotonic() < until:
            for session in sessions:
                moved += session.some(SLOW_READ)
            time.sleep(0.01)
    return moved


def slow_writers(proxy: Endpoint, sizes: Sizes) -> int:
    """Every one sends a large message byte by byte, whose end never comes."""
    sent = 0
    with ExitStack() as stack:
        sessions = [stack.enter_context(RawSession(proxy)) for _ in range(sizes.sessions)]
        for session in sessions:
            session.send(b"Q" + (100_000_000).to_bytes(4, "big"))
        until = time.monotonic() + sizes.slow
        while time.monotonic() < until:
            for session in sessions:
                session.send(b"x")
            sent += len(sessions)
    return sent


def stuck_server(proxy: Endpoint, sizes: Sizes) -> int:
    """Every one writes into a table that lets no row in, until nothing moves any more."""
    block = message(b"d", LINE * BLOCK)
    sent = 0
    with ExitStack() as stack:
        holder = stack.enter_context(RawSession(proxy))
        holder.query(f"begin; select pg_advisory_xact_lock({GATE})")
        holder.answer()
        for _ in range(sizes.sessions - 1):
            session = stack.enter_context(RawSession(proxy))
            session.query("copy gated from stdin")
            session.answer(b"G")
            session.sock.settimeout(STILL)
            try:
                while sent < sizes.copied * sizes.sessions:
                    sent += session.sock.send(block)
            except TimeoutError:
                continue
            raise BenchError("a server that takes nothing was sent everything")
    return sent


def _copy_sql(sizes: Sizes) -> str:
    return f"copy (select repeat('x', 999) from generate_series(1, {sizes.copied // len(LINE)})) to stdout"


def _at_least(moved: int, expected: int) -> int:
    if moved < expected:
        raise BenchError(f"{moved} bytes came, which are less than {expected}")
    return moved


def _size(count: int) -> str:
    return f"{count / GIGABYTE:g} GB" if count >= GIGABYTE else f"{count / 1e6:g} MB"


CASES: Final = (
    Big("value-to-client", lambda sizes: f"one field of {_size(sizes.value)}", value_to_client),
    Big("value-to-server", lambda sizes: f"one parameter of {_size(sizes.value)}", value_to_server),
    Big("rows", lambda sizes: f"{sizes.rows:,} rows", many_rows),
    Big("wide-rows", lambda sizes: f"{sizes.wide_rows:,} rows of {COLUMNS:,} columns", wide_rows),
    Big("copy-out", lambda sizes: _size(sizes.copied), copy_out),
    Big("copy-in", lambda sizes: _size(sizes.copied), copy_in),
    Big("slow-readers", lambda sizes: f"{_size(sizes.copied)} each, hardly read", slow_readers, many=True),
    Big("slow-writers", lambda _: "a message each, byte by byte", slow_writers, many=True),
    Big(
        "stuck-server", lambda sizes: f"{_size(sizes.copied)} each, not taken", stuck_server, many=True, setup=MAKE_GATE
    ),
)
