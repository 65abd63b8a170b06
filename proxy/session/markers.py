"""Words in a statement that say it leaves state in the session, beyond what its command tag tells."""

from __future__ import annotations

import re
from typing import Final

from proxy.session.pins import (
    KEPT,
    PIN_ADVISORY,
    PIN_HOLD,
    PIN_LISTEN,
    PIN_LOAD,
    PIN_PREPARE,
    PIN_ROLE,
    PIN_SET,
    PIN_SET_CONFIG,
    PIN_TEMPORARY,
    TO_CHECK,
)

_TEMPORARY: Final = re.compile(rb"\b(?:temp|temporary|pg_temp)\b")
_SET_CONFIG: Final = re.compile(rb"\bset_config\b")
_ADVISORY: Final = re.compile(rb"advisory_(?!xact|unlock)")
_HOLD: Final = re.compile(rb"\bhold\b")
_UPDATE: Final = re.compile(rb"\bupdate\b")
_SETTINGS_VIEW: Final = re.compile(rb"\bpg_settings\b")
_BLOCK: Final = re.compile(rb"\s*do\b")
_LISTEN: Final = re.compile(rb"\blisten\b")
_ESCAPE: Final = re.compile(rb"\\(?:([0-9a-f]{4})|\+([0-9a-f]{6}))")
_VALUE: Final = rb"(?:'[^'\\]*'|\$\d{1,5})(?:\s*::\s*(?:text|varchar))?"
_LOCAL_CALL: Final = re.compile(
    rb"\bset_config\s*\(\s*"
    + _VALUE
    + rb"\s*,\s*"
    + _VALUE
    + rb"\s*,\s*(?:true|'t'|'true')(?:\s*::\s*bool(?:ean)?)?\s*\)",
    re.IGNORECASE,
)
_BEGINNINGS: Final = tuple(
    (pin, re.compile(pattern, re.IGNORECASE | re.DOTALL))
    for pin, pattern in (
        (PIN_LISTEN, rb"\s*listen\s"),
        (PIN_LOAD, rb"\s*load\s+'"),
        (PIN_PREPARE, rb"\s*prepare\s+(?!transaction\b)"),
        (PIN_TEMPORARY, rb"\s*create\s+(?:local\s+|global\s+)?temp(?:orary)?\s(?!.*\bon\s+commit\s+drop\b)"),
        (PIN_HOLD, rb"\s*declare\s[^;]*\bwith\s+hold\b"),
        (PIN_ADVISORY, rb"\s*select\s+(?:pg_catalog\.)?pg_(?:try_)?advisory_lock(?:_shared)?\s*\("),
        (PIN_ROLE, rb"\s*set\s+(?:session\s+)?(?:role|session\s+authorization)\s"),
    )
)
_READABLE_CALL: Final = re.compile(rb"\bset_config\s*\(\s*'([a-z_][a-z0-9_$.]*)'\s*,", re.IGNORECASE)
_ANY_CALL: Final = re.compile(rb"\bset_config\b", re.IGNORECASE)
_FOR_LATER: Final = re.compile(rb"\bprepare\b", re.IGNORECASE)


def session_markers(text: bytes) -> int:
    """Return the pins and marks that the lower-case bytes of some statements call for.

    The test is on words, wherever they stand: a column named `temp` has the mark as well.  That costs a question to
    the server, the other way round would cost the isolation of two clients.  Of `set_config` no call counts that
    says itself that it is for the transaction only; the text is to be kept then for what it changes until then.
    An UPDATE of the view `pg_settings` is a SET (PostgreSQL, "pg_settings") of which no command tag tells, and none
    tells of a LISTEN in a DO block.  Names in Unicode escapes (PostgreSQL, "Identifiers and Key Words") are what they
    stand for; with an escape character of their own they may be anything.
    """
    pins = 0
    if b'u&"' in text:
        if b"uescape" in text:
            pins |= PIN_SET_CONFIG
        text = _ESCAPE.sub(_unescaped, text)
    if _TEMPORARY.search(text):
        pins |= PIN_TEMPORARY
    calls = len(_SET_CONFIG.findall(text))
    if calls:
        pins |= PIN_SET_CONFIG if calls > len(_LOCAL_CALL.findall(text)) else KEPT
    if _ADVISORY.search(text):
        pins |= PIN_ADVISORY
    elif text.find(b"advisory_unlock") >= 0:
        pins |= TO_CHECK
    if _HOLD.search(text):
        pins |= PIN_HOLD
    update = _UPDATE.search(text)
    if update is not None and _SETTINGS_VIEW.search(text, update.end()):
        pins |= PIN_SET
    if _BLOCK.match(text) and _LISTEN.search(text):
        pins |= PIN_LISTEN
    return pins


def _unescaped(found: re.Match[bytes]) -> bytes:
    number = int(found[1] or found[2], 16)
    return bytes((number,)) if number < 0x80 else found[0]


def known_in_advance(text: bytes) -> int:
    """Return the pin that a statement surely leads to if it succeeds, by its first words; 0 when it is not sure."""
    for pin, beginning in _BEGINNINGS:
        if beginning.match(text):
            return pin
    return 0


def names_in_calls(text: bytes) -> list[bytes]:
    """Return the settings that calls of `set_config` name in so many words, unless for the transaction only."""
    return _READABLE_CALL.findall(_LOCAL_CALL.sub(b"", text))


def all_names_in_calls(text: bytes) -> list[bytes]:
    """Return the settings that calls of `set_config` name in so many words, whatever they are for."""
    return _READABLE_CALL.findall(text)


def calls_are_readable(text: bytes) -> bool:
    """Say whether every call of `set_config` names its setting in so many words, and is made now."""
    if _FOR_LATER.search(text) is not None or b'u&"' in text.lower():
        return False
    return len(_ANY_CALL.findall(text)) == len(_READABLE_CALL.findall(text))
