"""Who the client is and which tenant it means."""

from __future__ import annotations

from typing import Final

from proxy.errors.failure import ErrorSpec, Severity

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

SPECS: Final = (
    INVALID_PASSWORD,
    USER_MISSING,
    TENANT_NOT_NAMED,
    CONTRADICTORY_SELECTORS,
    AMBIGUOUS_TENANT,
    UNKNOWN_TENANT,
)
