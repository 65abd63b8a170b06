"""Tenants with what it takes to try their databases: server, role, and which others are on the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import Address, Credentials, TenantState
from registry.domain.models import Tenant, TenantChange
from registry.domain.names import check_slug
from registry.domain.servers import Placement
from registry.operations import tenants as operations
from registry.operations.contents import Contents, Stored
from registry.operations.servers import SECRETS, Opener, ServerAccess, access_to
from registry.secrets import Vault
from registry.store.rows import secret_context, server_of
from registry.store.tables import servers, tenants


@dataclass(frozen=True, slots=True)
class TenantAccess:
    """A tenant and how its database is reached; `server` None: it has no database of its own.

    `role` is with what its backends log in, None where it has no role and its server no default one.  `same_database`
    has the slugs of other tenants on the same database.
    """

    tenant: Tenant
    server: ServerAccess | None
    role: Credentials | None = field(repr=False)
    same_database: tuple[str, ...] = ()


async def preview_tenant(
    connection: AsyncConnection,
    vault: Vault,
    name: str,
    change: TenantChange,
    placement: Placement,
    *,
    is_new: bool,
) -> TenantAccess | None:
    """What `add_tenant` or `set_tenant` would make of a tenant, which is not written; None where it stays in place.

    Raises what they raise, but for aliases that are taken.
    """
    row = None
    if is_new:
        await operations.check_is_free(connection, name)
        before = Tenant(0, check_slug(name), TenantState.PENDING)
    else:
        before = await operations.get_tenant(connection, name)
        stored = sa.select(tenants.c.role_password).where(tenants.c.id == before.tenant_id)
        row = (await connection.execute(stored)).scalar_one()
    server_id = await operations.find_place(connection, before, change, placement)
    after, sealed = operations.resolve_tenant(
        vault, before, {"role_password": row}, change, server_id=server_id, is_new=is_new
    )
    if not is_new and after.generation == before.generation:
        return None
    if server_id is None:
        return TenantAccess(after, None, None)
    found = (await connection.execute(sa.select(servers).where(servers.c.id == server_id))).one()
    access = access_to(server_of(found), {column: found._mapping[column] for column in SECRETS}, vault.open)
    same = (
        sa.select(tenants.c.slug, servers)
        .join(servers, servers.c.id == tenants.c.server_id)
        .where(tenants.c.database_name == after.database_name, tenants.c.id != after.tenant_id)
        .order_by(tenants.c.slug)
    )
    places = [(one.slug, server_of(one).addresses) for one in await connection.execute(same)]
    same_database = tuple(slug for slug, addresses in places if set(addresses) & set(access.server.addresses))
    return TenantAccess(after, access, _role(after, sealed.columns["role_password"], access, vault.open), same_database)


def changed_tenants(before: Contents, after: Contents, open_secret: Opener) -> Iterator[TenantAccess]:
    """The tenants that a change of the registry adds, and those whose server, database or role it changes."""
    accesses = {one.record.server_id: access_to(one.record, one.sealed, open_secret) for one in after.servers.values()}
    on_database: dict[tuple[Address, str], set[str]] = defaultdict(set)
    for slug, one in after.tenants.items():
        for place in _places(one.record, accesses):
            on_database[place].add(slug)
    for slug, one in after.tenants.items():
        known = before.tenants.get(slug)
        if known is not None and _same_place(known, one):
            continue
        tenant = one.record
        access = None if tenant.server_id is None else accesses[tenant.server_id]
        others = {other for place in _places(tenant, accesses) for other in on_database[place]} - {slug}
        role = None if access is None else _role(tenant, one.sealed["role_password"], access, open_secret)
        yield TenantAccess(tenant, access, role, tuple(sorted(others)))


def _places(tenant: Tenant, accesses: dict[int, ServerAccess]) -> list[tuple[Address, str]]:
    if tenant.server_id is None or tenant.database_name is None:
        return []
    return [(address, tenant.database_name) for address in accesses[tenant.server_id].server.addresses]


def _same_place(before: Stored[Tenant], after: Stored[Tenant]) -> bool:
    one, other = before.record, after.record
    return (one.server_id, one.database_name, one.role_user, one.shared, before.sealed) == (
        other.server_id,
        other.database_name,
        other.role_user,
        other.shared,
        after.sealed,
    )


def _role(tenant: Tenant, sealed: bytes | None, access: ServerAccess, open_secret: Opener) -> Credentials | None:
    if tenant.role_user is None:
        return access.role
    context = secret_context(tenants.name, tenant.tenant_id, "role_password")
    return Credentials(tenant.role_user, open_secret(sealed, context))
