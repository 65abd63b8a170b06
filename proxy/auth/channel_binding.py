"""Channel binding: what ties a SCRAM exchange to the TLS connection that it travels over.

Source: RFC 5929 section 4 (`tls-server-end-point`); RFC 5802 section 6; PostgreSQL documentation, "SASL
Authentication".
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

END_POINT: Final = "tls-server-end-point"
"""The one type of channel binding that PostgreSQL knows."""

BOUND_HEADER: Final = f"p={END_POINT},,".encode()
"""What a client's first message begins with when it binds; `n,,` and `y,,` are the others."""

_TOO_WEAK: Final = frozenset({"md5", "sha1"})


def server_end_point(certificate: bytes) -> bytes | None:
    """Hash a server's certificate (DER) as both ends of a TLS connection do in order to bind to it.

    The hash is that of the certificate's signature, SHA-256 in the place of MD5 and SHA-1.  None where the signature
    has none (Ed25519) or nobody knows it: RFC 5929 leaves those undefined, and there is nothing to bind to.
    """
    try:
        algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return None
    if algorithm is None:
        return None
    return hashlib.new("sha256" if algorithm.name in _TOO_WEAK else algorithm.name, certificate).digest()
