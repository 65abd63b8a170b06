"""What is judged at a glance, whole requests and whole answers, has the outcome of judging it message by message."""

from __future__ import annotations

import re

import pytest
from harness.fakeserver import command_complete, data_row, error_response, parameter_status, ready, row_description
from harness.malformed import MALFORMED
from harness.rawclient import bind, close, describe, execute, flush, frame, parse, query, sync
from harness.relaymodel import NOTICE, RelayPair, copy_data, copy_done
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.session.glance import glance_reply, glance_request, skip_alike
from proxy.session.reply_queue import (
    ANSWER,
    ANSWER_BOUND,
    ANSWER_DESCRIBED,
    ANSWER_PARSED,
    ASKS_MORE,
    ASKS_PIPELINE,
    ASKS_QUERY,
    ASKS_UNDESCRIBED,
)
from proxy.session.texts import Texts

TEXTS = [
    "select abalance from accounts where aid = 1;",
    "SELECT 1",
    "select 1; select 2",
    "update t set a = 1",
    "begin",
    "commit",
    "rollback",
    "set a = b",
    "reset all",
    "discard all",
    "deallocate all",
    "create TEMP table t ()",
    "declare c cursor with hold for select",
    "select pg_advisory_lock(1)",
    "select set_config('a', 'b', false)",
    "listen a",
    "update pg_settings set setting = 'b' where name = 'a'",
    "UPDATE  only pg_catalog.pg_settings set setting = 'b'",
    "update \"pg_settings\" set setting = 'b'",
    "select u&\"\\0073et_config\"('a', 'b', false)",
    "do $$ begin listen a; end $$",
    "drop database a",
    "create database a template b",
    "alter database a rename to b",
    "se",
    "",
    " select 1",
    "-- why\nset a = b",
    "x" * 9000,
]
PARSED, BOUND, CLOSED, NO_DATA, EMPTY = (frame(kind) for kind in "123nI")
ROWS = row_description("a") + data_row("1") + data_row("2")

WORDS = [
    "TEmp",
    "set_Config",
    "Advisory",
    "HOLD",
    ";",
    "x",
    "é",
    " ",
    "do $$",
    "update ",
    "pg_settings",
    "only ",
    "create ",
    "alter ",
    "database ",
    "rename to ",
    'U&"',
    "pg_",
]
FOLLOWED = re.compile(r"(?i)\s*(set|reset|discard|deallocate|do)\b")


def pipeline(text: str, name: str = "") -> bytes:
    return parse(text, name) + bind(["1"], statement=name) + describe() + execute() + sync()


requests = st.sampled_from(
    [
        *(query(text) for text in TEXTS),
        *(pipeline(text) for text in TEXTS),
        *(pipeline(text, "name") for text in TEXTS[:4]),
        parse("select 1") + bind() + execute() + sync(),
        parse("select 1") + bind(portal="p") + describe("p") + execute("p") + sync(),
        parse("select 1") + bind(statement="other") + describe() + execute() + sync(),
        bind(["1"], statement="name") + describe() + execute() + sync(),
        bind() + execute() + sync(),
        parse("select 1") + flush(),
        parse("select 1") + sync(),
        parse(TEXTS[-1]) + sync(),
        close("name") + sync(),
        copy_data("row") + copy_done(),
        query("select 1") + query("select 2"),
        *MALFORMED,
        *(one + bind() + execute() + sync() for one in MALFORMED if one[:1] == b"P"),
        sync(),
    ]
)
answers = st.sampled_from(
    [
        *(
            before + rows + command_complete(tag) + ready(status)
            for before in (b"", PARSED + BOUND, BOUND, PARSED)
            for rows in (b"", ROWS, NO_DATA)
            for tag in ("SELECT 2", "SET", "BEGIN", "COPY 1", "ROLLBACK", "DISCARD ALL", "UPDATE 1", "DO")
            for status in "ITE"
        ),
        ROWS + ROWS + command_complete("SELECT 1") + ready(),
        ROWS + command_complete("SELECT 1") + ROWS + command_complete("SELECT 1") + ready(),
        PARSED + BOUND + NO_DATA + EMPTY + ready(),
        error_response("42601", "no") + ready(),
        PARSED + error_response("42601", "no") + ready("E"),
        frame("G", b"\0\0\0"),
        command_complete("COPY 1") + ready(),
        parameter_status("TimeZone", "UTC") + command_complete("SELECT 1") + ready(),
        command_complete("SELECT 1") + ready("?"),
        PARSED + ready(),
        CLOSED + ready(),
        ready(),
    ]
)


