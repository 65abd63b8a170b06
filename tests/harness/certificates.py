"""Certificates for proxies under test."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(slots=True)
class Certificates:
    """A certificate authority of its own and the files of one certificate, in `directory`.

    `issue` replaces the certificate by a new one.
    """

    directory: Path
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    authority: trustme.CA = field(default_factory=trustme.CA, repr=False)

    def __post_init__(self) -> None:
        self.authority.cert_pem.write_to_path(self.ca)
        self.issue()

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def cert(self) -> Path:
        return self.directory / "cert.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    def issue(self) -> None:
        made = self.authority.issue_cert(*self.names)
        self.cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(self.key)

    def listen(self, mode: str) -> dict[str, str]:
        """The settings of `[listen]` that put this certificate in force."""
        return {"tls_mode": mode, "tls_cert": str(self.cert), "tls_key": str(self.key)}

    def context(self, *protocols: str) -> ssl.SSLContext:
        """A client's context that trusts the authority and offers these protocols (ALPN)."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def verify_full(self) -> dict[str, Any]:
        """The parameters with which libpq checks everything."""
        return {"sslmode": "verify-full", "sslrootcert": str(self.ca)}


def revoke(authority: trustme.CA, path: Path, *certificates: x509.Certificate, lasts: float = 3600.0) -> Path:
    """Write the authority's revocation list with these certificates; it is good for `lasts` seconds from now on."""
    now = datetime.now(UTC)
    key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer).last_update(now - timedelta(hours=1))
    builder = builder.next_update(now + timedelta(seconds=lasts))
    for one in certificates:
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path
