"""Replication connections: which commands a login may give on one.

On such a connection a client's simple queries are commands of the replication grammar or, where it is connected to a
database, SQL.  PostgreSQL lets a connection to one database give the commands of physical replication as well, with
which the whole server can be read: so whoever may replicate one database only is followed, message by message.

Source: PostgreSQL documentation, "Streaming Replication Protocol"; `repl_gram.y` and `repl_scanner.l` for the spelling
of commands, `exec_replication_command()` for what counts as one.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

import re
from typing import Final

from mypy_extensions import i64

from proxy.wire.framing import F_QUERY, F_TERMINATE, frame_size

MAX_FRAME: Final = 0x3FFFFFFF
"""The longest message a client may send; PostgreSQL's own limit (`PQ_LARGE_MESSAGE_LIMIT`)."""
LOOK: Final = 4096
"""Bytes of a query that are looked at: a command of replication stands at its very beginning."""

_SPACE: Final = rb"[ \t\n\r\f\v]"
_SLOT: Final = rb'(?:[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*|"(?:[^"]|"")+")'
_FIRST_WORD: Final = re.compile(_SPACE + rb"*([A-Za-z_]*)")
_LOGICAL_START: Final = re.compile(
    _SPACE + rb"*START_REPLICATION" + _SPACE + rb"+SLOT" + _SPACE + rb"+" + _SLOT + _SPACE + rb"+LOGICAL" + _SPACE,
    re.IGNORECASE,
)
_LOGICAL_SLOT: Final = re.compile(
    _SPACE
    + rb"*CREATE_REPLICATION_SLOT"
    + _SPACE
    + rb"+"
    + _SLOT
    + _SPACE
    + rb"+(?:TEMPORARY"
    + _SPACE
    + rb"+)?LOGICAL"
    + _SPACE,
    re.IGNORECASE,
)
_NEVER: Final = frozenset({b"BASE_BACKUP", b"TIMELINE_HISTORY", b"UPLOAD_MANIFEST"})

REFUSAL: Final = (
    b"DO $pgtenant$BEGIN RAISE EXCEPTION 'this login may replicate its own database only, not the whole server' "
    b"USING ERRCODE = '42501', HINT = 'Physical replication needs a login with replication = server.'; END$pgtenant$"
)
"""What the server is asked in place of a command that is refused, so that the refusal is one of its replies."""


def is_physical(text: bytes) -> bool:
    """Say whether a query is, or may be, a command of physical replication; `text` are its first `LOOK` bytes."""
    found = _FIRST_WORD.match(text)
    word = b"" if found is None else found.group(1).upper()
    if word == b"START_REPLICATION":
        return _LOGICAL_START.match(text) is None
    if word == b"CREATE_REPLICATION_SLOT":
        return _LOGICAL_SLOT.match(text) is None
    if word in _NEVER:
        return True
    # A first word that has not ended where the look ends, or not begun, might be any.
    return found is not None and found.end() >= LOOK


class CommandFilter:
    """Follows the messages of one client; `limited` is set where it may give the commands of logical replication only.

    `goodbye` is set once the client has said Terminate, `fault` when it has sent what cannot be a message: nothing more
    may be forwarded then.
    """

    def __init__(self, *, limited: bool) -> None:
        self.limited: bool = limited
        self.goodbye: bool = False
        self.fault: str = ""
        self._left: i64 = 0
        self._dropping: bool = False
        self._held: bytes = b""

    def pass_on(self, data: bytes) -> bytes:
        """Return what to forward of the client's next bytes; the beginning of a message may be held back until more
        of it has come, at most `LOOK` bytes and its header.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        end: i64 = len(data)
        pos: i64 = min(self._left, end)
        start: i64 = pos if self._dropping else 0
        self._left -= pos
        if self._left == 0:
            self._dropping = False
        pieces: list[bytes] = []
        while pos < end:
            if end - pos < 5:
                break
            size: i64 = frame_size(data, pos)
            if size < 4 or size > MAX_FRAME:
                self.fault = "a message with an impossible length"
                return b"".join([*pieces, data[start:pos]])
            if data[pos] == F_TERMINATE:
                self.goodbye = True
                return b"".join([*pieces, data[start:pos]])
            after: i64 = pos + 1 + size
            if self.limited and data[pos] == F_QUERY:
                looked: i64 = min(after, pos + 5 + LOOK)
                if looked > end:
                    break
                if is_physical(data[pos + 5 : looked]):
                    pieces.append(data[start:pos])
                    pieces.append(b"Q" + (len(REFUSAL) + 5).to_bytes(4, "big") + REFUSAL + b"\0")
                    start = min(after, end)
                    self._dropping = after > end
            if after > end:
                self._left = after - end
                pos = end
            else:
                pos = after
        if pos < end:
            self._held = data[pos:]
        if not pieces and start == 0 and pos == end:
            return data
        pieces.append(data[start:pos])
        return b"".join(pieces)
