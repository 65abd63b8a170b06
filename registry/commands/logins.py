"""`pgtenant login`: who may connect as whom."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from registry.commands.options import (
    ConfigOption,
    JsonOption,
    PasswordEnv,
    PasswordFile,
    PasswordStdin,
    RegistryOption,
    choice,
    given,
    read_secret,
)
from registry.commands.output import USAGE, ask, explained, fail, note, print_json, print_table
from registry.contract import AuthMethod, ReplicationAccess, Secret
from registry.domain.models import KEEP, LoginChange, LoginRecord
from registry.service import new_password

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="User name, without a tenant's suffix.")]
TenantOption = Annotated[
    str | None, typer.Option("--tenant", "-t", metavar="TENANT", help="Tenant that it may connect as.")
]
AllOption = Annotated[bool, typer.Option("--all-tenants", help="It may connect as every tenant (support staff).")]

ReplicationOption = Annotated[
    ReplicationAccess | None,
    choice(
        "--replication",
        ReplicationAccess,
        "What it may replicate: its tenant's database, or, for all tenants only, a server. (default: none)",
    ),
]
MethodOption = Annotated[
    list[AuthMethod] | None,
    choice("--method", AuthMethod, "How it may prove itself; may be given several times. (default: scram-sha-256)"),
]
CertificateOption = Annotated[
    str | None,
    typer.Option(
        "--certificate",
        metavar="NAME",
        help="For the method cert: common name, or dn: and subject. (default: USER.TENANT, or USER for all tenants)",
    ),
]

COLUMNS: Final = ("user", "tenant", "methods", "role", "replication")


def register(app: typer.Typer) -> None:
    """Mount the group."""
    group = typer.Typer(no_args_is_help=True, help="The logins: user names that applications connect with.")
    group.command("add")(add)
    group.command("list")(show_all)
    group.command("set")(change)
    group.command("rotate")(rotate)
    group.command("remove")(remove)
    app.add_typer(group, name="login")


def add(
    user: UserArgument,
    tenant: TenantOption = None,
    verifier_file: Annotated[
        str | None,
        typer.Option(
            "--verifier-file", metavar="FILE", help="SCRAM verifier instead of a password, as in pg_authid.rolpassword."
        ),
    ] = None,
    method: MethodOption = None,
    certificate: CertificateOption = None,
    md5_spelling: Annotated[
        list[str] | None,
        typer.Option(
            "--md5-spelling",
            metavar="NAME",
            help="User name as clients with md5 spell it. (default: USER, and USER.TENANT for each of its names)",
        ),
    ] = None,
    role: Annotated[
        str | None, typer.Option("--role", metavar="USER", help="Backend role in place of the tenant's.")
    ] = None,
    role_password_file: Annotated[
        str | None, typer.Option("--role-password-file", metavar="FILE", help="Its password; `-` reads or asks for it.")
    ] = None,
    role_password_env: Annotated[
        str | None, typer.Option("--role-password-env", metavar="NAME", help="Its password, in this variable.")
    ] = None,
    replication: ReplicationOption = None,
    password_file: PasswordFile = None,
    password_env: PasswordEnv = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    password_stdin: PasswordStdin = False,
    all_tenants: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add a login.  Without a password one is made and printed, this once: the registry keeps only a verifier.

    pgtenant login add app --tenant acme
    """
    _check_owner(tenant, all_tenants=all_tenants)
    with explained():
        password = read_secret("password", file=password_file, variable=password_env, stdin=password_stdin)
        verifier = read_secret("verifier", file=verifier_file, variable=None)
        by_password = set(method or ()) != {AuthMethod.CERT}
        made = new_password() if by_password and password is None and verifier is None else None
        wanted = LoginChange(
            password=given(password or made),
            verifier=KEEP if verifier is None else verifier.reveal().strip(),
            methods=frozenset(method) if method else KEEP,
            certificate=given(certificate),
            md5_spellings=tuple(md5_spelling) if md5_spelling else KEEP,
            role_user=given(role),
            role_password=given(read_secret("role password", file=role_password_file, variable=role_password_env)),
            replication=given(replication),
        )
    login = ask(registry, config, lambda opened: opened.service.add_login(user, tenant, wanted), writing=True)
    _print(login, made, as_json=as_json, done=f"added login {user!r} for {_owner(tenant)}")


