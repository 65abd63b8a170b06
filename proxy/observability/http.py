"""The HTTP endpoint of a node: /metrics, /healthz, /readyz, and POST /reload.

A web framework would bring a second event-loop style, threads and a parser for all of HTTP into the process that
relays; four fixed answers need none of that.  Requests are bounded in size and time, and connections in number.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger(__name__)

MAX_HEAD: Final = 8192
REQUEST_TIMEOUT: Final = 5.0
TURN_AWAY_TIMEOUT: Final = 0.5
MAX_CONNECTIONS: Final = 64
REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
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
    and raises ReloadFailed.  `admin_token` None forbids reloading.
    """

    metrics: Callable[[], AsyncIterator[bytes]]
    metrics_type: str
    ready: Callable[[], Sequence[Check]]
    reload: Callable[[], Awaitable[dict[str, object]]]
    admin_token: str | None


class ReloadFailed(Exception):
    """A reload changed nothing; the text says why."""


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]


class HttpEndpoint:
    """Serves `routes`; `start` raises OSError when the port cannot be had."""

    def __init__(self, host: str, port: int, routes: Routes) -> None:
        self._host = host
        self._port = port
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._connections = 0

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Begin to listen."""
        host = None if self._host in {"", "*"} else self._host
        self._server = await asyncio.start_server(self._serve, host, self._port, limit=MAX_HEAD)

    async def stop(self) -> None:
        """Stop listening; answers under way are cut off."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                # What is left unread when the socket closes would make the system throw the answer away.
                async with asyncio.timeout(TURN_AWAY_TIMEOUT):
                    await reader.read(MAX_HEAD)
                raise _Refused(503, "too many connections")
            async with asyncio.timeout(REQUEST_TIMEOUT):
                request = await _read_request(reader)
            await self._dispatch(request, writer)
        except _Refused as refused:
            await _answer(writer, refused.status, {"error": str(refused)})
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            log.debug("an HTTP client left or was too slow")
        finally:
            self._connections -= 1
            writer.close()

    async def _dispatch(self, request: _Request, writer: asyncio.StreamWriter) -> None:
        allowed = ALLOWED.get(request.path)
        if allowed is None:
            raise _Refused(404, f"there is {', '.join(ALLOWED)}")
        if request.method not in allowed.split(", "):
            await _answer(writer, 405, {"error": f"use {allowed}"}, extra=(("Allow", allowed),))
            return
        body = request.method != "HEAD"
        if request.path == "/metrics":
            await self._metrics(writer, body=body)
        elif request.path == "/healthz":
            await _answer(writer, 200, {"status": "ok"}, body=body)
        elif request.path == "/readyz":
            await self._readiness(writer, body=body)
        else:
            await self._reload(request, writer)

    async def _metrics(self, writer: asyncio.StreamWriter, *, body: bool) -> None:
        await _head(writer, 200, self._routes.metrics_type, None)
        if body:
            async for piece in self._routes.metrics():
                writer.write(piece)
                await writer.drain()

    async def _readiness(self, writer: asyncio.StreamWriter, *, body: bool) -> None:
        checks = self._routes.ready()
        ok = all(check.ok for check in checks)
        content = {
            "status": "ready" if ok else "not ready",
            "checks": {check.name: {"ok": check.ok, "detail": check.detail} for check in checks},
        }
        await _answer(writer, 200 if ok else 503, content, body=body)

    async def _reload(self, request: _Request, writer: asyncio.StreamWriter) -> None:
        token = self._routes.admin_token
        if token is None:
            raise _Refused(403, "reloading over HTTP is off: set http.admin_token_file")
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            await _answer(writer, 401, {"error": "wrong or no bearer token"}, extra=(("WWW-Authenticate", "Bearer"),))
            return
        try:
            await _answer(writer, 200, await self._routes.reload())
        except ReloadFailed as failed:
            await _answer(writer, 503, {"error": str(failed)})


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
    return _Request(parts[0], parts[1].partition("?")[0], headers)


async def _answer(
    writer: asyncio.StreamWriter,
    status: int,
    content: Mapping[str, object],
    *,
    body: bool = True,
    extra: tuple[tuple[str, str], ...] = (),
) -> None:
    data = json.dumps(content).encode() + b"\n"
    await _head(writer, status, JSON, len(data), extra)
    if body:
        writer.write(data)
        await writer.drain()


async def _head(
    writer: asyncio.StreamWriter,
    status: int,
    content_type: str,
    length: int | None,
    extra: tuple[tuple[str, str], ...] = (),
) -> None:
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"Content-Type: {content_type}", "Connection: close"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines += [f"{name}: {value}" for name, value in extra]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    await writer.drain()
