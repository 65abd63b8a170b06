"""One stranger with thousands of connections locks nobody out."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.certificates import Certificates
from harness.proxy import ProxyProcess
from harness.rawclient import SSL_REQUEST, client_hello
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import allowed, wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts

STRANGER = "127.0.0.2"
PLACES = {"max_logins": 80, "max_logins_per_address": 20, "max_queued_logins": 60, "max_tls_handshakes": 16}
ATTEMPTS = 5

Say = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def world(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    registry = RegistryUnderTest(tmp_path_factory.mktemp("registry"))
    registry.do(lambda service: service.tenants())
    listen = {**certificates.listen("allow"), **PLACES}
    with (
        ProxyProcess(tmp_path_factory.mktemp("proxy"), registry.url, registry.keys, listen=listen) as proxy,
        World(registry, proxy) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def tenant(world: World, pg18: ServerFacts) -> TenantUnderTest:
    return world.tenant(pg18)


def silence(_: socket.socket) -> None:
    """Say nothing."""


def request_tls(sock: socket.socket) -> None:
    """Ask for TLS, and then say nothing."""
    sock.sendall(SSL_REQUEST)


def half_a_handshake(sock: socket.socket) -> None:
    """Begin a TLS handshake, and leave it there."""
    sock.sendall(client_hello())


@contextmanager
def crowd(proxy: ProxyProcess, count: int, say: Say, source: str = STRANGER) -> Iterator[list[socket.socket]]:
    """So many connections from one address, each of which says the same."""
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection((proxy.host, proxy.port), 10, (source, 0)))
            say(sock)
            sockets.append(sock)
        yield sockets


def places(proxy: ProxyProcess, state: str, kind: str = "login") -> int:
    return int(proxy.metric("pgtenant_login_places", kind=kind, state=state))


def log_in(world: World, tenant: TenantUnderTest, sslmode: str) -> None:
    """Log in a few times, each of them within a few seconds."""
    for _ in range(ATTEMPTS):
        started = time.monotonic()
        with psycopg.connect(world.url(tenant, sslmode=sslmode), connect_timeout=30) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert time.monotonic() - started < allowed(5.0)


def entries(proxy: ProxyProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, proxy.logs().splitlines()) if line["event"] == event]


@pytest.mark.parametrize("sslmode", ["disable", "require"])
@pytest.mark.parametrize("say", [silence, request_tls, half_a_handshake])
def test_others_log_in_while_one_address_has_all_the_connections_it_can_get(
    world: World, tenant: TenantUnderTest, say: Say, sslmode: str
) -> None:
    with crowd(world.proxy, 200, say):
        wait_until(lambda: places(world.proxy, "silent") + places(world.proxy, "speaking") == 20, what="a full share")
        log_in(world, tenant, sslmode)
        assert world.proxy.http("GET", "/healthz")[0] == 200
    wait_until(lambda: places(world.proxy, "speaking") == 0, what="everybody gone")


def test_those_who_wait_are_told_of_and_come_in_when_the_others_have_gone(
    world: World, tenant: TenantUnderTest
) -> None:
    with crowd(world.proxy, 20, request_tls) as sockets:
        wait_until(lambda: places(world.proxy, "speaking") == 20, what="a full share")
        with crowd(world.proxy, 1, request_tls) as (late,):
            wait_until(lambda: places(world.proxy, "queued") == 1, what="somebody who waits")
            status, body = world.proxy.http("GET", "/readyz")
            assert status == 200, "strangers must not take a node out of service"
            assert json.loads(body)["checks"]["logins"]["detail"] == "logins: 20 of 80 under way, 1 queued"
            sockets[0].close()
            assert late.recv(1) == b"S"
    wait_until(lambda: entries(world.proxy, "logins held back"), what="a line in the log")
    assert any(line["last_from"] == STRANGER for line in entries(world.proxy, "logins held back"))


def test_a_handshake_takes_a_place_only_with_its_whole_first_record_and_few_have_one(
    world: World, tenant: TenantUnderTest
) -> None:
    def begin(sock: socket.socket) -> None:
        sock.sendall(client_hello()[:-1])

    with crowd(world.proxy, 10, begin) as sockets:
        wait_until(lambda: places(world.proxy, "speaking") == 10, what="everybody heard")
        assert places(world.proxy, "speaking", "tls") == 0
        for sock in sockets:
            sock.sendall(client_hello()[-1:])
        wait_until(lambda: places(world.proxy, "queued", "tls") == 6, what="handshakes that wait")
        assert places(world.proxy, "speaking", "tls") == 4
        log_in(world, tenant, "require")


@pytest.fixture
def narrow(tmp_path: Path) -> str:
    """A Python with 420 file descriptors at most, and 100 to begin with."""
    shell = tmp_path / "python"
    shell.write_text(f'#!{shutil.which("bash")}\nset -e\nulimit -Sn 100\nulimit -Hn 420\nexec {sys.executable} "$@"\n')
    shell.chmod(0o700)
    return str(shell)


def test_with_few_descriptors_clients_are_refused_before_http_and_backends_are(
    narrow: str, pg18: ServerFacts, tmp_path: Path
) -> None:
    registry = RegistryUnderTest(tmp_path)
    registry.do(lambda service: service.tenants())
    with (
        ProxyProcess(tmp_path, registry.url, registry.keys, python=narrow) as proxy,
        World(registry, proxy) as world,
    ):
        tenant = world.tenant(pg18)
        assert proxy.metric("process_max_fds") == 420, "the soft limit is raised to the hard one"
        (told,) = entries(proxy, "too few file descriptors for the settings")
        assert "listen.max_clients = 10000" in told["enough_for"]
        with ExitStack() as stack:
            for source, say in (("127.0.0.2", silence), ("127.0.0.3", silence), ("127.0.0.4", request_tls)):
                stack.enter_context(crowd(proxy, 200, say, source))
            log_in(world, tenant, "disable")
            assert proxy.http("GET", "/healthz")[0] == 200
            checks = json.loads(proxy.http("GET", "/readyz")[1])["checks"]
            assert checks["descriptors"]["detail"] == f"enough for {told['enough_for']}"
        assert proxy.metric("process_open_fds") < 420
        assert not entries(proxy, "connections cannot be accepted")
