"""Failed logins are slowed: each failure makes the next attempt on that login from that address wait longer.

Only that: who comes from elsewhere notices nothing, and who shares the address with somebody that guesses another login
waits for a moment at most.

A login is guessed at under many spellings of its tenant, one for all tenants under any.  Which spellings mean the same
login is not told by what waits together, as that would tell which logins there are: so each spelling counts by itself,
and with the user name how many of them have failed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from proxy.auth.addresses import neighbourhood

MAX_ENTRIES: Final = 10_000

FREE: Final = 3
"""Failures that anybody may have who types."""

FREE_OF_SITE: Final = 20
"""Failures that all logins of a tenant may have together from one address."""

MOST_SPELLINGS: Final = 16
"""Spellings of the tenant that are kept of a user name; more would make nobody wait longer."""

FAMILIAR: Final = 86_400.0
"""Seconds for which a login that has succeeded from an address is familiar there."""

MAX_NAME_CHARS: Final = 64
"""Longest name that is kept as it is, which is longer than any that exists; of others only a hash is."""

Site: TypeAlias = tuple[str, str]
"""The tenant as it was spelled, and the address."""

Stem: TypeAlias = tuple[str, str]
"""What all spellings of a user name have in common, or the login that they found, and the address."""

_MOST_DOUBLINGS: Final = 32
_TARGET: Final = "\0"
"""What begins a target, and no name."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Attempt:
    """What failures are counted by: tenant and user as they were spelled, and the address; make it with `of`.

    `name` is the user name without all that may be a tenant's, the same however user and tenant are spelled.  `target`
    is the login that was found, if one was: of those that are familiar, all tenants' may be so under many spellings.
    """

    tenant: str
    address: str
    user: str
    name: str
    target: str = field(default="", compare=False)

    @classmethod
    def of(cls, tenant: str, address: str, user: str, name: str, target: str = "") -> Attempt:
        """An attempt that takes little memory, however long the names are that a stranger has sent."""
        return cls(_short(tenant), neighbourhood(address), _short(user), _short(name), target and _TARGET + target)

    @property
    def site(self) -> Site:
        return self.tenant, self.address

    @property
    def stem(self) -> Stem:
        return self.name, self.address

    @property
    def stems(self) -> tuple[Stem, ...]:
        """What the spellings are counted by: for strangers the user name, and for those who are familiar the login."""
        return (self.stem, (self.target, self.address)) if self.target else (self.stem,)


@dataclass(slots=True)
class _Failures:
    count: int
    last: float


@dataclass(slots=True)
class _SiteFailures(_Failures):
    due: float = 0.0


