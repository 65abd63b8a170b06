from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest

from registry import Registry, open_registry
from registry.contract import (
    Address,
    AuthMethod,
    AuthQuery,
    ChannelBinding,
    Credentials,
    Limits,
    PoolMode,
    Secret,
    TenantState,
    TlsMode,
    VerifierSource,
)
from registry.domain.models import LoginChange, ServerChange, TenantChange
from registry.errors import RegistryError
from registry.manifest import Applied, ManifestError, apply_manifest, export_manifest, load_manifest, parse_manifest
from registry.secrets import KeyRing

FULL = """
[[server]]
name = "eu1"
hosts = ["10.0.0.1", "10.0.0.2:6000"]
tls = "require"
max_connections = 200
reserve = 20
admin = "postgres"
admin_password_env = "ADMIN"
role = "app"
role_password_file = "app.secret"

[[server]]
name = "eu2"
host = "10.0.0.3"

[[tenant]]
slug = "acme"
aliases = ["acme-old"]
server = "eu1"
database = "acme_data"
pool_mode = "session"
reset = "always"
session_state = "reject"
limits = { pool_size = 4, queue_wait_timeout = 2.5 }

[[tenant]]
slug = "new"

[[login]]
user = "app"
tenant = "acme"
password_env = "APP"
methods = ["md5", "scram-sha-256"]

[[login]]
user = "support"
all_tenants = true
password_env = "SUPPORT"
role = "readonly"
"""
PROOFS = """
[[server]]
name = "eu2"
host = "10.0.0.3"
tls = "verify-full"
channel_binding = "require"
auth_role = "asker"
auth_password_env = "ASKER"
auth_database = "postgres"
auth_query = "SELECT * FROM pgtenant.login($1)"

[[tenant]]
slug = "asking"
server = "eu2"
database = "asking_data"
verifiers = "server"
networks = ["2001:db8::/32", "10.1.2.3"]

[[login]]
user = "batch"
tenant = "asking"
methods = ["cert"]
certificate = "dn:CN=batch,O=Acme"
"""
ENVIRONMENT = {"ADMIN": "admin secret", "APP": "app secret", "SUPPORT": "support secret"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.secret").write_text("role secret\n")
    return tmp_path


async def put(
    registry: Registry,
    text: str,
    directory: Path = Path(),
    environment: Mapping[str, str] = ENVIRONMENT,
    *,
    prune: bool = False,
    dry_run: bool = False,
) -> Applied:
    manifest = parse_manifest(text, name="m.toml", directory=directory, environment=environment)
    return await apply_manifest(registry.service, manifest, prune=prune, dry_run=dry_run)


def actions(applied: Applied) -> list[tuple[str, str, str]]:
    return [(one.action.value, one.kind, one.name) for one in applied.differences]


async def test_a_manifest_makes_what_it_says(registry: Registry, directory: Path) -> None:
    await put(registry, FULL, directory)
    service, reader = registry.service, registry.reader
    server = await service.server("eu1")
    assert server.addresses == (Address("10.0.0.1"), Address("10.0.0.2", 6000))
    assert (server.tls_mode, server.max_connections, server.reserve) == (TlsMode.REQUIRE, 200, 20)
    assert (await service.server_access("eu1")).admin == Credentials("postgres", Secret("admin secret"))
    route = (await reader.route_by_name("acme-old")).value
    assert route is not None
    assert route.role == Credentials("app", Secret("role secret"))
    assert (route.pool_mode, route.limits) == (PoolMode.SESSION, Limits(pool_size=4, queue_wait_timeout=2.5))
    assert (await service.tenant("new")).state is TenantState.PENDING
    login = (await reader.login("app", route.tenant_id)).value
    assert login is not None
    assert login.methods == {AuthMethod.MD5, AuthMethod.SCRAM}
    assert [spelling for spelling, _ in login.md5] == ["app", "app.acme", "app.acme-old"]
    assert [login.tenant for login in await service.logins(all_tenants=True)] == [None]


async def test_a_manifest_says_how_users_prove_who_they_are(registry: Registry, directory: Path) -> None:
    environment = {"ASKER": "asker secret"}
    await put(registry, PROOFS, directory, environment)
    route = (await registry.reader.route_by_name("asking")).value
    assert route is not None
    assert route.server is not None
    asker = Credentials("asker", Secret("asker secret"))
    assert route.server.auth == AuthQuery(asker, "postgres", "SELECT * FROM pgtenant.login($1)")
    assert route.server.channel_binding is ChannelBinding.REQUIRE
    assert route.verifiers is VerifierSource.SERVER
    assert route.networks == (ip_network("10.1.2.3/32"), ip_network("2001:db8::/32"))
    login = (await registry.reader.login("batch", route.tenant_id)).value
    assert login is not None
    assert login.methods == {AuthMethod.CERT}
    assert login.certificate == "dn:CN=batch,O=Acme"
    exported = await export_manifest(registry.service)
    assert "asker secret" not in exported
    for text in (PROOFS, exported):
        assert (await put(registry, text, directory, {**environment, "SERVER_EU2_AUTH_PASSWORD": "asker secret"})) == (
            Applied((), ())
        )


async def test_applying_twice_changes_nothing(registry: Registry, directory: Path) -> None:
    applied = await put(registry, FULL, directory)
    assert {action for action, _, _ in actions(applied)} == {"add"}
    version = await registry.reader.version()
    for prune in (False, True):
        assert (await put(registry, FULL, directory, prune=prune)).differences == ()
    assert await registry.reader.version() == version


async def test_a_dry_run_shows_the_same_and_changes_nothing(registry: Registry, directory: Path) -> None:
    version = await registry.reader.version()
    rehearsed = await put(registry, FULL, directory, dry_run=True)
    assert await registry.reader.version() == version
    assert await registry.service.servers() == []
    assert rehearsed.differences == (await put(registry, FULL, directory)).differences


async def test_a_difference_names_the_keys_and_hides_the_secrets(registry: Registry, directory: Path) -> None:
    await put(registry, FULL, directory)
    changed = FULL.replace("pool_size = 4", "pool_size = 5").replace('"acme_data"', '"acme_two"')
    environment = {name: value + " new" for name, value in ENVIRONMENT.items()}
    applied = await put(registry, changed, directory, environment)
    assert actions(applied) == [
        ("change", "server", "eu1"),
        ("change", "tenant", "acme"),
        ("change", "login", "app (acme)"),
        ("change", "login", "support (all tenants)"),
    ]
    fields = {one.key: (one.before, one.after) for difference in applied.differences for one in difference.fields}
    assert fields["pool_size"] == ("4", "5")
    assert fields["database"] == ("acme_data", "acme_two")
    assert {"admin_password", "password"} < fields.keys()
    assert "secret new" not in str(applied)


async def test_pruning_removes_what_the_file_does_not_name(registry: Registry, directory: Path) -> None:
    await put(registry, FULL, directory)
    kept = '[[server]]\nname = "eu2"\nhost = "10.0.0.3"\n[[tenant]]\nslug = "other"\naliases = ["acme-old"]\n'
    with pytest.raises(ManifestError, match="the name 'acme-old' is that of tenant 'acme'"):
        await put(registry, kept, directory)
    applied = await put(registry, kept, directory, prune=True)
    assert actions(applied) == [
        ("remove", "login", "support (all tenants)"),
        ("remove", "login", "app (acme)"),
        ("remove", "tenant", "acme"),
        ("remove", "tenant", "new"),
        ("add", "tenant", "other"),
        ("remove", "server", "eu1"),
    ]


async def test_an_alias_can_go_from_one_tenant_to_another(registry: Registry) -> None:
    tenants = '[[tenant]]\nslug = "a"\naliases = [{}]\n[[tenant]]\nslug = "b"\naliases = [{}]\n'
    await put(registry, tenants.format('"x", "y"', '"z"'))
    applied = await put(registry, tenants.format('"z"', '"x", "y"'))
    assert actions(applied) == [("change", "tenant", "a"), ("change", "tenant", "b")]
    assert (await registry.service.tenant("x")).slug == "b"


async def test_suspension_and_draining_are_left_alone_unless_named(registry: Registry, directory: Path) -> None:
    await put(registry, FULL, directory)
    await registry.service.suspend_tenant("acme")
    await registry.service.drain_server("eu1")
    assert (await put(registry, FULL, directory)).differences == ()
    named = FULL.replace('slug = "acme"', 'slug = "acme"\nsuspended = false').replace(
        'name = "eu1"', 'name = "eu1"\ndraining = false'
    )
    await put(registry, named, directory)
    assert (await registry.service.tenant("acme")).state is TenantState.READY
    assert not (await registry.service.server("eu1")).draining
    await put(registry, named.replace("= false", "= true"), directory)
    assert (await registry.service.tenant("acme")).state is TenantState.SUSPENDED
    assert (await registry.service.server("eu1")).draining


async def test_a_plain_password_is_taken_with_a_warning(registry: Registry) -> None:
    text = '[[login]]\nuser = "app"\nall_tenants = true\npassword = "plain secret"\n'
    applied = await put(registry, text)
    assert re.match(r"m\.toml:4: login 'app': the password stands in the file", applied.warnings[0])
    assert "plain secret" not in str(applied)


async def test_an_unset_variable_leaves_a_secret_and_makes_none(registry: Registry, directory: Path) -> None:
    with pytest.raises(ManifestError, match=r"m\.toml:9: server 'eu1': the environment variable ADMIN is not set"):
        await put(registry, FULL, directory, {})
    assert await registry.service.servers() == []
    rehearsed = await put(registry, FULL, directory, {}, dry_run=True)
    assert len(rehearsed.differences) == 6
    assert "m.toml:9: server 'eu1': the environment variable ADMIN is not set, which applying" in rehearsed.warnings[0]
    await put(registry, FULL, directory)
    applied = await put(registry, FULL, directory, {})
    assert applied.differences == ()
    assert len(applied.warnings) == 3
    assert "ADMIN is not set, so the present secret stays" in applied.warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[server]]\nname = ", r"m\.toml: not TOML: .*line 2"),
        ('[[servers]]\nname = "x"', "unknown table 'servers'"),
        ('[server]\nname = "x"', "server must be tables"),
        ('[[tenant]]\nserver = "x"', r"m\.toml:1: tenant: the key 'slug' is missing"),
        ('[[tenant]]\nslug = "acme"\npool_mod = "session"', r"m\.toml:3: tenant 'acme': unknown key 'pool_mod'"),
        ('[[tenant]]\nslug = "acme"\npool_mode = "x"', r"m\.toml:3: .*'x' is no pool_mode"),
        ("[[tenant]]\nslug = 7", r"m\.toml:2: .*slug must be text"),
        (
            '[[tenant]]\nslug = "acme"\n[tenant.limits]\npool_size = "7"',
            r"m\.toml:4: .*pool_size must be a whole number",
        ),
        ('[[tenant]]\nslug = "acme"\n[tenant.limits]\npool_size = true', r"m\.toml:4: "),
        ('[[tenant]]\nslug = "acme"\nlimits = { pool = 1 }', r"m\.toml:1: .*unknown key 'pool'"),
        ('[[tenant]]\nslug = "a"\n\n[[tenant]]\nslug = "a"', r"m\.toml:5: tenant 'a': stands in the file twice"),
        ('[[tenant]]\nslug = "A"', r"m\.toml:2: tenant 'A': 'A' is no slug"),
        ('[[tenant]]\nslug = "a"\nserver = "eu9"\ndatabase = "d"', r"m\.toml:1: tenant 'a': there is no server 'eu9'"),
        ('[[tenant]]\nslug = "a"\nlimits = { pool_size = 0 }', r"tenant 'a': pool_size is 0"),
        ('[[server]]\nname = "x"\nhost = "a:b"', r"m\.toml:3: server 'x': 'a:b' is no address"),
        ('[[server]]\nname = "x"\nhost = "a"\nport = 0', r"m\.toml:3: server 'x': 0 is no port"),
        ('[[server]]\nname = "x"\nhost = "a"\nrole_password_file = "\\u0000"', r"m\.toml:4: .* is no file's name"),
        (f'[[tenant]]\nslug = "a"\n[tenant.limits]\nquery_timeout = {"9" * 400}', r"m\.toml:4: .* is too large"),
        ('[[server]]\nname = "x"\nhost = "a"\nreserve = 500', r"m\.toml:4: server 'x': a reserve of 500"),
        ('[[server]]\nname = "x"\nhost = "a"\ntls_ca_file = "no.pem"', r"m\.toml:4: .*no\.pem cannot be read"),
        ('[[login]]\nuser = "u"\nall_tenants = true', r"m\.toml:1: login 'u': no password"),
        ('[[login]]\nuser = "u"\nall_tenants = true\nverifier = "x"', r"m\.toml:4: login 'u': this is no SCRAM"),
        ('[[login]]\nuser = "u"\npassword_env = "APP"', r"m\.toml:1: login 'u': a login is of one tenant or of all"),
        ('[[login]]\nuser = "u"\ntenant = "t"\npassword_env = "APP"', r"m\.toml:1: login 'u': there is no tenant 't'"),
        (
            '[[login]]\nuser = "u"\nall_tenants = true\npassword_env = "APP"\npassword_file = "x"',
            "more than one of password, password_env and password_file",
        ),
    ],
)
async def test_a_broken_manifest_names_the_place_and_changes_nothing(
    registry: Registry, text: str, message: str
) -> None:
    version = await registry.reader.version()
    with pytest.raises(ManifestError, match=message) as caught:
        await put(registry, f"{text}\n")
    assert caught.value.hint
    with pytest.raises(ManifestError):
        await put(registry, f'{text}\n[[tenant]]\nslug = "fine"\n')
    assert await registry.reader.version() == version
    assert await registry.service.tenants() == []


