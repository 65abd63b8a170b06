"""The connection itself: protocol, options, TLS and the time a login may take."""

from __future__ import annotations

from typing import Final

from proxy.errors.failure import ErrorSpec, Severity

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
SCRAM_NEEDED: Final = ErrorSpec(
    name="scram_needed",
    sqlstate="28000",
    severity=Severity.FATAL,
    log_level="info",
    text='user "{user}" is a role of the tenant\'s server, and can only log in with SCRAM-SHA-256',
    hint="Use a driver that supports SCRAM-SHA-256, or let the operator add a login of this name.",
    retry_safe=False,
)

SPECS: Final = (
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
    SCRAM_NEEDED,
)
