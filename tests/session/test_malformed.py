"""Messages that PostgreSQL refuses for their form: what they owe, and what they leave as it was."""

from __future__ import annotations

import pytest
from harness.fakeserver import command_complete, error_response, ready
from harness.malformed import MALFORMED, damaged, is_refused
from harness.rawclient import bind, close, describe, execute, flush, frame, parse, query, sync
from harness.relaymodel import RelayPair, copy_data, copy_done
from hypothesis import given
from hypothesis import strategies as st

from proxy.session.glance import glance_request
from proxy.session.pins import PIN_UNNAMED
from proxy.session.relay import FOUND_FAULT
from proxy.session.reply_queue import ASKS_MORE
from proxy.session.wellformed import is_malformed

BAD_FLUSH = frame("H", b"yy")
PARSED, BOUND = frame("1"), frame("2")
COPY_IN = frame("G", b"\0\0\0")
REFUSED = error_response("08P01", "invalid message format")
NO_TEXT = error_response("22021", "invalid byte sequence")
JUDGED = b"QPDCH"
LONG = "select '" + "x" * 9000 + "'"
judged = st.sampled_from(
    [query("select"), parse("select", "name"), parse("select"), describe("name"), close("name"), flush()]
)


@given(
    st.one_of(
        st.sampled_from(MALFORMED).filter(lambda one: one[0] in JUDGED),
        judged,
        judged.flatmap(damaged).filter(bytes.isascii),
    )
)
def test_a_message_is_malformed_where_the_server_reads_it_so(message: bytes) -> None:
    expected = is_refused(chr(message[0]), message[5:])
    assert is_malformed(message[0], message, 0, len(message)) == expected
    assert is_malformed(message[0], b"??" + message + b"\0more", 2, 2 + len(message)) == expected


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_requests_are_not_judged_at_a_glance(message: bytes) -> None:
    assert glance_request(message) == ASKS_MORE
    if message[:1] == b"P":
        assert glance_request(message + bind() + execute() + sync()) == ASKS_MORE


def test_backend_of_a_malformed_flush_is_kept_until_the_sync() -> None:
    pair = RelayPair()
    pair.client(parse("select"), bind(), execute(), sync(), BAD_FLUSH)
    pair.server(PARSED, BOUND, command_complete("SELECT 1"), ready())
    assert not pair.releasable()
    pair.server(REFUSED)
    assert not pair.releasable()
    pair.client(query("skipped"), sync())
    pair.server(ready())
    assert pair.releasable()
    assert not pair.back.fault


def test_malformed_flush_within_a_copy_is_ignored() -> None:
    pair = RelayPair()
    pair.client(query("copy"), BAD_FLUSH, copy_data("row"), copy_done())
    pair.server(COPY_IN, command_complete("COPY 1"), ready())
    assert pair.releasable()
    pair.client(query("copy"))
    pair.server(COPY_IN)
    pair.client(BAD_FLUSH, copy_data("row"), copy_done())
    pair.server(command_complete("COPY 1"), ready())
    assert pair.releasable()


def test_copy_that_fails_with_a_malformed_flush_inside_is_in_doubt() -> None:
    pair = RelayPair()
    pair.client(query("copy"), copy_data("bad"), BAD_FLUSH)
    pair.server(COPY_IN, error_response("22P04", "no"), ready())
    assert pair.back.doubt
    assert not pair.releasable()


@pytest.mark.parametrize("kind", list("QPDC"))
def test_malformed_message_that_is_answered_otherwise_is_a_fault_of_the_server(kind: str) -> None:
    pair = RelayPair()
    pair.client(frame(kind, b"name"), sync())
    pair.server(frame({"Q": "1", "P": "1", "D": "n", "C": "3"}[kind]))
    assert pair.back.fault


@pytest.mark.parametrize("message", [frame("Q", b"select\0x\0"), frame("P", b"\0select\0\0\1"), frame("C", b"Sx")])
def test_unnamed_statement_outlives_a_malformed_message(message: bytes) -> None:
    pair = RelayPair()
    pair.client(parse("select 'kept'"), sync())
    pair.server(PARSED, ready())
    mark = pair.back.unnamed_owner
    pair.client(message, sync())
    pair.server(REFUSED, ready(), *[ready()] * message.startswith(b"Q"))
    assert pair.releasable()
    assert pair.front.desk.unnamed == parse("select 'kept'")
    assert pair.back.unnamed_owner == pair.front.desk.unnamed_mark == mark


@pytest.mark.parametrize("message", [parse("no SQL"), frame("P", b"\0\xff\0\0\0"), parse(LONG)])
def test_nobody_has_the_unnamed_statement_behind_a_refused_parse(message: bytes) -> None:
    pair = RelayPair()
    pair.client(message, sync())
    pair.server(NO_TEXT, ready())
    assert pair.releasable()
    assert pair.back.unnamed_owner == 0
    assert pair.front.desk.unnamed == b""
    assert not pair.pins() & PIN_UNNAMED


def test_refused_parse_leaves_the_unnamed_statement_that_follows_alone() -> None:
    pair = RelayPair()
    pair.client(parse("no SQL"), sync(), parse("select 'kept'"), sync())
    pair.server(NO_TEXT, ready(), PARSED, ready())
    assert pair.front.desk.unnamed == parse("select 'kept'")
    assert pair.back.unnamed_owner == pair.front.desk.unnamed_mark


