"""What clients are told and where they go: the verdicts, seen through the resolver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from harness.waiting import eventually
from routing.fake_registry import FakeRegistry, make_login, make_route
from structlog.testing import capture_logs

from proxy.auth import build_verifier
from proxy.errors import Failure
from proxy.observability.logs import LIMITED_EVENTS
from proxy.routing.lookups import Look
from proxy.routing.names import NameRules, Selectors, name_rules
from proxy.routing.resolution import Resolution
from proxy.routing.resolver import Resolver, ResolverConfig
from registry.contract import ChangeKind, Credentials, Route, RouteChange, TenantState


@pytest.fixture
def registry() -> FakeRegistry:
    fake = FakeRegistry()
    fake.put(make_route(1, "acme", aliases=("acme-corp",)))
    fake.put(make_route(2, "globex"))
    fake.put(make_route(3, "initech", database_name="common"))
    fake.put(make_route(4, "umbrella", database_name="common"))
    fake.put_login(make_login(1, "app", 1))
    fake.put_login(make_login(2, "app", 2))
    fake.put_login(make_login(3, "jane.doe", 1))
    fake.put_login(make_login(4, "support", None))
    return fake


Build = Callable[..., Resolver]


@pytest.fixture
def build(registry: FakeRegistry) -> Build:
    def make(rules: NameRules | None = None, **config: Any) -> Resolver:
        return Resolver(registry, rules=rules, config=ResolverConfig(**config))

    return make


def told(failure: Failure | None) -> str | None:
    return None if failure is None else failure.spec.name


def admitted(resolution: Resolution) -> str | None:
    """The slug a client with the right password gets to; None: it is not let in."""
    if resolution.login is None or resolution.failure is not None or resolution.route is None:
        return None
    return resolution.route.slug


@pytest.mark.parametrize(
    "selectors",
    [
        Selectors("app", "acme"),
        Selectors("app", "acme-corp"),
        Selectors("app", "acme_data"),
        Selectors("app", "db_acme"),
        Selectors("app.acme"),
        Selectors("app.acme", "app.acme"),
        Selectors("app.acme-corp", "acme"),
        Selectors("app.acme", "acme_data"),
        Selectors("app", "app", (("tenant", "acme"),)),
        Selectors("app", None, (), "acme.db.example.com"),
        Selectors("app.acme", "acme-corp", (("tenant", "acme"),), "acme.db.example.com"),
        Selectors("jane.doe.acme"),
        Selectors("support", "acme"),
    ],
    ids=str,
)
async def test_every_way_to_spell_a_tenant_leads_to_it(build: Build, selectors: Selectors) -> None:
    rules = name_rules(sni_patterns=["{tenant}.db.example.com"], database_patterns=["db_{tenant}"])
    resolution = await build(rules).resolve(selectors)
    assert admitted(resolution) == "acme"
    assert resolution.refusal.sqlstate == "28P01"
    assert resolution.verifier.usable


async def test_a_login_for_all_tenants_with_the_separator_in_its_name_looks_the_same_everywhere(
    build: Build, registry: FakeRegistry
) -> None:
    registry.put_login(make_login(9, "sue.support", None))
    known = await build().resolve(Selectors("sue.support", "acme"))
    unknown = await build().resolve(Selectors("sue.support", "nowhere"))
    assert admitted(known) == "acme"
    assert unknown.verifier.salt == known.verifier.salt
    assert told(unknown.failure) == "unknown_tenant"


async def test_a_whole_user_name_wins_over_its_suffix(build: Build, registry: FakeRegistry) -> None:
    registry.put(make_route(9, "doe"))
    registry.put_login(make_login(9, "jane", 9))
    at_acme = await build().resolve(Selectors("jane.doe", "acme"))
    assert (admitted(at_acme), at_acme.user) == ("acme", "jane.doe")
    at_doe = await build().resolve(Selectors("jane.doe"))
    assert (admitted(at_doe), at_doe.user) == ("doe", "jane")


@pytest.mark.parametrize(
    "selectors", [Selectors("jane.doe", "acme"), Selectors("jane.doe", "jane.doe", (("tenant", "acme"),))], ids=str
)
async def test_a_login_may_have_the_separator_in_its_name(build: Build, selectors: Selectors) -> None:
    resolution = await build().resolve(selectors)
    assert admitted(resolution) == "acme"
    # It might as well be a tenant "doe", which nobody may find out without a password.
    assert resolution.refusal.hint is not None
    assert "password" in resolution.refusal.hint


async def test_a_user_name_with_separator_reaches_only_tenants_that_have_it(build: Build) -> None:
    assert admitted(await build().resolve(Selectors("jane.doe", "globex"))) is None


@pytest.mark.parametrize(
    "selectors",
    [Selectors("app.acme", "globex"), Selectors("app.acme", "nothing"), Selectors("app.acme", "common")],
    ids=str,
)
async def test_a_contradiction_is_told_whether_or_not_the_password_is_right(build: Build, selectors: Selectors) -> None:
    resolution = await build().resolve(selectors)
    assert told(resolution.refusal) == told(resolution.failure) == "contradictory_selectors"
    assert resolution.failure is not None
    assert resolution.refusal.message == resolution.failure.message
    assert '"acme"' in resolution.refusal.message
    assert f'"{selectors.database}"' in resolution.refusal.message


async def test_a_name_within_another_tenants_name_is_a_contradiction_after_the_login(
    build: Build, registry: FakeRegistry
) -> None:
    registry.put(make_route(9, "acme2"))
    resolution = await build().resolve(Selectors("app.acme", "acme2"))
    assert told(resolution.refusal) == "invalid_password"
    assert told(resolution.failure) == "contradictory_selectors"


PROBES = [
    (Selectors("app", "acme"), Selectors("app", "nobody")),
    (Selectors("app.acme"), Selectors("app.nobody")),
    (Selectors("app.acme", "acme"), Selectors("app.nobody", "nobody")),
    (Selectors("app.acme", "acme_data"), Selectors("app.nobody", "nobody_data")),
    (Selectors("app.acme", "shop"), Selectors("app.nobody", "shop")),
    (Selectors("jane.doe", "acme"), Selectors("jack.doe", "acme")),
    (Selectors("app", "acme_data"), Selectors("app", "nobody_data")),
    (Selectors("app", "common"), Selectors("app", "scarce")),
    (Selectors("app", "acme", (("tenant", "acme"),)), Selectors("app", "nobody", (("tenant", "nobody"),))),
    (Selectors("nobody", "acme"), Selectors("nobody", "nowhere")),
]


@pytest.mark.parametrize(("known", "unknown"), PROBES, ids=str)
async def test_without_a_password_known_and_unknown_cannot_be_told_apart(
    build: Build, registry: FakeRegistry, known: Selectors, unknown: Selectors
) -> None:
    answers = []
    for selectors in (known, unknown):
        registry.asked.clear()
        resolution = await build().resolve(selectors)
        questions = registry.asked.copy()
        questions.pop("secret", None)
        message = resolution.refusal.message
        for name, other in zip(_names(known), _names(unknown), strict=True):
            message = message.replace(f'"{other}"', f'"{name}"')
        answers.append((told(resolution.refusal), message, resolution.refusal.hint, questions, resolution.methods))
        assert resolution.verifier.iterations
    assert answers[0] == answers[1]


def _names(selectors: Selectors) -> list[str]:
    return [selectors.user, selectors.user.rpartition(".")[2], selectors.database or selectors.user]


async def test_what_stands_in_for_a_login_is_the_same_on_every_node_and_differs_by_name(build: Build) -> None:
    first, again, other, pattern = [
        (await build(name_rules(database_patterns=["db_{tenant}"])).resolve(selectors)).verifier
        for selectors in (
            Selectors("app", "nobody"),
            Selectors("app.nobody"),
            Selectors("app", "nowhere"),
            Selectors("app", "db_nobody"),
        )
    ]
    assert not first.usable
    assert first.salt == again.salt == pattern.salt != other.salt


SPELLINGS = (("acme", None), ("acme-corp", None), ("acme_data", None), ("x", (("tenant", "acme"),)))


@pytest.mark.parametrize("user", ["app", "support", "eve"])
async def test_a_login_has_one_salt_whatever_its_tenant_is_called_and_wherever_its_client_is(
    build: Build, registry: FakeRegistry, user: str
) -> None:
    spelled = [Selectors(user, database, options or ()) for database, options in SPELLINGS]
    spelled += [Selectors(f"{user}.acme"), Selectors(f"{user}.acme-corp", "acme")]
    salts = [(await build().resolve(selectors, "192.0.2.1")).verifier.salt for selectors in spelled]
    registry.put(replace(registry.routes[1], networks=(ip_network("10.0.0.0/8"),)))
    barred = [await build().resolve(selectors, "192.0.2.1") for selectors in spelled]
    assert {resolution.verifier.usable for resolution in barred} == {False}
    assert len({*salts, *(resolution.verifier.salt for resolution in barred)}) == 1


WAYS = [
    Selectors("app", "acme"),
    Selectors("app", "acme-corp"),
    Selectors("support", "acme"),
    Selectors("eve", "acme"),
    Selectors("app", "nobody"),
    Selectors("support", "nobody"),
    Selectors("eve", "nobody"),
    Selectors("app", "common"),
    Selectors("app", "acme_data"),
]


@pytest.mark.parametrize("selectors", WAYS, ids=str)
async def test_strangers_cost_the_same_questions_whatever_exists_and_is_remembered(
    build: Build, registry: FakeRegistry, selectors: Selectors
) -> None:
    there = build()
    there.cache.live = True
    for _ in range(3):
        registry.asked.clear()
        await there.resolve(selectors, look=Look.ANEW)
        registry.asked.pop("secret", None)
        assert registry.asked == {"name": 1, "database": 1, "login": 1}
        # Somebody who is familiar logs in meanwhile, by memory where there is any.
        await there.resolve(selectors)


async def test_who_is_familiar_is_looked_up_in_memory(build: Build, registry: FakeRegistry) -> None:
    there = build()
    there.cache.live = True
    await there.resolve(Selectors("app", "acme"), look=Look.ANEW)
    registry.asked.clear()
    assert admitted(await there.resolve(Selectors("app", "acme"))) == "acme"
    assert registry.queries == 0


async def test_strangers_are_answered_from_memory_where_the_registry_is_down(
    build: Build, registry: FakeRegistry
) -> None:
    there = build()
    await there.resolve(Selectors("app", "acme"))
    registry.down = True
    assert admitted(await there.resolve(Selectors("app", "acme"), look=Look.ANEW)) == "acme"


async def test_a_login_with_a_broken_verifier_is_refused_like_a_wrong_password(
    build: Build, registry: FakeRegistry
) -> None:
    registry.put_login(make_login(1, "app", 1, verifier="not a verifier: hunter2"))
    with capture_logs() as events:
        resolution = await build().resolve(Selectors("app", "acme"))
    assert not resolution.verifier.usable
    (event,) = events
    assert event["event"] in LIMITED_EVENTS, "any stranger can name it, as often as he likes"
    assert (event["log_level"], event["login"], event["user"]) == ("error", 1, "app")
    assert "hunter2" not in str(event)


@pytest.mark.parametrize(
    ("state", "error", "sqlstate"),
    [
        (TenantState.SUSPENDED, "suspended", "57P03"),
        (TenantState.CREATING, "not_ready", "57P03"),
        (TenantState.PENDING, "no_database", "57P03"),
        (TenantState.MOVING, "not_ready", "57P03"),
        (TenantState.ERROR, "not_ready", "57P03"),
        (TenantState.DROPPING, "unknown_tenant", "3D000"),
    ],
)
async def test_states_other_than_ready_are_told_after_the_login_only(
    build: Build, registry: FakeRegistry, state: TenantState, error: str, sqlstate: str
) -> None:
    registry.put(replace(registry.routes[1], state=state))
    resolution = await build().resolve(Selectors("app", "acme"))
    assert told(resolution.refusal) == "invalid_password"
    assert resolution.failure is not None
    assert (told(resolution.failure), resolution.failure.sqlstate) == (error, sqlstate)
    with pytest.raises(Failure) as caught:
        await build(reveal_tenants=True).resolve(Selectors("app", "acme"))
    assert told(caught.value) == error


async def test_support_staff_is_told_that_a_tenant_is_unknown(build: Build) -> None:
    resolution = await build().resolve(Selectors("support", "nobody"))
    assert resolution.verifier.usable
    assert told(resolution.failure) == "unknown_tenant"


async def test_a_database_of_two_tenants_names_neither(build: Build) -> None:
    resolution = await build().resolve(Selectors("support", "common"))
    assert resolution.route is None
    assert told(resolution.failure) == "ambiguous_tenant"


async def test_unknown_tenants_are_revealed_where_the_operator_wants_it(build: Build) -> None:
    with pytest.raises(Failure) as caught:
        await build(reveal_tenants=True).resolve(Selectors("app", "nobody"))
    assert told(caught.value) == "unknown_tenant"
    assert "nobody" in caught.value.message


async def test_a_connection_that_names_no_tenant_is_told_how_to(build: Build) -> None:
    with pytest.raises(Failure) as caught:
        await build(name_rules(order=["options", "user"])).resolve(Selectors("app", "acme"))
    assert told(caught.value) == "tenant_not_named"


async def test_a_login_may_bring_its_own_role(build: Build, registry: FakeRegistry) -> None:
    registry.put_login(make_login(1, "app", 1, role=Credentials("reporting")))
    assert (await build().resolve(Selectors("app", "acme"))).role == Credentials("reporting")
    other = (await build().resolve(Selectors("app", "globex"))).role
    assert other is not None
    assert other.user == "globex_role"


def sharing(tenant_id: int = 9, slug: str = "newco", **fields: Any) -> Route:
    """A tenant that has said that it is served from the shared database."""
    return make_route(
        tenant_id, slug, **{"server": None, "database_name": None, "role": None, "shared": True, **fields}
    )


async def test_a_tenant_that_says_so_is_served_from_the_shared_database(build: Build, registry: FakeRegistry) -> None:
    registry.put(make_route(8, "commons"))
    registry.put(sharing())
    registry.put_login(make_login(9, "app", 9))
    resolver = build(shared_tenant="commons")
    route = (await resolver.resolve(Selectors("app", "newco"))).route
    assert route is not None
    assert (route.slug, route.database_name, route.role) == ("newco", "commons_data", registry.routes[8].role)
    resolver.apply_change(registry.put(replace(registry.routes[8], generation=2)))
    later = (await resolver.resolve(Selectors("app", "newco"))).route
    assert later is not None
    assert 0 < route.generation < later.generation
    explained = (await resolver.explain(Selectors("app", "newco"))).destination
    assert explained is not None
    assert (explained.shared, explained.database, explained.generation) == (True, "commons_data", later.generation)


async def test_a_role_of_its_own_goes_with_a_tenant_to_the_shared_database(
    build: Build, registry: FakeRegistry
) -> None:
    registry.put(make_route(8, "commons"))
    registry.put(sharing(role=Credentials("newco_role")))
    registry.put_login(make_login(9, "app", 9))
    assert (await build(shared_tenant="commons").resolve(Selectors("app", "newco"))).role == Credentials("newco_role")


@pytest.mark.parametrize("says_so", [False, True])
@pytest.mark.parametrize("has_one", [False, True])
@pytest.mark.parametrize("state", TenantState)
async def test_nothing_but_its_own_word_leads_a_tenant_to_the_shared_database(
    build: Build, registry: FakeRegistry, state: TenantState, *, has_one: bool, says_so: bool
) -> None:
    registry.put(make_route(8, "commons"))
    if has_one:
        registry.put(make_route(9, "newco", state=state, shared=says_so))
    else:
        registry.put(sharing(state=state, shared=says_so))
    registry.put_login(make_login(9, "app", 9))
    found = await build(shared_tenant="commons").resolve(Selectors("app", "newco"))
    assert found.route is not None
    own = "newco_data" if has_one else None
    is_shared = says_so and not has_one and state is TenantState.READY
    assert found.route.database_name == ("commons_data" if is_shared else own)
    assert (found.failure is None) == (is_shared or (has_one and state is TenantState.READY))


@pytest.mark.parametrize("commons", ["suspended", "without a database", "sharing itself", "absent", "not named"])
async def test_a_shared_database_that_is_not_ready_serves_nobody(
    build: Build, registry: FakeRegistry, commons: str
) -> None:
    if commons == "suspended":
        registry.put(make_route(8, "commons", state=TenantState.SUSPENDED))
    elif commons == "without a database":
        registry.put(make_route(8, "commons", state=TenantState.PENDING, server=None, database_name=None))
    elif commons == "sharing itself":
        registry.put(sharing(8, "commons"))
    registry.put(sharing())
    registry.put_login(make_login(9, "app", 9))
    resolver = build(shared_tenant=None if commons == "not named" else "commons")
    assert told((await resolver.resolve(Selectors("app", "newco"))).failure) == "no_shared_database"
    if commons == "sharing itself":
        registry.put_login(make_login(8, "app", 8))
        assert told((await resolver.resolve(Selectors("app", "commons"))).failure) == "no_shared_database"


async def test_a_tenant_without_a_role_is_told_so_and_not_that_it_is_ready(
    build: Build, registry: FakeRegistry
) -> None:
    registry.put(replace(registry.routes[1], role=None))
    found = (await build().explain(Selectors("app", "acme"))).problem
    assert found is not None
    assert found.name == "no_role"
    assert found.hint is not None
    assert "pgtenant tenant set acme --role" in found.hint
    registry.put_login(make_login(1, "app", 1, role=Credentials("reporting")))
    assert (await build().explain(Selectors("app", "acme"))).problem is None


async def test_an_explanation_tells_each_step_and_the_result(build: Build) -> None:
    rules = name_rules(sni_patterns=["{tenant}.db.example.com"])
    explained = await build(rules).explain(Selectors("app.acme", "acme_data", (), "db.example.com"))
    assert explained.ok
    told_steps = [(step.selector, step.found, step.decides, step.note) for step in explained.steps]
    assert told_steps == [
        ("user", "acme", True, "decides: slug"),
        ("database", "acme", False, "fits"),
        ("sni", None, False, "the host name is of no configured pattern"),
        ("options", None, False, "the options name no tenant"),
    ]
    as_dict = explained.to_dict()
    assert as_dict["destination"]["database"] == "acme_data"
    assert as_dict["destination"]["addresses"] == ("10.0.0.1:5432",)
    assert "password" not in repr(as_dict)


async def test_an_explanation_names_the_problem(build: Build) -> None:
    resolver = build()
    contradiction = await resolver.explain(Selectors("app.acme", "globex"))
    assert contradiction.problem is not None
    assert contradiction.problem.sqlstate == "28000"
    assert [step.note for step in contradiction.steps][:2] == ["decides: slug", "names another tenant"]
    unknown = await resolver.explain(Selectors("app", "nobody"))
    assert unknown.problem is not None
    assert (unknown.problem.name, unknown.destination, unknown.login) == ("unknown_tenant", None, None)
    refused = await resolver.explain(Selectors("app", None, (("tenant", "a"), ("tenant", "b"))))
    assert refused.problem is not None
    whole = await resolver.explain(Selectors("jane.doe", "acme"))
    assert whole.ok
    assert "whole name" in whole.steps[0].note
    no_login = await resolver.explain(Selectors("nobody", "acme"))
    assert not no_login.ok
    assert no_login.problem is None


@pytest.mark.parametrize("user", ["app", "jane.doe", "support"])
async def test_a_proof_counts_for_nothing_once_its_login_has_changed(
    registry: FakeRegistry, build: Build, user: str
) -> None:
    there = build()
    there.apply_change(RouteChange(registry.now, ChangeKind.EVERYTHING))
    found = await there.resolve(Selectors(user, "acme"), "192.0.2.1")
    assert found.login is not None
    assert await there.confirm(found, "192.0.2.1")
    other = build_verifier("other", b"0123456789abcdef", 1).text()
    there.apply_change(registry.put_login(replace(found.login, verifier=other)))
    assert not await there.confirm(found, "192.0.2.1"), "its password was changed"
    again = await there.resolve(Selectors(user, "acme"), "192.0.2.1")
    assert again.login is not None
    registry.down = True
    assert await there.confirm(again, "192.0.2.1"), "nobody can say otherwise"
    registry.come_back()
    registry.logins.clear()
    there.apply_change(registry.put_login(make_login(99, "somebody", again.login.tenant_id)))
    assert not await there.confirm(again, "192.0.2.1"), "it is gone"


async def test_a_proof_counts_for_nothing_once_its_address_is_none_of_the_tenants(
    registry: FakeRegistry, build: Build
) -> None:
    there = build()
    following = asyncio.create_task(there.follow())
    await eventually(lambda: there.status().live, what="the feed followed")
    found = await there.resolve(Selectors("app", "acme"), "192.0.2.1")
    assert found.route is not None
    assert await there.confirm(found, "192.0.2.1")
    change = registry.put(replace(found.route, networks=(ip_network("10.0.0.0/8"),)))
    await eventually(lambda: there.status().version == change.version, what="the change noted")
    assert not await there.confirm(found, "192.0.2.1")
    assert await there.confirm(found, "10.0.0.1")
    following.cancel()
    await there.close()
