"""Registries for single tests, filled in a few words."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness.databases import Database
from proxy.demo.facts import ServerFacts
from registry import open_registry
from registry.contract import Address, Secret
from registry.domain.models import LoginChange, Server, ServerChange, TenantChange
from registry.secrets import KeyRing, generate_key
from registry.service import RegistryService

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TenantUnderTest:
    """A tenant with a login: what an application has to know, and the database behind it."""

    slug: str
    user: str
    password: str = field(repr=False)
    database: Database


class RegistryUnderTest:
    """A registry at `url` (an SQLite file in `directory` unless told), opened anew for every operation.

    All methods block for some milliseconds and work with and without a running event loop.
    """

    def __init__(self, directory: Path, *, url: str | None = None) -> None:
        self.url = url or f"sqlite:///{directory / 'registry.db'}"
        self.keys = generate_key("test")
        self._servers: dict[int, str] = {}

    def do(self, operation: Callable[[RegistryService], Coroutine[Any, Any, T]]) -> T:
        """Run one operation of an administrator: `registry.do(lambda service: service.suspend_tenant("acme"))`."""

        async def run() -> T:
            async with open_registry(self.url, KeyRing.parse(self.keys)) as registry:
                await registry.upgrade()
                return await operation(registry.service)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result()

    def add_server(self, server: ServerFacts, name: str | None = None, **change: Any) -> str:
        """Enter a server, by default as `pg<version>`, with further fields of ServerChange; return its name."""
        chosen = name or f"pg{server.version}"
        asked = {
            "addresses": (Address(server.host, server.port),),
            "admin_user": server.superuser,
            "admin_password": Secret(server.password),
            **change,
        }
        self.do(lambda service: service.add_server(chosen, ServerChange(**asked)))
        self._servers[server.port] = chosen
        return chosen

    def add_tenant(
        self, slug: str, database: Database, *, user: str = "app", login: LoginChange | None = None, **change: Any
    ) -> TenantUnderTest:
        """Enter a tenant on this database, with further fields of TenantChange, and one login.

        Its server is entered when it is not there yet.
        """
        password = secrets.token_urlsafe(12)
        asked = {**self.place(database), **change}
        made = login or LoginChange(password=Secret(password))

        async def add(service: RegistryService) -> None:
            await service.add_tenant(slug, TenantChange(**asked))
            await service.add_login(user, slug, made)

        self.do(add)
        return TenantUnderTest(slug, user, password, database)

    def set_tenant(self, slug: str, **change: Any) -> None:
        """Change fields of TenantChange."""
        self.do(lambda service: service.set_tenant(slug, TenantChange(**change)))

    def set_server(self, name: str, **change: Any) -> Server:
        """Change fields of ServerChange."""
        return self.do(lambda service: service.set_server(name, ServerChange(**change)))

    def repoint(self, slug: str, database: Database) -> None:
        """Move a tenant's route to another database."""
        self.set_tenant(slug, **self.place(database))

    def place(self, database: Database) -> dict[str, Any]:
        """The fields of TenantChange that lead to this database, whose server is entered when it is not there yet."""
        if database.server.port not in self._servers:
            self.add_server(database.server)
        return {
            "server": self._servers[database.server.port],
            "database_name": database.name,
            "role_user": database.role,
            "role_password": Secret(database.password),
        }
