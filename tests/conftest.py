"""Fixtures of all tests: PostgreSQL 18 and 17, shared by the run, and databases, servers and proxies of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.databases import Database, create_database, drop_database
from harness.proxy import ProxyProcess
from harness.registries import RegistryUnderTest
from harness.shared import SharedServers, ask_for_server
from hypothesis import settings

from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts

SERVERS = pytest.StashKey[Callable[[int], ServerFacts]]()
SHARE = pytest.StashKey[SharedServers]()


# How long an example takes says more of the machine than of the code.
settings.register_profile("pgtenant", deadline=None)
settings.load_profile("pgtenant")


def pytest_configure(config: pytest.Config) -> None:
    worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[SERVERS] = ask_for_server(worker_input["pgtenant_servers"])
        return
    share = config.stash[SHARE] = SharedServers()
    config.stash[SERVERS] = share.get
    config.add_cleanup(share.close)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a pytest-xdist worker where it finds the servers."""
    node.workerinput["pgtenant_servers"] = node.config.stash[SHARE].address


@pytest.fixture(scope="session")
def pg18(pytestconfig: pytest.Config) -> ServerFacts:
    """The shared PostgreSQL 18, without TLS; do not stop it or change its settings."""
    return pytestconfig.stash[SERVERS](18)


@pytest.fixture(scope="session")
def pg17(pytestconfig: pytest.Config) -> ServerFacts:
    """The shared PostgreSQL 17, with TLS (`harness.shared.ca_file`); do not stop it or change its settings."""
    return pytestconfig.stash[SERVERS](17)


@pytest.fixture(params=[18, 17], ids=["pg18", "pg17"])
def any_pg(request: pytest.FixtureRequest) -> ServerFacts:
    """Each of the shared servers in turn."""
    return request.config.stash[SERVERS](request.param)


@pytest.fixture
def make_database() -> Iterator[Callable[..., Database]]:
    """Make databases with owners of their own: `make_database(server, "name", seed="create table ...")`."""
    with ExitStack() as stack:

        def make(server: ServerFacts, name: str = "t", *, seed: str = "", owned_by: Database | None = None) -> Database:
            database = create_database(server, name, seed=seed, owned_by=owned_by)
            stack.callback(drop_database, database)
            return database

        yield make


@pytest.fixture
def own_server() -> Iterator[Callable[..., EmbeddedServer]]:
    """Start servers that the test may stop, kill and restart: `own_server(18, max_connections=10)`."""
    with ExitStack() as stack:

        def start(version: int = 18, **options: Any) -> EmbeddedServer:
            return stack.enter_context(EmbeddedServer(version, durable=False, **options))

        yield start


@pytest.fixture
def registry(tmp_path: Path) -> RegistryUnderTest:
    """An empty SQLite registry."""
    return RegistryUnderTest(tmp_path)


@pytest.fixture
def start_proxy(
    registry: RegistryUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ProxyProcess]]:
    """Start the proxy on the test's registry and wait until it is ready: `start_proxy(pool={"pool_size": 2})`."""
    with ExitStack() as stack:

        def start(*, env: dict[str, str] | None = None, **sections: Any) -> ProxyProcess:
            directory = tmp_path_factory.mktemp("proxy")
            proxy = ProxyProcess(directory, registry.url, registry.keys, env=env, **sections)
            return stack.enter_context(proxy)

        yield start
