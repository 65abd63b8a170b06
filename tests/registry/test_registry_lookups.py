from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.waiting import wait_until

from proxy.auth import ScramVerifier, md5_hash, verify_cleartext
from registry import Registry, open_registry
from registry.contract import (
    Address,
    AuthMethod,
    AuthQuery,
    Credentials,
    Limits,
    RegistryUnavailable,
    Route,
    Secret,
    TenantState,
    TlsMode,
)
from registry.decoding import EvenWork
from registry.domain.models import LoginChange, ServerChange, TenantChange
from registry.errors import RegistryError
from registry.secrets import KeyRing, generate_key
from registry.service import RegistryService


async def route_of(registry: Registry, name: str) -> Route:
    route = (await registry.reader.route_by_name(name)).value
    assert route is not None
    return route


async def test_a_route_is_found_by_slug_alias_id_and_database(registry: Registry, acme: int) -> None:
    by_slug = await registry.reader.route_by_name("acme")
    route = by_slug.value
    assert route is not None
    assert (route.tenant_id, route.slug, route.aliases, route.state) == (acme, "acme", ("Acme",), TenantState.READY)
    assert route.server is not None
    assert (route.server.name, route.server.addresses) == ("eu1", (Address("10.0.0.1"),))
    assert by_slug == await registry.reader.route_by_name("Acme") == await registry.reader.route_by_id(acme)
    assert list((await registry.reader.routes_by_database("acme_data")).value) == [route]
    assert by_slug.version == await registry.reader.version()


async def test_the_servers_reserve_is_not_the_nodes(registry: Registry, acme: int) -> None:
    await registry.service.set_server("eu1", ServerChange(max_connections=200, reserve=15, tls_mode=TlsMode.REQUIRE))
    server = (await route_of(registry, "acme")).server
    assert server is not None
    assert (server.max_connections, server.tls_mode) == (185, TlsMode.REQUIRE)


async def test_a_tenant_without_a_role_uses_the_servers(registry: Registry, acme: int) -> None:
    route = await route_of(registry, "acme")
    assert route.role == Credentials("app", Secret("of the server"))
    await registry.service.set_tenant("acme", TenantChange(role_user="acme_role", role_password=Secret("own")))
    route = await route_of(registry, "acme")
    assert route.role == Credentials("acme_role", Secret("own"))


async def test_nodes_learn_the_admins_password_only_where_the_admin_is_to_ask(registry: Registry, acme: int) -> None:
    admin = ServerChange(admin_user="postgres", admin_password=Secret("of the admin"))
    await registry.service.set_server("eu1", admin)
    server = (await route_of(registry, "acme")).server
    assert server is not None
    assert server.auth is None
    await registry.service.set_server("eu1", ServerChange(auth_user="asker", auth_password=Secret("its own")))
    server = (await route_of(registry, "acme")).server
    assert server is not None
    assert server.auth == AuthQuery(Credentials("asker", Secret("its own")), "postgres")
    await registry.service.set_server("eu1", ServerChange(auth_user="postgres", auth_password=None))
    server = (await route_of(registry, "acme")).server
    assert server is not None
    assert server.auth == AuthQuery(Credentials("postgres", Secret("of the admin")), "postgres")


async def test_a_pending_tenant_has_a_route_without_a_server(registry: Registry) -> None:
    await registry.service.add_tenant("new", TenantChange(limits=Limits(pool_size=3, queue_wait_timeout=1.5)))
    route = await route_of(registry, "new")
    assert (route.state, route.server, route.database_name, route.role) == (TenantState.PENDING, None, None, None)
    assert route.limits == Limits(pool_size=3, queue_wait_timeout=1.5)


@pytest.mark.parametrize("name", ["nobody", "", "x" * 500, "a\0b", "\udcff", "'; drop table tenants --"])
async def test_unknown_names_are_answered_with_a_version(registry: Registry, name: str) -> None:
    reader, version = registry.reader, await registry.reader.version()
    assert (await reader.route_by_name(name)).value is None
    assert list((await reader.routes_by_database(name)).value) == []
    assert list((await reader.logins_by_user(name)).value) == []
    answer = await reader.login(name, 1)
    assert (answer.version, answer.value) == (version, None)


async def test_an_ambiguous_database_gives_two_routes(registry: Registry, acme: int) -> None:
    await registry.service.add_server("eu2", ServerChange(addresses=(Address("10.0.0.2"),)))
    for slug in ("b", "c"):
        await registry.service.add_tenant(
            slug, TenantChange(server="eu2", database_name="acme_data", aliases=(f"{slug}1", f"{slug}2"))
        )
    assert [route.slug for route in (await registry.reader.routes_by_database("acme_data")).value] == ["acme", "b"]


async def test_the_tenants_own_login_goes_before_the_one_for_all(registry: Registry, acme: int) -> None:
    service, reader = registry.service, registry.reader
    await service.add_login("app", None, LoginChange(password=Secret("everywhere"), role_user="support"))
    own = (await reader.login("app", acme)).value
    assert own is not None
    assert own.tenant_id == acme
    other = (await reader.login("app", acme + 1)).value
    assert other is not None
    assert (other.tenant_id, other.role) == (None, Credentials("support"))
    assert [login.tenant_id for login in (await reader.logins_by_user("app")).value] == [acme, None]


async def test_the_verifier_is_that_of_the_password(registry: Registry, acme: int) -> None:
    login = (await registry.reader.login("app", acme)).value
    assert login is not None
    assert verify_cleartext(ScramVerifier.parse(login.verifier), "sesame")
    assert not verify_cleartext(ScramVerifier.parse(login.verifier), "open")
    assert login.methods == {AuthMethod.SCRAM}


