"""A client that speaks the protocol byte by byte, for what drivers would never send.

Its framing is its own and knows nothing of `proxy.wire`: the tests must not share the mistakes of what they test.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from proxy.auth import ScramClient, md5_hash, md5_response

PROTOCOL_3_0 = 3 << 16
PROTOCOL_3_2 = 3 << 16 | 2
SSL_REQUEST = struct.pack("!II", 8, 80877103)
GSSENC_REQUEST = struct.pack("!II", 8, 80877104)
TIMEOUT = 15.0


def frame(kind: str, body: bytes = b"") -> bytes:
    """One typed message."""
    return kind.encode("ascii") + struct.pack("!I", len(body) + 4) + body


def cstring(text: str) -> bytes:
    return text.encode() + b"\0"


def startup(parameters: Mapping[str, str], protocol: int = PROTOCOL_3_0) -> bytes:
    """A StartupMessage."""
    pairs = b"".join(cstring(name) + cstring(value) for name, value in parameters.items())
    return struct.pack("!II", len(pairs) + 9, protocol) + pairs + b"\0"


def cancel_request(pid: int, key: bytes) -> bytes:
    """A CancelRequest; keys are 4 bytes long before protocol 3.2."""
    return struct.pack("!III", 12 + len(key), 80877102, pid) + key


def query(sql: str) -> bytes:
    return frame("Q", cstring(sql))


def parse(sql: str, name: str = "") -> bytes:
    return frame("P", cstring(name) + cstring(sql) + b"\0\0")


def bind(values: Sequence[str | None] = (), *, statement: str = "", portal: str = "") -> bytes:
    """A Bind with values and results in text form."""
    parts = [cstring(portal), cstring(statement), struct.pack("!HH", 0, len(values))]
    for value in values:
        raw = None if value is None else value.encode()
        parts.append(struct.pack("!i", -1) if raw is None else struct.pack("!i", len(raw)) + raw)
    return frame("B", b"".join(parts) + struct.pack("!H", 0))


def describe(name: str = "", *, kind: str = "P") -> bytes:
    return frame("D", kind.encode() + cstring(name))


def execute(portal: str = "", *, limit: int = 0) -> bytes:
    return frame("E", cstring(portal) + struct.pack("!I", limit))


def close(name: str = "", *, kind: str = "S") -> bytes:
    return frame("C", kind.encode() + cstring(name))


def sync() -> bytes:
    return frame("S")


def flush() -> bytes:
    return frame("H")


def client_hello() -> bytes:
    """All that a TLS client says before it has an answer: one record."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols(["postgresql"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def terminate() -> bytes:
    return frame("X")


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the other side: its type byte as a letter, and its body."""

    kind: str
    body: bytes = field(repr=False)

    @property
    def fields(self) -> dict[str, str]:
        """The fields of an ErrorResponse or NoticeResponse by their letters (`C` is the SQLSTATE, `M`, `H` ...)."""
        parts = self.body.rstrip(b"\0").split(b"\0")
        return {part[:1].decode(): part[1:].decode() for part in parts if part}

    @property
    def row(self) -> tuple[str | None, ...]:
        """The values of a DataRow in text form."""
        values: list[str | None] = []
        offset = 2
        for _ in range(struct.unpack_from("!H", self.body)[0]):
            (size,) = struct.unpack_from("!i", self.body, offset)
            offset += 4
            values.append(None if size < 0 else self.body[offset : offset + size].decode())
            offset += max(size, 0)
        return tuple(values)

    @property
    def text(self) -> str:
        """The body as one string: the tag of a CommandComplete, the status of a ReadyForQuery."""
        return self.body.rstrip(b"\0").decode()

    @property
    def int32(self) -> int:
        return int(struct.unpack_from("!I", self.body)[0])


class ServerSaid(AssertionError):
    """An ErrorResponse where the test expected to get on."""

    def __init__(self, message: Message) -> None:
        self.fields = message.fields
        self.sqlstate = self.fields.get("C", "")
        super().__init__(f"{self.sqlstate}: {self.fields.get('M')} (hint: {self.fields.get('H')})")


class Disconnected(Exception):
    """The other side closed the connection; `received` is what came of a message before that."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"connection closed after {received!r}")
        self.received = received


