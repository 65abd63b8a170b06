"""What the texts of a client's statements say of its session, before the server has answered them.

A `Texts` belongs to a client.  `FrontState` shows it each statement as it passes; the answer is pins and marks.  Texts
that may set something are kept until the command tags tell whether they have; of a parsed statement that is remembered
which its Bind will bring about, perhaps much later.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from librt.strings import read_i64_le
from mypy_extensions import i64

from proxy.session.markers import calls_are_readable, names_in_calls, session_markers
from proxy.session.node_statements import concerns_node
from proxy.session.pins import CALLED, CONCERNS_NODE, KEPT, PIN_SET, PIN_SET_CONFIG
from proxy.session.set_statements import UNREADABLE, has_block_that_sets, is_for_transaction_only, shift_of
from proxy.wire.framing import find_zero

LONG_TEXT: Final = 512
"""Bytes of statement from which on four searches are quicker than one look at each byte."""
TAIL_SIZE: Final = 24
"""Bytes of a statement's last piece that are looked at again with the next, for a word cut in two."""
MAX_KEPT: Final = 32
"""Texts kept until it is known whether they have set something; with more of them none can be read."""
MAX_KEPT_TEXT: Final = 4096
MAX_REMEMBERED: Final = 256
"""Parsed statements that change the session, remembered per client until they are bound."""
MAX_CONCERNS: Final = 8
"""Texts that concern the node, of those in one chunk; nobody sends more of them without waiting for an answer."""


# Seven times the same byte, for as many letters at a time.
_SEVEN: Final = 0xFFFFFFFFFFFFFF
_LOWER: Final = 0x20202020202020
_LOW_BITS: Final = 0x7F7F7F7F7F7F7F
_HIGH_BITS: Final = 0x80808080808080
_SEMICOLON_SEVEN: Final = 0x3B3B3B3B3B3B3B
_C_SEVEN: Final = 0x63636363636363
_D_SEVEN: Final = 0x64646464646464
_L_SEVEN: Final = 0x6C6C6C6C6C6C6C
_M_SEVEN: Final = 0x6D6D6D6D6D6D6D
_P_SEVEN: Final = 0x70707070707070
_QUOTE_SEVEN: Final = 0x22222222222222
_AMPERSAND_SEVEN: Final = 0x26262626262626
_V_SEVEN: Final = 0x76767676767676
_UNDERSCORE_SEVEN: Final = 0x7F7F7F7F7F7F7F
"""An underscore is changed, too, by what makes letters lower-case."""


def may_have_markers(text: bytes, start: i64, end: i64) -> bool:
    """Say in one quick look whether `text[start:end]` may have one of the words that `session_markers` looks for.

    Each of them has a pair of letters that few statements have: te(mp), a(dv)isory, ho(ld), set(_c)onfig, u(&").
    """
    if end - start > LONG_TEXT:
        lower = text[start:end].lower()
        return (
            lower.find(b"temp") >= 0
            or lower.find(b"set_config") >= 0
            or lower.find(b"advisory") >= 0
            or lower.find(b"hold") >= 0
            or lower.find(b'u&"') >= 0
        )
    if end - start < 8:
        text = text[start:end].ljust(8)
        start = 0
        end = 8
    last: i64 = end - 8
    pos: i64 = start
    while True:
        # Seven letters at a time, in lower case, each above the one before it; no pair begins with the first of all.
        # A pair makes a byte of zero, and only adding to such a byte leaves its highest bit clear.
        letters: i64 = ((read_i64_le(text, pos) >> 8) & _SEVEN) | _LOWER
        before: i64 = (letters << 8) & _SEVEN
        temp: i64 = (letters ^ _P_SEVEN) | (before ^ _M_SEVEN)
        hold: i64 = (letters ^ _D_SEVEN) | (before ^ _L_SEVEN)
        advisory: i64 = (letters ^ _V_SEVEN) | (before ^ _D_SEVEN)
        config: i64 = (letters ^ _C_SEVEN) | (before ^ _UNDERSCORE_SEVEN)
        escaped: i64 = (letters ^ _QUOTE_SEVEN) | (before ^ _AMPERSAND_SEVEN)
        without: i64 = (
            (((temp & _LOW_BITS) + _LOW_BITS) | temp)
            & (((hold & _LOW_BITS) + _LOW_BITS) | hold)
            & (((advisory & _LOW_BITS) + _LOW_BITS) | advisory)
            & (((config & _LOW_BITS) + _LOW_BITS) | config)
            & (((escaped & _LOW_BITS) + _LOW_BITS) | escaped)
        )
        if without & _HIGH_BITS != _HIGH_BITS:
            return True
        if pos == last:
            return False
        pos = min(pos + 6, last)


