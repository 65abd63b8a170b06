"""What the text of a statement says of prepared statements, which SQL calls by the names that the protocol gives them.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

import re
from typing import Final

from mypy_extensions import i64

ALL_STATEMENTS: Final = b"\0"
"""What `deallocated` answers for all statements; no statement can be called that."""

_DEALLOCATE: Final = re.compile(
    rb"\s*(?:DEALLOCATE\s+(?:PREPARE\s+)?(?:(?P<all>ALL)|(?P<plain>[a-z_\x80-\xff][a-z0-9_$\x80-\xff]*)"
    rb'|"(?P<quoted>(?:[^"]|"")+)")|(?P<discard>DISCARD\s+ALL))\s*;?\s*\Z',
    re.IGNORECASE,
)
LONGEST_DEALLOCATE: Final = 400
_WORDS_OF_SQL: Final = (b"execute", b"deallocate", b"prepare", b"discard")


def may_deallocate(data: bytes, pos: i64) -> bool:
    """Say whether a statement begins with a D, or with something that may stand before it."""
    if pos >= len(data):
        return False
    first: i64 = data[pos]
    return first == 0x44 or first == 0x64 or (first <= 0x20 and first != 0)


def text_of(data: bytes, pos: i64) -> bytes:
    """Return the text that begins at `pos`, without its zero byte."""
    stop: i64 = data.find(b"\0", pos)
    return data[pos:stop] if stop > pos else b""


def deallocated(text: bytes) -> bytes:
    """Read which statement a DEALLOCATE or DISCARD ALL takes away; empty for any other text.

    `text` is without its zero byte.  A name without quotes is folded to lower case as PostgreSQL does it.
    """
    if len(text) > LONGEST_DEALLOCATE:
        return b""
    found = _DEALLOCATE.match(text)
    if found is None:
        return b""
    if found["all"] is not None or found["discard"] is not None:
        return ALL_STATEMENTS
    plain: bytes | None = found["plain"]
    if plain is not None:
        return plain.lower()
    quoted: bytes = found["quoted"]
    return quoted.replace(b'""', b'"')


def speaks_of_statements(text: bytes) -> bool:
    """Say whether a text in lower case has one of the words with which SQL speaks of prepared statements."""
    return any(word in text for word in _WORDS_OF_SQL)


def is_word_in(name: bytes, text: bytes) -> bool:
    """Say whether `text` has `name` with nothing of a longer name before or behind it."""
    at = text.find(name)
    while at >= 0:
        after = at + len(name)
        around = text[max(at - 1, 0) : at] + text[after : after + 1]
        if b"_" not in around and not around[:1].isalnum() and not around[1:].isalnum():
            return True
        at = text.find(name, at + 1)
    return False


def is_text(name: bytes, encoding: bytes) -> bool:
    """Say whether a name is known to be text in that encoding of a client, as the server says it."""
    if encoding != b"UTF8":
        return name.isascii()
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
