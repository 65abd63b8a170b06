"""Cuts texts of SQL into statements and tokens.

The rules are those of the PostgreSQL documentation, "Lexical Structure".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_TOKEN: Final = re.compile(
    rb"""
    (?P<space>[ \t\n\r\f\v]+|--[^\n\r]*)
    |(?P<comment>/\*)
    |(?P<escape>[eE]'[^'\\]*(?:(?:\\.|'')[^'\\]*)*')
    |(?P<string>'[^']*(?:''[^']*)*')
    |(?P<quoted>"[^"]*(?:""[^"]*)*")
    |(?P<dollar>\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$)
    |(?P<word>[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*)
    |(?P<end>;)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_PART: Final = re.compile(rb"/\*|\*/")


class UnreadableText(Exception):
    """A text of which cannot be told where its statements end."""


def statements_of(text: bytes, most: int, *, standard_strings: bool) -> Iterator[tuple[list[bytes], bytes]]:
    """Cut a text into statements, each as its first tokens (words in lower case, others as they are) and its text.

    There are at most `most` tokens of each.  `standard_strings` says that a backslash in an ordinary string is surely
    nothing special.  Raises UnreadableText, perhaps after the first statements.
    """
    tokens: list[bytes] = []
    pos = 0
    start = 0
    escaped = False
    while pos < len(text):
        match = _TOKEN.match(text, pos)
        assert match is not None
        kind, token = match.lastgroup, match.group()
        pos = match.end()
        if kind == "space":
            continue
        if kind == "comment":
            pos = _after_comment(text, pos)
            continue
        if kind == "end":
            yield tokens, text[start:pos]
            tokens = []
            start = pos
            continue
        continued, escaped = escaped, kind == "escape" or (escaped and kind == "string")
        if kind == "dollar":
            stop = text.find(token, pos)
            if stop < 0:
                raise UnreadableText
            pos = stop + len(token)
        elif (kind == "string" and b"\\" in token and (continued or not standard_strings)) or (
            kind == "other" and token in b"'\""
        ):
            # Where the string ends cannot be told.
            raise UnreadableText
        elif kind == "word":
            token = token.lower()
        if len(tokens) < most:
            tokens.append(token)
    yield tokens, text[start:]


def identifier(token: bytes) -> bytes:
    """The name that a token is, as PostgreSQL keeps it; empty for a token that is no name."""
    if token[:1] == b'"':
        return token[1:-1].replace(b'""', b'"')
    return token if token[:1].isalpha() or token[:1] == b"_" or token[:1] >= b"\x80" else b""


def _after_comment(text: bytes, pos: int) -> int:
    """Find the end of a comment, which may have others within it."""
    depth = 1
    while depth:
        match = _COMMENT_PART.search(text, pos)
        if match is None:
            raise UnreadableText
        depth += 1 if match.group() == b"/*" else -1
        pos = match.end()
    return pos
