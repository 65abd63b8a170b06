"""`pgtenant tenant`: who lives where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from registry.commands.options import (
    ConfigOption,
    JsonOption,
    NoTestOption,
    RegistryOption,
    StrictOption,
    YesOption,
    choice,
    given,
    read_limits,
    read_secret,
)
from registry.commands.output import ask, confirm, explained, note, print_json, print_record, print_table, tell
from registry.contract import Limits, PoolMode, ResetPolicy, SessionStatePolicy, TenantState, VerifierSource
from registry.domain.checks import Check
from registry.domain.limits import LIMIT_NAMES
from registry.domain.models import KEEP, Keep, LoginRecord, Tenant, TenantChange
from registry.domain.servers import Placement
from registry.opening import Registry
from registry.service import RegistryService
from registry.trial import Depth, problems, refusal, try_tenant

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Slug or alias of the tenant.")]
ServerOption = Annotated[str | None, typer.Option("--server", metavar="NAME", help="Server that has its database.")]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", "-d", metavar="NAME", help="Its database there, which must exist.")
]
AliasOption = Annotated[
    list[str] | None, typer.Option("--alias", metavar="NAME", help="Another name for it; may be given several times.")
]
RoleOption = Annotated[
    str | None, typer.Option("--role", metavar="USER", help="Role of its backends, else the server's default role.")
]
RoleFile = Annotated[
    str | None, typer.Option("--role-password-file", metavar="FILE", help="Its password; `-` reads or asks for it.")
]
RoleEnv = Annotated[
    str | None, typer.Option("--role-password-env", metavar="NAME", help="Its password, in this variable.")
]
PoolModeOption = Annotated[
    PoolMode | None, choice("--pool-mode", PoolMode, "When a client gives its backend back. (default: transaction)")
]
ResetOption = Annotated[
    ResetPolicy | None, choice("--reset", ResetPolicy, "When DISCARD ALL runs between clients. (default: auto)")
]
SessionStateOption = Annotated[
    SessionStatePolicy | None,
    choice(
        "--session-state", SessionStatePolicy, "What becomes of clients with state that cannot follow. (default: pin)"
    ),
]
VerifiersOption = Annotated[
    VerifierSource | None,
    choice(
        "--verifiers",
        VerifierSource,
        "`server`: users without a login here are roles of its server. (default: as the node says)",
    ),
]
NetworkOption = Annotated[
    list[str] | None,
    typer.Option("--network", metavar="CIDR", help="Network its clients must come from; may be given several times."),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help=f"A limit of its own, or `default`; may be given several times.  Names: {', '.join(LIMIT_NAMES)}.",
    ),
]

SharedOption = Annotated[
    bool,
    typer.Option("--shared", help="Serve it from the shared database, beside all others that say so."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Put it on a server that is draining, too.")]

COLUMNS: Final = ("slug", "state", "server", "database", "role", "pool mode", "aliases", "limits")


def register(app: typer.Typer) -> None:
    """Mount the group."""
    group = typer.Typer(no_args_is_help=True, help="The tenants: who lives where, and within which limits.")
    group.command("add")(add)
    group.command("list")(show_all)
    group.command("show")(show)
    group.command("set")(change)
    group.command("suspend")(suspend)
    group.command("resume")(resume)
    group.command("remove")(remove)
    app.add_typer(group, name="tenant")


def add(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="Name of the tenant: a-z, 0-9, '-' and '_'.")],
    server: ServerOption = None,
    database: DatabaseOption = None,
    alias: AliasOption = None,
    role: RoleOption = None,
    role_password_file: RoleFile = None,
    role_password_env: RoleEnv = None,
    pool_mode: PoolModeOption = None,
    reset: ResetOption = None,
    session_state: SessionStateOption = None,
    verifiers: VerifiersOption = None,
    network: NetworkOption = None,
    limit: LimitOption = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    shared: SharedOption = False,
    force: ForceOption = False,
    no_test: NoTestOption = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add a tenant on a database that exists; without one it is PENDING, and its clients are refused.

    Its role logs in to the database once; what is wrong, and what to do about it, is told as a warning.

    pgtenant tenant add acme --server eu1 --database acme_data --limit pool_size=10
    """
    with explained():
        wanted = TenantChange(
            server=given(server),
            database_name=given(database),
            aliases=_several(alias),
            role_user=given(role),
            role_password=given(read_secret("role password", file=role_password_file, variable=role_password_env)),
            pool_mode=given(pool_mode),
            reset=given(reset),
            session_state=given(session_state),
            verifiers=given(verifiers),
            networks=_several(network),
            limits=read_limits(limit, Limits()) if limit else KEEP,
            shared=shared,
        )
    trial = _Trial(no_test=no_test, strict=strict, placement=_placement(force=force))

    async def work(opened: Registry) -> tuple[Tenant, list[Check]]:
        found = await trial.run(opened.service, slug, wanted, is_new=True)
        return await opened.service.add_tenant(slug, wanted, trial.placement), found

    tenant, found = ask(registry, config, work, writing=True)
    _print(
        tenant,
        found,
        as_json=as_json,
        done=f"added tenant {slug!r}, {tenant.state}; {_next_step(tenant)}",
    )


