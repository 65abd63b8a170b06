"""What somebody without a password can find out by the clock: nothing either, also by names that are new here."""

from __future__ import annotations

import base64
import statistics
import struct
import time

import pytest
from harness.databases import Database
from harness.rawclient import cstring, frame, startup
from harness.world import World

from proxy.auth import build_verifier
from proxy.demo.facts import ServerFacts
from registry.domain.models import LoginChange, TenantChange
from registry.service import RegistryService

PROXY = {"auth": {"failure_delay": 0.0}, "log": {"level": "warning"}}
ROUNDS = 80
WITHIN = 0.10
"""The share of the shortest median by which the longest may be above it."""
TRIES = 5


@pytest.fixture(scope="module")
def database(world: World, pg18: ServerFacts) -> Database:
    return world.database(pg18, "timing")


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


def refused_after(world: World, user: str, database: str) -> float:
    """Seconds that the proxy takes to refuse a login whose proof is wrong, but well formed."""
    with world.proxy.connect() as client:
        began = time.perf_counter()
        client.send(startup({"user": user, "database": database}))
        assert client.read().kind == "R"
        first = b"n,,n=,r=" + b"c" * 24
        client.send(frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", len(first)) + first))
        nonce = client.read().body[4:].partition(b",")[0]
        client.send(frame("p", b"c=biws,%b,p=%b" % (nonce, base64.b64encode(b"p" * 32))))
        assert client.read().fields["C"] == "28P01"
        return time.perf_counter() - began


def measure(world: World, database: Database, prefix: str, seconds: dict[str, list[float]]) -> None:
    """Fail to log in in three ways by turns, asking for every name once."""
    slugs = enter(world, database, prefix)
    known, other = slugs[:ROUNDS], slugs[ROUNDS:]
    for number in range(ROUNDS):
        seconds["wrong password"].append(refused_after(world, "app", known[number]))
        seconds["unknown user"].append(refused_after(world, "pal", other[number]))
        seconds["unknown tenant"].append(refused_after(world, "app", f"no{known[number]}"))


def test_every_refused_login_takes_the_same_time_on_a_cold_cache(world: World, database: Database) -> None:
    seconds: dict[str, list[float]] = {"wrong password": [], "unknown user": [], "unknown tenant": []}
    medians: dict[str, float] = {}
    for attempt in range(TRIES):
        # A busy machine makes few samples worth little, so that all of them count.
        measure(world, database, f"m{attempt}-", seconds)
        medians = {what: statistics.median(samples) for what, samples in seconds.items()}
        if max(medians.values()) <= min(medians.values()) * (1 + WITHIN):
            return
    shown = {what: f"{median * 1000:.2f} ms" for what, median in medians.items()}
    pytest.fail(f"the medians differ by more than {WITHIN:.0%}: {shown}")
