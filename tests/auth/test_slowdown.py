from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.auth import Attempt, Slowdown
from proxy.auth.addresses import neighbourhood
from proxy.auth.slowdown import FAMILIAR, FREE, FREE_OF_SITE

HERE = Attempt("acme", "10.0.0.1", "app", "app")
ELSEWHERE = replace(HERE, address="10.0.0.2")
COLLEAGUE = replace(HERE, user="ann", name="ann")


def slowdown(first: float = 0.1) -> Slowdown:
    return Slowdown(first=first, most=5.0, forget=60.0)


def delays(table: Slowdown, failures: int) -> list[float]:
    found = []
    for now in range(failures):
        table.failed(HERE, float(now))
        found.append(table.delay(HERE, float(now)))
    return found


def spray(table: Slowdown, now: float = 0.0, count: int = FREE_OF_SITE) -> None:
    """Fail once each with many logins of one tenant from one address."""
    for number in range(count):
        table.failed(replace(HERE, user=f"u{number}", name=f"u{number}"), now)


def test_after_some_failures_each_doubles_the_wait_up_to_a_limit() -> None:
    assert delays(slowdown(), 11) == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_a_million_failures_wait_no_longer() -> None:
    table = slowdown()
    for _ in range(100):
        table.failed(HERE, 0.0)
    assert table.delay(HERE, 0.0) == 5.0


def test_who_comes_from_elsewhere_or_to_another_tenant_or_as_another_does_not_wait() -> None:
    table = slowdown()
    delays(table, 5)
    for other in (ELSEWHERE, replace(HERE, tenant="globex"), COLLEAGUE):
        assert table.delay(other, 5.0) == table.reserve(other, 5.0) == 0.0


def test_a_success_forgives_its_own_failures_and_nobody_elses() -> None:
    table = slowdown()
    delays(table, 5)
    table.succeeded(COLLEAGUE)
    assert table.delay(HERE, 5.0) == pytest.approx(0.4)
    table.succeeded(HERE)
    assert table.delay(HERE, 5.0) == 0.0


def test_many_logins_tried_from_one_address_are_let_through_one_after_the_other() -> None:
    table = slowdown()
    spray(table, count=FREE_OF_SITE - 1)
    assert table.reserve(HERE, 0.0) == 0.0
    table.failed(HERE, 0.0)
    assert [table.reserve(replace(HERE, user=f"v{n}"), 0.0) for n in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert table.reserve(HERE, 0.25) == pytest.approx(0.15)
    assert table.reserve(ELSEWHERE, 0.25) == 0.0
    assert max(table.reserve(HERE, 1.0) for _ in range(1000)) == pytest.approx(5.0), "but nobody is locked out"


def test_a_login_that_was_good_lately_does_not_wait_for_the_failures_of_others() -> None:
    table = slowdown()
    table.admitted(COLLEAGUE, 0.0)
    spray(table, FAMILIAR - 1)
    assert table.reserve(COLLEAGUE, FAMILIAR - 1) == 0.0
    assert table.reserve(COLLEAGUE, FAMILIAR) > 0, "it has not been for a while"
    table.succeeded(COLLEAGUE)
    table.admitted(COLLEAGUE, FAMILIAR)
    assert table.reserve(HERE, FAMILIAR) > 0, "and one good login does not speed up guessing others"


def test_spellings_of_the_tenant_do_not_speed_up_guessing_at_one_user_name() -> None:
    table, now = slowdown(), 0.0
    waits = []
    for number in range(12):
        spelled = replace(HERE, tenant=f"x{number}")
        assert table.delay(spelled, now) == 0.0, "each is new"
        waits.append(table.delay_of_name(spelled, now))
        now += waits[-1]
        table.failed(spelled, now)
    assert waits == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])
    assert table.delay_of_name(HERE, now) == pytest.approx(5.0), "whether it is a login's name or not"
    assert table.delay_of_name(HERE, now + 4.0) == pytest.approx(1.0), "counted from the last failure"
    assert table.delay_of_name(ELSEWHERE, now) == table.delay_of_name(COLLEAGUE, now) == 0.0
    mine = replace(HERE, tenant="mine", target="7")
    table.admitted(mine, now)
    assert table.delay_of_name(mine, now) == 0.0, "a familiar login is spared"
    assert table.delay_of_name(HERE, now + 59.0) == 0.0


