"""A scripted PostgreSQL server, for answers that a real one would never give."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Self, TypeAlias

from harness.rawclient import Message, cstring, frame

SSL_REQUEST_CODE = 80877103
GSSENC_REQUEST_CODE = 80877104
CANCEL_REQUEST_CODE = 80877102
PARAMETERS: Mapping[str, str] = {
    "server_version": "18.0",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
}

AUTHENTICATION_OK = frame("R", struct.pack("!I", 0))


def authentication(code: int, data: bytes = b"") -> bytes:
    return frame("R", struct.pack("!I", code) + data)


def parameter_status(name: str, value: str) -> bytes:
    return frame("S", cstring(name) + cstring(value))


def backend_key_data(pid: int, key: bytes) -> bytes:
    return frame("K", struct.pack("!I", pid) + key)


def ready(status: str = "I") -> bytes:
    return frame("Z", status.encode())


def row_description(*names: str) -> bytes:
    """A RowDescription of text columns."""
    columns = b"".join(cstring(name) + struct.pack("!IHIhiH", 0, 0, 25, -1, -1, 0) for name in names)
    return frame("T", struct.pack("!H", len(names)) + columns)


def data_row(*values: str | None) -> bytes:
    parts = [struct.pack("!H", len(values))]
    for value in values:
        raw = None if value is None else value.encode()
        parts.append(struct.pack("!i", -1) if raw is None else struct.pack("!i", len(raw)) + raw)
    return frame("D", b"".join(parts))


def command_complete(tag: str) -> bytes:
    return frame("C", cstring(tag))


def error_response(
    sqlstate: str, text: str, *, severity: str = "ERROR", fields: Mapping[str, str] | None = None
) -> bytes:
    """An ErrorResponse; further `fields` by their letters."""
    every = {"S": severity, "V": severity, "C": sqlstate, "M": text, **(fields or {})}
    return frame("E", b"".join(letter.encode() + cstring(value) for letter, value in every.items()) + b"\0")


class FakeSession:
    """The server's end of one connection, for a script to act with."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.startup: dict[str, str] = {}
        self.cancel: tuple[int, bytes] | None = None

    async def read_startup(self) -> dict[str, str]:
        """Read the StartupMessage, refusing TLS and GSS encryption before it, and return its parameters.

        For a CancelRequest the parameters are empty and `cancel` is set.
        """
        while True:
            (size,) = struct.unpack("!I", await self.reader.readexactly(4))
            body = await self.reader.readexactly(size - 4)
            (code,) = struct.unpack_from("!I", body)
            if code in (SSL_REQUEST_CODE, GSSENC_REQUEST_CODE):
                await self.send(b"N")
            elif code == CANCEL_REQUEST_CODE:
                self.cancel = (struct.unpack_from("!I", body, 4)[0], body[8:])
                return {}
            else:
                words = [word.decode() for word in body[4:].rstrip(b"\0").split(b"\0")]
                self.startup = dict(zip(words[::2], words[1::2], strict=True))
                return self.startup

    async def accept(
        self, *, pid: int = 4711, key: bytes = b"\1\2\3\4", parameters: Mapping[str, str] = PARAMETERS
    ) -> None:
        """Read the StartupMessage and let the client in without a password."""
        await self.read_startup()
        await self.greet(pid=pid, key=key, parameters=parameters)

    async def greet(
        self, *, pid: int = 4711, key: bytes = b"\1\2\3\4", parameters: Mapping[str, str] = PARAMETERS
    ) -> None:
        """Send AuthenticationOk, the parameters, the cancel key (unless empty) and ReadyForQuery."""
        statuses = b"".join(parameter_status(name, value) for name, value in parameters.items())
        await self.send(AUTHENTICATION_OK + statuses + (backend_key_data(pid, key) if key else b"") + ready())

    async def read(self) -> Message:
        """Read one message; raises asyncio.IncompleteReadError when the client closes."""
        header = await self.reader.readexactly(5)
        return Message(chr(header[0]), await self.reader.readexactly(struct.unpack("!I", header[1:])[0] - 4))

    async def read_until(self, kinds: str) -> list[Message]:
        """Read up to and including a message of one of these types."""
        messages = [await self.read()]
        while messages[-1].kind not in kinds:
            messages.append(await self.read())
        return messages

    async def send(self, *messages: bytes) -> None:
        """Send in one piece."""
        self.writer.write(b"".join(messages))
        await self.writer.drain()

    async def send_split(self, data: bytes, sizes: Iterable[int] | None = None) -> None:
        """Send in pieces of the given sizes (default: bytes), letting the other side run in between."""
        offset = 0
        for size in sizes if sizes is not None else [1] * len(data):
            await self.send(data[offset : offset + size])
            offset += size
            await asyncio.sleep(0)
        if offset < len(data):
            await self.send(data[offset:])

    async def answer_queries(self, answer: Callable[[str], bytes] | None = None) -> None:
        """Answer simple queries until the client leaves: with one row that repeats the query, unless told."""
        while (message := await self.read()).kind != "X":
            if message.kind == "Q":
                await self.send((answer or echo)(message.text))

    def close(self) -> None:
        """Close the connection as a server that has nothing more to say."""
        self.writer.close()

    def reset(self) -> None:
        """Cut the connection with a TCP reset."""
        self.writer.transport.abort()


def echo(sql: str) -> bytes:
    """A complete reply to a simple query: one row with its text."""
    return row_description("query") + data_row(sql) + command_complete("SELECT 1") + ready()


async def well_behaved(session: FakeSession) -> None:
    """The default script: let everyone in and repeat every query."""
    await session.accept()
    await session.answer_queries()


Script: TypeAlias = Callable[[FakeSession], Awaitable[None]]


class FakeServer:
    """Listens on a free port of 127.0.0.1 and plays `script` for every connection, which begins with TLS where there is
    a context for it.

    `async with FakeServer(script) as server` ends them all at the end.  A client that leaves in the middle is part of
    the game; any other exception of a script is raised at the end.
    """

    def __init__(self, script: Script = well_behaved, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.tls = tls
        self.sessions: list[FakeSession] = []
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        assert self._server is not None, "enter the context first"
        return int(self._server.sockets[0].getsockname()[1])

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = FakeSession(reader, writer)
        self.sessions.append(session)
        self._tasks.append(asyncio.create_task(self._play(session)))

    async def _play(self, session: FakeSession) -> None:
        try:
            await self.script(session)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            session.writer.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0, ssl=self.tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        for outcome in outcomes:
            if isinstance(outcome, Exception) and error is None:
                raise outcome
