"""Named statements, message by message: what is sent in place of what a client says, and what it hears."""

from __future__ import annotations

import pytest
from harness.fakeserver import command_complete, error_response, parameter_status, ready, row_description
from harness.rawclient import bind, close, cstring, describe, execute, flush, frame, parse, query, sync
from harness.relaymodel import NOTIFICATION, RelayPair, copy_data
from hypothesis import given
from hypothesis import strategies as st

from proxy.session.desk import STATEMENT_MOST
from proxy.session.parameters import ParameterSet
from proxy.session.pins import PIN_STATEMENT
from proxy.session.relay import FOUND_FAULT, FOUND_NOTHING
from proxy.session.replies import BackState
from proxy.session.statement_names import ALL_STATEMENTS, deallocated, is_word_in
from proxy.session.statements import (
    CLIENT_STATEMENTS,
    Shelf,
    Statement,
    StatementTable,
    shape_of,
)

PARSED, BOUND, CLOSED, NO_DATA = (frame(kind) for kind in "123n")
NO_PARAMETERS = frame("t", b"\0\0")
DONE = command_complete("INSERT 0 1")
ERROR = error_response("22012", "division by zero")
OWN = "pgtenant_t_1"
PREPARED = close(OWN) + parse("insert", OWN) + describe(OWN, kind="S")
PREPARED_ANSWER = [CLOSED, PARSED, NO_PARAMETERS, NO_DATA]


def pair_with(table: StatementTable | None = None, back: BackState | None = None, ident: int = 1) -> RelayPair:
    pair = RelayPair(ident, BackState(10) if back is None else back)
    pair.front.desk.table = StatementTable(b"t") if table is None else table
    return pair


def test_parse_is_sent_under_a_name_of_the_proxys_and_its_shape_asked_for() -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    assert pair.to_server == PREPARED + sync()
    pair.server(*PREPARED_ANSWER, ready())
    assert pair.to_client == PARSED + ready()
    assert pair.swallowed == CLOSED + NO_PARAMETERS + NO_DATA
    assert pair.pins() == 0
    assert pair.releasable()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_replies_cut_anywhere_are_told_apart(size: int) -> None:
    pair = pair_with()
    pair.client(parse("select", "s"), bind(statement="s"), describe(), execute(), sync())
    columns = row_description("x")
    answer = b"".join((CLOSED, PARSED, NO_PARAMETERS, columns, BOUND, columns, command_complete("SELECT 0"), ready()))
    for start in range(0, len(answer), size):
        pair.server(answer[start : start + size])
    assert pair.to_client == PARSED + BOUND + columns + command_complete("SELECT 0") + ready()
    assert pair.releasable()


def prepared_on_another_backend() -> RelayPair:
    table = StatementTable(b"t")
    first = pair_with(table)
    first.client(parse("insert", "s"), sync())
    first.server(*PREPARED_ANSWER, ready())
    second = pair_with(table)
    second.front = first.front
    return second


def test_statement_is_prepared_where_it_is_used_before_anything_else_is_sent() -> None:
    pair = prepared_on_another_backend()
    pair.client(bind(statement="s"), execute(), sync())
    assert pair.to_server == PREPARED + flush()
    pair.server(*PREPARED_ANSWER)
    assert pair.to_client == b""
    assert pair.to_server == PREPARED + flush() + bind(statement=OWN) + execute() + sync()
    pair.server(BOUND, DONE, ready())
    assert pair.to_client == BOUND + DONE + ready()
    pair.client(bind(statement="s"), execute(), sync())
    assert pair.to_server.endswith(sync() + bind(statement=OWN) + execute() + sync())


def test_error_of_preparing_again_is_the_answer_to_the_bind() -> None:
    pair = prepared_on_another_backend()
    pair.client(bind(statement="s"), execute(), sync())
    pair.server(CLOSED, ERROR)
    assert pair.to_client == ERROR
    assert pair.to_server.endswith(bind(statement="s") + execute() + sync()), "the server skips it"
    pair.server(ready())
    assert pair.to_client == ERROR + ready()
    assert pair.releasable()
    assert not pair.back.shelf.copies


