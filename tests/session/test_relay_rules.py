"""The rules of the relay one by one: what is owed, and when a backend is free."""

from __future__ import annotations

import pytest
from harness.fakeserver import (
    backend_key_data,
    command_complete,
    data_row,
    error_response,
    parameter_status,
    ready,
    row_description,
)
from harness.rawclient import bind, close, describe, execute, flush, frame, parse, query, sync, terminate
from harness.relaymodel import NOTICE, NOTIFICATION, RelayPair, copy_data, copy_done, copy_fail, function_call

from proxy.session.pins import (
    PIN_DOUBT,
)
from proxy.session.relay import FOUND_FAULT, FOUND_TERMINATE
from proxy.session.replies import MAX_ERRORS, BackState

PARSED, BOUND, CLOSED, NO_DATA, SUSPENDED, EMPTY = (frame(kind) for kind in "123nsI")
DONE = command_complete("INSERT 0 1")
COPY_IN = frame("G", b"\0\0\0")
ERROR = error_response("22012", "division by zero")
BATCH = parse("insert") + bind() + describe() + execute() + sync()
BATCH_ANSWER = PARSED + BOUND + NO_DATA + DONE + ready()


def test_query_is_over_with_its_ready() -> None:
    pair = RelayPair()
    pair.client(query("select 1"))
    assert pair.back.owes()
    pair.server(row_description("x"), data_row("1"), command_complete("SELECT 1"))
    assert not pair.releasable()
    pair.server(ready())
    assert pair.releasable()
    assert pair.back.queries == 1


def test_several_statements_of_one_query_have_one_ready() -> None:
    pair = RelayPair()
    pair.client(query("insert 1; select 1; insert 2"))
    pair.server(DONE, row_description("x"), data_row("1"), command_complete("SELECT 1"), DONE)
    assert not pair.releasable()
    pair.server(ready())
    assert pair.releasable()


@pytest.mark.parametrize("status", ["T", "E"])
def test_transaction_keeps_the_backend(status: str) -> None:
    pair = RelayPair()
    pair.client(query("begin"))
    pair.server(command_complete("BEGIN"), ready(status))
    assert not pair.back.owes()
    assert not pair.releasable()


def test_pipelined_queries_are_free_after_the_last_ready() -> None:
    pair = RelayPair()
    pair.client(query("insert") * 3)
    for _ in range(2):
        pair.server(DONE, ready())
        assert not pair.releasable()
    pair.server(DONE, ready())
    assert pair.releasable()


def test_empty_query_is_answered_by_its_own_message() -> None:
    pair = RelayPair()
    pair.client(query(""))
    pair.server(EMPTY, ready())
    assert pair.releasable()


def test_extended_batch_is_over_with_the_ready_of_its_sync() -> None:
    pair = RelayPair()
    pair.client(BATCH)
    pair.server(PARSED, BOUND, NO_DATA, DONE)
    assert not pair.releasable()
    pair.server(ready())
    assert pair.releasable()


def test_parse_behind_a_sync_outlives_its_ready() -> None:
    pair = RelayPair()
    pair.client(sync(), parse("select 1"), flush())
    pair.server(ready())
    assert not pair.releasable()
    pair.server(PARSED)
    assert not pair.back.owes()
    assert not pair.releasable(), "an implicit transaction is open"


def test_error_drops_what_is_owed_up_to_the_sync() -> None:
    pair = RelayPair()
    pair.client(parse("insert"), bind(), execute(), query("select 1"), close("x"), execute(), sync(), BATCH)
    pair.server(ERROR)
    assert not pair.releasable()
    pair.server(ready(), BATCH_ANSWER)
    assert not pair.back.fault
    assert pair.releasable()


def test_nothing_is_owed_while_the_server_skips_to_sync() -> None:
    pair = RelayPair()
    pair.client(parse("select"))
    pair.server(ERROR)
    pair.client(bind(), execute(), query("select 1"), function_call(1))
    assert not pair.back.owes()
    assert not pair.releasable()
    pair.client(sync())
    pair.server(ready())
    assert pair.releasable()


def test_farewell_of_a_server_within_a_batch_that_is_answered_so_far_is_passed_on() -> None:
    pair = RelayPair()
    pair.client(parse("insert"), flush())
    farewell = error_response("57P01", "terminating connection", severity="FATAL")
    pair.server(PARSED, farewell)
    assert bytes(pair.to_client) == PARSED + farewell
    assert pair.back.fatal
    assert not pair.releasable()