class Slowdown:
    """The failures of the `limit` logins, and of as many tenants, names and addresses, that last had one.

    After `FREE` failures an attempt on that login waits `first` seconds, and twice as long after each further one, up
    to `most`.  A success of that very login forgives its failures, and so do `forget` seconds without one.

    So do the attempts with one user name, by the number of spellings that have failed with it, but together: that long
    after the last of them that has failed.  After `FREE_OF_SITE` failures over all logins of a tenant from one address
    its attempts are let through `first` seconds apart, whatever login they name, though none waits longer than `most`.
    Spared from both are logins that are familiar, because they have succeeded from there within `FAMILIAR` seconds:
    they wait for the spellings of their own login only.  No success of others forgives: who has one login cannot guess
    others the faster for it.

    `first` 0 switches it all off, except that it is still known who is familiar.
    """

    def __init__(self, *, first: float, most: float, forget: float, limit: int = MAX_ENTRIES) -> None:
        self._first = first
        self._most = most
        self._forget = forget
        self._limit = limit
        self._failures: OrderedDict[Attempt, _Failures] = OrderedDict()
        self._spellings: OrderedDict[Stem, OrderedDict[tuple[str, str], float]] = OrderedDict()
        self._sites: OrderedDict[Site, _SiteFailures] = OrderedDict()
        self._familiar: OrderedDict[Attempt, float] = OrderedDict()

    def follow(self, other: Slowdown) -> None:
        """Take over another one's seconds; what has been counted so far stays."""
        self._first, self._most, self._forget = other._first, other._most, other._forget

    def delay(self, attempt: Attempt, now: float) -> float:
        """Seconds that an attempt has to wait because of its own login's failures, before it is looked at.

        The caller lets attempts on one login wait one after the other, and asks anew for each when its turn has come.
        """
        failures = self._failures.get(attempt)
        return 0.0 if failures is None or self._is_over(failures, now) else self._after(failures.count)

    def delay_of_name(self, attempt: Attempt, now: float) -> float:
        """Seconds that an attempt has to wait because its user name has failed under many spellings; as `delay`.

        Counted from the name's last failure: who has waited for his own does not wait twice.
        """
        spellings = self._spellings.get(self.lane(attempt, now))
        if not spellings:
            return 0.0
        latest = max(spellings.values())
        return max(0.0, latest + self._after(sum(now < last + self._forget for last in spellings.values())) - now)

    def lane(self, attempt: Attempt, now: float) -> Stem:
        """With whom an attempt waits by turns: all of its user name, and where it is familiar, all at its login."""
        return attempt.stems[-1] if self.is_familiar(attempt, now) else attempt.stem

    def reserve(self, attempt: Attempt, now: float) -> float:
        """Seconds until an attempt's turn among all those of its tenant and address, which is its own from now on."""
        site = self._sites.get(attempt.site)
        if site is None or self._is_over(site, now) or site.count < FREE_OF_SITE or self.is_familiar(attempt, now):
            return 0.0
        site.due = min(max(site.due, now) + self._first, now + self._most)
        return site.due - now

    def is_familiar(self, attempt: Attempt, now: float) -> bool:
        """Whether this login has succeeded from there lately."""
        since = self._familiar.get(attempt)
        return since is not None and now < since + FAMILIAR

    def failed(self, attempt: Attempt, now: float) -> None:
        """Count a failure."""
        if not self._first:
            return
        own = self._failures.get(attempt)
        if own is None or self._is_over(own, now):
            own = _Failures(0, now)
        site = self._sites.get(attempt.site)
        if site is None or self._is_over(site, now):
            site = _SiteFailures(0, now)
        for failures in (own, site):
            failures.count += 1
            failures.last = now
        _put(self._failures, attempt, own, self._limit)
        _put(self._sites, attempt.site, site, self._limit)
        for stem in attempt.stems:
            spellings = self._spellings.get(stem) or OrderedDict()
            _put(spellings, (attempt.tenant, attempt.user), now, MOST_SPELLINGS)
            _put(self._spellings, stem, spellings, self._limit)

    def succeeded(self, attempt: Attempt) -> None:
        """Forgive the login's own failures."""
        self._failures.pop(attempt, None)
        for stem in attempt.stems:
            spellings = self._spellings.get(stem)
            if spellings is not None:
                spellings.pop((attempt.tenant, attempt.user), None)
                if not spellings:
                    del self._spellings[stem]

    def admitted(self, attempt: Attempt, now: float) -> None:
        """Make a login familiar there: it has proved itself, by whatever method."""
        _put(self._familiar, attempt, now, self._limit)

    def __len__(self) -> int:
        return len(self._failures) + len(self._spellings) + len(self._sites) + len(self._familiar)

    def _after(self, count: int) -> float:
        if count < FREE:
            return 0.0
        return min(self._most, self._first * 2.0 ** min(count - FREE, _MOST_DOUBLINGS))

    def _is_over(self, failures: _Failures, now: float) -> bool:
        return failures.last + self._forget <= now


def _put(table: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > limit:
        table.popitem(last=False)


def _short(name: str) -> str:
    if len(name) <= MAX_NAME_CHARS:
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
