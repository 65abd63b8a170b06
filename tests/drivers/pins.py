"""Which pins the drivers' connections cause, as the proxy's log tells them, and the lines that are meant to cause them.

A pin that no line of a scenario explains is a failure: it costs the tenant a backend although all answers are right.
So is a line that was played and has pinned nobody: it explains nothing, and would only hide other causes.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from drivers.model import Cell, Pin, Scenario, Verdict, Way


@dataclass(frozen=True, slots=True)
class Cause:
    """A line of a scenario that pins in transaction mode; `line` is a piece of it, `drivers` are names or patterns."""

    reason: str
    scenario: Scenario
    line: str
    drivers: Sequence[str] = ("*",)

    def covers(self, driver: str, scenario: Scenario | None) -> bool:
        return scenario is self.scenario and any(fnmatchcase(driver, pattern) for pattern in self.drivers)


_PYTHON = ("psycopg*", "asyncpg*", "psqlpy", "pg8000", "sqlalchemy-*", "django*")

CAUSES = (
    Cause("hold_cursor", Scenario.CURSORS, "withhold=True", ("psycopg", "psycopg-async", "psycopg2")),
    Cause("hold_cursor", Scenario.CURSORS, "session.stream(IN_ORDER, 7)", ("django*",)),
    Cause("hold_cursor", Scenario.CURSORS, "declare h cursor with hold", ("psql",)),
    Cause("prepare", Scenario.NAMED, 'self.query(f"prepare {name} as {sql}")', ("psycopg2",)),
    Cause("prepare", Scenario.TLS, 'self.query(f"prepare {name} as {sql}")', ("psycopg2",)),
    Cause("prepare", Scenario.NAMED, "prepare p(int) as", ("psql",)),
    Cause("listen", Scenario.NOTIFY, "listener.listen(channel)", ("psycopg*", "asyncpg*", "pg8000", "django*")),
    Cause("listen", Scenario.NOTIFY, "await listener.listen(channel)", ("node-postgres", "postgres.js")),
    Cause("listen", Scenario.NOTIFY, '"listen " + channel', ("pgjdbc",)),
    Cause("listen", Scenario.NOTIFY, "listen {channel};", ("psql",)),
    Cause("temporary", Scenario.SETTINGS, 'session.query("create temp table mine (a int4)")', _PYTHON),
    Cause(
        "temporary",
        Scenario.SETTINGS,
        'await session.query("create temp table mine (a int4)")',
        ("node-postgres", "postgres.js"),
    ),
    Cause("temporary", Scenario.SETTINGS, 'query(session, "create temp table mine (a int4)")', ("pgjdbc",)),
    Cause("temporary", Scenario.SETTINGS, "create temp table mine (a int);", ("psql",)),
    Cause("advisory_lock", Scenario.SETTINGS, "select pg_advisory_lock({key})", _PYTHON),
    Cause("advisory_lock", Scenario.SETTINGS, "select pg_advisory_lock(${key})", ("node-postgres", "postgres.js")),
    Cause("advisory_lock", Scenario.SETTINGS, 'query(session, "select pg_advisory_lock("', ("pgjdbc",)),
    Cause("prepare", Scenario.SETTINGS, "prepare by_hand as select", _PYTHON),
    # Where SQL has prepared something, these drivers' own named statements are the backend's, too.
    Cause(
        "statement",
        Scenario.SETTINGS,
        "prepare by_hand as select",
        ("asyncpg", "psqlpy", "sqlalchemy-asyncpg", "django-server-side"),
    ),
)


def pins_in(
    log: str, slugs: Collection[str], begins: Sequence[tuple[float, Scenario]]
) -> set[tuple[Scenario | None, str]]:
    """Read off a log in JSON in which scenarios clients of these tenants have become pinned, and for which reasons.

    `begins` has the times (seconds since 1970) at which scenarios began, in order.  A client belongs to the one in
    which it has connected; None stands for one that was there before them all.
    """
    connected: dict[str, float] = {}
    found: set[tuple[Scenario | None, str]] = set()
    for event in map(_event, log.splitlines()):
        if event.get("tenant") not in slugs:
            continue
        at = datetime.fromisoformat(event["timestamp"]).timestamp()
        if event["event"] == "client connected":
            connected[event["address"]] = at
        elif event["event"] == "client disconnected":
            connected.pop(event["address"], None)
        elif event["event"] == "client pinned":
            number = bisect_right(begins, connected.get(event["address"], at), key=lambda begin: begin[0])
            scenario = begins[number - 1][1] if number else None
            found.update((scenario, reason) for reason in event["reason"].split(", "))
    return found


def unexplained(pins: Iterable[Pin], causes: Sequence[Cause] = CAUSES) -> list[Pin]:
    """The pins that no line explains; in session mode none does."""
    return [
        pin
        for pin in pins
        if pin.way is not Way.TRANSACTION
        or not any(cause.reason == pin.reason and cause.covers(pin.driver, pin.scenario) for cause in causes)
    ]


def without_effect(pins: Iterable[Pin], cells: Iterable[Cell], causes: Sequence[Cause] = CAUSES) -> list[Cause]:
    """The lines that have pinned nobody although drivers that they are for have played their scenarios."""
    played = {
        (cell.driver, cell.scenario)
        for cell in cells
        if cell.way is Way.TRANSACTION and cell.verdict in (Verdict.SAME, Verdict.EXPLAINED)
    }
    seen = {(pin.driver, pin.scenario, pin.reason) for pin in pins}
    return [
        cause
        for cause in causes
        if any(cause.covers(*one) for one in played)
        and not any(cause.covers(*one) and (*one, cause.reason) in seen for one in played)
    ]


def _event(line: str) -> dict[str, Any]:
    """One line of the log; tracebacks and the like have no fields."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
