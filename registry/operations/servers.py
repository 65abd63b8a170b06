"""Servers: find, put, remove."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
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
from registry.store.sealing import Sealed, reseal_row
from registry.store.tables import servers, tenants
from registry.store.transaction import Transaction

TABLE: Final = "servers"
DEFAULT_AUTH_DATABASE: Final = "postgres"
SECRETS: Final = ("admin_password", "role_password", "auth_password", "tls_key")


class Outdated(Enum):
    """Which tenants of a server need new backends after a change of it."""

    NOBODY = "nobody"
    USERS_OF_DEFAULT_ROLE = "users of the default role"
    EVERYBODY = "everybody"


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


@dataclass(frozen=True, slots=True)
class ResolvedServer:
    """A server after a change, with its sealed secrets, and whose backends the change makes obsolete."""

    server: Server
    sealed: Sealed
    outdated: Outdated


def resolve_server(
    vault: Vault, before: Server, present: Mapping[str, bytes | None], change: ServerChange, *, is_new: bool
) -> ResolvedServer:
    """Apply a change to a server whose sealed secrets are `present`; raises Invalid, SecretError."""
    # A first pass without looking at secrets, so that nothing invalid is sealed.
    change_server(before, change, role_password_changed=False)
    wanted = {column: getattr(change, column) for column in SECRETS}
    sealed = reseal_row(vault, TABLE, before.server_id, wanted, present)
    outcome = change_server(before, change, role_password_changed="role_password" in sealed.replaced)
    key_changed = "tls_key" in sealed.replaced
    certificate = outcome.server.tls_cert
    if certificate is not None and (is_new or key_changed or certificate != before.tls_cert):
        opened = vault.open(sealed.columns["tls_key"], secret_context(TABLE, before.server_id, "tls_key"))
        assert opened is not None, "a certificate has a key"
        check_pair(certificate, opened)
    outdated = Outdated.NOBODY
    if not is_new and (outcome.moved or key_changed):
        outdated = Outdated.EVERYBODY
    elif not is_new and outcome.role_changed:
        outdated = Outdated.USERS_OF_DEFAULT_ROLE
    return ResolvedServer(outcome.server, sealed, outdated)


async def _write(tx: Transaction, before: Server, row: Any, change: ServerChange) -> Server:
    is_new = row is None
    if is_new:
        server = change_server(before, change, role_password_changed=False).server
        inserted = sa.insert(servers).values(server_values(server)).returning(servers.c.id)
        before = replace(server, server_id=(await tx.connection.execute(inserted)).scalar_one())
    present = {column: None if is_new else row._mapping[column] for column in SECRETS}
    resolved = resolve_server(tx.vault, before, present, change, is_new=is_new)
    after = resolved.server
    if not is_new and after == before and resolved.sealed.columns == present:
        return before
    values = {**server_values(after), **resolved.sealed.columns}
    await tx.connection.execute(sa.update(servers).where(servers.c.id == after.server_id).values(values))
    if resolved.outdated is not Outdated.NOBODY:
        await _outdate(tx, after.server_id, resolved.outdated)
    tx.changed(ChangeKind.SERVER, after.server_id)
    return after


async def _outdate(tx: Transaction, server_id: int, outdated: Outdated) -> None:
    """Begin a new generation of the tenants here, or of those that use the server's default role."""
    concerned = tenants.c.server_id == server_id
    if outdated is Outdated.USERS_OF_DEFAULT_ROLE:
        concerned = sa.and_(concerned, tenants.c.role_user.is_(None))
    await tx.connection.execute(sa.update(tenants).where(concerned).values(generation=tenants.c.generation + 1))


async def _row(connection: AsyncConnection, name: str) -> Any:
    return (await connection.execute(sa.select(servers).where(servers.c.name == name))).one_or_none()


def _absent(name: str) -> NotFound:
    return NotFound(f"there is no server {name!r}", "`pgtenant server list` shows those there are")
