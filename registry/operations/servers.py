"""Servers: find, put, remove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import DEFAULT_AUTH_QUERY, AuthQuery, ChangeKind, Credentials, Secret
from registry.domain.models import Server, ServerChange
from registry.domain.server_tls import check_pair
from registry.domain.servers import change_server, check_removal
from registry.errors import Conflict, NotFound
from registry.secrets import Vault
from registry.store.rows import secret_context, server_of, server_values
from registry.store.tables import servers, tenants
from registry.store.transaction import Transaction

TABLE = "servers"
DEFAULT_AUTH_DATABASE: Final = "postgres"
SECRETS: Final = ("admin_password", "role_password", "auth_password", "tls_key")


async def all_servers(connection: AsyncConnection) -> list[Server]:
    """All servers by name."""
    return [server_of(row) for row in await connection.execute(sa.select(servers).order_by(servers.c.name))]


async def find_server(connection: AsyncConnection, name: str) -> Server | None:
    """The server of this name."""
    row = await _row(connection, name)
    return None if row is None else server_of(row)


async def get_server(connection: AsyncConnection, name: str) -> Server:
    """The server of this name; raises NotFound."""
    found = await find_server(connection, name)
    if found is None:
        raise _absent(name)
    return found


async def add_server(tx: Transaction, name: str, change: ServerChange) -> Server:
    """Add a server; raises Conflict where there is one of that name."""
    if await _row(tx.connection, name) is not None:
        raise Conflict(f"there is a server {name!r} already", "choose another name, or change that one")
    return await _write(tx, Server(0, name, ()), None, change)


async def set_server(tx: Transaction, name: str, change: ServerChange) -> Server:
    """Change a server; what stays the same makes no new version.  Raises NotFound, Invalid."""
    row = await _row(tx.connection, name)
    if row is None:
        raise _absent(name)
    return await _write(tx, server_of(row), row, change)


async def remove_server(tx: Transaction, name: str) -> Server:
    """Remove a server that no tenant is on; raises NotFound, Conflict."""
    server = await get_server(tx.connection, name)
    count = sa.select(sa.func.count()).where(tenants.c.server_id == server.server_id)
    check_removal(server, (await tx.connection.execute(count)).scalar_one())
    await tx.connection.execute(sa.delete(servers).where(servers.c.id == server.server_id))
    tx.changed(ChangeKind.SERVER, server.server_id)
    return server


async def server_credentials(connection: AsyncConnection, vault: Vault, name: str) -> Credentials | None:
    """With what administrators log in: the admin user, else the default role; raises NotFound, SecretError."""
    row = await _row(connection, name)
    if row is None:
        raise _absent(name)
    for user, column in ((row.admin_user, "admin_password"), (row.role_user, "role_password")):
        if user is not None:
            return Credentials(user, vault.open(getattr(row, column), secret_context(TABLE, row.id, column)))
    return None


async def server_tls_key(connection: AsyncConnection, vault: Vault, name: str) -> Secret | None:
    """The key of the certificate that a server is shown; raises NotFound, SecretError."""
    row = await _row(connection, name)
    if row is None:
        raise _absent(name)
    return vault.open(row.tls_key, secret_context(TABLE, row.id, "tls_key"))


async def server_auth(connection: AsyncConnection, vault: Vault, name: str) -> AuthQuery | None:
    """How the server is asked for the verifiers of its roles, None where it is not; raises NotFound, SecretError."""
    row = await _row(connection, name)
    if row is None:
        raise _absent(name)
    return auth_query_of(row, vault.open)


def auth_query_of(row: Any, open_secret: Callable[[bytes | None, str], Secret | None]) -> AuthQuery | None:
    """The same for a row of `servers`."""
    if row.auth_user is None:
        return None
    # The admin's password reaches nodes only where the operator has named the admin as the role that asks.
    is_admin = row.auth_user == row.admin_user and row.auth_password is None
    column = "admin_password" if is_admin else "auth_password"
    password = open_secret(getattr(row, column), secret_context(TABLE, row.id, column))
    database, query = row.auth_database or DEFAULT_AUTH_DATABASE, row.auth_query or DEFAULT_AUTH_QUERY
    return AuthQuery(Credentials(row.auth_user, password), database, query)


async def _write(tx: Transaction, before: Server, row: Any, change: ServerChange) -> Server:
    # A first pass without looking at secrets, so that nothing invalid is inserted.
    outcome = change_server(before, change, role_password_changed=False)
    if row is None:
        inserted = sa.insert(servers).values(server_values(outcome.server)).returning(servers.c.id)
        before = replace(outcome.server, server_id=(await tx.connection.execute(inserted)).scalar_one())
    server_id = before.server_id
    sealed = dict.fromkeys(SECRETS) if row is None else row._mapping
    admin, admin_changed = tx.reseal(
        change.admin_password, sealed["admin_password"], secret_context(TABLE, server_id, "admin_password")
    )
    role, role_changed = tx.reseal(
        change.role_password, sealed["role_password"], secret_context(TABLE, server_id, "role_password")
    )
    auth, auth_changed = tx.reseal(
        change.auth_password, sealed["auth_password"], secret_context(TABLE, server_id, "auth_password")
    )
    key_context = secret_context(TABLE, server_id, "tls_key")
    key, key_changed = tx.reseal(change.tls_key, sealed["tls_key"], key_context)
    outcome = change_server(before, change, role_password_changed=role_changed)
    after = outcome.server
    if row is not None and after == before and not (admin_changed or role_changed or auth_changed or key_changed):
        return before
    if after.tls_cert is not None and (row is None or key_changed or after.tls_cert != before.tls_cert):
        opened = tx.vault.open(key, key_context)
        assert opened is not None, "a certificate has a key"
        check_pair(after.tls_cert, opened)
    secrets = {"admin_password": admin, "role_password": role, "auth_password": auth, "tls_key": key}
    values = {**server_values(after), **secrets}
    await tx.connection.execute(sa.update(servers).where(servers.c.id == server_id).values(values))
    moved = outcome.moved or key_changed
    if row is not None and (moved or outcome.role_changed):
        await _outdate(tx, server_id, all_roles=moved)
    tx.changed(ChangeKind.SERVER, server_id)
    return after


async def _outdate(tx: Transaction, server_id: int, *, all_roles: bool) -> None:
    """Begin a new generation of the tenants here, or of those that use the server's default role."""
    concerned = tenants.c.server_id == server_id
    if not all_roles:
        concerned = sa.and_(concerned, tenants.c.role_user.is_(None))
    await tx.connection.execute(sa.update(tenants).where(concerned).values(generation=tenants.c.generation + 1))


async def _row(connection: AsyncConnection, name: str) -> Any:
    return (await connection.execute(sa.select(servers).where(servers.c.name == name))).one_or_none()


def _absent(name: str) -> NotFound:
    return NotFound(f"there is no server {name!r}", "`pgtenant server list` shows those there are")
