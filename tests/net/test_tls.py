from __future__ import annotations

import asyncio
import ssl
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from harness.handshakes import Certificate, connected

from proxy.net import tls
from proxy.net.client_tls import ClientTls
from proxy.net.handshake_io import TlsFailed
from proxy.net.tls import MAX_CONTEXTS, ServerTlsContexts, TlsConfigError
from registry.contract import Address, ServerInfo, TlsMode


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate.issue(tmp_path)


async def serial_shown(tls: ClientTls, certificate: Certificate) -> str:
    """The serial number of the certificate that a client is shown."""
    async with connected() as (io, peer):
        shaking = asyncio.create_task(io.start_tls(tls.context, server_side=True))
        await peer.writer.start_tls(certificate.trusting(), server_hostname="localhost")
        await shaking
        shown: dict[str, str] = peer.writer.get_extra_info("peercert")
        return shown["serialNumber"]


async def test_a_reload_shows_the_new_certificate(certificate: Certificate) -> None:
    tls = certificate.tls()
    before = await serial_shown(tls, certificate)
    Certificate.issue(certificate.cert.parent, certificate.authority)
    assert await serial_shown(tls, certificate) == before, "files alone change nothing"
    tls.reload()
    assert await serial_shown(tls, certificate) != before


@pytest.mark.parametrize("broken", ["", "nonsense", "another key", "encrypted key", "no file"])
async def test_a_broken_reload_keeps_the_certificate_and_says_why(
    certificate: Certificate, tmp_path: Path, broken: str
) -> None:
    tls = certificate.tls()
    before = await serial_shown(tls, certificate)
    other = trustme.CA().issue_cert("localhost").private_key_pem.bytes()
    if broken == "another key":
        certificate.key.write_bytes(other)
    elif broken == "encrypted key":
        key = serialization.load_pem_private_key(certificate.key.read_bytes(), None)
        certificate.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
    elif broken == "no file":
        certificate.key.unlink()
    else:
        certificate.key.write_text(broken)
    with pytest.raises(TlsConfigError, match=r"server\.key") as caught:
        tls.reload()
    assert caught.value.hint
    assert await serial_shown(tls, certificate) == before


def server(mode: TlsMode, authority: str | None = None) -> ServerInfo:
    return ServerInfo(1, "alpha", (Address("db.example.com"),), tls_mode=mode, tls_ca=authority)


def test_contexts_for_servers_are_made_once_for_each_mode_and_authority(certificate: Certificate) -> None:
    contexts = ServerTlsContexts()
    authority = certificate.authority_pem
    first = contexts.context(server(TlsMode.VERIFY_FULL, authority))
    assert contexts.context(server(TlsMode.VERIFY_FULL, authority)) is first
    assert contexts.context(server(TlsMode.VERIFY_CA, authority)) is not first
    assert contexts.context(server(TlsMode.DISABLE)) is None


def test_what_each_mode_checks(certificate: Certificate) -> None:
    contexts = ServerTlsContexts()
    authority = certificate.authority_pem
    expected = {
        (TlsMode.PREFER, None): (ssl.CERT_NONE, False),
        (TlsMode.PREFER, authority): (ssl.CERT_NONE, False),
        (TlsMode.REQUIRE, None): (ssl.CERT_NONE, False),
        (TlsMode.REQUIRE, authority): (ssl.CERT_REQUIRED, False),
        (TlsMode.VERIFY_CA, None): (ssl.CERT_REQUIRED, False),
        (TlsMode.VERIFY_FULL, authority): (ssl.CERT_REQUIRED, True),
    }
    for (mode, ca), (verify_mode, check_hostname) in expected.items():
        context = contexts.context(server(mode, ca))
        assert context is not None
        assert (context.verify_mode, context.check_hostname) == (verify_mode, check_hostname), mode
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_number_of_contexts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = ServerTlsContexts()
    authority = trustme.CA().cert_pem.bytes().decode()
    first = contexts.context(server(TlsMode.VERIFY_CA, authority))
    for number in range(MAX_CONTEXTS):
        contexts.context(server(TlsMode.VERIFY_CA, f"{authority}\n# {number}\n"))
    assert contexts.context(server(TlsMode.VERIFY_CA, authority)) is not first


async def test_a_handshake_with_something_else_fails_with_a_reason(certificate: Certificate) -> None:
    tls = certificate.tls()
    async with connected() as (io, peer):
        await peer.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(TlsFailed, match="http request"):
            await io.start_tls(tls.context, server_side=True)


async def test_names_given_in_handshakes_are_not_kept(certificate: Certificate) -> None:
    tls = certificate.tls()
    async with connected() as (io, peer):
        descriptor = io.sock.fileno()
        shaking = asyncio.create_task(io.start_tls(tls.context, server_side=True))
        await peer.writer.start_tls(certificate.trusting(), server_hostname="acme.db.example.com")
        await shaking
        assert tls.take_shown(descriptor).server_name == "acme.db.example.com"
        assert tls.take_shown(descriptor).server_name is None


def test_a_key_never_lies_in_a_file_that_others_can_read(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no memory to put it in, it is a file of this user's alone, and gone at once."""
    monkeypatch.setattr(tls, "DESCRIPTORS", tmp_path / "nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    seen: list[tuple[set[Path], int]] = []

    class Context(ssl.SSLContext):
        def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
            seen.append((set(tmp_path.iterdir()) - before, Path(keyfile).stat().st_mode & 0o777))
            super().load_cert_chain(certfile, keyfile, password)

    context = Context(ssl.PROTOCOL_TLS_SERVER)
    tls.load_certificate(context, certificate.cert.read_bytes(), certificate.key.read_bytes())
    assert [(len(files), mode) for files, mode in seen] == [(2, 0o600)]
    assert set(tmp_path.iterdir()) == before
