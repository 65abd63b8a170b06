"""Where a client's messages about its named statements are rewritten for the backend that it is linked to.

A `Desk` belongs to a client.  `FrontState` brings it each message with a name in it and is told to forward that as it
is, that the desk has taken care of it (`pieces` then has what to send in its place), or to stop before it because
something has to happen first (`need`).

Nothing of the proxy's own is sent behind a command whose reply is still to come: it might be a COPY, in which the
server would take it for an error of the client's.  And a name is not looked up while replies of an earlier batch may
still change what it means.  In both cases the replies are waited for (`NEED_QUIET`).

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from proxy.session.pins import PIN_PREPARE
from proxy.session.replies import BackState
from proxy.session.reply_queue import (
    HALT_INJECTED,
    HALT_QUIET,
    OWE_BIND,
    OWE_CLOSE,
    OWE_DESCRIBE,
    OWE_PARSE,
    OWE_PARSE_NAMED,
    OWE_QUERY,
)
from proxy.session.statement_names import (
    ALL_STATEMENTS,
    deallocated,
    is_text,
    is_word_in,
    may_deallocate,
    speaks_of_statements,
    text_of,
)
from proxy.session.statements import (
    FLUSH,
    NAME_PREFIX,
    NO_STATEMENT,
    NOTE_CLOSE_COPY,
    NOTE_CLOSE_NAME,
    NOTE_DESCRIBE,
    NOTE_DUPLICATE,
    NOTE_FAIL,
    NOTE_INJECTED,
    NOTE_OWN,
    NOTE_PARSE,
    NOTE_UNNAMED,
    SPARE_STATEMENT,
    Book,
    Copy,
    Named,
    Note,
    Statement,
    StatementTable,
    close_message,
    describe_message,
    parse_message,
)
from proxy.wire.framing import F_SYNC, STATUS_FAILED, frame_size

STATEMENT_MOST: Final = 65_536
"""The longest Parse message, in bytes, whose statement can follow its client."""
UNNAMED_MOST: Final = 8192
"""The longest Parse of the unnamed statement, in bytes, that is kept for a backend which does not have it."""
NAME_MOST: Final = 256

# What is to become of a message.
VERBATIM: Final = 0
"""Forward it, and judge it as if there were no desk."""
PASSED: Final = 1
"""Forward it, and expect nothing of it: the server skips it."""
TAKEN: Final = 2
"""Forward what `pieces` has instead; what that owes is noted."""
STOP: Final = 3
"""Something has to happen before it: `need`."""
LOST: Final = 4
"""It means a statement that this backend cannot be given any more."""

# What has to happen before the message that the scan stopped at.
NEED_NOTHING: Final = 0
NEED_QUIET: Final = 1
NEED_COPY: Final = 2
NEED_UNNAMED: Final = 3
NEED_ERROR: Final = 4
"""The result of the statement is not what the client has been told of it."""
NEED_OWN: Final = 5
"""SQL speaks of the statement, which this backend has to have under the client's own name."""


