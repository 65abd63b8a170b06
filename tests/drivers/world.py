"""Two servers, a proxy before them, and for each driver databases and tenants of its own."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psycopg
from harness.certificates import Certificates
from harness.databases import Database, create_database, drop_database
from harness.process import output
from harness.proxy import ProxyProcess
from harness.registries import RegistryUnderTest
from harness.waiting import wait_until

from drivers.model import Scenario, Way
from drivers.pins import pins_in
from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts
from registry.contract import Limits, PoolMode

SMALL_POOL, LARGE_POOL = 5, 30
MAX_CONNECTIONS = 150
CHURNERS = 2
CHURN_PATIENCE = 10.0
SEED = """
create type mood as enum ('sad', 'happy');
create table items (id int primary key, name text not null unique);
insert into items select n, 'item ' || n from generate_series(1, 100) n;
create table work_0 (id int primary key, note text);
create table work_1 (id int primary key, note text);
create table parents (id int primary key);
create table children (id int, parent int references parents deferrable initially deferred);
create function whose() returns text language sql as $$ select 'public' $$;
create schema own_0;
create function own_0.whose() returns text language sql as $$ select 'worker 0' $$;
create schema own_1;
create function own_1.whose() returns text language sql as $$ select 'worker 1' $$;
create function hide_setting(value text) returns void language plpgsql as $$
begin
    perform set_config('my.hidden', value, false);
end $$;
create function fail_with(code text) returns void language plpgsql as $$
begin
    raise exception using errcode = code, message = 'as asked';
end $$;
"""


@dataclass(frozen=True, slots=True)
class Doors:
    """The URLs of one way: without TLS, with it, and the authority that certifies the second; the tenants' slugs."""

    url: str
    tls_url: str
    ca: Path
    wrong_ca: Path
    slugs: tuple[str, ...] = ()

    def env(self) -> dict[str, str]:
        """What the drivers' programs read."""
        return {
            "DRIVERS_URL": self.url,
            "DRIVERS_TLS_URL": self.tls_url,
            "DRIVERS_CA": str(self.ca),
            "DRIVERS_WRONG_CA": str(self.wrong_ca),
        }


