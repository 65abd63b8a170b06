"""TLS with a server, in the registry: what goes with what, and the key that nobody gets to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from registry import Registry
from registry.contract import Address, ProtocolVersion, Secret, ServerInfo, TlsMode, TlsNegotiation, TlsVersion
from registry.domain.models import ServerChange, TenantChange
from registry.errors import Invalid
from registry.manifest import apply_manifest, export_manifest, parse_manifest
from registry.service import RegistryService

HERE = (Address("db.example.com"),)


def issue(authority: trustme.CA) -> tuple[str, Secret]:
    made = authority.issue_cert(common_name="pgtenant")
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems).decode()
    return chain, Secret(made.private_key_pem.bytes().decode())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pair(authority: trustme.CA) -> tuple[str, Secret]:
    return issue(authority)


async def info(registry: Registry) -> ServerInfo:
    server = (await registry.reader.route_by_name("acme")).value
    assert server is not None
    assert server.server is not None
    return server.server


async def test_nodes_get_the_certificate_with_its_key_opened(registry: Registry, pair: tuple[str, Secret]) -> None:
    service = registry.service
    change = ServerChange(
        addresses=HERE,
        tls_mode=TlsMode.VERIFY_FULL,
        tls_cert=pair[0],
        tls_key=pair[1],
        tls_negotiation=TlsNegotiation.DIRECT,
        tls_min_version=TlsVersion.TLS_1_3,
        protocol=ProtocolVersion.V3_0,
    )
    added = await service.add_server("eu1", change)
    assert added.has_tls_key
    assert pair[1].reveal() not in repr(added)
    await service.add_tenant("acme", TenantChange(server="eu1", database_name="acme", role_user="app"))
    found = await info(registry)
    assert (found.tls_cert, found.tls_key) == pair
    assert (found.tls_negotiation, found.tls_min_version) == (TlsNegotiation.DIRECT, TlsVersion.TLS_1_3)
    assert found.protocol is ProtocolVersion.V3_0
    assert pair[1].reveal() not in repr(found)


async def test_a_change_of_tls_begins_a_new_generation(registry: Registry, authority: trustme.CA) -> None:
    service = registry.service
    await service.add_server("eu1", ServerChange(addresses=HERE, tls_mode=TlsMode.REQUIRE))
    await service.add_tenant("acme", TenantChange(server="eu1", database_name="acme", role_user="app"))
    cert, key = issue(authority)
    renewed, other_key = issue(authority)
    changes = [
        ServerChange(tls_ca=authority.cert_pem.bytes().decode()),
        ServerChange(tls_cert=cert, tls_key=key),
        ServerChange(tls_cert=renewed, tls_key=other_key),
        ServerChange(tls_negotiation=TlsNegotiation.DIRECT),
        ServerChange(tls_min_version=TlsVersion.TLS_1_3),
        ServerChange(protocol=ProtocolVersion.V3_0),
        ServerChange(tls_cert=None, tls_key=None),
    ]
    seen = [(await service.tenant("acme")).generation]
    before = await info(registry)
    for change in changes:
        await service.set_server("eu1", change)
        seen.append((await service.tenant("acme")).generation)
        after = await info(registry)
        assert not before.leads_where(after)
        await service.set_server("eu1", change)
        assert after.leads_where(await info(registry))
        before = after
    assert seen == list(range(seen[0], seen[0] + len(changes) + 1)), "once for each change, and for nothing else"


@pytest.mark.parametrize(
    ("mode", "parts", "reason"),
    [
        (TlsMode.VERIFY_FULL, "cert", "its key is missing"),
        (TlsMode.VERIFY_FULL, "key", "its certificate is missing"),
        (TlsMode.PREFER, "cert key", "client certificate with TLS mode prefer"),
        (TlsMode.DISABLE, "cert key", "client certificate with TLS mode disable"),
        (TlsMode.PREFER, "direct", "direct TLS with TLS mode prefer"),
        (TlsMode.REQUIRE, "cert otherkey", "key of another certificate"),
        (TlsMode.REQUIRE, "cert nokey", "no key that can be used"),
        (TlsMode.REQUIRE, "nocert key", "this is no certificate"),
        (TlsMode.REQUIRE, "badcert key", "cannot be read"),
        (TlsMode.REQUIRE, "keyincert key", "this is no certificate"),
    ],
)
async def test_what_does_not_go_together(
    mode: TlsMode, parts: str, reason: str, service: RegistryService, pair: tuple[str, Secret], authority: trustme.CA
) -> None:
    words: dict[str, tuple[str, Any]] = {
        "cert": ("tls_cert", pair[0]),
        "key": ("tls_key", pair[1]),
        "otherkey": ("tls_key", issue(authority)[1]),
        "nokey": ("tls_key", Secret(pair[0])),
        "nocert": ("tls_cert", "nonsense"),
        "badcert": ("tls_cert", "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n"),
        "keyincert": ("tls_cert", pair[0] + pair[1].reveal()),
        "direct": ("tls_negotiation", TlsNegotiation.DIRECT),
    }
    fields = dict(words[part] for part in parts.split())
    with pytest.raises(Invalid, match=reason) as caught:
        await service.add_server("eu1", ServerChange(addresses=HERE, tls_mode=mode, **fields))
    assert caught.value.hint
    assert pair[1].reveal()[40:80] not in str(caught.value)
    assert await service.servers() == []


async def test_a_renewed_certificate_may_keep_its_key(service: RegistryService, authority: trustme.CA) -> None:
    cert, key = issue(authority)
    await service.add_server("eu1", ServerChange(addresses=HERE, tls_mode=TlsMode.REQUIRE, tls_cert=cert, tls_key=key))
    after = await service.set_server("eu1", ServerChange(tls_cert=cert + authority.cert_pem.bytes().decode()))
    assert after.has_tls_key
    with pytest.raises(Invalid, match="another certificate"):
        await service.set_server("eu1", ServerChange(tls_cert=issue(authority)[0]))


async def test_a_manifest_names_files_and_an_export_names_a_variable(
    registry: Registry, pair: tuple[str, Secret], tmp_path: Path
) -> None:
    (tmp_path / "client.crt").write_text(pair[0])
    (tmp_path / "client.key").write_text(pair[1].reveal())
    text = """
        [[server]]
        name = "eu1"
        host = "db.example.com"
        tls = "verify-full"
        tls_cert_file = "client.crt"
        tls_key_file = "client.key"
        tls_negotiation = "direct"
        tls_min_version = "1.3"
        protocol = "3.0"
    """
    manifest = parse_manifest(text, directory=tmp_path, environment={})
    assert len((await apply_manifest(registry.service, manifest)).differences) == 1
    assert (await apply_manifest(registry.service, manifest)).differences == ()
    exported = await export_manifest(registry.service)
    assert "PRIVATE KEY" not in exported
    assert 'tls_key_env = "SERVER_EU1_TLS_KEY"' in exported
    assert (await apply_manifest(registry.service, parse_manifest(exported, environment={}))).differences == ()
    complete = parse_manifest(exported, environment={"SERVER_EU1_TLS_KEY": pair[1].reveal()})
    await registry.service.remove_server("eu1")
    assert len((await apply_manifest(registry.service, complete)).differences) == 1
    assert (await registry.service.server_access("eu1")).tls_key == pair[1]
