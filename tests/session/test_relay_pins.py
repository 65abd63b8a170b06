"""What pins a client to its backend, what is unpinned, and what a client says that has no backend."""

from __future__ import annotations

import pytest
from harness.fakeserver import command_complete, error_response, ready
from harness.rawclient import bind, close, describe, execute, flush, frame, parse, query, sync, terminate
from harness.relaymodel import RelayPair, copy_data, copy_done, copy_fail

from proxy.session import pins
from proxy.session.desk import UNNAMED_MOST
from proxy.session.pins import (
    CALLED,
    KEPT,
    PIN_ADVISORY,
    PIN_HOLD,
    PIN_LISTEN,
    PIN_PREPARE,
    PIN_SET,
    PIN_SET_CONFIG,
    PIN_STATEMENT,
    PIN_TEMPORARY,
    PIN_UNNAMED,
    PINS_DIRTY,
    RESET_ALL,
    ROLES_CHANGED,
    ROLLED_BACK,
    TO_CHECK,
    TO_RESET,
    pin_names,
)
from proxy.session.relay import FOUND_FAULT, MAX_NAMED, FrontState
from proxy.session.texts import MAX_REMEMBERED

PARSED, BOUND, CLOSED, NO_DATA = (frame(kind) for kind in "123n")
DONE = command_complete("INSERT 0 1")
COPY_IN = frame("G", b"\0\0\0")
ERROR = error_response("22012", "division by zero")
BATCH = parse("insert") + bind() + describe() + execute() + sync()
BATCH_ANSWER = PARSED + BOUND + NO_DATA + DONE + ready()


@pytest.mark.parametrize(
    ("tag", "pin"),
    [
        ("SET", PIN_SET),
        ("LISTEN", PIN_LISTEN),
        ("PREPARE", PIN_PREPARE),
        ("SELECT 1", 0),
        ("DELETE 1", 0),
        ("SET CONSTRAINTS", 0),
        ("PREPARE TRANSACTION", 0),
        ("DO", 0),
    ],
)
def test_tag_of_what_stays_in_the_session_pins(tag: str, pin: int) -> None:
    pair = RelayPair()
    pair.client(query("x"))
    pair.server(command_complete(tag), ready())
    assert pair.back.pins == pin
    assert bool(pin & PINS_DIRTY) == bool(pin)


def test_setting_is_in_doubt_when_its_transaction_goes_wrong_after_it() -> None:
    pair = RelayPair()
    for trouble in (error_response("22012", "x") + ready("E"), command_complete("ROLLBACK") + ready("T")):
        pair.client(query("begin") + query("set") + query("x"))
        pair.server(command_complete("BEGIN"), ready("T"), command_complete("SET"), ready("T"), trouble)
        assert pair.back.pins == PIN_SET | ROLLED_BACK
        pair.client(query("commit"))
        pair.server(command_complete("ROLLBACK"), ready())
        pair.back.pins = 0
    pair.client(query("set") + query("x"))
    pair.server(command_complete("SET"), ready(), error_response("22012", "x"), ready())
    assert pair.back.pins == PIN_SET


@pytest.mark.parametrize(
    ("tag", "marks"),
    [
        ("RESET", TO_RESET),
        ("DISCARD ALL", TO_RESET | RESET_ALL | TO_CHECK),
        ("ROLLBACK", 0),
        ("UNLISTEN", TO_CHECK),
        ("DROP TABLE", TO_CHECK),
        ("CLOSE CURSOR ALL", TO_CHECK),
        ("DEALLOCATE", TO_CHECK),
        ("DISCARD TEMP", TO_CHECK),
        ("UPDATE 1", 0),
        ("COMMIT", 0),
        ("CREATE TABLE", 0),
        ("ALTER TABLE", 0),
        ("ALTER ROLE", ROLES_CHANGED),
        ("CREATE ROLE", ROLES_CHANGED),
        ("DROP ROLE", ROLES_CHANGED | TO_CHECK),
        ("RELEASE", 0),
        ("REFRESH MATERIALIZED VIEW", 0),
    ],
)
def test_tag_of_what_takes_something_away_is_a_mark_and_pins_nobody(tag: str, marks: int) -> None:
    pair = RelayPair()
    pair.client(query("x"))
    pair.server(command_complete(tag), ready())
    assert pair.back.pins == marks
    assert pin_names(marks) == ()


