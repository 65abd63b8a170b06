"""However the bytes of a conversation are cut: the same is forwarded, the same is owed, the same pins hold."""

from __future__ import annotations

from itertools import pairwise

from harness.fakeserver import command_complete, data_row, error_response, parameter_status, ready, row_description
from harness.rawclient import bind, close, describe, execute, flush, frame, parse, query, sync
from harness.relaymodel import NOTICE, NOTIFICATION, RelayPair, copy_data, copy_done, function_call
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.session.pins import KEPT
from proxy.session.replies import HOLD_LIMIT

PARSED, BOUND, CLOSED = (frame(kind) for kind in "123")
COPY_IN = frame("G", b"\0\0\0")
BIG = "x" * (2 * HOLD_LIMIT)

# What a client says, what the proxy injects (True) before it says so, and what the server answers.
CONVERSATION: list[tuple[bool, bytes, bytes]] = [
    (
        True,
        query("create temp table t ()") + query(f"select '{BIG}', set_config(a, 'b', false)"),
        row_description("set_config")
        + data_row("x")
        + command_complete("SELECT 1")
        + ready()
        + command_complete("CREATE TABLE")
        + ready()
        + row_description("a" * 300, "b")
        + data_row(BIG, "y")
        + NOTICE
        + command_complete("SELECT 1")
        + ready(),
    ),
    (
        False,
        parse("select", "name") + bind([BIG], statement="name") + describe() + execute() + flush(),
        PARSED + BOUND + row_description("x") + data_row("1") + command_complete("SELECT 1"),
    ),
    (
        False,
        parse("error") + bind() + execute() + query("skipped") + close("name") + sync() + sync(),
        error_response("42601", BIG, fields={"D": "detail"}) + ready() + ready(),
    ),
    (False, close("name") + sync(), CLOSED + NOTIFICATION + parameter_status("TimeZone", "UTC") + ready()),
    (
        False,
        parse("copy") + bind() + execute() + sync() + copy_data(BIG) + copy_data("") + copy_done() + sync(),
        PARSED + BOUND + COPY_IN + command_complete("COPY 2") + ready(),
    ),
    (False, function_call(1) + query(""), frame("V", b"\xff\xff\xff\xff") + ready() + frame("I") + ready()),
    (
        False,
        query("copy t to stdout; set a = b"),
        frame("H", b"\0\0\0")
        + copy_data(BIG)
        + copy_done()
        + command_complete("COPY 1")
        + command_complete("SET")
        + ready("T"),
    ),
]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def play(cuts: list[list[int]]) -> tuple[RelayPair, list[tuple[object, ...]]]:
    pair = RelayPair()
    states: list[tuple[object, ...]] = []
    for number, (inject, said, answered) in enumerate(CONVERSATION):
        mine = cuts[number % len(cuts)] if cuts else []
        if inject:
            pair.back.inject_query()
        for piece in pieces(said, mine):
            pair.client(piece)
        for piece in pieces(answered, mine[::-1]):
            pair.server(piece)
        assert not pair.back.fault
        assert pair.held_from_client == pair.held_from_server == b""
        back = pair.back
        states.append(
            (
                list(back.queue[back.head :]),
                back.status,
                back.skipping,
                back.copy_in,
                back.open_batch,
                back.doubt,
                back.queries,
                back.readies,
                list(back.errors),
                dict(back.params),
                # A text that is seen whole may be kept, of one that is not this alone is.
                pair.pins() & ~KEPT,
                pair.front.left,
            )
        )
    return pair, states


WHOLE, WHOLE_STATES = play([])
cut_lists = st.lists(
    st.lists(st.one_of(st.integers(0, 400), st.integers(0, 200_000)), max_size=12), min_size=1, max_size=7
)


def check(cuts: list[list[int]]) -> None:
    pair, states = play(cuts)
    assert bytes(pair.to_server) == b"".join(said for _, said, _ in CONVERSATION)
    assert bytes(pair.to_client) == bytes(WHOLE.to_client)
    assert bytes(pair.swallowed) == bytes(WHOLE.swallowed)
    assert states == WHOLE_STATES


@settings(max_examples=300)
@given(cut_lists)
def test_any_cuts_change_nothing(cuts: list[list[int]]) -> None:
    check(cuts)


def test_pieces_of_every_small_size_change_nothing() -> None:
    for size in (1, 2, 3, 4, 5, 6, 7, 13, 449):
        longest = max(len(said) + len(answered) for _, said, answered in CONVERSATION)
        check([list(range(0, longest, size))] * len(CONVERSATION))


def test_conversation_swallows_only_what_the_proxy_asked() -> None:
    own = row_description("set_config") + data_row("x") + command_complete("SELECT 1") + ready()
    assert bytes(WHOLE.swallowed) == own
    assert bytes(WHOLE.swallowed + WHOLE.to_client) == b"".join(answered for _, _, answered in CONVERSATION)