def test_other_result_than_the_client_was_told_of_is_an_error_and_runs_nothing() -> None:
    pair = prepared_on_another_backend()
    pair.client(bind(statement="s"), execute(), sync())
    pair.server(CLOSED, PARSED, NO_PARAMETERS, row_description("new"))
    assert pair.to_server.endswith(
        flush() + describe("pgtenant_none", kind="S") + bind(statement="s") + execute() + sync()
    )
    pair.server(error_response("26000", "no such statement"), ready())
    assert pair.to_client == b"<changed>" + ready()


def test_statement_of_a_parse_that_fails_is_nowhere() -> None:
    pair = pair_with()
    pair.client(parse("no SQL", "s"), sync())
    pair.server(CLOSED, ERROR, ready())
    assert pair.to_client == ERROR + ready()
    assert not pair.back.shelf.copies
    pair.client(bind(statement="s"), sync())
    assert pair.to_server.endswith(bind(statement="s") + sync()), "the server itself says that there is none"


def test_name_is_not_looked_up_while_an_earlier_batch_may_change_it() -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync(), bind(statement="s"), execute(), sync())
    assert pair.to_server == PREPARED + sync() + flush()
    pair.server(*PREPARED_ANSWER, ready())
    assert pair.to_server == PREPARED + sync() + flush() + bind(statement=OWN) + execute() + sync()


def test_nothing_is_prepared_behind_a_command_that_may_be_a_copy() -> None:
    pair = pair_with()
    pair.client(query("copy t from stdin"), parse("insert", "s"))
    assert pair.to_server == query("copy t from stdin") + flush()
    pair.server(frame("G", b"\0\0\0"))
    assert pair.back.doubt, "the server takes the Parse for a part of the copy"
    assert pair.to_server.endswith(parse("insert", "s"))


COPY_IN_DOUBT = frame("G", b"\0\0\0") + ERROR


@pytest.mark.parametrize("use", [bind(statement="s"), describe("s", kind="S")], ids=["bind", "describe"])
def test_statement_from_before_a_copy_in_doubt_is_not_said_to_be_unknown(use: bytes) -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    pair.server(*PREPARED_ANSWER, ready())
    pair.client(query("copy t from stdin"), sync(), copy_data("bad"))
    pair.server(COPY_IN_DOUBT)
    assert pair.back.doubt
    sent = len(pair.to_server)
    pair.client(use, execute(), sync())
    assert pair.to_server[sent:] == b"", "this backend has it under another name"
    assert pair.front.found == FOUND_FAULT
    assert "prepared statement" in pair.front.fault


@pytest.mark.parametrize("anew", [close("s"), parse("insert", "s"), close("s") + parse("insert", "s")])
def test_statement_made_anew_after_a_copy_in_doubt_is_the_servers(anew: bytes) -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    pair.server(*PREPARED_ANSWER, ready())
    pair.client(query("copy t from stdin"), sync(), copy_data("bad"))
    pair.server(COPY_IN_DOUBT)
    sent = len(pair.to_server)
    pair.client(anew, bind(statement="s"), execute(), sync())
    assert pair.to_server[sent:] == anew + bind(statement="s") + execute() + sync()
    assert pair.front.found == FOUND_NOTHING


def test_close_takes_the_name_away_and_leaves_the_copy() -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    pair.server(*PREPARED_ANSWER, ready())
    pair.client(close("s"), sync())
    assert pair.to_server.endswith(close("pgtenant_none") + sync())
    pair.server(CLOSED, ready())
    assert len(pair.back.shelf.copies) == 1
    pair.client(describe("s", kind="S"), sync())
    assert pair.to_server.endswith(describe("s", kind="S") + sync())


