"""Servers: find, put, remove."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, TypeAlias

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


Opener: TypeAlias = Callable[[bytes | None, str], Secret | None]
"""Opens a sealed secret in its context, as `Vault.open` does."""


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
        raise _present(name)
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


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """A server with its secrets opened: what it takes to log in to it.

    `admin` is with what it is administered: the admin, else the default role; `role` is that default role.
    """

    server: Server
    admin: Credentials | None
    role: Credentials | None
    auth: AuthQuery | None
    tls_key: Secret | None = field(repr=False)


async def server_access(connection: AsyncConnection, vault: Vault, name: str) -> ServerAccess:
    """The server of this name with its secrets; raises NotFound, SecretError."""
    row = await _row(connection, name)
    if row is None:
        raise _absent(name)
    return access_to(server_of(row), {column: row._mapping[column] for column in SECRETS}, vault.open)


async def preview_server(
    connection: AsyncConnection, vault: Vault, name: str, change: ServerChange, *, is_new: bool
) -> ServerAccess:
    """What `add_server` or `set_server` would make of a server, which is not written; raises what they raise."""
    row = await _row(connection, name)
    if is_new and row is not None:
        raise _present(name)
    if not is_new and row is None:
        raise _absent(name)
    before = Server(0, name, ()) if row is None else server_of(row)
    present = {column: None if row is None else row._mapping[column] for column in SECRETS}
    resolved = resolve_server(vault, before, present, change, is_new=is_new)
    return access_to(resolved.server, resolved.sealed.columns, vault.open)


def access_to(server: Server, sealed: Mapping[str, bytes | None], open_secret: Opener) -> ServerAccess:
    """The same of a server whose sealed secrets are at hand; raises what the opener raises."""

    def credentials(user: str | None, column: str) -> Credentials | None:
        if user is None:
            return None
        return Credentials(user, open_secret(sealed[column], secret_context(TABLE, server.server_id, column)))

    role = credentials(server.role_user, "role_password")
    return ServerAccess(
        server,
        admin=credentials(server.admin_user, "admin_password") or role,
        role=role,
        auth=auth_query_of(server, sealed, open_secret),
        tls_key=open_secret(sealed["tls_key"], secret_context(TABLE, server.server_id, "tls_key")),
    )


def auth_query_of(server: Server, sealed: Mapping[str, bytes | None], open_secret: Opener) -> AuthQuery | None:
    """How a server is asked for the verifiers of its roles, None where it is not."""
    if server.auth_user is None:
        return None
    # The admin's password reaches nodes only where the operator has named the admin as the role that asks.
    is_admin = server.auth_user == server.admin_user and sealed["auth_password"] is None
    column = "admin_password" if is_admin else "auth_password"
    password = open_secret(sealed[column], secret_context(TABLE, server.server_id, column))
    database, query = server.auth_database or DEFAULT_AUTH_DATABASE, server.auth_query or DEFAULT_AUTH_QUERY
    return AuthQuery(Credentials(server.auth_user, password), database, query)


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


def _present(name: str) -> Conflict:
    return Conflict(f"there is a server {name!r} already", "choose another name, or change that one")


def _absent(name: str) -> NotFound:
    return NotFound(f"there is no server {name!r}", "`pgtenant server list` shows those there are")
