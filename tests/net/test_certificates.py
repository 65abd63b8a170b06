"""Certificates for clients: one for each host name, and those that clients show themselves."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from harness.certificates import revoke
from harness.handshakes import Certificate, connected

from proxy.net.client_tls import CertificateFiles, ClientTls, ClientTlsConfig, ClientTlsMode, PeerCertificate, Shown
from proxy.net.handshake_io import TlsFailed
from proxy.net.tls import TlsConfigError


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate.issue(tmp_path)


def issue(authority: trustme.CA, path: Path, *names: str, **options: Any) -> CertificateFiles:
    """A certificate and its key in one file."""
    made = authority.issue_cert(*names, **options)
    path.write_bytes(b"".join(pem.bytes() for pem in (*made.cert_chain_pems, made.private_key_pem)))
    return CertificateFiles(path, path)


async def shake(tls: ClientTls, context: ssl.SSLContext, host: str | None) -> tuple[bytes, Shown, PeerCertificate]:
    """The certificate that a client gets to see, and what the proxy knows of that and of the client's own."""
    context.check_hostname = False
    async with connected() as (io, peer):
        descriptor = io.sock.fileno()
        shaking = asyncio.create_task(io.start_tls(tls.context, server_side=True))
        await peer.writer.start_tls(context, server_hostname=host or "127.0.0.1")
        await shaking
        seen = peer.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert io.tls is not None
        own = PeerCertificate.of(io.tls) or PeerCertificate(None, "none", b"")
        return seen, tls.take_shown(descriptor), own


