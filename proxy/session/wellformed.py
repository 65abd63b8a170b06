"""Which messages PostgreSQL refuses for their form, although their frames are whole.

Such a message does nothing: the server reads it to its end before it acts on any of it.  One of the extended protocol
is answered with an error, and all up to the next Sync is skipped, even where it would owe no reply itself (Flush).
Bind, Execute, Sync and FunctionCall are not judged here: nothing is noted of what they say beyond what the server
has read by then, and refused or not they owe the same.

Sources: `SocketBackend()` and `PostgresMain()` (postgres.c), `pq_getmsgstring()` and `pq_getmsgend()` (pqformat.c), the
same from PostgreSQL 14 to 18.  This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from proxy.session.glance import end_of_text
from proxy.wire.framing import (
    F_BIND,
    F_CLOSE,
    F_COPY_DATA,
    F_DESCRIBE,
    F_FLUSH,
    F_FUNCTION,
    F_PARSE,
    F_QUERY,
    find_zero,
)

LARGE_MOST: Final = 0x3FFFFFFE
"""The largest length field of a message from a client; PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT`."""
SMALL_MOST: Final = 10_000
"""The same of the types that are short by nature; PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT`."""

_END: Final = end_of_text

_P: Final = 0x50
_S: Final = 0x53


def is_possible(kind: i64, size: i64) -> bool:
    """Say whether a message of this type may have that length field; PostgreSQL closes the connection where not."""
    if size <= SMALL_MOST:
        return size >= 4
    if size > LARGE_MOST:
        return False
    return kind == F_QUERY or kind == F_PARSE or kind == F_BIND or kind == F_COPY_DATA or kind == F_FUNCTION


def is_malformed(kind: i64, data: bytes, pos: i64, after: i64) -> bool:
    """Say whether a message that has come whole, from `pos` to `after`, is refused before anything is done."""
    if kind == F_QUERY:
        return int(_END(data, pos + 5, after)) != after - 1
    if kind == F_PARSE:
        name_end: i64 = find_zero(data, pos + 5, after)
        if name_end < 0:
            return True
        stop: i64 = _END(data, name_end + 1, after)
        if stop < 0 or after - stop < 3:
            return True
        count: i64 = (i64(data[stop + 1]) << 8) | i64(data[stop + 2])
        return after != stop + 3 + 4 * count
    if kind == F_DESCRIBE or kind == F_CLOSE:
        if after - pos < 7 or (data[pos + 5] != _S and data[pos + 5] != _P):
            return True
        return find_zero(data, pos + 6, after) != after - 1
    return kind == F_FLUSH and after - pos != 5
