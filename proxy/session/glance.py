"""What a whole chunk of bytes is at first glance, where it is one of the few that nearly all chunks are.

`FrontState` and `BackState` judge messages one by one, with all that may be on.  These functions recognise, in one
pass, the usual chunks: one statement, its answer, rows after rows.  They know no state: whoever calls them has made
sure that none matters.  What they do not recognise is judged message by message; a test holds both to one outcome.

Compiled by Cython (ADR 4), with its types of C in the `.pxd` beside it; it also runs interpreted.  Sources are those of
`proxy.session.relay` and `proxy.session.replies`.
"""

from __future__ import annotations

import re

from mypy_extensions import i64

try:
    import cython
except ModuleNotFoundError:
    from proxy.wire import uncompiled as cython

from proxy.session.reply_queue import (
    ANSWER,
    ANSWER_BOUND,
    ANSWER_DESCRIBED,
    ANSWER_PARSED,
    ASKS_MORE,
    ASKS_PIPELINE,
    ASKS_QUERY,
    ASKS_UNDESCRIBED,
)
from proxy.session.texts import may_begin_with_marker
from proxy.wire.framing import (
    B_BIND_COMPLETE,
    B_COMMAND_COMPLETE,
    B_DATA_ROW,
    B_NO_DATA,
    B_PARSE_COMPLETE,
    B_READY,
    B_ROW_DESCRIPTION,
    F_BIND,
    F_DESCRIBE,
    F_EXECUTE,
    F_PARSE,
    F_QUERY,
    F_SYNC,
    STATUS_FAILED,
    STATUS_IDLE,
    STATUS_TRANSACTION,
)

if cython.compiled:
    from cython.cimports.libc.string import memchr

_MARKERS = re.compile(rb"(?is)mp|ld|dv|[_\x7f]c|&\"|;.")
"""A pair of letters that each word of session state has (see `proxy.session.texts`), or another statement."""


def skip_alike(data: bytes, pos: i64) -> int:
    """Return where the run of whole messages ends that have the type of the first one, which begins at `pos`."""
    text = data
    end = len(data)
    kind = text[pos]
    while end - pos > 4 and text[pos] == kind and text[pos + 1] == 0:
        size = (text[pos + 2] << 16) | (text[pos + 3] << 8) | text[pos + 4]
        if size < 4 or size >= end - pos:
            break
        pos += 1 + size
    return pos


def glance_request(data: bytes) -> int:
    """Say whether a client's chunk is one whole request whose statement, by its text, leaves no session state.

    Such a statement is one, begins with a letter, is no SET, RESET, DEALLOCATE or DISCARD, no DROP, ALTER or CREATE, no
    UPDATE of the view of settings, and has none of the pairs of letters that the words of session state have.
    """
    text = data
    end = len(data)
    if end < 12 or text[1] != 0:
        return ASKS_MORE
    after = 1 + ((text[2] << 16) | (text[3] << 8) | text[4])
    if text[0] == F_QUERY:
        if after == end and end_of_text(data, 5, end) == end - 1 and _is_harmless(data, 5, end - 1):
            return ASKS_QUERY
        return ASKS_MORE
    if text[0] != F_PARSE or text[5] != 0 or after < 12 or after > end - 10:
        return ASKS_MORE
    stop = end_of_text(data, 6, after)
    if stop < 0 or after - stop < 3 or after - stop - 3 != ((text[stop + 1] << 8) | text[stop + 2]) << 2:
        return ASKS_MORE
    pos = after
    if text[pos] != F_BIND or text[pos + 1] != 0 or text[pos + 5] != 0 or text[pos + 6] != 0:
        return ASKS_MORE
    size = (text[pos + 2] << 16) | (text[pos + 3] << 8) | text[pos + 4]
    if size < 6:
        return ASKS_MORE
    pos += 1 + size
    answer = ASKS_UNDESCRIBED
    if end - pos == 22 and text[pos] == F_DESCRIBE:
        if not _has_size(data, pos, 6) or text[pos + 5] != 0x50 or text[pos + 6] != 0:
            return ASKS_MORE
        answer = ASKS_PIPELINE
        pos += 7
    if end - pos != 15 or text[pos] != F_EXECUTE or not _has_size(data, pos, 9) or text[pos + 5] != 0:
        return ASKS_MORE
    if text[pos + 10] != F_SYNC or not _has_size(data, pos + 10, 4):
        return ASKS_MORE
    return answer if _is_harmless(data, 6, stop) else ASKS_MORE


