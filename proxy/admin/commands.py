"""From the text of a statement to what it asks for.

The console is no database: it knows SHOW, a few orders, and what drivers say of themselves when they connect, begin and
end a transaction or reset a session; those words are accepted and change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

from proxy.admin.catalogue import ORDERS, SYNONYMS, TOPICS, Column, Kind, Order, Topic
from proxy.errors import CONSOLE_UNKNOWN_COMMAND, CONSOLE_UNSUPPORTED, Failure

MAX_ARGUMENT: Final = 256
"""Longest name that a command may carry, in characters."""

MAX_TOKENS: Final = 1_000
"""Words, symbols and gaps that a text may have: it is read in one turn of the loop, in some milliseconds at most."""

PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "client_encoding": "UTF8",
        "DateStyle": "ISO, MDY",
        "default_transaction_read_only": "off",
        "in_hot_standby": "off",
        "integer_datetimes": "on",
        "IntervalStyle": "postgres",
        "is_superuser": "off",
        "server_encoding": "UTF8",
        "standard_conforming_strings": "on",
        "TimeZone": "UTC",
    }
)
"""What the console reports when somebody connects, besides its version; and what SHOW says of it."""

ASKED_BY_DRIVERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{name.lower(): value for name, value in PARAMETERS.items()},
        "transaction_isolation": "read committed",
        "default_transaction_isolation": "read committed",
        "max_identifier_length": "63",
    }
)


class Move(Enum):
    """What a statement does to the transaction, which has no effect here but is told to the client."""

    NONE = "none"
    BEGIN = "begin"
    END = "end"


@dataclass(frozen=True, slots=True)
class Show:
    """SHOW with one of the console's own topics."""

    topic: Topic
    arguments: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.topic.columns


@dataclass(frozen=True, slots=True)
class Do:
    """An order of an admin's."""

    order: Order
    arguments: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()


@dataclass(frozen=True, slots=True)
class Constant:
    """A row that is known without asking anything; a value of None is this node's version."""

    column: Column
    value: str | int | None
    tag: str

    @property
    def columns(self) -> tuple[Column, ...]:
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What drivers say and the console has no use for."""

    tag: str
    move: Move = Move.NONE
    columns: tuple[Column, ...] = ()


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty statement."""

    columns: tuple[Column, ...] = ()


Command: TypeAlias = Show | Do | Constant | Accepted | Nothing


@dataclass(frozen=True, slots=True)
class Token:
    """A word, symbol or quoted text of a statement."""

    text: str
    quoted: bool = False

    def is_word(self, *words: str) -> bool:
        return not self.quoted and self.text.upper() in words


_GAP: Final = re.compile(r"(?:\s+|--[^\n]*)+")
_PLAIN: Final = re.compile(r"[^\s;'\"(),=]+|[(),=]")
_QUOTED: Final = {"'": re.compile(r"'((?:[^']|'')*)'"), '"': re.compile(r'"((?:[^"]|"")*)"')}

_BEGINS: Final = {"BEGIN": "BEGIN", "START": "START TRANSACTION"}
_ENDS: Final = {"COMMIT": "COMMIT", "END": "COMMIT", "ROLLBACK": "ROLLBACK", "ABORT": "ROLLBACK"}
_WITHOUT_EFFECT: Final = {
    "SET": "SET",
    "RESET": "RESET",
    "DISCARD": "DISCARD ALL",
    "DEALLOCATE": "DEALLOCATE",
    "UNLISTEN": "UNLISTEN",
    "CLOSE": "CLOSE CURSOR ALL",
}
_FUNCTIONS: Final[Mapping[str, tuple[str, str | None]]] = MappingProxyType(
    {
        "version()": ("version", None),
        "pg_catalog.version()": ("version", None),
        "current_schema()": ("current_schema", "public"),
        "pg_advisory_unlock_all()": ("pg_advisory_unlock_all", ""),
    }
)
_TEXT: Final = Kind.TEXT


def parse(text: str) -> list[Command]:
    """Read the statements of a text; an empty one is one `Nothing`.  Raises Failure for the first that is unknown."""
    commands = [_command(statement) for statement in split(text) if statement]
    return commands or [Nothing()]


