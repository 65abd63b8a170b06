"""Limits, and session state that cannot follow its client from backend to backend."""

from __future__ import annotations

from typing import Final

from proxy.errors.failure import ErrorSpec, Severity

TOO_MANY_CLIENTS: Final = ErrorSpec(
    name="too_many_clients",
    sqlstate="53300",
    severity=Severity.FATAL,
    log_level="warning",
    text="sorry, too many clients already: this proxy accepts {limit}",
    hint="Close idle connections or connect again later; the operator can raise listen.max_clients.",
    retry_safe=True,
)
TOO_MANY_LOGINS: Final = ErrorSpec(
    name="too_many_logins",
    sqlstate="53300",
    severity=Severity.FATAL,
    log_level="debug",
    text="too many logins are under way or wait to begin",
    hint="Connect again later.  The operator can raise listen.max_logins_per_address and listen.max_queued_logins, or "
    "name the network of a host with many clients in listen.trusted_networks.",
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

SPECS: Final = (
    TOO_MANY_CLIENTS,
    TOO_MANY_LOGINS,
    TENANT_TOO_MANY_CLIENTS,
    TOO_MANY_WAITING,
    QUEUE_TIMEOUT,
    POOL_PINNED,
    SESSION_STATE_REFUSED,
    SESSION_STATE_LEFT,
)
