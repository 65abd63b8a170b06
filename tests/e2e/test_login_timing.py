"""What somebody without a password can find out by the clock: nothing, be a name new here, in use, or asked for before.

How long a login takes is how many questions are asked of the registry, which can be counted; that nothing else takes
time is measured.
"""

from __future__ import annotations

import base64
import statistics
import struct
import time
from collections.abc import Callable

import pytest
from harness.databases import Database
from harness.rawclient import cstring, frame, startup
from harness.registries import TenantUnderTest
from harness.world import World

from proxy.auth import build_verifier
from proxy.demo.facts import ServerFacts
from registry.domain.models import LoginChange, TenantChange
from registry.service import RegistryService

UNKNOWN_TTL = 0.2
PROXY = {"auth": {"failure_delay": 0.0}, "log": {"level": "warning"}, "routing": {"unknown_ttl": UNKNOWN_TTL}}
ROUNDS = 60
WITHIN = 0.10
"""The share of the shortest median by which the longest may be above it."""
TRIES = 10
ELSEWHERE = "127.0.0.2"

Way = tuple[str, str]
"""User and database."""


@pytest.fixture(scope="module")
def database(world: World, pg18: ServerFacts) -> Database:
    return world.database(pg18, "timing")


@pytest.fixture(scope="module")
def tenant(world: World, pg18: ServerFacts) -> TenantUnderTest:
    """One that is in use, by somebody at another address."""
    made = world.tenant(pg18)
    with world.proxy.connect() as client:
        client.login(made.user, made.password, made.slug)
        assert client.rows("select 1") == [("1",)]
    # What salts are made of is asked for once.
    refused_after(world, "eve", "nowhere")
    return made


def enter(world: World, database: Database, prefix: str) -> list[str]:
    """As many tenants as one measurement wants, each with the login `app`, that the proxy has never heard of."""
    place = world.registry.place(database)
    verifier = build_verifier("right", bytes(range(16))).text()
    slugs = [f"{prefix}{number}" for number in range(2 * ROUNDS)]

    async def add(service: RegistryService) -> None:
        for slug in slugs:
            await service.add_tenant(slug, TenantChange(**place))
            await service.add_login("app", slug, LoginChange(verifier=verifier))

    world.registry.do(add)
    return slugs


def refused_after(world: World, user: str, database: str) -> tuple[float, float]:
    """Seconds that the proxy takes to challenge and to refuse a login whose proof is wrong, but well formed."""
    with world.proxy.connect(source=ELSEWHERE) as client:
        began = time.perf_counter()
        client.send(startup({"user": user, "database": database}))
        assert client.read().kind == "R"
        first = b"n,,n=,r=" + b"c" * 24
        client.send(frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", len(first)) + first))
        nonce = client.read().body[4:].partition(b",")[0]
        challenged = time.perf_counter() - began
        client.send(frame("p", b"c=biws,%b,p=%b" % (nonce, base64.b64encode(b"p" * 32))))
        assert client.read().fields["C"] == "28P01"
        return challenged, time.perf_counter() - began


def ways(login: str, other: str, nobody: str) -> dict[str, Way]:
    return {"wrong password": ("app", login), "unknown user": ("pal", other), "unknown tenant": ("app", nobody)}


@pytest.mark.parametrize("before", ["never", "just now", "longer ago than it is remembered"])
def test_every_refused_login_asks_the_registry_as_often(world: World, tenant: TenantUnderTest, before: str) -> None:
    asked = {}
    prefix = before.partition(" ")[0]
    for what, way in ways(tenant.slug, tenant.slug, f"{prefix}-nobody").items():
        if before != "never":
            refused_after(world, *way)
        if before.startswith("longer"):
            time.sleep(UNKNOWN_TTL * 1.2)
        count = world.proxy.metric("pgtenant_registry_queries_total")
        refused_after(world, *way)
        asked[what] = world.proxy.metric("pgtenant_registry_queries_total") - count
    assert asked == dict.fromkeys(asked, 3.0), "by name, by database, and for the login"


def agree(measure: Callable[[int, dict[str, list[tuple[float, float]]]], None]) -> None:
    """Measure until the medians of both times agree; a busy machine makes few samples worth little, so all count.

    How many questions are asked is the rule, and has a test of its own; this one looks for what nobody has thought of.
    """
    seconds: dict[str, list[tuple[float, float]]] = {}
    shown: dict[str, list[str]] = {}
    for attempt in range(TRIES):
        measure(attempt, seconds)
        medians = {what: [statistics.median(one) for one in zip(*got, strict=True)] for what, got in seconds.items()}
        if all(max(times) <= min(times) * (1 + WITHIN) for times in zip(*medians.values(), strict=True)):
            return
        shown = {what: [f"{median * 1000:.2f} ms" for median in both] for what, both in medians.items()}
    pytest.fail(f"the medians (challenged, refused) differ by more than {WITHIN:.0%}: {shown}")


def test_every_refused_login_takes_the_same_time_on_a_cold_cache(world: World, database: Database) -> None:
    def measure(attempt: int, seconds: dict[str, list[tuple[float, float]]]) -> None:
        slugs = enter(world, database, f"m{attempt}-")
        for login, other in zip(slugs[:ROUNDS], slugs[ROUNDS:], strict=True):
            for what, way in ways(login, other, f"no{login}").items():
                seconds.setdefault(what, []).append(refused_after(world, *way))

    agree(measure)


def test_every_refused_login_takes_the_same_time_by_a_name_that_is_in_use(
    world: World, tenant: TenantUnderTest
) -> None:
    def measure(_attempt: int, seconds: dict[str, list[tuple[float, float]]]) -> None:
        for _ in range(ROUNDS):
            for what, way in ways(tenant.slug, tenant.slug, "nobody").items():
                seconds.setdefault(what, []).append(refused_after(world, *way))

    agree(measure)
