"""Tenants: find, put, suspend, resume, remove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import ChangeKind, TenantState
from registry.domain.models import KEEP, Tenant, TenantChange
from registry.domain.names import check_slug
from registry.domain.servers import Placement, check_placement
from registry.domain.tenants import change_tenant, check_removal, resumed, suspended
from registry.errors import Conflict, NotFound
from registry.operations.servers import get_server
from registry.secrets import Vault
from registry.store.rows import tenant_of, tenant_values
from registry.store.sealing import Sealed, reseal_row
from registry.store.tables import logins, servers, tenant_names, tenants
from registry.store.transaction import Transaction

TABLE: Final = "tenants"


async def all_tenants(
    connection: AsyncConnection, *, server: str | None = None, state: TenantState | None = None
) -> list[Tenant]:
    """The tenants by slug; raises NotFound for an unknown server."""
    conditions: list[sa.ColumnElement[bool]] = []
    if server is not None:
        conditions.append(tenants.c.server_id == (await get_server(connection, server)).server_id)
    if state is not None:
        conditions.append(tenants.c.state == state.value)
    return await _load(connection, sa.and_(sa.true(), *conditions))


async def find_tenant(connection: AsyncConnection, name: str) -> Tenant | None:
    """The tenant with this slug or alias."""
    named = sa.select(tenant_names.c.tenant_id).where(tenant_names.c.name == name).scalar_subquery()
    found = await _load(connection, tenants.c.id == named)
    return found[0] if found else None


async def get_tenant(connection: AsyncConnection, name: str) -> Tenant:
    """The tenant with this slug or alias; raises NotFound."""
    found = await find_tenant(connection, name)
    if found is None:
        raise NotFound(f"there is no tenant {name!r}", "`pgtenant tenant list` shows those there are")
    return found


async def add_tenant(
    tx: Transaction, slug: str, change: TenantChange, placement: Placement = Placement.CHECKED
) -> Tenant:
    """Add a tenant, READY where it has a database and PENDING where not; raises Conflict, Invalid, NotFound."""
    await check_is_free(tx.connection, slug)
    # The row needs an id before its secrets can be sealed and its names stored; the transaction hides the bare row.
    new = Tenant(0, check_slug(slug), TenantState.PENDING)
    inserted = sa.insert(tenants).values(tenant_values(new)).returning(tenants.c.id)
    new = replace(new, tenant_id=(await tx.connection.execute(inserted)).scalar_one())
    names = sa.insert(tenant_names).values(name=slug, tenant_id=new.tenant_id, is_slug=True)
    await tx.connection.execute(names)
    return await _write(tx, new, change, placement, is_new=True)


async def check_is_free(connection: AsyncConnection, slug: str) -> None:
    """Raise Conflict where a tenant has this name already."""
    taken = await find_tenant(connection, slug)
    if taken is not None:
        what = "there is a tenant" if taken.slug == slug else f"tenant {taken.slug!r} has the alias"
        raise Conflict(f"{what} {slug!r} already", "choose another slug, or change that tenant")


async def set_tenant(
    tx: Transaction, name: str, change: TenantChange, placement: Placement = Placement.CHECKED
) -> Tenant:
    """Change a tenant; what stays the same makes no new version.  Raises NotFound, Conflict, Invalid."""
    return await _write(tx, await get_tenant(tx.connection, name), change, placement)


async def suspend_tenant(tx: Transaction, name: str) -> Tenant:
    """Refuse the tenant's clients until it is resumed; raises NotFound, Conflict."""
    tenant = await get_tenant(tx.connection, name)
    return await _write(tx, tenant, TenantChange(state=suspended(tenant)))


async def resume_tenant(tx: Transaction, name: str) -> Tenant:
    """End a suspension; raises NotFound, Conflict."""
    tenant = await get_tenant(tx.connection, name)
    return await _write(tx, tenant, TenantChange(state=resumed(tenant)))


