"""What somebody without a password can find out: nothing, byte for byte."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

import psycopg
import pytest
from harness.proxy import ProxyProcess
from harness.rawclient import Message, RawClient, ServerSaid
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.auth import build_verifier
from proxy.demo.facts import ServerFacts
from registry.contract import AuthMethod, Secret
from registry.domain.models import LoginChange, TenantChange

PROXY = {
    "auth": {"failure_delay": 0.0},
    "routing": {"database_patterns": ["db_{tenant}"]},
    "console": {"admins": {"app": build_verifier("right", bytes(range(16))).text()}},
}


class Recorder(RawClient):
    """A client that keeps what it has read."""

    def __init__(self, proxy: ProxyProcess) -> None:
        super().__init__(proxy.port, proxy.host)
        self.seen: list[Message] = []

    def read(self) -> Message:
        self.seen.append(super().read())
        return self.seen[-1]


@dataclass(frozen=True)
class Conversation:
    """A refused login, with what is random or derived from the names taken out of `messages`."""

    messages: tuple[tuple[str, bytes], ...]
    salt: bytes


def converse(proxy: ProxyProcess, user: str, database: str | None, **parameters: str) -> Conversation:
    with Recorder(proxy) as client:
        with pytest.raises(ServerSaid):
            client.login(user, "guess", database, **parameters)  # type: ignore[arg-type]
        client.read_to_end()
        seen = [(message.kind, message.body) for message in client.seen]
    (challenge,) = [body for kind, body in seen if kind == "R" and body[:4] == b"\0\0\0\x0b"]
    found = re.fullmatch(rb"r=(.+),s=(.+),(i=\d+)", challenge[4:])
    assert found is not None
    salt = base64.b64decode(found[2], validate=True)
    plain = b"%d characters of nonce, %d bytes of salt, %s" % (len(found[1]), len(salt), found[3])
    return Conversation(tuple((kind, plain if body == challenge else body) for kind, body in seen), salt)


@pytest.fixture(scope="module")
def tenant(world: World, pg18: ServerFacts) -> TenantUnderTest:
    return world.tenant(pg18, aliases=("also",))


@pytest.fixture(scope="module")
def suspended(world: World, pg18: ServerFacts) -> TenantUnderTest:
    made = world.tenant(pg18)
    world.registry.do(lambda service: service.suspend_tenant(made.slug))
    return made


@pytest.fixture(scope="module")
def pending(world: World) -> str:
    world.registry.do(lambda service: service.add_tenant("pending", TenantChange()))
    return "pending"


def test_every_refused_login_is_the_same_conversation(
    world: World, tenant: TenantUnderTest, suspended: TenantUnderTest, pending: str
) -> None:
    wrong_password = converse(world.proxy, "app", tenant.slug)
    assert [kind for kind, _ in wrong_password.messages] == ["R", "R", "E"]
    others = {
        "an alias": converse(world.proxy, "app", "also"),
        "a pattern": converse(world.proxy, "app", f"db_{tenant.slug}"),
        "the physical database": converse(world.proxy, "app", tenant.database.name),
        "a suspended tenant": converse(world.proxy, "app", suspended.slug),
        "a tenant without a database": converse(world.proxy, "app", pending),
        "an unknown tenant": converse(world.proxy, "app", "nobody"),
        "an unknown tenant by a pattern": converse(world.proxy, "app", "db_nobody"),
        "an unknown tenant by options": converse(world.proxy, "app", None, options="-c tenant=nobody"),
        "no tenant at all": converse(world.proxy, "app", None),
        "an administrators' database": converse(world.proxy, "app", "postgres"),
        "a user of the console": converse(world.proxy, "app", "pgtenant"),
    }
    for what, conversation in others.items():
        assert conversation.messages == wrong_password.messages, what
    for database in (tenant.slug, "pgtenant"):
        unknown_user = converse(world.proxy, "eve", database)
        assert [(kind, body.replace(b"eve", b"app")) for kind, body in unknown_user.messages] == list(
            wrong_password.messages
        )


def test_salts_of_what_does_not_exist_look_like_those_of_what_does(world: World, tenant: TenantUnderTest) -> None:
    names = [("app", tenant.slug), ("app", "nobody"), ("app", "somebody"), ("eve", tenant.slug), ("eve", "nobody")]
    names += [("app", "pgtenant"), ("eve", "pgtenant")]
    first = [converse(world.proxy, *name).salt for name in names]
    assert len(set(first)) == len(names), "every name has a salt of its own"
    assert [converse(world.proxy, *name).salt for name in names] == first, "which stays the same"
    assert world.proxy.stop() == 0
    world.proxy.start()
    assert [converse(world.proxy, *name).salt for name in names] == first, "after a restart, too"


def test_the_consoles_users_have_no_more_salts_than_others(world: World) -> None:
    for user in ("app", "eve"):
        salts = {converse(world.proxy, user, "pgtenant", options=f"-c tenant=x{number}").salt for number in range(2)}
        assert salts == {converse(world.proxy, user, "pgtenant").salt}


def test_contradictions_are_refused_alike_whether_the_tenants_exist_or_not(
    world: World, tenant: TenantUnderTest, suspended: TenantUnderTest
) -> None:
    def told(user: str, database: str, options: str = "") -> tuple[str, str]:
        with world.proxy.connect() as client, pytest.raises(ServerSaid) as caught:
            client.login(user, "guess", database, **({"options": options} if options else {}))  # type: ignore[arg-type]
        text = caught.value.fields["M"]
        for name in (tenant.slug, suspended.slug, "nobody", "somebody"):
            text = text.replace(name, "NAME")
        return caught.value.sqlstate, text

    by_user = {told(f"app.{one}", two) for one, two in ((tenant.slug, suspended.slug), ("nobody", "somebody"))}
    assert len(by_user) == 1
    by_options = {
        told("app", two, f"-c tenant={one}") for one, two in ((tenant.slug, suspended.slug), ("nobody", "somebody"))
    }
    assert len(by_options) == 1
    assert {sqlstate for sqlstate, _ in by_user | by_options} == {"28000"}


def test_every_selector_finds_the_tenant(world: World, tenant: TenantUnderTest) -> None:
    for user, parameters in (
        ("app", {"database": tenant.slug}),
        ("app", {"database": "also"}),
        ("app", {"database": f"db_{tenant.slug}"}),
        ("app", {"database": tenant.database.name}),
        (f"app.{tenant.slug}", {}),
        (f"app.{tenant.slug}", {"database": "also"}),
        ("app", {"options": f"-c tenant={tenant.slug}"}),
    ):
        with world.proxy.connect() as client:
            client.login(user, tenant.password, **parameters)  # type: ignore[arg-type]
            assert client.rows("select current_database()") == [(tenant.database.name,)], (user, parameters)


def test_the_right_password_of_one_tenant_opens_no_other(
    world: World, tenant: TenantUnderTest, pg17: ServerFacts
) -> None:
    other = world.tenant(pg17)
    for name in (other.slug, other.database.name, f"db_{other.slug}"):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(world.proxy.url(name, tenant.user, tenant.password))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(world.proxy.url(f"app.{other.slug}", f"app.{other.slug}", tenant.password))
    # Who knows the database's own role does not get in with it either.
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(world.proxy.url(tenant.slug, tenant.database.role, tenant.database.password))


def test_revealing_tenants_helps_people_who_misspell_and_no_name_forges_a_line_of_the_log(
    pg18: ServerFacts, registry: RegistryUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    registry.do(lambda service: service.tenants())
    told, log = {"reveal_tenants": True}, {"format": "console"}
    with ProxyProcess(tmp_path_factory.mktemp("p"), registry.url, registry.keys, routing=told, log=log) as proxy:
        with proxy.connect() as client, pytest.raises(ServerSaid):
            client.login("app\n2026 [info] forged\x1b[2J\u202e", "guess", "no\u2028body", application_name="\x1b[31m")
        assert "2026 [info] forged" in proxy.logs()
        assert all(line.isprintable() for line in proxy.logs().split("\n"))
        with pytest.raises(psycopg.OperationalError, match='there is no tenant "nobody"') as caught:
            psycopg.connect(proxy.url("nobody", "app", "guess"))
        assert "misspelling" in str(caught.value)


def test_logins_that_opted_in_to_older_methods(world: World, tenant: TenantUnderTest) -> None:
    change = LoginChange(Secret("old password"), methods=frozenset({AuthMethod.MD5, AuthMethod.SCRAM}))
    world.registry.do(lambda service: service.add_login("old", tenant.slug, change))
    url = world.proxy.url(tenant.slug, "old", "old password")

    def works() -> bool:
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute("select 1").fetchone() == (1,)

    assert works()
    with world.proxy.connect() as client:
        client.login("old", "old password", tenant.slug)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(world.proxy.url(tenant.slug, "old", "guess"))
    cleartext = LoginChange(Secret("clear password"), methods=frozenset({AuthMethod.PASSWORD}))
    world.registry.do(lambda service: service.add_login("clear", tenant.slug, cleartext))
    with pytest.raises(psycopg.OperationalError, match="may not be sent over an unencrypted"):
        psycopg.connect(world.proxy.url(tenant.slug, "clear", "clear password"))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(world.proxy.url(tenant.slug, "clear", "guess"))


def test_support_reaches_every_tenant_by_every_spelling(
    world: World, tenant: TenantUnderTest, pg17: ServerFacts
) -> None:
    other = world.tenant(pg17)
    change = LoginChange(Secret("let me help"))
    world.registry.do(lambda service: service.add_login("support", None, change))
    for one in (tenant, other):
        for user, database in (
            ("support", one.slug),
            ("support", f"db_{one.slug}"),
            ("support", one.database.name),
            (f"support.{one.slug}", f"support.{one.slug}"),
            (f"support.{one.slug}", one.slug),
        ):

            def reached(user: str = user, database: str = database) -> str:
                with psycopg.connect(world.proxy.url(database, user, "let me help"), autocommit=True) as connection:
                    row = connection.execute("select current_database()").fetchone()
                    assert row is not None
                    return str(row[0])

            assert wait_until(reached) == one.database.name
    # Who has proved to be support is told what is wrong, and nobody else.
    with pytest.raises(psycopg.OperationalError, match='there is no tenant "nobody"'):
        psycopg.connect(world.proxy.url("nobody", "support", "let me help"))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(world.proxy.url("nobody", "support", "guess"))