class World:
    """PostgreSQL 18 without TLS, 17 with it, and one proxy; everything ends with the context.

    The proxy is the one that `python` has: that of this very tree, or one installed for another interpreter.
    """

    def __init__(self, progress: Callable[[str], None], python: str = sys.executable) -> None:
        self._progress = progress
        self._python = python
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._directory = Path()
        self._stuck: list[str] = []
        self.servers: dict[int, ServerFacts] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._directory = Path(tempfile.mkdtemp(prefix="pgtenant-drivers-"))
            stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            self._certificates = Certificates(self._folder("tls"))
            self._stranger = Certificates(self._folder("stranger"))
            chain, key = self._certificates.cert.read_bytes(), self._certificates.key.read_bytes()
            for version, tls in ((18, None), (17, (chain, key))):
                self._progress(f"starting PostgreSQL {version}")
                server = EmbeddedServer(version, max_connections=MAX_CONNECTIONS, durable=False, tls=tls)
                self.servers[version] = stack.enter_context(server).facts
            self._progress("starting the proxy")
            self._registry = RegistryUnderTest(self._folder("registry"))
            self._registry.do(lambda service: service.tenants())
            self.proxy = stack.enter_context(
                ProxyProcess(
                    self._folder("proxy"),
                    self._registry.url,
                    self._registry.keys,
                    listen=self._certificates.listen("allow"),
                    log={"level": "info", "lines_per_second": 0},
                    env=self._proxy_env(),
                    python=self._python,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def doors(self, way: Way, name: str) -> Iterator[Doors]:
        """Fresh databases on both servers, reached on this way; in transaction mode among other busy clients."""
        with ExitStack() as stack:
            names = [f"{name}_{version}" for version in (18, 17)]
            plain, secure = (self._door(stack, way, *one) for one in zip(names, (18, 17), strict=True))
            if way is Way.TRANSACTION:
                stack.enter_context(churning(plain, self._stuck))
            slugs = () if way is Way.DIRECT else tuple(map(_slug, names))
            yield Doors(plain, secure, self._certificates.ca, self._stranger.ca, slugs)

    def description(self) -> str:
        """The builds of the proxy and of the servers."""
        command = [self._python, "-m", "proxy", "--version"]
        env = {**os.environ, **self._proxy_env()}
        proxy = output(command, env=env).strip()
        servers = [f"PostgreSQL {server.psql('show server_version').strip()}" for server in self.servers.values()]
        return f"{proxy} before {' and '.join(servers)}"

    def complaints(self) -> list[str]:
        """What is wrong with the proxy itself; each is told once."""
        stuck, self._stuck = self._stuck, []
        if stuck:
            return stuck
        if not self.proxy.running:
            return [f"the proxy ended; its log ends: {self.proxy.logs()[-2000:]}"]
        found = self.proxy.metric("pgtenant_internal_errors_total")
        return [f"{found:g} internal errors in the proxy; its log ends: {self.proxy.logs()[-2000:]}"] if found else []

    def pins(self, doors: Doors, begins: Sequence[tuple[float, Scenario]]) -> set[tuple[Scenario | None, str]]:
        """In which scenarios the clients of this way, all of whom are gone, were pinned, and for which reasons."""
        for slug in doors.slugs:
            wait_until(partial(self._has_no_clients, slug), what=f"the clients of {slug} gone")
        return pins_in(self.proxy.logs(), doors.slugs, begins)

    def _has_no_clients(self, slug: str) -> bool:
        return self.proxy.metric("pgtenant_clients", tenant=slug) == 0

    def _proxy_env(self) -> dict[str, str]:
        """What keeps another interpreter from importing this tree instead of what is installed for it."""
        return {} if self._python == sys.executable else {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}

    def _door(self, stack: ExitStack, way: Way, name: str, version: int) -> str:
        with self._lock:
            database: Database = create_database(self.servers[version], name, seed=SEED)
            stack.callback(self._drop, database)
            if way is Way.DIRECT:
                return database.url
            mode, size = (
                (PoolMode.TRANSACTION, SMALL_POOL) if way is Way.TRANSACTION else (PoolMode.SESSION, LARGE_POOL)
            )
            tenant = self._registry.add_tenant(_slug(name), database, pool_mode=mode, limits=Limits(pool_size=size))
            return self.proxy.url_of(tenant)

    def _drop(self, database: Database) -> None:
        with self._lock:
            drop_database(database)

    def _folder(self, name: str) -> Path:
        folder = self._directory / name
        folder.mkdir()
        return folder


def _slug(name: str) -> str:
    return name.replace("_", "-")


@contextmanager
def churning(url: str, stuck: list[str]) -> Iterator[None]:
    """Other clients of the same pool, which have other settings, take its backends and give them back.

    At the end `stuck` is told of those that still wait for an answer.
    """
    stop = threading.Event()
    threads = [threading.Thread(target=_churn, args=(url, n, stop), daemon=True) for n in range(CHURNERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(CHURN_PATIENCE)
            if thread.is_alive():
                stuck.append(f"another client of {urlsplit(url).path[1:]} got no answer within {CHURN_PATIENCE:g} s")


def _churn(url: str, number: int, stop: threading.Event) -> None:
    chance = random.Random(number)
    while not stop.is_set():
        try:
            with psycopg.connect(
                url,
                application_name=f"churner {number}",
                options=f"-c timezone=Etc/GMT+{number + 1} -c work_mem=3MB",
                sslmode="disable",
            ) as connection:
                while not stop.wait(chance.uniform(0.001, 0.008)):
                    connection.execute(f"set work_mem to '{chance.randrange(100, 200)}kB'")
                    connection.execute("select pg_sleep(%s)", [chance.uniform(0, 0.004)])
                    connection.commit()
        except psycopg.OperationalError:
            stop.wait(0.1)
