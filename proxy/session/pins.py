"""Why a client keeps its backend beyond the transaction, as bits, and their names.

Besides the pins proper there are marks, which pin nobody: they say that something has to be looked at before the
backend may be given to anybody else, and `proxy.net.settling` takes them away.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

PIN_SET: Final = 1
"""Settings that cannot be followed.  In `BackState` it is a mark: SET has succeeded, and its text is to be read."""
PIN_LISTEN: Final = 2
PIN_PREPARE: Final = 4
PIN_TEMPORARY: Final = 8
PIN_HOLD: Final = 16
PIN_ADVISORY: Final = 32
PIN_SET_CONFIG: Final = 64
PIN_LOAD: Final = 128
PIN_STATEMENT: Final = 256
PIN_UNNAMED: Final = 512
PIN_DOUBT: Final = 1024
PIN_SESSION: Final = 2048
PIN_ROLE: Final = 65536
PIN_PIPELINE: Final = 8192
"""A transaction may be open although the server says that there is none: see `BackState._weigh_status`."""

TO_RESET: Final = 4096
"""Mark: the client has taken away settings, those that the proxy set for it perhaps included."""
KEPT: Final = 131072
"""Mark: a text is kept that may set something."""
CALLED: Final = 262144
"""Mark: one of the texts kept calls `set_config`, of which no command tag tells."""
REPORTED: Final = 524288
"""Mark: the server has reported another value of a parameter."""
TO_CHECK: Final = 1048576
"""Mark: what pins may be gone."""
ROLLED_BACK: Final = 2097152
"""Mark: a SET or RESET was followed by an error or a rollback in its transaction, and may not last."""
RESET_ALL: Final = 4194304
"""Mark: the client has taken away all settings at once."""
UNSETTLED: Final = 8388608
"""Mark: the client has changed settings, and their values are not known yet."""
ROLES_CHANGED: Final = 16777216
"""Mark: a role of the server has been made, changed or dropped, its password perhaps."""

CONCERNS_NODE: Final = 33554432
"""Mark of a parsed statement: it concerns the node once it is bound (`proxy.session.node_statements`)."""

CHANGES: Final = PIN_SET | TO_RESET | CALLED | REPORTED
"""Marks (in `BackState`, and CALLED in `FrontState`) that settings may have changed."""
MARKS: Final = TO_RESET | KEPT | CALLED | REPORTED | TO_CHECK | ROLLED_BACK | RESET_ALL | UNSETTLED | ROLES_CHANGED
PINS_DIRTY: Final = 511 | PIN_DOUBT | PIN_PIPELINE | PIN_ROLE | TO_RESET | CALLED | REPORTED | UNSETTLED
"""The pins and marks that leave something in the backend which DISCARD ALL removes."""
ASKABLE: Final = PIN_LISTEN | PIN_PREPARE | PIN_TEMPORARY | PIN_HOLD | PIN_ADVISORY | PIN_ROLE
"""The pins whose reason the server can be asked about."""
LEFT_BY_CLIENT: Final = ASKABLE | PIN_SET | PIN_SET_CONFIG | PIN_LOAD
"""The pins that a tenant's policy is about: session state, and not the protocol's or the pool mode's reasons."""

# What becomes of a client with one of them: `registry.contract.SessionStatePolicy`.
POLICY_PIN: Final = 0
POLICY_REJECT: Final = 1
POLICY_ALLOW: Final = 2

NAMES: Final[tuple[tuple[int, str], ...]] = (
    (PIN_SET, "settings"),
    (PIN_LISTEN, "listen"),
    (PIN_PREPARE, "prepare"),
    (PIN_TEMPORARY, "temporary"),
    (PIN_HOLD, "hold_cursor"),
    (PIN_ADVISORY, "advisory_lock"),
    (PIN_SET_CONFIG, "set_config"),
    (PIN_LOAD, "load"),
    (PIN_STATEMENT, "statement"),
    (PIN_UNNAMED, "unnamed_statement"),
    (PIN_DOUBT, "copy"),
    (PIN_PIPELINE, "pipeline"),
    (PIN_ROLE, "role"),
    (PIN_SESSION, "session_mode"),
)


def pin_names(pins: int) -> tuple[str, ...]:
    """Name the pins among these bits, in a fixed order; marks have no name."""
    return tuple(name for bit, name in NAMES if pins & bit)
