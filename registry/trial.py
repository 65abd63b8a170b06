"""Trying out what a change of the registry brings: servers, and the databases and roles of tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

from registry.contract import Credentials, Secret
from registry.domain.checks import Check, CheckStatus, failed
from registry.errors import Conflict, SecretError
from registry.findings import server_checks, tenant_checks, untried, usable
from registry.operations.contents import Contents
from registry.operations.lodgings import Lodging, new_lodgings
from registry.operations.servers import ServerAccess, access_to
from registry.probe import LoginTrial, Probe, probe_auth, probe_server, try_login
from registry.secrets import Vault

AT_ONCE: Final = 16
"""Logins that are tried at the same time."""

PATIENCE: Final = 60.0
"""Seconds that trying the tenants of one change may take."""


class Depth(Enum):
    """How far a change is looked into: what the registry has only, or what its servers say as well."""

    REGISTRY = "registry"
    SERVERS = "servers"


class Strictness(Enum):
    """What becomes of a change that has something against it: it is made with warnings, or refused."""

    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Tried:
    """How a server was found."""

    probes: tuple[Probe, ...]
    checks: tuple[Check, ...]

    @property
    def used(self) -> Probe | None:
        """The probe of the address that nodes use."""
        return usable(self.probes)


async def try_server(access: ServerAccess, *, database: str = "postgres") -> Tried:
    """Connect to a server, log in, and look at what nodes need of it."""
    try:
        probes = await probe_server(access, database=database)
    except ValueError as error:
        return Tried((), (failed("tls", f"TLS cannot be set up: {error}", "check the CA, certificate and key"),))
    best, problem = usable(probes), None
    if access.auth is not None and best is not None:
        problem = await probe_auth(access, access.auth, best.address)
    return Tried(tuple(probes), tuple(server_checks(access, probes, problem)))


async def try_tenant(lodging: Lodging, depth: Depth) -> list[Check]:
    """Look at where a tenant lives; what is well is not told."""
    trial = await _trial(lodging) if depth is Depth.SERVERS else None
    return tenant_checks(lodging, trial)


class Examiner:
    """Looks at what a change of the whole registry brings, before it is written."""

    def __init__(self, vault: Vault, depth: Depth, strictness: Strictness) -> None:
        self._vault = vault
        self._depth = depth
        self._strictness = strictness

    async def examine(self, before: Contents, after: Contents) -> tuple[Check, ...]:
        """What speaks against the change; raises Conflict where that is to be refused."""
        servers: list[Check] = []
        if self._depth is Depth.SERVERS:
            new = [one for name, one in after.servers.items() if before.servers.get(name) != one]
            tried = await asyncio.gather(*(try_server(access_to(one.record, one.sealed, self._open)) for one in new))
            for stored, one in zip(new, tried, strict=True):
                servers += [_of_server(stored.record.name, check) for check in problems(one.checks)]
        tenants = await _try_tenants(list(new_lodgings(before, after, self._open)), self._depth)
        found = (*servers, *tenants)
        if found and self._strictness is Strictness.REFUSE:
            raise refusal("nothing was applied", found)
        return found

    def _open(self, sealed: bytes | None, context: str) -> Secret | None:
        """Open a secret where one is needed; one that cannot be opened is not what a change of others founders on."""
        if self._depth is Depth.REGISTRY:
            return None
        try:
            return self._vault.open(sealed, context)
        except SecretError:
            return None


def problems(checks: Iterable[Check]) -> list[Check]:
    """The checks that did not find all well, the worst first."""
    found = [check for check in checks if check.status is not CheckStatus.OK]
    return sorted(found, key=lambda check: check.status is not CheckStatus.FAILED)


def refusal(consequence: str, found: Sequence[Check]) -> Conflict:
    """The error that refuses a change for what was found."""
    more = f" (and {len(found) - 1} more)" if found[1:] else ""
    return Conflict(f"{consequence}: {found[0].text}{more}", found[0].hint)


async def _try_tenants(lodgings: Sequence[Lodging], depth: Depth) -> list[Check]:
    """Try all, some at a time; a server that cannot be asked once is not asked again."""
    if depth is Depth.REGISTRY:
        return [check for lodging in lodgings for check in tenant_checks(lodging, None)]
    slots, down, skipped = asyncio.Semaphore(AT_ONCE), dict[str, str](), dict[str, int]()
    found: dict[int, list[Check]] = {}

    async def look(number: int, lodging: Lodging) -> None:
        name = "" if lodging.server is None else lodging.server.server.name
        async with slots:
            trial = None if name in down else await _trial(lodging)
        if trial is not None and trial.problem is not None and trial.sqlstate is None:
            down.setdefault(name, trial.problem)
            trial = None
        if name in down:
            skipped[name] = skipped.get(name, 0) + 1
        found[number] = tenant_checks(lodging, trial)

    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            for number, lodging in enumerate(lodgings):
                group.create_task(look(number, lodging))
    for number, lodging in enumerate(lodgings):
        if number not in found:
            name = "" if lodging.server is None else lodging.server.server.name
            down.setdefault(name, f"trying took longer than {PATIENCE:g} s")
            skipped[name] = skipped.get(name, 0) + 1
            found[number] = tenant_checks(lodging, None)
    checks = [untried(name, count, down[name]) for name, count in sorted(skipped.items())]
    return checks + [check for number in range(len(lodgings)) for check in found[number]]


async def _trial(lodging: Lodging) -> LoginTrial | None:
    """Log in as the tenant's backends do; without a role, as whoever may see whether there is such a database."""
    server, database = lodging.server, lodging.tenant.database_name
    if server is None or database is None:
        return None
    credentials: Credentials | None = lodging.role or server.admin
    if credentials is None and server.auth is not None:
        credentials = server.auth.credentials
    if credentials is None:
        return None
    try:
        return await try_login(server, credentials, database)
    except ValueError as error:
        return LoginTrial(f"TLS cannot be set up: {error}")


def _of_server(name: str, check: Check) -> Check:
    return Check(check.name, check.status, f"server {name!r}: {check.text}", check.hint)