async def test_a_login_named_by_an_alias_is_refused(registry: Registry, directory: Path) -> None:
    await put(registry, FULL, directory)
    with pytest.raises(ManifestError, match="'acme-old' is an alias of tenant 'acme'"):
        await put(registry, '[[login]]\nuser = "x"\ntenant = "acme-old"\npassword_env = "APP"\n')


async def test_an_export_changes_nothing_where_it_comes_from(registry: Registry, directory: Path) -> None:
    await fill(registry, directory)
    version = await registry.reader.version()
    text = await export_manifest(registry.service)
    for prune in (False, True):
        assert (await put(registry, text, environment={}, prune=prune)).differences == ()
    assert await registry.reader.version() == version
    assert not any(secret in text for secret in (*ENVIRONMENT.values(), "role secret", "quoted"))


async def test_an_export_makes_the_same_registry_elsewhere(
    registry: Registry, directory: Path, keyring: KeyRing
) -> None:
    await fill(registry, directory)
    text = await export_manifest(registry.service)
    environment = {
        "SERVER_EU1_ADMIN_PASSWORD": "admin secret",
        "SERVER_EU1_ROLE_PASSWORD": "role secret",
        "LOGIN_ACME_APP_PASSWORD": "app secret",
        "TENANT_A_B_ROLE_PASSWORD": "quoted",
        "TENANT_A_B_ROLE_PASSWORD_2": "quoted too",
    }
    async with open_registry(f"sqlite:///{directory}/copy.db", keyring) as copy:
        await put(copy, text, environment=environment)
        assert await export_manifest(copy.service) == text
        assert (await copy.service.server_access("eu1")).admin == (await registry.service.server_access("eu1")).admin
        assert (await copy.reader.route_by_name("a_b")).value is not None


