"""Startup parameters: what a client asked for when it connected, and how a backend is brought in line with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

MAX_PARAMETERS = 64
"""Most settings one client may ask for at startup."""


_NEVER_IN_A_MEANING: Final = frozenset(
    (
        b"application_name",
        b"client_min_messages",
        b"extra_float_digits",
        b"idle_in_transaction_session_timeout",
        b"idle_session_timeout",
        b"jit",
        b"lock_timeout",
        b"statement_timeout",
        b"transaction_timeout",
        b"work_mem",
    )
)


_LIMITS: Final = (b"statement_timeout", b"transaction_timeout")
"""Settings that may end the very statement which changes them."""
_TEMPORARY_PATH: Final = re.compile(rb'\s*(?:"?\$user"?\s*,\s*)*"?pg_temp(?:_\d+)?"?\s*(?:,|\Z)', re.IGNORECASE)


class ParameterSet:
    """The settings of one kind of client: (name, value) pairs as bytes, names unique whatever their case.

    Sets are interned by `ParameterTable`, so that two clients with the same settings share one object and the relay
    compares by identity.  `meaning` has those of them that may change what a statement means when PostgreSQL reads
    its text: equal for two sets under which the same text is the same prepared statement.
    """

    __slots__ = ("meaning", "pairs", "values")

    def __init__(self, pairs: tuple[tuple[bytes, bytes], ...]) -> None:
        self.pairs = pairs
        self.values = {name.lower(): (name, value) for name, value in pairs}
        self.meaning = b"\0".join(
            part for name, (_, value) in self.values.items() if changes_meaning(name) for part in (name, value)
        )

    def __repr__(self) -> str:
        return f"ParameterSet({', '.join(name.decode('utf-8', 'replace') for name, _ in self.pairs)})"


def changes_meaning(name: bytes) -> bool:
    """Say whether a setting (lower case) may; those of extensions and applications, with a dot, are read when run."""
    return b"." not in name and name not in _NEVER_IN_A_MEANING


def makes_temporary(settings: Mapping[bytes, tuple[bytes, bytes]]) -> bool:
    """Say whether tables are temporary under these settings without being called so: pg_temp begins the search_path."""
    path = settings.get(b"search_path")
    return path is not None and _TEMPORARY_PATH.match(path[1]) is not None


def parameter_pairs(
    pairs: Iterable[tuple[bytes, bytes]],
) -> tuple[tuple[bytes, bytes], ...]:
    """Bring settings into their canonical form: the last value of each name, in the order of names.

    Raises ValueError for more than `MAX_PARAMETERS`, for an empty name, and for values that cannot be quoted safely.
    """
    latest: dict[bytes, tuple[bytes, bytes]] = {}
    for name, value in pairs:
        if not name:
            raise ValueError("a setting without a name")
        if b"\\" in value and not value.isascii() and not _is_utf8(value):
            # In some client encodings a backslash is the second byte of a character, and quoting cannot tell.
            raise ValueError("a setting with both a backslash and characters that are neither ASCII nor UTF-8")
        latest[name.lower()] = (name, value)
        if len(latest) > MAX_PARAMETERS:
            raise ValueError(f"more than {MAX_PARAMETERS} settings")
    return tuple(latest[key] for key in sorted(latest))


class ParameterTable:
    """Interns parameter sets; holds at most `limit`, dropping the least recently asked for.

    A dropped set goes on living in the clients that have it, and an equal one made later merely costs a needless
    change of settings.
    """

    def __init__(self, limit: int = 4096) -> None:
        self.empty = ParameterSet(())
        self._limit = limit
        self._sets: dict[tuple[tuple[bytes, bytes], ...], ParameterSet] = {(): self.empty}

    def intern(self, pairs: Iterable[tuple[bytes, bytes]]) -> ParameterSet:
        """Return the one set for these pairs; raises ValueError as `parameter_pairs` does."""
        canonical = parameter_pairs(pairs)
        if not canonical:
            return self.empty
        found = self._sets.pop(canonical, None)
        if found is None:
            found = ParameterSet(canonical)
            if len(self._sets) > self._limit:
                del self._sets[next(key for key in self._sets if key)]
        self._sets[canonical] = found
        return found

    def __len__(self) -> int:
        return len(self._sets)


def switch_statement(old: ParameterSet, new: ParameterSet) -> bytes:
    """Write the SQL that takes a backend from one set to the other, differences only; `b""` when there are none.

    `set_config` takes a value in the very form that a startup packet has it, lists included, which SET does not.
    Time limits are taken away first, so that the old ones do not end the change.
    """
    if old is new or old.pairs == new.pairs:
        return b""
    limits = [name for name in _LIMITS if name in old.values]
    parts = [
        b"RESET " + _quoted_name(name)
        for key, (name, _) in old.values.items()
        if key not in new.values and key not in limits
    ]
    parts = [b"RESET " + name for name in limits] + parts
    calls = [
        b"pg_catalog.set_config(" + quoted_literal(name) + b", " + quoted_literal(value) + b", false)"
        for key, (name, value) in new.values.items()
        if key not in old.values or old.values[key][1] != value or key in limits
    ]
    if calls:
        parts.append(b"SELECT " + b", ".join(calls))
    return b"; ".join(parts)


def _quoted_name(name: bytes) -> bytes:
    return b".".join(b'"' + part.replace(b'"', b'""') + b'"' for part in name.split(b"."))


def quoted_literal(value: bytes) -> bytes:
    """Quote a string so that it means the same whatever `standard_conforming_strings` and `client_encoding` say."""
    quoted = value.replace(b"'", b"''")
    if not value.isascii() and _is_utf8(value):
        escaped = quoted.replace(b"\\", b"\\\\").decode("utf-8")
        return (
            b" E'"
            + "".join(character if character.isascii() else _escape(character) for character in escaped).encode()
            + b"'"
        )
    if b"\\" in quoted:
        return b" E'" + quoted.replace(b"\\", b"\\\\") + b"'"
    return b"'" + quoted + b"'"


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
