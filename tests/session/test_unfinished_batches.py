"""A batch that ends without a Sync: the Query or FunctionCall behind it ends it, or leaves its transaction open."""

from __future__ import annotations

import pytest
from harness.fakeserver import command_complete, error_response, ready
from harness.rawclient import bind, close, describe, execute, flush, frame, parse, query, sync
from harness.relaymodel import RelayPair, function_call

from proxy.session.pins import PIN_PIPELINE, PIN_UNNAMED, PINS_DIRTY
from proxy.session.replies import HOLD_LIMIT

PARSED, BOUND, CLOSED, NO_DATA, SUSPENDED, EMPTY = (frame(kind) for kind in "123nsI")
DONE = command_complete("INSERT 0 1")
ERROR = error_response("22012", "division by zero")
BATCH = parse("insert") + bind() + describe() + execute() + sync()
BATCH_ANSWER = PARSED + BOUND + NO_DATA + DONE + ready()
LONG = parse("select " + "1" * HOLD_LIMIT)
QUERY_OR_CALL = [(query("insert"), DONE), (function_call(1), frame("V", b"\xff" * 4))]


@pytest.mark.parametrize(("message", "done"), QUERY_OR_CALL)
@pytest.mark.parametrize("executed", [DONE, SUSPENDED])
def test_query_behind_an_execute_that_leaves_a_transaction_keeps_the_backend_beyond_the_sync(
    message: bytes, done: bytes, executed: bytes
) -> None:
    pair = RelayPair()
    pair.client(parse("insert") + bind() + execute() + message + sync())
    pair.server(PARSED, BOUND, executed, done, ready("T"), ready())
    assert not pair.releasable()
    assert pair.pins() == PIN_PIPELINE
    assert pair.back.pins & PINS_DIRTY
    pair.client(BATCH + sync())
    pair.server(BATCH_ANSWER, ready())
    assert not pair.releasable(), "no Sync that is answered I ends it"
    pair.client(message)
    pair.server(done, ready("T"))
    assert pair.pins() == PIN_PIPELINE
    pair.client(message)
    pair.server(done, ready())
    assert pair.releasable()
    assert pair.pins() == 0


@pytest.mark.parametrize("status", ["T", "E"])
def test_transaction_that_a_sync_confirms_pins_nothing(status: str) -> None:
    pair = RelayPair()
    pair.client(parse("begin") + bind() + execute() + flush() + query("savepoint s") + BATCH)
    pair.server(PARSED, BOUND, command_complete("BEGIN"), command_complete("SAVEPOINT"), ready("T"))
    assert pair.pins() == PIN_PIPELINE
    pair.server(PARSED, BOUND, NO_DATA, DONE, ready(status))
    assert pair.pins() == 0
    pair.client(BATCH)
    pair.server(PARSED, BOUND, NO_DATA, command_complete("COMMIT"), ready())
    assert pair.releasable()


@pytest.mark.parametrize(("message", "done"), QUERY_OR_CALL)
@pytest.mark.parametrize(
    ("batch", "answer"),
    [
        (parse("x") + describe(kind="S") + flush(), PARSED + frame("t", b"\0\0") + NO_DATA),
        (parse("x") + bind() + describe() + close(kind="P") + flush(), PARSED + BOUND + NO_DATA + CLOSED),
        (parse("x") + bind() + execute() + flush(), PARSED + BOUND + DONE),
        (parse("") + bind() + execute() + flush(), PARSED + BOUND + EMPTY),
    ],
    ids=["described", "bound", "executed", "empty"],
)
def test_query_answered_without_a_transaction_ends_the_batch_before_it(
    batch: bytes, answer: bytes, message: bytes, done: bytes
) -> None:
    pair = RelayPair()
    pair.client(batch)
    pair.server(answer)
    assert not pair.releasable()
    pair.client(message)
    assert not pair.releasable()
    pair.server(done, ready())
    assert pair.releasable()
    assert pair.pins() == 0


@pytest.mark.parametrize(("message", "done"), QUERY_OR_CALL)
def test_query_that_the_server_skips_ends_no_batch(message: bytes, done: bytes) -> None:
    pair = RelayPair()
    pair.client(parse("wrong") + flush() + message)
    pair.server(ERROR)
    assert not pair.releasable()
    pair.client(message)
    assert not pair.releasable()
    pair.client(sync())
    pair.server(ready())
    assert pair.releasable()


def test_query_behind_a_sync_pins_nothing() -> None:
    pair = RelayPair()
    pair.client(BATCH + query("insert") + function_call(1) + BATCH)
    assert pair.pins() == 0


@pytest.mark.parametrize("batch", [LONG, LONG + describe(kind="S") + flush()])
def test_query_ends_an_unnamed_statement_of_any_length_with_its_batch(batch: bytes) -> None:
    pair = RelayPair()
    pair.client(batch, query("insert"))
    pair.client(parse("insert", "name") + close("name") + sync())
    assert not pair.pins() & PIN_UNNAMED


def test_function_call_leaves_an_unnamed_statement_that_only_this_backend_has() -> None:
    pair = RelayPair()
    pair.client(LONG, describe(kind="S"), flush(), function_call(1))
    pair.server(PARSED, frame("t", b"\0\0"), NO_DATA, frame("V", b"\xff" * 4), ready())
    assert pair.pins() == PIN_UNNAMED
    pair.client(bind(), execute(), sync())
    pair.server(BOUND, DONE, ready())
    assert not pair.back.fault
