"""The one table of everything the proxy itself tells a client: SQLSTATE, severity, text, hint.

SQLSTATE codes are those of the PostgreSQL documentation, appendix A, chosen so that drivers and pools react
as they would to PostgreSQL itself.  Nothing here knows the wire: whoever answers a client builds the
ErrorResponse from a `Failure`.  Errors of PostgreSQL are passed on as they are and never appear here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from string import Formatter
from types import MappingProxyType
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


# The connection itself.

PROTOCOL_VIOLATION: Final = ErrorSpec(
    name="protocol_violation",
    sqlstate="08P01",
    severity=Severity.FATAL,
    log_level="warning",
    text="protocol violation: {reason}",
    hint="This port speaks the PostgreSQL protocol, version 3; check that the client is a PostgreSQL driver and that "
    "nothing between it and the proxy changes the bytes.",
    retry_safe=False,
)
UNSUPPORTED_PROTOCOL: Final = ErrorSpec(
    name="unsupported_protocol",
    sqlstate="0A000",
    severity=Severity.FATAL,
    log_level="info",
    text="unsupported frontend protocol {requested}: this proxy supports 3.0 and 3.2",
    hint="Update the driver, or set its protocol version to 3.0.",
    retry_safe=False,
)
INVALID_REPLICATION: Final = ErrorSpec(
    name="invalid_replication",
    sqlstate="22023",
    severity=Severity.FATAL,
    log_level="info",
    text='invalid value for parameter "replication": "{value}"',
    hint="Valid values are: false, 0, true, 1, database.",
    retry_safe=False,
)
REPLICATION_REFUSED: Final = ErrorSpec(
    name="replication_refused",
    sqlstate="42501",
    severity=Severity.FATAL,
    log_level="info",
    text='login "{user}" may not replicate {what}',
    hint='The operator can allow it ("pgtenant login set {user} --replication {access}"), a whole server to logins for '
    "all tenants only.",
    retry_safe=False,
)
INVALID_OPTIONS: Final = ErrorSpec(
    name="invalid_options",
    sqlstate="42601",
    severity=Severity.FATAL,
    log_level="info",
    text="invalid startup options: {reason}",
    hint='Write them as options="-c name=value -c name=value", with a backslash before a space inside a value.',
    retry_safe=False,
)
LOGIN_TIMEOUT: Final = ErrorSpec(
    name="login_timeout",
    sqlstate="57014",
    severity=Severity.FATAL,
    log_level="info",
    text="canceling authentication due to timeout: the login was not complete after {seconds:g} s",
    hint="Connect again; if it happens often, look at the network between client and proxy, or raise "
    "listen.login_timeout, or the tenant's own login_timeout.",
    retry_safe=True,
)
TLS_REQUIRED: Final = ErrorSpec(
    name="tls_required",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="info",
    text="this proxy accepts encrypted connections only",
    hint="Add sslmode=require (or verify-full) to the connection string.",
    retry_safe=False,
)
CERTIFICATE_REQUIRED: Final = ErrorSpec(
    name="certificate_required",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="info",
    text="connection requires a valid client certificate",
    hint="Give the driver the certificate and key that were issued for this login, as sslcert and sslkey.",
    retry_safe=False,
)
CERTIFICATE_OF_ANOTHER: Final = ErrorSpec(
    name="certificate_of_another",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="warning",
    text='the client certificate is not one of user "{user}"',
    hint="The common name (CN) of the certificate has to be the login's name.",
    retry_safe=False,
)
CHANNEL_BINDING_FAILED: Final = ErrorSpec(
    name="channel_binding_failed",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="warning",
    text="channel binding failed: {reason}",
    hint="Something between client and proxy, such as a load balancer, has a TLS connection of its own with each.  "
    "Let it pass TLS through, or let the operator set auth.channel_binding = false.",
    retry_safe=False,
)
CLEARTEXT_FORBIDDEN: Final = ErrorSpec(
    name="cleartext_forbidden",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="info",
    text="a password may not be sent over an unencrypted connection",
    hint="Add sslmode=require to the connection string, use a driver that supports SCRAM-SHA-256, or let the operator "
    "set listen.allow_cleartext_password = true.",
    retry_safe=False,
)

# Who the client is and which tenant it means.

INVALID_PASSWORD: Final = ErrorSpec(
    name="invalid_password",
    sqlstate="28P01",
    severity=Severity.FATAL,
    log_level="info",
    text='password authentication failed for user "{user}"',
    hint="Check the user name, the password and the name of the tenant in the connection string.",
    retry_safe=False,
)
USER_MISSING: Final = ErrorSpec(
    name="user_missing",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="info",
    text="no PostgreSQL user name specified in startup packet",
    hint="Put the user name into the connection string: postgresql://user@host/database.",
    retry_safe=False,
)
TENANT_NOT_NAMED: Final = ErrorSpec(
    name="tenant_not_named",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="info",
    text="the connection names no tenant",
    hint='Name it by the database (".../acme"), by the user ("app.acme"), by options ("-c tenant=acme") or by the host '
    'name ("acme.db.example.com"), as the operator has configured it.',
    retry_safe=False,
)
CONTRADICTORY_SELECTORS: Final = ErrorSpec(
    name="contradictory_selectors",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="info",
    text="the connection names two different tenants: {first}, but {second}",
    hint="Name the tenant once, or the same way everywhere: host name, options, user suffix and database must agree.",
    retry_safe=False,
)
AMBIGUOUS_TENANT: Final = ErrorSpec(
    name="ambiguous_tenant",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="info",
    text='"{name}" may mean more than one tenant',
    hint='Name the tenant itself: as the database, by the user ("app.acme") or by options ("-c tenant=acme").',
    retry_safe=False,
)
UNKNOWN_TENANT: Final = ErrorSpec(
    name="unknown_tenant",
    sqlstate="3D000",
    severity=Severity.FATAL,
    log_level="info",
    text='there is no tenant "{tenant}"',
    hint='Check the connection string for a misspelling; "pgtenant tenant list" shows the tenants and "pgtenant route '
    'explain" how a connection string is understood.',
    retry_safe=False,
)

# Limits.

TOO_MANY_CLIENTS: Final = ErrorSpec(
    name="too_many_clients",
    sqlstate="53300",
    severity=Severity.FATAL,
    log_level="warning",
    text="sorry, too many clients already: this proxy accepts {limit}",
    hint="Close idle connections or connect again later; the operator can raise listen.max_clients.",
    retry_safe=True,
)
TENANT_TOO_MANY_CLIENTS: Final = ErrorSpec(
    name="tenant_too_many_clients",
    sqlstate="53300",
    severity=Severity.FATAL,
    log_level="warning",
    text='too many connections for tenant "{tenant}": it may have {limit}',
    hint="Close idle connections or connect again later; the operator can raise this tenant's max_clients.",
    retry_safe=True,
)
TOO_MANY_WAITING: Final = ErrorSpec(
    name="too_many_waiting",
    sqlstate="53300",
    severity=Severity.ERROR,
    log_level="warning",
    text='tenant "{tenant}" has too many transactions waiting for a database connection: {limit} may wait',
    hint="Try again later, run fewer transactions at once, or let the operator raise this tenant's pool_size or "
    "max_waiting.",
    retry_safe=True,
)
QUEUE_TIMEOUT: Final = ErrorSpec(
    name="queue_timeout",
    sqlstate="53300",
    severity=Severity.ERROR,
    log_level="warning",
    text='no database connection for tenant "{tenant}" became free within {seconds:g} s: {reason}',
    hint="Nothing has run, so it is safe to try again.  Shorter transactions free connections sooner; the operator can "
    "raise this tenant's pool_size or queue_wait_timeout.",
    retry_safe=True,
)
POOL_PINNED: Final = ErrorSpec(
    name="pool_pinned",
    sqlstate="53300",
    severity=Severity.ERROR,
    log_level="warning",
    text='no database connection for tenant "{tenant}" became free within {seconds:g} s: {pinned} of {pool_size} are '
    "held by clients with session state",
    hint="Clients that use LISTEN, temporary tables, cursors WITH HOLD, SQL PREPARE or advisory locks of the session "
    "keep their connection until they give those up or disconnect.  Disconnect idle clients, or let the operator raise "
    "pool_size.",
    retry_safe=True,
)

# Session state that cannot follow its client from backend to backend.

SESSION_STATE_REFUSED: Final = ErrorSpec(
    name="session_state_refused",
    sqlstate="0A000",
    severity=Severity.ERROR,
    log_level="info",
    text='tenant "{tenant}" may not leave state in its sessions: {reason}',
    hint="The statement was not run.  Do without it, connect to a tenant in session mode, or let the operator set this "
    "tenant's session_state to pin.",
    retry_safe=False,
)
SESSION_STATE_LEFT: Final = ErrorSpec(
    name="session_state_left",
    sqlstate="0A000",
    severity=Severity.FATAL,
    log_level="info",
    text='tenant "{tenant}" may not leave state in its sessions: {reason}',
    hint="The transaction was carried out, and the session ends for what it has left behind.  Do without, connect to "
    "a tenant in session mode, or let the operator set this tenant's session_state to pin.",
    retry_safe=False,
)

# Not now.

SUSPENDED: Final = ErrorSpec(
    name="suspended",
    sqlstate="57P03",
    severity=Severity.FATAL,
    log_level="info",
    text='tenant "{tenant}" is suspended',
    hint='Ask the operator of this service; "pgtenant tenant resume {tenant}" ends it.',
    retry_safe=False,
)
NOT_READY: Final = ErrorSpec(
    name="not_ready",
    sqlstate="57P03",
    severity=Severity.FATAL,
    log_level="info",
    text='the database of tenant "{tenant}" is not ready: its state is {state}',
    hint='Connect again later; "pgtenant tenant show {tenant}" tells the operator what it is waiting for.',
    retry_safe=True,
)
SERVER_DOWN: Final = ErrorSpec(
    name="server_down",
    sqlstate="57P03",
    severity=Severity.ERROR,
    log_level="error",
    text='the database server of tenant "{tenant}" cannot be reached now: {reason}',
    hint='Try again in a few seconds; nothing has run.  "pgtenant server test" tells the operator what is wrong.',
    retry_safe=True,
)
BACKEND_LOGIN_FAILED: Final = ErrorSpec(
    name="backend_login_failed",
    sqlstate="57P03",
    severity=Severity.ERROR,
    log_level="error",
    text='the database server did not accept the proxy\'s login for tenant "{tenant}" (SQLSTATE {sqlstate})',
    hint="This is not the client's password: the operator finds the server's answer in the proxy's log and corrects "
    'the tenant\'s role, password or database with "pgtenant tenant set {tenant}".',
    retry_safe=True,
)
REGISTRY_DOWN: Final = ErrorSpec(
    name="registry_down",
    sqlstate="57P03",
    severity=Severity.FATAL,
    log_level="error",
    text="the registry of tenants cannot be reached now, and this connection needs it",
    hint="Connect again in a few seconds; tenants that this proxy already knows are served meanwhile.",
    retry_safe=True,
)
VERIFIERS_UNAVAILABLE: Final = ErrorSpec(
    name="verifiers_unavailable",
    sqlstate="57P03",
    severity=Severity.FATAL,
    log_level="error",
    text="the database server that knows this user cannot be asked now",
    hint="Connect again in a few seconds; the proxy's log tells the operator what the server's answer was.",
    retry_safe=True,
)
NODE_STOPPING: Final = ErrorSpec(
    name="node_stopping",
    sqlstate="57P03",
    severity=Severity.FATAL,
    log_level="info",
    text="the proxy is shutting down and accepts no new connections",
    hint="Connect again; another node, or this one after its restart, will answer.",
    retry_safe=True,
)

# The end of something that was running.

SHUTTING_DOWN: Final = ErrorSpec(
    name="shutting_down",
    sqlstate="57P01",
    severity=Severity.FATAL,
    log_level="info",
    text="terminating connection: the proxy is shutting down",
    hint="Connect again and repeat the transaction if it was not yet committed.",
    retry_safe=False,
)
TERMINATED: Final = ErrorSpec(
    name="terminated",
    sqlstate="57P01",
    severity=Severity.FATAL,
    log_level="info",
    text="terminating connection: {reason}",
    hint="Connect again and repeat the transaction if it was not yet committed.",
    retry_safe=False,
)
QUERY_CANCELED: Final = ErrorSpec(
    name="query_canceled",
    sqlstate="57014",
    severity=Severity.ERROR,
    log_level="debug",
    text="canceling statement due to user request",
    hint="It was still waiting for a database connection, so nothing has run.",
    retry_safe=True,
)
QUERY_TIMEOUT: Final = ErrorSpec(
    name="query_timeout",
    sqlstate="57014",
    severity=Severity.ERROR,
    log_level="info",
    text="canceling statement due to query_timeout: it has run for more than {seconds:g} s",
    hint='Make the statement quicker, or let the operator raise query_timeout of tenant "{tenant}".',
    retry_safe=False,
)
TRANSACTION_TIMEOUT: Final = ErrorSpec(
    name="transaction_timeout",
    sqlstate="25P04",
    severity=Severity.FATAL,
    log_level="info",
    text="terminating connection due to transaction_timeout: the transaction has lasted more than {seconds:g} s",
    hint="It was rolled back: connect again and repeat it in smaller steps, or let the operator raise "
    'transaction_timeout of tenant "{tenant}".',
    retry_safe=False,
)
IDLE_TRANSACTION_TIMEOUT: Final = ErrorSpec(
    name="idle_transaction_timeout",
    sqlstate="25P03",
    severity=Severity.FATAL,
    log_level="info",
    text="terminating connection due to idle_transaction_timeout: the transaction was left idle for more than "
    "{seconds:g} s",
    hint="It was rolled back: end transactions before waiting for something else, or let the operator raise "
    'idle_transaction_timeout of tenant "{tenant}".',
    retry_safe=False,
)
CLIENT_IDLE_TIMEOUT: Final = ErrorSpec(
    name="client_idle_timeout",
    sqlstate="57P05",
    severity=Severity.FATAL,
    log_level="info",
    text="terminating connection due to client_idle_timeout: nothing was asked for more than {seconds:g} s",
    hint="Connect again.  A connection pool should close idle connections sooner than that; the operator can raise "
    'client_idle_timeout of tenant "{tenant}".',
    retry_safe=True,
)
STATEMENT_MODE_TRANSACTION: Final = ErrorSpec(
    name="statement_mode_transaction",
    sqlstate="0A000",
    severity=Severity.FATAL,
    log_level="warning",
    text='transaction blocks are not allowed: tenant "{tenant}" is in statement mode',
    hint="Turn autocommit on in the driver, or let the operator set pool_mode = transaction for this tenant.",
    retry_safe=False,
)
RESULT_TYPE_CHANGED: Final = ErrorSpec(
    name="result_type_changed",
    sqlstate="0A000",
    severity=Severity.ERROR,
    log_level="info",
    text="cached plan must not change result type",
    hint="The schema has changed since the statement was prepared: close it and prepare it again.",
    retry_safe=False,
)
BACKEND_LOST: Final = ErrorSpec(
    name="backend_lost",
    sqlstate="08006",
    severity=Severity.FATAL,
    log_level="warning",
    text="the connection to the database server was lost while it was in use",
    hint="Whether the last statement or commit took effect is unknown: connect again and check before repeating it.",
    retry_safe=False,
)
INTERNAL: Final = ErrorSpec(
    name="internal",
    sqlstate="XX000",
    severity=Severity.FATAL,
    log_level="error",
    text="internal error in the proxy; this connection was closed",
    hint="Other connections are not affected.  The proxy's log has the details; please report it.",
    retry_safe=False,
)

ERRORS: Final[Mapping[str, ErrorSpec]] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            PROTOCOL_VIOLATION,
            UNSUPPORTED_PROTOCOL,
            INVALID_REPLICATION,
            REPLICATION_REFUSED,
            INVALID_OPTIONS,
            LOGIN_TIMEOUT,
            TLS_REQUIRED,
            CERTIFICATE_REQUIRED,
            CERTIFICATE_OF_ANOTHER,
            CHANNEL_BINDING_FAILED,
            CLEARTEXT_FORBIDDEN,
            INVALID_PASSWORD,
            USER_MISSING,
            TENANT_NOT_NAMED,
            CONTRADICTORY_SELECTORS,
            AMBIGUOUS_TENANT,
            UNKNOWN_TENANT,
            TOO_MANY_CLIENTS,
            TENANT_TOO_MANY_CLIENTS,
            TOO_MANY_WAITING,
            QUEUE_TIMEOUT,
            POOL_PINNED,
            SESSION_STATE_REFUSED,
            SESSION_STATE_LEFT,
            SUSPENDED,
            NOT_READY,
            SERVER_DOWN,
            BACKEND_LOGIN_FAILED,
            REGISTRY_DOWN,
            VERIFIERS_UNAVAILABLE,
            NODE_STOPPING,
            SHUTTING_DOWN,
            TERMINATED,
            QUERY_CANCELED,
            QUERY_TIMEOUT,
            TRANSACTION_TIMEOUT,
            IDLE_TRANSACTION_TIMEOUT,
            CLIENT_IDLE_TIMEOUT,
            STATEMENT_MODE_TRANSACTION,
            RESULT_TYPE_CHANGED,
            BACKEND_LOST,
            INTERNAL,
        )
    }
)