WORDS = [
    ("SELECT pg_advisory_unlock_all()", TO_CHECK),
    ("CREATE TEMP TABLE t ()", PIN_TEMPORARY),
    ("create\n\ttemporary view v as select 1", PIN_TEMPORARY),
    ("create table pg_temp.t ()", PIN_TEMPORARY),
    ("select 1 into TEMP x", PIN_TEMPORARY),
    ("select * from attempts, templates", 0),
    ("select pg_catalog.set_config('a.b', 'c', false)", CALLED),
    ("SELECT SET_CONFIG('a.b', $1, false)", CALLED),
    ("select set_config(name, 'c', false) from t", PIN_SET_CONFIG),
    ("select set_config($1, 'c', false)", PIN_SET_CONFIG),
    ("select set_config('a.b', 'c', true), set_config(name, 'c', true)", PIN_SET_CONFIG),
    ("select set_config('a.b', f(), true)", CALLED),
    ("select pg_advisory_lock(1)", PIN_ADVISORY),
    ("select pg_try_advisory_lock_shared(1)", PIN_ADVISORY),
    ("select pg_advisory_xact_lock(1)", 0),
    ("select pg_try_advisory_xact_lock_shared(1)", 0),
    ("declare c cursor with hold for select 1", PIN_HOLD),
    ("declare c cursor with\nHOLD for select 1", PIN_HOLD),
    ("select holder, threshold, household from t", 0),
    ("select 1", 0),
]


@pytest.mark.parametrize(("text", "pins"), WORDS)
@pytest.mark.parametrize("padding", [0, 600])
def test_words_of_session_state_pin(text: str, pins: int, padding: int) -> None:
    pair = RelayPair()
    pair.client(query(" " * padding + text))
    assert pair.front.pins & ~KEPT == pins


@pytest.mark.parametrize(("text", "pins"), WORDS)
@pytest.mark.parametrize("name", ["", "n"], ids=["unnamed", "named"])
def test_words_of_session_state_pin_whenever_their_statement_is_bound(text: str, pins: int, name: str) -> None:
    pair = RelayPair()
    pair.client(parse(text, name))
    pair.server(PARSED)
    assert pair.front.pins & ~PIN_STATEMENT == 0
    for _ in range(2):
        pair.client(bind(statement=name), execute(), sync())
        assert pair.front.pins & ~(PIN_STATEMENT | KEPT) == pins
        pair.front.pins = 0


def test_words_of_a_statement_that_is_not_remembered_any_more_still_pin() -> None:
    pair = RelayPair()
    for number in range(MAX_REMEMBERED + 1):
        pair.client(parse("select pg_advisory_lock(1)", f"n{number}"), sync())
    assert pair.front.pins & ~PIN_STATEMENT == 0
    pair.client(bind(statement="n0"), execute(), sync())
    assert pair.front.pins & ~PIN_STATEMENT == PIN_ADVISORY


@pytest.mark.parametrize("word", ["temporary", "set_config", "pg_advisory_lock", "hold"])
@pytest.mark.parametrize("make", [query, parse], ids=["query", "parse"])
def test_word_cut_in_two_within_a_large_statement_still_pins(word: str, make: object) -> None:
    assert callable(make)
    message: bytes = make("x" * 9000 + f" {word} " + "y" * 9000)
    middle = message.index(word.encode())
    for cut in range(middle - 1, middle + len(word) + 1):
        pair = RelayPair()
        pair.client(message[:8500])
        pair.client(message[8500:cut])
        pair.client(message[cut:])
        if make is parse:
            pair.client(bind())
        assert pair.front.pins & ~(PIN_UNNAMED | KEPT), f"cut at {cut - middle}"
        assert bytes(pair.to_server).startswith(message)