async def test_md5_hashes_are_kept_for_each_spelling(registry: Registry, acme: int) -> None:
    methods = frozenset({AuthMethod.MD5, AuthMethod.SCRAM})
    await registry.service.add_login("old", "acme", LoginChange(password=Secret("pw"), methods=methods))
    login = (await registry.reader.login("old", acme)).value
    assert login is not None
    assert {spelling: secret.reveal() for spelling, secret in login.md5} == {
        spelling: md5_hash(spelling, "pw") for spelling in ("old", "old.acme", "old.Acme")
    }


async def test_a_hundred_lookups_at_once_are_answered(registry: Registry, acme: int) -> None:
    answers = await asyncio.gather(*(registry.reader.route_by_name("acme") for _ in range(100)))
    assert {answer.value.tenant_id for answer in answers if answer.value is not None} == {acme}
    assert len(answers) == 100


async def test_the_mock_secret_is_the_same_everywhere(registry: Registry, registry_url: str, keyring: KeyRing) -> None:
    async with open_registry(registry_url, keyring) as other:
        secrets = await asyncio.gather(registry.reader.mock_secret(), other.reader.mock_secret())
    assert secrets[0] == secrets[1]
    assert len(secrets[0]) == 32


async def test_a_secret_of_another_key_harms_only_its_tenant(
    registry: Registry, registry_url: str, acme: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_registry(registry_url, KeyRing.parse(generate_key("other"))) as other:
        route = (await other.reader.route_by_id(acme)).value
        assert route is not None
        assert route.role == Credentials("app", None)
        await other.reader.route_by_name("acme")
        assert caplog.text.count("servers/1/role_password") == 1, "strangers may ask for it as often as they like"
        assert "of the server" not in caplog.text
        with pytest.raises(RegistryUnavailable, match="'k1', which is not on the key ring"):
            await other.reader.mock_secret()


async def test_an_unreachable_registry_is_unavailable_and_keeps_its_password() -> None:
    async with open_registry("postgresql://node:hunter2@127.0.0.1:1/nowhere", None) as registry:
        for ask in (registry.reader.version(), registry.reader.route_by_name("acme"), registry.reader.reload()):
            with pytest.raises(RegistryUnavailable, match=r"node@127\.0\.0\.1:1/nowhere") as caught:
                await ask
            assert "hunter2" not in str(caught.value)
        with pytest.raises(RegistryUnavailable):
            await anext(registry.reader.changes())


async def test_a_database_without_tables_says_how_to_make_them(
    open_it: object, registry_url: str, keyring: KeyRing
) -> None:
    if registry_url.startswith("sqlite"):
        pytest.skip("SQLite makes its tables by itself")
    async with open_registry(registry_url, keyring) as registry:
        with pytest.raises(RegistryUnavailable, match="pgtenant registry upgrade"):
            await registry.reader.route_by_name("acme")


async def test_a_registry_restarted_under_the_reader_is_found_again(
    registry: Registry, acme: int, registry_url: str, request: pytest.FixtureRequest
) -> None:
    if registry_url.startswith("sqlite"):
        pytest.skip("there is no connection to lose")
    name = registry_url.rpartition("/")[2]
    await registry.reader.version()
    request.getfixturevalue("pg18").psql(
        f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    )
    assert (await registry.reader.route_by_id(acme)).value is not None


async def test_a_file_that_is_no_database_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_text("this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(RegistryError, match="is no registry"):
        async with open_registry(f"sqlite:///{path}"):
            pass


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "registry.db"
    async with open_registry(f"sqlite:///{path}") as registry:
        await registry.service.add_tenant("acme")
        changes = registry.reader.changes()
        await anext(changes)
        assert {mode_of(path.with_name(f"registry.db{suffix}")) for suffix in ("", "-wal", "-shm")} == {0o600}
        await changes.aclose()


async def test_service_lists_what_was_added(service: RegistryService, acme: int) -> None:
    assert [server.name for server in await service.servers()] == ["eu1"]
    assert [tenant.slug for tenant in await service.tenants(server="eu1", state=TenantState.READY)] == ["acme"]
    assert [(login.user, login.tenant) for login in await service.logins(tenant="acme")] == [("app", "acme")]


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("turns", range(1, 8))
def test_lookup_that_is_broken_off_leaves_no_thread_that_outlives_the_loop(
    turns: int, tmp_path: Path, keyring: KeyRing
) -> None:
    async def break_off() -> None:
        async with open_registry(f"sqlite:///{tmp_path}/registry.db", keyring) as opened:
            looking = asyncio.ensure_future(opened.reader.version())
            for _ in range(turns):
                await asyncio.sleep(0)
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    before = threading.active_count()
    asyncio.run(break_off())
    # A thread that finds its loop closed fails, and pytest takes that for a failure.
    wait_until(lambda: threading.active_count() <= before, what="the threads' end")


def test_what_is_not_found_takes_the_work_of_what_was_found_last() -> None:
    told: list[object] = []
    pretended: list[object] = []

    def note(where: list[object]) -> Callable[[object], object]:
        def decode(rows: object) -> object:
            where.append(rows)
            return rows

        return decode

    work = EvenWork(note(told), note(pretended))
    first: Any = ["rows of the first"]
    assert work([]) == ()
    assert (told, pretended) == ([], []), "there is nothing to pretend with yet"
    assert work([first]) == (first,)
    assert work([]) == ()
    assert (told, pretended) == ([first], [first])
