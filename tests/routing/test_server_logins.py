"""Roles of a tenant's server as logins: how long they are believed, and what makes the node ask again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from harness.waiting import eventually
from routing.fake_registry import SERVER, FakeRegistry, make_login, make_route
from structlog.testing import capture_logs

from proxy.auth import ClientKey, ClientKeys, ScramVerifier, build_verifier
from proxy.errors import Failure
from proxy.observability.logs import LIMITED_EVENTS
from proxy.routing.lookups import Look
from proxy.routing.names import Selectors
from proxy.routing.resolver import Resolver, ResolverConfig
from proxy.routing.server_logins import CannotAsk, ServerLoginLimits, ServerLogins, ServerRole
from registry.contract import (
    AuthQuery,
    ChangeKind,
    Credentials,
    Route,
    RouteChange,
    ServerInfo,
    VerifierSource,
)

ASKED = replace(SERVER, auth=AuthQuery(Credentials("asker"), "postgres"))
VERIFIER = build_verifier("secret", b"0123456789abcdef", 1)
OTHER = build_verifier("other", b"0123456789abcdef", 1)
APP = ServerRole(VERIFIER.text())


class Servers:
    """Answers as servers would, counts, and can be told to hold its answers back or to fail."""

    def __init__(self) -> None:
        self.roles: dict[str, ServerRole] = {"app": APP}
        self.asked: list[str] = []
        self.now = 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.down = False

    async def ask(self, _server: ServerInfo, user: str) -> ServerRole | None:
        self.asked.append(user)
        role = self.roles.get(user)
        await self.gate.wait()
        if self.down:
            raise CannotAsk("it is down")
        return role


@pytest.fixture
async def servers() -> Servers:
    return Servers()


@pytest.fixture
def keys() -> ClientKeys:
    return ClientKeys()


@pytest.fixture
async def logins(servers: Servers, keys: ClientKeys) -> AsyncIterator[ServerLogins]:
    limits = ServerLoginLimits(ttl=10.0, negative_ttl=5.0, known=50, unknown=20)
    made = ServerLogins(servers.ask, keys, clock=lambda: servers.now, limits=limits)
    yield made
    await made.close()


def acme(**changes: Any) -> Route:
    return make_route(1, "acme", **{"server": ASKED, "verifiers": VerifierSource.SERVER, **changes})


async def test_a_role_is_a_login_with_the_servers_verifier(servers: Servers, logins: ServerLogins) -> None:
    login = await logins.login(acme(), "app")
    assert login is not None
    assert (login.user, login.tenant_id, login.source) == ("app", 1, VerifierSource.SERVER)
    assert ScramVerifier.parse(login.verifier) == VERIFIER
    assert VERIFIER.text() not in repr(login)
    assert await logins.login(acme(), "nobody") is None


async def test_answers_are_believed_for_a_while(servers: Servers, logins: ServerLogins) -> None:
    for now in (0.0, 4.9, 9.9):
        servers.now = now
        await logins.login(acme(), "app")
        await logins.login(acme(), "nobody")
    assert servers.asked == ["app", "nobody", "nobody"], "absence is believed half as long"
    servers.now = 10.0
    await logins.login(acme(), "app")
    assert servers.asked[-1] == "app"


async def test_nobody_is_let_in_beyond_the_end_of_a_role(servers: Servers, logins: ServerLogins) -> None:
    servers.roles["app"] = replace(APP, seconds_left=2.0)
    await logins.login(acme(), "app")
    servers.roles.clear()
    servers.now = 1.9
    assert await logins.login(acme(), "app") is not None
    servers.now = 2.0
    assert await logins.login(acme(), "app") is None


async def test_a_storm_of_logins_asks_once(servers: Servers, logins: ServerLogins) -> None:
    servers.gate.clear()
    asking = [asyncio.create_task(logins.login(acme(), "app")) for _ in range(100)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    servers.gate.set()
    found = await asyncio.gather(*asking[1:])
    assert all(login is not None for login in found)
    assert servers.asked == ["app"]


@pytest.mark.parametrize(
    ("change", "asks_again"),
    [
        (RouteChange(2, ChangeKind.TENANT, 1), True),
        (RouteChange(2, ChangeKind.LOGIN, 1), True),
        (RouteChange(2, ChangeKind.SERVER, SERVER.server_id), True),
        (RouteChange(2, ChangeKind.EVERYTHING), True),
        (RouteChange(2, ChangeKind.LOGIN, None), True),
        (RouteChange(2, ChangeKind.TENANT, 2), False),
        (RouteChange(2, ChangeKind.SERVER, 99), False),
    ],
    ids=str,
)
async def test_a_change_in_the_registry_forgets_what_it_concerns(
    change: RouteChange, asks_again: bool, servers: Servers, logins: ServerLogins
) -> None:
    await logins.login(acme(), "app")
    logins.apply(change)
    await logins.login(acme(), "app")
    assert len(servers.asked) == 1 + asks_again


async def test_an_answer_from_before_a_change_is_not_for_those_who_ask_after_it(
    servers: Servers, logins: ServerLogins
) -> None:
    servers.gate.clear()
    early = asyncio.create_task(logins.login(acme(), "app"))
    await eventually(lambda: servers.asked == ["app"], what="the first question asked")
    servers.roles.clear()
    logins.apply(RouteChange(2, ChangeKind.SERVER, SERVER.server_id))
    late = asyncio.create_task(logins.login(acme(), "app"))
    await eventually(lambda: servers.asked == ["app", "app"], what="the second question asked")
    servers.gate.set()
    assert await early is not None
    assert await late is None
    assert await logins.login(acme(), "app") is None


@pytest.mark.parametrize("user", ["app", "nobody"])
async def test_a_failed_login_makes_the_node_ask_again_but_once_a_second_only(
    user: str, servers: Servers, logins: ServerLogins
) -> None:
    for now, asked in ((0.0, 1), (0.1, 2), (0.2, 2), (1.0, 2), (1.1, 3), (1.2, 3)):
        servers.now = now
        await logins.login(acme(), user)
        assert len(servers.asked) == asked, now
        logins.doubt(1, SERVER.server_id, user)
    logins.doubt(1, SERVER.server_id, user, surely=True)
    await logins.login(acme(), user)
    assert len(servers.asked) == 4


async def test_the_second_attempt_with_a_new_password_succeeds(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    there = resolver(registry, logins)
    await there.resolve(Selectors("app", "acme"))
    servers.now = 0.1
    servers.roles["app"] = ServerRole(OTHER.text())
    first = await there.resolve(Selectors("app", "acme"))
    assert first.verifier == VERIFIER
    there.doubt(first)
    assert (await there.resolve(Selectors("app", "acme"))).verifier == OTHER


async def test_after_a_failed_login_presence_and_absence_are_asked_for_alike(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    there = resolver(registry, logins)
    for now in (0.0, 0.5, 2.0, 2.5, 4.0):
        servers.now = now
        for user in ("app", "nobody", "app.acme", "nobody.acme"):
            there.doubt(await there.resolve(Selectors(user, "acme")))
    counts = Counter(servers.asked)
    assert counts["app"] == counts["nobody"] > 1
    assert counts["app.acme"] == counts["nobody.acme"] > 1


async def test_a_changed_or_missing_verifier_drops_the_clients_key(
    servers: Servers, logins: ServerLogins, keys: ClientKeys
) -> None:
    for roles in ({"app": ServerRole(OTHER.text())}, {}):
        serial = keys.keep((1, "app"), ClientKey(VERIFIER, b"k"))
        other = keys.keep((2, "app"), ClientKey(VERIFIER, b"k"))
        servers.roles = roles
        servers.now += 100.0
        await logins.login(acme(), "app")
        assert keys.find((1, "app"), serial) is None
        assert keys.find((2, "app"), other) is not None


@pytest.mark.parametrize("verifier", ["md5" + "0" * 32, "", "SCRAM-SHA-256$0:c2FsdA==$eA==:eA==", "x" * 10_000])
async def test_what_is_no_scram_verifier_lets_nobody_in(verifier: str, servers: Servers, logins: ServerLogins) -> None:
    servers.roles["app"] = ServerRole(verifier)
    with capture_logs() as events:
        assert await logins.login(acme(), "app") is None
    (event,) = events
    assert event["event"] in LIMITED_EVENTS, "any stranger can name it, as often as he likes"
    assert (event["role"], event["server"]) == ("app", "eu1")
    assert verifier == "" or verifier not in str(event)


@pytest.mark.parametrize("user", ["", "u" * 64, "ü" * 32, "a\0b", "\udcff"])
async def test_what_is_no_name_of_a_role_is_not_asked_for(user: str, servers: Servers, logins: ServerLogins) -> None:
    assert await logins.login(acme(), user) is None
    assert servers.asked == []


async def test_memory_is_bounded(servers: Servers, logins: ServerLogins) -> None:
    servers.roles.update({f"r{number}": APP for number in range(100)})
    for number in range(100):
        await logins.login(acme(), f"r{number}")
        await logins.login(acme(), f"n{number}")
        logins.apply(RouteChange(number, ChangeKind.TENANT, number + 1000))
    assert len(logins) == 70


# Within the resolver.


def resolver(registry: FakeRegistry, logins: ServerLogins, **config: Any) -> Resolver:
    return Resolver(registry, config=ResolverConfig(**config), server_logins=logins)


@pytest.fixture
def registry() -> FakeRegistry:
    fake = FakeRegistry()
    fake.put(acme())
    fake.put(make_route(2, "globex", server=ASKED))
    fake.put_login(make_login(1, "known", 1))
    return fake


async def test_the_registrys_logins_go_first(registry: FakeRegistry, servers: Servers, logins: ServerLogins) -> None:
    servers.roles["known"] = APP
    found = await resolver(registry, logins).resolve(Selectors("known", "acme"))
    assert found.login is not None
    assert found.login.source is VerifierSource.REGISTRY
    assert servers.asked == []


@pytest.mark.parametrize(
    ("tenant", "default", "asks"),
    [
        ("acme", VerifierSource.REGISTRY, True),
        ("globex", VerifierSource.REGISTRY, False),
        ("globex", VerifierSource.SERVER, True),
        ("unknown", VerifierSource.SERVER, False),
    ],
)
async def test_a_tenant_or_the_node_says_where_verifiers_are(
    tenant: str, default: VerifierSource, asks: bool, registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    found = await resolver(registry, logins, verifiers=default).resolve(Selectors("app", tenant))
    assert (found.login is not None) == asks
    assert servers.asked == ["app"] * asks
    assert found.verifier.usable == asks


async def test_a_role_with_a_dot_is_found_by_its_whole_name(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    servers.roles["jane.doe"] = APP
    found = await resolver(registry, logins).resolve(Selectors("jane.doe", "acme"))
    assert (found.user, found.route and found.route.slug) == ("jane.doe", "acme")
    found = await resolver(registry, logins).resolve(Selectors("app.acme"))
    assert (found.user, found.route and found.route.slug) == ("app", "acme")


async def test_who_takes_his_time_is_held_to_the_verifier_of_now(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    there = resolver(registry, logins)
    found = await there.resolve(Selectors("app", "acme"))
    servers.roles["app"] = ServerRole(OTHER.text())
    assert await there.confirm(found), "no longer than an answer holds"
    servers.now = 10.0
    assert not await there.confirm(found)
    assert await there.confirm(await there.resolve(Selectors("known", "acme")))


async def test_while_the_registry_is_down_the_servers_of_known_tenants_are_asked(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    there = resolver(registry, logins)
    await there.resolve(Selectors("somebody", "acme"))
    registry.down = True
    found = await there.resolve(Selectors("app", "acme"))
    assert found.login is not None
    assert (found.login.source, found.role) == (VerifierSource.SERVER, Credentials("app"))
    with pytest.raises(Failure) as caught:
        await there.resolve(Selectors("nobody", "acme"))
    assert caught.value.spec.name == "registry_down", "it may be a login of the registry"


async def test_a_server_that_cannot_be_asked_is_told_as_such(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    servers.down = True
    with pytest.raises(Failure) as caught:
        await resolver(registry, logins).resolve(Selectors("app", "acme"))
    assert caught.value.sqlstate == "57P03"
    assert "down" not in caught.value.message


async def test_clients_from_elsewhere_have_no_login_and_no_server_is_asked(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    registry.put(acme(networks=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))))
    there = resolver(registry, logins)
    for address in ("192.0.2.1", "::1", "::ffff:192.0.2.1", "/run/socket"):
        for user in ("known", "app"):
            found = await there.resolve(Selectors(user, "acme"), address)
            assert (found.login, found.verifier.usable, found.barred) == (None, False, True)
    assert servers.asked == []
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"):
        found = await there.resolve(Selectors("known", "acme"), address)
        assert (found.login is not None, found.barred) == (True, False)


async def test_an_explanation_asks_no_server_and_says_so(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    explained = await resolver(registry, logins).explain(Selectors("app", "acme"))
    assert explained.ok
    assert explained.login == "app (if its server has such a role)"
    assert servers.asked == []


async def test_strangers_cost_one_question_to_the_server_whatever_is_remembered(
    registry: FakeRegistry, servers: Servers, logins: ServerLogins
) -> None:
    there = resolver(registry, logins)
    for user in ("app", "nobody"):
        for _ in range(3):
            servers.asked.clear()
            await there.resolve(Selectors(user, "acme"), look=Look.ANEW)
            assert servers.asked == [user]
            await there.resolve(Selectors(user, "acme"))