def split(text: str) -> list[list[Token]]:
    """Split a text into statements and those into tokens, without comments.

    Raises Failure for an open quote, and for more than `MAX_TOKENS`.
    """
    statements: list[list[Token]] = [[]]
    pos = taken = 0
    while pos < len(text):
        if taken > MAX_TOKENS:
            command = f"a text of more than {MAX_TOKENS:,} words, symbols and gaps"
            raise Failure(CONSOLE_UNKNOWN_COMMAND, command=command)
        taken += 1
        char = text[pos]
        if gap := _GAP.match(text, pos):
            pos = gap.end()
        elif text.startswith("/*", pos):
            end = text.find("*/", pos + 2)
            if end < 0:
                raise Failure(CONSOLE_UNKNOWN_COMMAND, command="a comment without its end")
            pos = end + 2
        elif char == ";":
            statements.append([])
            pos += 1
        elif pattern := _QUOTED.get(char):
            quoted = pattern.match(text, pos)
            if quoted is None:
                raise Failure(CONSOLE_UNKNOWN_COMMAND, command="a text without its closing quote")
            statements[-1].append(Token(quoted[1].replace(char * 2, char), quoted=True))
            pos = quoted.end()
        else:
            plain = _PLAIN.match(text, pos)
            assert plain is not None, "whatever begins neither gap, comment, end nor quote is plain"
            statements[-1].append(Token(plain[0]))
            pos = plain.end()
    return statements


def _command(tokens: Sequence[Token]) -> Command:
    first = tokens[0]
    word = "" if first.quoted else first.text.upper()
    found: Command | None = None
    if word == "SHOW":
        found = _show(tokens)
    elif word == "SELECT":
        found = _select(tokens)
    elif word in ORDERS:
        found = Do(ORDERS[word], _arguments(tokens, 1, ORDERS[word]))
    elif word in _BEGINS:
        found = Accepted(_BEGINS[word], Move.BEGIN)
    elif word in _ENDS:
        found = Accepted(_ENDS[word], Move.END)
    elif word in _WITHOUT_EFFECT:
        found = Accepted(_WITHOUT_EFFECT[word])
    if found is None:
        raise _unknown(tokens)
    return found


def _show(tokens: Sequence[Token]) -> Command | None:
    name = tokens[1].text.upper() if len(tokens) > 1 else ""
    topic = TOPICS.get(SYNONYMS.get(name, name))
    if topic is not None:
        return Show(topic, _arguments(tokens, 2, topic))
    parameter = "_".join(token.text for token in tokens[1:]).lower()
    if parameter == "transaction_isolation_level":
        parameter = "transaction_isolation"
    column = Column(parameter, _TEXT, "")
    if parameter == "server_version":
        return Constant(column, None, "SHOW")
    return Constant(column, ASKED_BY_DRIVERS[parameter], "SHOW") if parameter in ASKED_BY_DRIVERS else None


def _select(tokens: Sequence[Token]) -> Command | None:
    """What pools ask to see whether a connection is alive, SQLAlchemy at first, and asyncpg when it resets one."""
    words = "".join(token.text for token in tokens[1:] if not token.quoted).lower()
    if len(tokens) == 2 and re.fullmatch(r"[0-9]{1,9}", words):
        return Constant(Column("?column?", Kind.INT, ""), int(words), "SELECT 1")
    if words not in _FUNCTIONS:
        return None
    name, value = _FUNCTIONS[words]
    return Constant(Column(name, _TEXT, ""), value, "SELECT 1")


def _arguments(tokens: Sequence[Token], begin: int, taker: Topic | Order) -> tuple[str, ...]:
    values = [token for token in tokens[begin:] if not token.is_word(",")]
    if any(token.text.startswith("$") and not token.quoted for token in values):
        raise Failure(CONSOLE_UNSUPPORTED, feature="parameters")
    fits = taker.required <= len(values) <= len(taker.parameters)
    if not fits or any(len(token.text) > MAX_ARGUMENT for token in values):
        raise Failure(CONSOLE_UNKNOWN_COMMAND, command=_shown(tokens), hint=f"It is spelled: {taker.usage}")
    return tuple(token.text for token in values)


def _unknown(tokens: Sequence[Token]) -> Failure:
    hint = f"SHOW takes one of {', '.join(TOPICS)}; there is also {', '.join(ORDERS)}. SHOW HELP explains them."
    return Failure(CONSOLE_UNKNOWN_COMMAND, command=_shown(tokens), hint=hint)


def _shown(tokens: Sequence[Token]) -> str:
    """A statement for an error; texts in quotes may be anybody's secrets."""
    words = ("'...'" if token.quoted else token.text for token in tokens[:8])
    return " ".join(words)
