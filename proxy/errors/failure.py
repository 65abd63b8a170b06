"""A line of the table of errors, and the failure that a client is told, built from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from string import Formatter
from typing import Final

MAX_FIELD_CHARS: Final = 200
"""Longest value put into a text: clients choose names and must not choose the size of log lines."""


class Severity(StrEnum):
    """Whether the connection goes on after the error (ERROR) or is closed by it (FATAL)."""

    ERROR = "ERROR"
    FATAL = "FATAL"


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """One line of the table.

    `text` and `hint` are `str.format` templates over the same fields.  `log_level` is the level at which the node
    logs it.  `retry_safe` says that nothing of the refused request has run and that the same request may
    succeed later without anybody changing it.
    """

    name: str
    sqlstate: str
    severity: Severity
    log_level: str
    text: str
    hint: str | None
    retry_safe: bool

    @property
    def fields(self) -> frozenset[str]:
        """The names which `Failure` must be given for this error."""
        templates = self.text + (self.hint or "")
        return frozenset(name for _, name, _, _ in Formatter().parse(templates) if name)


class Failure(Exception):
    """What a client is told, built from the table only.

    `fields` fill the templates of the spec; a missing one raises KeyError.  Strings are stripped of control
    characters and cut to `MAX_FIELD_CHARS`, so that a name chosen by a client can neither break a log line nor
    an ErrorResponse.  `hint` replaces the hint of the table.  `closing` makes an ERROR a FATAL where the
    connection cannot go on, for example before login is complete.  Never pass secrets.
    """

    def __init__(self, spec: ErrorSpec, /, *, hint: str | None = None, closing: bool = False, **fields: object) -> None:
        clean = {name: _clean(value) for name, value in fields.items()}
        self.spec = spec
        self.message = spec.text.format_map(clean)
        self.hint = hint if hint is not None else (spec.hint.format_map(clean) if spec.hint is not None else None)
        self.severity = Severity.FATAL if closing else spec.severity
        super().__init__(self.message)

    @property
    def sqlstate(self) -> str:
        return self.spec.sqlstate

    def __repr__(self) -> str:
        return f"Failure({self.spec.name}, {self.message!r})"


def _clean(value: object) -> object:
    if isinstance(value, int | float):
        return value
    text = str(value)
    if len(text) > MAX_FIELD_CHARS:
        text = text[:MAX_FIELD_CHARS] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
