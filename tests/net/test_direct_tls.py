"""TLS from the first byte on, towards servers, and what they get to see of it."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from harness.fakeserver import AUTHENTICATION_OK, FakeServer, FakeSession, ready
from harness.handshakes import Certificate
from harness.rawclient import SSL_REQUEST
from harness.waiting import eventually

from proxy.demo.facts import ServerFacts
from proxy.net.backend_handshake import BackendOpenFailed, open_backend
from proxy.net.cancel import send_cancel
from proxy.net.endpoints import find_endpoints
from proxy.net.host_names import HostNames
from proxy.net.tls import ServerTlsContexts
from registry.contract import Address, Credentials, Secret, ServerInfo, TlsMode, TlsNegotiation, TlsVersion

ANN = Credentials("ann", Secret("right"))


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate.issue(tmp_path)


def shown(certificate: Certificate, *protocols: str) -> ssl.SSLContext:
    """The context of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def server(address: Address, certificate: Certificate, **fields: Any) -> ServerInfo:
    wanted = {"tls_mode": TlsMode.VERIFY_FULL, "tls_ca": certificate.authority_pem, **fields}
    return ServerInfo(1, "alpha", (address,), tls_negotiation=TlsNegotiation.DIRECT, **wanted)


async def opened(info: ServerInfo) -> bool:
    """Log in; says whether TLS is on."""
    backend = await open_backend(info, "acme", ANN, connect_timeout=10, tls_contexts=ServerTlsContexts())
    backend.sock.close()
    return backend.tls


async def reason_of(info: ServerInfo) -> str:
    with pytest.raises(BackendOpenFailed) as caught:
        await opened(info)
    assert caught.value.whole_server
    return caught.value.text


@pytest.mark.parametrize(("host", "name"), [("localhost", "localhost"), ("127.0.0.1", None)])
async def test_the_server_is_told_the_host_name_and_the_protocol(
    host: str, name: str | None, certificate: Certificate
) -> None:
    told: list[str | None] = []
    context = shown(certificate, "postgresql")
    context.sni_callback = lambda _sock, server_name, _context: told.append(server_name)

    async def script(session: FakeSession) -> None:
        if await session.read_startup():
            await session.greet()
            await session.reader.read()

    async with FakeServer(script, context) as fake:
        info = server(Address(host, fake.port), certificate)
        assert await opened(info)
        endpoint = (await find_endpoints(info.addresses[0], HostNames()))[0]
        assert await send_cancel(
            info,
            endpoint,
            7,
            b"abcd",
            still_wanted=lambda: True,
            timeout=10,
            tls_contexts=ServerTlsContexts(),
        )
    assert told == [name, name]
    assert fake.sessions[1].cancel == (7, b"abcd")


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
async def test_another_protocols_server_gets_nothing(protocols: tuple[str, ...], certificate: Certificate) -> None:
    got: list[bytes] = []

    async def script(session: FakeSession) -> None:
        got.append(await session.reader.read())

    async with FakeServer(script, shown(certificate, *protocols)) as fake:
        reason = await reason_of(server(Address("localhost", fake.port), certificate))
        await eventually(lambda: got == [b""], what="a connection that ended without a word")
    assert "does not speak TLS from the first byte on" in reason


async def test_a_server_without_tls_is_named_as_such(pg18: ServerFacts, certificate: Certificate) -> None:
    """The shared PostgreSQL 18 was built without TLS."""
    reason = await reason_of(server(Address(pg18.host, pg18.port), certificate))
    assert "does not speak TLS from the first byte on" in reason


async def test_the_oldest_version_is_the_servers_own(certificate: Certificate) -> None:
    context = shown(certificate, "postgresql")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with FakeServer(tls=context) as fake:
        assert await opened(server(Address("localhost", fake.port), certificate))
        info = server(Address("localhost", fake.port), certificate, tls_min_version=TlsVersion.TLS_1_3)
        assert "TLS failed" in await reason_of(info)


async def test_a_server_is_shown_the_certificate_that_is_kept_for_it(certificate: Certificate) -> None:
    authority = trustme.CA()
    context = shown(certificate, "postgresql")
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    mine = authority.issue_cert(common_name="pgtenant")
    pair = {
        "tls_cert": b"".join(pem.bytes() for pem in mine.cert_chain_pems).decode(),
        "tls_key": Secret(mine.private_key_pem.bytes().decode()),
    }
    subjects: list[Any] = []

    async def script(session: FakeSession) -> None:
        subjects.append(session.writer.get_extra_info("peercert")["subject"])
        await session.accept()
        await session.reader.read()

    async with FakeServer(script, context) as fake:
        address = Address("localhost", fake.port)
        assert await opened(server(address, certificate, **pair))
        assert subjects[0][-1:] == ((("commonName", "pgtenant"),),)
        lost = server(address, certificate, tls_cert=pair["tls_cert"])
        assert "its key cannot be opened" in await reason_of(lost)
        other = Secret(authority.issue_cert(common_name="other").private_key_pem.bytes().decode())
        wrong = server(address, certificate, tls_cert=pair["tls_cert"], tls_key=other)
        reason = await reason_of(wrong)
        assert "cannot be used: key values mismatch" in reason
        assert "--tls-key" in reason
        assert len(fake.sessions) == 1


async def test_what_comes_in_the_clear_behind_the_servers_yes_is_not_believed(certificate: Certificate) -> None:
    """A man in the middle would put his own answers there (CVE-2021-23222)."""
    got: list[bytes] = []

    async def script(session: FakeSession) -> None:
        await session.reader.readexactly(len(SSL_REQUEST))
        await session.send(b"S" + AUTHENTICATION_OK + ready())
        got.append(await session.reader.read(5))

    async with FakeServer(script) as fake:
        info = replace(server(Address("localhost", fake.port), certificate), tls_negotiation=TlsNegotiation.POSTGRES)
        assert "TLS failed" in await reason_of(info)
        await eventually(lambda: got, what="the first bytes")
    assert got[0][:1] == b"\x16", "a handshake, and no startup"
