"""The queue of what a backend owes: every message that was forwarded or injected, until its reply has come.

The rules are those of the PostgreSQL documentation, "Message Flow", and of `PostgresMain()`, which decides what a
server skips after an error and while it copies in.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from proxy.session.statements import NOTE_UNNAMED, Note, Shelf

# What a forwarded message owes.
OWE_QUERY: Final = 1
OWE_SYNC: Final = 2
OWE_FUNCTION: Final = 3
OWE_PARSE: Final = 4
OWE_BIND: Final = 5
OWE_DESCRIBE: Final = 6
OWE_EXECUTE: Final = 7
OWE_CLOSE: Final = 8
OWE_CLOSE_STATEMENT: Final = 9
COPY_END: Final = 10
"""Not a debt: the place in the queue where CopyDone or CopyFail was forwarded before CopyInResponse was seen."""
OWE_PARSE_NAMED: Final = 11
"""Parse of a named statement; `OWE_PARSE` is that of the unnamed one, or one of the proxy's own."""
OWE_REFUSAL: Final = 12
"""A message that the server refuses for its form: an error, and nothing else."""
OWE_REFUSED_FLUSH: Final = 13
"""The same of a Flush, which a server that copies in ignores, whatever its form."""
OWE_CLOSE_UNNAMED: Final = 14
SWALLOW: Final = 64
"""Added to a debt whose replies are for the proxy and not for the client."""
NOTED: Final = 128
"""Added to a debt whose reply says something of a named statement: the first of `Shelf.notes` is its."""

# What a client's chunk may be at first glance (see `proxy.session.glance`).
ASKS_MORE: Final = 0
"""Anything else."""
ASKS_QUERY: Final = 1
"""One Query."""
ASKS_PIPELINE: Final = 2
"""Parse of the unnamed statement, Bind of it, Describe and Execute of the unnamed portal, Sync."""
ASKS_UNDESCRIBED: Final = 3
"""The same without Describe."""

GLANCE_LEAST: Final = 12
"""Bytes of a chunk from which on it is worth a glance."""
MANY_FRAMES: Final = 512
"""Bytes of a chunk from which on its frames are skipped together: one call costs as much as several frames."""

# What the usual requests owe.
PIPELINE: Final = [OWE_PARSE, OWE_BIND, OWE_DESCRIBE, OWE_EXECUTE, OWE_SYNC]
UNDESCRIBED: Final = [OWE_PARSE, OWE_BIND, OWE_EXECUTE, OWE_SYNC]
BOUND: Final = [OWE_BIND, OWE_EXECUTE, OWE_SYNC]
BOUND_DESCRIBED: Final = [OWE_BIND, OWE_DESCRIBE, OWE_EXECUTE, OWE_SYNC]

# What a server's chunk may be at first glance: rows, CommandComplete and ReadyForQuery, and what stands before them.
ANSWER: Final = 1
ANSWER_PARSED: Final = 2
ANSWER_BOUND: Final = 4
ANSWER_DESCRIBED: Final = 8

# Why a client's messages are held back although it has a backend.
HALT_NOT: Final = 0
HALT_QUIET: Final = 1
HALT_INJECTED: Final = 2


