"""Admission control: `proxy.net.places` says who has a place, here coroutines wait for theirs and are told."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.auth.addresses import Network, is_within, neighbourhood
from proxy.net.places import Place, PlaceLimits, Places, Standing

log = structlog.get_logger(__name__)

REPORT_AFTER: Final = 1.0
"""Seconds from the first who has to wait to the line in the log that tells how many do."""
REPORT_EVERY: Final = 10.0
"""Seconds between two such lines at least."""

TRUSTED: Final = "trusted networks"


class NoPlace(Exception):
    """There is no place, and too many wait for one."""


class Admission:
    """The places for what clients have under way, as `kind` says ("logins"): where they ask, wait, and are told.

    Clients from `trusted` networks may have any number of places.
    """

    def __init__(self, kind: str, limits: PlaceLimits, *, trusted: Sequence[Network] = ()) -> None:
        self.kind = kind
        self.waited = 0
        self.trusted = trusted
        self.places = Places(limits, self._has_spoken)
        self._requests: dict[Place, PlaceRequest] = {}
        self._report: asyncio.TimerHandle | None = None
        self._noticed = self._reported = (0, 0, 0)
        self._last_from: str | None = None
        self._last_report = -REPORT_EVERY

    def arrive(
        self, host: str | None, *, silent_on: int | None = None, evict: Callable[[], None] = lambda: None
    ) -> PlaceRequest:
        """Ask for a place for a client at this address; then await `PlaceRequest.admitted`, and in the end `leave`.

        `host` None stands for a load balancer, which is going to say for whom.  `silent_on` is the socket of somebody
        from whom nothing has been read yet.  Until `heard` he may lose his place: `evict` is called then, which has to
        end him.
        """
        place = self.places.arrive(self.address_of(host), silent=silent_on is not None)
        request = PlaceRequest(self, place, silent_on, evict)
        self._requests[place] = request
        self.tell(place)
        return request

    @asynccontextmanager
    async def place(self, host: str) -> AsyncIterator[bool]:
        """Wait for a place, and have it until the block ends; says whether others still wait."""
        request = self.arrive(host)
        try:
            await request.admitted()
            yield self.places.queued > 0
        finally:
            request.leave()

    def set_limits(self, limits: PlaceLimits, trusted: Sequence[Network]) -> None:
        """Put other limits in force for those who ask from now on; nobody loses what he has."""
        self.trusted = trusted
        self.places.set_limits(limits)
        self._hand_out()

    def address_of(self, host: str | None) -> str | None:
        """What clients at this address are counted by, None for trusted ones."""
        return None if host is None or is_within(host, self.trusted) else neighbourhood(host)

    def tell(self, about: Place) -> None:
        """Tell those whose standing has changed since `about` asked, moved or left."""
        if about.standing is Standing.GONE:
            self._requests.pop(about, None)
        self._hand_out()
        if about.standing is Standing.QUEUED:
            self.waited += 1
        if self._counts() != self._noticed:
            self._noticed = self._counts()
            self._last_from = about.address
            self._plan_report()

    def close(self) -> None:
        """Write no line about the places any more."""
        if self._report is not None:
            self._report.cancel()
            self._report = None

    def describe_queue(self) -> str:
        """Say who waits, in words; empty where nobody does."""
        places = self.places
        if not places.queued:
            return ""
        return f"{self.kind}: {places.used} of {places.limits.places} under way, {places.queued} queued"

    def _hand_out(self) -> None:
        for place in self.places.take_changed():
            request = self._requests.get(place)
            if request is not None:
                request.tell()

    def _counts(self) -> tuple[int, int, int]:
        return self.waited, self.places.evicted, self.places.refused

    def _plan_report(self) -> None:
        if self._report is not None:
            return
        loop = asyncio.get_running_loop()
        when = max(loop.time() + REPORT_AFTER, self._last_report + REPORT_EVERY)
        self._report = loop.call_at(when, self._say, loop)

    def _say(self, loop: asyncio.AbstractEventLoop) -> None:
        self._report = None
        self._last_report = loop.time()
        waited, evicted, refused = (now - then for now, then in zip(self._counts(), self._reported, strict=True))
        self._reported = self._counts()
        address, count = self.places.busiest()
        # That a few wait their turn is no cause for alarm.
        say = log.warning if evicted or refused else log.info
        say(
            f"{self.kind} held back",
            under_way=self.places.used,
            silent=self.places.silent,
            queued=self.places.queued,
            had_to_wait=waited,
            evicted=evicted,
            refused=refused,
            last_from=self._last_from or TRUSTED,
            most_from=address or TRUSTED,
            most=count,
        )

    def _has_spoken(self, place: Place) -> bool:
        request = self._requests.get(place)
        return request is None or request.has_spoken()


@dataclass(frozen=True, slots=True)
class Admissions:
    """What clients of a node have to wait for: a place for their login, and within it one for their TLS handshake."""

    logins: Admission
    handshakes: Admission

    def describe_queue(self) -> str:
        """Say who waits, in words; empty where nobody does."""
        return "; ".join(text for admission in (self.logins, self.handshakes) if (text := admission.describe_queue()))

    def close(self) -> None:
        """Write no line about the places any more."""
        self.logins.close()
        self.handshakes.close()


class PlaceRequest:
    """A client's place, or its wait for one."""

    def __init__(self, admission: Admission, place: Place, descriptor: int | None, evict: Callable[[], None]) -> None:
        self._admission = admission
        self._place = place
        self._descriptor = descriptor
        self._evict = evict
        self._turn: asyncio.Future[None] | None = None

    async def admitted(self) -> None:
        """Wait for the place; raises NoPlace where too many wait already."""
        if self._place.standing is Standing.QUEUED:
            self._turn = asyncio.get_running_loop().create_future()
            try:
                await self._turn
            finally:
                self._turn = None
        if self._place.standing is Standing.REFUSED:
            raise NoPlace

    async def move(self, host: str) -> None:
        """Be counted by another address, that of the client itself; may wait, and raises what `admitted` raises."""
        self._admission.places.move(self._place, self._admission.address_of(host))
        self._admission.tell(self._place)
        await self.admitted()

    def heard(self) -> None:
        """Note that the client has said something: it is not evicted any more."""
        self._descriptor = None
        self._admission.places.heard(self._place)

    def leave(self) -> None:
        """Give the place up, or the wait for it."""
        self._admission.places.leave(self._place)
        self._admission.tell(self._place)

    def tell(self) -> None:
        """Say that the standing has changed."""
        if self._place.standing is Standing.EVICTED:
            self._evict()
        elif self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def has_spoken(self) -> bool:
        """Whether the client has said something, or has left, though nobody has read that yet."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))
