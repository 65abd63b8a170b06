"""What cannot be served now."""

from __future__ import annotations

from typing import Final

from proxy.errors.failure import ErrorSpec, Severity

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
    text='the database of tenant "{tenant}" is not ready: {reason}',
    hint='Connect again later; "pgtenant tenant show {tenant}" tells the operator what it is waiting for.',
    retry_safe=True,
)
NO_DATABASE: Final = ErrorSpec(
    name="no_database",
    sqlstate="57P03",
    severity=Severity.FATAL,
    log_level="info",
    text='tenant "{tenant}" has no database yet',
    hint='The operator gives it one with "pgtenant tenant set {tenant} --server NAME --database NAME", or lets it be '
    "served from the shared database with --shared.",
    retry_safe=False,
)
NO_SHARED_DATABASE: Final = ErrorSpec(
    name="no_shared_database",
    sqlstate="57P03",
    severity=Severity.FATAL,
    log_level="warning",
    text='tenant "{tenant}" is to be served from the shared database, and this proxy has none that is ready',
    hint="Connect again later; the operator names the tenant whose database is shared with routing.shared_tenant, and "
    'sees with "pgtenant tenant show" whether that one is READY.',
    retry_safe=True,
)
NO_ROLE: Final = ErrorSpec(
    name="no_role",
    sqlstate="57P03",
    severity=Severity.FATAL,
    log_level="warning",
    text='the proxy has no role with which to log in to the database of tenant "{tenant}"',
    hint='The operator names one with "pgtenant tenant set {tenant} --role USER --role-password-file FILE", or one for '
    'all tenants of the server with "pgtenant server set".',
    retry_safe=False,
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
    text='the database server did not accept the proxy\'s login for tenant "{tenant}": {reason}',
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

SPECS: Final = (
    SUSPENDED,
    NOT_READY,
    NO_DATABASE,
    NO_SHARED_DATABASE,
    NO_ROLE,
    SERVER_DOWN,
    BACKEND_LOGIN_FAILED,
    REGISTRY_DOWN,
    VERIFIERS_UNAVAILABLE,
    NODE_STOPPING,
)
