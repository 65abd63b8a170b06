"""`pgtenant server`: the PostgreSQL servers that tenants live on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from registry.commands.options import (
    ConfigOption,
    JsonOption,
    NoTestOption,
    RegistryOption,
    YesOption,
    choice,
    given,
)
from registry.commands.output import (
    USAGE,
    ask,
    confirm,
    explained,
    fail,
    note,
    print_json,
    print_record,
    print_table,
    tell,
)
from registry.commands.server_changes import auth_change, server_change, tls_change
from registry.contract import (
    ChannelBinding,
    ProtocolVersion,
    TlsMode,
    TlsNegotiation,
    TlsVersion,
)
from registry.domain.checks import CheckStatus
from registry.domain.models import KEEP, Server, Tenant
from registry.errors import Conflict
from registry.opening import Registry
from registry.operations.servers import ServerAccess
from registry.trial import Tried, problems, try_server

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the server.")]
HostOption = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="HOST[:PORT]", help="Host and port; several are tried in their order."),
]
TlsOption = Annotated[TlsMode | None, choice("--tls", TlsMode, "TLS to the server, as libpq's sslmode.")]
TlsCaOption = Annotated[
    Path | None, typer.Option("--tls-ca", metavar="FILE", help="CA certificates (PEM) to check the server's against.")
]
TlsCertOption = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate (PEM) that the server is shown.")
]
TlsKeyOption = Annotated[
    str | None, typer.Option("--tls-key", metavar="FILE", help="Its key (PEM, not encrypted); kept encrypted.")
]
NegotiationOption = Annotated[
    TlsNegotiation | None, choice("--tls-negotiation", TlsNegotiation, "As libpq's sslnegotiation. (default: postgres)")
]
MinVersionOption = Annotated[
    TlsVersion | None, choice("--tls-min-version", TlsVersion, "Oldest version of TLS. (default: 1.2)")
]
ProtocolOption = Annotated[
    ProtocolVersion | None,
    choice("--protocol", ProtocolVersion, "Newest protocol that it is asked for. (default: 3.2)"),
]
MaxOption = Annotated[
    int | None, typer.Option("--max-connections", help="The server's own max_connections. (default: 100)")
]
ReserveOption = Annotated[int | None, typer.Option("--reserve", help="Connections left to others. (default: 10)")]
AdminOption = Annotated[str | None, typer.Option("--admin", metavar="USER", help="Role that may administer it.")]
AdminFile = Annotated[
    str | None, typer.Option("--admin-password-file", metavar="FILE", help="Its password; `-` reads or asks for it.")
]
AdminEnv = Annotated[
    str | None, typer.Option("--admin-password-env", metavar="NAME", help="Its password, in this variable.")
]
RoleOption = Annotated[
    str | None, typer.Option("--role", metavar="USER", help="Role of backends of tenants that have none of their own.")
]
RoleFile = Annotated[
    str | None, typer.Option("--role-password-file", metavar="FILE", help="Its password; `-` reads or asks for it.")
]
RoleEnv = Annotated[
    str | None, typer.Option("--role-password-env", metavar="NAME", help="Its password, in this variable.")
]
AuthRoleOption = Annotated[
    str | None,
    typer.Option(
        "--auth-role",
        metavar="USER",
        help="Role that asks it for its roles' verifiers (SCRAM pass-through); naming the admin uses its password.",
    ),
]
AuthFile = Annotated[
    str | None, typer.Option("--auth-password-file", metavar="FILE", help="Its password; `-` reads or asks for it.")
]
AuthEnv = Annotated[
    str | None, typer.Option("--auth-password-env", metavar="NAME", help="Its password, in this variable.")
]
AuthDatabaseOption = Annotated[
    str | None, typer.Option("--auth-database", metavar="NAME", help="Database that it asks in. (default: postgres)")
]
AuthQueryOption = Annotated[
    str | None, typer.Option("--auth-query", metavar="SQL", help="Its query, in place of one on pg_authid.")
]
BindingOption = Annotated[
    ChannelBinding | None, choice("--channel-binding", ChannelBinding, "As libpq's channel_binding. (default: prefer)")
]

ForceOption = Annotated[bool, typer.Option("--force", help="Register it although its test has failed.")]

FACTS: Final = frozenset({"version", "tls", "max_connections"})
COLUMNS: Final = ("name", "hosts", "tls", "connections", "reserve", "admin", "role", "draining")


def register(app: typer.Typer) -> None:
    """Mount the group."""
    group = typer.Typer(no_args_is_help=True, help="The PostgreSQL servers that tenants live on.")
    group.command("add")(add)
    group.command("set")(change)
    group.command("list")(show_all)
    group.command("show")(show)
    group.command("test")(try_out)
    group.command("drain")(drain)
    group.command("undrain")(undrain)
    group.command("remove")(remove)
    app.add_typer(group, name="server")


def add(
    name: NameArgument,
    host: HostOption = None,
    tls: TlsOption = None,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_negotiation: NegotiationOption = None,
    tls_min_version: MinVersionOption = None,
    protocol: ProtocolOption = None,
    max_connections: MaxOption = None,
    reserve: ReserveOption = None,
    admin: AdminOption = None,
    admin_password_file: AdminFile = None,
    admin_password_env: AdminEnv = None,
    role: RoleOption = None,
    role_password_file: RoleFile = None,
    role_password_env: RoleEnv = None,
    auth_role: AuthRoleOption = None,
    auth_password_file: AuthFile = None,
    auth_password_env: AuthEnv = None,
    auth_database: AuthDatabaseOption = None,
    auth_query: AuthQueryOption = None,
    channel_binding: BindingOption = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    force: ForceOption = False,
    no_test: NoTestOption = False,
    as_json: JsonOption = False,
) -> None:
    """Test a server as `server test` does, and add it if it can be used.

    pgtenant server add eu1 --host 10.0.0.5:5432 --tls verify-full --role app --role-password-file app.secret
    """
    with explained():
        wanted = server_change(
            host, tls, tls_ca, max_connections, reserve, admin, (admin_password_file, admin_password_env), role,
            (role_password_file, role_password_env),
        )  # fmt: skip
        wanted = replace(
            wanted,
            channel_binding=given(channel_binding),
            **auth_change(auth_role, (auth_password_file, auth_password_env), auth_database, auth_query),
            **tls_change(tls_cert, tls_key, tls_negotiation, tls_min_version, protocol),
        )
        if wanted.addresses is KEEP:
            fail("a server needs a host", "add --host HOST:PORT", status=USAGE)

    async def work(opened: Registry) -> tuple[Server, Tried | None]:
        service, tried = opened.service, None
        if not no_test:
            tried = await _test(await service.preview_server(name, wanted, is_new=True), "added", force=force)
        return await service.add_server(name, wanted), tried

    server, tried = ask(registry, config, work, writing=True)
    _print(server, tried, as_json=as_json, done=f"added server {name!r}")


def change(
    name: NameArgument,
    host: HostOption = None,
    tls: TlsOption = None,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_negotiation: NegotiationOption = None,
    tls_min_version: MinVersionOption = None,
    protocol: ProtocolOption = None,
    max_connections: MaxOption = None,
    reserve: ReserveOption = None,
    admin: AdminOption = None,
    admin_password_file: AdminFile = None,
    admin_password_env: AdminEnv = None,
    role: RoleOption = None,
    role_password_file: RoleFile = None,
    role_password_env: RoleEnv = None,
    auth_role: AuthRoleOption = None,
    auth_password_file: AuthFile = None,
    auth_password_env: AuthEnv = None,
    auth_database: AuthDatabaseOption = None,
    auth_query: AuthQueryOption = None,
    channel_binding: BindingOption = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    no_tls_cert: Annotated[bool, typer.Option("--no-tls-cert", help="Show it no certificate any more.")] = False,
    no_auth_role: Annotated[bool, typer.Option("--no-auth-role", help="Ask it for no verifiers any more.")] = False,
    force: ForceOption = False,
    no_test: NoTestOption = False,
    as_json: JsonOption = False,
) -> None:
    """Test a server with the change made, and change it if it can be used; what is left out stays.

    Other hosts or another role make new backends; those in use are closed when their transaction ends.

    pgtenant server set eu1 --host 10.0.0.6 --host 10.0.0.5
    """
    with explained():
        wanted = server_change(
            host, tls, tls_ca, max_connections, reserve, admin, (admin_password_file, admin_password_env), role,
            (role_password_file, role_password_env),
        )  # fmt: skip
        wanted = replace(
            wanted,
            channel_binding=given(channel_binding),
            **auth_change(
                auth_role, (auth_password_file, auth_password_env), auth_database, auth_query, cleared=no_auth_role
            ),
            **tls_change(tls_cert, tls_key, tls_negotiation, tls_min_version, protocol, cleared=no_tls_cert),
        )

    async def work(opened: Registry) -> tuple[Server, Tried | None]:
        service, tried = opened.service, None
        if not no_test:
            tried = await _test(await service.preview_server(name, wanted, is_new=False), "changed", force=force)
        return await service.set_server(name, wanted), tried

    server, tried = ask(registry, config, work, writing=True)
    _print(server, tried, as_json=as_json, done=f"changed server {name!r}")


def show_all(registry: RegistryOption = None, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """List the servers."""
    found = ask(registry, config, lambda opened: opened.service.servers())
    if as_json:
        print_json([_members(one) for one in found])
        return
    rows = [
        (one.name, one.addresses, one.tls_mode, one.max_connections, one.reserve, one.admin_user, one.role_user,
         one.draining)
        for one in found
    ]  # fmt: skip
    print_table(COLUMNS, rows, empty="There are no servers.  `pgtenant server add NAME --host HOST` adds one.")


def show(
    name: NameArgument, registry: RegistryOption = None, config: ConfigOption = None, *, as_json: JsonOption = False
) -> None:
    """Show a server and the tenants on it."""

    async def work(opened: Registry) -> tuple[Server, list[Tenant]]:
        return await opened.service.server(name), await opened.service.tenants(server=name)

    server, tenants = ask(registry, config, work)
    if as_json:
        print_json({**_members(server), "tenants": [tenant.slug for tenant in tenants]})
        return
    print_record([*_members(server).items(), ("tenants", tuple(tenant.slug for tenant in tenants))])


def try_out(
    name: NameArgument,
    database: Annotated[str, typer.Option("--database", "-d", help="Database to connect to.")] = "postgres",
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Log in to a server and report version, TLS, latency, connections and rights, and what to mend.

    It logs in as the server's admin, or with its default role where it has no admin; all hosts are tried.
    """
    access = ask(registry, config, lambda opened: opened.service.server_access(name))
    if access.admin is None:
        fail(f"the registry has no role for server {name!r}", f"`pgtenant server set {name} --admin USER ...` sets one")
    tried = asyncio.run(try_server(access, database=database))
    used = tried.used
    if as_json:
        print_json({"server": name, "user": access.admin.user, "ok": used is not None, "checks": tried.checks,
                    "probes": tried.probes})  # fmt: skip
    else:
        tell(tried.checks)
    if used is None:
        worst = problems(tried.checks)[0]
        fail(f"server {name!r} cannot be used", worst.hint)
    if not as_json:
        print_record(
            [
                ("address", used.address),
                ("logged in as", access.admin.user),
                ("version", f"PostgreSQL {used.version}"),
                ("TLS", used.tls or "none"),
                ("login", _milliseconds(used.login_time)),
                ("latency", _milliseconds(used.latency)),
                ("connections", f"{used.connections} of {used.max_connections}"),
                ("may create databases", used.may_create_databases),
            ]
        )


