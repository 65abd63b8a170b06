"""Logins that are roles of the tenant's own server: asked for there, and remembered for a short while.

What a server says is kept in memory only, per tenant, and is forgotten with every change of that tenant or server in
the registry, and when a client of this node has changed a role of that server.  A role that has expired or may not log
in counts as absent, as the server itself would count it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import structlog

from proxy.auth import ClientKeys, ScramVerifier, VerifierError
from proxy.routing.cache import MAX_FLOORS, Entry, Shelf
from proxy.routing.lookups import Look, SingleFlight
from registry.contract import ChangeKind, Login, Route, RouteChange, ServerInfo, VerifierSource

log = structlog.get_logger(__name__)

MAX_ROLE_BYTES: Final = 63
"""Longest name of a role in PostgreSQL; a longer one would be cut, and mean somebody else."""

DOUBT_AFTER: Final = 1.0
"""Seconds between two failed logins that make the node ask again: so guessing does not ask every time."""

NO_LOGIN: Final = 0
"""The id of a login that is not in the registry."""

Key: TypeAlias = tuple[int, int, str]
"""Tenant, server and role."""


class CannotAsk(Exception):
    """A server cannot be asked for verifiers now; the text is for the operator."""


@dataclass(frozen=True, slots=True)
class ServerRole:
    """What a server says of a role that may log in: its verifier, and how many seconds it is valid, None for ever."""

    verifier: str = field(repr=False)
    seconds_left: float | None = None


AskServer: TypeAlias = Callable[[ServerInfo, str], Awaitable[ServerRole | None]]


@dataclass(frozen=True, slots=True)
class ServerLoginLimits:
    """How long answers are remembered, in seconds, and how many of them."""

    ttl: float = 10.0
    negative_ttl: float = 5.0
    known: int = 20_000
    unknown: int = 10_000


@dataclass(frozen=True, slots=True)
class _Known:
    """An answer (None: no such role that may log in), when it ends, and when it was doubted, by the node's clock."""

    login: Login | None
    until: float
    doubted_at: float = -math.inf


class ServerLogins:
    """The roles of servers as logins.

    `ask` asks a server and raises CannotAsk.  `keys` lose the key of a role whose verifier turns out to be another one.
    `asked` counts questions, `failed` those of them that could not be asked.
    """

    def __init__(
        self,
        ask: AskServer,
        keys: ClientKeys,
        *,
        clock: Callable[[], float],
        limits: ServerLoginLimits,
    ) -> None:
        self._ask_server = ask
        self._keys = keys
        self._clock = clock
        self._limits = limits
        self._shelf: Shelf[Key, _Known] = Shelf(limits.known, limits.unknown)
        self._flights = SingleFlight()
        self.asked = 0
        self.failed = 0
        self._serial = 0
        self._floor = 0
        self._floors: OrderedDict[tuple[ChangeKind, int | None], int] = OrderedDict()

    def resize(self, limits: ServerLoginLimits) -> None:
        """Remember other numbers of answers, for other times, from now on."""
        self._limits = limits
        self._shelf.resize(limits.known, limits.unknown)

    async def login(self, route: Route, user: str, look: Look = Look.REMEMBERED) -> Login | None:
        """Find the role of this name that may log in to the tenant's server; raises CannotAsk.

        The server must be one that is asked (`ServerInfo.auth`).
        """
        server = route.server
        if server is None or server.auth is None or not _is_a_role(user):
            return None
        key = (route.tenant_id, server.server_id, user)
        entry = self._shelf.get(key)
        if look is Look.REMEMBERED and entry is not None and self._is_fresh(key, entry):
            return entry.value.login
        # An answer to a question from before a change is not given to those who ask after it.
        flight = (key, self._floor_of(key))
        return await self._flights.run(flight, lambda: self._ask(key, server))

    def doubt(self, tenant_id: int, server_id: int, user: str, *, surely: bool = False) -> None:
        """Ask again next time: a login has failed by this answer, or (`surely`) the server itself refused its key.

        So the second attempt with a new password succeeds, however lately the server was asked before the first.  Doubt
        absence as well as presence: else the time of the next attempt would tell which it was.
        """
        key = (tenant_id, server_id, user)
        entry = self._shelf.get(key)
        if entry is None:
            return
        known, now = entry.value, self._clock()
        if surely or known.doubted_at + DOUBT_AFTER <= now:
            doubted = replace(entry, value=replace(known, until=now, doubted_at=now))
            self._shelf.put(key, doubted, empty=known.login is None)

    def apply(self, change: RouteChange) -> None:
        """Forget what a change of the registry concerns."""
        self._serial += 1
        if change.kind is ChangeKind.EVERYTHING or change.key is None:
            self._floor = self._serial
            self._floors.clear()
            return
        self._raise_floor(change.kind, change.key)

    def forget_server(self, server_id: int) -> None:
        """Forget what a server has said: one of its roles has another password, or is gone or new."""
        self._serial += 1
        self._raise_floor(ChangeKind.SERVER, server_id)

    async def close(self) -> None:
        """Cancel what is in flight."""
        await self._flights.close()

    def __len__(self) -> int:
        return len(self._shelf)

    async def _ask(self, key: Key, server: ServerInfo) -> Login | None:
        tenant_id, _, user = key
        serial, asked_at = self._serial, self._clock()
        self.asked += 1
        try:
            role = await self._ask_server(server, user)
        except CannotAsk:
            self.failed += 1
            raise
        verifier = None if role is None else _readable(role, server, user)
        self._keys.outdate((tenant_id, user), verifier)
        login, lifetime = None, self._limits.negative_ttl
        if role is not None and verifier is not None:
            login = Login(NO_LOGIN, user, tenant_id, role.verifier, source=VerifierSource.SERVER)
            lifetime = self._limits.ttl
            if role.seconds_left is not None:
                lifetime = min(lifetime, role.seconds_left)
        before = self._shelf.get(key)
        doubted_at = -math.inf if before is None else before.value.doubted_at
        known = _Known(login, asked_at + lifetime, doubted_at)
        self._shelf.put(key, Entry(known, serial, asked_at), empty=login is None)
        return login

    def _raise_floor(self, kind: ChangeKind, key: int) -> None:
        floor = (kind, key)
        self._floors[floor] = self._serial
        self._floors.move_to_end(floor)
        if len(self._floors) > MAX_FLOORS:
            self._floor = max(self._floor, self._floors.popitem(last=False)[1])

    def _is_fresh(self, key: Key, entry: Entry[_Known]) -> bool:
        return entry.version >= self._floor_of(key) and self._clock() < entry.value.until

    def _floor_of(self, key: Key) -> int:
        tenant_id, server_id, _ = key
        floors = self._floors
        return max(
            self._floor,
            floors.get((ChangeKind.TENANT, tenant_id), 0),
            floors.get((ChangeKind.LOGIN, tenant_id), 0),
            floors.get((ChangeKind.SERVER, server_id), 0),
        )


def _readable(role: ServerRole, server: ServerInfo, user: str) -> ScramVerifier | None:
    try:
        return ScramVerifier.parse(role.verifier)
    except VerifierError as error:
        log.warning("a role cannot log in through the proxy", role=user, server=server.name, reason=str(error))
        return None


def _is_a_role(user: str) -> bool:
    try:
        return 0 < len(user.encode("utf-8")) <= MAX_ROLE_BYTES and "\0" not in user
    except UnicodeEncodeError:
        return False
