"""The client half of SCRAM-SHA-256: the proxy logs in to a server, and checks that the server knows the password.

Source: RFC 5802, RFC 7677; PostgreSQL's `fe-auth-scram.c`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy.auth.channel_binding import BOUND_HEADER
from proxy.auth.errors import MalformedExchange, UntrustedServer
from proxy.auth.scram import MECHANISM, MECHANISM_PLUS, Attributes, digest, sign, xor
from proxy.auth.verifiers import KEY_SIZE, MAX_ITERATIONS, MAX_SALT_SIZE, ScramKeys, derive_keys, encode_base64
from registry.contract import ChannelBinding

DeriveKeys: TypeAlias = Callable[[str | bytes, bytes, int], ScramKeys]

# What RFC 5802 section 7 lets a server say; anything else is not repeated.
_SERVER_ERRORS: Final = frozenset(
    {
        b"invalid-encoding",
        b"extensions-not-supported",
        b"invalid-proof",
        b"channel-bindings-dont-match",
        b"server-does-support-channel-binding",
        b"channel-binding-not-supported",
        b"unsupported-channel-binding-type",
        b"unknown-user",
        b"invalid-username-encoding",
        b"no-resources",
        b"other-error",
    }
)


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism, the head of its first message (the GS2 header), and what it binds to."""

    name: str = MECHANISM
    header: bytes = b"n,,"
    bound_to: bytes = b""


UNBOUND: Final = Mechanism()


def choose_mechanism(
    offered: Sequence[str], end_point: bytes | None = None, policy: ChannelBinding = ChannelBinding.PREFER
) -> Mechanism:
    """Pick the mechanism to answer an AuthenticationSASL with.

    `end_point` is what `server_end_point` makes of the server's certificate, None without TLS.  Raises UntrustedServer
    when no mechanism is known, or none that binds where the policy requires it.
    """
    if policy is ChannelBinding.DISABLE:
        end_point = None
    if end_point is not None and MECHANISM_PLUS in offered:
        return Mechanism(MECHANISM_PLUS, BOUND_HEADER, end_point)
    if policy is ChannelBinding.REQUIRE:
        missing = "there is no TLS certificate to bind to" if end_point is None else "the server does not offer it"
        raise UntrustedServer(f"channel binding is required, and {missing}")
    if MECHANISM not in offered:
        raise UntrustedServer(f"the server offers no SASL mechanism that is supported here ({MECHANISM})")
    # `y`: a server that did offer it then knows that somebody between has hidden that.
    return UNBOUND if end_point is None else Mechanism(header=b"y,,")


class ScramClient:
    """One login's exchange: `first`, then `respond` to the challenge, then `verify` the outcome.

    `verify` must have returned before the server is trusted with anything: without it, whoever answers could be
    anyone.  `nonce` must be `NONCE_SIZE` fresh random bytes.  `derive` may be a caching form of `derive_keys`, or
    `ClientKey.derive`, and what it raises comes out of `respond`.
    Raises MalformedExchange for data that is not SCRAM, UntrustedServer for a server that asks for too much work,
    refuses the login or fails to prove itself.
    """

    def __init__(
        self,
        password: str | bytes,
        nonce: bytes,
        mechanism: Mechanism = UNBOUND,
        *,
        derive: DeriveKeys = derive_keys,
        max_iterations: int = MAX_ITERATIONS,
    ) -> None:
        self.mechanism = mechanism
        self._password = password
        self._nonce = encode_base64(nonce).encode("ascii")
        self._derive = derive
        self._max_iterations = max_iterations
        self._server_signature = b""
        self.done = False

    def first(self) -> bytes:
        """Give the data of the SASLInitialResponse; the user name is left to the StartupMessage, as libpq does."""
        return self.mechanism.header + self._first_bare()

    def respond(self, server_first: bytes) -> bytes:
        """Answer the data of AuthenticationSASLContinue with that of the SASLResponse."""
        if self._server_signature:
            raise MalformedExchange("server sent a second SCRAM challenge")
        attributes = Attributes(server_first)
        nonce = attributes.expect_nonce()
        salt = attributes.expect_base64(b"s")
        iterations = _read_iterations(attributes.expect(b"i"))
        attributes.skip_extensions()
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise UntrustedServer("the server's SCRAM nonce does not continue ours")
        if not 1 <= len(salt) <= MAX_SALT_SIZE:
            raise UntrustedServer("the server's SCRAM salt is empty or too long")
        if not 1 <= iterations <= self._max_iterations:
            raise UntrustedServer(f"the server asks for more than {self._max_iterations:,} SCRAM iterations, or none")
        keys = self._derive(self._password, salt, iterations)
        binding = self.mechanism.header + self.mechanism.bound_to
        without_proof = b"c=%b,r=%b" % (encode_base64(binding).encode("ascii"), nonce)
        signed = b",".join((self._first_bare(), server_first, without_proof))
        self._server_signature = sign(keys.server_key, signed)
        proof = xor(keys.client_key, sign(digest(keys.client_key), signed))
        return b"%b,p=%b" % (without_proof, encode_base64(proof).encode("ascii"))

    def verify(self, server_final: bytes) -> None:
        """Check the data of AuthenticationSASLFinal; the server knows the password if this returns."""
        attributes = Attributes(server_final)
        if server_final.startswith(b"e="):
            error = attributes.expect(b"e")
            shown = error.decode("ascii") if error in _SERVER_ERRORS else "unknown error"
            raise UntrustedServer(f"the server ended the SCRAM exchange: {shown}")
        signature = attributes.expect_base64(b"v")
        attributes.skip_extensions()
        if len(signature) != KEY_SIZE or not hmac.compare_digest(signature, self._server_signature):
            raise UntrustedServer("the server does not know the password: its SCRAM signature is wrong")
        self.done = True

    def _first_bare(self) -> bytes:
        return b"n=,r=" + self._nonce


def _read_iterations(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10:
        raise MalformedExchange("SCRAM iteration count is not a number")
    return int(text)
