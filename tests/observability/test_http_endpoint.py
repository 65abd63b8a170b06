"""The HTTP endpoint, spoken to by hand."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import cast

import pytest
from harness.shortage import no_descriptors_left
from harness.waiting import eventually
from structlog.testing import capture_logs

from proxy.net.acceptor import PAUSE_WHEN_EXHAUSTED
from proxy.observability.http import MAX_CONNECTIONS, MAX_REFUSALS, Check, HttpEndpoint, Routes
from proxy.settings import ReloadFailed


class Site:
    """An endpoint over canned answers."""

    def __init__(self) -> None:
        self.checks: Sequence[Check] = (Check("registry", ok=True),)
        self.broken = False
        self.mistaken = False
        self.reloads = 0
        self.fails_at: int | None = None
        self.endless = False
        self.paused: asyncio.Event | None = None
        routes = Routes(
            metrics=self.metrics,
            metrics_type="text/plain",
            ready=lambda: self.checks,
            reload=self.reload,
            admin_token=lambda: "right",
        )
        self.endpoint = HttpEndpoint("127.0.0.1", 0, routes, request_timeout=1.0, answer_timeout=1.0)

    async def metrics(self) -> AsyncIterator[bytes]:
        if self.fails_at == 0:
            raise ArithmeticError
        yield b"one 1\n"
        if self.paused is not None:
            await self.paused.wait()
        if self.fails_at == 1:
            raise ArithmeticError
        while self.endless:
            yield b"x" * 10_000
        yield b"two 2\n"

    async def reload(self) -> dict[str, object]:
        if self.broken:
            raise ReloadFailed("the registry is away", "wait for it", is_mistake=self.mistaken)
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
    site.endpoint.start()
    yield site
    await site.endpoint.stop()


async def test_metrics_come_in_pieces_that_make_one_text(site: Site) -> None:
    url = f"http://127.0.0.1:{site.endpoint.port}/metrics"
    with await asyncio.to_thread(urllib.request.urlopen, url) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain")
        assert await asyncio.to_thread(answer.read) == b"one 1\ntwo 2\n"


async def test_metrics_are_not_chunked_for_http_1_0(site: Site) -> None:
    _, headers, body = await site.ask("GET /metrics HTTP/1.0")
    assert body == b"one 1\ntwo 2\n"
    assert "transfer-encoding" not in headers


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
        ("POST /reload HTTP/1.1\nAuthorization: Bearer righ", 401),
        ("POST /reload HTTP/1.1\nAuthorization: Bearer right\u00e9", 401),
        ("POST /reload HTTP/1.1\nAuthorization: right", 401),
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
    assert json.loads(body) == {"error": "the registry is away", "hint": "wait for it"}
    site.mistaken = True
    assert (await site.ask(head))[0] == 422, "trying again will not do"


async def test_a_failure_before_the_answer_is_500(site: Site) -> None:
    site.fails_at = 0
    assert (await site.ask("GET /metrics HTTP/1.1"))[0] == 500
    site.checks = cast("Sequence[Check]", None)
    assert (await site.ask("GET /readyz HTTP/1.1"))[0] == 500
    assert (await site.ask("GET /healthz HTTP/1.1"))[0] == 200


async def test_a_failure_within_the_answer_does_not_pass_for_a_whole_one(site: Site) -> None:
    site.fails_at = 1
    _, _, body = await site.ask("GET /metrics HTTP/1.1")
    assert not body.endswith(b"0\r\n\r\n")


async def test_a_client_that_does_not_read_its_answer_is_cut_off(site: Site) -> None:
    site.endless = True
    reader, writer = await asyncio.open_connection("127.0.0.1", site.endpoint.port, limit=1000)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    await eventually(lambda: site.endpoint.sessions == 1)
    await eventually(lambda: site.endpoint.sessions == 0)
    writer.close()
    del reader


async def test_a_request_that_never_ends_is_cut_off(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.endpoint.port)
    writer.write(b"GET /metrics HT")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_stopping_ends_answers_under_way(site: Site) -> None:
    site.endless = True
    reader, writer = await asyncio.open_connection("127.0.0.1", site.endpoint.port)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    await reader.readline()
    await site.endpoint.stop()
    assert site.endpoint.sessions == 0
    writer.close()


async def test_more_connections_than_the_limit_are_turned_away(site: Site) -> None:
    site.paused = asyncio.Event()
    held = [await asyncio.open_connection("127.0.0.1", site.endpoint.port) for _ in range(MAX_CONNECTIONS)]
    for reader, writer in held:
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        await reader.readexactly(1)
    status, _, _ = await site.ask("GET /healthz HTTP/1.1")
    assert status == 503
    for _, writer in held:
        writer.close()


async def test_who_waits_with_his_request_gives_way_to_who_comes(site: Site) -> None:
    held = [await asyncio.open_connection("127.0.0.1", site.endpoint.port) for _ in range(MAX_CONNECTIONS)]
    for _, writer in held:
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
    for _ in range(3):
        assert (await site.ask("GET /healthz HTTP/1.1"))[0] == 200
    with suppress(ConnectionError):
        assert await asyncio.wait_for(held[0][0].read(), 10) == b"", "the one that was there the longest"
    _, last = held[-1]
    last.write(b"y\r\n\r\n")
    assert (await held[-1][0].read()).startswith(b"HTTP/1.1 200 ")
    for _, writer in held:
        writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 431),
        (b"POST /reload HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"z" * 1_000_000, 413),
    ],
)
async def test_a_refusal_reaches_a_client_that_is_still_sending(site: Site, request_bytes: bytes, status: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.endpoint.port)
    writer.write(request_bytes)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    writer.close()


async def test_a_refused_client_that_never_stops_sending_is_cut_off(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.endpoint.port)
    writer.write(b"nonsense\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400 ")
    await eventually(lambda: site.endpoint.sessions == 0)
    writer.close()


async def test_a_flood_of_connections_holds_a_bounded_number(site: Site) -> None:
    most = MAX_CONNECTIONS + MAX_REFUSALS
    held = [await asyncio.open_connection("127.0.0.1", site.endpoint.port) for _ in range(2 * most)]
    served = site.endpoint.sessions
    for _, writer in held:
        writer.close()
    assert served <= most
    await eventually(lambda: site.endpoint.sessions == 0)
    assert (await site.ask("GET /healthz HTTP/1.1"))[0] == 200


async def test_without_descriptors_it_waits_and_says_so_in_one_line(site: Site) -> None:
    with capture_logs() as lines, socket.socket() as client:
        client.settimeout(0.0)
        client.connect_ex(("127.0.0.1", site.endpoint.port))
        with no_descriptors_left():
            turns = 0
            while site.endpoint.exhausted < 3:
                await asyncio.sleep(PAUSE_WHEN_EXHAUSTED / 10)
                turns += 1
            assert turns > 10, "it pauses between the attempts"
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await loop.sock_recv(client, 100)).startswith(b"HTTP/1.1 200")
    assert [(line["event"], line["to"]) for line in lines] == [("connections cannot be accepted", "http.port")]
