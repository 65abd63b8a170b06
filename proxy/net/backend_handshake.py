"""Opening a connection to a server: address, TLS, login, and everything up to the first ReadyForQuery.

Source: PostgreSQL documentation, "Protocol Flow", section "Start-up"; libpq's `fe-connect.c`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from proxy.auth import (
    MECHANISM_PLUS,
    NONCE_SIZE,
    AuthError,
    ClientKey,
    KeyOutdated,
    ScramClient,
    choose_mechanism,
    md5_hash,
    md5_response,
    server_end_point,
)
from proxy.net.endpoints import DialFailed, Endpoint, dial, find_endpoints
from proxy.net.handshake_io import HandshakeSocket, PeerGone, TlsFailed
from proxy.net.host_names import HostNames
from proxy.net.scram_keys import ScramKeyCache
from proxy.net.tls import ALPN, ServerTlsContexts, TlsConfigError
from proxy.wire import ProtocolError, framing
from proxy.wire.authentication import (
    AuthenticationCleartextPassword,
    AuthenticationMD5Password,
    AuthenticationOk,
    AuthenticationSASL,
    AuthenticationSASLContinue,
    AuthenticationSASLFinal,
    decode_authentication,
)
from proxy.wire.frontend import PasswordMessage, SASLInitialResponse, SASLResponse
from proxy.wire.reports import BackendKeyData, ErrorResponse, NegotiateProtocolVersion
from proxy.wire.startup import PROTOCOL_3_0, PROTOCOL_3_2, SSLRequest, StartupMessage
from registry.contract import (
    Address,
    ChannelBinding,
    Credentials,
    ProtocolVersion,
    ServerInfo,
    TlsMode,
    TlsNegotiation,
)

log = structlog.get_logger(__name__)

MAX_MESSAGE: Final = 65_536
"""Longest body of a message that a server may send before it is ready, in bytes."""
MAX_TOTAL: Final = 1 << 20
"""Bytes that a server may send altogether before it is ready."""

PROTOCOLS: Final = {ProtocolVersion.V3_0: PROTOCOL_3_0, ProtocolVersion.V3_2: PROTOCOL_3_2}

NO_PASSWORD: Final = "it asks for a password, and the registry has none"
"""How a login is refused by a server that would take a password."""

_MAX_SHOWN: Final = 300

_INVALID_PASSWORD: Final = "28P01"
_WHOLE_SERVER_CLASSES: Final = ("08", "53", "57", "58")
_ONE_ROLE_OR_DATABASE: Final = frozenset({"InitializeSessionUserId", "CheckMyDatabase"})
"""Where PostgreSQL finds the limit of a role or a database reached: 53300 too, but no fault of the server."""


class _PasswordMissing(AuthError):
    """The server asks for a password, and the registry has none."""


class BackendOpenFailed(Exception):
    """No connection could be opened.

    The text is for the operator: it may quote the server, and holds no secrets.  `summary` is for anybody: it names
    neither addresses nor roles.  `sqlstate` is None where the server did not say one.  `whole_server` tells that
    another role's or database's attempt would fail as well: unreachable, starting up, out of connections.  `refusal`
    says to anybody how the server refused, empty where it said nothing.  `timed_out` tells that the connect timeout was
    over, `key_refused` that the server does not take the key of a client.
    """

    def __init__(
        self,
        text: str,
        sqlstate: str | None = None,
        *,
        whole_server: bool,
        summary: str | None = None,
        refusal: str = "",
        timed_out: bool = False,
        key_refused: bool = False,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.summary = summary or text
        self.sqlstate = sqlstate
        self.whole_server = whole_server
        self.refusal = refusal
        self.timed_out = timed_out
        self.key_refused = key_refused


@dataclass(frozen=True, slots=True)
class _Options:
    connect_timeout: float
    tls: ServerTlsContexts
    keys: ScramKeyCache
    names: HostNames
    client_key: ClientKey | None
    random: Callable[[int], bytes]


@dataclass(slots=True)
class ReadyBackend:
    """A connection that waits for its first query.

    `sock` is non-blocking and unknown to the loop, and nothing has been read beyond ReadyForQuery.  `address` is
    the one that answered, and where to send cancel requests.  `params` are the parameters reported.  `pid` is 0 and
    `key` empty where the server gives no means to cancel.
    """

    sock: socket.socket
    address: Endpoint
    tls: bool
    params: dict[bytes, bytes]
    pid: int = 0
    key: bytes = field(default=b"", repr=False)


async def open_backend(
    server: ServerInfo,
    database: str,
    credentials: Credentials,
    *,
    connect_timeout: float,
    tls_contexts: ServerTlsContexts,
    keys: ScramKeyCache | None = None,
    names: HostNames | None = None,
    client_key: ClientKey | None = None,
    random: Callable[[int], bytes] = os.urandom,
    startup_parameters: Sequence[tuple[str, str]] = (),
) -> ReadyBackend:
    """Log in to a database, at the first of the server's addresses that answers.

    `connect_timeout` is in seconds and for each address that is tried; the next one is tried only where a failure has
    nothing to do with the login itself.  `keys` spares hashing the password each time, and `names`
    looking a host up twice at once.  `client_key` stands in for the
    password: with it there is only SCRAM.  A server that does not know the protocol that it is asked for names an older
    one, which is spoken then.

    Raises BackendOpenFailed for the login that was refused, or the last address that failed.
    """
    parameters = (("user", credentials.user), ("database", database), *startup_parameters)
    startup = StartupMessage(PROTOCOLS[server.protocol], parameters)
    options = _Options(connect_timeout, tls_contexts, keys or ScramKeyCache(), names or HostNames(), client_key, random)
    failure = BackendOpenFailed(f'server "{server.name}" has no address', whole_server=True)
    for address in server.addresses:
        try:
            return await _open_at(address, server, startup, credentials, options)
        except BackendOpenFailed as failed:
            if not failed.whole_server:
                raise
            failure = failed
    raise failure


async def connect(server: ServerInfo, endpoint: Endpoint, tls: ServerTlsContexts) -> HandshakeSocket:
    """Connect to an address and agree on TLS as the server's mode wants it; on Unix sockets there is none.

    As with libpq, `prefer` connects again without TLS where TLS fails, unless the login could not do without.
    The time limit is the caller's, and so is closing what is returned.  Raises DialFailed, PeerGone, TlsFailed,
    TlsConfigError.
    """
    context = None if endpoint.is_local else tls.context(server)
    if context is None:
        return HandshakeSocket(await dial(endpoint), greedy=True)
    try:
        return await _connect_with_tls(server, endpoint, context)
    except PeerGone as error:
        if _needs_tls(server):
            raise
        log.warning(
            "TLS failed, going on without it as tls_mode is prefer",
            server=server.name,
            address=str(endpoint),
            reason=str(error),
        )
    return HandshakeSocket(await dial(endpoint), greedy=True)


def _needs_tls(server: ServerInfo) -> bool:
    """Whether to give up where TLS fails: also where the login rests on it, by a certificate or a binding."""
    rests_on_it = server.tls_cert is not None or server.channel_binding is ChannelBinding.REQUIRE
    return server.tls_mode is not TlsMode.PREFER or rests_on_it


async def _connect_with_tls(server: ServerInfo, endpoint: Endpoint, context: ssl.SSLContext) -> HandshakeSocket:
    io = HandshakeSocket(await dial(endpoint), greedy=True)
    try:
        if server.tls_negotiation is TlsNegotiation.DIRECT:
            await _begin_directly(io, context, endpoint.host)
        elif await _may_begin_tls(io, server):
            await io.start_tls(context, server_hostname=endpoint.host)
    except BaseException:
        io.close()
        raise
    return io


async def _begin_directly(io: HandshakeSocket, context: ssl.SSLContext, host: str) -> None:
    """Begin with TLS at once; raises TlsFailed where the server does not know that."""
    unknown = "it does not speak TLS from the first byte on, as PostgreSQL 17 and newer do"
    try:
        await io.start_tls(context, server_hostname=host)
    except TlsFailed:
        raise
    except PeerGone:
        raise TlsFailed(unknown) from None
    if io.tls is None or io.tls.selected_alpn_protocol() != ALPN:
        raise TlsFailed(unknown)


async def _may_begin_tls(io: HandshakeSocket, server: ServerInfo) -> bool:
    """Ask for TLS; raises TlsFailed where the server has none and has to."""
    await io.send(SSLRequest().encode())
    answer = await io.read_exactly(1)
    if answer == b"S":
        return True
    if answer != b"N":
        raise TlsFailed("the server answered the request for TLS with an error")
    if server.tls_mode is not TlsMode.PREFER:
        raise TlsFailed(f"the server does not speak TLS, but tls_mode is {server.tls_mode}")
    return False


async def _open_at(
    address: Address, server: ServerInfo, startup: StartupMessage, credentials: Credentials, options: _Options
) -> ReadyBackend:
    limit = options.connect_timeout
    failure: BackendOpenFailed | None = None
    try:
        async with asyncio.timeout(limit):
            endpoints = await find_endpoints(address, options.names)
    except (DialFailed, TimeoutError) as error:
        timed_out = not isinstance(error, DialFailed)
        reason = f"looking up its host name took more than {limit:g} s" if timed_out else error
        text = f'server "{server.name}": {reason}'
        summary = "its host name could not be looked up"
        raise BackendOpenFailed(text, whole_server=True, summary=summary, timed_out=timed_out) from None
    for endpoint in endpoints:
        opening = _Opening(server, endpoint, startup, credentials, options)
        try:
            return await opening.run()
        except BackendOpenFailed as failed:
            if not failed.whole_server:
                raise
            failure = failed
    assert failure is not None, "a look-up finds at least one address"
    raise failure


class _Opening:
    """One attempt at one address."""

    def __init__(
        self,
        server: ServerInfo,
        endpoint: Endpoint,
        startup: StartupMessage,
        credentials: Credentials,
        options: _Options,
    ) -> None:
        self._server = server
        self._endpoint = endpoint
        self._startup = startup
        self._user = credentials.user
        self._secret = credentials.password
        self._options = options
        self._received = 0
        self._accepted = False

    async def run(self) -> ReadyBackend:
        limit = self._options.connect_timeout
        try:
            async with asyncio.timeout(limit):
                return await self._run()
        except TimeoutError:
            what = "its login" if self._accepted else "it"
            failure = self._failed(f"{what} did not answer within {limit:g} s", whole=not self._accepted)
            failure.timed_out = True
            raise failure from None
        except TlsFailed as error:
            raise self._failed(f"TLS failed: {error}", "TLS failed", whole=not self._accepted) from None
        except (DialFailed, PeerGone) as error:
            raise self._failed(str(error), whole=not self._accepted) from None
        except TlsConfigError as error:
            raise self._failed(f"{error}. {error.hint}", "its TLS settings are wrong", whole=True) from None
        except ProtocolError as error:
            reason = f"it does not speak PostgreSQL's protocol as it should: {error}"
            raise self._failed(reason, whole=not self._accepted) from None
        except AuthError as error:
            failure = self._failed(str(error), "the login failed", whole=False)
            failure.refusal = NO_PASSWORD if isinstance(error, _PasswordMissing) else "the login failed"
            failure.key_refused = self._options.client_key is not None and isinstance(error, KeyOutdated)
            raise failure from None

    async def _run(self) -> ReadyBackend:
        io = await connect(self._server, self._endpoint, self._options.tls)
        try:
            await io.send(self._startup.encode())
            await self._authenticate(io)
            self._accepted = True
            ready = await self._wait_until_ready(io)
            io.detach()
        except BaseException:
            io.close()
            raise
        return ready

    async def _authenticate(self, io: HandshakeSocket) -> None:
        scram: ScramClient | None = None
        while True:
            kind, body = await self._read(io)
            if kind == framing.B_NEGOTIATE_VERSION:
                self._check_version(NegotiateProtocolVersion.decode(body))
                continue
            if kind != framing.B_AUTHENTICATION:
                raise ProtocolError(f"message type {kind} during authentication")
            request = decode_authentication(body)
            match request:
                case AuthenticationOk() if scram is None or scram.done:
                    self._check_binding(scram)
                    return
                case AuthenticationCleartextPassword() if scram is None:
                    self._check_binding(scram)
                    await io.send(PasswordMessage(self._password().encode("utf-8", "surrogateescape")).encode())
                case AuthenticationMD5Password(salt) if scram is None:
                    self._check_binding(scram)
                    response = md5_response(md5_hash(self._user, self._password()), salt)
                    await io.send(PasswordMessage(response).encode())
                case AuthenticationSASL(mechanisms) if scram is None:
                    scram = self._scram(io, mechanisms)
                    await io.send(SASLInitialResponse(scram.mechanism.name, scram.first()).encode())
                case AuthenticationSASLContinue(data) if scram is not None:
                    await io.send(SASLResponse(await self._options.keys.respond(scram, data)).encode())
                case AuthenticationSASLFinal(data) if scram is not None:
                    scram.verify(data)
                case _:
                    what = type(request).__name__
                    raise AuthError(f"it asks for {what} at this point, which is not supported")

    def _scram(self, io: HandshakeSocket, mechanisms: Sequence[str]) -> ScramClient:
        certificate = None if io.tls is None else io.tls.getpeercert(binary_form=True)
        end_point = None if certificate is None else server_end_point(certificate)
        mechanism = choose_mechanism(mechanisms, end_point, self._server.channel_binding)
        nonce, key = self._options.random(NONCE_SIZE), self._options.client_key
        if key is not None:
            return ScramClient("", nonce, mechanism, derive=key.derive)
        return ScramClient(self._password(), nonce, mechanism, derive=self._options.keys.derive)

    def _check_binding(self, scram: ScramClient | None) -> None:
        """Hold a login to the binding that it must have, before a password is sent or the server is believed."""
        is_bound = scram is not None and scram.mechanism.name == MECHANISM_PLUS
        if self._server.channel_binding is ChannelBinding.REQUIRE and not is_bound:
            raise AuthError("channel binding is required, and it wants a login without")

    async def _wait_until_ready(self, io: HandshakeSocket) -> ReadyBackend:
        ready = ReadyBackend(io.sock, self._endpoint, io.tls is not None, {})
        while True:
            kind, body = await self._read(io)
            if kind == framing.B_PARAMETER_STATUS:
                name, value = _split_status(body)
                ready.params[name] = value
            elif kind == framing.B_BACKEND_KEY_DATA:
                key_data = BackendKeyData.decode(body)
                ready.pid, ready.key = key_data.pid, key_data.key
            elif kind == framing.B_READY:
                if body != b"I":
                    raise ProtocolError("the session begins within a transaction")
                return ready
            else:
                raise ProtocolError(f"message type {kind} before the first ReadyForQuery")

    async def _read(self, io: HandshakeSocket) -> tuple[int, bytes]:
        """Read the next message that is no notice; raises BackendOpenFailed for an error."""
        while True:
            kind, body = await io.read_frame(MAX_MESSAGE)
            self._received += framing.HEADER_SIZE + len(body)
            if self._received > MAX_TOTAL:
                raise ProtocolError("too many messages during the login")
            if kind == framing.B_ERROR:
                raise self._refused(ErrorResponse.decode(body))
            if kind != framing.B_NOTICE:
                return kind, body

    def _check_version(self, settled: NegotiateProtocolVersion) -> None:
        if settled.version >> 16 != 3 or settled.version > self._startup.version:
            raise ProtocolError("the server wants to speak a protocol version that was not asked for")

    def _password(self) -> str:
        if self._secret is None:
            raise _PasswordMissing(f'it asks for a password, and none is stored for role "{self._user}"')
        return self._secret.reveal()

    def _refused(self, error: ErrorResponse) -> BackendOpenFailed:
        state = error.sqlstate
        whole = state is not None and state.startswith(_WHOLE_SERVER_CLASSES) and not _is_about_one(error)
        said = printable(error.message or "an error without a message")
        summary = "it accepts no connections now" if whole else "it did not accept the login"
        code = f"SQLSTATE {printable(state or 'missing')}"
        failure = self._failed(f"{said} ({code})", summary, state, whole=whole)
        failure.refusal = code
        failure.key_refused = self._options.client_key is not None and state == _INVALID_PASSWORD
        return failure

    def _failed(
        self, reason: str, summary: str | None = None, sqlstate: str | None = None, *, whole: bool
    ) -> BackendOpenFailed:
        text = f'server "{self._server.name}" at {self._endpoint}: {reason}'
        return BackendOpenFailed(text, sqlstate, whole_server=whole, summary=summary or reason)


def _is_about_one(error: ErrorResponse) -> bool:
    """Whether a limit of one role or database was reached; PostgreSQL translates the text, but not where it arose."""
    return error.get("R") in _ONE_ROLE_OR_DATABASE


def _split_status(body: bytes) -> tuple[bytes, bytes]:
    parts = body.split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise ProtocolError("ParameterStatus message is not two terminated strings")
    return parts[0], parts[1]


def printable(text: str) -> str:
    """What a server said, as it may stand in a log: without control characters, and not too long."""
    shown = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
    return "".join(character if character.isprintable() else "?" for character in shown)
