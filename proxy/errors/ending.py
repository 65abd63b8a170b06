"""The end of something that was running."""

from __future__ import annotations

from typing import Final

from proxy.errors.failure import ErrorSpec, Severity

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

SPECS: Final = (
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
