"""Failed logins are slowed: each failure makes the next attempt on that tenant from that address wait longer.

Only that: nobody is locked out, and who comes from elsewhere notices nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final, TypeAlias

MAX_ENTRIES: Final = 10_000

FREE: Final = 3
"""Failures that anybody may have who types."""

Attempts: TypeAlias = tuple[str, str]
"""What failures are counted by: the tenant as it was spelled, and the address."""

_SITE_BITS: Final = 64
_MOST_DOUBLINGS: Final = 32


@dataclass(slots=True)
class _Failures:
    count: int
    last: float


class Slowdown:
    """The failures of the `limit` tenants and addresses that last had one.

    After `FREE` failures an attempt waits `first` seconds, and twice as long after each further one, up to `most`.  All
    is forgiven with a success, or `forget` seconds after the last failure.  `first` 0 switches it off.
    """

    def __init__(self, *, first: float, most: float, forget: float, limit: int = MAX_ENTRIES) -> None:
        self._first = first
        self._most = most
        self._forget = forget
        self._limit = limit
        self._failures: OrderedDict[Attempts, _Failures] = OrderedDict()

    def delay(self, attempts: Attempts, now: float) -> float:
        """Seconds that an attempt has to wait before it is looked at."""
        failures = self._current(attempts, now)
        if failures is None or failures.count < FREE:
            return 0.0
        doublings = min(failures.count - FREE, _MOST_DOUBLINGS)
        return min(self._most, self._first * 2.0**doublings)

    def failed(self, attempts: Attempts, now: float) -> None:
        """Count a failure."""
        failures = self._current(attempts, now) or _Failures(0, now)
        failures.count += 1
        failures.last = now
        self._failures[attempts] = failures
        self._failures.move_to_end(attempts)
        if len(self._failures) > self._limit:
            self._failures.popitem(last=False)

    def succeeded(self, attempts: Attempts) -> None:
        """Forgive all failures."""
        self._failures.pop(attempts, None)

    def __len__(self) -> int:
        return len(self._failures)

    def _current(self, attempts: Attempts, now: float) -> _Failures | None:
        failures = self._failures.get(attempts)
        if failures is not None and failures.last + self._forget <= now:
            del self._failures[attempts]
            return None
        return failures


def neighbourhood(address: str) -> str:
    """The address by which somebody is known who could take another one at will: of IPv6 the first 64 bits."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> _SITE_BITS << _SITE_BITS))
    return str(found)
