"""Named prepared statements in transaction mode: what a client's name means, and which backend has it prepared.

A client's names are its own.  A backend knows a statement under a name of the proxy's, one per distinct *statement*:
query text, parameter types, and those settings of the client that change what the text means.  Before a statement is
used in a backend that does not have it, it is prepared there (see `FrontState`).

Every statement has a *shape*: the types of its parameters and of its result.  Drivers remember it, and PostgreSQL
refuses to run a statement whose result is not what it was ("cached plan must not change result type").  A copy that
is made later, after a change of the schema, would have no such memory; so the shape is asked for with each copy and
compared with the one that the client has seen.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

import re
from typing import Final

from mypy_extensions import i64

from proxy.wire.framing import F_BIND, F_CLOSE, F_DESCRIBE, F_EXECUTE, F_FLUSH, F_PARSE, F_SYNC

NAME_PREFIX: Final = b"pgtenant_"
NO_STATEMENT: Final = b"pgtenant_none"
"""A name that no statement has: closing it is answered and does nothing, describing it fails."""
SPARE_STATEMENT: Final = b"pgtenant_spare"
"""A statement made only to be deallocated in place of one that this backend does not have by its client's name."""
QUESTION: Final = b"pgtenant_ask"
"""The statement, and the portal, with which a question is asked that leaves those without a name alone."""

MOST_STATEMENTS: Final = 10_000
MOST_STATEMENT_BYTES: Final = 32 * 1024 * 1024
"""What the table of a node remembers of statements that clients have prepared."""
CLIENT_STATEMENTS: Final = 2_000
CLIENT_STATEMENT_BYTES: Final = 2 * 1024 * 1024
"""Named statements of one client that can follow it from backend to backend; with more it keeps its backend."""

FLUSH: Final = bytes((F_FLUSH, 0, 0, 0, 4))

# What is to happen when the reply to a message of the queue comes, or never comes: see `Shelf`.
NOTE_PARSE: Final = 1
NOTE_DESCRIBE: Final = 2
NOTE_INJECTED: Final = 3
NOTE_CLOSE_COPY: Final = 4
NOTE_CLOSE_NAME: Final = 5
NOTE_FAIL: Final = 6
NOTE_UNNAMED: Final = 7
NOTE_DUPLICATE: Final = 8
NOTE_OWN: Final = 9

_LOOSE: Final = re.compile(rb"\s*(?:FETCH|MOVE|EXECUTE)\b", re.IGNORECASE)


class Statement:
    """A query text with its parameter types (`body`, as in Parse) under certain settings (`meaning`).

    The result of a loose one is that of a cursor or statement it names, which PostgreSQL does not look at again either.
    """

    def __init__(self, ident: int, name: bytes, body: bytes, meaning: bytes) -> None:
        self.ident: int = ident
        self.name: bytes = name
        self.body: bytes = body
        self.meaning: bytes = meaning
        self.shape: bytes = b""
        self.is_loose: bool = _LOOSE.match(body) is not None


class Copy:
    """A statement as one backend has it; the shape is empty until it is known."""

    def __init__(self, statement: Statement) -> None:
        self.statement: Statement = statement
        self.shape: bytes = b""
        self.used: i64 = 0


class Named:
    """A statement as one client has it: `pending` is the copy whose own Parse has not been answered yet."""

    def __init__(self, statement: Statement, pending: Copy) -> None:
        self.statement: Statement = statement
        self.shape: bytes = b""
        self.pending: Copy | None = pending


class Book:
    """The named statements of one client.

    `noted` is the number of the client's batch whose replies may still change the names; `unsure` says that a
    statement is on its way that deallocates all.  `fresh` is the copy made for the next message.  `owned` are names of
    statements that have been prepared under just these for the client, which SQL speaks of.
    """

    def __init__(self) -> None:
        self.names: dict[bytes, Named] = {}
        self.size: i64 = 0
        self.noted: i64 = -1
        self.unsure: bool = False
        self.fresh: Copy | None = None
        self.owned: list[bytes] = []

    def has_room_for(self, name: bytes, body: bytes) -> bool:
        """Say whether one more statement stays within the bounds of one client."""
        room: i64 = CLIENT_STATEMENT_BYTES - self.size
        return len(name) + len(body) <= room and len(self.names) < CLIENT_STATEMENTS

    def add(self, name: bytes, named: Named) -> None:
        """Give a statement its name."""
        self.names[name] = named
        self.size += len(name) + len(named.statement.body)

    def remove(self, name: bytes) -> Named | None:
        """Take a name away; the answer is what it meant."""
        named = self.names.pop(name, None)
        if named is not None:
            self.size -= len(name) + len(named.statement.body)
        return named

    def told(self, error: bytes) -> bytes:
        """An ErrorResponse with the client's own name for a statement in place of the proxy's."""
        start = error.find(NAME_PREFIX)
        if start < 0:
            return error
        stop = start
        while stop < len(error) and (error[stop : stop + 1].isalnum() or error[stop] == 0x5F):
            stop += 1
        wanted = error[start:stop]
        for name, named in self.names.items():
            if named.statement.name == wanted:
                body = error[5:start] + name + error[stop:]
                return error[:1] + (len(body) + 4).to_bytes(4, "big") + body
        return error

    def clear(self) -> None:
        """Forget all names."""
        self.names.clear()
        self.size = 0
        self.unsure = False


