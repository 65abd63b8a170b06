"""Registries of one's own, in SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from harness.databases import Database

from registry import Registry, open_registry
from registry.contract import Address, Secret
from registry.domain.models import LoginChange, ServerChange, TenantChange
from registry.secrets import KeyRing, generate_key
from registry.service import RegistryService

Open = Callable[..., AbstractAsyncContextManager[Registry]]


@pytest.fixture
def keyring() -> KeyRing:
    return KeyRing.parse(generate_key("k1"))


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    make_database: Callable[..., Database] = request.getfixturevalue("make_database")
    return make_database(request.getfixturevalue("pg18"), "registry").url


@pytest.fixture
def open_it(registry_url: str, keyring: KeyRing) -> Open:
    """Open this test's registry as another process would."""
    return lambda **options: open_registry(registry_url, keyring, **options)


@pytest.fixture
async def registry(open_it: Open) -> AsyncIterator[Registry]:
    async with open_it() as opened:
        await opened.upgrade()
        yield opened


@pytest.fixture
def service(registry: Registry) -> RegistryService:
    return registry.service


@pytest.fixture
async def acme(service: RegistryService) -> int:
    """A server, a tenant on it and a login; the tenant's id."""
    await service.add_server(
        "eu1", ServerChange(addresses=(Address("10.0.0.1"),), role_user="app", role_password=Secret("of the server"))
    )
    tenant = await service.add_tenant("acme", TenantChange(server="eu1", database_name="acme_data", aliases=("Acme",)))
    await service.add_login("app", "acme", LoginChange(password=Secret("sesame")))
    return tenant.tenant_id
