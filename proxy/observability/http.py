"""The HTTP endpoint of a node: /metrics, /healthz, /readyz, and POST /reload.

A web framework would bring a second event-loop style, threads and a parser for all of HTTP into the process that
relays; four fixed answers need none of that.  Requests are bounded in size and time, and connections in number.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.net.acceptor import Acceptor, PeerAddress
from proxy.settings import ReloadFailed

log = structlog.get_logger(__name__)

MAX_HEAD: Final = 8192
REQUEST_TIMEOUT: Final = 5.0
ANSWER_TIMEOUT: Final = 30.0
"""Seconds for making an answer and for the client to take it; one that does not read holds its connection no longer."""
LINGER: Final = 0.5
"""Seconds for a client whose request was refused to stop sending."""
MAX_CONNECTIONS: Final = 64
MAX_REFUSALS: Final = 64
"""Connections above MAX_CONNECTIONS that are told so; more are closed without a word."""
BACKLOG: Final = 100
"""Connections that wait to be accepted."""
REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
ALLOWED: Final = {"/metrics": "GET, HEAD", "/healthz": "GET, HEAD", "/readyz": "GET, HEAD", "/reload": "POST"}
JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of readiness."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Routes:
    """What the endpoint serves.

    `metrics` yields pieces of text; `ready` lists the conditions of readiness; `reload` returns what the answer says,
    and raises ReloadFailed.  `admin_token` is asked for at each reload; None forbids it.
    """

    metrics: Callable[[], AsyncIterator[bytes]]
    metrics_type: str
    ready: Callable[[], Sequence[Check]]
    reload: Callable[[], Awaitable[dict[str, object]]]
    admin_token: Callable[[], str | None]


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    version: str
    headers: dict[str, str]


class HttpEndpoint:
    """Serves `routes`; `start` raises ListenError when the port cannot be had.

    Time limits are seconds: for the request to arrive, and for its answer to be made and taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Routes,
        *,
        request_timeout: float = REQUEST_TIMEOUT,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._acceptor = Acceptor(host, port, self._accept, section="http", backlog=BACKLOG)
        self._routes = routes
        self._request_timeout = request_timeout
        self._answer_timeout = answer_timeout
        self._sessions: set[asyncio.Task[None]] = set()
        # Those whose request has not arrived, the longest there first.
        self._silent: dict[asyncio.Task[None], None] = {}

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        return self._acceptor.port

    @property
    def sessions(self) -> int:
        """Connections that are being served."""
        return len(self._sessions)

    @property
    def exhausted(self) -> int:
        """How often the system had nothing left to accept one with."""
        return self._acceptor.exhausted

    def start(self) -> None:
        """Begin to listen."""
        self._acceptor.start()

    async def stop(self) -> None:
        """Stop listening; answers under way are cut off."""
        self._acceptor.stop()
        # A task cancelled before its first step never runs, and would not close its socket.
        await asyncio.sleep(0)
        sessions = list(self._sessions)
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)

    def _accept(self, sock: socket.socket, _peer: PeerAddress) -> None:
        if len(self._sessions) >= MAX_CONNECTIONS + MAX_REFUSALS:
            sock.close()
            return
        session = asyncio.get_running_loop().create_task(self._receive_on(sock))
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)

    async def _receive_on(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(MAX_HEAD, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
        except OSError:
            sock.close()
            log.debug("an HTTP client left at once")
            return
        except BaseException:
            sock.close()
            raise
        await self._serve(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = _Answer(writer)
        try:
            try:
                request = await self._receive(reader)
                async with asyncio.timeout(self._answer_timeout):
                    await self._dispatch(request, answer)
            except _Refused as refused:
                await self._say(answer, refused.status, str(refused))
                await _hear_out(reader, writer)
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                log.debug("an HTTP client left or was too slow")
                return
            except Exception:
                log.exception("an HTTP request failed inside the proxy")
                if answer.begun:
                    return
                await self._say(answer, 500, "internal error; the log has the details")
            async with asyncio.timeout(self._answer_timeout):
                await answer.end()
        except (TimeoutError, OSError):
            log.debug("an HTTP client did not take its answer")
        finally:
            writer.transport.abort()

    async def _say(self, answer: _Answer, status: int, text: str) -> None:
        async with asyncio.timeout(self._answer_timeout):
            await answer.json(status, {"error": text})

    async def _receive(self, reader: asyncio.StreamReader) -> _Request:
        if len(self._sessions) > MAX_CONNECTIONS:
            self._make_room()
        task = asyncio.current_task()
        assert task is not None, "each session is a task"
        self._silent[task] = None
        try:
            async with asyncio.timeout(self._request_timeout):
                return await _read_request(reader)
        finally:
            self._silent.pop(task, None)

    def _make_room(self) -> None:
        """End the connection that has waited the longest with its request: else one stranger could end all checks of a
        node's health.  Raises _Refused where all have asked for something.
        """
        longest = next(iter(self._silent), None)
        if longest is None:
            raise _Refused(503, "too many connections")
        del self._silent[longest]
        longest.cancel()

    async def _dispatch(self, request: _Request, answer: _Answer) -> None:
        allowed = ALLOWED.get(request.path)
        if allowed is None:
            raise _Refused(404, f"there is {', '.join(ALLOWED)}")
        if request.method not in allowed.split(", "):
            await answer.json(405, {"error": f"use {allowed}"}, extra=(("Allow", allowed),))
            return
        answer.has_body = request.method != "HEAD"
        if request.path == "/metrics":
            await self._metrics(request, answer)
        elif request.path == "/healthz":
            await answer.json(200, {"status": "ok"})
        elif request.path == "/readyz":
            await self._readiness(answer)
        else:
            await self._reload(request, answer)

    async def _metrics(self, request: _Request, answer: _Answer) -> None:
        chunked = request.version != "HTTP/1.0"
        extra = (("Transfer-Encoding", "chunked"),) if chunked else ()
        if not answer.has_body:
            await answer.head(200, self._routes.metrics_type, extra)
            return
        # Chunks let the client see an answer that was cut off; the head waits for the first piece, which may fail.
        async for piece in self._routes.metrics():
            if not answer.begun:
                await answer.head(200, self._routes.metrics_type, extra)
            await answer.piece(piece, chunked=chunked)
        await answer.piece(b"", chunked=chunked)

    async def _readiness(self, answer: _Answer) -> None:
        checks = self._routes.ready()
        ok = all(check.ok for check in checks)
        content = {
            "status": "ready" if ok else "not ready",
            "checks": {check.name: {"ok": check.ok, "detail": check.detail} for check in checks},
        }
        await answer.json(200 if ok else 503, content)

    async def _reload(self, request: _Request, answer: _Answer) -> None:
        token = self._routes.admin_token()
        if token is None:
            raise _Refused(403, "reloading over HTTP is off: set http.admin_token_file")
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {token}".encode()):
            await answer.json(401, {"error": "wrong or no bearer token"}, extra=(("WWW-Authenticate", "Bearer"),))
            return
        try:
            await answer.json(200, await self._routes.reload())
        except ReloadFailed as failed:
            status = 422 if failed.is_mistake else 503
            await answer.json(status, {"error": str(failed), "hint": failed.hint})


class _Answer:
    """The answer to one request; the connection ends with it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.has_body = True
        self.begun = False

    async def json(self, status: int, content: Mapping[str, object], extra: Sequence[tuple[str, str]] = ()) -> None:
        """Send a whole answer."""
        data = json.dumps(content).encode() + b"\n"
        await self.head(status, JSON, (("Content-Length", str(len(data))), *extra))
        if self.has_body:
            await self._write(data)

    async def head(self, status: int, content_type: str, extra: Sequence[tuple[str, str]]) -> None:
        """Begin the answer."""
        self.begun = True
        headers = (("Content-Type", content_type), ("Connection", "close"), *extra)
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in headers)]
        await self._write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def piece(self, data: bytes, *, chunked: bool) -> None:
        """Send a piece of the body; an empty one ends it."""
        await self._write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    async def end(self) -> None:
        """Close the connection when all has been sent."""
        self._writer.close()
        await self._writer.wait_closed()

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


async def _hear_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let a refused client finish: bytes unread when the socket closes make the system throw the answer away."""
    writer.write_eof()
    try:
        async with asyncio.timeout(LINGER):
            while await reader.read(MAX_HEAD):
                pass
    except TimeoutError:
        log.debug("an HTTP client went on sending after its request was refused")


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _Refused(431, "the request's headers are too large") from None
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise _Refused(400, "this is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, divider, value = line.partition(":")
        if divider:
            headers[name.strip().lower()] = value.strip()
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise _Refused(413, "no request here has a body")
    return _Request(parts[0], parts[1].partition("?")[0], parts[2], headers)