def show_all(
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", metavar="TENANT", help="Only those of this tenant.")
    ] = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="Only those for all tenants.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the logins."""
    found = ask(registry, config, lambda opened: opened.service.logins(tenant=tenant, all_tenants=all_tenants))
    if as_json:
        print_json([_members(one) for one in found])
        return
    rows = [(one.user, one.tenant or "(all tenants)", one.methods, one.role_user, one.replication) for one in found]
    print_table(COLUMNS, rows, empty="There are no such logins.  `pgtenant login add USER --tenant SLUG` adds one.")


def change(
    user: UserArgument,
    tenant: TenantOption = None,
    method: MethodOption = None,
    certificate: CertificateOption = None,
    replication: ReplicationOption = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    no_certificate: Annotated[
        bool,
        typer.Option(
            "--no-certificate", help="Its certificate has USER.TENANT as common name, or USER for all tenants."
        ),
    ] = False,
    all_tenants: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Change how a login proves itself and what it may do; what is left out stays.  In force for its next connections.

    pgtenant login set streamer --tenant acme --replication database
    """
    _check_owner(tenant, all_tenants=all_tenants)
    with explained():
        wanted = LoginChange(
            methods=frozenset(method) if method else KEEP,
            certificate=given(certificate, cleared=no_certificate),
            replication=given(replication),
        )
    login = ask(registry, config, lambda opened: opened.service.set_login(user, tenant, wanted), writing=True)
    _print(login, None, as_json=as_json, done=f"changed login {user!r} for {_owner(tenant)}")


def rotate(
    user: UserArgument,
    tenant: TenantOption = None,
    password_file: PasswordFile = None,
    password_env: PasswordEnv = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    password_stdin: PasswordStdin = False,
    all_tenants: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give a login another password.  Without one given, one is made and printed, this once.

    In force in under a second; clients that are connected stay.
    """
    _check_owner(tenant, all_tenants=all_tenants)
    with explained():
        given_password = read_secret("password", file=password_file, variable=password_env, stdin=password_stdin)
    chosen = ask(
        registry, config, lambda opened: opened.service.rotate_login(user, tenant, given_password), writing=True
    )
    login = ask(registry, config, lambda opened: opened.service.login(user, tenant))
    made = chosen if given_password is None else None
    _print(login, made, as_json=as_json, done=f"login {user!r} for {_owner(tenant)} has a new password")


def remove(
    user: UserArgument,
    tenant: TenantOption = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    all_tenants: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a login; clients that are connected stay, new ones are refused."""
    _check_owner(tenant, all_tenants=all_tenants)
    login = ask(registry, config, lambda opened: opened.service.remove_login(user, tenant), writing=True)
    _print(login, None, as_json=as_json, done=f"removed login {user!r} for {_owner(tenant)}")


def _check_owner(tenant: str | None, *, all_tenants: bool) -> None:
    if (tenant is None) != all_tenants:
        fail("a login is of one tenant or of all", "add --tenant SLUG, or --all-tenants", status=USAGE)


def _owner(tenant: str | None) -> str:
    return "all tenants" if tenant is None else f"tenant {tenant!r}"


def _print(login: LoginRecord, made: Secret | None, *, as_json: bool, done: str) -> None:
    if as_json:
        print_json(_members(login) if made is None else {**_members(login), "password": made.reveal()})
        return
    note(done)
    if made is not None:
        note("its password, which is not shown again:")
        typer.echo(made.reveal())


def _members(login: LoginRecord) -> dict[str, Any]:
    return {
        "user": login.user,
        "tenant": login.tenant,
        "all_tenants": login.tenant is None,
        "methods": login.methods,
        "certificate": login.certificate,
        "md5_spellings": login.md5_spellings,
        "role": login.role_user,
        "role_password": login.has_role_password,
        "replication": login.replication,
    }
