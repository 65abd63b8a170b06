"""From the table of errors to the wire."""

from __future__ import annotations

from proxy.errors import Failure
from proxy.wire.reports import ErrorResponse, NoticeResponse


def error_response(failure: Failure, *, routine: str | None = None) -> bytes:
    """Encode what a client is told; with the routine of PostgreSQL's in whose place the proxy says it, if any."""
    return ErrorResponse.build(
        failure.severity.value, failure.sqlstate, failure.message, hint=failure.hint, routine=routine
    ).encode()


def warning(failure: Failure) -> bytes:
    """Encode the same as a warning, of what the client will get as an error of its server's."""
    return NoticeResponse.build("WARNING", failure.sqlstate, failure.message, hint=failure.hint).encode()


def fatal_response(failure: Failure) -> bytes:
    """Encode what a client is told whose connection ends with it, whatever the table says of the severity."""
    return ErrorResponse.build("FATAL", failure.sqlstate, failure.message, hint=failure.hint).encode()


def as_fatal(message: bytes) -> ErrorResponse:
    """The server's refusal of a setting, in the severity that it has when it comes at login."""
    error = ErrorResponse.decode(message[5:])
    return ErrorResponse(tuple((code, "FATAL" if code in "SV" else text) for code, text in error.fields))
