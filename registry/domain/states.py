"""The states of a tenant's database and the ways between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from registry.contract import TenantState
from registry.errors import Conflict

TRANSITIONS: Final[Mapping[TenantState, frozenset[TenantState]]] = {
    TenantState.PENDING: frozenset(
        {TenantState.CREATING, TenantState.READY, TenantState.SUSPENDED, TenantState.DROPPING}
    ),
    TenantState.CREATING: frozenset({TenantState.READY, TenantState.ERROR}),
    TenantState.READY: frozenset(
        {TenantState.PENDING, TenantState.SUSPENDED, TenantState.MOVING, TenantState.ERROR, TenantState.DROPPING}
    ),
    TenantState.ERROR: frozenset({TenantState.CREATING, TenantState.READY, TenantState.DROPPING}),
    TenantState.SUSPENDED: frozenset({TenantState.PENDING, TenantState.READY, TenantState.DROPPING}),
    TenantState.MOVING: frozenset({TenantState.READY, TenantState.ERROR}),
    TenantState.DROPPING: frozenset({TenantState.ERROR}),
}

REMOVABLE: Final = frozenset({TenantState.PENDING, TenantState.READY, TenantState.ERROR, TenantState.SUSPENDED})
"""The states in which nobody is at work on the tenant's database, so that its row may go."""


def check_transition(slug: str, before: TenantState, after: TenantState) -> TenantState:
    """Return the new state where the way to it exists or it is the old one; raises Conflict."""
    if before is after or after in TRANSITIONS[before]:
        return after
    ways = ", ".join(sorted(TRANSITIONS[before]))
    raise Conflict(
        f"tenant {slug!r} is {before} and cannot become {after}", f"from {before} a tenant can become: {ways}"
    )


def resting_state(*, has_place: bool) -> TenantState:
    """The state of a tenant with which nothing is going on; its place is a database of its own or the shared one."""
    return TenantState.READY if has_place else TenantState.PENDING