async def remove_tenant(tx: Transaction, name: str) -> Tenant:
    """Forget a tenant and its logins; its database stays as it is.  Raises NotFound, Conflict."""
    tenant = await get_tenant(tx.connection, name)
    check_removal(tenant)
    had_logins = sa.select(sa.func.count()).where(logins.c.tenant_id == tenant.tenant_id)
    if (await tx.connection.execute(had_logins)).scalar_one():
        tx.changed(ChangeKind.LOGIN, tenant.tenant_id)
    await tx.connection.execute(sa.delete(tenants).where(tenants.c.id == tenant.tenant_id))
    tx.changed(ChangeKind.TENANT, tenant.tenant_id)
    return tenant


def resolve_tenant(
    vault: Vault,
    before: Tenant,
    present: Mapping[str, bytes | None],
    change: TenantChange,
    *,
    server_id: int | None,
    is_new: bool,
) -> tuple[Tenant, Sealed]:
    """Apply a change to a tenant whose sealed secrets are `present`; raises Invalid, Conflict, SecretError.

    `server_id` is that of the server asked for, or of the one it has.
    """
    wanted = {"role_password": change.role_password}
    sealed = reseal_row(vault, TABLE, before.tenant_id, wanted, present)
    after = change_tenant(before, change, server_id=server_id, password_changed=bool(sealed.replaced))
    return replace(after, generation=1) if is_new else after, sealed


async def _write(
    tx: Transaction,
    before: Tenant,
    change: TenantChange,
    placement: Placement = Placement.CHECKED,
    *,
    is_new: bool = False,
) -> Tenant:
    stored = sa.select(tenants.c.role_password).where(tenants.c.id == before.tenant_id)
    present = {"role_password": (await tx.connection.execute(stored)).scalar_one()}
    server_id = await find_place(tx.connection, before, change, placement)
    after, sealed = resolve_tenant(tx.vault, before, present, change, server_id=server_id, is_new=is_new)
    if after == before and sealed.columns == present and not is_new:
        return before
    values = {**tenant_values(after), **sealed.columns}
    await tx.connection.execute(sa.update(tenants).where(tenants.c.id == after.tenant_id).values(values))
    if after.aliases != before.aliases:
        await _rename(tx, after)
    tx.changed(ChangeKind.TENANT, after.tenant_id)
    return after


async def find_place(
    connection: AsyncConnection, before: Tenant, change: TenantChange, placement: Placement
) -> int | None:
    """The id of the server that a change asks for, or of the one it has; raises NotFound, Conflict."""
    if change.server is KEEP:
        return before.server_id
    if change.server is None:
        return None
    server = await get_server(connection, change.server)
    if placement is Placement.CHECKED and server.server_id != before.server_id:
        check_placement(server)
    return server.server_id


async def _rename(tx: Transaction, tenant: Tenant) -> None:
    taken = await tx.connection.execute(
        sa.select(tenant_names.c.name, tenants.c.slug)
        .join(tenants, tenants.c.id == tenant_names.c.tenant_id)
        .where(tenant_names.c.name.in_(tenant.aliases), tenant_names.c.tenant_id != tenant.tenant_id)
        .order_by(tenant_names.c.name)
    )
    clash = taken.first()
    if clash is not None:
        raise Conflict(f"the name {clash.name!r} is that of tenant {clash.slug!r}", "choose another alias")
    mine = sa.and_(tenant_names.c.tenant_id == tenant.tenant_id, ~tenant_names.c.is_slug)
    await tx.connection.execute(sa.delete(tenant_names).where(mine))
    if tenant.aliases:
        rows = [{"name": name, "tenant_id": tenant.tenant_id, "is_slug": False} for name in tenant.aliases]
        await tx.connection.execute(sa.insert(tenant_names), rows)


async def _load(connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> list[Tenant]:
    statement = (
        sa.select(tenants, servers.c.name.label("server"), tenant_names.c.name.label("alias"))
        .outerjoin(servers, servers.c.id == tenants.c.server_id)
        .outerjoin(tenant_names, sa.and_(tenant_names.c.tenant_id == tenants.c.id, ~tenant_names.c.is_slug))
        .where(condition)
        .order_by(tenants.c.slug)
    )
    rows: dict[int, list[Any]] = {}
    for row in await connection.execute(statement):
        rows.setdefault(row.id, []).append(row)
    return [tenant_of(several[0], several[0].server, _aliases(several)) for several in rows.values()]


def _aliases(rows: Iterable[Any]) -> list[str]:
    return [row.alias for row in rows if row.alias is not None]
