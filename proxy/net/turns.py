"""Who has failed to log in waits for his turn: one attempt after the other, each for as long as the failures say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from proxy.auth import Attempt, Slowdown, WrongPassword
from proxy.auth.slowdown import Stem
from proxy.net.handshake_io import PeerGone

log = structlog.get_logger(__name__)

MAX_QUEUED: Final = 100
"""Attempts that may wait on one login from one address, as those of an application's pool do when it begins, and on
one user name."""

K = TypeVar("K", bound=Hashable)


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
        self._logins: dict[Attempt, _Lane] = {}
        self._names: dict[Stem, _Lane] = {}
        self.slowed = 0

    def follow(self, slowdown: Slowdown) -> None:
        """Let attempts wait for other seconds from now on."""
        self._slowdown.follow(slowdown)

    @asynccontextmanager
    async def turn(self, attempt: Attempt, has_left: Callable[[], bool] = lambda: False) -> AsyncIterator[None]:
        """Wait for an attempt's turn to have its answer looked at, which is over with the block.

        A block that raises WrongPassword is a failure, one that ends is a success: it forgives, so that whoever waits
        behind it need not.  Nothing may be read within it, else a client could hold up the others.  `has_left` is asked
        when the turn has come: who has given up, as programs do that try again every few seconds, holds up nobody.

        The wait for the login comes before the one for the user name, which thus nobody holds up who waits for less.

        Raises WrongPassword where too many wait already: an answer that nobody looks at is worth nothing.  PeerGone
        for who has left.
        """
        slowdown, clock = self._slowdown, self._clock

        def own() -> float:
            return slowdown.delay(attempt, clock())

        def named() -> float:
            return slowdown.delay_of_name(attempt, clock())

        async with self._queued(self._logins, attempt, attempt, own):
            _leave_if(own() > 0 and has_left())
            await self._wait(attempt, max(own(), slowdown.reserve(attempt, clock())))
            async with self._queued(self._names, slowdown.lane(attempt, clock()), attempt, named):
                delay = named()
                _leave_if(delay > 0 and has_left())
                await self._wait(attempt, delay)
                try:
                    yield
                except WrongPassword:
                    slowdown.failed(attempt, clock())
                    raise
                slowdown.succeeded(attempt)

    def is_familiar(self, attempt: Attempt) -> bool:
        """Whether this login has succeeded from there lately."""
        return self._slowdown.is_familiar(attempt, self._clock())

    def admitted(self, attempt: Attempt) -> None:
        """Make a login familiar there: it has proved itself, by whatever method."""
        self._slowdown.admitted(attempt, self._clock())

    @asynccontextmanager
    async def _queued(
        self, lanes: dict[K, _Lane], key: K, attempt: Attempt, delay: Callable[[], float]
    ) -> AsyncIterator[None]:
        """Let one after the other in; refuse who would be too many behind somebody that waits."""
        lane = lanes.setdefault(key, _Lane())
        if lane.queued >= MAX_QUEUED and delay():
            log.info("login refused unseen, too many wait", user=attempt.user, address=attempt.address)
            raise WrongPassword("too many attempts wait")
        lane.queued += 1
        try:
            async with lane.lock:
                yield
        finally:
            lane.queued -= 1
            if not lane.queued:
                del lanes[key]

    async def _wait(self, attempt: Attempt, delay: float) -> None:
        if delay:
            self.slowed += 1
            log.info("login slowed", user=attempt.user, address=attempt.address, seconds=round(delay, 3))
            await asyncio.sleep(delay)

    def __len__(self) -> int:
        return len(self._logins) + len(self._names)


def _leave_if(gone: bool) -> None:
    if gone:
        raise PeerGone("the client left before its turn")