@pytest.fixture
def several(certificate: Certificate, tmp_path: Path) -> ClientTls:
    others = (
        issue(certificate.authority, tmp_path / "one.pem", "one.example.org", "*.tenants.example.org"),
        issue(certificate.authority, tmp_path / "two.pem", "acme.tenants.example.org", "one.example.org"),
    )
    return certificate.tls(others=others)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("one.example.org", "one.pem"),
        ("ONE.Example.ORG", "one.pem"),
        ("globex.tenants.example.org", "one.pem"),
        ("acme.tenants.example.org", "two.pem"),
        ("deeper.acme.tenants.example.org", "server.crt"),
        ("tenants.example.org", "server.crt"),
        ("globex.db.example.com", "server.crt"),
        ("unknown.example.net", "server.crt"),
        (None, "server.crt"),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_host_name_decides_which_certificate_is_shown(
    host: str | None,
    expected: str,
    version: ssl.TLSVersion,
    several: ClientTls,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    context = certificate.trusting("postgresql")
    context.minimum_version = context.maximum_version = version
    seen, shown, _ = await shake(several, context, host)
    text = (tmp_path / expected).read_text()
    end = "-----END CERTIFICATE-----\n"
    assert seen == ssl.PEM_cert_to_DER_cert(text[: text.index(end) + len(end)])
    assert shown == Shown(host, seen)


async def test_no_session_is_kept_for_later(several: ClientTls, certificate: Certificate) -> None:
    for _ in range(3):
        await shake(several, certificate.trusting(), "localhost")
    assert several.context.session_stats()["number"] == 0


async def test_an_oldest_version_can_be_asked_for(certificate: Certificate) -> None:
    tls = certificate.tls(minimum_version=ssl.TLSVersion.TLSv1_3)
    old = certificate.trusting()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with connected() as (io, peer):
        shaking = asyncio.create_task(io.start_tls(tls.context, server_side=True))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await peer.writer.start_tls(old, server_hostname="localhost")
        with pytest.raises(TlsFailed, match="unsupported protocol"):
            await shaking
    await shake(tls, certificate.trusting(), "localhost")


@pytest.mark.parametrize("other", [0, 1], ids=["default", "by name"])
async def test_a_clients_certificate_is_verified_and_its_name_known(
    other: int, certificate: Certificate, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
    tls = certificate.tls(
        others=(issue(certificate.authority, tmp_path / "one.pem", "one.example.org"),),
        client_ca=tmp_path / "clients.pem",
    )
    host = ("localhost", "one.example.org")[other]
    context = certificate.trusting()
    _, _, nobody = await shake(tls, context, host)
    assert nobody.subject == "none", "asked for, not required"
    mine = authority.issue_cert(common_name="app.acme")
    mine.configure_cert(context)
    _, _, peer = await shake(tls, context, host)
    assert peer.common_name == "app.acme"
    assert "CN=app.acme" in peer.subject
    assert peer.der == ssl.PEM_cert_to_DER_cert(mine.cert_chain_pems[0].bytes().decode())


async def test_a_clients_certificate_of_another_authority_ends_the_handshake(
    certificate: Certificate, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
    tls = certificate.tls(client_ca=tmp_path / "clients.pem", mode=ClientTlsMode.VERIFY_CA)
    context = certificate.trusting()
    trustme.CA().issue_cert(common_name="app").configure_cert(context)
    async with connected() as (io, peer):
        shaking = asyncio.create_task(io.start_tls(tls.context, server_side=True))
        await asyncio.gather(
            peer.writer.start_tls(context, server_hostname="localhost"), asyncio.wait([shaking]), return_exceptions=True
        )
        with pytest.raises(TlsFailed, match="certificate verify failed"):
            await shaking


def looks(tls: ClientTls, times: int) -> list[bool]:
    return [tls.reload_if_changed() for _ in range(times)]


async def test_files_that_change_are_noticed_when_they_are_whole(
    certificate: Certificate, several: ClientTls, tmp_path: Path
) -> None:
    assert looks(several, 3) == [False] * 3
    issue(certificate.authority, tmp_path / "one.pem", "three.example.org")
    assert not several.reload_if_changed(), "somebody may still be writing"
    assert looks(several, 3) == [True, False, False]
    assert "three.example.org" in several.host_names
    assert "*.tenants.example.org" not in several.host_names
    seen, shown, _ = await shake(several, certificate.trusting(), "three.example.org")
    assert shown.certificate == seen


async def test_broken_files_are_complained_of_once_and_change_nothing(
    certificate: Certificate, several: ClientTls, tmp_path: Path
) -> None:
    before = await shake(several, certificate.trusting(), "one.example.org")
    whole = (tmp_path / "one.pem").read_bytes()
    for broken in (b"", whole[:-200], b"nonsense"):
        (tmp_path / "one.pem").write_bytes(broken)
        assert not several.reload_if_changed()
        with pytest.raises(TlsConfigError, match=r"one\.pem"):
            several.reload_if_changed()
        assert looks(several, 2) == [False, False]
        assert await shake(several, certificate.trusting(), "one.example.org") == before
    (tmp_path / "one.pem").unlink()
    several.reload_if_changed()
    with pytest.raises(TlsConfigError, match="cannot be read"):
        several.reload_if_changed()
    (tmp_path / "one.pem").write_bytes(whole)
    assert looks(several, 2) == [False, True]
    assert await shake(several, certificate.trusting(), "one.example.org") == before


@pytest.mark.parametrize(
    ("files", "reason"), [(("server.crt", "server.crt"), "cannot be used"), (("nameless.pem",) * 2, "names no host")]
)
def test_further_certificates_that_are_of_no_use_are_refused(
    files: Sequence[str], reason: str, certificate: Certificate, tmp_path: Path
) -> None:
    issue(certificate.authority, tmp_path / "nameless.pem", common_name="nameless")
    with pytest.raises(TlsConfigError, match=reason):
        certificate.tls(others=(CertificateFiles(tmp_path / files[0], tmp_path / files[1]),))


def test_an_authority_for_clients_that_is_none_is_refused(certificate: Certificate) -> None:
    for path, reason in ((certificate.key, "no certificate of an authority"), (Path("/nowhere"), "cannot be read")):
        with pytest.raises(TlsConfigError, match=reason):
            ClientTls(ClientTlsConfig(certificate.files, client_ca=path))


# Revocation.


@pytest.fixture
def clients(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
    return authority


def showing(certificate: Certificate, files: CertificateFiles) -> ssl.SSLContext:
    context = certificate.trusting()
    context.load_cert_chain(files.cert, files.key)
    return context


@pytest.mark.parametrize("host", [None, "one.example.org"])
async def test_a_revoked_certificate_is_not_believed_whatever_the_client_is_shown(
    host: str | None, certificate: Certificate, clients: trustme.CA, tmp_path: Path
) -> None:
    good, bad = (issue(clients, tmp_path / f"{name}.pem", common_name=name) for name in ("good", "bad"))
    crl = revoke(clients, tmp_path / "clients.crl")
    others = (issue(certificate.authority, tmp_path / "one.pem", "one.example.org"),)
    tls = certificate.tls(others=others, client_ca=tmp_path / "clients.pem", client_crl=crl)
    for files, name in ((good, "good"), (bad, "bad")):
        assert (await shake(tls, showing(certificate, files), host))[2].common_name == name
    revoke(clients, crl, x509.load_pem_x509_certificate(bad.cert.read_bytes()))
    assert not tls.reload_if_changed(), "it may still be being written"
    assert tls.reload_if_changed()
    assert (await shake(tls, showing(certificate, good), host))[2].common_name == "good"
    with pytest.raises(TlsFailed, match="certificate revoked"):
        await shake_in_vain(tls, showing(certificate, bad), host)
    assert (await shake(tls, certificate.trusting(), host))[2].common_name is None, "nothing is asked of who has none"


async def shake_in_vain(tls: ClientTls, context: ssl.SSLContext, host: str | None) -> None:
    """Raises what the proxy makes of the handshake."""
    context.check_hostname = False
    async with connected() as (io, peer):
        shaking = asyncio.create_task(io.start_tls(tls.context, server_side=True))
        with suppress(ssl.SSLError, ConnectionError):
            await peer.writer.start_tls(context, server_hostname=host or "127.0.0.1")
        await shaking


async def test_an_authority_without_a_list_or_with_an_old_one_is_believed_in_nothing(
    certificate: Certificate, clients: trustme.CA, tmp_path: Path
) -> None:
    files = issue(clients, tmp_path / "good.pem", common_name="good")
    for authority, lasts, said in ((trustme.CA(), 3600.0, "unable to get"), (clients, -60.0, "expired")):
        crl = revoke(authority, tmp_path / "clients.crl", lasts=lasts)
        tls = certificate.tls(client_ca=tmp_path / "clients.pem", client_crl=crl)
        with pytest.raises(TlsFailed, match=said):
            await shake_in_vain(tls, showing(certificate, files), None)


@pytest.mark.parametrize("content", ["", "nonsense", "the authority", "-----BEGIN X509 CRL-----\nAA==\n"])
def test_what_is_no_revocation_list_is_refused(
    content: str, certificate: Certificate, clients: trustme.CA, tmp_path: Path
) -> None:
    crl = revoke(clients, tmp_path / "clients.crl")
    if content == "the authority":
        crl.write_bytes(crl.read_bytes() + trustme.CA().cert_pem.bytes())
    else:
        crl.write_text(content)
    with pytest.raises(TlsConfigError, match="revocation list"):
        certificate.tls(client_ca=tmp_path / "clients.pem", client_crl=crl)
