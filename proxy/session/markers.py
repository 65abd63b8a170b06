"""Words in a statement that say it leaves state in the session, beyond what its command tag tells."""

from __future__ import annotations

import re
from typing import Final

_TEMPORARY: Final = re.compile(rb"\b(?:temp|temporary|pg_temp)\b")
_SET_CONFIG: Final = re.compile(rb"\bset_config\b")
_ADVISORY: Final = re.compile(rb"advisory_(?!xact|unlock)")
_HOLD: Final = re.compile(rb"\bhold\b")

PIN_TEMPORARY: Final = 8
PIN_HOLD: Final = 16
PIN_ADVISORY: Final = 32
PIN_SET_CONFIG: Final = 64


def session_markers(text: bytes) -> int:
    """Return the pins (bits as in `relay`) that the lower-case bytes of some statements call for.

    The test is on words, wherever they stand: a column named `temp` pins as well.  That costs a backend, the
    other way round would cost the isolation of two clients.
    """
    pins = 0
    if _TEMPORARY.search(text):
        pins |= PIN_TEMPORARY
    if _SET_CONFIG.search(text):
        pins |= PIN_SET_CONFIG
    if _ADVISORY.search(text):
        pins |= PIN_ADVISORY
    if _HOLD.search(text):
        pins |= PIN_HOLD
    return pins
