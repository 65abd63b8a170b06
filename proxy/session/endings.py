"""How a statement has ended: what its command tag says of the session, and which error it is.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from proxy.session.pins import (
    PIN_LISTEN,
    PIN_LOAD,
    PIN_PREPARE,
    PIN_SET,
    RESET_ALL,
    ROLES_CHANGED,
    ROLLED_BACK,
    TO_CHECK,
    TO_RESET,
)

_A: Final = 0x41
_C: Final = 0x43
_D: Final = 0x44
_L: Final = 0x4C
_N: Final = 0x4E
_P: Final = 0x50
_R: Final = 0x52
_S: Final = 0x53
_T: Final = 0x54
_U: Final = 0x55


def may_mark(data: bytes, pos: i64, end: i64) -> bool:
    """Say in one quick look whether the command tag in `data[pos:end]`, with its zero byte, may call for any mark.

    The tags of SELECT, INSERT, UPDATE, DELETE, BEGIN and COMMIT do not.
    """
    if end - pos < 4:
        # No tag that matters is shorter than SET.
        return False
    first: i64 = data[pos]
    if first == _S:
        return data[pos + 2] == _T
    if first == _D:
        return data[pos + 2] != _L
    if first == _C:
        return data[pos + 1] == _L or data[pos + 1] == _R
    if first == _U:
        return data[pos + 1] == _N
    return first == _R or first == _L or first == _P or first == _A


def marks_of_tag(tag: bytes) -> i64:
    """Return the pins and marks that a command tag calls for."""
    if tag == b"SET":
        return PIN_SET
    if tag == b"RESET":
        return TO_RESET
    if tag == b"ROLLBACK":
        return ROLLED_BACK
    if tag == b"DISCARD ALL":
        return TO_RESET | RESET_ALL | TO_CHECK
    if tag == b"LISTEN":
        return PIN_LISTEN
    if tag == b"PREPARE":
        return PIN_PREPARE
    if tag == b"LOAD":
        return PIN_LOAD
    if tag == b"ALTER ROLE" or tag == b"CREATE ROLE":
        return ROLES_CHANGED
    if tag == b"DROP ROLE":
        return TO_CHECK | ROLES_CHANGED
    if tag == b"UNLISTEN" or tag[:5] == b"DROP " or tag[:7] == b"DISCARD" or tag[:5] == b"CLOSE" or tag[:5] == b"DEALL":
        return TO_CHECK
    return 0


def sqlstate_of(data: bytes, pos: i64, end: i64) -> bytes:
    """Find the SQLSTATE among the fields of an ErrorResponse whose body begins at `pos`; `b"?????"` without one."""
    while pos < end and data[pos] != 0:
        stop: i64 = data.find(b"\0", pos + 1, end)
        if stop < 0:
            break
        if data[pos] == _C and stop - pos == 6:
            return data[pos + 1 : stop]
        pos = stop + 1
    return b"?????"


def readdressed(data: bytes, places: list[int], pid: bytes) -> bytes:
    """Return `data` with the process id `pid` at each of these places, and forget the places.

    A client without a `pid` of its own, 4 bytes, sees what the server has said.
    """
    changed = bytearray(data)
    if len(pid) == 4:
        for place in places:
            changed[place : place + 4] = pid
    places.clear()
    return bytes(changed)
