"""Logins over socket pairs and over a small server of the proxy's own handshakes, without routes and pools."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trustme

from harness.rawclient import Message
from harness.waiting import eventually
from proxy.auth import ScramVerifier, build_verifier, md5_hash, mock_verifier
from proxy.errors import INVALID_PASSWORD, Failure
from proxy.net.client_handshake import (
    AuthPolicy,
    Greeting,
    GreetPolicy,
    authenticate,
    channel_of,
    greet,
    login_complete,
    parameter_statuses,
    send_failure,
)
from proxy.net.client_tls import CertificateFiles, ClientTls, ClientTlsConfig, ClientTlsMode
from proxy.net.handshake_io import HandshakeSocket, PeerGone, Turnstile
from proxy.net.listener import Listener
from registry.contract import AuthMethod, Login, Secret

SALT = bytes(range(16))
MOCK_SECRET = b"m" * 32
STATUSES = (("server_version", "18.0"), ("client_encoding", "UTF8"), ("standard_conforming_strings", "on"))


@dataclass(frozen=True, slots=True)
class Certificate:
    """A throw-away authority and the files of a certificate for localhost, 127.0.0.1 and *.db.example.com."""

    authority: trustme.CA
    cert: Path
    key: Path

    @classmethod
    def issue(cls, directory: Path, authority: trustme.CA | None = None) -> Self:
        authority = authority or trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1", "*.db.example.com")
        cert, key = directory / "server.crt", directory / "server.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return cls(authority, cert, key)

    @property
    def authority_pem(self) -> str:
        return self.authority.cert_pem.bytes().decode()

    @property
    def files(self) -> CertificateFiles:
        return CertificateFiles(self.cert, self.key)

    def tls(self, mode: ClientTlsMode = ClientTlsMode.ALLOW, **config: Any) -> ClientTls:
        """The proxy's side of TLS with this certificate."""
        return ClientTls(ClientTlsConfig(self.files, mode=mode, **config))

    def trusting(self, *protocols: str) -> ssl.SSLContext:
        """A context for clients that trust this authority and offer these protocols (ALPN)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context


class Peer:
    """The other end of a connection, for a test to act with."""

    def __init__(self, sock: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sock = sock
        self.reader = reader
        self.writer = writer

    async def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(messages))
        await self.writer.drain()

    async def send_bytewise(self, data: bytes) -> None:
        """Send byte by byte, letting the other side run after each."""
        for value in data:
            await self.send(bytes((value,)))
            await asyncio.sleep(0)

    async def read(self) -> Message:
        """Read one message; raises asyncio.IncompleteReadError at the end."""
        header = await self.reader.readexactly(5)
        return Message(chr(header[0]), await self.reader.readexactly(struct.unpack("!I", header[1:])[0] - 4))

    async def read_to_end(self) -> list[Message]:
        messages = []
        while not self.reader.at_eof():
            try:
                messages.append(await self.read())
            except asyncio.IncompleteReadError as end:
                if end.partial:
                    raise
        return messages

    async def close(self) -> None:
        """Close at once, whatever TLS would still like to say."""
        self.writer.transport.abort()
        await eventually(lambda: self.sock.fileno() < 0, what="the socket is closed")


@asynccontextmanager
async def connected(
    *, greedy: bool = False, turnstile: Turnstile | None = None
) -> AsyncIterator[tuple[HandshakeSocket, Peer]]:
    """A handshake socket and its peer."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0.0)
    io = HandshakeSocket(ours, greedy=greedy, turnstile=turnstile)
    peer = Peer(theirs, *await asyncio.open_connection(sock=theirs))
    try:
        yield io, peer
    finally:
        io.close()
        await peer.close()


@dataclass(frozen=True, slots=True)
class Account:
    """A claim as the resolver would make it."""

    verifier: ScramVerifier
    login: Login | None
    refusal: Failure

    @property
    def certificate_name(self) -> str:
        return "" if self.login is None else self.login.user


def account(user: str, password: str, *methods: AuthMethod, md5: bool = False) -> Account:
    """A login that exists."""
    verifier = build_verifier(password, SALT)
    chosen = frozenset(methods or {AuthMethod.SCRAM})
    hashes = ((user, Secret(md5_hash(user, password))),) if md5 else ()
    return Account(
        verifier, Login(1, user, 1, verifier.text(), chosen, md5=hashes), Failure(INVALID_PASSWORD, user=user)
    )


def nobody(user: str) -> Account:
    """A login that does not exist."""
    return Account(
        mock_verifier(MOCK_SECRET, user.encode(errors="surrogateescape")), None, Failure(INVALID_PASSWORD, user=user)
    )


@dataclass
class LoginServer:
    """Lets its accounts in as the proxy does, says ReadyForQuery, and waits for them to leave.

    `sockets` sees each detached socket; `greetings` and `refusals` are kept.
    """

    accounts: dict[str, Account]
    greet: GreetPolicy = field(default_factory=GreetPolicy)
    auth: AuthPolicy = field(default_factory=AuthPolicy)
    turnstile: Turnstile | None = None
    greetings: list[Greeting] = field(default_factory=list)
    refusals: list[Failure] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.listener = Listener("127.0.0.1", 0, self._login)
        self.listener.start()
        self.port = self.listener.port
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()
        for sock in self.sockets:
            sock.close()

    async def _login(self, sock: socket.socket, address: tuple[str, int]) -> None:
        io = HandshakeSocket(sock, turnstile=self.turnstile)
        try:
            greeting = await greet(io, self.greet)
            self.greetings.append(greeting)
            if greeting.startup is not None:
                user = greeting.startup.user or ""
                claim = self.accounts.get(user) or nobody(user)
                proof = await authenticate(io, user, claim, self.auth, channel_of(greeting))
                key = os.urandom(32 if greeting.minor else 4)
                await io.send(proof.final + login_complete(parameter_statuses(STATUSES), 4711, key))
                self.sockets.append(io.detach())
                return
        except Failure as failure:
            self.refusals.append(failure)
            await send_failure(io, failure)
        except PeerGone as gone:
            self.ended.append(str(gone))
        io.close()
