"""Roles of the tenant's own server log in through the proxy, which knows no password of theirs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.certificates import Certificates
from harness.databases import Database
from harness.proxy import ProxyProcess
from harness.registries import RegistryUnderTest
from harness.shared import ca_file
from harness.waiting import wait_until
from harness.world import World

from proxy.auth import build_verifier
from proxy.demo.facts import ServerFacts
from registry.contract import Address, ChannelBinding, Limits, PoolMode, Secret, TlsMode, VerifierSource
from registry.domain.models import LoginChange, ServerChange, TenantChange

TTL = 1.0
PROXY = {
    "auth": {"verifier_ttl": TTL, "unknown_ttl": 0.5, "idle_timeout": 2.0, "failure_delay": 0.0},
    "pool": {"retry_first": 0.05},
}
FUNCTION = """
create schema pgtenant;
revoke all on schema pgtenant from public;
create function pgtenant.login(name text, out verifier text, out seconds double precision)
  returns setof record language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select rolpassword, case when isfinite(rolvaliduntil) then extract(epoch from rolvaliduntil - clock_timestamp()) end
  from pg_authid
  where rolname = $1 and rolcanlogin and not rolsuper and (rolvaliduntil is null or rolvaliduntil > clock_timestamp())
$$;
revoke all on function pgtenant.login(text) from public;
grant usage on schema pgtenant to {asker};
grant execute on function pgtenant.login(text) to {asker};
"""


@dataclass
class Place:
    """A tenant whose users are roles of its server, and the way to it."""

    world: World
    server: str
    slug: str
    database: Database
    roles: list[str] = field(default_factory=list)

    def role(self, options: str = "login", *, may_connect: bool = True) -> tuple[str, str]:
        """A new role on the server, and its password."""
        name, password = f"u_{secrets.token_hex(4)}", secrets.token_urlsafe(9)
        self.sql(f"create role {name} password '{password}' {options}")
        if may_connect:
            self.sql(f"grant connect on database {self.database.name} to {name}")
        self.roles.append(name)
        return name, password

    def sql(self, text: str) -> str:
        return self.database.psql(text)

    def url(self, user: str, password: str, **parameters: str) -> str:
        return self.world.proxy.url(self.slug, user, password, **parameters)

    def whoami(self, user: str, password: str, **parameters: str) -> tuple[str, str]:
        """Log in anew; the role and the database at the other end."""
        with psycopg.connect(self.url(user, password, **parameters)) as connection:
            row = connection.execute("select current_user::text, current_database()::text").fetchone()
        assert row is not None
        return row

    def refusal(self, user: str, password: str, **parameters: str) -> str:
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(self.url(user, password, **parameters)).close()
        return str(caught.value)

    def asked(self) -> list[str]:
        """The connections over which the proxy asks this server."""
        query = "select datname from pg_stat_activity where application_name = 'pgtenant verifiers'"
        return self.sql(query).split()

    def backends_of(self, role: str) -> int:
        return int(self.sql(f"select count(*) from pg_stat_activity where usename = '{role}'"))


def enter(world: World, facts: ServerFacts, slug: str, **server: Any) -> Place:
    database = world.database(facts, slug)
    name = f"s-{slug}"
    change: dict[str, Any] = {
        "addresses": (Address(facts.host, facts.port),),
        "admin_user": facts.superuser,
        "admin_password": Secret(facts.password),
        "auth_user": facts.superuser,
        **server,
    }
    world.registry.do(lambda service: service.add_server(name, ServerChange(**change)))
    asked = TenantChange(server=name, database_name=database.name, verifiers=VerifierSource.SERVER)
    world.registry.do(lambda service: service.add_tenant(slug, asked))
    database.psql(f"revoke connect on database {database.name} from public")
    return Place(world, name, slug, database)


@pytest.fixture(scope="module")
def place(world: World, pg17: ServerFacts) -> Iterator[Place]:
    made = enter(world, pg17, "passing")
    yield made
    for role in made.roles:
        made.sql(f"revoke connect on database {made.database.name} from {role}; drop role {role}")


def test_a_role_of_the_server_logs_in_as_itself(place: Place) -> None:
    user, password = place.role()
    assert place.whoami(user, password) == (user, place.database.name)
    assert place.refusal(user, "guess").startswith("connection failed")


def test_its_backends_are_shared_and_pinned_to_nobody_else(place: Place) -> None:
    (one, first), (two, second) = place.role(), place.role()
    for _ in range(3):
        assert place.whoami(one, first)[0] == one
        assert place.whoami(two, second)[0] == two
    assert (place.backends_of(one), place.backends_of(two)) == (1, 1)


def test_strangers_hear_the_same_whether_there_is_such_a_role(place: Place) -> None:
    user, password = place.role()
    nologin, its_password = place.role("nologin")
    for name, guess in ((user, "guess"), ("nobody_at_all", password), (nologin, its_password)):
        assert f'password authentication failed for user "{name}"' in place.refusal(name, guess)


def test_who_has_expired_or_may_not_log_in_is_not_let_in(place: Place) -> None:
    user, password = place.role("login valid until '2001-01-01'")
    assert f'password authentication failed for user "{user}"' in place.refusal(user, password)
    later, its_password = place.role("login valid until 'infinity'")
    assert place.whoami(later, its_password)[0] == later


def test_a_role_that_expires_is_let_in_until_then(place: Place) -> None:
    user, password = place.role()
    until = place.sql("select clock_timestamp() + interval '0.7 s'").strip()
    place.sql(f"alter role {user} valid until '{until}'")
    assert place.whoami(user, password)[0] == user
    time.sleep(0.7)
    assert "password authentication failed" in place.refusal(user, password), "before the verifier's own time is over"


def test_superusers_are_left_out(place: Place, pg17: ServerFacts) -> None:
    assert "password authentication failed" in place.refusal(pg17.superuser, pg17.password)


def test_the_right_to_connect_is_the_servers_to_give(place: Place) -> None:
    user, password = place.role(may_connect=False)
    with psycopg.connect(place.database.server.url("postgres", user=user, password=password)) as direct:
        assert direct.execute("select 1").fetchone() == (1,)
    assert "SQLSTATE 42501" in place.refusal(user, password)


def test_after_a_rotation_the_new_password_is_the_only_one(place: Place) -> None:
    user, old = place.role()
    new = "another " + old
    with psycopg.connect(place.url(user, old), autocommit=True) as connected:
        connected.execute("select 1")
        place.sql(f"alter role {user} password '{new}'")
        deadline = time.monotonic() + TTL + 5
        while "password authentication failed" not in _outcome(place, user, old):
            assert time.monotonic() < deadline, "the old password is still let in"
            time.sleep(0.1)
        assert place.whoami(user, new)[0] == user
        wait_until(lambda: place.backends_of(user) == 1, what="the backends of the old key gone")
        assert connected.execute("select current_user::text").fetchone() == (user,), "with the key of the new password"


def test_a_new_password_is_let_in_with_the_second_attempt_at_the_latest(place: Place) -> None:
    user, old = place.role()
    assert place.whoami(user, old)[0] == user
    place.sql(f"alter role {user} password 'new'")
    assert "password authentication failed" in place.refusal(user, "new"), "answered from memory"
    assert place.whoami(user, "new")[0] == user
    assert "password authentication failed" in place.refusal(user, old)


@pytest.mark.parametrize("how", ["as text", "as psql does", "prepared", "in a transaction"])
@pytest.mark.parametrize("mode", [PoolMode.TRANSACTION, PoolMode.SESSION])
def test_a_new_password_that_was_set_through_the_node_is_let_in_at_once(
    world: World, place: Place, how: str, mode: PoolMode
) -> None:
    user, old = place.role()
    world.registry.set_tenant(place.slug, pool_mode=mode)
    verifier = build_verifier("new", bytes(range(16))).text()
    try:
        with psycopg.connect(place.url(user, old), autocommit=True) as connected:
            assert place.whoami(user, old)[0] == user
            change = f"alter user {user} password '{verifier if 'psql' in how else 'new'}'"
            with connected.transaction() if "transaction" in how else nullcontext():
                connected.execute(change, prepare=how == "prepared")
                if "transaction" in how:
                    assert place.whoami(user, old)[0] == user, "it may yet be rolled back"
            assert place.whoami(user, "new")[0] == user
            assert "password authentication failed" in place.refusal(user, old)
    finally:
        world.registry.set_tenant(place.slug, pool_mode=PoolMode.TRANSACTION)


def test_a_role_that_is_dropped_through_the_node_is_not_let_in_any_more(place: Place) -> None:
    creator, password = place.role("login createrole")
    with psycopg.connect(place.url(creator, password), autocommit=True) as connected:
        connected.execute("create role passing_by login password 'here'")
        place.sql(f"grant connect on database {place.database.name} to passing_by")
        assert place.whoami("passing_by", "here")[0] == "passing_by"
        place.sql(f"revoke connect on database {place.database.name} from passing_by")
        connected.execute("drop role passing_by")
        assert "password authentication failed" in place.refusal("passing_by", "here")


def test_who_is_connected_with_an_old_password_is_told_when_no_backend_is_left(place: Place) -> None:
    user, old = place.role()
    with psycopg.connect(place.url(user, old), autocommit=True) as connected:
        connected.execute("select 1")
        place.sql(f"alter role {user} password 'other'")
        place.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{user}'")
        wait_until(lambda: place.backends_of(user) == 0, what="its backend gone")
        with pytest.raises(psycopg.OperationalError, match="has changed") as caught:
            connected.execute("select 1")
        assert caught.value.sqlstate == "57P01"
        assert connected.closed


def test_backends_are_opened_in_advance_only_while_the_key_is_good(world: World, pg17: ServerFacts) -> None:
    place = enter(world, pg17, "eager")
    world.registry.set_tenant("eager", limits=Limits(min_pool_size=2))
    user, password = place.role()
    with psycopg.connect(place.url(user, password), autocommit=True):
        wait_until(lambda: place.backends_of(user) == 2, what="two backends")
        before = world.proxy.logs().count("backend could not be opened")
        place.sql(f"alter role {user} password 'other'")
        place.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{user}'")
        wait_until(lambda: "has another password" in world.proxy.logs(), what="the key refused")
        time.sleep(0.5)
        assert world.proxy.logs().count("backend could not be opened") <= before + 2, "at most the two that were wanted"
    assert place.whoami(user, "other")[0] == user
    wait_until(lambda: place.backends_of(user) == 2, what="two backends, with the new key")
    place.sql(f"drop owned by {user}; alter role {user} nologin")


def test_a_suspended_tenant_leaves_no_keys_behind(world: World, pg17: ServerFacts) -> None:
    place = enter(world, pg17, "paused")
    world.registry.set_tenant("paused", limits=Limits(min_pool_size=1))
    (user, password), (other, its_password) = place.role(), place.role()
    assert place.whoami(user, password)[0] == user
    world.registry.do(lambda service: service.suspend_tenant("paused"))
    wait_until(lambda: place.backends_of(user) == 0, what="its backends closed")
    world.registry.do(lambda service: service.resume_tenant("paused"))
    wait_until(lambda: other in _outcome(place, other, its_password), what="the tenant served again")
    wait_until(lambda: f'nobody has proved the password of role \\"{user}\\"' in world.proxy.logs(), what="no key")
    assert place.backends_of(user) == 0
    assert place.whoami(user, password)[0] == user
    place.sql(f"drop owned by {user}, {other}; alter role {user} nologin; alter role {other} nologin")


def test_what_the_client_sets_at_startup_never_reaches_the_question(place: Place) -> None:
    user, password = place.role()
    trap = "create schema {0}; create table {0}.pg_authid as select 'x'::text as rolname, null::text as rolpassword"
    place.sql(trap.format("trap"))
    options = "-c search_path=trap -c role=postgres"
    assert "password authentication failed" in place.refusal("x", "x", options=options)
    assert place.whoami(user, password, options="-c search_path=trap")[0] == user


def test_names_are_parameters_and_not_cut(place: Place) -> None:
    long_name = "u" * 63
    place.sql(f"create role {long_name} login password 'p'")
    place.roles.append(long_name)
    assert "password authentication failed" in place.refusal(long_name + "u", "p")
    assert "password authentication failed" in place.refusal("x' or '1'='1", "p")


def test_a_name_may_have_anything_in_it(place: Place) -> None:
    for number, name in enumerate(('o\'brien "$1" \\', "Ünï-cødé $$ 李", "a;drop role x--", "%s {0} %(x)s")):
        quoted = name.replace('"', '""')
        place.sql(f"""create role "{quoted}" login password 'p{number}'""")
        place.sql(f'grant connect on database {place.database.name} to "{quoted}"')
        place.roles.append(f'"{quoted}"')
        assert place.whoami(name, f"p{number}")[0] == name
        assert "password authentication failed" in place.refusal(name, "guess")


def test_one_connection_asks_for_all_and_goes_when_nobody_asks(place: Place) -> None:
    wait_until(lambda: place.asked() == [], what="nobody asking")
    users = [place.role() for _ in range(4)]
    for user, password in users:
        place.whoami(user, password)
    assert place.asked() == ["postgres"]
    wait_until(lambda: place.asked() == [], what="the unused connection closed")
    user, password = place.role()
    assert place.whoami(user, password)[0] == user


def test_a_connection_that_the_server_ends_is_replaced(place: Place) -> None:
    user, password = place.role()
    place.whoami(user, password)
    place.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgtenant verifiers'")
    other, its_password = place.role()
    assert place.whoami(other, its_password)[0] == other


def test_a_login_of_the_registry_goes_before_a_role_of_the_same_name(place: Place) -> None:
    user, password = place.role()
    change = LoginChange(
        password=Secret("of the registry"),
        role_user=place.database.role,
        role_password=Secret(place.database.password),
    )
    place.world.registry.do(lambda service: service.add_login(user, place.slug, change))
    wait_until(lambda: "failed" in _outcome(place, user, password), what="the change arrived")
    assert place.whoami(user, "of the registry") == (place.database.role, place.database.name)


def test_a_stored_password_of_the_same_role_is_used(world: World, pg17: ServerFacts) -> None:
    database = world.database(pg17, "stored")
    place = enter(world, pg17, "storing")
    role = Secret(database.password)
    place.sql(f"grant connect on database {place.database.name} to {database.role}")
    change = TenantChange(role_user=database.role, role_password=role)
    world.registry.do(lambda service: service.set_tenant("storing", change))
    wait_until(lambda: database.role in _outcome(place, database.role, database.password), what="the change arrived")
    assert place.whoami(database.role, database.password) == (database.role, place.database.name)
    pools = world.proxy.metric("pgtenant_backends", tenant="storing")
    assert pools == 1


def test_a_role_with_least_rights_asks_by_a_function(world: World, pg18: ServerFacts) -> None:
    database = world.database(pg18, "asking")
    asker, password = database.role, database.password
    database.psql(FUNCTION.format(asker=asker))
    place = enter(
        world,
        pg18,
        "leastrights",
        auth_user=asker,
        auth_password=Secret(password),
        auth_database=database.name,
        auth_query="SELECT * FROM pgtenant.login($1)",
    )
    user, its_password = place.role()
    assert place.whoami(user, its_password)[0] == user
    expired, its_password = place.role("login valid until '2001-01-01'")
    assert "password authentication failed" in place.refusal(expired, its_password)
    place.sql(f"drop owned by {user}; drop role {user}; drop owned by {expired}; drop role {expired}")


def test_a_question_that_the_server_refuses_is_for_the_operator(world: World, pg17: ServerFacts) -> None:
    database = world.database(pg17, "denied")
    auth: dict[str, Any] = {
        "auth_user": database.role,
        "auth_password": Secret(database.password),
        "auth_database": database.name,
    }
    place = enter(world, pg17, "denied", **auth)
    said = place.refusal("somebody", "x")
    assert "the database server that knows this user cannot be asked now" in said
    assert "pg_authid" not in said
    assert "permission denied for table pg_authid" in world.proxy.logs()


def test_no_key_and_no_verifier_is_on_disk_or_in_the_log(
    registry: RegistryUnderTest, pg17: ServerFacts, tmp_path: Path, start_proxy: Callable[..., ProxyProcess]
) -> None:
    registry.do(lambda service: service.tenants())
    snapshot = tmp_path / "routes.snapshot"
    with World(registry, start_proxy(routing={"snapshot": str(snapshot)})) as world:
        place = enter(world, pg17, "kept")
        user, password = place.role()
        assert place.whoami(user, password)[0] == user
        verifier = place.sql(f"select rolpassword from pg_authid where rolname = '{user}'").strip()
        world.proxy.stop()
        log, kept = world.proxy.logs(), snapshot.read_bytes()
        assert snapshot.stat().st_mode & 0o777 == 0o600
        for secret in (verifier, verifier.rpartition(":")[2], password):
            assert secret not in log
            assert secret.encode() not in kept
        assert pg17.password.encode() not in kept, "sealed"
        place.sql(f"drop owned by {user}; drop role {user}")


def test_bound_to_the_channel_on_both_sides(
    registry: RegistryUnderTest, pg17: ServerFacts, tmp_path: Path, start_proxy: Callable[..., ProxyProcess]
) -> None:
    registry.do(lambda service: service.tenants())
    certificates = Certificates(tmp_path)
    with World(registry, start_proxy(listen=certificates.listen("require"))) as world:
        place = enter(
            world,
            pg17,
            "bound",
            tls_mode=TlsMode.VERIFY_CA,
            tls_ca=ca_file(pg17).read_text(),
            channel_binding=ChannelBinding.REQUIRE,
        )
        user, password = place.role()
        parameters: dict[str, Any] = {**certificates.verify_full(), "channel_binding": "require", "host": "localhost"}
        with psycopg.connect(place.url(user, password), **parameters) as connection:
            query = "select current_user::text, ssl from pg_stat_ssl where pid = pg_backend_pid()"
            assert connection.execute(query).fetchone() == (user, True)
        place.sql(f"drop owned by {user}; drop role {user}")


def _outcome(place: Place, user: str, password: str) -> str:
    """Who one is after a login, or why there is none."""
    try:
        return " ".join(place.whoami(user, password))
    except psycopg.OperationalError as error:
        return str(error)