async def fill(registry: Registry, directory: Path) -> None:
    await put(registry, FULL, directory)
    service = registry.service
    await service.suspend_tenant("new")
    await service.drain_server("eu2")
    pem = '-----BEGIN CERTIFICATE-----\nMIIB"\\\n-----END CERTIFICATE-----\n'
    await service.add_server("ca", ServerChange(addresses=(Address("::1", 7000), Address("/run/pg")), tls_ca=pem))
    for slug, password in (("a-b", "quoted"), ("a_b", "quoted too")):
        await service.add_tenant(
            slug,
            TenantChange(server="ca", database_name='Odd "name"\\ é', role_user="it's", role_password=Secret(password)),
        )
    await service.add_login("o'hara", "a-b", LoginChange(password=Secret("x"), md5_spellings=()))


async def test_a_file_is_found_beside_the_manifest(registry: Registry, directory: Path) -> None:
    (directory / "m.toml").write_text(FULL)
    manifest = load_manifest(directory / "m.toml", ENVIRONMENT)
    assert len((await apply_manifest(registry.service, manifest)).differences) == 6
    for wrong in (directory / "none.toml", directory):
        with pytest.raises(RegistryError, match="cannot be read"):
            load_manifest(wrong)


DRAINED = """
[[server]]
name = "eu1"
host = "10.0.0.1"
{drained}

[[tenant]]
slug = "acme"
server = "eu1"
database = "acme_data"
"""


