"""A proxy and a registry which the tests of one module share, each with tenants of its own."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Any, Self

from harness.databases import Database, create_database, drop_databases
from harness.proxy import ProxyProcess
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from proxy.demo.facts import ServerFacts
from registry.contract import Address, Limits
from registry.domain.models import ServerChange


class World:
    """Tenants on shared servers behind one running proxy.

    At its end it looks at what every test must leave behind: no exception inside the proxy, no secret in its log, as
    many backends in its books as on the servers.
    """

    def __init__(self, registry: RegistryUnderTest, proxy: ProxyProcess) -> None:
        self.registry = registry
        self.proxy = proxy
        self.tenants: list[TenantUnderTest] = []
        self._databases: list[Database] = []
        self._numbers = itertools.count(1)

    def database(self, server: ServerFacts, name: str = "t", *, seed: str = "") -> Database:
        """A database of its own, dropped with this world."""
        database = create_database(server, name, seed=seed)
        self._databases.append(database)
        return database

    def tenant(
        self, place: ServerFacts, /, *, seed: str = "", database: Database | None = None, **change: Any
    ) -> TenantUnderTest:
        """A new tenant, with further fields of TenantChange, on a new database unless told."""
        slug = f"t{next(self._numbers)}"
        tenant = self.registry.add_tenant(slug, database or self.database(place, slug, seed=seed), **change)
        self.tenants.append(tenant)
        return tenant

    def tenant_on_own_server(
        self, place: ServerFacts, /, *, limits: Limits | None = None, **fields: Any
    ) -> TenantUnderTest:
        """A new tenant whose server is entered under a name of its own (`of-<slug>`), with fields of ServerChange."""
        tenant = self.tenant(place, limits=limits or Limits())
        change = ServerChange(**{"addresses": (Address(place.host, place.port),), **fields})
        self.registry.do(lambda service: service.add_server(f"of-{tenant.slug}", change))
        self.registry.set_tenant(tenant.slug, server=f"of-{tenant.slug}")
        return tenant

    def url(self, tenant: TenantUnderTest, **parameters: str) -> str:
        """The tenant's way through the proxy."""
        return self.proxy.url_of(tenant, **parameters)

    def clients(self, tenant: TenantUnderTest, **labels: str) -> int:
        """How many clients the proxy has of this tenant."""
        return int(self.proxy.metric("pgtenant_clients", tenant=tenant.slug, **labels))

    def backends(self, tenant: TenantUnderTest, **labels: str) -> int:
        """How many backends the proxy's books have for this tenant."""
        return int(self.proxy.metric("pgtenant_backends", tenant=tenant.slug, **labels))

    def wait_for_rest(self, tenant: TenantUnderTest) -> None:
        """Wait until no client is left, no backend is busy, and books and server agree."""
        wait_until(lambda: self.clients(tenant) == 0, what=f"the clients of {tenant.slug} gone")
        wait_until(lambda: tenant.database.backends("state <> 'idle'") == 0, what=f"{tenant.slug} at rest")
        wait_until(
            lambda: self.backends(tenant) == tenant.database.backends(), what=f"books that are right for {tenant.slug}"
        )

    def check(self) -> None:
        """Raise AssertionError where something was left behind."""
        assert self.proxy.metric("pgtenant_internal_errors_total") == 0, self.proxy.logs()[-5000:]
        log = self.proxy.logs()
        assert "Traceback" not in log, log[log.index("Traceback") - 1000 :][:5000]
        for tenant in self.tenants:
            assert tenant.password not in log, f"the password of {tenant.slug}'s login is in the log"
            assert tenant.database.password not in log, f"the password of {tenant.slug}'s role is in the log"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self.proxy.running:
                self.check()
        finally:
            drop_databases(self._databases)
