from __future__ import annotations

import base64

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import build_verifier as proxy_verifier
from proxy.auth import md5_hash as proxy_md5
from registry import Registry, open_registry
from registry.contract import Address, AuthMethod, Credentials, Secret
from registry.domain.models import LoginChange, ServerChange, TenantChange
from registry.errors import Invalid, SecretError
from registry.secrets import KeyRing, Vault, generate_key
from registry.store.tables import servers
from registry.verifiers import build_verifier, check_verifier, fits, md5_hash

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY).decode()


@given(st.binary(max_size=200), st.text(max_size=50))
def test_what_is_sealed_is_opened_in_its_context_only(data: bytes, context: str) -> None:
    ring = KeyRing([("k1", KEY)])
    sealed = ring.seal(data, context)
    assert ring.open(sealed, context) == data
    assert ring.seal(data, context) != sealed
    with pytest.raises(SecretError):
        ring.open(sealed, context + "x")


def test_every_changed_byte_is_noticed() -> None:
    ring = KeyRing([("k1", KEY), ("k2", bytes(32))])
    sealed = ring.seal(b"secret", "here")
    for position in range(len(sealed)):
        for bit in (1, 3, 128):
            changed = bytearray(sealed)
            changed[position] ^= bit
            with pytest.raises(SecretError):
                ring.open(bytes(changed), "here")
    for length in range(len(sealed)):
        with pytest.raises(SecretError):
            ring.open(sealed[:length], "here")


def test_the_first_key_seals_and_all_open() -> None:
    old, new = generate_key("old"), generate_key("new")
    sealed = KeyRing.parse(old).seal(b"secret", "here")
    both = KeyRing.parse(f"{new}, {old}")
    assert both.open(sealed, "here") == b"secret"
    assert not both.is_current(sealed)
    assert both.is_current(both.seal(b"secret", "here"))
    with pytest.raises(SecretError, match="'old', which is not on the key ring"):
        KeyRing.parse(new).open(sealed, "here")


@pytest.mark.parametrize(
    "text",
    [TEXT, f":{TEXT}", "k1:", "k1:!!!", f"k1:{TEXT[:-4]}", f"k1:{TEXT},k1:{TEXT}", f"k 1:{TEXT}", f"k1:{TEXT},"],
)
def test_a_bad_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(SecretError) as caught:
        KeyRing.parse(text)
    assert TEXT[:-4] not in f"{caught.value} {caught.value.hint}"


def test_no_key_is_no_default_key() -> None:
    assert KeyRing.from_environment({}) is None
    with pytest.raises(SecretError) as caught:
        Vault(None).seal(Secret("x"), "here")
    assert caught.value.hint is not None
    assert "pgtenant secrets generate-key" in caught.value.hint


def test_keys_do_not_show_themselves() -> None:
    assert repr(KeyRing([("k1", KEY)])) == "KeyRing(k1)"


async def test_the_database_holds_no_secret_in_the_clear(registry: Registry, acme: int) -> None:
    async with registry.service.transaction() as tx:
        stored = (await tx.connection.execute(sa.select(servers.c.role_password))).scalar_one()
    assert b"of the server" not in stored


async def test_a_secret_moved_to_another_row_cannot_be_opened(registry: Registry, acme: int) -> None:
    await registry.service.add_server("eu2", ServerChange(addresses=(Address("10.0.0.2"),), role_user="app"))
    async with registry.service.transaction() as tx:
        stored = (
            await tx.connection.execute(sa.select(servers.c.role_password).where(servers.c.name == "eu1"))
        ).scalar_one()
        await tx.connection.execute(sa.update(servers).where(servers.c.name == "eu2").values(role_password=stored))
    with pytest.raises(SecretError, match="servers/2/role_password"):
        await registry.service.server_access("eu2")
    assert (await registry.service.server_access("eu1")).admin == Credentials("app", Secret("of the server"))


