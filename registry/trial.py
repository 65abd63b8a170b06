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
from registry.operations.servers import ServerAccess, access_to
from registry.operations.tenant_access import TenantAccess, changed_tenants
from registry.probe import LoginTrial, Probe, may_be_tried, probe_auth, probe_server, try_logins
from registry.secrets import Vault

AT_ONCE: Final = 16
"""Logins that are tried at the same time."""

PATIENCE: Final = 10.0
"""Seconds that trying the tenants of one change may take; the others are told as not tried."""


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
    if access.auth is not None and best is not None and may_be_tried(access.server):
        problem = await probe_auth(access, access.auth, best.address)
    return Tried(tuple(probes), tuple(server_checks(access, probes, problem)))


async def try_tenant(access: TenantAccess, depth: Depth) -> list[Check]:
    """Look at a tenant's database and role; what is well is not told."""
    if depth is Depth.REGISTRY or _credentials(access) is None:
        return tenant_checks(access, None)
    [trial] = await _trials([access])
    return tenant_checks(access, trial)


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
        tenants = await _try_tenants(list(changed_tenants(before, after, self._open)), self._depth)
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


async def _try_tenants(accesses: Sequence[TenantAccess], depth: Depth) -> list[Check]:
    """Try all, those of one role on one server together; a server that cannot be asked once is not asked again."""
    if depth is Depth.REGISTRY:
        return [check for access in accesses for check in tenant_checks(access, None)]
    slots, down = asyncio.Semaphore(AT_ONCE), dict[str, str]()
    found: dict[int, LoginTrial | None] = {}
    groups: dict[tuple[str, str, str | None], list[int]] = {}
    for number, access in enumerate(accesses):
        credentials = _credentials(access)
        if credentials is None:
            found[number] = None
        else:
            password = None if credentials.password is None else credentials.password.reveal()
            groups.setdefault((_server_name(access), credentials.user, password), []).append(number)

    async def look(numbers: Sequence[int]) -> None:
        name = _server_name(accesses[numbers[0]])
        async with slots:
            if name not in down:
                trials = await _trials([accesses[number] for number in numbers])
                found.update(zip(numbers, trials, strict=True))
                for trial in trials:
                    if trial.problem is not None and trial.sqlstate is None:
                        down.setdefault(name, trial.problem)

    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            for numbers in groups.values():
                group.create_task(look(numbers))
    skipped: dict[str, int] = {}
    checks: list[Check] = []
    for number, access in enumerate(accesses):
        trial = found.get(number)
        if number not in found or (trial is not None and trial.problem is not None and trial.sqlstate is None):
            name, trial = _server_name(access), None
            down.setdefault(name, f"trying took longer than {PATIENCE:g} s")
            skipped[name] = skipped.get(name, 0) + 1
        checks += tenant_checks(access, trial)
    return [*(untried(name, count, down[name]) for name, count in sorted(skipped.items())), *checks]


def _server_name(access: TenantAccess) -> str:
    return "" if access.server is None else access.server.server.name


def _credentials(access: TenantAccess) -> Credentials | None:
    """With what its database is tried: as its backends do; without a role, as whoever may see whether there is one."""
    server = access.server
    if server is None or access.tenant.database_name is None:
        return None
    credentials = access.role or server.admin
    return server.auth.credentials if credentials is None and server.auth is not None else credentials


async def _trials(accesses: Sequence[TenantAccess]) -> list[LoginTrial]:
    """Try the databases of tenants with one role on one server."""
    server, credentials = accesses[0].server, _credentials(accesses[0])
    assert server is not None
    assert credentials is not None
    try:
        return await try_logins(server, credentials, [access.tenant.database_name or "" for access in accesses])
    except ValueError as error:
        return [LoginTrial(f"TLS cannot be set up: {error}")] * len(accesses)


def _of_server(name: str, check: Check) -> Check:
    return Check(check.name, check.status, f"server {name!r}: {check.text}", check.hint)
