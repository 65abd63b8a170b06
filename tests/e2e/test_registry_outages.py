"""The registry is away, locked, broken or slow: known tenants go on, strangers wait, changes arrive when it is back."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from harness.databases import Database, create_database
from harness.disasters import login
from harness.proxy import ADMIN_TOKEN, ProxyProcess
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until

from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts
from registry.contract import Limits, TenantState

MakeDatabase = Callable[..., Database]
StartProxy = Callable[..., ProxyProcess]
NOT_NOW = "registry of tenants cannot be reached"
BACK = 5.0
"""Seconds after which a registry that is back must be in use again."""


def told(url: str) -> str:
    """What a new client is told: "" when it can work, else its error."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            connection.execute("select 1")
    except psycopg.Error as error:
        return str(error)
    return ""


def path_of(registry: RegistryUnderTest) -> Path:
    return Path(registry.url.removeprefix("sqlite:///"))


def is_up(proxy: ProxyProcess) -> bool:
    return proxy.metric("pgtenant_registry_up") == 1


@pytest.fixture
def tenant(pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest) -> TenantUnderTest:
    return registry.add_tenant("acme", make_database(pg18))


@contextmanager
def away(registry: RegistryUnderTest) -> Iterator[None]:
    """The registry's files are gone for a while."""
    files = [file for file in path_of(registry).parent.iterdir() if file.name.startswith(path_of(registry).name)]
    with ExitStack() as back:
        for file in files:
            hidden = file.rename(file.with_name(f"away-{file.name}"))
            back.callback(hidden.rename, file)
        yield


@contextmanager
def corrupt(registry: RegistryUnderTest) -> Iterator[None]:
    """The registry's file is replaced by something that is no database."""
    with away(registry):
        path_of(registry).write_bytes(b"this is no database " * 1000)
        yield
        path_of(registry).unlink()


@contextmanager
def unreadable_tables(registry: RegistryUnderTest) -> Iterator[None]:
    """The registry's file is a database of something else."""
    with away(registry):
        with sqlite3.connect(path_of(registry)) as other:
            other.execute("create table notes (a)")
        other.close()
        yield
        for file in path_of(registry).parent.glob(f"{path_of(registry).name}*"):
            file.unlink()


