"""How a client's own settings follow it: what the server is asked once they have changed, and what its answer means.

A client that has changed settings keeps its backend until the server has told, in the one row of one statement, which
values are in force now.  So it does not matter how a value was spelled, or whether a transaction, a savepoint or a
function took it back: what is followed is what PostgreSQL itself says.  The same statement asks whether what pins the
client is still there, and gives it back those of its startup parameters that it has reset, which on a connection of its
own are the values that RESET returns to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.session.parameters import ParameterSet, makes_temporary, parameter_pairs, quoted_literal
from proxy.session.pins import (
    PIN_ADVISORY,
    PIN_HOLD,
    PIN_LISTEN,
    PIN_PREPARE,
    PIN_ROLE,
    PIN_STATEMENT,
    PIN_TEMPORARY,
)
from proxy.session.set_statements import LAST_RESET, TOUCH_RESET, TOUCH_SET, TouchedSettings

MAX_TRACKED_BYTES: Final = 8192
"""Bytes of names and values that follow one client."""
MAX_ANSWER: Final = 65536
"""Bytes of the server's answer that are read."""

_FACTS: Final[tuple[tuple[int, bytes], ...]] = (
    (PIN_LISTEN, b"EXISTS (SELECT FROM pg_catalog.pg_listening_channels())"),
    (PIN_PREPARE, b"EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)"),
    (
        PIN_STATEMENT,
        (
            b"EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql"
            b" AND name OPERATOR(pg_catalog.!~) '^pgtenant_([0-9a-f]{16}_|spare$|ask$)')"
        ),
    ),
    (
        PIN_TEMPORARY,
        (
            b"EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 2615"
            b" AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())"
        ),
    ),
    (PIN_HOLD, b"EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)"),
    (
        PIN_ADVISORY,
        (
            b"EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'"
            b" AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())"
        ),
    ),
)


class Inquiry:
    """What the server is asked: `names` are the settings, `facts` the pins, in the order of the columns.

    `restored` are the startup parameters that the statement itself gives back, `attempts` how often it was made.
    """

    __slots__ = (
        "answer",
        "attempts",
        "facts",
        "names",
        "only_restores",
        "restored",
        "statement",
        "within_transaction",
    )

    def __init__(self, statement: bytes, names: list[bytes], restored: list[bytes], facts: list[int]) -> None:
        self.statement = statement
        self.names = names
        self.restored = restored
        self.facts = facts
        self.only_restores = False
        self.within_transaction = False
        self.attempts = 1
        self.answer = bytearray()


def inquire(
    touched: TouchedSettings,
    facts: int,
    startup: ParameterSet,
    reported: Mapping[bytes, bytes],
    user: str,
) -> Inquiry:
    """Make the statement that finds out what is in force; it is empty when nothing has to be asked.

    `facts` are pins that the server is asked about, `reported` what the server has reported (by names in lower case),
    `user` the role that the backend has logged in as.
    """
    restored = restored_names(touched, startup)
    columns: list[bytes] = []
    names: list[bytes] = []
    for name in touched.names:
        if name in restored:
            columns.append(_given(name, startup) if _is_surely_reset(touched, name) else _given_if_reset(name, startup))
            names.append(name)
        elif name not in reported:
            columns.append(_current(name))
            names.append(name)
    asked: list[int] = []
    for pin, expression in _FACTS:
        if facts & pin:
            columns.append(expression)
            asked.append(pin)
    if facts & PIN_ROLE:
        columns.append(
            b"pg_catalog.current_setting('role') OPERATOR(pg_catalog.<>) 'none'"
            b" OR pg_catalog.current_setting('session_authorization') OPERATOR(pg_catalog.<>) "
            + quoted_literal(user.encode())
        )
        asked.append(PIN_ROLE)
    statement = b"SELECT " + b", ".join(columns) if columns else b""
    return Inquiry(statement, names, restored, asked)


def inquire_restoring(names: list[bytes], startup: ParameterSet) -> Inquiry:
    """Make the statement that only gives startup parameters back, of those named that are not set."""
    columns = [_given_if_reset(name, startup) for name in names]
    inquiry = Inquiry(b"SELECT " + b", ".join(columns), names, names, [])
    inquiry.only_restores = True
    return inquiry


