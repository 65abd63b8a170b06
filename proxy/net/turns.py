"""Who has failed to log in waits for his turn: one attempt after the other, each for as long as the failures say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from proxy.auth import Attempt, Slowdown, WrongPassword
from proxy.net.handshake_io import PeerGone

log = structlog.get_logger(__name__)

MAX_QUEUED: Final = 100
"""Attempts on one login from one address that may wait; those of an application's pool, when it begins, do."""


@dataclass(slots=True)
class _Lane:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    queued: int = 0


class Turns:
    """The attempts of one node that wait because there were failures before.

    `slowed` counts them.
    """

    def __init__(self, slowdown: Slowdown, *, clock: Callable[[], float]) -> None:
        self._slowdown = slowdown
        self._clock = clock
        self._lanes: dict[Attempt, _Lane] = {}
        self.slowed = 0

    @asynccontextmanager
    async def turn(self, attempt: Attempt, has_left: Callable[[], bool] = lambda: False) -> AsyncIterator[None]:
        """Wait for an attempt's turn to have its answer looked at, which is over with the block.

        A block that raises WrongPassword is a failure, one that ends is a success: it forgives, so that whoever waits
        behind it need not.  Nothing may be read within it, else a client could hold up the others.  `has_left` is asked
        when the turn has come: who has given up, as programs do that try again every few seconds, holds up nobody.

        Raises WrongPassword where too many wait already: an answer that nobody looks at is worth nothing.  PeerGone
        for who has left.
        """
        lane = self._lanes.setdefault(attempt, _Lane())
        if lane.queued >= MAX_QUEUED and self._slowdown.delay(attempt, self._clock()):
            log.info("login refused unseen, too many wait", user=attempt.user, address=attempt.address)
            raise WrongPassword("too many attempts wait")
        lane.queued += 1
        try:
            async with lane.lock:
                if self._slowdown.delay(attempt, self._clock()) and has_left():
                    raise PeerGone("the client left before its turn")
                await self._wait(attempt)
                try:
                    yield
                except WrongPassword:
                    self._slowdown.failed(attempt, self._clock())
                    raise
                self._slowdown.succeeded(attempt, self._clock())
        finally:
            lane.queued -= 1
            if not lane.queued:
                del self._lanes[attempt]

    async def _wait(self, attempt: Attempt) -> None:
        now = self._clock()
        delay = max(self._slowdown.delay(attempt, now), self._slowdown.reserve(attempt, now))
        if delay:
            self.slowed += 1
            log.info("login slowed", user=attempt.user, address=attempt.address, seconds=round(delay, 3))
            await asyncio.sleep(delay)

    def __len__(self) -> int:
        return len(self._lanes)
