"""A client's first words: encryption requests, a cancel request or a StartupMessage, and the words that end a login.

Whoever calls sets the time limit (`asyncio.timeout`) and closes the socket.  `ClientGone` ends a login without an
answer, and so does `NoStartup`, which is one; a `Failure` is told to the client with `send_failure`.

Source: PostgreSQL documentation, "Protocol Flow", sections "Start-up", "SSL Session Encryption" and "Canceling
Requests in Progress".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy.errors import (
    CERTIFICATE_REQUIRED,
    INVALID_REPLICATION,
    PROTOCOL_VIOLATION,
    TLS_REQUIRED,
    UNSUPPORTED_PROTOCOL,
    Failure,
)
from proxy.net.client_authentication import AuthPolicy, Channel, authenticate
from proxy.net.client_tls import ClientTls, PeerCertificate, Shown
from proxy.net.failures import fatal_response
from proxy.net.handshake_io import TLS_HANDSHAKE, HandshakeSocket, PeerGone, TlsFailed
from proxy.net.tls import ALPN
from proxy.wire import ImpossibleLength, ProtocolError, UnsupportedProtocol
from proxy.wire.authentication import AuthenticationOk
from proxy.wire.framing import LENGTH_SIZE, MAX_STARTUP_BODY
from proxy.wire.reports import BackendKeyData, ParameterStatus, ReadyForQuery, TransactionStatus
from proxy.wire.startup import (
    CancelRequest,
    FirstMessage,
    GSSENCRequest,
    ReplicationMode,
    SSLRequest,
    StartupMessage,
    decode_startup,
    is_cancel_request,
    negotiate,
)

__all__ = [
    "AuthPolicy",
    "ClientGone",
    "GreetPolicy",
    "Greeting",
    "NoStartup",
    "TlsFacts",
    "authenticate",
    "channel_of",
    "farewell",
    "greet",
    "login_complete",
    "parameter_statuses",
    "send_failure",
]

FAREWELL_SECONDS: Final = 1.0
"""How long a client that was refused may take to read why and close."""

TLS_HANDSHAKE_SECONDS: Final = 10.0
"""How long a TLS handshake may take whose first message has arrived: some round trips, and what the processor needs."""
TLS_HURRIED_SECONDS: Final = 2.0
"""The same while others wait for their handshake: it may be strangers who hold them up."""

TlsTurn: TypeAlias = Callable[[], AbstractAsyncContextManager[bool | None]]
"""What a TLS handshake has to wait for, and holds while it is under way; says whether others wait."""

ClientGone: TypeAlias = PeerGone
"""The client closed or lost the connection, or TLS with it failed: nothing more can be said."""


class NoStartup(PeerGone):
    """What a client has begun with is no packet at all, or no cancel request: PostgreSQL closes without a word.

    Some clients rely on that.  One that gives up before it has begun may say Terminate in place of a first packet, and
    take an error for one of its own.
    """


_AUTHENTICATION_OK: Final = AuthenticationOk().encode()
_READY: Final = ReadyForQuery(TransactionStatus.IDLE).encode()


@dataclass(frozen=True, slots=True)
class GreetPolicy:
    """What a client's first words are held to.

    `tls` None means that encryption is declined.  `startup_max_bytes` bounds each packet's body.
    """

    tls: ClientTls | None = None
    startup_max_bytes: int = MAX_STARTUP_BODY


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """How a connection is encrypted.

    `version` is OpenSSL's name of the protocol.  `shown` has the certificate that the client was shown, and `peer` is
    the client's own, verified, where it has shown one.
    """

    version: str
    shown: Shown
    peer: PeerCertificate | None


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a client wants: a session (`startup`) or a cancellation (`cancel`); the other one is None.

    `minor` is that of the protocol settled on: 0 for 3.0, 2 for 3.2.  `tls` is None without TLS.
    """

    startup: StartupMessage | None
    cancel: CancelRequest | None = None
    minor: int = 0
    tls: TlsFacts | None = None
    replication: ReplicationMode = ReplicationMode.NONE

    @property
    def sni(self) -> str | None:
        """The host name given in the TLS handshake."""
        return None if self.tls is None else self.tls.shown.server_name


def channel_of(greeting: Greeting) -> Channel:
    """What a login may rest on, of the connection over which a client has greeted."""
    tls = greeting.tls
    if tls is None:
        return Channel()
    return Channel(encrypted=True, end_point=tls.shown.end_point, certificate=tls.peer)


async def greet(io: HandshakeSocket, policy: GreetPolicy, tls_turn: TlsTurn = nullcontext) -> Greeting:
    """Hear out a client until it says what it wants; a TLS handshake is made within `tls_turn`.

    A NegotiateProtocolVersion that is due goes out together with the next message sent.  Raises Failure for what the
    client must be told, ClientGone where it cannot be told anything, NoStartup where PostgreSQL would not.

    Source: PostgreSQL's `ProcessStartupPacket` and `ProcessCancelRequestPacket`.
    """
    try:
        return await _greet(io, policy.tls, policy.startup_max_bytes, tls_turn)
    except UnsupportedProtocol as error:
        raise Failure(UNSUPPORTED_PROTOCOL, requested=f"{error.major}.{error.minor}") from None
    except ProtocolError as error:
        raise Failure(PROTOCOL_VIOLATION, reason=error) from None


