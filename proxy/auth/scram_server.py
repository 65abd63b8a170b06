"""The server half of SCRAM-SHA-256: a client proves to the proxy that it knows a password.

Source: RFC 5802, RFC 7677; where they leave a choice, PostgreSQL's `auth-scram.c`.
"""

from __future__ import annotations

import hmac

from proxy.auth.channel_binding import BOUND_HEADER
from proxy.auth.errors import ChannelBindingFailed, MalformedExchange, WrongPassword
from proxy.auth.scram import MAX_MESSAGE_SIZE, MECHANISM, MECHANISM_PLUS, Attributes, digest, sign, xor
from proxy.auth.verifiers import KEY_SIZE, ScramVerifier, encode_base64


class ScramServer:
    """One login's exchange: `start` with the SASLInitialResponse, then `step` with each SASLResponse until `done`.

    Each call returns what to send: in AuthenticationSASLContinue while not `done`, in AuthenticationSASLFinal
    then.  Raises MalformedExchange or WrongPassword; the exchange is over then.

    `nonce` must be `NONCE_SIZE` fresh random bytes.  For a login that does not exist pass a mock verifier: it costs
    the same work, one HMAC and one hash, and fails at the same place.  The user name within the messages is not
    looked at: PostgreSQL goes by the StartupMessage, and so must the caller.

    `end_point` is what `server_end_point` makes of the certificate that the client was shown; with it, and only then,
    `offers` has SCRAM-SHA-256-PLUS.  Raises ChannelBindingFailed where the client is bound to another connection, or
    was told that it could not bind.  `client_key` is what the proof has shown, once `done`.
    """

    def __init__(self, verifier: ScramVerifier, nonce: bytes, end_point: bytes | None = None) -> None:
        self.done = False
        self.client_key = b""
        self.offers = (MECHANISM,) if end_point is None else (MECHANISM_PLUS, MECHANISM)
        self._end_point = end_point
        self._binds = False
        self._tried = False
        self._verifier = verifier
        self._nonce = encode_base64(nonce).encode("ascii")
        self._full_nonce = b""
        self._gs2_header = b""
        self._client_first_bare = b""
        self._server_first = b""

    @property
    def challenged(self) -> bool:
        """Whether the next message has the proof."""
        return bool(self._server_first)

    def start(self, mechanism: str, data: bytes | None) -> bytes:
        """Take the client's choice and, where it sent any, its first message; without one the challenge is empty."""
        if mechanism not in self.offers:
            raise MalformedExchange("client selected a SASL mechanism that was not offered")
        self._binds = mechanism == MECHANISM_PLUS
        return b"" if data is None else self._challenge(data)

    def step(self, data: bytes) -> bytes:
        """Take the client's next message."""
        if self._tried:
            raise MalformedExchange("SCRAM exchange is already over")
        return self._outcome(data) if self.challenged else self._challenge(data)

    def _challenge(self, client_first: bytes) -> bytes:
        self._gs2_header = self._read_gs2_header(client_first)
        bare = client_first[len(self._gs2_header) :]
        attributes = Attributes(client_first, len(self._gs2_header))
        attributes.expect(b"n")
        nonce = attributes.expect_nonce()
        attributes.skip_extensions()
        self._client_first_bare = bare
        self._full_nonce = nonce + self._nonce
        salt = encode_base64(self._verifier.salt).encode("ascii")
        self._server_first = b"r=%b,s=%b,i=%d" % (self._full_nonce, salt, self._verifier.iterations)
        return self._server_first

    def _read_gs2_header(self, message: bytes) -> bytes:
        """Check the head of a client's first message and return it: `n,,`, `y,,` or that of a client that binds.

        `y` says: I could bind, but you did not offer it.  Where it was offered, somebody between has hidden that.
        """
        flag, _, rest = message[: MAX_MESSAGE_SIZE + 1].partition(b",")
        if flag.startswith(b"p=") and not self._binds:
            raise MalformedExchange("client asks for channel binding without SCRAM-SHA-256-PLUS")
        if self._binds and not flag.startswith(b"p="):
            raise MalformedExchange("client selected SCRAM-SHA-256-PLUS and does not bind to the channel")
        if flag not in {b"n", b"y"} and flag + b",," != BOUND_HEADER:
            raise MalformedExchange("SCRAM message has a malformed channel binding flag or an unknown type of it")
        if flag == b"y" and self._end_point is not None:
            raise ChannelBindingFailed("the client thinks that channel binding is not offered, which it is")
        if rest[:1] != b",":
            raise MalformedExchange("SCRAM authorization identities are not supported")
        return flag + b",,"

    def _outcome(self, client_final: bytes) -> bytes:
        self._tried = True
        attributes = Attributes(client_final)
        binding = attributes.expect_base64(b"c")
        nonce = attributes.expect_nonce()
        proof, without_proof = _read_proof(attributes, client_final)
        # The header comes back under the proof, so that nobody between can have changed it.
        if not binding.startswith(self._gs2_header):
            raise MalformedExchange("SCRAM channel binding does not match")
        bound_to = (self._end_point or b"") if self._binds else b""
        if not hmac.compare_digest(binding[len(self._gs2_header) :], bound_to):
            raise ChannelBindingFailed("the client is bound to a TLS connection with another certificate")
        if not hmac.compare_digest(nonce, self._full_nonce):
            raise MalformedExchange("SCRAM nonce does not match")
        signed = b",".join((self._client_first_bare, self._server_first, without_proof))
        client_key = xor(proof, sign(self._verifier.stored_key, signed))
        fits = hmac.compare_digest(digest(client_key), self._verifier.stored_key)
        if not (fits and self._verifier.usable):
            raise WrongPassword("password authentication failed")
        self.done = True
        self.client_key = client_key
        return b"v=" + encode_base64(sign(self._verifier.server_key, signed)).encode("ascii")


def _read_proof(attributes: Attributes, message: bytes) -> tuple[bytes, bytes]:
    """Find the proof, which comes last, and the part of the message before it."""
    end = attributes.position
    while (attribute := attributes.next()) is not None:
        if attribute[0] != b"p":
            end = attributes.position
            continue
        proof = Attributes(message, end).expect_base64(b"p")
        if len(proof) != KEY_SIZE or attributes.next() is not None:
            raise MalformedExchange("SCRAM proof has the wrong size or does not come last")
        return proof, message[: end - 1]
    raise MalformedExchange("SCRAM message lacks attribute p")