DONE = [
    ROWS + command_complete("SELECT 2") + ready(),
    command_complete("UPDATE 1") + ready("T"),
    command_complete("SET") + ready("T"),
    command_complete("SET") + ready(),
    command_complete("COMMIT") + ready(),
]
# What belongs together, and what nearly all traffic is.
usual = st.one_of(
    st.tuples(
        st.sampled_from([query(text) for text in (TEXTS[0], "update t set a = 1", "set a = b", "commit")]),
        st.sampled_from(DONE).map(lambda answer: [answer]),
    ),
    st.tuples(
        st.sampled_from([pipeline(text) for text in ("select 1", "set a = b", "commit", TEXTS[-1])]),
        st.sampled_from(DONE).map(lambda answer: [PARSED + BOUND + (b"" if answer[:1] == b"T" else NO_DATA) + answer]),
    ),
    st.sampled_from(
        [
            (parse("select 1") + flush(), [PARSED]),
            (parse("select 1") + sync(), [PARSED + ready()]),
            (parse(TEXTS[-1]) + sync(), [PARSED + ready()]),
            (bind() + execute() + sync(), [BOUND + command_complete("SELECT 0") + ready()]),
            (bind() + describe() + execute() + sync(), [BOUND + DONE[0]]),
        ]
    ),
)


def state_of(thing: object) -> object:
    """All that an object knows, however deep."""
    if not type(thing).__module__.startswith("proxy."):
        return [state_of(one) for one in thing] if isinstance(thing, list) else thing
    names = [name for name in dir(thing) if not name.startswith("__")]
    return {name: state_of(value) for name in names if not callable(value := getattr(thing, name))}


@settings(max_examples=1000)
@given(st.lists(st.one_of(usual, usual, st.tuples(requests, st.lists(answers, max_size=2))), min_size=1, max_size=5))
def test_outcome_is_that_of_judging_one_by_one(conversation: list[tuple[bytes, list[bytes]]]) -> None:
    whole, single = RelayPair(), RelayPair()
    for said, answered in conversation:
        # Flush and Notice change nothing, and are in no chunk that is known at a glance.
        whole.client(said)
        single.client(said + flush())
        assert state_of(whole.front) == state_of(single.front)
        for answer in answered:
            whole.server(answer)
            single.server(NOTICE + answer)
            assert state_of(whole.back) == state_of(single.back)
        assert state_of(whole.front) == state_of(single.front)
        if whole.back.fault or whole.front.fault:
            break


@pytest.mark.parametrize(
    ("chunk", "asks"),
    [
        (query("select 1;"), ASKS_QUERY),
        (pipeline("select 1"), ASKS_PIPELINE),
        (parse("select 1") + bind() + execute() + sync(), ASKS_UNDESCRIBED),
        (query("set a = b"), ASKS_MORE),
        (pipeline("select 1") + sync(), ASKS_MORE),
        (pipeline("select 1")[:-1], ASKS_MORE),
    ],
)
def test_requests_are_known(chunk: bytes, asks: int) -> None:
    assert glance_request(chunk) == asks


def test_replies_are_known() -> None:
    end = command_complete("SELECT 2") + ready()
    assert glance_reply(ROWS + end) == ANSWER | ANSWER_DESCRIBED
    assert glance_reply(PARSED + BOUND + ROWS + end) == ANSWER | ANSWER_PARSED | ANSWER_BOUND | ANSWER_DESCRIBED
    assert glance_reply(PARSED + BOUND + end) == ANSWER | ANSWER_PARSED | ANSWER_BOUND
    assert glance_reply(NOTICE + end) == 0


@settings(max_examples=1000)
@given(st.lists(st.sampled_from([*TEXTS[:-1], *WORDS]), max_size=4))
def test_no_text_that_has_to_be_looked_at_is_harmless(parts: list[str]) -> None:
    text = "".join(parts)
    asked, texts = query(text), Texts()
    has_marks = texts.query(asked, 5, len(asked), whole=True) != 0 or bool(texts.kept) or bool(texts.concerns)
    if has_marks or FOLLOWED.match(text):
        assert glance_request(asked) == ASKS_MORE
        assert glance_request(pipeline(text)) == ASKS_MORE


@given(st.binary(max_size=40), st.integers(0, 12))
def test_arbitrary_bytes_are_survived(data: bytes, cut: int) -> None:
    for chunk in (data, pipeline("select 1")[:-cut] + data, query("select")[:cut] + data, ROWS[:-cut] + data + ready()):
        glance_request(chunk)
        glance_reply(chunk)


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(1, 30))
def test_whole_messages_of_one_type_are_skipped(bodies: list[bytes], missing: int) -> None:
    run = b"".join(frame("d", body) for body in bodies)
    rest = frame("d", bytes(26))[:-missing]
    for after in (b"", ready(), rest):
        if run or after:
            expected = len(run) if run or after != ready() else len(after)
            assert skip_alike(run + after, 0) == expected