@pytest.mark.parametrize("answers", [[REFUSED], [PARSED, REFUSED]])
def test_unnamed_statement_outlives_a_named_one_that_is_refused_or_skipped(answers: list[bytes]) -> None:
    pair = RelayPair()
    pair.client(parse("select 'former'"), sync())
    pair.server(PARSED, ready())
    pair.client(parse("select 'kept'"), sync())
    pair.server(PARSED, ready())
    pair.client(parse("ok" if len(answers) == 2 else "no SQL", "name"), bind(), parse("select", "other"), sync())
    pair.server(*answers, ready())
    assert pair.front.desk.unnamed == parse("select 'kept'")


@pytest.mark.parametrize("kind", "HSDEC")
def test_short_messages_of_impossible_length_are_not_forwarded(kind: str) -> None:
    pair = RelayPair()
    pair.client(frame(kind, bytes(9996)))
    assert pair.front.found != FOUND_FAULT
    pair = RelayPair()
    pair.client(frame(kind, bytes(9997)))
    assert pair.front.found == FOUND_FAULT
    assert pair.to_server == b""
    assert pair.front.fault_of(frame(kind, bytes(9997)))


def test_malformed_flush_needs_a_backend() -> None:
    front = RelayPair().front
    assert front.discard(flush() + BAD_FLUSH) == len(flush())


def test_malformed_sync_behind_a_refused_request_needs_a_backend() -> None:
    front = RelayPair().front
    bad = frame("S", b"junk")
    assert front.refuse(parse("select")) == 0
    assert front.discard(parse("select") + bad) == len(parse("select"))
    assert not front.ends_skipping(bad)
    assert not front.is_discarding()
    assert front.refuse(bad) == len(bad)
    assert front.answered
    assert not front.is_discarding()
    front.refuse(parse("select"))
    assert front.ends_skipping(sync())


# What is pipelined behind a message that fails.

KEPT = parse("select 'kept'")


def with_kept() -> RelayPair:
    pair = RelayPair()
    pair.client(KEPT, sync())
    pair.server(PARSED, ready())
    return pair


@pytest.mark.parametrize(
    "skipped",
    [
        [query("select 1")],
        [query("select 1"), query("select 2"), sync(), BAD_FLUSH, parse("other")],
        [parse("other"), close(""), query("select 1")],
        [frame("Q", b"select\0x\0")],
    ],
)
def test_unnamed_statement_outlives_all_that_the_server_skips(skipped: list[bytes]) -> None:
    pair = with_kept()
    pair.client(BAD_FLUSH, *skipped, sync())
    pair.server(*[REFUSED + ready()] * (1 + skipped.count(sync())))
    assert pair.releasable()
    assert pair.front.desk.unnamed == KEPT
    assert pair.back.unnamed_owner == pair.front.desk.unnamed_mark


def test_statement_between_those_that_are_skipped_is_the_one_that_is_kept() -> None:
    pair = with_kept()
    pair.client(BAD_FLUSH, parse("skipped"), sync(), parse("taken"), sync(), BAD_FLUSH, query("skipped"), sync())
    pair.server(REFUSED, ready(), PARSED, ready())
    assert pair.front.desk.unnamed == b""
    pair.server(REFUSED, ready())
    assert pair.front.desk.unnamed == parse("taken")
    assert pair.back.unnamed_owner == pair.front.desk.unnamed_mark


@pytest.mark.parametrize("before", [b"", BAD_FLUSH], ids=["refused", "skipped"])
@pytest.mark.parametrize("at_once", [True, False])
def test_long_statement_that_was_never_there_is_not_what_a_skipped_parse_leaves(before: bytes, at_once: bool) -> None:
    pair = RelayPair()
    pair.client(before, parse(LONG), sync(), BAD_FLUSH, parse("skipped"), sync())
    for answer in [b"".join([REFUSED, ready()] * 2)] if at_once else [REFUSED, ready()] * 2:
        pair.server(answer)
    assert pair.releasable()
    assert pair.back.unnamed_owner == 0
    assert not pair.pins() & PIN_UNNAMED


def test_long_statement_that_is_there_is_what_a_skipped_query_leaves() -> None:
    pair = RelayPair()
    pair.client(parse(LONG), sync())
    pair.server(PARSED, ready())
    pair.client(BAD_FLUSH, query("select 1"), sync())
    pair.server(REFUSED, ready())
    assert pair.back.unnamed_owner == pair.front.desk.unnamed_mark
    assert pair.pins() & PIN_UNNAMED


def test_statement_that_cannot_be_parsed_again_gives_no_right_to_the_one_in_its_place() -> None:
    pair = with_kept()
    pair.back.unnamed_owner = 0
    pair.client(bind(), sync())
    pair.server(NO_TEXT, ready())
    assert pair.back.unnamed_owner == 0


@pytest.mark.parametrize("use", [bind(), describe(kind="S")])
def test_statement_of_an_earlier_batch_is_not_used_before_its_parse_is_answered(use: bytes) -> None:
    pair = RelayPair()
    pair.client(BAD_FLUSH, parse("skipped"), sync(), use, sync())
    assert use not in pair.to_server
    pair.server(REFUSED, ready())
    # The client has none: what another has left is closed first.
    assert bytes(pair.to_server).endswith(close("") + use + sync())


def test_statement_of_the_same_batch_is_used_at_once() -> None:
    pair = RelayPair()
    pair.client(BAD_FLUSH, parse("skipped"), bind(), sync(), parse("again"), bind(), sync())
    assert bytes(pair.to_server).count(bind()) == 2
