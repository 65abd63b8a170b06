from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.auth import Attempt, Slowdown
from proxy.auth.slowdown import FREE_OF_SITE, neighbourhood

HERE, ELSEWHERE = Attempt("acme", "10.0.0.1", "app"), Attempt("acme", "10.0.0.2", "app")
COLLEAGUE = replace(HERE, user="ann")


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
        table.failed(replace(HERE, user=f"u{number}"), now)


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
    table.succeeded(COLLEAGUE, 5.0)
    assert table.delay(HERE, 5.0) == pytest.approx(0.4)
    table.succeeded(HERE, 5.0)
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
    table.succeeded(COLLEAGUE, 0.0)
    spray(table, 30.0)
    assert table.reserve(COLLEAGUE, 59.0) == 0.0
    assert table.reserve(COLLEAGUE, 60.0) > 0, "it has not been for a while"
    table.succeeded(COLLEAGUE, 60.0)
    assert table.reserve(HERE, 60.0) > 0, "and one good login does not speed up guessing others"


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
    table.succeeded(HERE, 30.0)
    assert len(table) == 0


def test_the_table_is_bounded() -> None:
    table = Slowdown(first=0.1, most=5.0, forget=60.0, limit=3)
    for number in range(10):
        someone = Attempt("acme", f"10.0.0.{number}", "app")
        for _ in range(5):
            table.failed(someone, 0.0)
        table.succeeded(replace(someone, user="ann"), 0.0)
    assert len(table) == 9
    assert table.delay(Attempt("acme", "10.0.0.9", "app"), 0.0) > 0
    assert table.delay(Attempt("acme", "10.0.0.0", "app"), 0.0) == 0.0


def test_long_names_are_told_apart_and_take_little_memory() -> None:
    one, other = (Attempt.of("t" * 9000, "10.0.0.1", "u" * 9000 + end) for end in ("a", "\udcff"))
    assert one != other
    assert one == Attempt.of("t" * 9000, "10.0.0.1", "u" * 9000 + "a")
    assert len(one.tenant) + len(one.user) == 128
    assert Attempt.of("acme", "::ffff:10.0.0.1", "app") == HERE


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
