"""What trials mean: from probes of servers and tried logins of tenants to checks with the next step.

Pure; `registry.trial` does what these judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from registry.contract import TlsMode, VerifierSource
from registry.domain.checks import Check, failed, ok, warning
from registry.domain.models import Server
from registry.domain.names import format_address
from registry.operations.servers import ServerAccess
from registry.operations.tenant_access import TenantAccess
from registry.probe import NO_DATABASE, NO_PRIVILEGE, UNBOUND, LoginTrial, Probe, may_be_tried

REFUSED_LOGIN: Final = "28"
"""The class of PostgreSQL's errors about who one is."""
NOT_NOW: Final = ("53", "57", "08")
"""The classes of errors that say nothing of what was tried."""


def usable(probes: Sequence[Probe]) -> Probe | None:
    """The first address that works, which is the one that nodes use."""
    return next((probe for probe in probes if probe.problem is None), None)


def server_checks(access: ServerAccess, probes: Sequence[Probe], auth_problem: str | None) -> list[Check]:
    """Judge a server by its probes, and by what went wrong when it was asked for verifiers."""
    server, best = access.server, usable(probes)
    checks = [_address_check(probe, is_usable=best is not None) for probe in probes]
    if access.admin is None and best is not None:
        checks.append(
            warning(
                "login",
                f"the registry has no role for server {server.name!r}, so nobody has logged in to it",
                f"`pgtenant server set {server.name} --admin USER --admin-password-file FILE` names one",
            )
        )
    elif best is not None and not may_be_tried(server):
        checks.append(
            warning(
                "login",
                f"nobody has logged in to server {server.name!r}: {UNBOUND}",
                f"`pgtenant server set {server.name} --tls verify-full --tls-ca FILE` lets it be tested",
            )
        )
    if best is None or best.version is None:
        return checks
    checks += [ok("version", f"PostgreSQL {best.version}"), _tls_check(server, best), _capacity_check(server, best)]
    if best.read_only:
        checks.append(
            warning(
                "writable",
                f"{format_address(best.address)} is a standby: it cannot be written to",
                "name the primary first among the hosts",
            )
        )
    if access.auth is not None:
        checks.append(_verifiers_check(access.auth.credentials.user, auth_problem))
    return checks


def _address_check(probe: Probe, *, is_usable: bool) -> Check:
    where = format_address(probe.address)
    if probe.problem is None:
        return ok("address", f"{where} answers")
    if is_usable:
        return warning(
            "address", f"{where}: {probe.problem}", "another host of the server answers; mend or remove this one"
        )
    if probe.sqlstate is not None and probe.sqlstate.startswith(REFUSED_LOGIN):
        return failed(
            "login", f"{where}: {probe.problem}", "check the admin or role, its password, and the server's pg_hba.conf"
        )
    return failed("address", f"{where}: {probe.problem}", "check that it runs, its hosts, TLS mode and the database")


def _tls_check(server: Server, probe: Probe) -> Check:
    if probe.tls is None and server.tls_mode is TlsMode.PREFER:
        return warning(
            "tls",
            "the server has no TLS, so the connection is not encrypted",
            f"switch it on there, and demand it with `pgtenant server set {server.name} --tls verify-full`",
        )
    return ok("tls", probe.tls or "none, as asked for")


def _capacity_check(server: Server, probe: Probe) -> Check:
    if probe.max_connections is not None and server.max_connections > probe.max_connections:
        return warning(
            "max_connections",
            f"the registry allows {server.max_connections} connections (max_connections),"
            f" the server has {probe.max_connections}",
            f"`pgtenant server set {server.name} --max-connections {probe.max_connections}`, or raise it there",
        )
    return ok("max_connections", f"{probe.connections} of {probe.max_connections} connections in use")


