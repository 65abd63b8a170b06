"""Reads which settings a SET or RESET touches: the names and never the values, which the server itself is asked for.

The grammar is that of the PostgreSQL documentation, "SET", "RESET", "SET ROLE", "SET SESSION AUTHORIZATION" and "SET
TRANSACTION"; the lexical rules those of "Lexical Structure".  Whatever is not understood makes the text unreadable,
and its client is pinned.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.session.markers import all_names_in_calls, calls_are_readable, names_in_calls
from proxy.session.parameters import changes_meaning
from proxy.session.tokens import UnreadableText, statements_of

UNREADABLE: Final = b"\0"
"""Stands for a text that was not kept."""
MAX_TOUCHED: Final = 64
"""Most settings that one client may touch until the server is asked for their values."""
MAX_SETTING_NAME: Final = 128
MAX_SHIFT: Final = 512
MAX_TOKENS: Final = 10
"""Tokens looked at of each statement: enough for the name, and for DEFAULT behind it."""

# What was done to a setting.
TOUCH_SET: Final = 1
TOUCH_RESET: Final = 2
LAST_RESET: Final = 4
"""What was done last took the setting away."""

_FOR_TRANSACTION: Final = re.compile(rb"\s*set\s+(?:local|transaction)\s+[a-z\"]", re.IGNORECASE)
_FIRST_SET: Final = re.compile(rb"\s*(?:re)?set\b", re.IGNORECASE)
_ONE_SET: Final = re.compile(rb"\s*(?:set\s+(?:local\s+|session\s+)?|reset\s+)([a-z_][a-z0-9_.]*)", re.IGNORECASE)
_BLOCK: Final = re.compile(rb"\bdo\s*(?:language\s+\w+\s*)?(?:\$|e?')", re.IGNORECASE)
_WITHIN_BLOCK: Final = re.compile(
    rb"(?:[;'$]|\b(?:begin|then|else|loop))\s*\b(?P<verb>set|reset)\s+(?P<rest>[^;'=$]{1,160})", re.IGNORECASE
)
_BLOCK_TOKEN: Final = re.compile(rb'"(?:[^"]|"")*"|[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*|[^ \t\n\r\f\v]')
_SAFE_ENCODINGS: Final = (b"UTF", b"LATIN", b"WIN", b"ISO", b"KOI8", b"EUC", b"SQL_ASCII", b"MULE")
"""Beginnings of the client encodings in which a backslash or quote is never the second byte of a character."""
_OF_TRANSACTION: Final = frozenset((b"transaction_isolation", b"transaction_read_only", b"transaction_deferrable"))
_CHARACTERISTICS: Final = (
    b"default_transaction_isolation",
    b"default_transaction_read_only",
    b"default_transaction_deferrable",
)
_ROLES: Final = frozenset((b"role", b"session_authorization"))
_SPELLED: Final = {
    (b"time", b"zone"): b"timezone",
    (b"xml", b"option"): b"xmloption",
}
_VALUE_FOLLOWS: Final = {b"names": b"client_encoding", b"schema": b"search_path", b"role": b"role"}
_OPERATORS: Final = (b"=", b"to", b"from")


def is_for_transaction_only(text: bytes) -> bool:
    """Say whether the text is one SET LOCAL or SET TRANSACTION, spelled as drivers do."""
    return b";" not in text.rstrip(b"; \n") and _FOR_TRANSACTION.match(text) is not None


def is_safe_text(text: bytes, client_encoding: bytes) -> bool:
    """Say whether the quotes of a text can be found byte by byte in this encoding."""
    return text.isascii() or client_encoding.upper().startswith(_SAFE_ENCODINGS)


def has_block_that_sets(text: bytes) -> bool:
    """Say whether a text has a DO block in which SET or RESET is a statement, or the beginning of a string."""
    return _BLOCK.search(text) is not None and _WITHIN_BLOCK.search(text) is not None


def shift_of(text: bytes) -> bytes:
    """Return what a text that may set something does to the meaning of statements that are parsed after it.

    It is empty for settings under which they mean the same (or which PostgreSQL looks at whenever a plan is used, as it
    does with `search_path`), the text itself where that says it all, else `UNREADABLE`.
    """
    found = _ONE_SET.match(text)
    if found is not None and b";" not in text.rstrip(b"; \n") and _is_harmless(found[1].lower()):
        return b""
    if b"set_config" in text.lower():
        names = all_names_in_calls(text)
        only_calls = calls_are_readable(text) and b";" not in text and _FIRST_SET.match(text) is None
        return b"" if only_calls and all(_is_harmless(name.lower()) for name in names) else UNREADABLE
    return text if len(text) <= MAX_SHIFT else UNREADABLE


def _is_harmless(name: bytes) -> bool:
    return name in (b"search_path", b"role") or not changes_meaning(name)


class TouchedSettings:
    """What a client has done to its settings since their values were last known.

    `names` has the lower-case names and what was done (bits); `doubtful` says that some of it may not have lasted.
    `taken` has those that were taken away at any time, whatever was done to them since; `open` those of which that may
    still be undone, or not, by a transaction in which they were given back.
    """

    __slots__ = ("doubtful", "everything", "names", "open", "role", "statements", "taken", "unreadable")

    def __init__(self) -> None:
        self.names: dict[bytes, int] = {}
        self.taken: set[bytes] = set()
        self.open: set[bytes] = set()
        self.everything = False
        self.unreadable = False
        self.role = False
        self.doubtful = False
        self.statements = 0

    def add(self, name: bytes, done: int) -> None:
        """Note one setting."""
        key = name.lower()
        if key in _ROLES:
            self.role = True
        elif key in _OF_TRANSACTION:
            pass
        elif key == b"seed" or len(key) > MAX_SETTING_NAME or len(self.names) >= MAX_TOUCHED:
            # What was sown cannot be asked for.
            self.unreadable = True
        else:
            self.names[key] = (self.names.get(key, 0) & ~LAST_RESET) | done
            if done & TOUCH_RESET:
                self.taken.add(key)

    def reset_all(self) -> None:
        """Note that all settings were taken away."""
        self.everything = True
        for name in self.names:
            self.names[name] |= TOUCH_RESET | LAST_RESET
            self.taken.add(name)

    def read(self, text: bytes, *, standard_strings: bool, only_calls: bool = False) -> None:
        """Read the statements of a text that was executed, at least in part.

        `standard_strings` says that a backslash in an ordinary string is surely nothing special, `only_calls` that no
        SET or RESET has succeeded.
        """
        if text == UNREADABLE or b'u&"' in text.lower():
            self.unreadable = self.unreadable or not only_calls
            self.statements += 1
            return
        if not text:
            self.statements += 1
            return
        block = has_block_that_sets(text)
        calls = block or b"set_config" in text.lower()
        try:
            if block:
                self._read_block(text)
            for tokens, statement in statements_of(text, MAX_TOKENS, standard_strings=standard_strings):
                if tokens and tokens[0] in (b"set", b"reset"):
                    self.statements += 1
                    if not only_calls:
                        self._take(tokens)
                elif calls:
                    for name in names_in_calls(statement):
                        self.add(name, TOUCH_SET)
        except UnreadableText:
            self.unreadable = self.unreadable or calls or not only_calls
            self.statements += 1

    def _read_block(self, text: bytes) -> None:
        """Note what a DO block may set or take away, of which no command tag tells."""
        self.doubtful = True
        for found in _WITHIN_BLOCK.finditer(text):
            tokens = [token.lower() for token in _BLOCK_TOKEN.findall(found["rest"])][:MAX_TOKENS]
            self._take([found["verb"].lower(), *tokens, *([] if found["verb"].lower() == b"reset" else [b"=", b"x"])])

    def _take(self, tokens: list[bytes]) -> None:
        if tokens[0] == b"reset":
            if tokens[1:] == [b"all"]:
                self.reset_all()
            elif tokens[1:] == [b"session", b"authorization"]:
                self.role = True
            elif tokens[1:2] != [b"transaction"]:
                self.add(_name(tokens, 1)[0], TOUCH_RESET | LAST_RESET)
            return
        at = 1
        if tokens[1:2] == [b"local"] and tokens[2:3] != [b"."]:
            return
        if tokens[1:2] == [b"session"] and tokens[2:3] != [b"."]:
            at = 2
        head = tokens[at : at + 1]
        if head in ([b"transaction"], [b"constraints"]) and tokens[at + 1 : at + 2] != [b"."]:
            return
        if tokens[at : at + 2] == [b"characteristics", b"as"]:
            for name in _CHARACTERISTICS:
                self.add(name, TOUCH_SET)
            return
        if head == [b"authorization"] or tokens[1:3] == [b"session", b"authorization"]:
            self.role = True
            return
        self._assigned(tokens, at)

    def _assigned(self, tokens: list[bytes], at: int) -> None:
        first, second = b"".join(tokens[at : at + 1]), b"".join(tokens[at + 1 : at + 2])
        if (first, second) in _SPELLED:
            name, value = _SPELLED[first, second], tokens[at + 2 :]
        elif first in _VALUE_FOLLOWS and second not in _OPERATORS and second != b".":
            name, value = _VALUE_FOLLOWS[first], tokens[at + 1 :]
        else:
            name, after = _name(tokens, at)
            if b"".join(tokens[after : after + 1]) not in _OPERATORS:
                raise UnreadableText
            value = tokens[after + 1 :]
        default = value == [b"default"] or (name == b"timezone" and value == [b"local"]) or not value
        self.add(name, TOUCH_RESET | LAST_RESET if default else TOUCH_SET)


def _name(tokens: list[bytes], at: int) -> tuple[bytes, int]:
    """Read the name of a setting, of one or more parts; returns it and where the tokens go on."""
    spelled = _SPELLED.get((b"".join(tokens[at : at + 1]), b"".join(tokens[at + 1 : at + 2])))
    if spelled is not None:
        return spelled, at + 2
    parts = []
    while at < len(tokens):
        part = tokens[at]
        if part[:1] == b'"':
            part = part[1:-1].replace(b'""', b'"')
        elif not (part[:1].isalpha() or part[:1] == b"_"):
            break
        parts.append(part)
        at += 1
        if tokens[at : at + 1] != [b"."]:
            return b".".join(parts), at
        at += 1
    raise UnreadableText