async def _greet(io: HandshakeSocket, tls: ClientTls | None, startup_limit: int, tls_turn: TlsTurn) -> Greeting:
    facts: TlsFacts | None = None
    asked: set[type] = set()
    if tls is not None and (await io.peek(1))[0] == TLS_HANDSHAKE:
        facts = await _begin_tls(io, tls, tls_turn, direct=True)
    while True:
        message = await _read_request(io, startup_limit)
        if isinstance(message, CancelRequest):
            return Greeting(None, message, 0, facts)
        if isinstance(message, StartupMessage):
            return _accept(io, tls, message, facts)
        if type(message) in asked or (isinstance(message, SSLRequest) and facts is not None):
            raise ProtocolError("encryption was requested twice")
        asked.add(type(message))
        if isinstance(message, GSSENCRequest) or tls is None:
            await io.send(b"N")
        else:
            await io.send(b"S")
            facts = await _begin_tls(io, tls, tls_turn, direct=False)


async def _read_request(io: HandshakeSocket, startup_limit: int) -> FirstMessage:
    try:
        body = await io.read_packet(startup_limit)
    except ImpossibleLength as error:
        if startup_limit < error.length - LENGTH_SIZE <= MAX_STARTUP_BODY:
            raise
        raise NoStartup(str(error)) from None
    try:
        return decode_startup(body)
    except ProtocolError as error:
        if is_cancel_request(body):
            raise NoStartup(str(error)) from None
        raise


async def _begin_tls(io: HandshakeSocket, tls: ClientTls, turn: TlsTurn, *, direct: bool) -> TlsFacts:
    """Go over to TLS; a handshake takes memory from its beginning, so there are few at once, and none lasts long."""
    descriptor = io.sock.fileno()
    await io.peek_tls_record()
    async with turn() as others_wait:
        seconds = TLS_HURRIED_SECONDS if others_wait else TLS_HANDSHAKE_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await io.start_tls(tls.context, server_side=True)
        except TimeoutError:
            raise TlsFailed(f"the handshake was not over in {seconds:g} s") from None
        finally:
            shown = tls.take_shown(descriptor)
    connection = io.tls
    assert connection is not None, "TLS has begun"
    # Python goes on without a protocol that both know; PostgreSQL does not, lest another protocol's client be led here.
    if direct and connection.selected_alpn_protocol() != ALPN:
        raise TlsFailed(f'direct TLS without the protocol name (ALPN) "{ALPN}"')
    return TlsFacts(connection.version() or "TLS", shown, PeerCertificate.of(connection))


def _accept(io: HandshakeSocket, tls: ClientTls | None, message: StartupMessage, facts: TlsFacts | None) -> Greeting:
    if tls is not None and tls.mode.requires_tls and facts is None:
        raise Failure(TLS_REQUIRED)
    if tls is not None and tls.mode.requires_certificate and (facts is None or facts.peer is None):
        raise Failure(CERTIFICATE_REQUIRED)
    version, negotiation = negotiate(message)
    if negotiation is not None:
        io.queue(negotiation.encode())
    try:
        replication = message.replication
    except ValueError:
        raise Failure(INVALID_REPLICATION, value=message.get("replication")) from None
    return Greeting(message, None, version & 0xFFFF, facts, replication)


def parameter_statuses(values: Iterable[tuple[str, str]]) -> bytes:
    """Encode what `login_complete` reports; worth keeping where many clients get the same."""
    return b"".join(ParameterStatus(name, value).encode() for name, value in values)


def login_complete(statuses: bytes, pid: int, key: bytes) -> bytes:
    """Build everything from AuthenticationOk to ReadyForQuery, to be sent in one piece.

    `statuses` are encoded ParameterStatus messages.  `key` has 4 bytes before protocol 3.2, then up to 256.
    """
    return b"".join((_AUTHENTICATION_OK, statuses, BackendKeyData(pid, key).encode(), _READY))


async def send_failure(io: HandshakeSocket, failure: Failure) -> None:
    """Tell a client why its login ends; see `farewell`."""
    await farewell(io, fatal_response(failure))


async def farewell(io: HandshakeSocket, message: bytes, *, seconds: float = FAREWELL_SECONDS) -> None:
    """Send a client its last message and give it that long to take it; never raises for what the client does.

    Closing is still the caller's.
    """
    try:
        async with asyncio.timeout(seconds):
            await io.send(message)
            await io.discard_to_end()
    except (TimeoutError, PeerGone):
        return
