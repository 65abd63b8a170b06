"""The rules of TLS with a server: what goes with what, and what is a certificate and its key."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from registry.contract import Secret, TlsMode, TlsNegotiation
from registry.domain.models import Server
from registry.errors import Invalid

MAX_PEM_CHARS: Final = 262_144

CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----"

_ALWAYS_TLS: Final = frozenset({TlsMode.REQUIRE, TlsMode.VERIFY_CA, TlsMode.VERIFY_FULL})
_CHOOSE: Final = "choose the TLS mode require, verify-ca or verify-full"


def check_ca(pem: str | None) -> str | None:
    """Refuse what is no PEM text of certificates; raises Invalid."""
    if pem is not None and not _is_certificate(pem):
        raise Invalid("tls_ca", "this is no file of CA certificates", f"PEM text with {CERTIFICATE}")
    return pem


def check_certificate(pem: str | None) -> str | None:
    """Refuse what is no PEM text of a certificate and its chain, or has a key in it; raises Invalid."""
    if pem is not None and not _is_certificate(pem):
        raise Invalid("tls_cert", "this is no certificate", f"PEM text with {CERTIFICATE}, and without the key")
    return pem


def check_tls(server: Server) -> None:
    """Refuse what contradicts itself; raises Invalid."""
    if server.tls_ca is not None and server.tls_mode is TlsMode.DISABLE:
        raise Invalid("tls_ca", "a CA without TLS", "choose a TLS mode such as verify-full, or leave the CA out")
    if (server.tls_cert is not None) != server.has_tls_key:
        missing = "its key" if server.tls_cert is not None else "its certificate"
        raise Invalid("tls_cert", f"{missing} is missing", "a certificate and its key go together")
    if server.tls_cert is not None and server.tls_mode not in _ALWAYS_TLS:
        raise Invalid("tls_cert", f"a client certificate with TLS mode {server.tls_mode}", _CHOOSE)
    if server.tls_negotiation is TlsNegotiation.DIRECT and server.tls_mode not in _ALWAYS_TLS:
        # Without a request for TLS there is nothing to which the server could say no.
        raise Invalid("tls_negotiation", f"direct TLS with TLS mode {server.tls_mode}", _CHOOSE)


def check_pair(certificate: str, key: Secret) -> None:
    """Refuse a key that is not the certificate's, or is encrypted; raises Invalid."""
    try:
        found = load_pem_private_key(key.reveal().encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Invalid("tls_key", "this is no key that can be used", "a PEM file with an unencrypted key") from None
    try:
        shown = x509.load_pem_x509_certificates(certificate.encode())[0]
        fits = shown.public_key() == found.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise Invalid("tls_cert", "this certificate cannot be read", f"PEM text with {CERTIFICATE}") from None
    if not fits:
        raise Invalid("tls_key", "this is the key of another certificate", "give the key that goes with it")


def _is_certificate(pem: str) -> bool:
    return len(pem) <= MAX_PEM_CHARS and CERTIFICATE in pem and "PRIVATE KEY" not in pem
