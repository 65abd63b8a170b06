"""Guessing passwords: however the tenant is spelled, from one address a login is guessed at about once a second."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from harness.rawclient import ServerSaid
from harness.registries import TenantUnderTest
from harness.world import World

from proxy.auth import build_verifier
from proxy.demo.facts import ServerFacts
from registry.contract import Secret
from registry.domain.models import LoginChange

FIRST, MOST = 0.05, 0.4
PROXY = {
    "auth": {"failure_delay": FIRST, "failure_delay_most": MOST},
    "console": {"admins": {"ops.ann": build_verifier("right", bytes(range(16))).text()}},
    "routing": {"database_patterns": ["db_{tenant}"]},
    "log": {"level": "warning"},
}
GUESSES = 10
WAITS = FIRST + 2 * FIRST + 4 * FIRST + 4 * MOST
"""Seconds that so many guesses take, the first three of which are free."""


@pytest.fixture(scope="module")
def tenant(world: World, pg18: ServerFacts) -> TenantUnderTest:
    made = world.tenant(pg18, aliases=("also",))
    world.registry.do(lambda service: service.add_login("supp", None, LoginChange(Secret("right"))))
    return made


@dataclass(frozen=True, slots=True)
class Way:
    """How a guess names user and tenant."""

    user: str
    database: str | None = None
    options: str = ""


def spellings(user: str) -> list[Way]:
    """Ways to say the same user and ever other tenants, all of them made up."""
    return [
        (
            Way(f"{user}.x{number}"),
            Way(user, f"x{number}"),
            Way(user, f"db_x{number}"),
            Way(user, "pgtenant", f"-c tenant=x{number}"),
            Way(user, None, f"-c tenant=X{number}"),
        )[number % 5]
        for number in range(GUESSES)
    ]


def guess(world: World, source: str, way: Way) -> None:
    with world.proxy.connect(source) as client, pytest.raises(ServerSaid) as caught:
        client.login(way.user, "guess", way.database, options=way.options)
    assert caught.value.sqlstate in {"28P01", "28000"}


def guess_in_turn(world: World, source: str, ways: list[Way]) -> float:
    began = time.monotonic()
    for way in ways:
        guess(world, source, way)
    return time.monotonic() - began


def guess_at_once(world: World, source: str, ways: list[Way]) -> float:
    began = time.monotonic()
    with ThreadPoolExecutor(len(ways)) as threads:
        list(threads.map(lambda way: guess(world, source, way), ways))
    return time.monotonic() - began


def test_made_up_spellings_do_not_speed_up_guessing_whoever_is_guessed_at(
    world: World, tenant: TenantUnderTest
) -> None:
    whose = {"all tenants'": "supp", "a tenant's": tenant.user, "the console's": "ops.ann", "nobody's": "eve"}
    ways = {what: spellings(user) for what, user in whose.items()}
    ways["the console's"] = [Way("ops.ann", "pgtenant", f"-c tenant=x{number}") for number in range(GUESSES)]
    with ThreadPoolExecutor(8) as threads:
        took = {}
        for number, what in enumerate(whose):
            one = ways[what]
            took[what, "in turn"] = threads.submit(guess_in_turn, world, f"127.0.1.{number}", one)
            took[what, "at once"] = threads.submit(guess_at_once, world, f"127.0.2.{number}", one)
        seconds = {what: future.result() for what, future in took.items()}
    assert min(seconds.values()) >= WAITS, seconds


def test_a_tenant_that_is_named_by_all_its_names_is_guessed_at_no_faster(world: World, tenant: TenantUnderTest) -> None:
    names = (tenant.slug, "also", tenant.database.name, f"db_{tenant.slug}")
    ways = [
        way for name in names for way in (Way("app", name), Way(f"app.{name}"), Way("app", None, f"-c tenant={name}"))
    ]
    assert guess_in_turn(world, "127.0.3.1", 2 * ways) >= len(names) * 7 * FIRST, "six guesses each"


def test_who_is_familiar_there_goes_on_meanwhile(world: World, tenant: TenantUnderTest) -> None:
    source = "127.0.4.1"

    def log_in() -> float:
        began = time.monotonic()
        with world.proxy.connect(source) as client:
            client.login(tenant.user, tenant.password, tenant.slug)
        return time.monotonic() - began

    log_in()
    with ThreadPoolExecutor(1) as thread:
        guessing = thread.submit(guess_in_turn, world, source, spellings(tenant.user))
        while not guessing.done():
            assert log_in() < MOST / 2
        assert guessing.result() >= WAITS
