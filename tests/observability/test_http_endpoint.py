"""The HTTP endpoint, spoken to by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from proxy.observability.http import MAX_CONNECTIONS, Check, HttpEndpoint, ReloadFailed, Routes

Ask = Callable[..., Awaitable[tuple[int, dict[str, str], bytes]]]


class Site:
    """An endpoint over canned answers."""

    def __init__(self) -> None:
        self.checks: Sequence[Check] = (Check("registry", ok=True),)
        self.broken = False
        self.reloads = 0
        routes = Routes(
            metrics=self.metrics,
            metrics_type="text/plain",
            ready=lambda: self.checks,
            reload=self.reload,
            admin_token="right",
        )
        self.endpoint = HttpEndpoint("127.0.0.1", 0, routes)

    async def metrics(self) -> AsyncIterator[bytes]:
        yield b"one 1\n"
        yield b"two 2\n"

    async def reload(self) -> dict[str, object]:
        if self.broken:
            raise ReloadFailed("the registry is away")
        self.reloads += 1
        return {"registry_version": 4}

    async def ask(self, head: str) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.endpoint.port)
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        top, _, body = answer.partition(b"\r\n\r\n")
        lines = top.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), headers, body


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.endpoint.start()
    yield site
    await site.endpoint.stop()


async def test_metrics_come_in_pieces_that_make_one_text(site: Site) -> None:
    status, headers, body = await site.ask("GET /metrics HTTP/1.1\nHost: x")
    assert (status, headers["content-type"], body) == (200, "text/plain", b"one 1\ntwo 2\n")


async def test_head_has_no_body(site: Site) -> None:
    for path in ("/metrics", "/healthz", "/readyz"):
        status, _, body = await site.ask(f"HEAD {path} HTTP/1.1")
        assert (status, body) == (200, b"")


async def test_readiness_is_503_with_the_reason_when_a_check_fails(site: Site) -> None:
    site.checks = (Check("accepting", ok=True), Check("registry", ok=False, detail="no route to host"))
    status, _, body = await site.ask("GET /readyz HTTP/1.1")
    assert status == 503
    assert json.loads(body)["checks"]["registry"] == {"ok": False, "detail": "no route to host"}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /nothing HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("GET /reload HTTP/1.1", 405),
        ("POST /reload HTTP/1.1\nContent-Length: 5", 413),
        ("POST /reload HTTP/1.1", 401),
        ("POST /reload HTTP/1.1\nAuthorization: Bearer wrong", 401),
        ("nonsense", 400),
        ("GET /metrics HTTP/1.1\nX: " + "y" * 10_000, 431),
    ],
)
async def test_what_is_not_served_is_refused(site: Site, head: str, status: int) -> None:
    assert (await site.ask(head))[0] == status
    assert site.reloads == 0


async def test_the_right_token_reloads_and_a_failure_says_why(site: Site) -> None:
    head = "POST /reload HTTP/1.1\nAuthorization: Bearer right"
    status, _, body = await site.ask(head)
    assert (status, json.loads(body)) == (200, {"registry_version": 4})
    site.broken = True
    status, _, body = await site.ask(head)
    assert status == 503
    assert "away" in json.loads(body)["error"]


async def test_more_connections_than_the_limit_are_turned_away(site: Site) -> None:
    held = [await asyncio.open_connection("127.0.0.1", site.endpoint.port) for _ in range(MAX_CONNECTIONS)]
    status, _, _ = await site.ask("GET /healthz HTTP/1.1")
    assert status == 503
    for _, writer in held:
        writer.close()
