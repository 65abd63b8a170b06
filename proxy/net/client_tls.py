"""TLS with clients: the certificates that they are shown, which of them, and what is asked of their own.

Source: PostgreSQL documentation, "Secure TCP/IP Connections with SSL"; RFC 6066 section 3 (host names in handshakes);
RFC 6125 section 6.4.3 (wildcards in certificates).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from proxy.auth import server_end_point
from proxy.net.handshake_io import tls_reason
from proxy.net.tls import ALPN, TlsConfigError, as_file, load_certificate

MAX_FILE: Final = 1 << 20
"""Bytes that a file of certificates may have."""

_WILDCARD: Final = "*."
_CRL: Final = re.compile(rb"^-----BEGIN X509 CRL-----", re.MULTILINE)
_CERTIFICATE: Final = re.compile(rb"^-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----", re.MULTILINE)

Fingerprint: TypeAlias = tuple[tuple[int, int, int] | None, ...]
"""What tells that files have changed: of each its inode, size and time, None where it cannot be seen."""


class ClientTlsMode(StrEnum):
    """Whether clients use TLS and show a certificate; the last two are PostgreSQL's `clientcert=`."""

    ALLOW = "allow"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"

    @property
    def requires_tls(self) -> bool:
        return self is not ClientTlsMode.ALLOW

    @property
    def requires_certificate(self) -> bool:
        return self in {ClientTlsMode.VERIFY_CA, ClientTlsMode.VERIFY_FULL}


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files with a certificate and its chain, and with its key: two files, or the same one twice."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ClientTlsConfig:
    """What clients are shown and asked for.

    `others` are shown to clients that ask for one of their host names, `default` to all others.  Clients are asked for
    a certificate where there is a `client_ca`, and must have one as the mode says.  With a `client_crl` there has to be
    a revocation list of each issuer in a client's chain, with none of the chain's certificates on it.
    """

    default: CertificateFiles
    others: tuple[CertificateFiles, ...] = ()
    mode: ClientTlsMode = ClientTlsMode.ALLOW
    client_ca: Path | None = None
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    client_crl: Path | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What one client was shown: the host name that it asked for (SNI), and the certificate in DER.

    `end_point` is what logins are bound to, None for a certificate that they cannot be bound to.
    """

    server_name: str | None
    certificate: bytes = field(repr=False)
    end_point: bytes | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A certificate that a client has proved to have, and whose chain ends at the configured authority.

    `common_name` is None unless the subject has exactly one; `subject` is the whole of it as RFC 4514 writes it.
    """

    common_name: str | None
    subject: str
    der: bytes = field(repr=False)

    @classmethod
    def of(cls, connection: ssl.SSLSocket) -> PeerCertificate | None:
        """What the client on this connection has shown, None where that is nothing, or nobody has asked."""
        der = connection.getpeercert(binary_form=True)
        if der is None:
            return None
        try:
            subject = x509.load_der_x509_certificate(der).subject
            names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            common = str(names[0].value) if len(names) == 1 else None
            return cls(common, subject.rfc4514_string(), der)
        except ValueError:
            # OpenSSL accepts some names that others call malformed: such a certificate is no login's.
            return cls(None, "", der)


class ClientTls:
    """The certificates of this proxy, as they are in force now.

    Raises TlsConfigError when the files cannot be used.
    """

    def __init__(self, config: ClientTlsConfig) -> None:
        self.mode = config.mode
        self._config = config
        self._files = _files_of(config)
        self._shown: dict[int, Shown] = {}
        self._tried = self._seen = _fingerprint(self._files)
        self._shelf = _Shelf(config, self._shown)

    @property
    def context(self) -> ssl.SSLContext:
        """The context for the next handshake."""
        return self._shelf.context

    @property
    def host_names(self) -> Sequence[str]:
        """The host names that have a certificate, wildcards among them."""
        return sorted(self._shelf.names)

    def reload(self) -> None:
        """Read the files again for connections from now on.

        Raises TlsConfigError when they cannot be used, and the certificates of before stay in force.
        """
        self._tried = self._seen = _fingerprint(self._files)
        self._shelf = _Shelf(self._config, self._shown)

    def reload_if_changed(self) -> bool:
        """Reload where files have changed since, and look the same as at the last call: so nobody is writing them.

        Call it every second or so; says whether other certificates are in force now.  Raises TlsConfigError as `reload`
        does, once for each change.
        """
        seen = _fingerprint(self._files)
        is_settled = seen == self._seen
        self._seen = seen
        if not is_settled or seen == self._tried:
            return False
        self.reload()
        return True

    def take_shown(self, fd: int) -> Shown:
        """What the client on this descriptor was shown in its handshake; forgotten with the call."""
        default = self._shelf.default
        return self._shown.pop(fd, None) or Shown(None, default.der, default.end_point)


@dataclass(frozen=True, slots=True)
class _Trust:
    """Whose certificates are believed, and the revocation lists of those authorities, both PEM, with their files."""

    authority_file: Path
    authority: bytes
    revoked_file: Path | None
    revoked: bytes | None


@dataclass(frozen=True, slots=True)
class _Certificate:
    context: ssl.SSLContext
    der: bytes
    end_point: bytes | None
    names: tuple[str, ...]


