"""Letting a client prove who it is.

A login that does not exist goes through the same conversation as one that does, with a mock verifier, and fails at
the same place with the same words.

Source: PostgreSQL documentation, "SASL Authentication" and "Protocol Flow"; PostgreSQL's `auth.c`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from proxy.auth import (
    NONCE_SIZE,
    ChannelBindingFailed,
    MalformedExchange,
    ScramServer,
    ScramVerifier,
    WrongPassword,
    verify_cleartext,
    verify_md5,
)
from proxy.auth.md5 import SALT_SIZE
from proxy.errors import CHANNEL_BINDING_FAILED, CLEARTEXT_FORBIDDEN, PROTOCOL_VIOLATION, Failure
from proxy.net.client_tls import PeerCertificate
from proxy.net.handshake_io import HandshakeSocket, PeerGone
from proxy.wire import ProtocolError
from proxy.wire.authentication import (
    AuthenticationCleartextPassword,
    AuthenticationMD5Password,
    AuthenticationSASL,
    AuthenticationSASLContinue,
    AuthenticationSASLFinal,
)
from proxy.wire.framing import F_PASSWORD, F_TERMINATE, MAX_PASSWORD_BODY, MAX_SASL_BODY
from proxy.wire.frontend import PasswordMessage, SASLInitialResponse, SASLResponse
from registry.contract import AuthMethod, Login

LONG_UNICODE: Final = 1_024
"""Bytes of a password that is not ASCII beyond which it is hashed in a thread, as SASLprep takes its time."""

COSTLY_ITERATIONS: Final = 16_384
"""SCRAM iterations beyond which a password is hashed in a thread, where it holds up nobody."""

DISTINGUISHED: Final = "dn:"
"""What begins a login's certificate where it is the whole subject, instead of the common name."""

Turn: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]
"""Makes what is entered right before an answer is looked at, and left, with WrongPassword if it is wrong, after it."""

_SCRAM_ONLY: Final = frozenset({AuthMethod.SCRAM})
_ASK_CLEARTEXT: Final = AuthenticationCleartextPassword().encode()


@dataclass(frozen=True, slots=True)
class AuthPolicy:
    """How clients may prove who they are, beyond what their logins say.

    `allow_cleartext` lets logins that opted in send their password without TLS; `trust` believes every known login
    without any proof.  `channel_binding` offers SCRAM-SHA-256-PLUS over TLS.  `random` gives that many bytes, fit for
    secrets.
    """

    allow_cleartext: bool = False
    trust: bool = False
    channel_binding: bool = True
    random: Callable[[int], bytes] = os.urandom


@dataclass(frozen=True, slots=True)
class Channel:
    """What is known of the connection that a client proves itself over.

    `end_point` is what logins can be bound to over TLS, `certificate` the client's own, verified.
    """

    encrypted: bool = False
    end_point: bytes | None = field(default=None, repr=False)
    certificate: PeerCertificate | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """That a client is who it says: the bytes that must be sent before AuthenticationOk, and what SCRAM has shown.

    `client_key` is None where another method was used.
    """

    final: bytes = b""
    client_key: bytes | None = field(default=None, repr=False)


class Claim(Protocol):
    """Who a client says it is, as the resolver has found it: a `Resolution` is one.

    `login` is None for one that does not exist, `verifier` a mock one then.  `certificate_name` is what the login's
    certificate says.  `refusal` is what is told to a client that cannot prove it.
    """

    @property
    def login(self) -> Login | None: ...

    @property
    def verifier(self) -> ScramVerifier: ...

    @property
    def certificate_name(self) -> str: ...

    @property
    def refusal(self) -> Failure: ...


