from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
from harness.waiting import eventually

from proxy.net.host_names import LOOK_UPS, Found, HostNames


class NameServer:
    """Answers at once, except for hosts that begin with `slow`, which wait for `let_go`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.let_go = threading.Event()

    def look_up(self, host: str, port: int, **_: Any) -> Found:
        self.asked.append(host)
        if host.startswith("slow"):
            self.let_go.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


async def test_broken_name_is_asked_for_once_and_delays_neither_other_names_nor_other_work() -> None:
    server = NameServer()
    names = HostNames(server.look_up)
    asking = [asyncio.create_task(names.find("slow", 5432)) for _ in range(LOOK_UPS * 2)]
    try:
        assert (await names.find("quick", 5432))[0][4] == ("127.0.0.1", 5432)
        assert await asyncio.to_thread(lambda: "done") == "done"
        asking[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
    finally:
        server.let_go.set()
    answers = await asyncio.gather(*asking[1:], return_exceptions=True)
    assert {type(answer) for answer in answers} == {socket.gaierror}
    assert server.asked.count("slow") == 1
    names.close()


async def test_name_is_looked_up_again_after_everybody_gave_up(caplog: pytest.LogCaptureFixture) -> None:
    server = NameServer()
    names = HostNames(server.look_up)
    asking = asyncio.create_task(names.find("slow", 5432))
    await eventually(lambda: server.asked == ["slow"])
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.let_go.set()
    # The answer that nobody waits for may still be on its way, and is then shared.
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await names.find("slow", 5432)
    assert server.asked in (["slow"] * 2, ["slow"] * 3)
    names.close()
    assert not caplog.records