def glance_reply(data: bytes) -> int:
    """Say whether a server's chunk is the whole answer to one statement that leaves no session state, and to what.

    It ends with ReadyForQuery.  The answer is 0 where it is not that, else bits (`ANSWER`) that say which replies stand
    before the rows.
    """
    text = data
    end = len(data)
    if end < 6 or text[end - 6] != B_READY or not _has_size(data, end - 6, 5):
        return 0
    status = text[end - 1]
    if status != STATUS_IDLE and status != STATUS_TRANSACTION and status != STATUS_FAILED:
        return 0
    end -= 6
    answer = ANSWER
    pos = 0
    while end - pos > 4 and text[pos + 1] == 0:
        kind = text[pos]
        size = (text[pos + 2] << 16) | (text[pos + 3] << 8) | text[pos + 4]
        if size < 4 or size >= end - pos:
            break
        if kind == B_COMMAND_COMPLETE:
            if pos + 1 + size == end and size > 8 and _leaves_nothing(data, pos + 5):
                return answer
            break
        if kind == B_DATA_ROW:
            pass
        elif kind == B_PARSE_COMPLETE and answer == ANSWER:
            answer |= ANSWER_PARSED
        elif kind == B_BIND_COMPLETE and answer <= ANSWER | ANSWER_PARSED:
            answer |= ANSWER_BOUND
        elif (kind == B_ROW_DESCRIPTION or kind == B_NO_DATA) and answer < ANSWER_DESCRIBED:
            answer |= ANSWER_DESCRIBED
        else:
            break
        pos += 1 + size
    return 0


def end_of_text(data: bytes, start: i64, end: i64) -> int:
    """Return where the first byte of zero is, -1 if there is none."""
    if not cython.compiled:
        return data.find(b"\0", start, end)
    text = cython.declare(cython.p_char, data)
    stop = cython.declare(cython.p_char, cython.cast(cython.p_char, memchr(text + start, 0, end - start)))
    return -1 if stop == cython.NULL else stop - text


def _has_size(data: bytes, pos: i64, size: i64) -> bool:
    text = data
    return text[pos + 1] == 0 and text[pos + 2] == 0 and text[pos + 3] == 0 and text[pos + 4] == size


def _is_harmless(data: bytes, start: i64, stop: i64) -> bool:
    text = data
    if stop - start < 3:
        return False
    first = text[start] | 0x20
    third = text[start + 2] | 0x20
    if first <= 0x61 or first > 0x7A or first == 0x64 or (first == 0x63 and text[start + 1] | 0x20 == 0x72):
        return False
    if (first == 0x73 and third == 0x74) or (first == 0x72 and third == 0x73):
        return False
    if first == 0x75 and may_begin_with_marker(data, start, stop):
        return False
    if not cython.compiled:
        return _MARKERS.search(data, start, stop) is None
    found = 0
    for at in range(start + 1, stop):
        found |= (text[at - 1] == 0x3B) | (
            (((text[at - 1] | 0x20) == 0x6D) & ((text[at] | 0x20) == 0x70))
            | (((text[at - 1] | 0x20) == 0x6C) & ((text[at] | 0x20) == 0x64))
            | (((text[at - 1] | 0x20) == 0x64) & ((text[at] | 0x20) == 0x76))
            | (((text[at - 1] | 0x20) == 0x7F) & ((text[at] | 0x20) == 0x63))
            | ((text[at - 1] == 0x26) & (text[at] == 0x22))
        )
    return found == 0


def _leaves_nothing(data: bytes, tag: i64) -> bool:
    """Say whether the command tag (3 bytes or more) is one of the common ones that leave nothing: SELECT, UPDATE."""
    text = data
    first = text[tag]
    if first == 0x53:
        return text[tag + 2] != 0x54
    if first == 0x44:
        return text[tag + 2] == 0x4C
    if first == 0x55:
        return text[tag + 1] == 0x50
    if first == 0x43:
        return text[tag + 1] == 0x4F
    return first == 0x42 or first == 0x49 or first == 0x46
