"""A client's messages while it has no backend: what needs one, and what is dropped.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from proxy.session.markers import known_in_advance
from proxy.session.replies import HOLD_LIMIT
from proxy.session.wellformed import is_possible
from proxy.wire.framing import (
    F_BIND,
    F_COPY_DATA,
    F_COPY_DONE,
    F_COPY_FAIL,
    F_FLUSH,
    F_FUNCTION,
    F_PARSE,
    F_QUERY,
    F_SYNC,
    F_TERMINATE,
    frame_size,
)

KNOWN_TYPES: Final = b"BCDEFHPQSXcdf"
IMPOSSIBLE_LENGTH: Final = "a message with an impossible length"
UNKNOWN_TYPE: Final = "an unknown message type"


class Unlinked:
    """What of a client's messages needs no backend; the rest is judged by `FrontState`."""

    def __init__(self) -> None:
        self.left: i64 = 0
        self.dropping: bool = False
        self.skip_to_sync: bool = False
        self.answered: bool = False

    def whole(self, data: bytes) -> bool:
        """Say whether `data` begins with something that can be judged now, so that a backend is worth taking."""
        end: i64 = len(data)
        if end < 5:
            return False
        if data[0] == F_COPY_DATA:
            return True
        size: i64 = frame_size(data, 0)
        return 1 + size <= end or end >= HOLD_LIMIT or not is_possible(data[0], size)

    def begins_request(self, data: bytes) -> bool:
        """Say whether `data` begins with a whole Query, Parse or Bind and nothing is on, as nearly every chunk does."""
        end: i64 = len(data)
        if end < 5 or (data[0] != F_QUERY and data[0] != F_PARSE and data[0] != F_BIND) or self.is_discarding():
            return False
        size: i64 = frame_size(data, 0)
        return 4 <= size < end

    def is_discarding(self) -> bool:
        """Say whether what comes next belongs to a request that the proxy has refused: see `discard`."""
        return self.dropping or self.skip_to_sync

    def state_in_advance(self, data: bytes) -> i64:
        """Return the pins that the first message of `data`, if it has come whole, is known to lead to."""
        if len(data) < 6 or frame_size(data, 0) + 1 > len(data) or (data[0] != F_QUERY and data[0] != F_PARSE):
            return 0
        start: i64 = 5 if data[0] == F_QUERY else data.find(b"\0", 5) + 1
        return known_in_advance(data[start : frame_size(data, 0) + 1])

    def fault_of(self, data: bytes) -> str:
        """Say what is wrong with the header at the beginning of `data` (5 bytes or more); empty if nothing is."""
        size: i64 = frame_size(data, 0)
        if not is_possible(data[0], size):
            return IMPOSSIBLE_LENGTH
        return "" if data[0] in KNOWN_TYPES else UNKNOWN_TYPE

    def discard(self, data: bytes) -> i64:
        """Drop from the beginning of `data` what needs no backend, and return how many bytes that was.

        Those are the messages of a copy that is over (the server ignores them too), a Flush of nothing, and, after
        the proxy itself has refused a request in extended mode (`skip_to_sync`), everything up to the Sync, which is
        left for the caller (`ends_skipping`).  The rest begins with a message for a backend, is incomplete, or is
        Terminate.
        """
        pos: i64 = 0
        end: i64 = len(data)
        if self.dropping:
            if self.left > end:
                self.left -= end
                return end
            pos = self.left
            self.left = 0
            self.dropping = False
        while pos + 5 <= end:
            kind: i64 = data[pos]
            size: i64 = frame_size(data, pos)
            if not is_possible(kind, size) or kind == F_TERMINATE:
                break
            idle_copy: bool = kind == F_COPY_DATA or kind == F_COPY_DONE or kind == F_COPY_FAIL
            idle: bool = idle_copy or (kind == F_FLUSH and size == 4)
            if not idle and (not self.skip_to_sync or kind == F_SYNC):
                break
            after: i64 = pos + 1 + size
            if after > end:
                self.left = after - end
                self.dropping = True
                return end
            pos = after
        return pos

    def refuse(self, data: bytes) -> i64:
        """Drop the request at the beginning of `data`, which the proxy has answered with an error of its own.

        Returns how many bytes were dropped.  A Query or FunctionCall, or a malformed Sync, is dropped alone, and the
        caller answers ReadyForQuery (`answered`); of an extended request all is dropped up to its Sync, by `discard`.
        """
        kind: i64 = data[0]
        self.answered = kind == F_QUERY or kind == F_FUNCTION or (kind == F_SYNC and frame_size(data, 0) != 4)
        if not self.answered:
            self.skip_to_sync = True
            return 0
        end: i64 = len(data)
        size: i64 = frame_size(data, 0)
        if 1 + size > end:
            self.left = 1 + size - end
            self.dropping = True
            return end
        return 1 + size

    def ends_skipping(self, data: bytes) -> bool:
        """End what `refuse` began, at the Sync that `data` begins with; say whether a ReadyForQuery answers it.

        One that is malformed needs a backend, for its error.
        """
        self.skip_to_sync = False
        return frame_size(data, 0) == 4
