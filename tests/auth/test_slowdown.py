from __future__ import annotations

import pytest

from proxy.auth import Slowdown, neighbourhood

HERE, ELSEWHERE = ("acme", "10.0.0.1"), ("acme", "10.0.0.2")


def slowdown(first: float = 0.1) -> Slowdown:
    return Slowdown(first=first, most=5.0, forget=60.0)


def delays(table: Slowdown, failures: int) -> list[float]:
    found = []
    for now in range(failures):
        table.failed(HERE, float(now))
        found.append(table.delay(HERE, float(now)))
    return found


def test_after_some_failures_each_doubles_the_wait_up_to_a_limit() -> None:
    assert delays(slowdown(), 11) == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_a_million_failures_wait_no_longer() -> None:
    table = slowdown()
    for _ in range(100):
        table.failed(HERE, 0.0)
    assert table.delay(HERE, 0.0) == 5.0


def test_who_comes_from_elsewhere_or_to_another_tenant_does_not_wait() -> None:
    table = slowdown()
    delays(table, 5)
    assert table.delay(ELSEWHERE, 5.0) == table.delay(("globex", "10.0.0.1"), 5.0) == 0.0


def test_a_success_clears_the_failures() -> None:
    table = slowdown()
    delays(table, 5)
    table.succeeded(HERE)
    assert table.delay(HERE, 5.0) == 0.0
    assert len(table) == 0


def test_failures_are_forgotten_after_a_while_without_one() -> None:
    table = slowdown()
    for now in (0.0, 10.0, 20.0, 50.0):
        table.failed(HERE, now)
    assert table.delay(HERE, 109.0) == pytest.approx(0.2)
    assert table.delay(HERE, 110.0) == 0.0


def test_nought_seconds_switch_it_off() -> None:
    assert delays(slowdown(first=0.0), 9) == [0.0] * 9


def test_the_table_is_bounded() -> None:
    table = Slowdown(first=0.1, most=5.0, forget=60.0, limit=3)
    for number in range(10):
        for _ in range(5):
            table.failed(("acme", f"10.0.0.{number}"), 0.0)
    assert len(table) == 3
    assert table.delay(("acme", "10.0.0.9"), 0.0) > 0
    assert table.delay(("acme", "10.0.0.0"), 0.0) == 0.0


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
