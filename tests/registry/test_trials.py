"""Trying out where tenants live: what is told when a tenant is made that cannot be served, or not alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from harness.databases import Database
from harness.fakeserver import FakeServer, FakeSession, Script, error_response
from harness.registries import RegistryUnderTest

from proxy.demo.facts import ServerFacts
from registry.contract import (
    Address,
    AuthQuery,
    ChannelBinding,
    Credentials,
    Secret,
    TenantState,
    TlsMode,
    VerifierSource,
)
from registry.domain.checks import Check, CheckStatus
from registry.domain.models import Server, ServerChange, Tenant, TenantChange
from registry.domain.servers import Placement
from registry.errors import Conflict
from registry.findings import tenant_checks
from registry.manifest import apply_manifest, parse_manifest
from registry.manifest.apply import Applied
from registry.operations.servers import ServerAccess
from registry.operations.tenant_access import TenantAccess
from registry.probe import LoginTrial, Probe, probe_server, try_logins
from registry.secrets import KeyRing, Vault
from registry.trial import Depth, Examiner, Strictness, problems, try_server, try_tenant

MakeDatabase = Callable[..., Database]


@pytest.fixture
def there(registry_under_test: RegistryUnderTest, pg18: ServerFacts) -> RegistryUnderTest:
    registry_under_test.add_server(pg18, "eu1", tls_mode=TlsMode.DISABLE)
    return registry_under_test


@pytest.fixture
def registry_under_test(tmp_path: Any) -> RegistryUnderTest:
    return RegistryUnderTest(tmp_path)


def told(
    registry: RegistryUnderTest, slug: str = "acme", *, depth: Depth = Depth.SERVERS, **change: Any
) -> list[Check]:
    """What is said of a tenant that is to be added."""

    async def look(service: Any) -> list[Check]:
        access = await service.preview_tenant("acme", TenantChange(**change), Placement.CHECKED, is_new=True)
        return problems(await try_tenant(access, depth))

    return registry.do(look)


def test_a_tenant_that_can_be_served_needs_no_words(
    there: RegistryUnderTest, pg18: ServerFacts, make_database: MakeDatabase
) -> None:
    assert told(there, **there.place(make_database(pg18))) == []
    assert told(there) == [], "it has no place yet"
    assert told(there, shared=True) == []


def test_a_database_that_does_not_exist_is_told_with_the_next_step(
    there: RegistryUnderTest, pg18: ServerFacts, make_database: MakeDatabase
) -> None:
    place = {**there.place(make_database(pg18)), "database_name": "nowhere"}
    (check,) = told(there, **place)
    assert (check.name, check.status) == ("database", CheckStatus.FAILED)
    assert check.text == "there is no database 'nowhere' on server 'eu1', on which tenant 'acme' is"
    assert "pgtenant tenant set acme --database NAME" in check.hint
    missing, role = sorted(told(there, server="eu1", database_name="nowhere"), key=lambda check: check.name)
    assert missing == check, "the admin has looked"
    assert role.name == "role"


def test_a_role_that_cannot_log_in_is_told_with_the_next_step(
    there: RegistryUnderTest, pg18: ServerFacts, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database(pg18)
    place = there.place(database)
    (wrong,) = told(there, **{**place, "role_password": Secret("wrong")})
    assert (wrong.name, wrong.status) == ("login", CheckStatus.FAILED)
    assert "password authentication failed" in wrong.text
    assert "wrong" not in wrong.text
    monkeypatch.setenv("PGPASSWORD", database.password)
    (lacking,) = told(there, **{**place, "role_password": None})
    assert "and no password is stored for it" in lacking.text
    assert "--role-password-file FILE` stores its password" in lacking.hint
    pg18.psql(f'alter database "{database.name}" owner to postgres')
    pg18.psql(f'revoke connect on database "{database.name}" from public, "{database.role}"')
    (barred,) = told(there, **place)
    assert "may not connect to database" in barred.text
    assert f'GRANT CONNECT ON DATABASE "{database.name}" TO "{database.role}"' in barred.hint
    pg18.psql(f'alter role "{database.role}" nologin')
    (mute,) = told(there, **place)
    assert "is not permitted to log in" in mute.text


def test_a_hint_that_is_copied_does_no_more_than_it_says() -> None:
    server = ServerAccess(Server(1, "eu1", (Address("db"),)), None, None, None, None)
    tenant = Tenant(1, "acme", TenantState.READY, server_id=1, server="eu1", database_name='a" TO x; DROP TABLE y; --"')
    access = TenantAccess(tenant, server, Credentials('app"', Secret("a secret")))
    (check,) = tenant_checks(access, LoginTrial("no", "42501"))
    assert check.hint == 'GRANT CONNECT ON DATABASE "a"" TO x; DROP TABLE y; --""" TO "app""", on the server'


