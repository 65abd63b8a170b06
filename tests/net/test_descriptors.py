"""Descriptors are shared out before they run out."""

from __future__ import annotations

import pytest

from proxy.net.descriptors import Shares, share_out, shortfall

WANTED = Shares(clients=10_000, logins=10_000, queued=10_000, backends=1_000, aside=144)


def test_what_fits_is_what_is_wanted() -> None:
    assert share_out(WANTED.total, WANTED) == WANTED
    assert shortfall(WANTED, WANTED) == ""


@pytest.mark.parametrize("limit", [400, 1_024, 4_096, 20_000, WANTED.total - 1])
def test_with_fewer_descriptors_everybody_gets_a_part_and_all_parts_together_fit(limit: int) -> None:
    got = share_out(limit, WANTED)
    assert got.total <= limit
    assert got.aside == WANTED.aside
    rest = limit - got.aside - 128
    assert got.backends >= min(WANTED.backends, rest // 3)
    assert min(got.clients, got.logins) >= (rest - got.backends) // 8


def test_the_queue_gives_way_first() -> None:
    got = share_out(WANTED.total - 2_000, WANTED)
    assert (got.clients, got.logins, got.backends) == (10_000, 10_000, 1_000)
    assert shortfall(WANTED, got) == ""


def test_what_does_not_fit_is_named_by_its_setting() -> None:
    got = share_out(1_024, WANTED)
    assert shortfall(WANTED, got) == (
        f"{got.clients} of listen.max_clients = 10000, {got.logins} of listen.max_logins = 10000, "
        f"{got.backends} of pool.max_backends = 1000"
    )


def test_a_limit_that_is_too_low_for_anything_still_gives_one_of_each() -> None:
    got = share_out(64, WANTED)
    assert min(got.clients, got.logins, got.backends) >= 1
