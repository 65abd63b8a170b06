"""The operations of administrators: each is one transaction, and reaches the nodes in under a second.

All raise RegistryUnavailable where the registry cannot be reached, and a RegistryError (NotFound, Conflict,
Invalid, SecretError, SchemaError) with a hint where they are refused; nothing is changed then.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import Secret, TenantState
from registry.domain.models import (
    LoginChange,
    LoginRecord,
    Server,
    ServerChange,
    Tenant,
    TenantChange,
)
from registry.domain.servers import Placement
from registry.operations import keys, logins, servers, tenants
from registry.operations.contents import Contents, read_contents, read_version
from registry.operations.servers import ServerAccess
from registry.operations.tenant_access import TenantAccess, preview_tenant
from registry.secrets import Vault
from registry.store.database import Database
from registry.store.transaction import Transaction, changing

PASSWORD_BYTES = 18


class RegistryService:
    """Servers, tenants and logins; see the module."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    @property
    def vault(self) -> Vault:
        """What opens and seals this registry's secrets."""
        return self._vault

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Several operations as one."""
        return changing(self._database, self._vault)

    # The registry as a whole.

    async def contents(self) -> Contents:
        """All servers, tenants and logins, as they were at one version."""
        async with self._reading() as connection:
            while True:
                contents = await read_contents(connection)
                if await read_version(connection) == contents.version:
                    return contents

    async def new_ids(self, *counts: int) -> list[list[int]]:
        """So many ids for new servers, tenants and logins; those of SQLite are good until the version changes."""
        async with self._reading() as connection:
            tables = (servers.TABLE, tenants.TABLE, logins.TABLE)
            return [
                await self._database.new_ids(connection, table, wanted)
                for table, wanted in zip(tables, counts, strict=True)
            ]

    # Servers.

    async def add_server(self, name: str, change: ServerChange) -> Server:
        async with self.transaction() as tx:
            return await servers.add_server(tx, name, change)

    async def servers(self) -> list[Server]:
        async with self._reading() as connection:
            return await servers.all_servers(connection)

    async def server(self, name: str) -> Server:
        async with self._reading() as connection:
            return await servers.get_server(connection, name)

    async def set_server(self, name: str, change: ServerChange) -> Server:
        async with self.transaction() as tx:
            return await servers.set_server(tx, name, change)

    async def drain_server(self, name: str, *, draining: bool = True) -> Server:
        """Give a server no new tenants any more, or take that back."""
        return await self.set_server(name, ServerChange(draining=draining))

    async def remove_server(self, name: str) -> Server:
        async with self.transaction() as tx:
            return await servers.remove_server(tx, name)

    async def server_access(self, name: str) -> ServerAccess:
        """A server with its secrets opened; raises NotFound, SecretError."""
        async with self._reading() as connection:
            return await servers.server_access(connection, self._vault, name)

    async def preview_server(self, name: str, change: ServerChange, *, is_new: bool) -> ServerAccess:
        """What a change would make of a server; nothing is written."""
        async with self._reading() as connection:
            return await servers.preview_server(connection, self._vault, name, change, is_new=is_new)

    # Tenants.

    async def add_tenant(
        self, slug: str, change: TenantChange | None = None, placement: Placement = Placement.CHECKED
    ) -> Tenant:
        async with self.transaction() as tx:
            return await tenants.add_tenant(tx, slug, change or TenantChange(), placement)

    async def preview_tenant(
        self, name: str, change: TenantChange, placement: Placement, *, is_new: bool
    ) -> TenantAccess | None:
        """What a change would make of a tenant's place, None where it stays as it is; nothing is written."""
        async with self._reading() as connection:
            return await preview_tenant(connection, self._vault, name, change, placement, is_new=is_new)

    async def tenants(self, *, server: str | None = None, state: TenantState | None = None) -> list[Tenant]:
        async with self._reading() as connection:
            return await tenants.all_tenants(connection, server=server, state=state)

    async def tenant(self, name: str) -> Tenant:
        async with self._reading() as connection:
            return await tenants.get_tenant(connection, name)

    async def set_tenant(self, name: str, change: TenantChange, placement: Placement = Placement.CHECKED) -> Tenant:
        async with self.transaction() as tx:
            return await tenants.set_tenant(tx, name, change, placement)

    async def suspend_tenant(self, name: str) -> Tenant:
        async with self.transaction() as tx:
            return await tenants.suspend_tenant(tx, name)

    async def resume_tenant(self, name: str) -> Tenant:
        async with self.transaction() as tx:
            return await tenants.resume_tenant(tx, name)

    async def remove_tenant(self, name: str) -> Tenant:
        async with self.transaction() as tx:
            return await tenants.remove_tenant(tx, name)

    # Logins; `tenant` None is a login for all tenants.

    async def add_login(self, user: str, tenant: str | None, change: LoginChange) -> LoginRecord:
        async with self.transaction() as tx:
            return await logins.add_login(tx, user, tenant, change)

    async def logins(self, *, tenant: str | None = None, all_tenants: bool = False) -> list[LoginRecord]:
        async with self._reading() as connection:
            return await logins.all_logins(connection, tenant=tenant, all_tenants=all_tenants)

    async def login(self, user: str, tenant: str | None) -> LoginRecord:
        async with self._reading() as connection:
            return await logins.get_login(connection, user, tenant)

    async def set_login(self, user: str, tenant: str | None, change: LoginChange) -> LoginRecord:
        async with self.transaction() as tx:
            return await logins.set_login(tx, user, tenant, change)

    async def rotate_login(self, user: str, tenant: str | None, password: Secret | None = None) -> Secret:
        """Give a login another password, a new one where none is given, and return it."""
        chosen = password or new_password()
        await self.set_login(user, tenant, LoginChange(password=chosen))
        return chosen

    async def remove_login(self, user: str, tenant: str | None) -> LoginRecord:
        async with self.transaction() as tx:
            return await logins.remove_login(tx, user, tenant)

    # Keys.

    async def rotate_keys(self) -> tuple[int, int]:
        """Seal all secrets with the first key; returns how many were not yet, and how many there are."""
        async with self.transaction() as tx:
            return await keys.reseal_all(tx)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with self._database.errors():
            await self._database.look_after_pools()
            async with self._database.reading.connect() as connection:
                yield connection


def new_password() -> Secret:
    """A random password of 24 letters, digits, `-` and `_`."""
    return Secret(secrets.token_urlsafe(PASSWORD_BYTES))