def _verifiers_check(user: str, problem: str | None) -> Check:
    if problem is None:
        return ok("verifiers", f"it tells {user!r} its roles' verifiers")
    return warning(
        "verifiers",
        f"it cannot be asked for verifiers as {user!r}: {problem}",
        f"users who are its roles cannot log in until then; docs/authentication.md shows what {user!r} needs",
    )


def tenant_checks(access: TenantAccess, trial: LoginTrial | None) -> list[Check]:
    """Judge a tenant's database and role; `trial` is how a login to its database went, None where none was tried.

    Such a login is the tenant's own where it has a role, else that of whoever administers the server.
    """
    tenant = access.tenant
    if access.server is None or tenant.database_name is None:
        return []
    server, checks = access.server.server, []
    where = f"database {tenant.database_name!r} on server {server.name!r}"
    if access.same_database:
        others = ", ".join(repr(slug) for slug in access.same_database[:3]) + (
            ", ..." if access.same_database[3:] else ""
        )
        checks.append(
            warning(
                "database",
                f"tenant {tenant.slug!r} is on {where}, as is {others}: they reach each other's data",
                f"`pgtenant tenant set {tenant.slug} --database NAME` gives it one of its own;"
                " for a common database that is meant to be one, see --shared",
            )
        )
    if access.role is None and not _may_pass_through(access):
        checks.append(
            failed(
                "role",
                f"tenant {tenant.slug!r} has no role to log in with, and server {server.name!r} no default role",
                f"`pgtenant tenant set {tenant.slug} --role USER --role-password-file FILE` names one",
            )
        )
    if trial is not None and trial.problem is not None:
        checks += _trial_checks(access, where, trial)
    return checks


def _trial_checks(access: TenantAccess, where: str, trial: LoginTrial) -> list[Check]:
    tenant, role, problem, state = access.tenant, access.role, trial.problem, trial.sqlstate or ""
    if state == NO_DATABASE:
        return [
            failed(
                "database",
                f"there is no {where}, on which tenant {tenant.slug!r} is",
                f"create it, or name another with `pgtenant tenant set {tenant.slug} --database NAME`",
            )
        ]
    if not state or state.startswith(NOT_NOW):
        assert access.server is not None
        return [_untried(access.server.server.name, f"tenant {tenant.slug!r}", problem)]
    if role is None:
        # Somebody else has tried, whom the database need not let in.
        return []
    if state == NO_PRIVILEGE:
        database = _quoted(tenant.database_name or "")
        return [
            failed(
                "login",
                f"role {role.user!r} of tenant {tenant.slug!r} may not connect to {where}: {problem}",
                f"GRANT CONNECT ON DATABASE {database} TO {_quoted(role.user)}, on the server",
            )
        ]
    lacks = "" if role.password is not None else ", and no password is stored for it"
    return [
        failed(
            "login",
            f"role {role.user!r} of tenant {tenant.slug!r} cannot log in to {where}{lacks}: {problem}",
            f"`pgtenant tenant set {tenant.slug} --role {role.user} --role-password-file FILE` stores its password;"
            " on the server it needs LOGIN and a line in pg_hba.conf",
        )
    ]


def untried(server: str, count: int, problem: str | None) -> Check:
    """The check of a server that could not be reached, so that its tenants could not be tried."""
    return _untried(server, f"{count} tenant{'' if count == 1 else 's'}", problem)


def _untried(server: str, whom: str, problem: str | None) -> Check:
    return warning(
        "server",
        f"server {server!r} could not be asked from here, so the database of {whom} was not tried: {problem}",
        f"`pgtenant server test {server}` tells more",
    )


def _quoted(name: str) -> str:
    """A name as SQL has it: what is shown is copied into a superuser's session."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _may_pass_through(access: TenantAccess) -> bool:
    """Whether the tenant's users may be roles of its server, with which they log in themselves."""
    asks = access.server is not None and access.server.auth is not None
    return asks and access.tenant.verifiers is not VerifierSource.REGISTRY