@pytest.mark.parametrize("outage", [away, corrupt, unreadable_tables])
def test_known_tenants_go_on_and_strangers_are_told_to_wait(
    outage: Callable[[RegistryUnderTest], AbstractContextManager[None]],
    tenant: TenantUnderTest,
    registry: RegistryUnderTest,
    start_proxy: StartProxy,
) -> None:
    proxy = start_proxy()
    assert told(proxy.url_of(tenant)) == ""
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connected:
        with outage(registry):
            wait_until(lambda: not is_up(proxy), what="the loss noticed")
            for _ in range(3):
                assert connected.execute("select 1").fetchone() == (1,)
                assert told(proxy.url_of(tenant)) == ""
                assert NOT_NOW in told(proxy.url("unknown", "app", "guess"))
                assert "password authentication failed" in told(proxy.url("acme", tenant.user, "guess"))
            status, body = proxy.http("GET", "/readyz")
            assert status == 200
            assert "serving from memory" in body
            status, body = proxy.http("POST", "/reload", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
            assert status >= 500, "a reload says that it could not be done"
            assert told(proxy.url_of(tenant)) == "", "and changes nothing"
        wait_until(lambda: is_up(proxy), seconds=BACK, what="the registry back")
        fresh = registry.do(lambda service: service.rotate_login(tenant.user, "acme")).reveal()
        wait_until(lambda: told(proxy.url("acme", tenant.user, fresh)) == "", seconds=BACK, what="changes again")
        assert connected.execute("select 1").fetchone() == (1,)


def test_a_registry_that_is_locked_by_a_writer_can_still_be_read(
    tenant: TenantUnderTest, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy()
    writer = sqlite3.connect(path_of(registry), isolation_level=None)
    try:
        writer.execute("begin exclusive")
        assert told(proxy.url_of(tenant)) == ""
        assert "password authentication failed" in told(proxy.url("unknown", "app", "guess"))
        assert is_up(proxy)
    finally:
        writer.close()


def test_changes_that_were_made_while_the_registry_was_away_are_caught_up_with(
    tenant: TenantUnderTest, registry: RegistryUnderTest, start_proxy: StartProxy, tmp_path: Path
) -> None:
    proxy = start_proxy()
    assert told(proxy.url_of(tenant)) == ""
    path = path_of(registry)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = RegistryUnderTest(elsewhere)
    copy.keys = registry.keys
    with away(registry):
        wait_until(lambda: not is_up(proxy), what="the loss noticed")
        for file in path.parent.glob(f"away-{path.name}*"):
            shutil.copy(file, elsewhere / file.name.removeprefix("away-"))
        copy.do(lambda service: service.suspend_tenant("acme"))
    with sqlite3.connect(path_of(copy)) as source, sqlite3.connect(path) as target:
        source.backup(target)
    source.close()
    target.close()
    wait_until(lambda: "suspended" in told(proxy.url_of(tenant)), seconds=BACK, what="the suspension")


def test_a_node_does_not_start_on_a_file_that_is_no_registry(
    tenant: TenantUnderTest, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy()
    assert proxy.stop() == 0
    with corrupt(registry):
        proxy.start(wait=False)
        assert proxy.wait(15) == 1
    said = " ".join(proxy.logs().split())
    assert "is no registry: file is not a database" in said
    assert "Traceback" not in said


def test_a_node_does_not_put_an_empty_registry_in_the_place_of_one_that_is_gone(
    tenant: TenantUnderTest, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy()
    assert proxy.stop() == 0
    with away(registry):
        proxy.start(wait=False)
        assert proxy.wait(15) == 1
        assert not path_of(registry).exists()
    assert "there is no registry" in " ".join(proxy.logs().split())
    proxy.start()
    assert told(proxy.url_of(tenant)) == ""


@pytest.mark.parametrize("lose", [away, corrupt])
def test_a_node_starts_from_its_snapshot_where_the_registrys_file_is_gone_or_broken(
    lose: Callable[[RegistryUnderTest], AbstractContextManager[None]],
    tenant: TenantUnderTest,
    registry: RegistryUnderTest,
    start_proxy: StartProxy,
    tmp_path: Path,
) -> None:
    proxy = start_proxy(routing={"snapshot": str(tmp_path / "routes.snapshot")})
    assert told(proxy.url_of(tenant)) == ""
    assert proxy.stop() == 0
    with lose(registry):
        proxy.start()
        assert told(proxy.url_of(tenant)) == ""
        status, body = proxy.http("GET", "/readyz")
        assert (status, "serving from memory" in body) == (200, True)
        assert "the registry cannot be opened, the snapshot is used until it can be" in proxy.logs()
        assert "Traceback" not in proxy.logs()
    registry.set_tenant(tenant.slug, state=TenantState.SUSPENDED)
    wait_until(lambda: "suspended" in told(proxy.url_of(tenant)), what="a change of the registry that is back")


@pytest.mark.parametrize("content", [b"nonsense", b"", None])
def test_a_snapshot_that_is_broken_is_not_used(content: bytes | None, tmp_path: Path) -> None:
    snapshot = tmp_path / "routes.snapshot"
    if content is not None:
        snapshot.write_bytes(content)
    registry = RegistryUnderTest(tmp_path, url="postgresql://nobody@127.0.0.1:1/registry")
    proxy = ProxyProcess(tmp_path, registry.url, registry.keys, routing={"snapshot": str(snapshot)})
    proxy.start(wait=False)
    try:
        wait_until(lambda: "serving, but not ready" in proxy.logs() or not proxy.running, what="the start")
        assert NOT_NOW in told(proxy.url("acme", "app", "guess"))
        assert proxy.http("GET", "/readyz")[0] == 503
        assert "snapshot" in proxy.logs()
        assert "Traceback" not in proxy.logs()
    finally:
        assert proxy.stop() == 0


@pytest.fixture
def registry_server(own_server: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    return own_server(18)


def test_a_postgresql_registry_that_stops_and_comes_back(
    registry_server: EmbeddedServer, pg18: ServerFacts, make_database: MakeDatabase, tmp_path: Path
) -> None:
    place = create_database(registry_server.facts, "registry")
    registry = RegistryUnderTest(tmp_path, url=place.url)
    tenants = [registry.add_tenant(f"t{n}", make_database(pg18)) for n in range(3)]
    routing = {"snapshot": str(tmp_path / "snapshot"), "lookup_timeout": 1.0}
    with ProxyProcess(tmp_path, registry.url, registry.keys, routing=routing) as proxy:
        assert place.password not in proxy.logs()
        assert [told(proxy.url_of(tenant)) for tenant in tenants[:2]] == ["", ""]
        with login(proxy, tenants[0]) as connected, ThreadPoolExecutor(1) as pool:
            registry_server.stop("immediate")
            wait_until(lambda: not is_up(proxy), what="the loss noticed")
            assert connected.rows("select 1") == [("1",)]
            assert [told(proxy.url_of(tenant)) for tenant in tenants[:2]] == ["", ""]
            assert NOT_NOW in told(proxy.url_of(tenants[2]))
            # A node that is started now knows what its snapshot says.
            assert proxy.stop() == 0
            sealed = (tmp_path / "snapshot").read_bytes()
            assert tenants[0].database.password.encode() not in sealed
            assert (tmp_path / "snapshot").stat().st_mode & 0o077 == 0
            proxy.start(wait=False)
            wait_until(proxy.is_ready, what="a start from the snapshot")
            assert told(proxy.url_of(tenants[0])) == ""
            starting = pool.submit(registry_server.start)
            wait_until(lambda: is_up(proxy), seconds=2 * BACK, what="the registry back")
            starting.result()
        assert told(proxy.url_of(tenants[2])) == ""
        registry.set_tenant("t0", limits=Limits(max_clients=1))
        with login(proxy, tenants[0]):
            wait_until(lambda: "too many" in told(proxy.url_of(tenants[0])), seconds=1.5, what="changes again")


def test_changes_in_a_postgresql_registry_are_in_force_within_a_second(
    pg17: ServerFacts, pg18: ServerFacts, make_database: MakeDatabase, tmp_path: Path
) -> None:
    registry = RegistryUnderTest(tmp_path, url=make_database(pg17, "registry").url)
    registry.add_tenant("acme", make_database(pg18))
    with ProxyProcess(tmp_path, registry.url, registry.keys) as proxy:
        assert "password authentication failed" in told(proxy.url("globex", "app", "guess"))
        globex = registry.add_tenant("globex", make_database(pg18))
        wait_until(lambda: told(proxy.url_of(globex)) == "", seconds=1.5, what="a new tenant")
        registry.do(lambda service: service.suspend_tenant("globex"))
        wait_until(lambda: "suspended" in told(proxy.url_of(globex)), seconds=1.5, what="a suspended tenant")
        registry.do(lambda service: service.resume_tenant("globex"))
        wait_until(lambda: told(proxy.url_of(globex)) == "", seconds=1.5, what="a resumed tenant")
