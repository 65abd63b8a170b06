"""The relay rules against a model of PostgreSQL's main loop, under random conversations and interleavings."""

from __future__ import annotations

from harness.malformed import MALFORMED, damaged
from harness.rawclient import bind, close, describe, execute, flush, parse, query, sync
from harness.relaymodel import (
    NOTICE,
    NOTIFICATION,
    ModelServer,
    RelayPair,
    copy_data,
    copy_done,
    copy_fail,
    function_call,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.session.pins import PIN_PIPELINE

STATEMENTS = ["select", "dml", "begin", "commit", "rollback", "error", "copyin", "copyrefused", "copyout", "deferred"]

queries = st.lists(st.sampled_from([*STATEMENTS, "setting"]), min_size=1, max_size=3).map(";".join).map(query)
portals = st.sampled_from([*STATEMENTS, "suspend", "empty", "setting"])
well_formed = st.one_of(
    queries,
    st.just(query("")),
    st.sampled_from(["ok", "ok", "error"]).map(parse),
    st.sampled_from([parse("ok", "name"), parse("error", "name"), close("name"), close(kind="P")]),
    st.sampled_from(["ok", "commit", "missing"]).map(lambda portal: bind(portal=portal)),
    st.sampled_from([describe("select"), describe("dml"), describe("missing"), describe("name", kind="S")]),
    portals.map(execute),
    st.just(sync()),
    st.just(flush()),
    st.sampled_from([function_call(1), function_call(2)]),
    st.sampled_from([copy_data("row"), copy_data("bad"), copy_done(), copy_fail()]),
)
single = st.one_of(
    well_formed,
    well_formed,
    st.sampled_from(MALFORMED),
    well_formed.filter(lambda one: one[0] not in b"dcf").flatmap(damaged),
)
# What drivers really send, so that long valid conversations are not left to chance.
usual = st.one_of(
    portals.map(lambda portal: parse("ok") + bind(portal=portal) + describe(portal) + execute(portal) + sync()),
    st.just(query("copyin") + copy_data("row") + copy_done()),
    st.just(parse("ok") + bind() + execute("copyin") + sync() + copy_data("row") + copy_done() + sync()),
    st.just(query("begin") + query("dml") + query("commit")),
    st.just(sync() + parse("ok") + flush()),
    st.just(parse("ok") + bind() + execute("dml") + flush() + query("select")),
)
versions = st.sampled_from([17, 18])
conversations = st.lists(st.one_of(single, usual), min_size=1, max_size=12).map(b"".join)
turns = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=60)


def play(pair: RelayPair, server: ModelServer, said: bytes, schedule: list[tuple[int, int]]) -> None:
    """Let bytes travel in pieces and in the order that the schedule has, then let everything arrive."""
    sent = 0
    for kind, count in [*schedule, *[(0, 1 << 20), (1, 1 << 20), (2, 1 << 20), (3, 1 << 20)] * 200]:
        if kind in (0, 4, 7) and sent < len(said):
            pair.client(said[sent : sent + count])
            sent += count
        elif kind in (1, 5) and pair.to_server:
            server.inbox += pair.to_server[:count]
            del pair.to_server[:count]
        elif kind == 2:
            server.step()
        elif kind in (3, 6) and server.outbox:
            pair.server(server.take_output(count))
        elif kind == 8 and count > 45:
            server.interrupt()
        elif kind == 9 and count > 45 and not server.dead:
            server.outbox += NOTICE if count % 2 else NOTIFICATION
        check_step(pair, server)


def check_step(pair: RelayPair, server: ModelServer) -> None:
    assert not pair.back.fault, f"a model of PostgreSQL was called at fault: {pair.back.fault}"
    if pair.releasable():
        assert not pair.back.unnamed_pasts, "changes of the unnamed statement are noted that nobody will answer"
        assert server.settled(), "would be given to somebody else"
        pending = bytes(server.inbox + pair.to_server)
        probe = ModelServer()
        probe.inbox += pending
        assert probe.settled(), "what is on its way would be answered to somebody else"


def check_end(pair: RelayPair, server: ModelServer) -> None:
    while server.step():
        pass
    pair.server(server.take_output(1 << 20))
    assert not pair.back.fault
    if pair.pins() & PIN_PIPELINE and server.settled() and not (pair.back.doubt or pair.held_from_client):
        play(pair, server, query("select"), [])
        assert not pair.pins() & PIN_PIPELINE, "a query that is answered I ends it"
    if server.dead or pair.back.doubt or pair.front.left or pair.held_from_client:
        assert not pair.releasable()
        return
    assert pair.back.skipping == server.skipping
    assert pair.back.copy_in == bool(server.copying)
    if server.settled() and not server.since_sync:
        assert pair.releasable(), "would be kept for no reason"
        assert chr(pair.back.status) == server.status


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(conversations, turns, versions)
@example(parse("ok") + bind() + execute("copyin") + copy_data("bad") + sync() + copy_done() + sync(), [], 18)
@example(query("copyin") + copy_data("bad") + sync() + copy_done(), [], 18)
@example(query("copyin") + sync() + copy_data("bad") + copy_done() + query("select"), [], 18)
@example(parse("ok") + bind() + execute("dml") + query("select") + sync(), [], 18)
def test_backend_is_free_exactly_when_the_server_owes_nothing(
    said: bytes, schedule: list[tuple[int, int]], version: int
) -> None:
    pair, server = RelayPair(), ModelServer(version)
    play(pair, server, said, schedule)
    check_end(pair, server)


@settings(max_examples=200)
@given(st.lists(usual, min_size=1, max_size=6).map(b"".join), turns, versions)
def test_usual_conversation_always_ends_free(said: bytes, schedule: list[tuple[int, int]], version: int) -> None:
    pair, server = RelayPair(), ModelServer(version)
    play(pair, server, said, [turn for turn in schedule if turn[0] != 8])
    # Whatever the statements were: this ends any transaction, and any batch.
    play(pair, server, copy_done() + sync() + query("rollback"), [])
    check_end(pair, server)
    assert server.dead or pair.back.doubt or pair.releasable()


@settings(max_examples=200)
@given(conversations, turns, versions)
def test_client_sees_every_byte_of_its_server_and_the_server_every_byte_of_its_client(
    said: bytes, schedule: list[tuple[int, int]], version: int
) -> None:
    pair, server = RelayPair(), ModelServer(version)
    alone = ModelServer(version)
    alone.inbox += said
    while alone.step():
        pass
    play(pair, server, said, [turn for turn in schedule if turn[0] < 8])
    if pair.front.found == 0:
        assert bytes(pair.to_client) == bytes(alone.outbox)
