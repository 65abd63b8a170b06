"""The relay rules of a client: what its messages will owe, what pins it, and what needs no backend at all.

`FrontState` belongs to a client for the whole of its session.  It scans a chunk once, without copying, notes in the
backend's reply queue what each message owes, and answers how much may be forwarded as it is; what is left over is
the beginning of a message that has to be seen whole (at most `HOLD_LIMIT` bytes) and comes back with the next chunk.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from proxy.session.desk import LOST, PASSED, STATEMENT_MOST, STOP, TAKEN, UNNAMED_MOST, VERBATIM, Desk
from proxy.session.glance import glance_request, skip_alike
from proxy.session.pins import CALLED, CONCERNS_NODE, PIN_DOUBT, PIN_SET, PIN_STATEMENT, PIN_UNNAMED
from proxy.session.replies import HOLD_LIMIT, BackState
from proxy.session.reply_queue import (
    ASKS_MORE,
    ASKS_PIPELINE,
    ASKS_QUERY,
    GLANCE_LEAST,
    MANY_FRAMES,
    OWE_BIND,
    OWE_CLOSE,
    OWE_CLOSE_STATEMENT,
    OWE_CLOSE_UNNAMED,
    OWE_DESCRIBE,
    OWE_EXECUTE,
    OWE_FUNCTION,
    OWE_PARSE_NAMED,
    OWE_QUERY,
    OWE_REFUSAL,
    PIPELINE,
    UNDESCRIBED,
)
from proxy.session.set_statements import UNREADABLE, TouchedSettings
from proxy.session.statements import Book
from proxy.session.texts import Texts
from proxy.session.unlinked import IMPOSSIBLE_LENGTH, KNOWN_TYPES, UNKNOWN_TYPE, Unlinked
from proxy.session.wellformed import is_malformed, is_possible
from proxy.wire.framing import (
    F_BIND,
    F_CLOSE,
    F_COPY_DATA,
    F_COPY_DONE,
    F_COPY_FAIL,
    F_DESCRIBE,
    F_EXECUTE,
    F_FLUSH,
    F_FUNCTION,
    F_PARSE,
    F_QUERY,
    F_SYNC,
    F_TERMINATE,
    find_zero,
    frame_size,
)

MAX_NAMED: Final = 1000
"""Named statements remembered per client; beyond it the client stays pinned until it disconnects."""
MAX_NAME: Final = 256
MAX_MEANING: Final = 4096

# What a scan found besides bytes to forward.
FOUND_NOTHING: Final = 0
FOUND_TERMINATE: Final = 1
FOUND_FAULT: Final = 2

# What the batch in hand has done with the unnamed statement.
UNNAMED_LEFT: Final = 0
UNNAMED_PARSED: Final = 1
UNNAMED_BOUND: Final = 2
"""Parsed and bound in one go: nobody does that who means to bind it again later."""
UNNAMED_AWAITED: Final = 3
"""Parsed, and its replies were asked for before it was bound."""

# mypyc looks up what it has not compiled by name at each call, unless it is a constant of the module that calls.
_GLANCE: Final = glance_request
_SKIP: Final = skip_alike

_REUSED: Final = b"\0"
"""Stands in `closing_names` for a name that has been parsed again; no statement can be called that."""

_S: Final = 0x53


class FrontState(Unlinked):
    """A client's side of the conversation: what it is in the middle of sending, and what pins it."""

    def __init__(self, ident: i64) -> None:
        super().__init__()
        self.ident: i64 = ident
        self.left_kind: i64 = 0
        self.found: i64 = FOUND_NOTHING
        self.fault: str = ""
        self.pins: i64 = 0
        self.proven: i64 = 0
        self.texts: Texts = Texts()
        self.touched: TouchedSettings | None = None
        self.desk: Desk = Desk(ident, None)
        self.names: set[bytes] | None = None
        self.batch_unnamed: int = UNNAMED_LEFT
        self.unnamed_pinned: bool = False

    def scan(self, data: bytes, back: BackState) -> i64:
        """Judge `data`, note in `back` what it will owe, and return how many bytes to forward to the backend.

        Sets `found` when the scan ended at a Terminate (which is not counted in), at a fault (`fault` says which), or
        before a message that has to wait (`Desk.need`, which the caller attends to).  When `Desk.pieces` is set, what
        to forward is `Desk.rewritten`.
        """
        pos: i64 = 0
        end: i64 = len(data)
        if self.left == 0:
            if end >= GLANCE_LEAST and (data[0] == F_PARSE or data[0] == F_QUERY) and self._at_a_glance(data, back):
                return end
        else:
            pos = min(self.left, end)
            self.left -= pos
            if self.left_kind == F_QUERY or self.left_kind == F_PARSE:
                self.pins |= self.texts.more(data, pos, self.left == 0, self.left_kind == F_PARSE)
            if self.left:
                return end
        while pos + 5 <= end:
            kind: i64 = data[pos]
            size: i64 = frame_size(data, pos)
            if not is_possible(kind, size):
                self.found = FOUND_FAULT
                self.fault = IMPOSSIBLE_LENGTH
                break
            after: i64 = pos + 1 + size
            if kind == F_COPY_DATA:
                if after > end:
                    self.left = after - end
                    self.left_kind = kind
                    pos = end
                    break
                pos = after if end - after < MANY_FRAMES else _SKIP(data, pos)
                continue
            if after > end and end - pos < self._enough(kind, size, data, pos):
                if data[pos] not in KNOWN_TYPES:
                    self.found = FOUND_FAULT
                    self.fault = UNKNOWN_TYPE
                break
            if kind == F_QUERY:
                if not self._query(data, pos, after, end, back):
                    break
            elif kind == F_TERMINATE:
                self.found = FOUND_TERMINATE
                break
            elif not self._account(kind, data, pos, min(end, after), back):
                break
            if after > end:
                self.left = after - end
                self.left_kind = kind
                pos = end
                break
            pos = after
        return pos

    def _at_a_glance(self, data: bytes, back: BackState) -> bool:
        """Judge a chunk that is one whole request of the commonest kinds, where nothing else is on.

        The outcome is that of `scan`, message by message; False leaves all as it is.
        """
        desk, texts = self.desk, self.texts
        if len(data) > UNNAMED_MOST or not back.is_at_rest() or self.batch_unnamed != UNNAMED_LEFT:
            return False
        if desk.book is not None or desk.passing or desk.owning:
            return False
        if texts.remembered is not None or len(texts.tail) != 0:
            return False
        asks = _GLANCE(data)
        if asks == ASKS_MORE:
            return False
        back.note_change(desk.unnamed, desk.unnamed_mark)
        self.unnamed_pinned = self.pins & PIN_UNNAMED != 0
        self.pins &= ~PIN_UNNAMED
        if asks == ASKS_QUERY:
            desk.end_unnamed()
            back.unnamed_owner = 0
            back.queue.append(OWE_QUERY)
            return True
        desk.set_unnamed(data[: 1 + frame_size(data, 0)])
        desk.batch += 1
        back.unnamed_owner = desk.unnamed_mark
        back.queue.extend(PIPELINE if asks == ASKS_PIPELINE else UNDESCRIBED)
        return True

    def _query(self, data: bytes, pos: i64, after: i64, end: i64, back: BackState) -> bool:
        """Note a Query; False when the scan must end before it."""
        if back.copy_in:
            self._inside_copy(back)
        if after <= end and is_malformed(F_QUERY, data, pos, after):
            # It is refused as a FunctionCall may be, and the unnamed statement is still there.
            self.desk.batch += 1
            if not back.skipping:
                self._batch_ends()
            back.forwarded_query()
            back.owe(OWE_FUNCTION)
            return True
        if self.desk.query(data, pos, after, back) == STOP:
            return False
        back.forwarded_query()
        if not back.skipping:
            back.unnamed_owner = 0
            self._unnamed_changes(UNNAMED_LEFT)
            self.pins &= ~PIN_UNNAMED
        self.pins |= self.texts.query(data, pos + 5, min(end, after), after <= end)
        if len(self.texts.shift) != 0:
            self._shift_meaning()
        return True

    def _account(self, kind: i64, data: bytes, pos: i64, end: i64, back: BackState) -> bool:
        """Note one message that is not Query; False when the scan must end before it."""
        if kind == F_SYNC:
            self._batch_ends()
            self.desk.batch += 1
            back.forwarded_sync()
            return True
        if kind == F_FLUSH:
            if frame_size(data, pos) != 4:
                back.forwarded_refused_flush()
            elif self.batch_unnamed == UNNAMED_PARSED:
                self.batch_unnamed = UNNAMED_AWAITED
            return True
        if kind == F_COPY_DONE or kind == F_COPY_FAIL:
            back.forwarded_copy_end()
            return True
        if back.copy_in:
            self._inside_copy(back)
        if kind == F_FUNCTION:
            if not back.skipping:
                self._batch_ends()
            back.forwarded_query()
            back.owe(OWE_FUNCTION)
            return True
        verdict = TAKEN
        if kind == F_EXECUTE:
            back.owe(OWE_EXECUTE)
        elif end == pos + 1 + frame_size(data, pos) and is_malformed(kind, data, pos, end):
            back.owe(OWE_REFUSAL)
        elif kind == F_PARSE:
            verdict = self._parse(data, pos, end, back)
        elif kind == F_BIND:
            verdict = self._bind(data, pos, end, back)
        elif kind == F_DESCRIBE:
            verdict = self._describe(data, pos, end, back)
        elif kind == F_CLOSE:
            verdict = self._close(data, pos, end, back)
        else:
            self.found = FOUND_FAULT
            self.fault = UNKNOWN_TYPE
            return False
        if verdict == STOP:
            return False
        back.open_batch = True
        return True

    def _enough(self, kind: i64, size: i64, data: bytes, pos: i64) -> i64:
        """How many bytes of a message are enough to judge it before it has come whole."""
        if (
            kind == F_PARSE
            and size < STATEMENT_MOST
            and self.desk.table is not None
            and data[pos + 5 : pos + 6] != b"\0"
        ):
            return STATEMENT_MOST + 1
        return HOLD_LIMIT

    def _parse(self, data: bytes, pos: i64, end: i64, back: BackState) -> int:
        after: i64 = pos + 1 + frame_size(data, pos)
        named: bool = end > pos + 5 and data[pos + 5] != 0
        if named:
            verdict = VERBATIM if self._is_own(data, pos, end) else self.desk.parse(data, pos, after, back)
            if verdict == VERBATIM:
                self._named(data, pos + 5, end, back)
        else:
            verdict = self.desk.parse_unnamed(data, pos, after, back)
            if verdict == STOP:
                return STOP
            if not back.skipping:
                self._unnamed_changes(UNNAMED_PARSED)
                self.desk.unnamed_batch = self.desk.batch
                back.unnamed_owner = self.desk.unnamed_mark
        if named and (verdict == VERBATIM or verdict == PASSED):
            back.owe(OWE_PARSE_NAMED)
        if verdict != STOP:
            self.texts.parse(data, pos, end, end == after)
        return verdict

    def _unnamed_changes(self, becomes: int) -> None:
        """Note what a message does with the unnamed statement, and whether one that pins is replaced by it alone."""
        self.unnamed_pinned = self.batch_unnamed == UNNAMED_LEFT and self.pins & PIN_UNNAMED != 0
        self.batch_unnamed = becomes

    def _bind(self, data: bytes, pos: i64, end: i64, back: BackState) -> int:
        after_portal: i64 = find_zero(data, pos + 5, end) + 1
        if (after_portal == 0 or after_portal >= end) and end - pos >= HOLD_LIMIT:
            return self._too_long()
        if after_portal == 0 or after_portal >= end or back.skipping:
            verdict = VERBATIM
        elif data[after_portal] != 0:
            verdict = self._known(self.desk.bind(data, pos, end, after_portal, back))
        else:
            verdict = self._uses_unnamed(data, pos, back)
            if verdict == VERBATIM and self.batch_unnamed == UNNAMED_PARSED:
                self.batch_unnamed = UNNAMED_BOUND
        if verdict == VERBATIM or verdict == PASSED:
            back.owe(OWE_BIND)
        if verdict != STOP and self.texts.remembered is not None and after_portal != 0:
            self.pins |= self.texts.bind(data, after_portal, end)
            if len(self.texts.shift) != 0:
                self._shift_meaning()
        return verdict

    def _shift_meaning(self) -> None:
        """Keep statements apart that are parsed while settings are not those that the client is known to have.

        Until they are known again (see `proxy.net.settling`) the same texts make for the same meaning.
        """
        shift = self.texts.shift
        self.texts.shift = b""
        if UNREADABLE in shift or len(self.desk.meaning) > MAX_MEANING:
            shift = b"%d.%d" % (self.ident, self.desk.batch)
        self.desk.meaning += b"\0" + shift
        self.desk.shifted = True

    def _describe(self, data: bytes, pos: i64, end: i64, back: BackState) -> int:
        verdict = VERBATIM
        if data[pos + 5 : pos + 6] == b"S" and not back.skipping:
            if end - pos == 7:
                verdict = self._uses_unnamed(data, pos, back)
            elif end == pos + 1 + frame_size(data, pos):
                verdict = self._known(self.desk.describe(data, pos, end, back))
        if verdict == VERBATIM or verdict == PASSED:
            back.owe(OWE_DESCRIBE)
        return verdict

    def _uses_unnamed(self, data: bytes, pos: i64, back: BackState) -> int:
        """Refuse the unnamed statement which another client left in this backend.

        It may still be there behind the Sync of a batch that has the client's own Parse: what fails before that makes
        the server skip it.
        """
        settled: bool = len(back.unnamed_pasts) == 0 and not back.doubt
        if back.unnamed_owner == self.desk.unnamed_mark and (settled or self.desk.unnamed_batch == self.desk.batch):
            return VERBATIM
        if back.doubt:
            self.found = FOUND_FAULT
            self.fault = "the unnamed statement after a copy"
            return STOP
        return self.desk.use_unnamed(data, pos, back)

    def _known(self, verdict: int) -> int:
        """End the session where a statement is used that the proxy can give to no other backend, nor to this one."""
        if verdict != LOST:
            return verdict
        self.found = FOUND_FAULT
        self.fault = "a prepared statement from before a copy that failed, used after it"
        return STOP

    def _too_long(self) -> int:
        self.found = FOUND_FAULT
        self.fault = "a name that is too long"
        return STOP

    def _batch_ends(self) -> None:
        """Keep the backend of a client that has prepared an unnamed statement too long to be parsed again.

        The pin ends with the statement: by the next Parse of it, its Close, or a Query.
        """
        if self.batch_unnamed != UNNAMED_LEFT:
            self.pins &= ~PIN_UNNAMED
            if self.batch_unnamed != UNNAMED_BOUND and len(self.desk.unnamed) == 0:
                self.pins |= PIN_UNNAMED
            self.batch_unnamed = UNNAMED_LEFT

    def _is_own(self, data: bytes, pos: i64, end: i64) -> bool:
        """Say whether this name has, or had, a statement of the client's own in its backend."""
        return self.names is not None and data[pos + 5 : find_zero(data, pos + 5, end)] in self.names

    def _named(self, data: bytes, pos: i64, end: i64, back: BackState) -> None:
        self.pins |= PIN_STATEMENT
        stop: i64 = find_zero(data, pos, end)
        if self.names is None:
            self.names = set()
        if stop < 0 or stop - pos > MAX_NAME or len(self.names) >= MAX_NAMED:
            # A statement that cannot be remembered is never seen to be closed: the pin stays.
            self.names.add(b"")
        else:
            name = data[pos:stop]
            self.names.add(name)
            if back.closing_names:
                # The CloseComplete still to come is not the end of the statement that has the name now.
                back.closing_names = [_REUSED if closing == name else closing for closing in back.closing_names]

    def _close(self, data: bytes, pos: i64, end: i64, back: BackState) -> int:
        # Only statements matter: portals end with the transaction.
        verdict = VERBATIM
        if end > pos + 6 and data[pos + 5] == _S and end == pos + 1 + frame_size(data, pos):
            if end == pos + 7:
                back.owe_change(OWE_CLOSE_UNNAMED, self.desk.unnamed, self.desk.unnamed_mark)
                if not back.skipping:
                    self.desk.set_unnamed(b"")
                    # That of another client may be gone by it.
                    back.unnamed_owner = self.desk.unnamed_mark
                    self._unnamed_changes(UNNAMED_LEFT)
                    self.pins &= ~PIN_UNNAMED
                return verdict
            verdict = self.desk.close(data, pos, end, back)
            remembered: bool = self.names is not None and not back.skipping and not back.doubt
            if verdict == VERBATIM and remembered:
                stop: i64 = find_zero(data, pos + 6, end)
                if stop > pos + 6:
                    back.closing_names.append(data[pos + 6 : stop])
                    back.owe(OWE_CLOSE_STATEMENT)
                    return verdict
        if verdict == VERBATIM or verdict == PASSED:
            back.owe(OWE_CLOSE)
        return verdict

    def heard(self, back: BackState) -> None:
        """Take note of what the replies have told of statements since this was called last."""
        if back.closed_names:
            self._closed(back)
        if back.cleared:
            back.cleared = False
            self.desk.forget()
            self.names = None
            self.pins &= ~PIN_STATEMENT
        book = self.desk.book
        if book is not None and len(book.owned) != 0:
            self._owned(book)
        if back.unnamed_failed:
            # What pinned may never have been there.
            back.unnamed_failed = False
            self.unnamed_pinned = False
        if back.unnamed_back:
            back.unnamed_back = False
            self._restore_unnamed(back)

    def _owned(self, book: Book) -> None:
        """Keep the backend that has statements under the client's names, of which SQL may have any executed."""
        self.pins |= PIN_STATEMENT
        if self.names is None:
            self.names = set()
        for name in book.owned:
            self.names.add(name)
            known = None if self.texts.remembered is None else self.texts.remembered.get(name)
            if known is not None:
                self.pins |= (known[1] & ~(CALLED | CONCERNS_NODE)) | (PIN_SET if known[0] else 0)
        book.owned.clear()

    def _restore_unnamed(self, back: BackState) -> None:
        """Go back to the unnamed statement before the messages that the server has refused or skipped."""
        self.desk.unnamed = back.unnamed_before
        back.unnamed_before = b""
        back.unnamed_owner = self.desk.unnamed_mark if back.unnamed_held else 0
        self.pins &= ~PIN_UNNAMED
        if self.unnamed_pinned and back.unnamed_held:
            # It has stayed on this backend, and only one was to replace it.
            self.pins |= PIN_UNNAMED
        self.batch_unnamed = UNNAMED_LEFT

    def _closed(self, back: BackState) -> None:
        """Take note of the statements whose CloseComplete has come, and unpin after the last."""
        names = self.names
        if names is not None:
            for name in back.closed_names:
                names.discard(name)
            if not names:
                self.names = None
                self.pins &= ~PIN_STATEMENT
        back.closed_names.clear()

    def _inside_copy(self, back: BackState) -> None:
        """Keep the backend for good: the server answers this message, or eats it, as its copy happens to stand."""
        back.doubt = True
        back.pins |= PIN_DOUBT
