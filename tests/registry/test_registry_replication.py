"""Logins that may replicate, and limits that cannot be switched off."""

from __future__ import annotations

import pytest

from registry import Registry
from registry.contract import Limits, ReplicationAccess, Secret
from registry.domain.limits import check_limits
from registry.domain.models import LoginChange, TenantChange
from registry.errors import Invalid
from registry.manifest import apply_manifest, export_manifest, parse_manifest

PASSWORD = Secret("a long enough password")


async def test_a_login_replicates_nothing_unless_told(registry: Registry) -> None:
    service = registry.service
    await service.add_tenant("acme", TenantChange())
    assert (await service.add_login("app", "acme", LoginChange(password=PASSWORD))).replication == "none"
    changed = await service.set_login("app", "acme", LoginChange(replication=ReplicationAccess.DATABASE))
    assert changed.replication is ReplicationAccess.DATABASE
    tenant = await service.tenant("acme")
    found = (await registry.reader.login("app", tenant.tenant_id)).value
    assert found is not None
    assert found.replication is ReplicationAccess.DATABASE


async def test_only_a_login_for_all_tenants_may_replicate_a_server(registry: Registry) -> None:
    service = registry.service
    await service.add_tenant("acme", TenantChange())
    whole = LoginChange(password=PASSWORD, replication=ReplicationAccess.SERVER)
    with pytest.raises(Invalid, match="all tenants"):
        await service.add_login("app", "acme", whole)
    assert (await service.add_login("staff", None, whole)).replication is ReplicationAccess.SERVER


async def test_replication_goes_through_a_manifest_and_back(registry: Registry) -> None:
    service = registry.service
    await service.add_tenant("acme", TenantChange(limits=Limits(query_timeout=2.5, client_idle_timeout=0)))
    await service.add_login("app", "acme", LoginChange(password=PASSWORD, replication=ReplicationAccess.DATABASE))
    text = await export_manifest(service)
    assert 'replication = "database"' in text
    assert "query_timeout = 2.5" in text
    assert (await apply_manifest(service, parse_manifest(text))).differences == ()


@pytest.mark.parametrize("limits", [Limits(login_timeout=0.0), Limits(connect_timeout=0.0)])
def test_some_limits_cannot_be_switched_off(limits: Limits) -> None:
    with pytest.raises(Invalid, match="_timeout is 0"):
        check_limits(limits)