class RawClient:
    """A blocking protocol client; every wait ends after `timeout` seconds with TimeoutError.

    In a coroutine call it through `asyncio.to_thread` unless the other side is another process.  `source` is its own
    address.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, timeout: float = TIMEOUT, source: str = "") -> None:
        self.address = (host, port)
        self.timeout = timeout
        self.sock: socket.socket = socket.create_connection(self.address, timeout, (source, 0) if source else None)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.parameters: dict[str, str] = {}
        self.pid = 0
        self.key = b""

    def send(self, *messages: bytes) -> None:
        """Send the messages in one piece."""
        self.sock.sendall(b"".join(messages))

    def send_bytewise(self, data: bytes, size: int = 1) -> None:
        """Send in pieces of `size` bytes, each in a segment of its own as far as the kernel goes along."""
        for start in range(0, len(data), size):
            self.sock.sendall(data[start : start + size])

    def read_exactly(self, count: int) -> bytes:
        """Read that many bytes; raises Disconnected when the connection ends before."""
        pieces = b""
        while len(pieces) < count:
            try:
                piece = self.sock.recv(count - len(pieces))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise Disconnected(pieces)
            pieces += piece
        return pieces

    def read(self) -> Message:
        """Read one message."""
        header = self.read_exactly(5)
        return Message(chr(header[0]), self.read_exactly(struct.unpack("!I", header[1:])[0] - 4))

    def read_until(self, kind: str = "Z") -> list[Message]:
        """Read up to and including the next message of this type, ReadyForQuery unless told."""
        messages = [self.read()]
        while messages[-1].kind != kind:
            messages.append(self.read())
        return messages

    def read_to_end(self) -> list[Message]:
        """Read until the other side closes."""
        messages = []
        while True:
            try:
                messages.append(self.read())
            except Disconnected as end:
                if end.received:
                    raise
                return messages

    def start_tls(self, context: ssl.SSLContext, *, server_hostname: str | None = None, direct: bool = False) -> None:
        """Ask for TLS (unless `direct`) and shake hands."""
        if not direct:
            self.send(SSL_REQUEST)
            answer = self.read_exactly(1)
            assert answer == b"S", f"TLS refused with {answer!r}"
        self.sock = context.wrap_socket(self.sock, server_hostname=server_hostname)

    def login(
        self,
        user: str,
        password: str | None = None,
        database: str | None = None,
        *,
        protocol: int = PROTOCOL_3_0,
        **parameters: str,
    ) -> list[Message]:
        """Log in with whatever method is asked for; return the messages from AuthenticationOk to ReadyForQuery.

        Raises ServerSaid for an ErrorResponse.
        """
        named = {"user": user} | ({} if database is None else {"database": database}) | parameters
        self.send(startup(named, protocol))
        scram = ScramClient(password or "", os.urandom(18))
        while (message := self._expect("R", "v")).kind == "v" or message.int32 != 0:
            if message.kind == "R":
                self._answer(message, scram, user, password or "")
        greeting = [message]
        while greeting[-1].kind != "Z":
            greeting.append(self._expect("S", "K", "Z", "N"))
            self._note(greeting[-1])
        return greeting

    def query(self, sql: str) -> list[Message]:
        """Send a simple query and return everything up to ReadyForQuery."""
        self.send(query(sql))
        return self.read_until("Z")

    def rows(self, sql: str) -> list[tuple[str | None, ...]]:
        """The rows of a simple query; raises ServerSaid when it fails."""
        messages = self.query(sql)
        for message in messages:
            if message.kind == "E":
                raise ServerSaid(message)
        return [message.row for message in messages if message.kind == "D"]

    def cancel(self) -> None:
        """Ask to cancel this session's query, over a connection of its own, and wait until that is closed."""
        with RawClient(self.address[1], self.address[0], timeout=self.timeout) as other:
            other.send(cancel_request(self.pid, self.key))
            other.read_to_end()

    def reset(self) -> None:
        """Vanish as a killed machine would: no Terminate, a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close the socket, without Terminate."""
        self.sock.close()

    def _expect(self, *kinds: str) -> Message:
        message = self.read()
        if message.kind == "E":
            raise ServerSaid(message)
        assert message.kind in kinds, f"unexpected message {message.kind!r}"
        return message

    def _answer(self, message: Message, scram: ScramClient, user: str, password: str) -> None:
        code, data = message.int32, message.body[4:]
        if code == 3:
            self.send(frame("p", cstring(password)))
        elif code == 5:
            self.send(frame("p", md5_response(md5_hash(user, password), data) + b"\0"))
        elif code == 10:
            first = scram.first()
            self.send(frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", len(first)) + first))
        elif code == 11:
            self.send(frame("p", scram.respond(data)))
        elif code == 12:
            scram.verify(data)
        else:
            raise AssertionError(f"authentication method {code} is not known here")

    def _note(self, message: Message) -> None:
        if message.kind == "S":
            name, value, _ = message.body.split(b"\0")
            self.parameters[name.decode()] = value.decode()
        elif message.kind == "K":
            self.pid, self.key = message.int32, message.body[4:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BytewiseClient(RawClient):
    """Sends every byte on its own."""

    def send(self, *messages: bytes) -> None:
        self.send_bytewise(b"".join(messages))


class EagerClient(RawClient):
    """Sends something right behind the final message of SCRAM, without waiting for the answer."""

    def __init__(self, port: int, eager: bytes) -> None:
        super().__init__(port)
        self.eager = eager

    def send(self, *messages: bytes) -> None:
        if messages[0].startswith(b"p") and b"c=biws" in messages[0]:
            super().send(*messages, self.eager)
        else:
            super().send(*messages)