@pytest.mark.parametrize("spellings", range(1, 15))
def test_however_many_spellings_take_turns_they_make_little_more_than_a_guess_a_second(spellings: int) -> None:
    table, now, guesses, minutes = slowdown(), 0.0, 0, 5
    ways = [replace(HERE, tenant=f"x{number}") for number in range(spellings)]
    looked_at = dict.fromkeys(ways, -60.0)
    while now < minutes * 60:
        ready = {way: looked_at[way] + table.delay(way, now) for way in ways}
        way = min(ways, key=lambda one: ready[one])
        now = max(now, ready[way])
        now += table.delay_of_name(way, now)
        table.failed(way, now)
        looked_at[way] = now
        guesses += 1
    assert guesses < 1.4 * minutes * 60


def test_a_login_that_is_familiar_under_many_spellings_is_guessed_at_no_faster_for_it() -> None:
    table = slowdown()
    ways = [replace(HERE, tenant=f"t{number}", target="7") for number in range(9)]
    for way in ways:
        table.admitted(way, 0.0)
    for way in ways[:5]:
        table.failed(way, 0.0)
    assert table.delay_of_name(ways[6], 0.0) == pytest.approx(0.4)
    other = replace(HERE, tenant="t10", target="8")
    table.admitted(other, 0.0)
    assert table.delay_of_name(other, 0.0) == 0.0, "another login of the same name"


def test_a_few_spellings_with_many_failures_each_slow_no_other_tenants_login_of_that_name() -> None:
    table = slowdown()
    for number in range(FREE - 1):
        for _ in range(50):
            table.failed(replace(HERE, tenant=f"x{number}"), 0.0)
    assert table.delay_of_name(HERE, 0.0) == 0.0
    table.failed(HERE, 0.0)
    assert table.delay_of_name(HERE, 0.0) == pytest.approx(0.1)
    table.succeeded(HERE)
    assert table.delay_of_name(HERE, 0.0) == 0.0, "a success takes back what its own spelling counts"


def test_failures_are_forgotten_after_a_while_without_one() -> None:
    table = slowdown()
    for now in (0.0, 10.0, 20.0, 50.0):
        table.failed(HERE, now)
    spray(table, 50.0)
    assert table.delay(HERE, 109.0) == pytest.approx(0.2)
    assert table.reserve(HERE, 109.0) > 0
    assert table.delay(HERE, 110.0) == table.reserve(HERE, 110.0) == 0.0


def test_nought_seconds_switch_it_off() -> None:
    table = slowdown(first=0.0)
    assert delays(table, 30) == [0.0] * 30
    assert table.reserve(HERE, 30.0) == 0.0
    table.succeeded(HERE)
    assert len(table) == 0
    table.admitted(HERE, 30.0)
    assert table.is_familiar(HERE, 30.0)


def test_the_table_is_bounded() -> None:
    table = Slowdown(first=0.1, most=5.0, forget=60.0, limit=3)
    for number in range(10):
        someone = replace(HERE, address=f"10.0.0.{number}")
        for _ in range(5):
            table.failed(someone, 0.0)
        table.admitted(replace(someone, user="ann"), 0.0)
    assert len(table) == 12
    assert table.delay(replace(HERE, address="10.0.0.9"), 0.0) > 0
    assert table.delay(replace(HERE, address="10.0.0.0"), 0.0) == 0.0


def test_long_names_are_told_apart_and_take_little_memory() -> None:
    one, other = (Attempt.of("t" * 9000, "10.0.0.1", "u" * 9000 + end, "u" * 9000) for end in ("a", "\udcff"))
    assert one != other
    assert one == Attempt.of("t" * 9000, "10.0.0.1", "u" * 9000 + "a", "u" * 9000)
    assert len(one.tenant) + len(one.user) + len(one.name) == 192
    assert Attempt.of("acme", "::ffff:10.0.0.1", "app", "app") == HERE


@pytest.mark.parametrize(
    ("address", "known_as"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::"),
        ("2001:db8:1:2:bbbb::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("/run/socket", "/run/socket"),
    ],
)
def test_somebody_is_known_by_the_addresses_that_he_could_take(address: str, known_as: str) -> None:
    assert neighbourhood(address) == known_as