def test_no_role_at_all_is_told_where_users_are_no_roles_themselves(there: RegistryUnderTest) -> None:
    place: dict[str, Any] = {"server": "eu1", "database_name": "postgres"}
    (check,) = told(there, **place)
    assert check.text == "tenant 'acme' has no role to log in with, and server 'eu1' no default role"
    there.set_server("eu1", auth_user="postgres")
    assert told(there, **place) == []
    (check,) = told(there, **place, verifiers=VerifierSource.REGISTRY)
    assert check.name == "role"


def test_the_database_of_another_tenant_is_told_also_under_another_name_of_the_server(
    there: RegistryUnderTest, pg18: ServerFacts, make_database: MakeDatabase
) -> None:
    database = make_database(pg18)
    there.add_tenant("globex", database)
    (check,) = told(there, **there.place(database))
    assert (check.name, check.status) == ("database", CheckStatus.WARNING)
    assert "as is 'globex': they reach each other's data" in check.text
    more = ServerChange(addresses=(Address("127.0.0.9", 1), Address(pg18.host, pg18.port)), tls_mode=TlsMode.DISABLE)
    there.do(lambda service: service.add_server("same", more))
    assert told(there, depth=Depth.REGISTRY, **{**there.place(database), "server": "same"}) == [
        replace(check, text=check.text.replace("eu1", "same"))
    ]
    there.do(lambda service: service.add_server("other", ServerChange(addresses=(Address("127.0.0.9", 1),))))
    assert told(there, depth=Depth.REGISTRY, **{**there.place(database), "server": "other"}) == []


def test_a_server_that_cannot_be_asked_is_no_verdict_on_the_tenant(there: RegistryUnderTest) -> None:
    there.set_server("eu1", addresses=(Address("127.0.0.1", 1),))
    (check,) = told(there, server="eu1", database_name="x", role_user="app")
    assert (check.name, check.status) == ("server", CheckStatus.WARNING)
    assert "could not be asked from here" in check.text


def test_a_change_that_moves_nothing_tries_nothing(
    there: RegistryUnderTest, pg18: ServerFacts, make_database: MakeDatabase
) -> None:
    there.add_tenant("acme", make_database(pg18))

    async def look(service: Any, change: TenantChange) -> Any:
        return await service.preview_tenant("acme", change, Placement.CHECKED, is_new=False)

    assert there.do(lambda service: look(service, TenantChange(aliases=("acme-inc",)))) is None
    assert there.do(lambda service: look(service, TenantChange(database_name="x"))).tenant.database_name == "x"


MANIFEST = """
[[server]]
name = "eu1"
host = "{host}:{port}"
tls = "disable"
admin = "{superuser}"
admin_password_env = "ADMIN"

[[server]]
name = "down"
host = "127.0.0.1:1"

[[tenant]]
slug = "good"
server = "eu1"
database = "{database}"
role = "{role}"
role_password_env = "ROLE"

[[tenant]]
slug = "lost"
server = "eu1"
database = "nowhere"
role = "{role}"
role_password_env = "ROLE"
"""
UNREACHABLE = "".join(
    f'[[tenant]]\nslug = "t{number}"\nserver = "down"\ndatabase = "d{number}"\nrole = "r"\n' for number in range(40)
)


def test_a_manifest_is_looked_into_before_it_is_applied(
    registry_under_test: RegistryUnderTest, pg18: ServerFacts, make_database: MakeDatabase
) -> None:
    registry, database = registry_under_test, make_database(pg18)
    text = MANIFEST.format(
        host=pg18.host, port=pg18.port, superuser=pg18.superuser, database=database.name, role=database.role
    )
    environment = {"ADMIN": pg18.password, "ROLE": database.password}

    def put(text: str, strictness: Strictness = Strictness.WARN, depth: Depth = Depth.SERVERS) -> Applied:
        manifest = parse_manifest(text, environment=environment)
        examiner = Examiner(Vault(KeyRing.parse(registry.keys)), depth, strictness)
        return registry.do(lambda service: apply_manifest(service, manifest, inspector=examiner))

    with pytest.raises(
        Conflict, match=r"nothing was applied: server 'down': 127\.0\.0\.1:1: connection refused"
    ) as caught:
        put(text, Strictness.REFUSE)
    assert "(and 1 more)" in caught.value.message
    assert registry.do(lambda service: service.tenants()) == []
    checks = put(text).checks
    assert [check.name for check in checks] == ["address", "database"]
    assert "there is no database 'nowhere' on server 'eu1', on which tenant 'lost' is" in checks[1].text
    assert put(text).checks == (), "nothing is new"
    (once,) = put(text + UNREACHABLE).checks
    assert "server 'down' could not be asked from here, so the database of 40 tenants was not tried" in once.text
    twice = f'[[tenant]]\nslug = "twin"\nserver = "eu1"\ndatabase = "{database.name}"\n'
    shared, role = put(text + UNREACHABLE + twice, depth=Depth.REGISTRY).checks
    assert "as is 'good': they reach each other's data" in shared.text
    assert role.name == "role"