class Note:
    """What the reply to one message of the queue is for; which fields there are depends on the kind."""

    def __init__(
        self, kind: int, copy: Copy | None, book: Book | None = None, name: bytes = b"", named: Named | None = None
    ) -> None:
        self.kind: int = kind
        self.copy: Copy | None = copy
        self.book: Book | None = book
        self.name: bytes = name
        self.named: Named | None = named

    def ends_injection(self) -> bool:
        """Say whether its reply is the last of those that the client's messages are held back for."""
        return self.kind == NOTE_INJECTED or self.kind == NOTE_UNNAMED or self.kind == NOTE_OWN

    def told(self, error: bytes) -> bytes:
        """What the client is told in place of an error that the server was made to answer."""
        if self.kind == NOTE_FAIL:
            return self.name
        if self.kind != NOTE_DUPLICATE:
            return error
        body = error[5:].replace(SPARE_STATEMENT, self.name)
        return error[:1] + (len(body) + 4).to_bytes(4, "big") + body


class StatementTable:
    """The statements of a node, so that equal ones are one.

    What has not been prepared for longest is forgotten beyond the bounds.  A forgotten statement lives on in its
    clients, and an equal one made later merely costs a second copy.  The `token`, of letters and digits, is part of
    the names in the backends, so that no client's SQL can guess them: random bytes, other ones for each node.
    """

    def __init__(self, token: bytes, most: int = MOST_STATEMENTS, most_bytes: int = MOST_STATEMENT_BYTES) -> None:
        self._prefix: bytes = NAME_PREFIX + token + b"_"
        self._most: int = most
        self._most_bytes: int = most_bytes
        self._bytes: int = 0
        self._next: int = 1
        self._known: dict[tuple[bytes, bytes], Statement] = {}

    def intern(self, body: bytes, meaning: bytes) -> Statement:
        """Return the one statement with this body and meaning."""
        key = (body, meaning)
        found = self._known.pop(key, None)
        if found is None:
            found = Statement(self._next, self._prefix + b"%x" % self._next, body, meaning)
            self._next += 1
            self._bytes += len(body) + len(meaning)
        self._known[key] = found
        while len(self._known) > self._most or (self._bytes > self._most_bytes and len(self._known) > 1):
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._bytes -= len(oldest[0]) + len(oldest[1])
        return found

    def __len__(self) -> int:
        return len(self._known)