def test_words_in_copied_data_do_not_pin() -> None:
    pair = RelayPair()
    pair.client(query("copy t from stdin"))
    pair.server(COPY_IN)
    pair.client(copy_data("create temp table set_config hold"))
    assert pair.pins() == 0


# Named statements.


def prepared(pair: RelayPair, *names: str) -> None:
    for name in names:
        pair.client(parse("select", name), sync())
        pair.server(PARSED, ready())
    assert pair.front.pins & PIN_STATEMENT


def test_named_statement_pins_until_it_is_closed() -> None:
    pair = RelayPair()
    prepared(pair, "a", "b")
    pair.client(close("a"), sync())
    pair.server(CLOSED, ready())
    assert pair.front.pins & PIN_STATEMENT
    pair.client(close("b"), sync())
    assert pair.front.pins & PIN_STATEMENT, "closed when the server says so"
    pair.server(CLOSED, ready())
    assert pair.front.pins == 0


def test_close_that_was_skipped_unpins_nothing() -> None:
    pair = RelayPair()
    prepared(pair, "a")
    pair.client(execute("none"), close("a"), sync())
    pair.server(ERROR, ready())
    assert pair.front.pins & PIN_STATEMENT
    pair.client(execute("none"))
    pair.server(ERROR)
    pair.client(close("a"), sync())
    pair.server(ready())
    assert pair.front.pins & PIN_STATEMENT
    pair.client(close("a"), sync())
    pair.server(CLOSED, ready())
    assert pair.front.pins == 0


def test_name_that_is_closed_and_parsed_again_in_one_go_still_pins() -> None:
    pair = RelayPair()
    prepared(pair, "a")
    pair.client(close("a"), parse("select 2", "a"), sync())
    pair.server(CLOSED, PARSED, ready())
    assert pair.front.pins & PIN_STATEMENT
    pair.client(close("a"), sync())
    pair.server(CLOSED, ready())
    assert pair.front.pins == 0


def test_closing_a_portal_unpins_nothing() -> None:
    pair = RelayPair()
    prepared(pair, "a")
    pair.client(close("a", kind="P"), sync())
    pair.server(CLOSED, ready())
    assert pair.front.pins & PIN_STATEMENT


def test_more_names_than_are_remembered_pin_for_good() -> None:
    pair = RelayPair()
    names = [f"s{number}" for number in range(MAX_NAMED + 1)]
    prepared(pair, *names)
    for name in names:
        pair.client(close(name), sync())
        pair.server(CLOSED, ready())
    assert pair.front.pins & PIN_STATEMENT
    assert pair.front.names is not None
    assert len(pair.front.names) == 1


# The unnamed statement.


LONG = parse("select" + " " * UNNAMED_MOST)


def prepared_long() -> RelayPair:
    """A client that has prepared an unnamed statement too long to be kept, and bound it once."""
    pair = RelayPair()
    pair.client(LONG, describe(kind="S"), sync())
    pair.server(PARSED, frame("t", b"\0\0"), NO_DATA, ready())
    assert pair.front.pins == PIN_UNNAMED
    pair.client(bind(), execute(), sync())
    pair.server(BOUND, DONE, ready())
    assert pair.pins() == PIN_UNNAMED
    return pair


@pytest.mark.parametrize("message", [parse("select 1") + sync(), close("") + sync(), query("select 1")])
def test_unnamed_statement_too_long_to_be_kept_pins_until_it_is_replaced(message: bytes) -> None:
    pair = prepared_long()
    pair.client(message)
    assert pair.pins() == 0