def test_error_of_a_query_skips_nothing() -> None:
    pair = RelayPair()
    pair.client(query("select 1/0"), BATCH)
    pair.server(ERROR, ready(), BATCH_ANSWER)
    assert not pair.back.fault
    assert pair.releasable()


def test_error_of_the_sync_itself_skips_nothing() -> None:
    pair = RelayPair()
    pair.client(BATCH, BATCH)
    pair.server(PARSED, BOUND, NO_DATA, DONE, ERROR, ready(), BATCH_ANSWER)
    assert not pair.back.fault
    assert pair.releasable()


def test_portal_suspension_ends_an_execute() -> None:
    pair = RelayPair()
    pair.client(parse("select"), bind(), execute(limit=1), flush())
    pair.server(PARSED, BOUND, data_row("1"), SUSPENDED)
    assert not pair.back.owes()
    assert not pair.releasable()
    pair.client(execute(limit=1), sync())
    pair.server(data_row("2"), SUSPENDED, ready())
    assert pair.releasable()


@pytest.mark.parametrize("answer", [frame("V", b"\xff\xff\xff\xff") + ready(), ERROR + ready()])
def test_function_call_is_over_with_its_ready(answer: bytes) -> None:
    pair = RelayPair()
    pair.client(function_call(1))
    assert not pair.releasable()
    pair.server(answer)
    assert pair.releasable()


def test_copy_out_is_part_of_its_query() -> None:
    pair = RelayPair()
    pair.client(query("copy t to stdout"))
    pair.server(frame("H", b"\0\0\0"), copy_data("a"), copy_data("b"), copy_done(), command_complete("COPY 2"), ready())
    assert pair.releasable()


def test_copy_in_keeps_the_backend_until_it_is_over() -> None:
    pair = RelayPair()
    pair.client(query("copy t from stdin"))
    pair.server(COPY_IN)
    pair.client(copy_data("a"), sync(), flush(), copy_done())
    assert not pair.releasable()
    pair.server(command_complete("COPY 1"), ready())
    assert pair.releasable()


def test_sync_within_a_copy_owes_nothing() -> None:
    pair = RelayPair()
    pair.client(parse("copy"), bind(), execute(), sync())
    pair.server(PARSED, BOUND, COPY_IN)
    pair.client(copy_data("a"), copy_done(), sync())
    pair.server(command_complete("COPY 1"))
    assert not pair.releasable()
    pair.server(ready())
    assert pair.releasable()
    assert not pair.back.doubt


def test_copy_that_was_sent_ahead_of_its_response_is_followed() -> None:
    pair = RelayPair()
    pair.client(parse("copy"), bind(), execute(), sync(), copy_data("a"), copy_done(), sync())
    pair.server(PARSED, BOUND, COPY_IN, command_complete("COPY 1"))
    assert not pair.releasable()
    pair.server(ready())
    assert pair.releasable()


def test_copy_that_was_sent_ahead_and_refused_answers_both_syncs() -> None:
    pair = RelayPair()
    pair.client(parse("copy"), bind(), execute(), sync(), copy_data("a"), copy_done(), sync())
    pair.server(PARSED, BOUND, ERROR, ready())
    assert not pair.releasable()
    pair.server(ready())
    assert pair.releasable()


def test_two_copies_in_one_query_sent_ahead() -> None:
    pair = RelayPair()
    pair.client(query("copy a from stdin; copy b from stdin"), copy_data("a"), copy_done(), copy_data("b"), copy_done())
    pair.server(COPY_IN, command_complete("COPY 1"), COPY_IN)
    assert not pair.back.copy_in
    pair.server(command_complete("COPY 1"), ready())
    assert pair.releasable()


def test_error_in_a_copy_skips_to_the_sync_behind_it() -> None:
    pair = RelayPair()
    pair.client(parse("copy"), bind(), execute(), flush())
    pair.server(PARSED, BOUND, COPY_IN)
    pair.client(copy_data("bad"), copy_fail(), sync())
    pair.server(ERROR)
    assert not pair.releasable()
    pair.server(ready())
    assert pair.releasable()


AHEAD_EXTENDED = parse("copy") + bind() + execute() + copy_data("bad") + sync() + copy_done() + sync()
AHEAD_SIMPLE = query("copy") + copy_data("bad") + sync() + copy_done()


