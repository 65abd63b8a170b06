"""The one table of everything the proxy itself tells a client: SQLSTATE, severity, text, hint.

SQLSTATE codes are those of the PostgreSQL documentation, appendix A, chosen so that drivers and pools react
as they would to PostgreSQL itself.  Nothing here knows the wire: whoever answers a client builds the
ErrorResponse from a `Failure`.  Errors of PostgreSQL are passed on as they are and never appear here.  A module per
family has the specs; everybody imports them from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType
from typing import Final

from proxy.errors import connecting, console, ending, limiting, naming, waiting
from proxy.errors.connecting import (
    CERTIFICATE_OF_ANOTHER,
    CERTIFICATE_REQUIRED,
    CHANNEL_BINDING_FAILED,
    CLEARTEXT_FORBIDDEN,
    INVALID_OPTIONS,
    INVALID_REPLICATION,
    LOGIN_TIMEOUT,
    PROTOCOL_VIOLATION,
    REPLICATION_REFUSED,
    SCRAM_NEEDED,
    TLS_REQUIRED,
    UNSUPPORTED_PROTOCOL,
)
from proxy.errors.console import (
    CONSOLE_FULL,
    CONSOLE_IDLE,
    CONSOLE_NO_PORTAL,
    CONSOLE_NO_STATEMENT,
    CONSOLE_READ_ONLY,
    CONSOLE_TOO_MANY_NAMES,
    CONSOLE_UNKNOWN_COMMAND,
    CONSOLE_UNSUPPORTED,
    RELOAD_FAILED,
)
from proxy.errors.ending import (
    BACKEND_LOST,
    CLIENT_IDLE_TIMEOUT,
    IDLE_TRANSACTION_TIMEOUT,
    INTERNAL,
    QUERY_CANCELED,
    QUERY_TIMEOUT,
    RESULT_TYPE_CHANGED,
    SHUTTING_DOWN,
    STATEMENT_MODE_TRANSACTION,
    TERMINATED,
    TRANSACTION_TIMEOUT,
)
from proxy.errors.failure import MAX_FIELD_CHARS, ErrorSpec, Failure, Severity
from proxy.errors.limiting import (
    POOL_PINNED,
    QUEUE_TIMEOUT,
    SESSION_STATE_LEFT,
    SESSION_STATE_REFUSED,
    TENANT_TOO_MANY_CLIENTS,
    TOO_MANY_CLIENTS,
    TOO_MANY_LOGINS,
    TOO_MANY_WAITING,
)
from proxy.errors.naming import (
    AMBIGUOUS_TENANT,
    CONTRADICTORY_SELECTORS,
    INVALID_PASSWORD,
    TENANT_NOT_NAMED,
    UNKNOWN_TENANT,
    USER_MISSING,
)
from proxy.errors.waiting import (
    BACKEND_LOGIN_FAILED,
    NO_DATABASE,
    NO_ROLE,
    NO_SHARED_DATABASE,
    NODE_STOPPING,
    NOT_READY,
    REGISTRY_DOWN,
    SERVER_DOWN,
    SUSPENDED,
    VERIFIERS_UNAVAILABLE,
)

ERRORS: Final[Mapping[str, ErrorSpec]] = MappingProxyType(
    {
        spec.name: spec
        for spec in chain(connecting.SPECS, naming.SPECS, limiting.SPECS, waiting.SPECS, ending.SPECS, console.SPECS)
    }
)

__all__ = [
    "AMBIGUOUS_TENANT",
    "BACKEND_LOGIN_FAILED",
    "BACKEND_LOST",
    "CERTIFICATE_OF_ANOTHER",
    "CERTIFICATE_REQUIRED",
    "CHANNEL_BINDING_FAILED",
    "CLEARTEXT_FORBIDDEN",
    "CLIENT_IDLE_TIMEOUT",
    "CONSOLE_FULL",
    "CONSOLE_IDLE",
    "CONSOLE_NO_PORTAL",
    "CONSOLE_NO_STATEMENT",
    "CONSOLE_READ_ONLY",
    "CONSOLE_TOO_MANY_NAMES",
    "CONSOLE_UNKNOWN_COMMAND",
    "CONSOLE_UNSUPPORTED",
    "CONTRADICTORY_SELECTORS",
    "ERRORS",
    "IDLE_TRANSACTION_TIMEOUT",
    "INTERNAL",
    "INVALID_OPTIONS",
    "INVALID_PASSWORD",
    "INVALID_REPLICATION",
    "LOGIN_TIMEOUT",
    "MAX_FIELD_CHARS",
    "NODE_STOPPING",
    "NOT_READY",
    "NO_DATABASE",
    "NO_ROLE",
    "NO_SHARED_DATABASE",
    "POOL_PINNED",
    "PROTOCOL_VIOLATION",
    "QUERY_CANCELED",
    "QUERY_TIMEOUT",
    "QUEUE_TIMEOUT",
    "REGISTRY_DOWN",
    "RELOAD_FAILED",
    "REPLICATION_REFUSED",
    "RESULT_TYPE_CHANGED",
    "SCRAM_NEEDED",
    "SERVER_DOWN",
    "SESSION_STATE_LEFT",
    "SESSION_STATE_REFUSED",
    "SHUTTING_DOWN",
    "STATEMENT_MODE_TRANSACTION",
    "SUSPENDED",
    "TENANT_NOT_NAMED",
    "TENANT_TOO_MANY_CLIENTS",
    "TERMINATED",
    "TLS_REQUIRED",
    "TOO_MANY_CLIENTS",
    "TOO_MANY_LOGINS",
    "TOO_MANY_WAITING",
    "TRANSACTION_TIMEOUT",
    "UNKNOWN_TENANT",
    "UNSUPPORTED_PROTOCOL",
    "USER_MISSING",
    "VERIFIERS_UNAVAILABLE",
    "ErrorSpec",
    "Failure",
    "Severity",
]
