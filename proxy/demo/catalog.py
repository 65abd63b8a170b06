"""The registry of the demonstration: an SQLite file with a key of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from proxy.demo.facts import ServerFacts
from proxy.demo.shop import Shop
from registry import open_registry
from registry.contract import Address, Secret, TlsMode
from registry.domain.models import LoginChange, ServerChange, TenantChange
from registry.operations import logins, servers, tenants
from registry.secrets import KeyRing, generate_key


@dataclass(frozen=True, slots=True)
class DemoTenant:
    """A tenant of the demonstration: its shop, and the passwords of its application and of its database's owner."""

    shop: Shop
    password: str = field(repr=False)
    role_password: str = field(repr=False)


class DemoRegistry:
    """Where the registry is (`url`) and what opens its secrets (`keys`, the value of PGTENANT_ENCRYPTION_KEYS)."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self.keys = generate_key("demo")

    def fill(self, running: Iterable[ServerFacts], inhabitants: Iterable[DemoTenant], login: str) -> None:
        """Enter the servers, and the tenants each with a login of the name `login`.

        Not for use inside a running event loop.  Raises RegistryError.
        """
        asyncio.run(self._fill(tuple(running), tuple(inhabitants), login))

    async def _fill(self, running: tuple[ServerFacts, ...], inhabitants: tuple[DemoTenant, ...], login: str) -> None:
        async with (
            open_registry(self.url, KeyRing.parse(self.keys)) as registry,
            registry.service.transaction() as transaction,
        ):
            for server in running:
                await servers.add_server(transaction, server_name(server.version), _server(server))
            for tenant in inhabitants:
                await tenants.add_tenant(transaction, tenant.shop.slug, _tenant(tenant))
                password = Secret(tenant.password)
                await logins.add_login(transaction, login, tenant.shop.slug, LoginChange(password=password))


def server_name(version: int) -> str:
    """What a server is called in the registry."""
    return f"pg{version}"


def _server(server: ServerFacts) -> ServerChange:
    return ServerChange(
        addresses=(Address(server.host, server.port),),
        tls_mode=TlsMode.DISABLE,
        admin_user=server.superuser,
        admin_password=Secret(server.password),
    )


def _tenant(tenant: DemoTenant) -> TenantChange:
    return TenantChange(
        server=server_name(tenant.shop.postgres),
        database_name=tenant.shop.database,
        role_user=tenant.shop.role,
        role_password=Secret(tenant.role_password),
    )