@pytest.mark.parametrize(
    ("said", "answer"), [(AHEAD_EXTENDED, PARSED + BOUND), (AHEAD_SIMPLE, b"")], ids=["extended", "simple"]
)
def test_sync_in_a_copy_that_failed_leaves_a_doubt_for_good(said: bytes, answer: bytes) -> None:
    pair = RelayPair()
    pair.client(said)
    pair.server(answer, COPY_IN, ERROR, ready())
    assert not pair.releasable(), "the server may or may not answer the other Sync"
    pair.server(ready())
    assert not pair.back.fault
    assert pair.back.pins & PIN_DOUBT
    pair.client(query("select 1"), sync())
    pair.server(command_complete("SELECT 0"), ready(), ready())
    assert not pair.back.fault
    assert not pair.releasable()


def test_sync_of_a_finished_copy_leaves_no_doubt_for_a_later_error() -> None:
    pair = RelayPair()
    pair.client(parse("copy"), bind(), execute(), sync(), copy_data("a"), copy_done(), parse("x"), sync())
    pair.server(PARSED, BOUND, COPY_IN, command_complete("COPY 1"), ERROR, ready())
    assert not pair.back.doubt
    assert pair.releasable()


@pytest.mark.parametrize("message", [query("select 1"), parse("x"), bind(), execute(), function_call(1), close("x")])
def test_request_within_a_copy_leaves_a_doubt(message: bytes) -> None:
    pair = RelayPair()
    pair.client(query("copy t from stdin"))
    pair.server(COPY_IN)
    pair.client(message)
    pair.server(ERROR, error_response("08P01", "lost", severity="FATAL"))
    assert pair.back.doubt
    assert pair.back.fatal
    assert not pair.releasable()


def test_queue_of_a_backend_in_doubt_does_not_grow() -> None:
    pair = RelayPair()
    pair.client(AHEAD_SIMPLE)
    pair.server(COPY_IN, ERROR, ready())
    before = len(pair.back.queue)
    for _ in range(100):
        pair.client(query("select 1"), BATCH, parse("x", "named"), close("named"), copy_done(), sync())
    assert len(pair.back.queue) == before
    assert not pair.back.closing_names


def test_replication_stream_is_never_given_to_anybody_else() -> None:
    pair = RelayPair()
    pair.client(query("START_REPLICATION SLOT s LOGICAL 0/0"))
    pair.server(frame("W", b"\0\0\0"), copy_data("w" * 100))
    pair.client(copy_data("r"), copy_done())
    pair.server(copy_done(), command_complete("COPY 0"), ready())
    assert not pair.back.fault
    assert not pair.releasable()


@pytest.mark.parametrize("message", [NOTICE, NOTIFICATION, parameter_status("TimeZone", "UTC")])
def test_messages_at_any_time_change_nothing(message: bytes) -> None:
    pair = RelayPair()
    pair.server(message)
    pair.client(BATCH)
    for reply in (PARSED, BOUND, NO_DATA, DONE, ready()):
        assert not pair.releasable()
        pair.server(message, reply, message)
    assert not pair.back.fault
    assert pair.releasable()


def test_parameter_status_is_noted_when_it_differs() -> None:
    back = BackState()
    pair = RelayPair(back=back)
    pair.server(parameter_status("TimeZone", "UTC"))
    assert back.params_changed
    back.params_changed = False
    pair.server(parameter_status("TimeZone", "UTC"))
    assert not back.params_changed
    assert back.params == {b"TimeZone": b"UTC"}


@pytest.mark.parametrize(
    "reply",
    [
        ready(),
        PARSED,
        BOUND,
        CLOSED,
        NO_DATA,
        SUSPENDED,
        EMPTY,
        DONE,
        COPY_IN,
        data_row("1"),
        copy_data("x"),
        copy_done(),
        row_description("x"),
        frame("t", b"\0\0"),
        frame("V", b"\xff\xff\xff\xff"),
        frame("R", b"\0\0\0\0"),
        backend_key_data(1, b"1234"),
        frame("?"),
        b"E\0\0\0\3",
        b"T\x80\0\0\0",
        b"Z\0\0\0\6II",
        b"S\0\2\0\0",
    ],
)
def test_reply_that_nobody_asked_for_is_a_fault(reply: bytes) -> None:
    pair = RelayPair()
    pair.server(reply)
    assert pair.back.fault
    assert pair.to_client == b""