class Shelf:
    """The statements that one backend has prepared, and what the replies still to come will change of that.

    At most `limit` copies are kept; the one not used for longest makes room.
    """

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.copies: dict[int, Copy] = {}
        self.notes: list[Note] = []
        self.clock: i64 = 0

    def touch(self, copy: Copy) -> None:
        """Note that a copy is used."""
        self.clock += 1
        copy.used = self.clock

    def put(self, statement: Statement) -> list[Copy]:
        """Take in a new copy of a statement (`copies` has it then); the answer is what has to be closed before."""
        closed: list[Copy] = []
        old = self.copies.pop(statement.ident, None)
        # Also where none is known: the server may have one of which a lost reply would have told.
        closed.append(Copy(statement) if old is None else old)
        while len(self.copies) >= self.limit:
            closed.append(self._take_oldest())
        copy = Copy(statement)
        self.copies[statement.ident] = copy
        self.touch(copy)
        return closed

    def clear(self) -> None:
        """Forget all copies: the server has deallocated them."""
        self.copies.clear()

    def distrust(self) -> None:
        """Ask again of every copy before its next use: the server lacks one, which a client may have deallocated."""
        for copy in self.copies.values():
            copy.shape = b""

    def settle(self, shape: bytes) -> bool:
        """Take note that the first note's reply has come; True when that ends an injection."""
        note = self.notes.pop(0)
        copy = note.copy
        if (note.kind == NOTE_DESCRIBE or note.kind == NOTE_INJECTED) and copy is not None:
            statement = copy.statement
            if statement.shape != shape:
                statement.shape = shape
            copy.shape = statement.shape
            if note.named is not None:
                note.named.shape = copy.shape
                note.named.pending = None
            if note.book is not None:
                note.book.fresh = copy
        if note.kind == NOTE_OWN and note.book is not None:
            note.book.owned.append(note.name)
        return note.ends_injection()

    def undo(self, count: int) -> bool:
        """Take back what the first `count` notes have promised, the last first; True when that ends an injection."""
        undone = self.notes[:count]
        del self.notes[:count]
        ended = False
        for note in reversed(undone):
            self.undo_one(note)
            ended = ended or note.ends_injection()
        return ended

    def undo_one(self, note: Note) -> None:
        """Take back what one note has promised."""
        copy, book, named = note.copy, note.book, note.named
        if note.kind == NOTE_PARSE and copy is not None:
            if self.copies.get(copy.statement.ident) is copy:
                del self.copies[copy.statement.ident]
            if book is not None and book.names.get(note.name) is named:
                book.remove(note.name)
        elif note.kind == NOTE_DESCRIBE and named is not None:
            # The Parse may have been answered: then its shape is not known, and the next use asks again.
            named.pending = None
        elif note.kind == NOTE_CLOSE_COPY and copy is not None:
            # Whether the server still has it is not certain either.
            copy.shape = b""
            self.copies[copy.statement.ident] = copy
        elif (
            (note.kind == NOTE_CLOSE_NAME or note.kind == NOTE_OWN)
            and book is not None
            and named is not None
            and note.name not in book.names
        ):
            book.add(note.name, named)

    def _take_oldest(self) -> Copy:
        oldest: Copy | None = None
        for copy in self.copies.values():
            if oldest is None or copy.used < oldest.used:
                oldest = copy
        assert oldest is not None
        del self.copies[oldest.statement.ident]
        return oldest


def parse_message(name: bytes, body: bytes) -> bytes:
    """Encode Parse; the body is the query text, its zero byte, and the parameter types."""
    return bytes((F_PARSE,)) + (5 + len(name) + len(body)).to_bytes(4, "big") + name + b"\0" + body


def close_message(name: bytes) -> bytes:
    """Encode Close of a statement."""
    return bytes((F_CLOSE,)) + (6 + len(name)).to_bytes(4, "big") + b"S" + name + b"\0"


def describe_message(name: bytes) -> bytes:
    """Encode Describe of a statement."""
    return bytes((F_DESCRIBE,)) + (6 + len(name)).to_bytes(4, "big") + b"S" + name + b"\0"


def question_messages(statement: bytes) -> bytes:
    """Encode a statement without parameters so that the unnamed statement and the unnamed portal outlive it.

    It is closed before as well, because an error leaves it where it is (PostgreSQL, "Extended Query").
    """
    name = QUESTION + b"\0"
    bind = name + name + bytes(6)
    portal = b"P" + name
    return (
        close_message(QUESTION)
        + parse_message(QUESTION, statement + b"\0\0\0")
        + bytes((F_BIND,))
        + (4 + len(bind)).to_bytes(4, "big")
        + bind
        + bytes((F_EXECUTE,))
        + (8 + len(name)).to_bytes(4, "big")
        + name
        + bytes(4)
        + bytes((F_CLOSE,))
        + (4 + len(portal)).to_bytes(4, "big")
        + portal
        + close_message(QUESTION)
        + bytes((F_SYNC, 0, 0, 0, 4))
    )


def shape_of(parameters: bytes, row: bytes) -> bytes:
    """Reduce ParameterDescription and RowDescription (or NoData) to what a client relies on.

    Those are the types of the parameters, and the name, type and modifier of each column; not the table that a column
    comes from, which may have been made anew.
    """
    if len(row) < 7:
        return parameters
    parts = [parameters, row[5:7]]
    pos = 7
    end = len(row)
    while pos < end:
        stop = row.find(b"\0", pos)
        if stop < 0 or stop + 19 > end:
            break
        parts.append(row[pos : stop + 1])
        parts.append(row[stop + 7 : stop + 11])
        parts.append(row[stop + 13 : stop + 17])
        pos = stop + 19
    return b"".join(parts)
