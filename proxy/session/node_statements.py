"""Statements that concern the node and not only the session that says them, read from their texts.

They are rare, and no reply tells of them in time: PostgreSQL drops, renames, moves and copies a database only when
nobody else is connected to it, and waits five seconds for the others, of whom the node's idle backends may be all.
What may be known afterwards, such as a changed role, is told by the command tag (`proxy.session.endings`).

The grammar is that of the PostgreSQL documentation, "DROP DATABASE", "ALTER DATABASE" and "CREATE DATABASE".
"""

from __future__ import annotations

import re
from typing import Final

from proxy.session.tokens import UnreadableText, identifier, statements_of

MAX_TEXT: Final = 4096
"""Bytes of a text beyond which it is not read, as that takes about half a microsecond for each."""
MAX_NAME: Final = 63
"""Bytes of a name that PostgreSQL keeps (NAMEDATALEN less one)."""
MAX_TOKENS: Final = 80
"""Enough for all options of CREATE DATABASE."""
MAX_DATABASES: Final = 16
"""Databases of one text that are named: each is looked for among all backends of a server."""
USUAL_TEMPLATE: Final = b"template1"

_FIRST_WORDS: Final = re.compile(
    rb"\b(?:drop|alter|create)(?:\s|--[^\n]{0,200}\n|/\*[^*]{0,200}\*/){1,20}+database\b", re.IGNORECASE
)


def concerns_node(text: bytes) -> bool:
    """Say whether a text has a statement that concerns the node: see the other functions for what it may be."""
    return len(databases_to_leave(text)) != 0


def databases_to_leave(text: bytes) -> list[bytes]:
    """Return the databases to which nobody else may be connected for the statements of a text to succeed.

    `text` is without its zero byte, the names are as the server keeps them, each once.  What cannot be read names none.
    """
    if len(text) > MAX_TEXT or _FIRST_WORDS.search(text) is None:
        return []
    names: dict[bytes, None] = {}
    try:
        for tokens, _ in statements_of(text, MAX_TOKENS, standard_strings=False):
            name = _left_by(tokens)
            if name:
                names[name[:MAX_NAME]] = None
            if len(names) == MAX_DATABASES:
                break
    except UnreadableText:
        pass
    return list(names)


def _left_by(tokens: list[bytes]) -> bytes:
    """The database that must be left for one statement; empty without one."""
    if tokens[1:2] != [b"database"]:
        return b""
    if tokens[0] == b"drop":
        at = 4 if tokens[2:4] == [b"if", b"exists"] else 2
        return _name(tokens, at)
    if tokens[0] == b"alter" and tokens[3:5] in ([b"rename", b"to"], [b"set", b"tablespace"]):
        return _name(tokens, 2)
    if tokens[0] == b"create":
        return _template(tokens)
    return b""


def _name(tokens: list[bytes], at: int) -> bytes:
    if len(tokens) <= at or tokens[at + 1 : at + 2] == [b"&"]:
        return b""
    return identifier(tokens[at])


def _template(tokens: list[bytes]) -> bytes:
    """The database that CREATE DATABASE copies: its option TEMPLATE, a name or a string, perhaps behind `=`."""
    if b"template" not in tokens[3:]:
        return USUAL_TEMPLATE
    at = tokens.index(b"template", 3) + 1
    if tokens[at : at + 1] == [b"="]:
        at += 1
    if tokens[at : at + 1] == [b"default"]:
        return USUAL_TEMPLATE
    if len(tokens) > at and tokens[at][:1] == b"'":
        return tokens[at][1:-1].replace(b"''", b"'")
    return _name(tokens, at)
