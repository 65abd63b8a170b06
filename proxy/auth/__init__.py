"""Proving and checking passwords, as step functions with no I/O: the caller brings messages and randomness."""

from proxy.auth.channel_binding import server_end_point
from proxy.auth.client_keys import ClientKey, ClientKeys
from proxy.auth.errors import (
    AuthError,
    ChannelBindingFailed,
    KeyOutdated,
    MalformedExchange,
    UntrustedServer,
    VerifierError,
    WrongPassword,
)
from proxy.auth.md5 import md5_hash, md5_response, verify_md5
from proxy.auth.scram import MECHANISM, MECHANISM_PLUS, NONCE_SIZE
from proxy.auth.scram_client import ScramClient, choose_mechanism
from proxy.auth.scram_server import ScramServer
from proxy.auth.slowdown import Attempt, Slowdown
from proxy.auth.verifiers import (
    DEFAULT_ITERATIONS,
    SALT_SIZE,
    ScramKeys,
    ScramVerifier,
    build_verifier,
    derive_keys,
    mock_verifier,
    verify_cleartext,
)

__all__ = [
    "DEFAULT_ITERATIONS",
    "MECHANISM",
    "MECHANISM_PLUS",
    "NONCE_SIZE",
    "SALT_SIZE",
    "Attempt",
    "AuthError",
    "ChannelBindingFailed",
    "ClientKey",
    "ClientKeys",
    "KeyOutdated",
    "MalformedExchange",
    "ScramClient",
    "ScramKeys",
    "ScramServer",
    "ScramVerifier",
    "Slowdown",
    "UntrustedServer",
    "VerifierError",
    "WrongPassword",
    "build_verifier",
    "choose_mechanism",
    "derive_keys",
    "md5_hash",
    "md5_response",
    "mock_verifier",
    "server_end_point",
    "verify_cleartext",
    "verify_md5",
]