def test_close_that_was_skipped_takes_nothing_away() -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    pair.server(*PREPARED_ANSWER, ready())
    pair.client(execute("none"), close("s"), parse("insert", "t"), sync())
    pair.server(ERROR, ready())
    pair.client(bind(statement="s"), bind(statement="t"), sync())
    pair.server(*PREPARED_ANSWER)
    assert pair.to_server.endswith(bind(statement=OWN) + bind(statement="t") + sync())


def test_deallocate_of_a_name_deallocates_a_spare_statement() -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    pair.server(*PREPARED_ANSWER, ready())
    pair.client(query("DEALLOCATE s"))
    spare = close("pgtenant_spare") + parse("", "pgtenant_spare")
    assert pair.to_server.endswith(spare + query("DEALLOCATE pgtenant_spare"))
    pair.server(CLOSED, PARSED, command_complete("DEALLOCATE"), ready())
    assert pair.to_client.endswith(command_complete("DEALLOCATE") + ready())
    assert pair.releasable()
    assert len(pair.back.shelf.copies) == 1


def test_statement_that_is_too_long_or_one_too_many_pins() -> None:
    pair = pair_with()
    long = parse("insert" + " " * STATEMENT_MOST, "s")
    pair.client(long, sync())
    assert pair.to_server == long + sync()
    assert pair.front.pins & PIN_STATEMENT
    pair = pair_with()
    for number in range(CLIENT_STATEMENTS + 1):
        pair.client(parse("insert", f"s{number}"), sync())
        pair.server(*PREPARED_ANSWER if number < CLIENT_STATEMENTS else [PARSED], ready())
    assert pair.front.pins & PIN_STATEMENT
    assert pair.to_server.endswith(parse("insert", f"s{CLIENT_STATEMENTS}") + sync())
    pair.client(bind(statement="s0"), bind(statement=f"s{CLIENT_STATEMENTS}"), sync())
    assert pair.to_server.endswith(bind(statement=OWN) + bind(statement=f"s{CLIENT_STATEMENTS}") + sync())


def test_error_names_the_statement_as_its_client_does() -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    pair.server(*PREPARED_ANSWER, ready())
    pair.client(bind(["1"], statement="s"), sync())
    pair.server(error_response("08P01", f'prepared statement "{OWN}" requires 0'), ready())
    assert pair.to_client.endswith(error_response("08P01", 'prepared statement "s" requires 0') + ready())


def test_least_recently_used_copy_makes_room() -> None:
    shelf = Shelf(2)
    one, two, three = (Statement(ident, b"n", b"", b"") for ident in (1, 2, 3))
    shelf.put(one)
    shelf.put(two)
    shelf.touch(shelf.copies[1])
    assert [copy.statement for copy in shelf.put(three)] == [three, two]
    assert list(shelf.copies) == [1, 3]


def test_table_forgets_what_was_prepared_longest_ago() -> None:
    table = StatementTable(b"t", most=2)
    one = table.intern(b"1", b"")
    table.intern(b"2", b"")
    assert table.intern(b"1", b"") is one
    table.intern(b"3", b"")
    assert table.intern(b"1", b"") is one
    assert table.intern(b"1", b"other") is not one
    assert len(table) == 2
    table = StatementTable(b"t", most_bytes=100)
    for number in range(10):
        table.intern(b"%d" % number * 30, b"")
    assert len(table) == 3