class Desk:
    """The named statements of one client, and its unnamed one.

    Without a `table` named statements are none of its business: a client that has some keeps its backend.  `meaning` is
    that of the client's present settings (`ParameterSet.meaning`); `shifted` says that something has perhaps changed
    them since, under which statements that this backend has already mean what they meant.
    """

    def __init__(self, ident: i64, table: StatementTable | None = None, meaning: bytes = b"") -> None:
        self.table: StatementTable | None = table
        self.meaning: bytes = meaning
        self.shifted: bool = False
        self.book: Book | None = None
        self.batch: i64 = 0
        self.pieces: list[bytes] | None = None
        self.copied: i64 = 0
        self.need: int = NEED_NOTHING
        self.needed: Named | None = None
        self.needed_name: bytes = b""
        self.passing: bool = False
        self.owning: bool = False
        self.unnamed: bytes = b""
        self.unnamed_batch: i64 = -1
        self.unnamed_mark: i64 = ident << 32

    # What the scan asks, message by message.

    def parse(self, data: bytes, pos: i64, after: i64, back: BackState) -> int:
        """Take a Parse of a named statement, which has come whole unless it is too long to be remembered."""
        if self._passes(back):
            if back.doubt and self.book is not None:
                self.book.remove(text_of(data, pos + 5))
            return PASSED
        table = self.table
        if table is None or after > len(data) or after - pos > STATEMENT_MOST:
            return VERBATIM
        stop: i64 = data.find(b"\0", pos + 5, after)
        if stop < 0 or stop - pos > NAME_MOST:
            return VERBATIM
        name = data[pos + 5 : stop]
        if not name.isascii() and not is_text(name, back.params.get(b"client_encoding", b"")):
            # The server judges whether it is text at all, and does not see the names that the desk takes.
            return VERBATIM
        body = data[stop + 1 : after]
        book = self.book
        if book is None:
            book = Book()
            self.book = book
        if self._unsettled(book, back) or back.owes_command():
            return self._stop(NEED_QUIET)
        if self._names_own(book, text_of(data, stop + 1), back):
            return STOP
        book.noted = self.batch
        if name in book.names:
            return self._duplicate(data, pos, after, name, back)
        if back.pins & PIN_PREPARE or not book.has_room_for(name, body):
            # Of a name that SQL may have given to another statement the server judges, where both are.
            return VERBATIM
        if may_deallocate(body, 0) and deallocated(text_of(body, 0)) == ALL_STATEMENTS:
            book.unsure = True
        statement = table.intern(body, self.meaning)
        before = self._make_copy(statement, back)
        copy = back.shelf.copies[statement.ident]
        named = Named(statement, copy)
        book.add(name, named)
        back.owe_noted(OWE_PARSE_NAMED, Note(NOTE_PARSE, copy, book, name, named))
        back.owe_own(OWE_DESCRIBE, Note(NOTE_DESCRIBE, copy, None, b"", named))
        self._take(data, pos, after, before + parse_message(statement.name, body) + describe_message(statement.name))
        return TAKEN

    def parse_unnamed(self, data: bytes, pos: i64, after: i64, back: BackState) -> int:
        """Take a Parse of the unnamed statement, and remember it for a backend that does not have it."""
        if self._passes(back):
            back.owe_change(OWE_PARSE, self.unnamed, self.unnamed_mark)
            return PASSED
        size: i64 = after - pos
        book = self.book
        if book is not None and self._speaks_of_own(book, data, pos + 6, after, back):
            return STOP
        if after > len(data) or size > UNNAMED_MOST:
            back.owe_change(OWE_PARSE, self.unnamed, self.unnamed_mark)
            self.set_unnamed(b"")
            return VERBATIM
        verdict = self._owe_text(OWE_PARSE, data, pos + 6, after, back)
        if verdict == STOP:
            return STOP
        if verdict == TAKEN:
            types = data[data.find(b"\0", pos + 6, after) + 1 : after]
            body = b"DEALLOCATE " + SPARE_STATEMENT + b"\0" + types
            self._take(data, pos, after, _SPARE + parse_message(b"", body))
        self.set_unnamed(data if size == len(data) else data[pos:after])
        return verdict

    def query(self, data: bytes, pos: i64, after: i64, back: BackState) -> int:
        """Take a Query and note what it owes: one that deallocates is rewritten, and all end the unnamed statement."""
        book = self.book
        if self.owning:
            self.owning = False
            if back.skipping:
                # The server has refused to prepare what the Query speaks of, and its error is the answer to that.
                back.forwarded_sync()
                self.end_unnamed()
                self._take(data, pos, after, _SYNC)
                return TAKEN
        if self._passes(back):
            back.owe_change(OWE_QUERY, self.unnamed, self.unnamed_mark)
            return PASSED
        if book is not None and self._speaks_of_own(book, data, pos + 5, after, back):
            self.owning = self.need == NEED_OWN
            return STOP
        verdict = self._owe_text(OWE_QUERY, data, pos + 5, after, back)
        if verdict == STOP:
            return STOP
        if verdict == TAKEN:
            text = b"DEALLOCATE " + SPARE_STATEMENT + b"\0"
            self._take(data, pos, after, _SPARE + b"Q" + (len(text) + 4).to_bytes(4, "big") + text)
        self.end_unnamed()
        return verdict

    def bind(self, data: bytes, pos: i64, end: i64, name_at: i64, back: BackState) -> int:
        """Take a Bind to a named statement, of any size: its names and its length are all that changes."""
        book = self.book
        if book is None:
            return VERBATIM
        stop: i64 = data.find(b"\0", name_at, end)
        if self._passes(back):
            return LOST if back.doubt and data[name_at:stop] in book.names else PASSED
        if stop < 0:
            return VERBATIM
        copy = self._copy_for(data[name_at:stop], back)
        if copy is None:
            return VERBATIM if self.need == NEED_NOTHING else STOP
        name = copy.statement.name
        size: i64 = frame_size(data, pos) + len(name) - (stop - name_at)
        back.owe(OWE_BIND)
        self._take(data, pos, stop, b"B" + int(size).to_bytes(4, "big") + data[pos + 5 : name_at] + name)
        return TAKEN

    def describe(self, data: bytes, pos: i64, after: i64, back: BackState) -> int:
        """Take a Describe of a named statement."""
        book = self.book
        if book is None:
            return VERBATIM
        name = data[pos + 6 : after - 1]
        if self._passes(back):
            return LOST if back.doubt and name in book.names else PASSED
        copy = self._copy_for(name, back)
        if copy is None:
            return VERBATIM if self.need == NEED_NOTHING else STOP
        back.owe(OWE_DESCRIBE)
        self._take(data, pos, after, describe_message(copy.statement.name))
        return TAKEN

    def close(self, data: bytes, pos: i64, after: i64, back: BackState) -> int:
        """Take a Close of a named statement: the client's name is gone, and the copies stay for others."""
        book = self.book
        name = data[pos + 6 : after - 1]
        if book is None:
            return self._close_unknown(data, pos, after, name, back)
        if self._passes(back):
            if back.doubt:
                book.remove(name)
            return PASSED
        if self._unsettled(book, back):
            return self._stop(NEED_QUIET)
        named = book.remove(name)
        if named is None:
            return self._close_unknown(data, pos, after, name, back)
        back.owe_noted(OWE_CLOSE, Note(NOTE_CLOSE_NAME, None, book, name, named))
        book.noted = self.batch
        self._take(data, pos, after, close_message(NO_STATEMENT))
        return TAKEN

    def use_unnamed(self, data: bytes, pos: i64, back: BackState) -> int:
        """Take the use of the unnamed statement where the backend may have that of another client."""
        if self._passes(back):
            return PASSED
        if back.owes():
            return self._stop(NEED_QUIET)
        if self.unnamed:
            return self._stop(NEED_UNNAMED)
        back.owe_own(OWE_CLOSE, Note(NOTE_CLOSE_COPY, None))
        back.unnamed_owner = self.unnamed_mark
        self._take(data, pos, pos, close_message(b""))
        return VERBATIM

    # What its owner asks.

    def attend(self, back: BackState) -> bytes:
        """Begin what is needed, and return what to send for it; messages are held back while `back.halted`."""
        need = self.need
        self.need = NEED_NOTHING
        if need == NEED_QUIET:
            back.halted = HALT_QUIET
            return FLUSH
        back.open_batch = True
        back.halted = HALT_INJECTED
        if need == NEED_UNNAMED:
            back.owe_own(OWE_PARSE, Note(NOTE_UNNAMED, None))
            back.unnamed_owner = self.unnamed_mark
            return self.unnamed + FLUSH
        if need == NEED_OWN:
            book = self.book
            assert book is not None
            own = book.remove(self.needed_name)
            assert own is not None
            back.owe_own(OWE_PARSE, Note(NOTE_OWN, None, book, self.needed_name, own))
            return parse_message(self.needed_name, own.statement.body) + FLUSH
        named = self.needed
        assert named is not None
        statement = named.statement
        before = self._make_copy(statement, back)
        copy = back.shelf.copies[statement.ident]
        back.owe_own(OWE_PARSE, Note(NOTE_PARSE, copy))
        back.owe_own(OWE_DESCRIBE, Note(NOTE_INJECTED, copy, self.book))
        return before + parse_message(statement.name, statement.body) + describe_message(statement.name) + FLUSH

    def fail(self, back: BackState, message: bytes) -> bytes:
        """Let the server fail in place of the message in hand, and the client be told `message` (an ErrorResponse).

        So the transaction is what it would be, and the server itself skips what follows up to the Sync.
        """
        self.need = NEED_NOTHING
        self.passing = True
        back.open_batch = True
        back.owe_own(OWE_DESCRIBE, Note(NOTE_FAIL, None, None, message))
        return describe_message(NO_STATEMENT)

    def rewritten(self, data: bytes, count: i64) -> bytes:
        """Put together what to send for the first `count` bytes of what was scanned."""
        pieces = self.pieces
        assert pieces is not None
        pieces.append(data[self.copied : count])
        self.pieces = None
        self.copied = 0
        return b"".join(pieces)

    def told(self, error: bytes) -> bytes:
        """An ErrorResponse with the client's own name for a statement in place of the proxy's."""
        return error if self.book is None else self.book.told(error)

    def forget(self) -> None:
        """The server has deallocated all statements."""
        if self.book is not None:
            self.book.clear()

    def end_unnamed(self) -> None:
        """Take note of a Query, which ends the unnamed statement, and a batch."""
        self.unnamed = b""
        self.unnamed_mark += 1
        self.batch += 1

    def set_unnamed(self, message: bytes) -> None:
        """Take note of the Parse of the unnamed statement; empty where there is none, or one too long to be kept."""
        self.unnamed = message
        self.unnamed_batch = self.batch
        self.unnamed_mark += 1

    def _copy_for(self, name: bytes, back: BackState) -> Copy | None:
        """Find the copy that this name means now; None with a `need`, or without for a name that is not known."""
        book = self.book
        assert book is not None
        if self._unsettled(book, back):
            self.need = NEED_QUIET
            return None
        named = book.names.get(name)
        if named is None:
            return None
        fresh = book.fresh
        book.fresh = None
        statement = named.statement
        table = self.table
        other = statement.meaning is not self.meaning and statement.meaning != self.meaning
        if table is not None and other and not (self.shifted and statement.ident in back.shelf.copies):
            statement = table.intern(statement.body, self.meaning)
            named.statement = statement
        shelf = back.shelf
        copy = shelf.copies.get(statement.ident)
        if copy is not None:
            if copy is named.pending or (copy.shape is named.shape and len(copy.shape) != 0):
                shelf.touch(copy)
                return copy
            if len(copy.shape) != 0:
                if len(named.shape) == 0 or copy.shape == named.shape or statement.is_loose:
                    named.shape = copy.shape
                    shelf.touch(copy)
                    return copy
                if copy is fresh:
                    self.need = NEED_QUIET if back.owes() else NEED_ERROR
                    return None
        self.needed = named
        self.need = NEED_QUIET if back.owes() else NEED_COPY
        return None

    def _owe_text(self, owes: int, data: bytes, start: i64, after: i64, back: BackState) -> int:
        """Note what a Query or unnamed Parse owes whose text begins at `start`: TAKEN where it deallocates a name."""
        before = self.unnamed
        book = self.book
        if book is None or after > len(data) or not may_deallocate(data, start):
            back.owe_change(owes, before, self.unnamed_mark)
            return VERBATIM
        name = deallocated(text_of(data, start))
        verdict = self._deallocates(book, name, back)
        if verdict == VERBATIM:
            back.owe_change(owes, before, self.unnamed_mark)
        elif verdict == TAKEN:
            back.owe_noted(owes, Note(NOTE_CLOSE_NAME, None, book, name, book.remove(name)))
            back.note_change(before, self.unnamed_mark)
        return verdict

    def _deallocates(self, book: Book, name: bytes, back: BackState) -> int:
        if len(name) == 0:
            return VERBATIM
        if self._unsettled(book, back):
            return self._stop(NEED_QUIET)
        if name == ALL_STATEMENTS:
            book.unsure = True
            return VERBATIM
        if name not in book.names:
            return VERBATIM
        if back.owes():
            return self._stop(NEED_QUIET)
        _owe_spare(back)
        book.noted = self.batch
        return TAKEN

    def _speaks_of_own(self, book: Book, data: bytes, start: i64, after: i64, back: BackState) -> bool:
        """Say the same of a text that begins at `start`; a single DEALLOCATE is dealt with by itself."""
        if after > len(data) or after - start < _SHORTEST_SQL:
            return False
        text = text_of(data, start)
        return (not may_deallocate(data, start) or not deallocated(text)) and self._names_own(book, text, back)

    def _names_own(self, book: Book, text: bytes, back: BackState) -> bool:
        """Say whether a text has to wait until the backend has a statement that it names, such as EXECUTE does."""
        if len(book.names) == 0:
            return False
        text = text.lower()
        if not speaks_of_statements(text):
            return False
        if b"deallocate" in text or b"discard" in text:
            book.unsure = True
        for name in book.names:
            if is_word_in(name.lower(), text):
                self.needed_name = name
                self.need = NEED_QUIET if back.owes() else NEED_OWN
                if self.need == NEED_OWN and back.status == STATUS_FAILED:
                    # Nothing can be prepared there, and a ROLLBACK in the text has to reach the server.
                    self.need = NEED_NOTHING
                    return False
                return True
        return False

    def _close_unknown(self, data: bytes, pos: i64, after: i64, name: bytes, back: BackState) -> int:
        """Leave a statement alone that the client calls by the proxy's own name for it: it is for others as well."""
        if self.table is None or not name.startswith(NAME_PREFIX) or back.doubt or back.skipping:
            return VERBATIM
        back.owe(OWE_CLOSE)
        self._take(data, pos, after, close_message(NO_STATEMENT))
        return TAKEN

    def _make_copy(self, statement: Statement, back: BackState) -> bytes:
        """Put a copy on the backend's shelf; the answer is what makes room for it."""
        before = b""
        for copy in back.shelf.put(statement):
            before += close_message(copy.statement.name)
            back.owe_own(OWE_CLOSE, Note(NOTE_CLOSE_COPY, copy))
        return before

    def _unsettled(self, book: Book, back: BackState) -> bool:
        """Say whether replies to come may still change what the client's names mean."""
        if book.unsure:
            if back.owes():
                return True
            book.unsure = False
        return len(back.shelf.notes) != 0 and book.noted != self.batch

    def _passes(self, back: BackState) -> bool:
        """Say whether the server will skip this message, or nothing can be told any more."""
        if self.passing:
            self.passing = False
            return True
        return back.doubt or back.skipping

    def _stop(self, need: int) -> int:
        self.need = need
        return STOP

    def _duplicate(self, data: bytes, pos: i64, after: i64, name: bytes, back: BackState) -> int:
        """Let the server refuse a name that is in use, which it does only once it has read the statement."""
        _owe_spare(back)
        back.owe_noted(OWE_PARSE_NAMED, Note(NOTE_DUPLICATE, None, None, name))
        body = data[pos + 6 + len(name) : after]
        self._take(data, pos, after, _SPARE + parse_message(SPARE_STATEMENT, body))
        return TAKEN

    def _take(self, data: bytes, pos: i64, upto: i64, replacement: bytes) -> None:
        """Send a replacement for the bytes of `data` from `pos` to `upto`."""
        pieces = self.pieces
        if pieces is None:
            pieces = []
            self.pieces = pieces
        if pos != self.copied:
            pieces.append(data[self.copied : pos])
        pieces.append(replacement)
        self.copied = upto


_SYNC: Final = bytes((F_SYNC, 0, 0, 0, 4))
_SHORTEST_SQL: Final = 9
"""Bytes of the shortest text that speaks of a statement: EXECUTE and a name."""
_SPARE: Final = close_message(SPARE_STATEMENT) + parse_message(SPARE_STATEMENT, b"\0\0\0")


def _owe_spare(back: BackState) -> None:
    """Note what `_SPARE` owes, which prepares a statement that does nothing."""
    back.owe_own(OWE_CLOSE, Note(NOTE_CLOSE_COPY, None))
    back.owe_own(OWE_PARSE, Note(NOTE_PARSE, None))
