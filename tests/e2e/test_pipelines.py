"""Random pipelines of several clients who share few backends, some of whom vanish at any byte.

Who stays is answered as on a connection of its own.  Who vanishes leaves backends in which nothing is open, and of
which nothing was committed that was not asked for.  `PGTENANT_PIPELINES=600` looks for so many seconds, and
`PGTENANT_PIPELINES=600:12345` begins with that number.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import pytest
from harness.disasters import SEED as MINE
from harness.disasters import leftovers, login
from harness.pipelines import END, GOODBYE, SEED, Pipeline, make_pipeline
from harness.rawclient import Disconnected, RawClient, bind, execute, query, sync
from harness.registries import TenantUnderTest
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

SECONDS, _, FIRST = os.environ.get("PGTENANT_PIPELINES", "4").partition(":")
CLIENTS = 3
PORTALS = ("", "one", "two")
Answers = list[tuple[str, bytes]]


@pytest.fixture(scope="module", params=[1, 2], ids=["one backend", "two backends"])
def pool_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def tenant(world: World, pg18: ServerFacts, pg17: ServerFacts, pool_size: int) -> TenantUnderTest:
    server = pg18 if pool_size == 1 else pg17
    return world.tenant(server, seed=MINE + SEED, limits=Limits(pool_size=pool_size, queue_wait_timeout=60.0))


def pieces(data: bytes, chance: random.Random) -> Iterator[bytes]:
    size = chance.choice([len(data) + 1, len(data) + 1, 400, 37])
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read_all(client: RawClient) -> Answers:
    answers: Answers = []
    with suppress(Disconnected, ConnectionError):
        while True:
            message = client.read()
            answers.append((message.kind, message.body))
    return answers


def stay(client: RawClient, pipeline: Pipeline, chance: random.Random) -> Answers:
    """Say all of it and a goodbye, and collect what is answered."""
    with suppress(ConnectionError):
        for piece in pieces(pipeline.data + GOODBYE, chance):
            client.send(piece)
    return read_all(client)


def vanish(client: RawClient, data: bytes, chance: random.Random) -> None:
    """Say that much, and be gone in one of the ways that there are."""
    with suppress(ConnectionError):
        for piece in pieces(data, chance):
            client.send(piece)
        client.sock.settimeout(chance.choice([0.0001, 0.002, 0.02]))
        with suppress(TimeoutError):
            while chance.random() < 0.9 and client.sock.recv(4096):
                pass
        way = chance.randrange(3)
        if way == 0:
            client.reset()
        elif way == 1:
            client.sock.shutdown(socket.SHUT_WR)
            client.sock.settimeout(client.timeout)
            while client.sock.recv(65536):
                pass
    client.close()


def ended(answers: Answers) -> bool:
    """Whether a conversation came to its end, and was not cut off by the server."""
    return any(END.encode() in body for _, body in answers[-3:])


def journal(tenant: TenantUnderTest) -> set[tuple[int, int]]:
    """What is committed, which nobody has done twice; the next round begins with an empty one."""
    found = tenant.database.psql("select client, entry from journal; truncate journal, sink").split()
    rows = [(int(client), int(entry)) for client, entry in (row.split("|") for row in found)]
    assert len(set(rows)) == len(rows), rows
    return set(rows)


def find_nothing(world: World, tenant: TenantUnderTest, pool_size: int) -> None:
    """Whoever comes next finds no transaction, no portal, no answer to somebody else's question."""
    with login(world.proxy, tenant) as client:
        client.send(query("select 'mine'"))
        assert [(one.kind, one.text) for one in client.read_until() if one.kind in "CZE"] == [
            ("C", "SELECT 1"),
            ("Z", "I"),
        ]
        for portal in PORTALS:
            client.send(execute(portal), sync())
            assert [one.fields["C"] if one.kind == "E" else one.text for one in client.read_until()] == ["34000", "I"]
        client.send(bind(["1"], statement="kept"), sync())
        assert [one.fields["C"] if one.kind == "E" else one.text for one in client.read_until()] == ["26000", "I"]
    assert leftovers(world.proxy, tenant, pool_size) == set()


def play(number: int, world: World, tenant: TenantUnderTest) -> int:
    """One round; how many of its conversations came to their end."""
    chance = random.Random(number)
    pipelines = [make_pipeline(client, chance) for client in range(CLIENTS)]
    cuts = [None if chance.random() < 0.6 else chance.randrange(len(one.data)) for one in pipelines]
    database = tenant.database
    expected: dict[int, Answers] = {}
    for pipeline, cut in zip(pipelines, cuts, strict=True):
        if cut is None:
            with RawClient(database.server.port) as client:
                client.login(database.role, database.password, database.name)
                expected[pipeline.client] = stay(client, pipeline, random.Random(number))
    wanted = journal(tenant)

    def through(pipeline: Pipeline, cut: int | None) -> Answers | None:
        own = random.Random(number * CLIENTS + pipeline.client)
        with login(world.proxy, tenant) as client:
            if cut is None:
                return stay(client, pipeline, own)
            vanish(client, pipeline.data[:cut], own)
            return None

    with ThreadPoolExecutor(CLIENTS) as pool:
        got = list(pool.map(through, pipelines, cuts))
    world.wait_for_rest(tenant)
    committed = journal(tenant)
    whole = 0
    for pipeline, cut, answers in zip(pipelines, cuts, got, strict=True):
        mine = {entry for client, entry in committed if client == pipeline.client}
        if cut is not None:
            assert mine <= pipeline.committed_within(cut), f"round {number}: cut at {cut}: {pipeline}"
        elif ended(expected[pipeline.client]):
            assert answers == expected[pipeline.client], f"round {number}: {pipeline}"
            assert mine == {entry for client, entry in wanted if client == pipeline.client}, f"round {number}"
            whole += 1
    return whole


def test_random_pipelines_of_clients_who_come_and_go(world: World, tenant: TenantUnderTest, pool_size: int) -> None:
    deadline = time.monotonic() + float(SECONDS)
    whole = 0
    for number in count(int(FIRST or 0)):
        whole += play(number, world, tenant)
        find_nothing(world, tenant, pool_size)
        if time.monotonic() > deadline and whole:
            break
