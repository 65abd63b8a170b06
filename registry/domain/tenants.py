"""What a change makes of a tenant."""

from __future__ import annotations

from dataclasses import replace

from registry.contract import TenantState
from registry.domain.limits import check_limits
from registry.domain.models import KEEP, Tenant, TenantChange, chosen
from registry.domain.names import check_aliases, check_identifier, check_networks, check_slug
from registry.domain.states import REMOVABLE, check_transition, resting_state
from registry.errors import Conflict, Invalid


def change_tenant(before: Tenant, change: TenantChange, *, server_id: int | None, password_changed: bool) -> Tenant:
    """Apply a change; `server_id` is that of the server asked for, or of the one it has.  Raises Invalid, Conflict.

    Another server, database, role or password makes a new generation: backends of an older one die when released.
    """
    after = replace(
        before,
        slug=check_slug(before.slug),
        aliases=check_aliases(chosen(change.aliases, before.aliases), before.slug),
        server_id=server_id,
        server=chosen(change.server, before.server),
        database_name=chosen(change.database_name, before.database_name),
        role_user=chosen(change.role_user, before.role_user),
        limits=check_limits(chosen(change.limits, before.limits)),
        pool_mode=chosen(change.pool_mode, before.pool_mode),
        reset=chosen(change.reset, before.reset),
        session_state=chosen(change.session_state, before.session_state),
        verifiers=chosen(change.verifiers, before.verifiers),
        networks=check_networks(chosen(change.networks, before.networks)),
        shared=chosen(change.shared, before.shared),
        has_role_password=before.has_role_password
        if change.role_password is KEEP
        else change.role_password is not None,
    )
    if after.database_name is not None:
        check_identifier("database", after.database_name)
    if after.role_user is not None:
        check_identifier("role", after.role_user)
    elif after.has_role_password:
        raise Invalid("role", "a role's password without a role", "name the role, or take the password away")
    if (after.server_id is None) != (after.database_name is None):
        missing = "server" if after.server_id is None else "database"
        raise Invalid(missing, f"tenant {after.slug!r} has no {missing}", "give both, server and database, or neither")
    if after.shared and after.database_name is not None:
        raise Invalid(
            "shared",
            f"tenant {after.slug!r} cannot be served from its own database and from the shared one",
            "give a server and a database, or say that it is served from the shared one",
        )
    state = check_transition(before.slug, before.state, _next_state(before, after, change))
    if state is TenantState.READY and not _has_place(after):
        raise Conflict(f"tenant {after.slug!r} has no database", "give it a server and a database first")
    obsolete = password_changed or _place(before) != _place(after)
    return replace(after, state=state, generation=before.generation + int(obsolete))


def suspended(tenant: Tenant) -> TenantState:
    """The state after a suspension; raises Conflict."""
    return check_transition(tenant.slug, tenant.state, TenantState.SUSPENDED)


def resumed(tenant: Tenant) -> TenantState:
    """The state after the end of a suspension; raises Conflict where there is none."""
    resting = resting_state(has_place=_has_place(tenant))
    if tenant.state not in {TenantState.SUSPENDED, resting}:
        raise Conflict(f"tenant {tenant.slug!r} is {tenant.state}, not suspended", "only a suspended tenant is resumed")
    return resting


def check_removal(tenant: Tenant) -> None:
    """Refuse to remove a tenant on whose database somebody is at work; raises Conflict."""
    if tenant.state not in REMOVABLE:
        raise Conflict(f"tenant {tenant.slug!r} is {tenant.state}", "wait until that has ended")


def _next_state(before: Tenant, after: Tenant, change: TenantChange) -> TenantState:
    has_place = _has_place(after)
    if change.state is not KEEP:
        return change.state
    if before.state in {TenantState.PENDING, TenantState.READY}:
        return resting_state(has_place=has_place)
    if has_place != _has_place(before) and before.state is not TenantState.SUSPENDED:
        raise Conflict(f"tenant {before.slug!r} is {before.state}", "wait until that has ended")
    return before.state


def _has_place(tenant: Tenant) -> bool:
    return tenant.shared or tenant.database_name is not None


def _place(tenant: Tenant) -> tuple[int | None, str | None, str | None, bool]:
    return tenant.server_id, tenant.database_name, tenant.role_user, tenant.shared