def test_many_databases_of_one_role_are_tried_with_one_connection(
    pg18: ServerFacts, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, foreign = make_database(pg18), make_database(pg18, "u"), make_database(pg18, "v")
    pg18.psql(f"alter database {second.name} owner to {first.role}")
    pg18.psql(f"revoke connect on database {foreign.name} from public")
    server = Server(1, "pg18", (Address(pg18.host, pg18.port),))
    access = ServerAccess(server, None, None, None, None)
    connections: list[str] = []
    connect = asyncpg.connect

    def counted(**arguments: Any) -> Any:
        connections.append(arguments["database"])
        return connect(**arguments)

    monkeypatch.setattr(asyncpg, "connect", counted)
    names = ["nowhere", first.name, second.name, foreign.name, "nowhere2"]
    role = Credentials(first.role, Secret(first.password))
    trials = asyncio.run(try_logins(access, role, names))
    assert [trial.sqlstate for trial in trials] == ["3D000", None, None, "42501", "3D000"]
    assert [trial.problem for trial in trials[3:]] == [
        f'permission denied for database "{foreign.name}"',
        'database "nowhere2" does not exist',
    ]
    assert connections == names[:2]
    connections.clear()
    trials = asyncio.run(try_logins(access, Credentials(first.role, Secret("wrong")), names))
    assert [trial.sqlstate for trial in trials] == ["28P01"] * 5
    assert len(connections) == 1


async def said_to_a_server(access: Callable[[Address], ServerAccess]) -> tuple[bytes, list[Check], list[Check]]:
    """What somebody hears who stands where a server should be, and what is told of the server and of a tenant."""
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(1_000))
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as listening:
        there = access(Address("127.0.0.1", listening.sockets[0].getsockname()[1]))
        tenant = Tenant(1, "acme", TenantState.READY, server_id=1, server="eu1", database_name="acme")
        tried = await try_server(there)
        lodged = await try_tenant(TenantAccess(tenant, there, there.admin), Depth.SERVERS)
    return bytes(heard), problems(tried.checks), problems(lodged)


@pytest.mark.parametrize("mode", [TlsMode.PREFER, TlsMode.REQUIRE])
def test_nobody_logs_in_for_a_trial_where_nodes_would_bind_their_logins_and_the_trial_cannot(mode: TlsMode) -> None:
    role = Credentials("admin", Secret("a secret"))

    def access(address: Address, tls_mode: TlsMode = mode) -> ServerAccess:
        server = Server(1, "eu1", (address,), tls_mode=tls_mode, channel_binding=ChannelBinding.REQUIRE)
        return ServerAccess(server, role, role, AuthQuery(role, "postgres"), None)

    heard, (server,), (tenant,) = asyncio.run(said_to_a_server(access))
    assert heard == b""
    assert (server.name, server.status, tenant.status) == ("login", CheckStatus.WARNING, CheckStatus.WARNING)
    assert "demands channel binding" in server.text
    assert "demands channel binding" in tenant.text
    assert "--tls verify-full" in server.hint
    checked, *_ = asyncio.run(said_to_a_server(lambda address: access(address, TlsMode.VERIFY_FULL)))
    assert checked, "its certificate is checked before anything is said that it could use"


def test_an_admin_who_tries_a_database_runs_nothing_that_its_owner_has_put_there(
    pg18: ServerFacts, make_database: MakeDatabase
) -> None:
    database = make_database(pg18)
    forged = """
        create function public.current_setting(text) returns text language sql as $$ select 'forged ' || current_user $$
    """
    pg18.psql(forged, database.name)
    pg18.psql(f'alter database "{database.name}" set search_path = public, pg_catalog')
    server = Server(1, "eu1", (Address(pg18.host, pg18.port),), tls_mode=TlsMode.DISABLE)
    access = ServerAccess(server, Credentials(pg18.superuser, Secret(pg18.password)), None, None, None)
    (probe,) = asyncio.run(probe_server(access, database=database.name))
    assert (probe.problem, (probe.version or "")[:3]) == (None, "18.")


async def refused_by(script: Script) -> Probe:
    async with FakeServer(script) as fake:
        server = Server(1, "eu1", (Address("127.0.0.1", fake.port),), tls_mode=TlsMode.DISABLE)
        access = ServerAccess(server, Credentials("admin", Secret("a secret")), None, None, None)
        (probe,) = await probe_server(access)
    return probe


def test_what_a_server_says_is_shown_in_one_line_that_moves_no_cursor() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        said = "no\x1b]0;owned\x07\x9b2J\n\u202ehere" + "e" * 10_000
        await session.send(error_response("28000", said, severity="FATAL"))

    probe = asyncio.run(refused_by(script))
    problem = probe.problem or ""
    assert problem.startswith("no\\x1b]0;owned\\x07\\x9b2J \\u202ehere")
    assert problem.isprintable()
    assert len(problem) < 1_100