async def authenticate(
    io: HandshakeSocket,
    user: str,
    claim: Claim,
    policy: AuthPolicy,
    channel: Channel,
    turn: Turn = nullcontext,
) -> Proof:
    """Have a client prove who it is.

    `user` is the name as the client spelled it.  A method beyond SCRAM-SHA-256 that the login opted in to is
    preferred, md5 before cleartext: the server has to choose before it knows what the client can do.  A login with the
    method cert is believed with the right certificate; without it, the other methods that it has are left.  `turn` may
    make what can be guessed wait: between it and the verdict nothing is read.

    Raises Failure: the claim's refusal for a wrong password, a refusal of a channel that the client is not bound to, a
    protocol violation for anything that is no answer.
    ClientGone when the client leaves, as libpq does in order to ask somebody for the password.
    """
    login = claim.login
    methods = _SCRAM_ONLY if login is None else login.methods
    stored = None if login is None or AuthMethod.MD5 not in methods else dict(login.md5).get(user)
    try:
        if login is not None and (policy.trust or is_certified(claim, channel.certificate)):
            return Proof()
        if stored is not None:
            return await _by_md5(io, stored.reveal(), policy, turn)
        if AuthMethod.PASSWORD in methods and (channel.encrypted or policy.allow_cleartext):
            return await _by_cleartext(io, claim.verifier, turn)
        proof = await _by_scram(io, claim.verifier, policy, channel, turn)
    except ChannelBindingFailed as error:
        raise Failure(CHANNEL_BINDING_FAILED, reason=error) from None
    except (MalformedExchange, ProtocolError) as error:
        raise Failure(PROTOCOL_VIOLATION, reason=error) from None
    except WrongPassword:
        raise claim.refusal from None
    if AuthMethod.SCRAM not in methods:
        # Only who knows the password learns that the login wants another method.
        raise Failure(CLEARTEXT_FORBIDDEN) if AuthMethod.PASSWORD in methods else claim.refusal
    return proof


def is_certified(claim: Claim, certificate: PeerCertificate | None) -> bool:
    """Whether a login may be proved by certificate, and this one is its own."""
    if certificate is None or claim.login is None or AuthMethod.CERT not in claim.login.methods:
        return False
    identity = claim.certificate_name
    if identity.startswith(DISTINGUISHED):
        return certificate.subject == identity.removeprefix(DISTINGUISHED)
    return certificate.common_name == identity


async def _by_scram(
    io: HandshakeSocket, verifier: ScramVerifier, policy: AuthPolicy, channel: Channel, turn: Turn
) -> Proof:
    end_point = channel.end_point if policy.channel_binding else None
    scram = ScramServer(verifier, policy.random(NONCE_SIZE), end_point)
    await io.send(AuthenticationSASL(scram.offers).encode())
    initial = SASLInitialResponse.decode(await _read_answer(io, MAX_SASL_BODY))
    data = scram.start(initial.mechanism, initial.data)
    while not scram.done:
        await io.send(AuthenticationSASLContinue(data).encode())
        answer = SASLResponse.decode(await _read_answer(io, MAX_SASL_BODY)).data
        async with turn() if scram.challenged else nullcontext():
            data = scram.step(answer)
    return Proof(AuthenticationSASLFinal(data).encode(), scram.client_key)


async def _by_md5(io: HandshakeSocket, stored: str, policy: AuthPolicy, turn: Turn) -> Proof:
    salt = policy.random(SALT_SIZE)
    await io.send(AuthenticationMD5Password(salt).encode())
    answer = PasswordMessage.decode(await _read_answer(io, MAX_PASSWORD_BODY))
    async with turn():
        if not verify_md5(stored, salt, answer.password):
            raise WrongPassword("password authentication failed")
    return Proof()


async def _by_cleartext(io: HandshakeSocket, verifier: ScramVerifier, turn: Turn) -> Proof:
    await io.send(_ASK_CLEARTEXT)
    answer = PasswordMessage.decode(await _read_answer(io, MAX_PASSWORD_BODY))
    is_long = len(answer.password) > LONG_UNICODE and not answer.password.isascii()
    async with turn():
        if is_long or verifier.iterations > COSTLY_ITERATIONS:
            fits = await asyncio.to_thread(verify_cleartext, verifier, answer.password)
        else:
            fits = verify_cleartext(verifier, answer.password)
        if not fits:
            raise WrongPassword("password authentication failed")
    return Proof()


async def _read_answer(io: HandshakeSocket, limit: int) -> bytes:
    kind, body = await io.read_frame(limit)
    if kind == F_TERMINATE:
        raise PeerGone("the client ended the login")
    if kind != F_PASSWORD:
        raise ProtocolError("expected the answer to an authentication request")
    return body