def may_begin_with_marker(data: bytes, start: i64, end: i64) -> bool:
    """Say in one quick look whether a statement may be DO, or UPDATE of `pg_settings` or what hides its name."""
    while start < end and data[start] <= 0x20:
        start += 1
    if start + 10 > end:
        return False
    if (data[start] | 0x20) != 0x75 or (data[start + 1] | 0x20) != 0x70:
        return (data[start] | 0x20) == 0x64 and (data[start + 1] | 0x20) == 0x6F
    start += 6
    while start < end and data[start] <= 0x20:
        start += 1
    if start + 2 > end:
        return False
    letter: i64 = data[start] | 0x20
    if letter < 0x61:
        return True
    following: i64 = data[start + 1] | 0x20
    # pg_settings, perhaps behind pg_catalog or ONLY
    return (letter == 0x70 and following == 0x67) or (letter == 0x6F and following == 0x6E)


def may_concern_node(data: bytes, start: i64, end: i64) -> bool:
    """Say in one quick look whether a statement may be DROP, ALTER or CREATE."""
    while start < end and data[start] <= 0x20:
        start += 1
    if start + 8 > end:
        return False
    letter: i64 = data[start] | 0x20
    following: i64 = data[start + 1] | 0x20
    if letter == 0x64 or letter == 0x63:
        return following == 0x72
    if letter == 0x61:
        return following == 0x6C
    # A comment, perhaps with one of them behind it.
    return letter < 0x61


def find_semicolon(text: bytes, start: i64, end: i64) -> i64:
    """Return where the first semicolon in `text[start:end]` is, -1 if there is none.

    `bytes.find` does the same for several times as much, because Python has to be given both bounds as objects.
    """
    pos: i64 = start
    while pos + 8 <= end:
        letters: i64 = (read_i64_le(text, pos) & _SEVEN) ^ _SEMICOLON_SEVEN
        if (((letters & _LOW_BITS) + _LOW_BITS) | letters) & _HIGH_BITS != _HIGH_BITS:
            break
        pos += 7
    while pos < end:
        if text[pos] == 0x3B:
            return pos
        pos += 1
    return -1


def may_set(data: bytes, start: i64, end: i64) -> bool:
    """Say in one quick look whether the statement in `data[start:end]` may be SET or RESET, or a DO with one in it."""
    while start < end and data[start] <= 0x20:
        start += 1
    if start + 5 > end:
        return False
    letter: i64 = data[start] | 0x20
    if letter == 0x73:
        return (data[start + 2] | 0x20) == 0x74
    if letter == 0x72:
        return (data[start + 2] | 0x20) == 0x73
    if letter == 0x64:
        return (data[start + 1] | 0x20) == 0x6F
    # A comment, perhaps with SET behind it.
    return letter < 0x61


def _begins_block(text: bytes, start: i64, end: i64) -> bool:
    """Say whether a text of which not all is there may be a DO block."""
    return text[start : min(end, start + TAIL_SIZE)].lstrip()[:2].lower() == b"do"


def _sets_without_tag(text: bytes) -> bool:
    return len(names_in_calls(text)) != 0 or has_block_that_sets(text)


