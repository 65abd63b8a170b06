"""Who gets a place, who waits and who goes: the policy alone."""

from __future__ import annotations

import random

import pytest

from proxy.net.places import Place, PlaceLimits, Places, Standing

ADMITTED, QUEUED, EVICTED, REFUSED = Standing.ADMITTED, Standing.QUEUED, Standing.EVICTED, Standing.REFUSED


class World:
    """Places, and what those who have them have said without anybody having read it."""

    def __init__(self, places: int = 12, per_address: int = 3, queue: int = 8) -> None:
        self.unread: set[int] = set()
        self.places = Places(PlaceLimits(places, per_address, queue), lambda place: id(place) in self.unread)

    def come(self, address: str | None, count: int = 1, *, silent: bool = False) -> list[Place]:
        return [self.places.arrive(address, silent=silent) for _ in range(count)]


def standings(places: list[Place]) -> list[Standing]:
    return [place.standing for place in places]


def test_one_address_gets_its_share_and_queues_beyond_it_while_others_come_in() -> None:
    world = World()
    assert standings(world.come("a", 5)) == [ADMITTED] * 3 + [QUEUED] * 2
    assert standings(world.come("b", 3)) == [ADMITTED] * 3


def test_one_address_never_gets_more_than_a_quarter_of_the_places() -> None:
    world = World(places=16, per_address=100)
    assert standings(world.come("a", 5)) == [ADMITTED] * 4 + [QUEUED]
    assert standings(World(places=1).come("a")) == [ADMITTED]


def test_the_queue_of_one_address_is_half_of_the_queue_and_who_comes_then_is_refused() -> None:
    world = World(queue=4)
    assert standings(world.come("a", 6)) == [ADMITTED] * 3 + [QUEUED] * 2 + [REFUSED]
    assert (world.places.queued, world.places.refused) == (2, 1)
    assert standings(world.come("b", 6)) == [ADMITTED] * 3 + [QUEUED] * 2 + [REFUSED]


def test_trusted_ones_have_all_places_and_the_whole_queue() -> None:
    world = World(queue=4)
    assert standings(world.come(None, 17)) == [ADMITTED] * 12 + [QUEUED] * 4 + [REFUSED]


def test_a_place_that_is_given_up_is_the_oldest_waiters_of_that_address() -> None:
    world = World()
    first, *_, waiting, later = world.come("a", 5)
    world.places.take_changed()
    world.places.leave(first)
    assert (waiting.standing, later.standing) == (ADMITTED, QUEUED)
    assert world.places.take_changed() == [waiting]


def test_addresses_that_wait_take_turns() -> None:
    world = World(places=4, queue=100)
    inside = world.come(None, 4)
    crowd = world.come("a", 20)
    alone = world.come("b", 1)
    for place in inside[:2]:
        world.places.leave(place)
    assert (crowd[0].standing, crowd[1].standing, alone[0].standing) == (ADMITTED, QUEUED, ADMITTED)
    world.places.leave(crowd[0])
    assert crowd[1].standing is ADMITTED


def test_when_all_places_are_used_the_oldest_silent_one_goes_first() -> None:
    world = World(places=4)
    world.come("a", 1)
    old, young = world.come("b", 1, silent=True) + world.come("c", 1, silent=True)
    world.come(None, 1)
    world.places.take_changed()
    (newcomer,) = world.come("d")
    assert (old.standing, young.standing, newcomer.standing) == (EVICTED, ADMITTED, ADMITTED)
    assert old in world.places.take_changed()
    assert world.places.evicted == 1


def test_within_a_full_share_the_oldest_silent_one_of_that_address_goes() -> None:
    world = World()
    (stranger,) = world.come("b", silent=True)
    mine = world.come("a", 3, silent=True)
    (newcomer,) = world.come("a")
    assert standings([stranger, *mine, newcomer]) == [ADMITTED, EVICTED, ADMITTED, ADMITTED, ADMITTED]


def test_who_has_spoken_keeps_his_place_even_if_nobody_has_read_it_yet() -> None:
    world = World()
    heard, unread, silent = world.come("a", 3, silent=True)
    world.places.heard(heard)
    world.unread.add(id(unread))
    world.come("a")
    assert standings([heard, unread, silent]) == [ADMITTED, ADMITTED, EVICTED]
    assert standings(world.come("a", 2)) == [QUEUED, QUEUED]


def test_who_turns_out_to_be_somebody_else_is_counted_by_that_address() -> None:
    world = World()
    world.come("a", 3)
    behind = world.come(None, 2)
    world.places.move(behind[0], "a")
    world.places.move(behind[1], "b")
    assert standings(behind) == [QUEUED, ADMITTED]
    assert (world.places.used, world.places.queued) == (4, 1)


def test_who_has_a_place_keeps_it_under_another_address_though_others_wait() -> None:
    world = World(places=2, per_address=1)
    balanced, _ = world.come(None, 2)
    (waiting,) = world.come("w")
    world.places.move(balanced, "b")
    assert (balanced.standing, waiting.standing) == (ADMITTED, QUEUED)


def test_wider_limits_let_those_in_who_wait_and_narrower_ones_take_nothing_away() -> None:
    world = World()
    mine = world.come("a", 5)
    world.places.set_limits(PlaceLimits(40, 10, 8))
    assert standings(mine) == [ADMITTED] * 5
    world.places.set_limits(PlaceLimits(2, 1, 8))
    assert standings(mine) == [ADMITTED] * 5
    assert standings(world.come("a")) == [QUEUED]
    for place in mine[:4]:
        world.places.leave(place)
    assert world.places.queued == 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_counts_hold_and_nobody_waits_who_could_come_in(seed: int) -> None:
    chance = random.Random(seed)
    limits = PlaceLimits(chance.randint(1, 20), chance.randint(1, 5), chance.randint(0, 10))
    unread: set[int] = set()
    places = Places(limits, lambda place: id(place) in unread)
    everybody: list[Place] = []
    for _ in range(600):
        here = [place for place in everybody if place.standing in {ADMITTED, QUEUED}]
        action = chance.random()
        if action < 0.5 or not here:
            everybody.append(places.arrive(chance.choice([None, "a", "b", "c"]), silent=chance.random() < 0.5))
        elif action < 0.8:
            places.leave(chance.choice(here))
        elif action < 0.9:
            places.heard(chance.choice(here))
        else:
            places.move(chance.choice(here), chance.choice([None, "a", "b", "c"]))
        if everybody and chance.random() < 0.1:
            unread.add(id(chance.choice(everybody)))
        inside = [place for place in everybody if place.standing is ADMITTED]
        queue = [place for place in everybody if place.standing is QUEUED]
        assert (places.used, places.queued) == (len(inside), len(queue))
        assert places.silent == sum(place.silent for place in inside)
        assert len(inside) <= limits.places
        assert len(queue) <= limits.queue
        for address in ("a", "b", "c"):
            mine = sum(place.address == address for place in inside)
            assert mine <= limits.share
            waits = sum(place.address == address for place in queue)
            assert waits <= limits.queue_share
            assert not (waits and mine < limits.share and len(inside) < limits.places), "somebody waits for nothing"
    for place in everybody:
        places.leave(place)
    assert (places.used, places.queued, places.silent, places.busiest()) == (0, 0, 0, (None, 0))