def test_unnamed_statement_that_is_replaced_in_vain_pins_on() -> None:
    pair = prepared_long()
    pair.client(execute("none"), parse("select 1"), bind(), execute(), sync())
    pair.server(ERROR, ready())
    assert pair.pins() == PIN_UNNAMED
    before = len(pair.to_server)
    pair.client(bind(), execute(), sync())
    assert pair.to_server[before:] == bind() + execute() + sync(), "the server has it still"


@pytest.mark.parametrize("between", [b"", describe(kind="S")])
def test_unnamed_statement_of_any_length_that_is_bound_in_one_go_pins_nobody(between: bytes) -> None:
    pair = RelayPair()
    pair.client(LONG, between, bind(), execute(), sync())
    assert pair.pins() == 0


def test_unnamed_statement_whose_description_was_awaited_may_be_bound_again() -> None:
    pair = RelayPair()
    pair.client(LONG, describe(kind="S"), flush())
    pair.server(PARSED, frame("t", b"\0\0"), NO_DATA)
    pair.client(bind(), execute(), sync())
    assert pair.pins() == PIN_UNNAMED


def owned_by_another() -> RelayPair:
    """A client on a backend that has the unnamed statement of another one."""
    first = RelayPair(1)
    first.client(BATCH)
    first.server(BATCH_ANSWER)
    return RelayPair(2, first.back)


@pytest.mark.parametrize("message", [bind(), describe(kind="S")])
def test_unnamed_statement_of_another_client_is_out_of_reach(message: bytes) -> None:
    pair = owned_by_another()
    pair.client(message, sync())
    assert pair.to_server == close("") + message + sync(), "the server itself says that there is none"
    pair.server(CLOSED, ERROR, ready())
    assert pair.to_client == ERROR + ready()
    assert pair.releasable()


def test_unnamed_statement_is_parsed_again_where_another_client_has_left_its_own() -> None:
    pair = owned_by_another()
    pair.front.desk.unnamed = parse("mine")
    pair.client(bind(), execute(), sync())
    assert pair.to_server == parse("mine") + flush()
    pair.server(PARSED)
    assert pair.to_server == parse("mine") + flush() + bind() + execute() + sync()
    pair.server(BOUND, DONE, ready())
    assert pair.to_client == BOUND + DONE + ready()
    assert pair.releasable()


def test_unnamed_statement_that_another_client_has_closed_is_parsed_again() -> None:
    first = RelayPair(1)
    first.client(BATCH)
    first.server(BATCH_ANSWER)
    pair = RelayPair(2, first.back)
    pair.client(close(""), sync())
    pair.server(CLOSED, ready())
    first.to_server.clear()
    first.client(bind(), execute(), sync())
    assert first.to_server == first.front.desk.unnamed + flush()


def test_close_that_the_server_skipped_leaves_the_right_to_the_unnamed_statement_open() -> None:
    pair = owned_by_another()
    pair.client(execute("none"), close(""), sync())
    pair.server(ERROR, ready())
    pair.client(bind(), sync())
    assert pair.to_server.endswith(close("") + bind() + sync())


def test_parse_that_the_server_skipped_gives_no_right_to_the_unnamed_statement() -> None:
    pair = owned_by_another()
    pair.client(execute("none"))
    pair.server(ERROR)
    pair.client(parse("mine"), bind(), execute(), sync())
    pair.server(ready())
    pair.client(bind(), sync())
    assert pair.to_server.endswith(close("") + bind() + sync())


def test_parse_behind_an_error_gives_no_right_to_the_unnamed_statement() -> None:
    pair = owned_by_another()
    pair.client(execute("none"), parse("mine"), bind(), execute(), sync())
    pair.server(ERROR, ready())
    pair.client(bind(), sync())
    assert pair.to_server.endswith(close("") + bind() + sync())


def test_parse_of_a_later_batch_keeps_its_right_when_an_earlier_batch_fails() -> None:
    pair = owned_by_another()
    pair.client(execute("none"), parse("skipped"), sync(), parse("mine"), sync())
    pair.server(ERROR, ready(), PARSED, ready())
    pair.client(bind(), execute(), sync())
    assert pair.front.found == 0