class Texts:
    """What is kept of the texts of one client.

    `kept` are those that may have set something, `remembered` the text (empty unless it may set something) and marks
    of parsed statements by their names, `sticky` the marks of statements that cannot be told apart any more, `shift`
    what the texts since it was last taken may have changed of the meaning of statements (see `shift_of`).  `concerns`
    are the texts that concern the node and are on their way to the server; whoever attends to them clears it.
    """

    def __init__(self) -> None:
        self.tail: bytes = b""
        self.kept: list[bytes] = []
        self.remembered: dict[bytes, tuple[bytes, int]] | None = None
        self.sticky: i64 = 0
        self.shift: bytes = b""
        self.concerns: list[bytes] = []

    def query(self, data: bytes, start: i64, end: i64, whole: bool) -> i64:
        """Look at the statements of a Query in `data[start:end]`, of which more is to come unless it is whole."""
        marks = self._marks(data, start, end, whole)
        if not whole:
            if _begins_block(data, start, end):
                marks |= PIN_SET
            return marks | self._keep(UNREADABLE)
        if marks & PIN_SET_CONFIG and calls_are_readable(data[start:end]):
            marks ^= PIN_SET_CONFIG | CALLED
        stop: i64 = find_semicolon(data, start, end)
        several: bool = stop >= 0 and stop < end - 2
        if (several or may_concern_node(data, start, end)) and concerns_node(data[start : end - 1]):
            self._concern(data[start : end - 1])
        if several or marks & (CALLED | KEPT | PIN_SET_CONFIG) or may_set(data, start, end):
            marks |= self._keep(data[start : end - 1])
        return marks

    def parse(self, data: bytes, pos: i64, end: i64, whole: bool) -> None:
        """Look at the Parse that begins at `pos`, and remember of its statement what its Bind brings about."""
        start: i64 = find_zero(data, pos + 5, end) + 1
        if start == 0:
            return
        marks = self._marks(data, start, end, whole)
        sets = may_set(data, start, end)
        if whole and may_concern_node(data, start, end):
            text = data[start : data.find(b"\0", start, end)]
            if concerns_node(text):
                self._remember(data[pos + 5 : start - 1], text, marks | CONCERNS_NODE)
                return
        if marks == 0 and not sets:
            if start == pos + 6 and self.remembered is not None:
                self.remembered.pop(b"", None)
            return
        text = b""
        if not whole:
            if _begins_block(data, start, end):
                marks |= PIN_SET
            self.sticky |= marks
            text = UNREADABLE if sets else b""
        elif sets or marks & (PIN_SET_CONFIG | KEPT):
            text = data[start : data.find(b"\0", start, end)]
            if marks & PIN_SET_CONFIG and calls_are_readable(text):
                marks ^= PIN_SET_CONFIG | CALLED
        self._remember(data[pos + 5 : start - 1], text, marks)

    def bind(self, data: bytes, start: i64, end: i64) -> i64:
        """Take up what is remembered of the statement whose name begins at `start`."""
        stop: i64 = find_zero(data, start, end)
        if stop < 0 or self.remembered is None:
            return 0
        known = self.remembered.get(data[start:stop])
        if known is None:
            # It may be one of those that are not remembered any more.
            return self.sticky
        marks: i64 = known[1]
        if marks & CONCERNS_NODE:
            marks ^= CONCERNS_NODE
            if known[0] != UNREADABLE:
                self._concern(known[0])
                return marks
        return marks | self._keep(known[0]) if known[0] else marks

    def more(self, data: bytes, end: i64, last: bool, parsing: bool) -> i64:
        """Look at the next piece of a long statement, the last one or not, of a Parse or a Query."""
        marks = self._marks(data, 0, end, last)
        if parsing:
            self.sticky |= marks
        return marks

    def forget(self) -> None:
        """The server has forgotten all statements and settings."""
        self.kept.clear()
        self.remembered = None
        self.sticky = 0

    def _concern(self, text: bytes) -> None:
        if len(self.concerns) < MAX_CONCERNS:
            self.concerns.append(text)

    def _remember(self, name: bytes, text: bytes, marks: i64) -> None:
        if self.remembered is None:
            self.remembered = {}
        known = self.remembered.pop(name, None)
        if known is not None and name:
            # If this Parse fails the name goes on to mean what it meant.
            marks |= known[1]
            if known[0]:
                text = text if text == known[0] else UNREADABLE
        self.remembered[name] = (text, int(marks))
        if len(self.remembered) > MAX_REMEMBERED:
            # A forgotten SET is unreadable when it is executed; of other statements nothing would tell.
            forgotten: i64 = self.remembered.pop(next(iter(self.remembered)))[1] & ~CONCERNS_NODE
            self.sticky |= forgotten ^ (PIN_SET_CONFIG | CALLED) if forgotten & CALLED else forgotten

    def _keep(self, text: bytes) -> i64:
        """Keep a text until the command tags tell whether it has set something.

        A text that cannot be kept is unreadable if a tag says so; if none would tell, its client is pinned.
        """
        marks: i64 = KEPT
        if text != UNREADABLE:
            if text.lower().find(b"set") < 0:
                return 0
            self.shift += shift_of(text)
            if is_for_transaction_only(text):
                text = b""
            elif len(text) > MAX_KEPT_TEXT:
                if _sets_without_tag(text):
                    marks |= PIN_SET
                text = UNREADABLE
            elif has_block_that_sets(text):
                marks |= CALLED
        else:
            self.shift = UNREADABLE
        if len(self.kept) >= MAX_KEPT:
            if _sets_without_tag(text):
                marks |= PIN_SET
            for kept in self.kept:
                if _sets_without_tag(kept):
                    marks |= PIN_SET
            self.kept.clear()
            text = UNREADABLE
        if len(self.kept) == 0 or self.kept[-1] != text:
            self.kept.append(text)
        return marks

    def _marks(self, data: bytes, start: i64, end: i64, last: bool) -> i64:
        """Look for the words of session state in a piece of a statement."""
        marks: i64 = 0
        if len(self.tail) != 0:
            data = self.tail + data[start:end]
            self.tail = b""
            start = 0
            end = len(data)
        if may_have_markers(data, start, end) or may_begin_with_marker(data, start, end):
            marks = session_markers(data[start:end].lower())
        if not last:
            self.tail = data[max(start, end - TAIL_SIZE) : end]
        return marks
