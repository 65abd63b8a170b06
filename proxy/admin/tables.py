"""From rows to messages.

Source: PostgreSQL documentation, "Message Formats" (RowDescription, DataRow); binary formats are those of its
functions `textsend`, `int8send` and `float8send`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

from proxy.admin.catalogue import Column, Kind
from proxy.errors import CONSOLE_UNSUPPORTED, Failure
from proxy.wire.backend import DataRow, FieldDescription, RowDescription

Value: TypeAlias = str | int | float | None
Row: TypeAlias = tuple[Value, ...]

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

TEXT: Final = 0
BINARY: Final = 1


def formats_for(columns: Sequence[Column], asked: Sequence[int]) -> tuple[int, ...]:
    """Spread the format codes of a Bind over the columns: none is text, one is for all.

    Raises Failure for codes that there are not, and for a number of them that does not fit.
    """
    if any(code not in {TEXT, BINARY} for code in asked):
        raise Failure(CONSOLE_UNSUPPORTED, feature="formats other than text and binary")
    if len(asked) <= 1:
        return (asked[0] if asked else TEXT,) * len(columns)
    if len(asked) != len(columns):
        raise Failure(CONSOLE_UNSUPPORTED, feature=f"{len(asked)} formats for {len(columns)} columns")
    return tuple(asked)


def describe(columns: Sequence[Column], formats: Sequence[int]) -> bytes:
    """The RowDescription of a table."""
    fields = (
        FieldDescription(column.name, 0, 0, column.kind.oid, column.kind.size, -1, code)
        for column, code in zip(columns, formats, strict=True)
    )
    return RowDescription(tuple(fields)).encode()


def encode_row(columns: Sequence[Column], formats: Sequence[int], row: Row) -> bytes:
    """The DataRow of a row; what is no text in UTF-8, and control characters, come out as question marks.

    Clients choose their names, and a terminal would obey them.
    """
    values = (_encode(column, code, value) for column, code, value in zip(columns, formats, row, strict=True))
    return DataRow(tuple(values)).encode()


def _encode(column: Column, code: int, value: Value) -> bytes | None:
    if value is None:
        return None
    if code == BINARY and column.kind is Kind.INT:
        return struct.pack("!q", value)
    if code == BINARY and column.kind is Kind.FLOAT:
        return struct.pack("!d", value)
    return _CONTROLS.sub("?", str(value)).encode("utf-8", "replace")