def test_shape_is_what_a_client_relies_on() -> None:
    def columns(table: int, kind: int) -> bytes:
        return frame(
            "T",
            b"\0\1"
            + cstring("x")
            + table.to_bytes(4, "big")
            + b"\0\1"
            + kind.to_bytes(4, "big")
            + b"\0\4"
            + b"\xff" * 4
            + b"\0\0",
        )

    assert shape_of(b"\0\0", columns(1, 23)) == shape_of(b"\0\0", columns(2, 23))
    assert shape_of(b"\0\0", columns(1, 23)) != shape_of(b"\0\0", columns(1, 25))
    assert shape_of(b"\0\0", columns(1, 23)) != shape_of(b"\0\0", NO_DATA)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_shape_of_anything_is_read_without_error(parameters: bytes, row: bytes) -> None:
    assert shape_of(parameters, b"T\0\0\0\0" + row).startswith(parameters)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("DEALLOCATE s", "s"),
        (" deallocate\n PREPARE My_1$ ; ", "my_1$"),
        ('DEALLOCATE "My ""s"""', 'My "s"'),
        ("DEALLOCATE ALL", "\0"),
        ("deallocate prepare all;", "\0"),
        ("discard  all", "\0"),
        ("DEALLOCATE s; DEALLOCATE t", ""),
        ("DEALLOCATE", ""),
        ("DISCARD PLANS", ""),
        ("select 'deallocate s'", ""),
        ("deallocate " + "x" * 1000, ""),
    ],
)
def test_statement_that_deallocates_is_read(text: str, name: str) -> None:
    assert deallocated(text.encode()) == name.encode()
    assert ALL_STATEMENTS == b"\0"


def test_settings_that_change_no_meaning_are_not_in_it() -> None:
    plain = ParameterSet(())
    assert ParameterSet(((b"Application_Name", b"x"), (b"app.tenant", b"7"))).meaning == plain.meaning
    assert ParameterSet(((b"Search_Path", b"a"),)).meaning != plain.meaning
    assert ParameterSet(((b"a", b"b=c"),)).meaning != ParameterSet(((b"a=b", b"c"),)).meaning


@pytest.mark.parametrize("message", [NOTIFICATION, parameter_status("TimeZone", "UTC")])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_a_server_says_unasked_among_the_answers_to_the_proxy_is_for_the_client(
    size: int, at: int, message: bytes
) -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    replies = [*PREPARED_ANSWER, ready()]
    answer = b"".join([*replies[:at], message, *replies[at:]])
    for start in range(0, len(answer), size):
        pair.server(answer[start : start + size])
    assert pair.to_client.replace(message, b"") == PARSED + ready()
    assert message in pair.to_client
    assert pair.swallowed == CLOSED + NO_PARAMETERS + NO_DATA
    assert pair.releasable()


def test_copy_that_others_use_is_not_closed_by_its_name() -> None:
    pair = pair_with()
    pair.client(parse("insert", "s"), sync())
    pair.server(*PREPARED_ANSWER, ready())
    stranger = pair_with(pair.front.desk.table, pair.back, ident=2)
    stranger.client(close(OWN), sync())
    assert close(OWN) not in stranger.to_server
    stranger.server(CLOSED, ready())
    assert stranger.to_client == CLOSED + ready()
    assert stranger.releasable()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (b"s", b"execute s(1)", True),
        (b"s", b'execute "s"', True),
        (b"s", b"execute s1, s_2, _s; execute s", True),
        (b"s", b"execute s1", False),
        (b"s", b"execute _s", False),
        (b"s", b"grant execute on functions", False),
    ],
)
def test_name_is_found_as_a_word(name: bytes, text: bytes, expected: bool) -> None:
    assert is_word_in(name, text) is expected


def test_copy_is_made_again_after_anything_was_deallocated_in_sql() -> None:
    table = StatementTable(b"t")
    pair = pair_with(table)
    pair.client(parse("insert", "s"), sync())
    pair.server(*PREPARED_ANSWER, ready())
    stranger = pair_with(table, pair.back, ident=2)
    stranger.client(query(f"deallocate {OWN}"))
    stranger.server(command_complete("DEALLOCATE"), ready())
    pair.to_server.clear()
    pair.client(bind(statement="s"), execute(), sync())
    assert pair.to_server == PREPARED + flush()