async def test_rotation_seals_everything_with_the_first_key(registry_url: str) -> None:
    old, new = generate_key("old"), generate_key("new")
    async with open_registry(registry_url, KeyRing.parse(old)) as registry:
        await registry.upgrade()
        change = ServerChange(
            addresses=(Address("10.0.0.1"),),
            admin_user="admin",
            admin_password=Secret("a"),
            role_user="r",
            role_password=Secret("b"),
        )
        await registry.service.add_server("eu1", change)
        await registry.service.add_tenant(
            "acme",
            TenantChange(server="eu1", database_name="d", role_user="own", role_password=Secret("c")),
        )
        methods = frozenset({AuthMethod.MD5})
        await registry.service.add_login("app", "acme", LoginChange(password=Secret("d"), methods=methods))
        mock, version = await registry.reader.mock_secret(), await registry.reader.version()
    async with open_registry(registry_url, KeyRing.parse(f"{new},{old}")) as registry:
        assert await registry.service.rotate_keys() == (6, 6)
        assert await registry.service.rotate_keys() == (0, 6)
        assert await registry.reader.version() == version
    async with open_registry(registry_url, KeyRing.parse(new)) as registry:
        assert await registry.reader.mock_secret() == mock
        assert (await registry.service.server_access("eu1")).admin == Credentials("admin", Secret("a"))
        route = (await registry.reader.route_by_name("acme")).value
        assert route is not None
        assert route.role == Credentials("own", Secret("c"))
        login = (await registry.reader.login("app", route.tenant_id)).value
        assert login is not None
        assert dict(login.md5)["app"].reveal() == md5_hash("d", "app")
    async with open_registry(registry_url, KeyRing.parse(old)) as registry:
        with pytest.raises(SecretError, match="'new', which is not on the key ring"):
            await registry.check_keys()


async def test_a_key_ring_is_held_against_every_kind_of_secret(registry_url: str) -> None:
    first, second = generate_key("first"), generate_key("second")
    both, same_id = f"{first},{second}", generate_key("first")
    async with open_registry(registry_url, KeyRing.parse(first)) as registry:
        await registry.upgrade()
        await registry.check_secrets()
        addresses = (Address("10.0.0.1"),)
        admin = ServerChange(addresses=addresses, admin_user="admin", admin_password=Secret("a"))
        await registry.service.add_server("eu1", admin)
        await registry.check_secrets()
    async with open_registry(registry_url, KeyRing.parse(f"{second},{first}")) as registry:
        role = TenantChange(server="eu1", database_name="d", role_user="own", role_password=Secret("c"))
        await registry.service.add_tenant("acme", role)
    for is_whole, ring in ((True, both), (False, first), (False, second), (False, f"{same_id},{second}")):
        async with open_registry(registry_url, KeyRing.parse(ring)) as registry:
            if is_whole:
                await registry.check_secrets()
                continue
            with pytest.raises(SecretError, match=r"not on the key ring|cannot be opened with key 'first'") as caught:
                await registry.check_secrets()
            assert caught.value.hint
    async with open_registry(registry_url, None) as registry:
        with pytest.raises(SecretError, match="PGTENANT_ENCRYPTION_KEYS"):
            await registry.check_secrets()


async def test_without_keys_only_what_needs_them_is_refused(registry_url: str) -> None:
    async with open_registry(registry_url, None) as registry:
        await registry.upgrade()
        await registry.service.add_server("eu1", ServerChange(addresses=(Address("10.0.0.1"),)))
        await registry.service.add_tenant("acme", TenantChange(server="eu1", database_name="acme"))
        await registry.service.add_login("app", "acme", LoginChange(password=Secret("pw")))
        with pytest.raises(SecretError, match="PGTENANT_ENCRYPTION_KEYS"):
            await registry.service.set_server("eu1", ServerChange(role_user="app", role_password=Secret("pw")))
        assert (await registry.service.server("eu1")).role_user is None


@given(
    st.text(max_size=30)
    | st.sampled_from(["pass\u00adword", "I\u00adX", "\u2168", "\u0627\u0031", "a\u00a0b", "\u0007", "Ж\u200b"])
)
def test_verifiers_are_those_that_the_proxy_checks(password: str) -> None:
    salt = b"0123456789abcdef"
    assert build_verifier(password, salt, 2) == proxy_verifier(password, salt, 2).text()
    assert md5_hash(password, "app") == proxy_md5("app", password)
    assert fits(password, build_verifier(password, salt, 2))
    assert not fits(password + "x", build_verifier(password, salt, 2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sesame",
        "md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "SCRAM-SHA-256$0:YWJj$YWJj:YWJj",
        "SCRAM-SHA-256$4096:YWJj$YWJj:YWJj",
        "SCRAM-SHA-256$4096:YW=j$YWJj:YWJj",
        "x" * 5000,
        build_verifier("x", b"salt", 1).replace("$1:", "$9999999999:"),
    ],
)
def test_a_malformed_verifier_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_verifier(text)
    assert not text or text not in str(caught.value)
