"""Time limits on virtual time: what sweeps see, and when something is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.pool.time_limits import (
    CANCEL_GRACE,
    CANCEL_QUERY,
    END_IDLE_CLIENT,
    END_IDLE_TRANSACTION,
    END_QUERY,
    END_TRANSACTION,
    PAUSED,
    RESTING,
    RUNNING,
    WITHIN,
    TimeLimits,
    Watch,
    plan_limit,
)

TICK = 0.1
ALL = TimeLimits(query=1.0, transaction=5.0, idle_transaction=2.0, client_idle=3.0)


class Session:
    """A session that sweeps look at."""

    def __init__(self, limits: TimeLimits) -> None:
        self.limits = limits
        self.now = 100.0
        self.watch = Watch(self, self.now)
        self.doing = RESTING
        self.request = 0
        self.transaction = 0

    def sweep(self, seconds: float = TICK) -> int:
        """Let time pass, in sweeps, and tell what the last one found due, or the first that found anything."""
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.watch.look(self.doing, self.request, self.transaction, self.now)
            due = plan_limit(self.watch, self.limits, self.now)
            if due != WITHIN:
                return due
        return WITHIN

    def answered(self, doing: int) -> None:
        self.request += 1
        if doing == RESTING:
            self.transaction += 1
        self.doing = doing


@pytest.mark.parametrize(
    ("doing", "seconds", "due"),
    [
        (RUNNING, 1.0, CANCEL_QUERY),
        (PAUSED, 2.0, END_IDLE_TRANSACTION),
        (RESTING, 3.0, END_IDLE_CLIENT),
    ],
)
def test_a_limit_is_never_kept_too_early_and_two_sweeps_late_at_most(doing: int, seconds: float, due: int) -> None:
    session = Session(ALL)
    session.doing = doing
    assert session.sweep(seconds) == WITHIN
    assert session.sweep(2 * TICK) == due


@pytest.mark.parametrize("doing", [RESTING, RUNNING, PAUSED])
def test_without_limits_nothing_is_ever_due(doing: int) -> None:
    session = Session(TimeLimits())
    session.doing = doing
    assert session.sweep(1000) == WITHIN


def test_short_requests_one_after_the_other_are_not_a_long_one() -> None:
    session = Session(ALL)
    for _ in range(100):
        session.doing = RUNNING
        assert session.sweep(0.5) == WITHIN
        session.answered(RESTING)


def test_short_transactions_one_after_the_other_are_not_a_long_one_even_if_no_sweep_sees_a_gap() -> None:
    session = Session(ALL)
    for _ in range(100):
        session.doing = RUNNING
        assert session.sweep(0.5) == WITHIN
        session.transaction += 1
        session.request += 1


def test_a_transaction_of_short_requests_and_pauses_has_its_limit() -> None:
    session = Session(ALL)
    due = WITHIN
    while due == WITHIN:
        session.doing = RUNNING
        due = due or session.sweep(0.3)
        session.answered(PAUSED)
        due = due or session.sweep(0.3)
    assert due == END_TRANSACTION
    assert 5.0 <= session.now - 100.0 <= 5.0 + 2.5 * TICK


def test_a_server_that_does_not_react_to_the_cancellation_costs_the_session() -> None:
    session = Session(ALL)
    session.doing = RUNNING
    assert session.sweep(2.0) == CANCEL_QUERY
    session.watch.cancelled_at = session.now
    session.limits = TimeLimits(query=1.0)
    assert session.sweep(CANCEL_GRACE - TICK) == WITHIN, "it is not cancelled twice"
    assert session.sweep(2 * TICK) == END_QUERY


def test_a_cancellation_counts_for_one_request_only() -> None:
    session = Session(TimeLimits(query=1.0))
    session.doing = RUNNING
    assert session.sweep(2.0) == CANCEL_QUERY
    session.watch.cancelled_at = session.now
    session.request += 1
    assert session.sweep(1.0) == WITHIN
    assert session.sweep(0.2) == CANCEL_QUERY


def test_a_limit_that_is_lowered_counts_from_what_was_seen_before() -> None:
    session = Session(TimeLimits(query=1000.0))
    session.doing = RUNNING
    assert session.sweep(10) == WITHIN
    session.limits = TimeLimits(query=5.0)
    assert session.sweep(TICK) == CANCEL_QUERY


STEPS = st.lists(st.tuples(st.sampled_from([RESTING, RUNNING, PAUSED]), st.integers(1, 30)), max_size=40)


@given(steps=STEPS)
def test_nothing_is_due_before_it_has_really_lasted_that_long(steps: list[tuple[int, int]]) -> None:
    session = Session(ALL)
    began = since_transaction = session.now
    for doing, sweeps in steps:
        session.answered(doing)
        began = session.now
        if doing == RESTING:
            since_transaction = session.now
        for _ in range(sweeps):
            due = session.sweep()
            lasted = session.now - began + 1e-6
            if due == END_TRANSACTION:
                assert session.now - since_transaction + 1e-6 >= ALL.transaction
            elif due != WITHIN:
                limit = {CANCEL_QUERY: ALL.query, END_IDLE_TRANSACTION: ALL.idle_transaction}
                assert lasted >= limit.get(due, ALL.client_idle)
                return
