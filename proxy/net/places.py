"""Who may log in now, who waits for it, and who has to go: no I/O, no clock.

One stranger must not lock everybody out, so places are counted by address, addresses that wait take turns, and who has
not said a word gives his place up to anybody who comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

PLACES_PART: Final = 4
"""One address has a quarter of the places at most, so that it takes several strangers to have all of them."""
QUEUE_PART: Final = 2
"""One address has half of the queue at most."""

UNBOUNDED: Final = 1 << 30
"""A queue that something else bounds."""


class Standing(Enum):
    """What has become of somebody who asked for a place."""

    QUEUED = "queued"
    ADMITTED = "admitted"
    EVICTED = "evicted"
    REFUSED = "refused"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class PlaceLimits:
    """How many places there are, how many of them one address may have, and how many may wait for one."""

    places: int
    per_address: int
    queue: int

    @property
    def share(self) -> int:
        """Places of one address."""
        return max(min(self.per_address, self.places // PLACES_PART), 1)

    @property
    def queue_share(self) -> int:
        """How many may wait of one address."""
        return self.queue if self.queue < QUEUE_PART else self.queue // QUEUE_PART


@dataclass(slots=True, eq=False)
class Place:
    """One who asked.  `address` None stands for all whom the operator trusts, who have no limit of their own."""

    address: str | None
    silent: bool
    standing: Standing = Standing.QUEUED


@dataclass(slots=True)
class _Line:
    """Those of one address.  The first in `silent` and in `queue` have been there the longest."""

    admitted: int = 0
    silent: dict[Place, None] = field(default_factory=dict)
    queue: dict[Place, None] = field(default_factory=dict)


class Places:
    """The places of one node.

    `has_spoken` is asked before somebody is evicted for his silence: what he has said may not have been read yet.
    `used` places are taken, `queued` wait; `evicted` and `refused` count those who had to go.

    After each call hand `take_changed` out: to those who got their place, and to those who have lost it.
    """

    def __init__(self, limits: PlaceLimits, has_spoken: Callable[[Place], bool]) -> None:
        self.used = 0
        self.queued = 0
        self.evicted = 0
        self.refused = 0
        self._limits = limits
        self._has_spoken = has_spoken
        self._lines: dict[str | None, _Line] = {}
        # Addresses that wait and may have another place, in the order of their turns.
        self._ready: dict[str | None, None] = {}
        self._silent: dict[Place, None] = {}
        self._changed: list[Place] = []

    @property
    def limits(self) -> PlaceLimits:
        """What is in force."""
        return self._limits

    @property
    def silent(self) -> int:
        """How many have a place and have not said a word."""
        return len(self._silent)

    def set_limits(self, limits: PlaceLimits) -> None:
        """Put other limits in force; who has a place or waits already keeps it."""
        self._limits = limits
        for address, line in self._lines.items():
            self._stand_ready(address, line)
        self._serve()

    def arrive(self, address: str | None, *, silent: bool = True) -> Place:
        """Ask for a place; the answer is its standing: admitted, queued or refused."""
        place = Place(address, silent)
        self._enter(place)
        return place

    def heard(self, place: Place) -> None:
        """Note that somebody has spoken: his place is his own from now on."""
        place.silent = False
        self._silent.pop(place, None)
        line = self._lines.get(place.address)
        if line is not None:
            line.silent.pop(place, None)

    def move(self, place: Place, address: str | None) -> None:
        """Count somebody who was admitted under another address; where that has all it may have, he queues there."""
        if place.standing is not Standing.ADMITTED or place.address == address:
            return
        there = self._lines.get(address)
        is_free = there is None or (not there.queue and there.admitted < self._share_of(address))
        self._release(place)
        place.address = address
        if is_free:
            self._admit(place, self._lines.setdefault(address, _Line()))
            self._serve()
        else:
            self._enter(place)

    def leave(self, place: Place) -> None:
        """Give a place up, or the wait for it."""
        if place.standing is Standing.ADMITTED:
            self._release(place)
        elif place.standing is Standing.QUEUED:
            self._dequeue(place)
        place.standing = Standing.GONE
        self._serve()

    def take_changed(self) -> list[Place]:
        """Whose standing has changed since the last call."""
        changed, self._changed = self._changed, []
        return changed

    def busiest(self) -> tuple[str | None, int]:
        """The address with the most places and waiting, and how many those are."""
        counts = ((line.admitted + len(line.queue), address) for address, line in self._lines.items())
        count, address = max(counts, key=lambda one: one[0], default=(0, None))
        return address, count

    def _share_of(self, address: str | None) -> int:
        return self._limits.places if address is None else self._limits.share

    def _enter(self, place: Place) -> None:
        line = self._lines.setdefault(place.address, _Line())
        place.standing = Standing.QUEUED
        line.queue[place] = None
        self.queued += 1
        self._stand_ready(place.address, line)
        self._serve()
        if place.standing is Standing.QUEUED:
            self._make_room(place.address, line)
        if place.standing is Standing.QUEUED and self._is_too_long(place.address, line):
            self._dequeue(place)
            place.standing = Standing.REFUSED
            self.refused += 1

    def _is_too_long(self, address: str | None, line: _Line) -> bool:
        limits = self._limits
        return self.queued > limits.queue or (address is not None and len(line.queue) > limits.queue_share)

    def _make_room(self, address: str | None, line: _Line) -> None:
        """Evict the silent one who has been there the longest: of the address, where that has its full share."""
        has_its_share = line.admitted >= self._share_of(address)
        silent = line.silent if has_its_share else self._silent
        while silent:
            oldest = next(iter(silent))
            if self._has_spoken(oldest):
                self.heard(oldest)
                continue
            self._release(oldest)
            oldest.standing = Standing.EVICTED
            self.evicted += 1
            self._changed.append(oldest)
            self._serve()
            return

    def _serve(self) -> None:
        """Give free places to those who wait, one address after the other."""
        while self._ready and self.used < self._limits.places:
            address = next(iter(self._ready))
            del self._ready[address]
            line = self._lines[address]
            if line.admitted >= self._share_of(address):
                # The limits have become narrower.
                continue
            place = next(iter(line.queue))
            self._take_out(place, line)
            self._admit(place, line)
            self._changed.append(place)
            self._stand_ready(address, line)

    def _admit(self, place: Place, line: _Line) -> None:
        place.standing = Standing.ADMITTED
        line.admitted += 1
        self.used += 1
        if place.silent:
            line.silent[place] = None
            self._silent[place] = None

    def _release(self, place: Place) -> None:
        line = self._lines[place.address]
        line.admitted -= 1
        self.used -= 1
        line.silent.pop(place, None)
        self._silent.pop(place, None)
        self._stand_ready(place.address, line)
        self._forget(place.address, line)

    def _dequeue(self, place: Place) -> None:
        line = self._lines[place.address]
        self._take_out(place, line)
        if not line.queue:
            self._ready.pop(place.address, None)
        self._forget(place.address, line)

    def _take_out(self, place: Place, line: _Line) -> None:
        del line.queue[place]
        self.queued -= 1

    def _stand_ready(self, address: str | None, line: _Line) -> None:
        if line.queue and line.admitted < self._share_of(address):
            self._ready.setdefault(address)

    def _forget(self, address: str | None, line: _Line) -> None:
        if not line.admitted and not line.queue:
            del self._lines[address]