def drain(
    name: NameArgument, registry: RegistryOption = None, config: ConfigOption = None, *, as_json: JsonOption = False
) -> None:
    """Let no new tenants onto a server, unless with --force; those it has stay and are served."""
    server = ask(registry, config, lambda opened: opened.service.drain_server(name), writing=True)
    _print(server, as_json=as_json, done=f"server {name!r} is draining; `pgtenant server undrain {name}` ends that")


def undrain(
    name: NameArgument, registry: RegistryOption = None, config: ConfigOption = None, *, as_json: JsonOption = False
) -> None:
    """End the draining of a server."""
    server = ask(registry, config, lambda opened: opened.service.drain_server(name, draining=False), writing=True)
    _print(server, as_json=as_json, done=f"server {name!r} takes new tenants")


def remove(
    name: NameArgument,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Forget a server that no tenant is on; the server itself is not touched."""
    confirm(f"Forget server {name!r} and the credentials kept for it?", yes=yes)
    server = ask(registry, config, lambda opened: opened.service.remove_server(name), writing=True)
    _print(server, as_json=as_json, done=f"removed server {name!r}")


async def _test(access: ServerAccess, done: str, *, force: bool) -> Tried:
    """Try a server before it is registered; raises Conflict where it cannot be used, unless that is forced."""
    tried = await try_server(access)
    worst = problems(tried.checks)
    if not force and worst and worst[0].status is CheckStatus.FAILED:
        hint = f"{worst[0].hint}; --force registers it all the same, --no-test without trying it"
        raise Conflict(f"server {access.server.name!r} was not {done}: {worst[0].text}", hint)
    return tried


def _print(server: Server, tried: Tried | None = None, *, as_json: bool, done: str) -> None:
    checks = () if tried is None else tried.checks
    if as_json:
        print_json(_members(server) if tried is None else {**_members(server), "checks": checks})
        return
    tell(checks)
    facts = [check.text for check in checks if check.name in FACTS and check.status is CheckStatus.OK]
    note(f"{done}: {', '.join(facts)}" if facts else done)


def _members(server: Server) -> dict[str, Any]:
    return {
        "name": server.name,
        "hosts": server.addresses,
        "tls": server.tls_mode,
        "tls_ca": server.tls_ca,
        "tls_cert": server.tls_cert,
        "tls_key": server.has_tls_key,
        "tls_negotiation": server.tls_negotiation,
        "tls_min_version": server.tls_min_version,
        "protocol": server.protocol,
        "max_connections": server.max_connections,
        "reserve": server.reserve,
        "admin": server.admin_user,
        "admin_password": server.has_admin_password,
        "role": server.role_user,
        "role_password": server.has_role_password,
        "auth_role": server.auth_user,
        "auth_password": server.has_auth_password,
        "auth_database": server.auth_database,
        "auth_query": server.auth_query,
        "channel_binding": server.channel_binding,
        "draining": server.draining,
    }


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f} ms"
