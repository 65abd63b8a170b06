"""What a backend says: which of it is for its client, and when the backend may be given to someone else.

`BackState` reads the bytes that a server sends, once and without copying, and answers how much of a chunk may be
forwarded as it is; what is left over is the beginning of a frame that has to be seen whole and comes back with the
next chunk.  The rules are those of the PostgreSQL documentation, "Message Flow", and of `PostgresMain()`, which
decides what a server skips after an error and while it copies in.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from proxy.session.endings import marks_of_tag, may_mark, sqlstate_of
from proxy.session.glance import glance_reply, skip_alike
from proxy.session.pins import (
    PIN_DOUBT,
    PIN_PIPELINE,
    PIN_SET,
    REPORTED,
    ROLLED_BACK,
    TO_RESET,
)
from proxy.session.reply_queue import (
    COPY_END,
    GLANCE_LEAST,
    MANY_FRAMES,
    NOTED,
    OWE_BIND,
    OWE_CLOSE,
    OWE_CLOSE_STATEMENT,
    OWE_CLOSE_UNNAMED,
    OWE_DESCRIBE,
    OWE_EXECUTE,
    OWE_FUNCTION,
    OWE_PARSE,
    OWE_PARSE_NAMED,
    OWE_QUERY,
    OWE_REFUSED_FLUSH,
    OWE_SYNC,
    SWALLOW,
    ReplyQueue,
)
from proxy.session.statements import NAME_PREFIX, NOTE_DUPLICATE, NOTE_FAIL, shape_of
from proxy.wire.framing import (
    B_AUTHENTICATION,
    B_BACKEND_KEY_DATA,
    B_BIND_COMPLETE,
    B_CLOSE_COMPLETE,
    B_COMMAND_COMPLETE,
    B_COPY_BOTH,
    B_COPY_DATA,
    B_COPY_DONE,
    B_COPY_IN,
    B_COPY_OUT,
    B_DATA_ROW,
    B_EMPTY_QUERY,
    B_ERROR,
    B_FUNCTION_RESULT,
    B_NO_DATA,
    B_NOTICE,
    B_NOTIFICATION,
    B_PARAMETER_DESCRIPTION,
    B_PARAMETER_STATUS,
    B_PARSE_COMPLETE,
    B_PORTAL_SUSPENDED,
    B_READY,
    B_ROW_DESCRIPTION,
    STATUS_FAILED,
    STATUS_IDLE,
    STATUS_TRANSACTION,
    frame_size,
)

HOLD_LIMIT: Final = 8192
"""The longest beginning of a frame that is held back until it can be judged, in bytes."""
GLANCE_MOST: Final = 8192
"""The longest chunk that is looked at as a whole, in bytes."""
MAX_SHORT_FRAME: Final = 65536
"""The longest frame accepted from a server of the types that are always short."""
SHORT_TYPES: Final = b"ZSCGHIWKRcns123"
MAX_ERRORS: Final = 16
"""Errors of one chunk whose SQLSTATE is counted."""
MAX_SHAPE: Final = 1 << 20
"""The longest description of a statement, in bytes, that is read for the proxy itself."""

# See `proxy.session.relay`.
_GLANCE: Final = glance_reply
_SKIP: Final = skip_alike


class BackState(ReplyQueue):
    """A backend's side of the conversation: what it owes, and in which state that leaves it."""

    def __init__(self, limit: int = 0) -> None:
        super().__init__(limit)
        self.cleared: bool = False
        self.answer: bytes = b""
        self.status: i64 = STATUS_IDLE
        self.left: i64 = 0
        self.fault: str = ""
        self.params: dict[bytes, bytes] = {}
        self.params_changed: bool = False
        self.swallowing: bool = False
        self.fatal: bool = False
        self.readies: i64 = 0
        self.idles: i64 = 0
        self.pins: i64 = 0
        self.before: dict[bytes, bytes] = {}
        self.discarded: bool = False
        self.has_set: bool = False
        self.queries: i64 = 0
        self.errors: list[bytes] = []
        self.closed_names: list[bytes] = []
        self.pid: bytes = b""
        self.notified: list[int] = []

    def releasable(self) -> bool:
        """Say whether this backend is between transactions with nothing outstanding."""
        return (
            self.status == STATUS_IDLE
            and self.head == len(self.queue)
            and self.left == 0
            and not self.open_batch
            and not self.copy_in
            and not self.doubt
            and not self.skipping
        )

    def only_owes_own(self) -> bool:
        """Say whether nothing but the proxy's own statement, outside a transaction, is still to be answered."""
        if not self.swallowing_own or self.status != STATUS_IDLE:
            return False
        return all(self.queue[at] & SWALLOW for at in range(self.head, len(self.queue)))

    def scan(self, data: bytes, start: i64) -> i64:
        """Judge the bytes of `data` from `start` on and return how many of them are dealt with.

        They are to be forwarded, unless `swallowing` is set, in which case they are the proxy's own.  A return of
        0 means that the rest has to be kept until more has come.  `fault` is set, and the backend must be closed,
        when the server says something that cannot follow.
        """
        pos: i64 = start
        end: i64 = len(data)
        if self.left == 0:
            if start == 0 and end >= GLANCE_LEAST and data[end - 6] == B_READY and self._at_a_glance(data):
                return end
        else:
            if self.left > end - pos:
                self.left -= end - pos
                return end - start
            pos += self.left
            self.left = 0
            if self.own and self.swallowing != self._next_is_own():
                return pos - start
        owed: bool = self.head < len(self.queue)
        self.swallowing = owed and (self.queue[self.head] & SWALLOW) != 0
        while pos + 5 <= end:
            kind: i64 = data[pos]
            size: i64 = frame_size(data, pos)
            if size < 4 or size > 0x7FFFFFFF:
                self.fault = "a frame with an impossible length"
                break
            after: i64 = pos + 1 + size
            if kind == B_DATA_ROW or kind == B_COPY_DATA:
                if not owed and not self.doubt:
                    self.fault = "data that nobody asked for"
                    break
                if after > end:
                    self.left = after - end
                    pos = end
                    break
                pos = after if end - after < MANY_FRAMES else _SKIP(data, pos)
                continue
            if after > end and not self._may_stream(kind, size, end - pos):
                break
            was_swallowing: bool = self.swallowing
            mixed: bool = self.own != 0 and not self.swallowing_own
            if owed and (kind == B_ERROR or (mixed and (kind == B_NOTIFICATION or kind == B_PARAMETER_STATUS))):
                # What is no reply at all has come in between, as to any session that is idle.
                hidden = kind == B_ERROR and self._hides_error(data, pos, after)
                if hidden != was_swallowing and pos > start:
                    break
                self.swallowing = was_swallowing = hidden
                mixed = True
            self._account(kind, data, pos, min(end, after))
            if len(self.fault) != 0:
                break
            if after > end:
                self.left = after - end
                pos = end
                break
            pos = after
            if kind == B_READY:
                owed = self.head < len(self.queue)
                if was_swallowing:
                    break
                self.swallowing = owed and (self.queue[self.head] & SWALLOW) != 0
                if self.swallowing:
                    self.swallowing = False
                    break
                if not owed and pos < end and data[pos] == B_ERROR:
                    # The farewell of a server that closes: nobody's, if this backend may be released first.
                    break
            elif mixed and was_swallowing != self._next_is_own():
                break
        return pos - start

    def _at_a_glance(self, data: bytes) -> bool:
        """Judge a chunk that is the whole answer to one request of the commonest kinds, where nothing else is on.

        The outcome is that of `scan`, frame by frame; False leaves all as it is.
        """
        if self.head != 0 or self.own or self.doubt or self.executed or len(data) > GLANCE_MOST:
            return False
        if len(self.queue) == 0 or self.queue[0] >= SWALLOW:
            return False
        answer = _GLANCE(data)
        if answer == 0 or not self.owes_just(answer):
            return False
        self.swallowing = False
        self.status = data[len(data) - 1]
        if self.status == STATUS_IDLE:
            self.idles += 1
            self.has_set = False
        self.copy_in = False
        self.sync_dropped = False
        self.readies += 1
        self.queries += 1
        self.queue.clear()
        self.unnamed_pasts.clear()
        self.unnamed_helds.clear()
        if self.halted:
            self.remarks = True
        return True

    def _hides_error(self, data: bytes, pos: i64, end: i64) -> bool:
        """Say whether an error is not for the client as it is: see `answer`.

        Those in answer to a message of the proxy's own are when that was part of the client's own batch, unless the
        proxy has provoked them to tell something else, or they speak of a statement by a name of the proxy's.  One that
        has not come whole, and is for the client, stays as it is: no error of the server's about a name is that long.
        """
        if self.head == len(self.queue):
            # It closes while a batch is open, all of which is answered.
            return False
        entry = self.queue[self.head]
        if entry & NOTED:
            kind = self.shelf.notes[0].kind
            if kind == NOTE_FAIL or (kind == NOTE_DUPLICATE and sqlstate_of(data, pos + 5, end) == b"42P05"):
                return True
        elif entry & SWALLOW:
            return True
        return end <= len(data) and data.find(NAME_PREFIX, pos, end) >= 0

    def _may_stream(self, kind: i64, size: i64, available: i64) -> bool:
        """Say whether a frame that has not come whole may be judged by its beginning."""
        if size > MAX_SHORT_FRAME and kind in SHORT_TYPES:
            self.fault = "an oversized frame"
        if kind == B_READY or kind == B_PARAMETER_STATUS:
            return False
        if self.swallowing and (self.own or kind == B_ERROR):
            if size > MAX_SHAPE:
                self.fault = "an oversized frame"
            return False
        return available >= HOLD_LIMIT

    def _account(self, kind: i64, data: bytes, pos: i64, end: i64) -> None:
        if self.doubt:
            self._account_in_doubt(kind, data, pos, end)
        elif kind == B_READY:
            self._ready(data, pos, end)
        elif kind == B_COMMAND_COMPLETE:
            self._complete(data, pos, end)
        elif kind == B_ROW_DESCRIPTION or kind == B_NO_DATA:
            debt = self._first()
            if debt == OWE_DESCRIBE:
                if self.swallowing:
                    self.description = shape_of(self.description, data[pos:end])
                self._pop()
            elif debt != OWE_QUERY and debt != OWE_EXECUTE:
                self.fault = "a row description that nobody asked for"
        elif kind == B_PARSE_COMPLETE:
            self._settle(OWE_PARSE_NAMED if self._first() == OWE_PARSE_NAMED else OWE_PARSE)
        elif kind == B_BIND_COMPLETE:
            self._settle(OWE_BIND)
        elif kind == B_CLOSE_COMPLETE:
            if self._first() == OWE_CLOSE_STATEMENT:
                self.closed_names.append(self.closing_names.pop(0))
                self.remarks = True
                self._pop()
            else:
                self._settle(OWE_CLOSE_UNNAMED if self._first() == OWE_CLOSE_UNNAMED else OWE_CLOSE)
        elif kind == B_EMPTY_QUERY or kind == B_PORTAL_SUSPENDED:
            debt = self._first()
            if debt == OWE_EXECUTE:
                self.executed = self.executed or kind == B_PORTAL_SUSPENDED
                self._pop()
            elif debt != OWE_QUERY:
                self.fault = "an end of execution that nobody asked for"
        elif kind == B_ERROR:
            self._error(data, pos, end)
        elif kind == B_PARAMETER_STATUS:
            self._parameter(data, pos, end)
        elif kind == B_COPY_IN:
            self._copy_in_begins()
        elif kind == B_COPY_BOTH:
            self.doubt = True
        elif kind == B_NOTIFICATION:
            self._notification(data, pos, end)
        elif kind == B_NOTICE:
            pass
        elif kind == B_PARAMETER_DESCRIPTION and self.swallowing:
            self.description = data[pos + 5 : end]
        elif kind == B_PARAMETER_DESCRIPTION or kind == B_COPY_OUT or kind == B_COPY_DONE or kind == B_FUNCTION_RESULT:
            if self.head == len(self.queue):
                self.fault = "a reply that nobody asked for"
        elif kind == B_AUTHENTICATION or kind == B_BACKEND_KEY_DATA:
            self.fault = "a login message in an established session"
        else:
            self.fault = "an unknown message type"

    def _account_in_doubt(self, kind: i64, data: bytes, pos: i64, end: i64) -> None:
        """Follow only what matters without the queue: the backend is never given to anybody else again."""
        if kind == B_READY:
            if end - pos == 6:
                self.status = data[pos + 5]
                if self.status == STATUS_IDLE:
                    self.idles += 1
            self.readies += 1
            self.queries += 1
        elif kind == B_PARAMETER_STATUS:
            self._parameter(data, pos, end)
        elif kind == B_ERROR:
            self._note_error(data, pos, end)
        elif kind == B_NOTIFICATION:
            self._notification(data, pos, end)

    def _notification(self, data: bytes, pos: i64, end: i64) -> None:
        """Note where a notification that this server process has sent itself has its process id."""
        if end - pos >= 9 and data[pos + 5 : pos + 9] == self.pid:
            self.notified.append(pos + 5)

    def _settle(self, debt: int) -> None:
        if self._first() == debt:
            self._pop()
        else:
            self.fault = "a completion that nobody asked for"

    def _ready(self, data: bytes, pos: i64, end: i64) -> None:
        debt = self._first()
        if end - pos != 6 or debt == 0 or debt > OWE_FUNCTION:
            self.fault = "ReadyForQuery out of turn"
            return
        self.status = data[pos + 5]
        if self.status != STATUS_IDLE and self.status != STATUS_TRANSACTION and self.status != STATUS_FAILED:
            self.fault = "ReadyForQuery with an unknown status"
            return
        if self.status == STATUS_IDLE:
            self.idles += 1
            self.has_set = False
        if self.executed:
            self._weigh_status(debt)
        self.copy_in = False
        self.sync_dropped = False
        self.readies += 1
        if self.swallowing:
            self.swallowing_own = False
            self.remarks = True
        else:
            self.queries += 1
        self._pop()

    def _weigh_status(self, debt: int) -> None:
        """Pin where a ReadyForQuery does not tell whether a transaction is open.

        A Query or FunctionCall behind an Execute without a Sync does not commit on PostgreSQL 18: it says T, and the
        Sync behind it ends the transaction in word only: it says I, and the next command fails (XX000) and rolls back.
        Of a transaction that BEGIN has opened, all versions say T or E at the Sync.  A Query that is answered I has
        committed or rolled back, or found no transaction.
        """
        if debt == OWE_SYNC:
            if self.status == STATUS_IDLE and self.pins & PIN_PIPELINE:
                return
        elif self.status == STATUS_TRANSACTION:
            self.pins |= PIN_PIPELINE
            return
        self.pins &= ~PIN_PIPELINE
        self.executed = False

    def _complete(self, data: bytes, pos: i64, end: i64) -> None:
        """Settle an Execute, and pin for the tags that leave session state behind."""
        debt = self._first()
        if debt == OWE_EXECUTE:
            self.executed = True
            self._pop()
        elif debt != OWE_QUERY:
            self.fault = "CommandComplete out of turn"
            return
        self.copy_in = False
        self.sync_dropped = False
        if self.swallowing or not may_mark(data, pos + 5, end):
            return
        tag = data[pos + 5 : end - 1]
        marks = marks_of_tag(tag)
        if marks & (PIN_SET | TO_RESET):
            self.has_set = True
        elif marks == ROLLED_BACK and not self.has_set:
            marks = 0
        self.pins |= marks
        if tag == b"DEALLOCATE ALL" or tag == b"DISCARD ALL":
            self.shelf.clear()
            self.cleared = True
            self.discarded = tag == b"DISCARD ALL" and self._last_asked(debt)
            self.remarks = True
        elif tag == b"DEALLOCATE" and not (debt == OWE_QUERY and self.queue[self.head] & NOTED):
            # It may have been a copy of others, by the proxy's name for it.
            self.shelf.distrust()

    def _last_asked(self, debt: int) -> bool:
        """Say whether the client has asked nothing behind the statement whose CommandComplete is being read."""
        if debt == OWE_QUERY:
            return self.head + 1 == len(self.queue)
        return self.head + 1 >= len(self.queue) and (self.head == len(self.queue) or self.queue[self.head] == OWE_SYNC)

    def _error(self, data: bytes, pos: i64, end: i64) -> None:
        debt = self._first()
        noted = self.head < len(self.queue) and self.queue[self.head] & NOTED != 0
        if self.swallowing_own and debt != 0:
            self.swallowed_error = data[pos:end]
        else:
            self._note_error(data, pos, end)
            if self.swallowing:
                if not noted and sqlstate_of(data, pos + 5, end) == b"26000":
                    self.shelf.distrust()
                self.answer = self.shelf.notes[0].told(data[pos:end]) if noted else data[pos:end]
        if noted and debt == OWE_QUERY:
            self.shelf.undo_one(self.shelf.notes[0])
        if self.sync_dropped and (debt == OWE_EXECUTE or debt == OWE_QUERY):
            # Whether the server took that Sync as part of the copy or answers it (in extended mode: as the end of
            # the skipping) depends on which came first inside it, and nothing on the wire tells.
            self.doubt = True
            self.pins |= PIN_DOUBT
            return
        self.copy_in = False
        if debt == 0 or debt <= OWE_FUNCTION:
            return
        self._drop_to_sync()

    def _note_error(self, data: bytes, pos: i64, end: i64) -> None:
        self.remarks = True
        if self.has_set:
            self.pins |= ROLLED_BACK
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(sqlstate_of(data, pos + 5, end))
        if b"\0VFATAL\0" in data[pos : min(end, pos + 64)]:
            self.fatal = True

    def _copy_in_begins(self) -> None:
        """Enter copy-in: Syncs already forwarded ahead of the end of the data are ignored by the server."""
        debt = self._first()
        if debt != OWE_QUERY and debt != OWE_EXECUTE:
            self.fault = "CopyInResponse out of turn"
            return
        kept: list[int] = [self.queue[self.head]]
        ended = False
        for i in range(self.head + 1, len(self.queue)):
            entry = self.queue[i]
            if ended:
                kept.append(entry)
            elif entry == COPY_END:
                ended = True
            elif entry & 63 == OWE_SYNC or entry == OWE_REFUSED_FLUSH:
                self.sync_dropped = True
            else:
                # Anything else inside a copy is an error of the client's that eats the message.
                self.doubt = True
                self.pins |= PIN_DOUBT
                kept.append(entry)
        self.queue = kept
        self.head = 0
        self.copy_in = not ended
        self.remarks = True
        self.open_batch = self.open_batch or (debt == OWE_EXECUTE and OWE_SYNC not in kept)

    def _parameter(self, data: bytes, pos: i64, end: i64) -> None:
        body = data[pos + 5 : end]
        parts = body.split(b"\0")
        if len(parts) != 3 or parts[2]:
            self.fault = "a malformed ParameterStatus"
            return
        old = self.params.get(parts[0])
        if old != parts[1]:
            if not self.swallowing:
                self.before.setdefault(parts[0], b"" if old is None else old)
                self.pins |= REPORTED
            self.params[parts[0]] = parts[1]
            self.params_changed = True
            self.remarks = True
