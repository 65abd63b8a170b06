"""What the SQL console says; its sessions go on after all of these but two."""

from __future__ import annotations

from typing import Final

from proxy.errors.failure import ErrorSpec, Severity

CONSOLE_FULL: Final = ErrorSpec(
    name="console_full",
    sqlstate="53300",
    severity=Severity.FATAL,
    log_level="warning",
    text="the console has {limit} sessions{whose} already",
    hint="Close one of them, or raise console.max_sessions.",
    retry_safe=True,
)
CONSOLE_IDLE: Final = ErrorSpec(
    name="console_idle",
    sqlstate="57P05",
    severity=Severity.FATAL,
    log_level="debug",
    text="terminating connection due to console.idle_timeout: nothing was asked for more than {seconds:g} s",
    hint="Connect again; the operator can raise console.idle_timeout.",
    retry_safe=True,
)
CONSOLE_UNKNOWN_COMMAND: Final = ErrorSpec(
    name="console_unknown_command",
    sqlstate="42601",
    severity=Severity.ERROR,
    log_level="debug",
    text="this is no command of the console: {command}",
    hint="SHOW HELP lists its commands; SQL is for the tenants' databases.",
    retry_safe=False,
)
CONSOLE_READ_ONLY: Final = ErrorSpec(
    name="console_read_only",
    sqlstate="42501",
    severity=Severity.ERROR,
    log_level="warning",
    text='permission denied: user "{user}" may only look, not {command}',
    hint="Log in as one of console.admins.",
    retry_safe=False,
)
CONSOLE_UNSUPPORTED: Final = ErrorSpec(
    name="console_unsupported",
    sqlstate="0A000",
    severity=Severity.ERROR,
    log_level="debug",
    text="the console does not support {feature}",
    hint="Send the command as one text, with its names written into it: SHOW CLIENTS 'acme'.",
    retry_safe=False,
)
CONSOLE_NO_STATEMENT: Final = ErrorSpec(
    name="console_no_statement",
    sqlstate="26000",
    severity=Severity.ERROR,
    log_level="debug",
    text='prepared statement "{name}" does not exist',
    hint="Prepare it in this session first.",
    retry_safe=False,
)
CONSOLE_NO_PORTAL: Final = ErrorSpec(
    name="console_no_portal",
    sqlstate="34000",
    severity=Severity.ERROR,
    log_level="debug",
    text='portal "{name}" does not exist',
    hint="Bind it first; portals end with their transaction.",
    retry_safe=False,
)
CONSOLE_TOO_MANY_NAMES: Final = ErrorSpec(
    name="console_too_many_names",
    sqlstate="54000",
    severity=Severity.ERROR,
    log_level="debug",
    text="a session of the console keeps {limit} prepared statements and {limit} portals, under short names",
    hint="Close those that are not needed, or send the command without preparing it.",
    retry_safe=False,
)
RELOAD_FAILED: Final = ErrorSpec(
    name="reload_failed",
    sqlstate="58000",
    severity=Severity.ERROR,
    log_level="error",
    text="reload failed, and what was in force stays in force: {reason}",
    hint="SHOW STATE tells how the registry is; RELOAD may be repeated at any time.",
    retry_safe=True,
)

SPECS: Final = (
    CONSOLE_FULL,
    CONSOLE_IDLE,
    CONSOLE_UNKNOWN_COMMAND,
    CONSOLE_READ_ONLY,
    CONSOLE_UNSUPPORTED,
    CONSOLE_NO_STATEMENT,
    CONSOLE_NO_PORTAL,
    CONSOLE_TOO_MANY_NAMES,
    RELOAD_FAILED,
)