@pytest.mark.parametrize(
    ("said", "replies"),
    [
        (query("x"), PARSED),
        (parse("x"), BOUND),
        (sync(), DONE),
        (parse("x"), ready()),
        (query("x"), frame("Z", b"X")),
        (query("x"), frame("Z", b"")),
    ],
)
def test_reply_out_of_turn_is_a_fault(said: bytes, replies: bytes) -> None:
    pair = RelayPair()
    pair.client(said)
    pair.server(replies)
    assert pair.back.fault


def test_error_without_sqlstate_is_forwarded_and_counted() -> None:
    pair = RelayPair()
    pair.client(query("x"))
    pair.server(frame("E", b"SERROR\0Mno code\0\0"), frame("E", b""), ready())
    assert pair.back.errors == [b"?????", b"?????"]
    assert pair.releasable()


def test_errors_kept_for_counting_are_bounded() -> None:
    pair = RelayPair()
    pair.client(query("x") * 100)
    pair.server((ERROR + ready()) * 100)
    assert pair.back.errors == [b"22012"] * MAX_ERRORS


@pytest.mark.parametrize("length", [0, 3, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", [b"Q", b"P", b"B", b"d", b"S", b"X"])
def test_impossible_length_from_a_client_is_a_fault(kind: bytes, length: int) -> None:
    pair = RelayPair()
    pair.client(query("select 1"), kind + length.to_bytes(4, "big") + b"body")
    assert pair.front.found == FOUND_FAULT
    assert bytes(pair.to_server) == query("select 1")


@pytest.mark.parametrize("kind", ["p", "?", "Z", "v"])
def test_unknown_message_from_a_client_is_a_fault(kind: str) -> None:
    pair = RelayPair()
    pair.client(frame(kind, b"x"))
    assert pair.front.found == FOUND_FAULT
    assert pair.to_server == b""


def test_terminate_ends_the_scan_and_is_not_forwarded() -> None:
    pair = RelayPair()
    pair.client(query("select 1"), terminate(), query("select 2"))
    assert pair.front.found == FOUND_TERMINATE
    assert bytes(pair.to_server) == query("select 1")


# The proxy's own statements.


def test_own_statement_is_swallowed_with_all_its_replies() -> None:
    pair = RelayPair()
    pair.back.inject_query()
    own = row_description("set_config") + data_row("x") + parameter_status("A", "b") + command_complete("SELECT 1")
    pair.server(NOTICE, own, ready())
    assert not pair.back.swallowing_own
    assert pair.to_client == b""
    assert pair.back.queries == 0
    assert pair.back.pins == 0
    pair.client(query("select 1"))
    pair.server(command_complete("SELECT 0"), ready())
    assert bytes(pair.to_client) == command_complete("SELECT 0") + ready()
    assert pair.back.queries == 1


def test_error_of_an_own_statement_is_kept_for_the_proxy() -> None:
    pair = RelayPair()
    pair.back.inject_query()
    pair.server(ERROR, ready())
    assert pair.back.swallowed_error == ERROR
    assert pair.back.errors == []
    assert pair.to_client == b""
    assert pair.releasable()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 1000])
@pytest.mark.parametrize("fails", [False, True])
def test_own_question_by_the_extended_protocol_is_swallowed(fails: bool, size: int) -> None:
    pair = RelayPair()
    pair.back.inject_question()
    assert pair.back.only_owes_own()
    done = data_row("x") + parameter_status("A", "b") + command_complete("SELECT 1") + CLOSED * 2
    own = CLOSED + PARSED + BOUND + (ERROR if fails else done) + ready()
    for start in range(0, len(own), size):
        pair.server(own[start : start + size])
    assert bytes(pair.swallowed) == own
    assert pair.to_client == b""
    assert pair.back.swallowed_error == (ERROR if fails else b"")
    assert pair.back.errors == []
    assert pair.back.pins == 0
    assert pair.back.own == 0
    assert not pair.back.swallowing_own
    assert pair.releasable()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11])
def test_own_statement_never_reaches_the_client_however_its_replies_are_cut(size: int) -> None:
    pair = RelayPair()
    pair.back.inject_query()
    pair.client(query("select 1"))
    own = row_description("set_config") + data_row("x" * 20) + command_complete("SELECT 1") + ready()
    theirs = row_description("x") + data_row("1") + command_complete("SELECT 1") + ready()
    for start in range(0, len(own + theirs), size):
        pair.server((own + theirs)[start : start + size])
    assert bytes(pair.swallowed) == own
    assert bytes(pair.to_client) == theirs
    assert pair.releasable()