def test_bind_that_the_server_skips_is_passed_on() -> None:
    pair = owned_by_another()
    pair.client(parse("error"))
    pair.server(ERROR)
    pair.client(bind(), describe(kind="S"), execute(), sync())
    assert pair.front.found == 0
    pair.server(ready())
    assert pair.back.releasable()


def test_long_portal_name_hides_no_unnamed_statement() -> None:
    pair = owned_by_another()
    message = bind(portal="p" * 20_000)
    pair.client(message[:16_000])
    pair.client(message[16_000:], execute(), sync())
    assert pair.front.found == FOUND_FAULT
    assert pair.to_server == b""


# A client without a backend.


def test_messages_of_a_copy_that_is_over_need_no_backend() -> None:
    front = FrontState(1)
    assert front.discard(copy_data("a") + copy_done() + copy_fail() + flush()) == len(
        copy_data("a") + copy_done() + copy_fail() + flush()
    )
    said = copy_data("b" * 100)
    assert front.discard(said[:7]) == 7
    assert front.discard(said[7:20]) == 13
    assert front.discard(said[20:] + query("select 1")) == len(said) - 20
    assert front.discard(query("select 1")) == 0


@pytest.mark.parametrize(
    "message", [query("x"), BATCH, sync(), terminate(), b"d\0\0\0\3", b"c\xff\xff\xff\xff", b"d\0"]
)
def test_everything_else_is_left_for_a_backend_or_the_caller(message: bytes) -> None:
    assert FrontState(1).discard(message) == 0


def test_refused_query_is_dropped_alone() -> None:
    front = FrontState(1)
    said = query("select 1") + query("select 2")
    assert front.refuse(said) == len(query("select 1"))
    assert front.answered
    assert not front.skip_to_sync


def test_refused_query_that_has_not_come_whole_is_dropped_as_it_comes() -> None:
    front = FrontState(1)
    said = query("x" * 20_000)
    assert front.refuse(said[:9000]) == 9000
    assert front.answered
    assert front.discard(said[9000:] + query("next")) == len(said) - 9000


def test_refused_batch_is_dropped_up_to_its_sync() -> None:
    front = FrontState(1)
    assert front.refuse(BATCH) == 0
    assert not front.answered
    assert front.skip_to_sync
    said = parse("x") + query("skipped") + bind() + copy_data("x") + execute()
    assert front.discard(said + sync() + query("next")) == len(said)
    assert front.discard(sync() + query("next")) == 0, "the Sync is the caller's to answer"


def test_terminate_is_seen_while_a_refused_batch_is_dropped() -> None:
    front = FrontState(1)
    front.refuse(BATCH)
    assert front.discard(parse("x") + terminate()) == len(parse("x"))


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"", False),
        (b"Q\0\0\0", False),
        (query("x")[:-1], False),
        (query("x"), True),
        (query("x" * 9000)[:8191], False),
        (query("x" * 9000)[:8192], True),
        (b"Q\0\0\0\0", True),
        (b"Q\x7f\xff\xff\xff", True),
    ],
)
def test_backend_is_taken_only_for_what_can_be_judged(data: bytes, whole: bool) -> None:
    assert FrontState(1).whole(data) is whole


def test_every_pin_and_mark_is_a_bit_of_its_own() -> None:
    several = {"CHANGES", "MARKS", "PINS_DIRTY", "ASKABLE", "LEFT_BY_CLIENT"}
    bits = {
        name: value
        for name, value in vars(pins).items()
        if isinstance(value, int) and name not in several and not name.startswith("POLICY_")
    }
    assert {"PIN_SET", "ROLES_CHANGED", "CONCERNS_NODE"} <= bits.keys()
    assert all(value.bit_count() == 1 for value in bits.values())
    assert len(set(bits.values())) == len(bits)
