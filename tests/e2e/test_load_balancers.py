"""Clients that come through a load balancer, which tells their addresses by the PROXY protocol."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from harness.certificates import Certificates
from harness.proxy import ProxyProcess
from harness.rawclient import SSL_REQUEST, RawClient, ServerSaid, startup
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = b"PROXY TCP4 192.0.2.9 127.0.0.1 50009 6432\r\n"


def proxied(host: int, port: int, extra: bytes = b"") -> bytes:
    """A version 2 header for 192.0.2.`host`."""
    body = bytes((192, 0, 2, host, 127, 0, 0, 1)) + struct.pack("!HH", port, 6432) + extra
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(body)) + body


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def world(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    registry = RegistryUnderTest(tmp_path_factory.mktemp("registry"))
    registry.do(lambda service: service.tenants())
    listen = {**certificates.listen("allow"), "proxy_protocol": "require", "proxy_networks": ["127.0.0.0/8"]}
    with (
        ProxyProcess(tmp_path_factory.mktemp("proxy"), registry.url, registry.keys, listen=listen) as proxy,
        World(registry, proxy) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def acme(world: World, pg18: ServerFacts) -> TenantUnderTest:
    return world.tenant(pg18)


def entries(world: World, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in world.proxy.logs().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def addresses(world: World, event: str) -> set[str]:
    return {str(entry["address"]) for entry in entries(world, event)}


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (proxied(7, 50007), "192.0.2.7:50007"),
        (proxied(8, 50008, b"\x04\0\5abcde"), "192.0.2.8:50008"),
        (LINE, "192.0.2.9:50009"),
        (SIGNATURE + b"\x20\0\0\0", "127.0.0.1:"),
    ],
    ids=["version 2", "with extras", "version 1", "for itself"],
)
@pytest.mark.parametrize("way", ["plain", "tls", "direct"])
def test_the_log_has_the_address_of_the_client(
    way: str, header: bytes, address: str, world: World, acme: TenantUnderTest, certificates: Certificates
) -> None:
    event = "client left before its login" if way == "plain" else "client connected"
    before = len(entries(world, event))
    with world.proxy.connect() as client:
        if way == "plain":
            # All in one segment: what is behind the header must not be lost.
            client.send(header + startup({"user": acme.user, "database": acme.slug}))
            assert client.read().kind == "R"
        else:
            client.send(header)
            client.start_tls(certificates.context("postgresql"), server_hostname="localhost", direct=way == "direct")
            client.login(acme.user, acme.password, acme.slug)
            assert client.rows("select 1") == [("1",)]
    wait_until(lambda: len(entries(world, event)) > before, what="a line in the log")
    assert str(entries(world, event)[-1]["address"]).startswith(address)


@pytest.mark.parametrize(
    "junk",
    [
        SSL_REQUEST,
        startup({"user": "app"}),
        b"\x16\x03\x01",
        b"PROXY TCP4 nonsense\r\n",
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE + b"\x11\x11\0\x0c" + bytes(12),
    ],
)
def test_who_does_not_begin_with_a_header_gets_no_answer(junk: bytes, world: World) -> None:
    with world.proxy.connect() as client:
        client.send(junk)
        assert client.read_to_end() == []
        here = f"127.0.0.1:{client.sock.getsockname()[1]}"
    refused = {str(entry["address"]): entry for entry in entries(world, "client refused")}
    assert refused[here]["error"] == "proxy_header"


def test_refusals_name_the_client_and_not_the_load_balancer(world: World, acme: TenantUnderTest) -> None:
    with world.proxy.connect() as client:
        client.send(proxied(66, 6666))
        with pytest.raises(ServerSaid, match="password authentication failed"):
            client.login(acme.user, "wrong", acme.slug)
    wait_until(lambda: "192.0.2.66:6666" in addresses(world, "client refused"), what="a line in the log")


def test_a_tenants_networks_are_those_of_its_clients(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, networks=("192.0.2.16/28",))
    with world.proxy.connect() as client:
        client.send(proxied(17, 50017))
        client.login(tenant.user, tenant.password, tenant.slug)
        assert client.rows("select 1") == [("1",)]
    for header in (proxied(7, 50007), SIGNATURE + b"\x20\0\0\0"):
        with world.proxy.connect() as client:
            client.send(header)
            with pytest.raises(ServerSaid):
                client.login(tenant.user, tenant.password, tenant.slug)


def test_a_stranger_cannot_speak_for_others(
    registry: RegistryUnderTest, start_proxy: Any, pg18: ServerFacts, make_database: Any
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    proxy = start_proxy(listen={"proxy_protocol": "require", "proxy_networks": ["10.0.0.0/8", "fd00::/8"]})
    with RawClient(proxy.port) as client:
        client.send(proxied(7, 50007) + startup({"user": tenant.user, "database": tenant.slug}))
        assert client.read_to_end() == []
    assert "not in listen.proxy_networks" in proxy.logs()