class _Shelf:
    """All certificates as they were read at one time, and the choice among them."""

    def __init__(self, config: ClientTlsConfig, shown: dict[int, Shown]) -> None:
        trust = None if config.client_ca is None else _read_trust(config, config.client_ca)
        self._shown = shown
        self.default = _load(config.default, config, trust)
        self.names: dict[str, _Certificate] = {}
        self._add(self.default)
        for files in config.others:
            certificate = _load(files, config, trust)
            if not certificate.names:
                raise TlsConfigError(
                    f"certificate {files.cert} names no host, so that nobody would ever be shown it",
                    "Issue it with the host names as DNS entries of its subjectAltName, or take it out of tls_certs.",
                )
            self._add(certificate)
        self.context = self.default.context
        # Contexts outlive a reload in the connections that they began, so each notes what it has shown itself.
        self.context.sni_callback = self._choose

    def _add(self, certificate: _Certificate) -> None:
        for name in certificate.names:
            self.names.setdefault(name, certificate)

    def _find(self, host: str) -> _Certificate:
        _, _, parent = host.partition(".")
        return self.names.get(host) or self.names.get(_WILDCARD + parent) or self.default

    def _choose(self, sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        found = self.default if name is None else self._find(name.lower().rstrip("."))
        if found is not self.default:
            sock.context = found.context
        if isinstance(sock, ssl.SSLSocket):
            self._shown[sock.fileno()] = Shown(name, found.der, found.end_point)


def _load(files: CertificateFiles, config: ClientTlsConfig, trust: _Trust | None) -> _Certificate:
    cert = _read(files.cert, "certificate file")
    key = cert if files.key == files.cert else _read(files.key, "certificate key file")
    context = _new_context(config.minimum_version)
    try:
        load_certificate(context, cert, key)
        leaf = x509.load_pem_x509_certificates(cert)[0]
        names = _host_names(leaf)
    except (ssl.SSLError, ValueError) as error:
        reason = tls_reason(error) if isinstance(error, ssl.SSLError) else error
        raise TlsConfigError(
            f"certificate {files.cert} with key {files.key} cannot be used: {reason}",
            "Both are PEM, the certificate first in its chain, and the key is the certificate's own and is not "
            "encrypted.",
        ) from None
    if trust is not None:
        _ask_for_certificates(context, trust)
    der = leaf.public_bytes(Encoding.DER)
    return _Certificate(context, der, server_end_point(der), names)


def _new_context(minimum: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum
    # PostgreSQL's own choice: no driver resumes sessions, and tickets would be sent for nothing.  What OpenSSL keeps of
    # sessions of TLS 1.2 lives for five minutes and is bounded.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    return context


def _read_trust(config: ClientTlsConfig, client_ca: Path) -> _Trust:
    """Read whose certificates are believed, and which of them are not any more; raises TlsConfigError."""
    authority = _read(client_ca, "certificate authority file")
    revoked = None if config.client_crl is None else _read(config.client_crl, "revocation list file")
    # OpenSSL would take a certificate in this file for one more authority.
    if revoked is not None and (not _CRL.search(revoked) or _CERTIFICATE.search(revoked)):
        raise TlsConfigError(
            f"{config.client_crl} is not a file of revocation lists",
            "tls_client_crl is a PEM file that begins with -----BEGIN X509 CRL----- and has no certificates in it.",
        )
    return _Trust(client_ca, authority, config.client_crl, revoked)


def _ask_for_certificates(context: ssl.SSLContext, trust: _Trust) -> None:
    """Ask clients for a certificate; that one is missing is for the login to refuse, in words that people can read."""
    try:
        context.load_verify_locations(cadata=trust.authority.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise TlsConfigError(
            f"{trust.authority_file} has no certificate of an authority for clients",
            "tls_client_ca is a PEM file with one or more CA certificates.",
        ) from None
    context.verify_mode = ssl.CERT_OPTIONAL
    if trust.revoked is None:
        return
    try:
        with as_file(trust.revoked) as path:
            context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise TlsConfigError(
            f"the revocation lists in {trust.revoked_file} cannot be used: {tls_reason(error)}",
            "Have the authority issue them anew, in PEM.",
        ) from None
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN


def _host_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in alternatives.get_values_for_type(x509.DNSName))


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise TlsConfigError(
            f"{what} {path} cannot be read: {error.strerror or error}",
            "Check that the file exists and that this user may read it.",
        ) from None
    if len(text) > MAX_FILE:
        raise TlsConfigError(
            f"{what} {path} is larger than {MAX_FILE:,} bytes", "It should be a PEM file of certificates."
        )
    return text


def _files_of(config: ClientTlsConfig) -> tuple[Path, ...]:
    pairs = (config.default, *config.others)
    named = [path for pair in pairs for path in (pair.cert, pair.key)]
    trust = [path for path in (config.client_ca, config.client_crl) if path is not None]
    return tuple(dict.fromkeys([*named, *trust]))


def _fingerprint(files: Iterable[Path]) -> Fingerprint:
    return tuple(_mark(path) for path in files)


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