def restored_names(touched: TouchedSettings, startup: ParameterSet) -> list[bytes]:
    """Return the startup parameters that have to be given back, or may have to."""
    return [
        name
        for name, done in touched.names.items()
        if name in startup.values
        and name in touched.taken
        and (done & LAST_RESET or touched.doubtful or name in touched.open)
    ]


def _is_surely_reset(touched: TouchedSettings, name: bytes) -> bool:
    return touched.names[name] & LAST_RESET != 0 and not touched.doubtful


def spread_reset(touched: TouchedSettings, startup: ParameterSet, applied: ParameterSet) -> None:
    """Bring down RESET ALL to the settings that there were."""
    if touched.everything:
        for settings in (applied.values, startup.values):
            for name in settings:
                touched.names.setdefault(name, TOUCH_RESET | LAST_RESET)
                touched.taken.add(name)
        touched.everything = False


def followed(
    touched: TouchedSettings,
    inquiry: Inquiry,
    values: Mapping[bytes, bytes | None],
    startup: ParameterSet,
    applied: ParameterSet,
) -> tuple[tuple[bytes, bytes], ...]:
    """Return the settings that the client has now, in canonical form.

    `values` has what is in force for every name touched.  Raises ValueError when they are too many or too long, or
    cannot be quoted, or hide that something is temporary.
    """
    settings = dict(applied.values)
    for name, done in touched.names.items():
        value = values[name]
        before = settings.get(name)
        if name in inquiry.restored and _is_surely_reset(touched, name):
            settings[name] = startup.values[name]
        elif name in inquiry.restored and before is not None and before[1] == value:
            pass
        elif value is None or (
            name not in inquiry.restored and not done & TOUCH_SET and (before is None or before[1] != value)
        ):
            settings.pop(name, None)
        else:
            settings[name] = (name, value)
    if makes_temporary(settings):
        raise ValueError("a search_path that makes tables temporary")
    pairs = parameter_pairs(settings.values())
    if sum(len(name) + len(value) for name, value in pairs) > MAX_TRACKED_BYTES:
        raise ValueError("settings that are too long")
    return pairs


def first_row(answer: bytes | bytearray) -> list[bytes | None] | None:
    """Return the values of the first DataRow among whole messages; None when there is none."""
    pos = 0
    while pos + 5 <= len(answer):
        size = int.from_bytes(answer[pos + 1 : pos + 5], "big")
        if answer[pos] == 0x44:
            return _values(bytes(answer[pos + 5 : pos + 1 + size]))
        pos += 1 + size
    return None


def told_in_passing(answer: bytes | bytearray) -> bytes:
    """Return what a client has to see of an answer to the proxy: notifications and changed parameters."""
    found = b""
    pos = 0
    while pos + 5 <= len(answer):
        after = pos + 1 + int.from_bytes(answer[pos + 1 : pos + 5], "big")
        if answer[pos] in b"AS":
            found += answer[pos:after]
        pos = after
    return found


def _values(row: bytes) -> list[bytes | None]:
    values: list[bytes | None] = []
    pos = 2
    while pos + 4 <= len(row):
        size = int.from_bytes(row[pos : pos + 4], "big", signed=True)
        pos += 4
        values.append(None if size < 0 else row[pos : pos + size])
        pos += max(size, 0)
    return values


def _current(name: bytes) -> bytes:
    return b"pg_catalog.current_setting(" + quoted_literal(name) + b", true)"


def _given(name: bytes, startup: ParameterSet) -> bytes:
    value = startup.values[name][1]
    return b"pg_catalog.set_config(" + quoted_literal(name) + b", " + quoted_literal(value) + b", false)"


def _given_if_reset(name: bytes, startup: ParameterSet) -> bytes:
    """Give a startup parameter back unless a value is set now, as the session's own: then it stays.

    The server tells that apart by itself, whatever was rolled back.  Of the settings of applications, which it lists
    nowhere, those are taken for reset that are empty.
    """
    is_set = (
        b"COALESCE((SELECT source OPERATOR(pg_catalog.=) 'session' FROM pg_catalog.pg_settings WHERE"
        b" pg_catalog.lower(name) OPERATOR(pg_catalog.=) "
        + quoted_literal(name)
        + b"), "
        + _current(name)
        + b" OPERATOR(pg_catalog.<>) '')"
    )
    return b"CASE WHEN " + is_set + b" THEN " + _current(name) + b" ELSE " + _given(name, startup) + b" END"