async def test_a_drained_server_takes_no_tenants_that_it_has_not_but_an_export_is_applied(registry: Registry) -> None:
    await put(registry, DRAINED.format(drained="draining = true"))
    more = DRAINED.format(drained="") + '[[tenant]]\nslug = "globex"\nserver = "eu1"\ndatabase = "globex"\n'
    with pytest.raises(ManifestError, match=r"m\.toml:11: tenant 'globex': server 'eu1' is draining"):
        await put(registry, more)
    assert [tenant.slug for tenant in await registry.service.tenants()] == ["acme"]
    await registry.service.add_tenant("globex")
    with pytest.raises(ManifestError, match="is draining"):
        await put(registry, more)
    await put(registry, more.replace('"10.0.0.1"', '"10.0.0.1"\ndraining = false'))
    assert [tenant.server for tenant in await registry.service.tenants()] == ["eu1", "eu1"]


async def test_a_tenant_says_in_the_file_that_it_is_served_from_the_shared_database(registry: Registry) -> None:
    await put(registry, '[[tenant]]\nslug = "acme"\nshared = true\n[[tenant]]\nslug = "new"\n')
    found = {tenant.slug: (tenant.state, tenant.shared) for tenant in await registry.service.tenants()}
    assert found == {"acme": (TenantState.READY, True), "new": (TenantState.PENDING, False)}
    assert (await put(registry, await export_manifest(registry.service))).differences == ()
    await put(registry, '[[tenant]]\nslug = "acme"\nshared = true\nsuspended = true\n')
    await put(registry, '[[tenant]]\nslug = "acme"\nshared = true\nsuspended = false\n')
    assert (await registry.service.tenant("acme")).state is TenantState.READY
    await put(registry, '[[tenant]]\nslug = "acme"\n')
    assert (await registry.service.tenant("acme")).state is TenantState.PENDING
    server = '[[server]]\nname = "eu1"\nhost = "10.0.0.1"\n'
    with pytest.raises(ManifestError, match=r"m\.toml:8: .*from its own database and from the shared one"):
        await put(registry, server + '[[tenant]]\nslug = "acme"\nserver = "eu1"\ndatabase = "a"\nshared = true\n')


async def test_a_limit_that_limits_nothing_is_refused(registry: Registry) -> None:
    with pytest.raises(ManifestError, match=r"m\.toml:3: tenant 'acme': weight has no effect yet") as caught:
        await put(registry, '[[tenant]]\nslug = "acme"\nlimits = { weight = 3 }\n')
    assert "take it out" in caught.value.hint