class ReplyQueue:
    """What is owed, in the order of the messages, with what the replies say of statements (`shelf`)."""

    def __init__(self, limit: int) -> None:
        self.queue: list[int] = []
        self.head: i64 = 0
        self.shelf: Shelf = Shelf(limit)
        self.own: i64 = 0
        self.halted: int = HALT_NOT
        self.resumed: bool = False
        self.swallowing_own: bool = False
        self.swallowed_error: bytes = b""
        self.unnamed_pasts: list[bytes] = []
        self.unnamed_helds: list[bool] = []
        self.unnamed_held: bool = False
        self.unnamed_back: bool = False
        self.unnamed_before: bytes = b""
        self.unnamed_failed: bool = False
        self.description: bytes = b""
        self.closing_names: list[bytes] = []
        self.skipping: bool = False
        self.copy_in: bool = False
        self.sync_dropped: bool = False
        self.open_batch: bool = False
        self.executed: bool = False
        self.doubt: bool = False
        self.remarks: bool = False
        self.unnamed_owner: i64 = 0

    def owes(self) -> bool:
        """Say whether any reply is outstanding."""
        return self.head < len(self.queue)

    def does_its_last(self) -> bool:
        """Say whether at most one request is outstanding, up to the ReadyForQuery that ends it."""
        for at in range(self.head, len(self.queue) - 1):
            if self.queue[at] & 63 <= OWE_FUNCTION and not self.doubt:
                return False
        return True

    def owes_command(self) -> bool:
        """Say whether the replies of a command are outstanding, which may turn out to be a COPY."""
        for i in range(self.head, len(self.queue)):
            debt = self.queue[i] & 63
            if debt == OWE_QUERY or debt == OWE_EXECUTE or debt == OWE_FUNCTION:
                return True
        return False

    def is_at_rest(self) -> bool:
        """Say whether nothing is owed, and nothing on that a message might be part of."""
        return len(self.queue) == 0 and not (self.open_batch or self.copy_in or self.doubt or self.skipping)

    def owes_just(self, answer: int) -> bool:
        """Say whether one request is outstanding, in whose replies stands what the bits of `answer` say."""
        if not answer & (ANSWER_PARSED | ANSWER_BOUND):
            return len(self.queue) == 1 and self.queue[0] == OWE_QUERY
        if not answer & ANSWER_BOUND:
            return False
        if answer & ANSWER_PARSED:
            return self.queue == (PIPELINE if answer & ANSWER_DESCRIBED else UNDESCRIBED)
        return self.queue == (BOUND_DESCRIBED if answer & ANSWER_DESCRIBED else BOUND)

    def will_answer(self) -> bool:
        """Say whether replies are outstanding that come without anything more being sent."""
        return self.owes() and not (self.open_batch or self.copy_in or self.doubt or self.skipping)

    def owe_own(self, debt: int, note: Note) -> None:
        """Note a message of the proxy's own about a statement, whose reply is swallowed unless it is an error."""
        self.queue.append(debt | SWALLOW | NOTED)
        self.shelf.notes.append(note)
        self.own += 1

    def owe_noted(self, debt: int, note: Note) -> None:
        """Note a forwarded message whose reply says what becomes of a client's name."""
        self.queue.append(debt | NOTED)
        self.shelf.notes.append(note)

    def quiet(self) -> bool:
        """Say whether all replies are in that come without a Sync, or none can be told any more."""
        return self.head == len(self.queue) or self.copy_in or self.doubt

    def resumes(self) -> bool:
        """Say once that what the client's messages were held back for (`halted`) is over."""
        if self.halted == HALT_QUIET and self.quiet():
            self.halted = HALT_NOT
            self.resumed = True
        resumed = self.resumed
        self.resumed = False
        return resumed

    def owe(self, debt: int) -> None:
        """Note that a message was forwarded which owes `debt`; nothing is owed while the server skips to Sync."""
        # A queue that cannot be followed any more would only grow.
        if not self.skipping and not self.doubt:
            self.queue.append(debt)

    def inject_query(self) -> None:
        """Note a Query of the proxy's own, whose replies are swallowed."""
        self.queue.append(OWE_QUERY | SWALLOW)
        self.swallowed_error = b""
        self.swallowing_own = True
        self.unnamed_owner = 0

    def inject_question(self) -> None:
        """Note a statement of the proxy's own by the extended protocol: see `question_messages`."""
        for debt in (OWE_CLOSE, OWE_PARSE, OWE_BIND, OWE_EXECUTE, OWE_CLOSE, OWE_CLOSE, OWE_SYNC):
            self.queue.append(debt | SWALLOW)
            self.own += 1
        self.swallowed_error = b""
        self.swallowing_own = True

    def owe_change(self, debt: int, before: bytes, mark: i64) -> None:
        """Note a message of the client's that ends or replaces its unnamed statement: see `note_change`."""
        if not self.skipping and not self.doubt:
            self.queue.append(debt)
            self.note_change(before, mark)

    def note_change(self, before: bytes, mark: i64) -> None:
        """Note what the client's unnamed statement is before a message that ends or replaces it, with its mark.

        `unnamed_pasts` has one entry for each of those messages that is outstanding, in order, and `unnamed_helds` says
        whether this backend had that statement: so what the server skips can be undone, whatever is behind it.
        """
        self.unnamed_pasts.append(before)
        self.unnamed_helds.append(self.unnamed_owner == mark)

    def forwarded_sync(self) -> None:
        """Note a forwarded Sync, which a server that copies in ignores."""
        if self.doubt:
            return
        if self.copy_in:
            self.sync_dropped = True
            return
        self.skipping = False
        self.open_batch = False
        self.queue.append(OWE_SYNC)

    def forwarded_refused_flush(self) -> None:
        """Note a forwarded Flush that the server refuses for its form, unless it copies in."""
        if self.copy_in:
            # As with Sync: if the copy fails, it depends on which came first.
            self.sync_dropped = True
        else:
            self.owe(OWE_REFUSED_FLUSH)

    def forwarded_query(self) -> None:
        """Note a forwarded Query or FunctionCall, which ends the batch before it: see `BackState._weigh_status`."""
        if not self.skipping:
            self.open_batch = False

    def forwarded_copy_end(self) -> None:
        """Note a forwarded CopyDone or CopyFail; before CopyInResponse is seen its place in the queue matters."""
        if self.copy_in:
            self.copy_in = False
        elif self.head < len(self.queue) and not self.doubt:
            self.queue.append(COPY_END)

    def _next_is_own(self) -> bool:
        return self.head < len(self.queue) and (self.queue[self.head] & SWALLOW) != 0

    def _first(self) -> int:
        if self.head < len(self.queue):
            return self.queue[self.head] & 63
        return 0

    def _pop(self) -> None:
        entry: i64 = self.queue[self.head]
        if len(self.unnamed_pasts) != 0 and changes_unnamed(entry):
            self.unnamed_pasts.pop(0)
            self.unnamed_helds.pop(0)
        if entry >= SWALLOW:
            self._settle_own(entry)
        self.head += 1
        while self.head < len(self.queue) and self.queue[self.head] == COPY_END:
            self.head += 1
        if self.head == len(self.queue):
            self.queue.clear()
            self.head = 0
            if self.halted:
                self.remarks = True
        elif self.head >= 4096:
            del self.queue[: self.head]
            self.head = 0

    def _settle_own(self, entry: int) -> None:
        """Take note of the reply to a message that the proxy has sent or looked into."""
        if entry & SWALLOW and entry & 63 != OWE_QUERY:
            self.own -= 1
        if entry & NOTED and self.shelf.settle(self.description):
            self._end_injection()

    def _end_injection(self) -> None:
        self.halted = HALT_NOT
        self.resumed = True
        self.remarks = True

    def _drop_to_sync(self) -> None:
        """Forget what the server skips after an error in extended mode: all up to the next Sync."""
        parse_failed = self.queue[self.head] & ~NOTED == OWE_PARSE
        if self.queue[self.head] & NOTED and self.shelf.notes[0].kind == NOTE_UNNAMED:
            # What it was to replace may still be there.
            self.unnamed_owner = 0
        changes = 0
        notes = 0
        while self.head < len(self.queue):
            entry = self.queue[self.head]
            debt = entry & 63
            if debt == OWE_SYNC:
                break
            if entry & NOTED:
                notes += 1
            if entry & SWALLOW and debt != OWE_QUERY:
                self.own -= 1
            if debt == OWE_CLOSE_STATEMENT:
                self.closing_names.pop(0)
            elif changes_unnamed(entry):
                changes += 1
            self.head += 1
        if notes and self.shelf.undo(notes):
            self._end_injection()
        if changes:
            self._undo_changes(changes, parse_failed)
        if self.head < len(self.queue):
            return
        self.queue.clear()
        self.head = 0
        self.skipping = True

    def _undo_changes(self, count: int, failed: bool) -> None:
        """Take back the first `count` changes of the unnamed statement; `failed` is whether the first was refused.

        Behind a Parse that was refused there is none, or one that cannot be told.
        """
        pasts = self.unnamed_pasts
        before = b"" if failed else pasts[0]
        held = not failed and self.unnamed_helds[0]
        del pasts[:count]
        del self.unnamed_helds[:count]
        self.unnamed_failed = self.unnamed_failed or failed or len(pasts) != 0
        if len(pasts) != 0:
            pasts[0] = before
            self.unnamed_helds[0] = held
            return
        # The backend may still have the statement of another client.
        self.unnamed_owner = 0
        self.unnamed_back = True
        self.unnamed_before = before
        self.unnamed_held = held


def changes_unnamed(entry: i64) -> bool:
    """Say whether a debt is that of a message of the client's which ends or replaces its unnamed statement."""
    if entry & SWALLOW:
        return False
    debt: i64 = entry & 63
    return debt == OWE_QUERY or debt == OWE_PARSE or debt == OWE_CLOSE_UNNAMED
