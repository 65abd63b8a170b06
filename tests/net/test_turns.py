"""Logins that wait because of earlier failures: one after the other, and nobody else with them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from harness.waiting import allowed, eventually

from proxy.auth import Attempt, Slowdown, WrongPassword
from proxy.net.handshake_io import PeerGone
from proxy.net.turns import MAX_QUEUED, Turns

APP = Attempt("acme", "10.0.0.1", "app", "app")
ANN = replace(APP, user="ann", name="ann")


def turns(first: float = 0.05, most: float = 0.05) -> Turns:
    return Turns(Slowdown(first=first, most=most, forget=60.0), clock=time.monotonic)


async def guess(there: Turns, attempt: Attempt = APP) -> float:
    """Fail once; the time at which the answer was looked at."""
    seen = 0.0
    try:
        async with there.turn(attempt):
            seen = time.monotonic()
            raise WrongPassword("no")
    except WrongPassword:
        return seen


async def succeed(there: Turns, attempt: Attempt = APP) -> float:
    async with there.turn(attempt):
        return time.monotonic()


async def test_guesses_made_at_once_are_looked_at_one_after_the_other() -> None:
    there = turns()
    seen = sorted(await asyncio.gather(*(guess(there) for _ in range(8))))
    gaps = [later - earlier for earlier, later in pairwise(seen)]
    assert min(gaps[2:]) >= 0.045, "as long apart as when they are made one by one"
    assert there.slowed == 5
    assert len(there) == 0


async def test_other_logins_do_not_wait_behind_them() -> None:
    there = turns(10.0, 10.0)
    waiting = [asyncio.create_task(guess(there)) for _ in range(20)]
    await eventually(lambda: there.slowed == 1, what="one that waits, with the others behind it")
    async with asyncio.timeout(1.0):
        await succeed(there, ANN)
    assert there.slowed == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(there) == 0


async def test_a_success_lets_all_go_that_wait_behind_it() -> None:
    there = turns(0.2, 5.0)
    for _ in range(3):
        await guess(there)
    began = time.monotonic()
    seen = await asyncio.gather(*(succeed(there) for _ in range(50)))
    assert min(seen) - began >= 0.19
    assert max(seen) - min(seen) < allowed(0.15)
    assert there.slowed == 1


async def test_who_has_left_holds_up_nobody() -> None:
    there = turns(0.2, 0.2)
    for _ in range(3):
        await guess(there)

    async def leave() -> None:
        with pytest.raises(PeerGone):
            async with there.turn(APP, lambda: True):
                raise AssertionError("nobody looks at an answer that nobody waits for")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(leave())
        began = time.monotonic()
        looked_at = await tasks.create_task(succeed(there))
    assert looked_at - began < 1.0
    assert there.slowed == 1
    assert len(there) == 0


async def test_beyond_the_bound_an_answer_is_refused_unseen() -> None:
    there = turns(10.0, 10.0)
    for _ in range(3):
        await guess(there)
    waiting = [asyncio.create_task(succeed(there)) for _ in range(MAX_QUEUED)]
    await eventually(lambda: there.slowed == 1, what="one that waits")
    with pytest.raises(WrongPassword):
        await succeed(there)
    waiting.pop().cancel()
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(succeed(there)))
    await asyncio.sleep(0)
    assert not waiting[-1].done(), "whoever leaves makes room"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_guesses_made_at_once_under_many_spellings_are_looked_at_one_after_the_other() -> None:
    there = turns()
    spellings = [replace(APP, tenant=f"x{number}") for number in range(10)]
    seen = sorted(await asyncio.gather(*(guess(there, spelled) for spelled in spellings)))
    gaps = [later - earlier for earlier, later in pairwise(seen)]
    assert min(gaps[2:]) >= 0.045, "as long apart as with one spelling"
    assert there.slowed == 7
    assert len(there) == 0


async def test_who_waits_for_his_own_failures_holds_up_no_other_tenants_login_of_that_name() -> None:
    there = turns(10.0, 10.0)
    for _ in range(3):
        await guess(there)
    waiting = asyncio.create_task(guess(there))
    await eventually(lambda: there.slowed == 1, what="one that waits")
    async with asyncio.timeout(1.0):
        await succeed(there, replace(APP, tenant="globex"))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_familiar_login_does_not_wait_behind_the_guesses_at_its_name() -> None:
    there = turns(10.0, 10.0)
    known = replace(APP, tenant="globex", target="7")
    there.admitted(known)
    for number in range(3):
        await guess(there, replace(APP, tenant=f"x{number}"))
    waiting = asyncio.create_task(succeed(there))
    await eventually(lambda: there.slowed == 1, what="one that is not familiar and waits")
    async with asyncio.timeout(1.0):
        await succeed(there, known)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