def show_all(
    server: Annotated[str | None, typer.Option("--server", metavar="NAME", help="Only those on this server.")] = None,
    state: Annotated[TenantState | None, choice("--state", TenantState, "Only those in this state.")] = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the tenants."""
    found = ask(registry, config, lambda opened: opened.service.tenants(server=server, state=state))
    if as_json:
        print_json([_members(one) for one in found])
        return
    rows = [
        (one.slug, one.state, one.server, "(shared)" if one.shared else one.database_name, one.role_user, one.pool_mode,
         one.aliases, _limits(one.limits))
        for one in found
    ]  # fmt: skip
    print_table(COLUMNS, rows, empty="There are no such tenants.  `pgtenant tenant add SLUG` adds one.")


def show(
    tenant: TenantArgument,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show a tenant and its logins."""

    async def work(opened: Registry) -> tuple[Tenant, list[LoginRecord]]:
        return await opened.service.tenant(tenant), await opened.service.logins(tenant=tenant)

    found, logins = ask(registry, config, work)
    users = tuple(login.user for login in logins)
    if as_json:
        print_json({**_members(found), "logins": users})
        return
    print_record([*{**_members(found), "limits": _limits(found.limits)}.items(), ("logins", users)])


def change(
    tenant: TenantArgument,
    server: ServerOption = None,
    database: DatabaseOption = None,
    alias: AliasOption = None,
    role: RoleOption = None,
    role_password_file: RoleFile = None,
    role_password_env: RoleEnv = None,
    pool_mode: PoolModeOption = None,
    reset: ResetOption = None,
    session_state: SessionStateOption = None,
    verifiers: VerifiersOption = None,
    network: NetworkOption = None,
    limit: LimitOption = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    no_database: Annotated[bool, typer.Option("--no-database", help="Take server and database away.")] = False,
    no_alias: Annotated[bool, typer.Option("--no-alias", help="Take all aliases away.")] = False,
    no_role: Annotated[bool, typer.Option("--no-role", help="Use the server's default role.")] = False,
    no_verifiers: Annotated[bool, typer.Option("--no-verifiers", help="As the node's settings say.")] = False,
    no_network: Annotated[bool, typer.Option("--no-network", help="Let clients come from anywhere.")] = False,
    shared: SharedOption = False,
    no_shared: Annotated[bool, typer.Option("--no-shared", help="Serve it from the shared database no more.")] = False,
    force: ForceOption = False,
    no_test: NoTestOption = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Change a tenant; what is left out stays.  In force in under a second; transactions end where they began.

    pgtenant tenant set acme --server eu2 --database acme_data --limit pool_size=default
    """
    with explained():
        password = read_secret("role password", file=role_password_file, variable=role_password_env)

    trial = _Trial(no_test=no_test, strict=strict, placement=_placement(force=force))

    async def work(opened: Registry) -> tuple[Tenant, list[Check]]:
        limits = KEEP if not limit else read_limits(limit, (await opened.service.tenant(tenant)).limits)
        wanted = TenantChange(
            server=given(server, cleared=no_database),
            database_name=given(database, cleared=no_database),
            aliases=_several(alias, cleared=no_alias),
            role_user=given(role, cleared=no_role),
            role_password=given(password, cleared=no_role),
            pool_mode=given(pool_mode),
            reset=given(reset),
            session_state=given(session_state),
            verifiers=given(verifiers, cleared=no_verifiers),
            networks=_several(network, cleared=no_network),
            limits=limits,
            shared=_switch(on=shared, off=no_shared),
        )
        found = await trial.run(opened.service, tenant, wanted, is_new=False)
        return await opened.service.set_tenant(tenant, wanted, trial.placement), found

    changed, found = ask(registry, config, work, writing=True)
    _print(changed, found, as_json=as_json, done=f"changed tenant {changed.slug!r}, {changed.state}")


def suspend(
    tenant: TenantArgument, registry: RegistryOption = None, config: ConfigOption = None, *, as_json: JsonOption = False
) -> None:
    """Refuse the tenant's clients until it is resumed; transactions in flight end first."""
    found = ask(registry, config, lambda opened: opened.service.suspend_tenant(tenant), writing=True)
    _print(found, as_json=as_json, done=f"tenant {found.slug!r} is suspended")


def resume(
    tenant: TenantArgument, registry: RegistryOption = None, config: ConfigOption = None, *, as_json: JsonOption = False
) -> None:
    """Let a suspended tenant's clients in again."""
    found = ask(registry, config, lambda opened: opened.service.resume_tenant(tenant), writing=True)
    _print(found, as_json=as_json, done=f"tenant {found.slug!r} is {found.state}")


def remove(
    tenant: TenantArgument,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Forget a tenant and its logins; its database stays as it is."""
    confirm(f"Forget tenant {tenant!r} and its logins (its database stays)?", yes=yes)
    found = ask(registry, config, lambda opened: opened.service.remove_tenant(tenant), writing=True)
    where = f"; database {found.database_name!r} on {found.server!r} is still there" if found.database_name else ""
    _print(found, as_json=as_json, done=f"removed tenant {found.slug!r}{where}")


def _next_step(tenant: Tenant) -> str:
    if tenant.state is TenantState.PENDING:
        return f"`pgtenant tenant set {tenant.slug} --server NAME --database NAME` gives it the database that it lacks"
    return f"`pgtenant login add app --tenant {tenant.slug}` lets an application in"


def _switch(*, on: bool, off: bool) -> bool | Keep:
    wanted = given(on or None, cleared=off)
    return False if wanted is None else wanted


def _placement(*, force: bool) -> Placement:
    return Placement.FORCED if force else Placement.CHECKED


def _several(values: list[str] | None, *, cleared: bool = False) -> tuple[str, ...] | Keep:
    # Options that may be given several times are empty lists, not None, where they are left out.
    wanted = given(tuple(values) if values else None, cleared=cleared)
    return () if wanted is None else wanted


@dataclass(frozen=True, slots=True)
class _Trial:
    no_test: bool
    strict: bool
    placement: Placement

    async def run(self, service: RegistryService, name: str, change: TenantChange, *, is_new: bool) -> list[Check]:
        """What speaks against a change of a tenant's place; raises Conflict where that is to be refused."""
        access = await service.preview_tenant(name, change, self.placement, is_new=is_new)
        if access is None:
            return []
        found = problems(await try_tenant(access, Depth.REGISTRY if self.no_test else Depth.SERVERS))
        if found and self.strict:
            raise refusal(f"tenant {name!r} was not {'added' if is_new else 'changed'}", found)
        return found


def _print(tenant: Tenant, found: list[Check] | None = None, *, as_json: bool, done: str) -> None:
    if as_json:
        print_json(_members(tenant) if found is None else {**_members(tenant), "checks": found})
        return
    tell(found or ())
    note(done)


def _members(tenant: Tenant) -> dict[str, Any]:
    return {
        "id": tenant.tenant_id,
        "slug": tenant.slug,
        "state": tenant.state,
        "aliases": tenant.aliases,
        "server": tenant.server,
        "database": tenant.database_name,
        "role": tenant.role_user,
        "role_password": tenant.has_role_password,
        "limits": tenant.limits,
        "pool_mode": tenant.pool_mode,
        "reset": tenant.reset,
        "session_state": tenant.session_state,
        "verifiers": tenant.verifiers,
        "networks": tenant.networks,
        "shared": tenant.shared,
        "generation": tenant.generation,
    }


def _limits(limits: Limits) -> tuple[str, ...]:
    values = ((name, getattr(limits, name)) for name in LIMIT_NAMES)
    return tuple(f"{name}={value:g}" for name, value in values if value is not None)
