"""Looking up the host names of servers in threads of their own, each name once at a time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

LOOK_UPS: Final = 16
"""Host names that are looked up at once."""

Found: TypeAlias = Sequence[tuple[Any, ...]]


class HostNames:
    """The look-ups of one node.

    A look-up cannot be cut short, and a name server that is away makes it long: whoever gives up leaves it running.
    All who ask for a name meanwhile share it, and nothing but look-ups waits for these threads, so that one server's
    broken name delays neither other servers nor the hashing of passwords.  `look_up` is `socket.getaddrinfo`.
    """

    def __init__(self, look_up: Callable[..., Found] = socket.getaddrinfo) -> None:
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="pgtenant-names")
        self._under_way: dict[tuple[str, int], asyncio.Future[Found]] = {}

    async def find(self, host: str, port: int) -> Found:
        """What `socket.getaddrinfo` says of a host for TCP; raises OSError, and UnicodeError for what is no name."""
        key = host, port
        answer = self._under_way.get(key)
        if answer is None:
            loop = asyncio.get_running_loop()
            answer = loop.run_in_executor(self._threads, self._ask, host, port)
            self._under_way[key] = answer
            answer.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(answer)

    def close(self) -> None:
        """Begin no more look-ups; those under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, host: str, port: int) -> Found:
        return self._look_up(host, port, type=socket.SOCK_STREAM)

    def _ended(self, key: tuple[str, int], answer: asyncio.Future[Found]) -> None:
        del self._under_way[key]
        if not answer.cancelled():
            # Nobody may be left who hears of it.
            answer.exception()
