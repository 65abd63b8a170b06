"""Letting a client prove who it is.

A login that does not exist goes through the same conversation as one that does, with a mock verifier, and fails at
the same place with the same words.

Source: PostgreSQL documentation, "SASL Authentication" and "Protocol Flow"; PostgreSQL's `auth.c`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from proxy.auth import (
    MECHANISM,
    NONCE_SIZE,
    MalformedExchange,
    ScramServer,
    ScramVerifier,
    WrongPassword,
    verify_cleartext,
    verify_md5,
)
from proxy.auth.md5 import SALT_SIZE
from proxy.errors import CLEARTEXT_FORBIDDEN, PROTOCOL_VIOLATION, Failure
from proxy.net.handshake_io import HandshakeSocket, PeerGone
from proxy.wire import ProtocolError
from proxy.wire.authentication import (
    AuthenticationCleartextPassword,
    AuthenticationMD5Password,
    AuthenticationSASL,
    AuthenticationSASLContinue,
    AuthenticationSASLFinal,
)
from proxy.wire.framing import F_PASSWORD, F_TERMINATE, MAX_SASL_BODY
from proxy.wire.frontend import PasswordMessage, SASLInitialResponse, SASLResponse
from registry.contract import AuthMethod, Login

MAX_PASSWORD: Final = 16_384
"""Longest PasswordMessage in bytes: tokens that serve as passwords have a few thousand, and each byte costs work."""

COSTLY_ITERATIONS: Final = 16_384
"""SCRAM iterations beyond which a password is hashed in a thread, where it holds up nobody."""

_SCRAM_ONLY: Final = frozenset({AuthMethod.SCRAM})
_ASK_SASL: Final = AuthenticationSASL((MECHANISM,)).encode()
_ASK_CLEARTEXT: Final = AuthenticationCleartextPassword().encode()


@dataclass(frozen=True, slots=True)
class AuthPolicy:
    """How clients may prove who they are, beyond what their logins say.

    `allow_cleartext` lets logins that opted in send their password without TLS; `trust` believes every known login
    without any proof.  `random` gives that many bytes, fit for secrets.
    """

    allow_cleartext: bool = False
    trust: bool = False
    random: Callable[[int], bytes] = os.urandom


class Claim(Protocol):
    """Who a client says it is, as the resolver has found it: a `Resolution` is one.

    `login` is None for one that does not exist, `verifier` a mock one then.  `refusal` is what is told to a client
    that cannot prove it.
    """

    @property
    def login(self) -> Login | None: ...

    @property
    def verifier(self) -> ScramVerifier: ...

    @property
    def refusal(self) -> Failure: ...


async def authenticate(io: HandshakeSocket, user: str, claim: Claim, policy: AuthPolicy, *, tls: bool) -> bytes:
    """Have a client prove who it is; returns the bytes that must be sent before AuthenticationOk.

    `user` is the name as the client spelled it.  A method beyond SCRAM-SHA-256 that the login opted in to is
    preferred, md5 before cleartext: the server has to choose before it knows what the client can do.

    Raises Failure: the claim's refusal for a wrong password, a protocol violation for anything that is no answer.
    ClientGone when the client leaves, as libpq does in order to ask somebody for the password.
    """
    login = claim.login
    methods = _SCRAM_ONLY if login is None else login.methods
    stored = None if login is None or AuthMethod.MD5 not in methods else dict(login.md5).get(user)
    try:
        if policy.trust and login is not None:
            return b""
        if stored is not None:
            return await _by_md5(io, stored.reveal(), policy)
        if AuthMethod.PASSWORD in methods and (tls or policy.allow_cleartext):
            return await _by_cleartext(io, claim.verifier)
        final = await _by_scram(io, claim.verifier, policy)
    except (MalformedExchange, ProtocolError) as error:
        raise Failure(PROTOCOL_VIOLATION, reason=error) from None
    except WrongPassword:
        raise claim.refusal from None
    if AuthMethod.SCRAM not in methods:
        # Only who knows the password learns that the login wants another method.
        raise Failure(CLEARTEXT_FORBIDDEN) if AuthMethod.PASSWORD in methods else claim.refusal
    return final


async def _by_scram(io: HandshakeSocket, verifier: ScramVerifier, policy: AuthPolicy) -> bytes:
    scram = ScramServer(verifier, policy.random(NONCE_SIZE))
    await io.send(_ASK_SASL)
    initial = SASLInitialResponse.decode(await _read_answer(io, MAX_SASL_BODY))
    data = scram.start(initial.mechanism, initial.data)
    while not scram.done:
        await io.send(AuthenticationSASLContinue(data).encode())
        data = scram.step(SASLResponse.decode(await _read_answer(io, MAX_SASL_BODY)).data)
    return AuthenticationSASLFinal(data).encode()


async def _by_md5(io: HandshakeSocket, stored: str, policy: AuthPolicy) -> bytes:
    salt = policy.random(SALT_SIZE)
    await io.send(AuthenticationMD5Password(salt).encode())
    answer = PasswordMessage.decode(await _read_answer(io, MAX_PASSWORD))
    if not verify_md5(stored, salt, answer.password):
        raise WrongPassword("password authentication failed")
    return b""


async def _by_cleartext(io: HandshakeSocket, verifier: ScramVerifier) -> bytes:
    await io.send(_ASK_CLEARTEXT)
    answer = PasswordMessage.decode(await _read_answer(io, MAX_PASSWORD))
    if verifier.iterations > COSTLY_ITERATIONS:
        fits = await asyncio.to_thread(verify_cleartext, verifier, answer.password)
    else:
        fits = verify_cleartext(verifier, answer.password)
    if not fits:
        raise WrongPassword("password authentication failed")
    return b""


async def _read_answer(io: HandshakeSocket, limit: int) -> bytes:
    kind, body = await io.read_frame(limit)
    if kind == F_TERMINATE:
        raise PeerGone("the client ended the login")
    if kind != F_PASSWORD:
        raise ProtocolError("expected the answer to an authentication request")
    return body
