"""How a backend is brought in line with a client's settings: sets, their interning, and the SQL on a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from harness.databases import Database
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from proxy.demo.facts import ServerFacts
from proxy.session.parameters import MAX_PARAMETERS, ParameterSet, ParameterTable, parameter_pairs, switch_statement


def parameter_set(**values: str) -> ParameterSet:
    return ParameterSet(parameter_pairs((name.encode(), value.encode()) for name, value in values.items()))


def dotted(*pairs: tuple[str, str]) -> ParameterSet:
    return ParameterSet(parameter_pairs((name.encode(), value.encode()) for name, value in pairs))


EMPTY = ParameterSet(())


def test_last_value_of_a_name_counts_whatever_its_case() -> None:
    pairs = parameter_pairs([(b"TimeZone", b"UTC"), (b"a", b"1"), (b"timezone", b"CET")])
    assert pairs == ((b"a", b"1"), (b"timezone", b"CET"))


def test_order_of_settings_does_not_matter() -> None:
    assert parameter_pairs([(b"a", b"1"), (b"b", b"2")]) == parameter_pairs([(b"b", b"2"), (b"a", b"1")])


@pytest.mark.parametrize(
    "pairs", [[(b"", b"x")], [(f"a.n{number}".encode(), b"x") for number in range(MAX_PARAMETERS + 1)]]
)
def test_settings_without_name_or_measure_are_refused(pairs: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ValueError, match="setting"):
        parameter_pairs(pairs)


def test_equal_settings_are_one_set() -> None:
    table = ParameterTable()
    assert table.intern([(b"a.b", b"1")]) is table.intern([(b"a.b", b"1")])
    assert table.intern([]) is table.empty
    assert table.intern([(b"a.b", b"2")]) is not table.intern([(b"a.b", b"1")])


def test_table_forgets_the_set_that_was_asked_for_longest_ago() -> None:
    table = ParameterTable(limit=2)
    first = table.intern([(b"a.a", b"1")])
    second = table.intern([(b"a.b", b"1")])
    assert table.intern([(b"a.a", b"1")]) is first
    for number in range(10):
        table.intern([(b"a.c", str(number).encode())])
    assert len(table) <= 4
    assert table.intern([(b"a.b", b"1")]) is not second
    assert table.intern([]) is table.empty


def test_representation_of_a_set_tells_no_values() -> None:
    assert "secret" not in repr(parameter_set(application_name="secret"))


def test_equal_sets_need_no_statement() -> None:
    assert switch_statement(EMPTY, EMPTY) == b""
    assert switch_statement(parameter_set(a="1"), parameter_set(A="1")) == b""


def test_old_time_limits_are_taken_away_before_anything_else() -> None:
    old = parameter_set(a="1", statement_timeout="1", transaction_timeout="2")
    assert switch_statement(old, parameter_set(a="1")) == b"RESET statement_timeout; RESET transaction_timeout"
    statement = switch_statement(old, parameter_set(b="1", statement_timeout="1"))
    assert statement.startswith(b'RESET statement_timeout; RESET transaction_timeout; RESET "a"; SELECT ')
    assert b"set_config('statement_timeout', '1', false)" in statement


def test_only_differences_are_in_the_statement() -> None:
    statement = switch_statement(parameter_set(a="1", b="2", c="3"), parameter_set(a="1", b="4"))
    assert statement == b"RESET \"c\"; SELECT pg_catalog.set_config('b', '4', false)"


def test_a_value_that_some_encodings_could_not_quote_safely_is_refused() -> None:
    with pytest.raises(ValueError, match="backslash"):
        parameter_pairs([(b"application_name", "表\\".encode("cp932"))])


AWKWARD = [
    "plain",
    "",
    "it's",
    "''",
    "'; drop table t; --",
    "back\\slash",
    "\\",
    "\\'",
    "'\\",
    "\\\\''\\",
    "\\x41\\u0041",
    "a\nb\tc",
    "ünïcödé '",
    "ascii \\ '",
    "$$ $1 %s {0}",
    '"quoted"',
]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> ServerFacts:
    facts: ServerFacts = request.getfixturevalue("pg18")
    return facts


@pytest.fixture
def database(server: ServerFacts, make_database: Callable[..., Database]) -> Database:
    return make_database(server, "parameters")


@pytest.fixture
def session(database: Database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.url, autocommit=True) as connection:
        yield connection


def switch(session: psycopg.Connection, old: ParameterSet, new: ParameterSet) -> None:
    """Run the statement as the proxy does: with the simple protocol, as these very bytes."""
    statement = switch_statement(old, new)
    if statement:
        result = session.pgconn.exec_(statement)
        assert result.status in (psycopg.pq.ExecStatus.TUPLES_OK, psycopg.pq.ExecStatus.COMMAND_OK), (
            result.error_message
        )


def setting(session: psycopg.Connection, name: str) -> str:
    row = session.execute("select current_setting(%s, true)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("standard", ["on", "off"])
def test_awkward_values_arrive_as_they_are(session: psycopg.Connection, standard: str) -> None:
    session.execute(f"set standard_conforming_strings = {standard}")
    session.execute("set escape_string_warning = on")
    old = EMPTY
    for value in AWKWARD:
        new = dotted(("my.setting", value), ("other.setting", value[::-1]))
        switch(session, old, new)
        assert setting(session, "my.setting") == value
        assert setting(session, "other.setting") == value[::-1]
        old = new
    switch(session, old, EMPTY)
    assert setting(session, "my.setting") == ""


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(["on", "off"]),
)
def test_any_value_arrives_as_it_is(session: psycopg.Connection, value: str, standard: str) -> None:
    assume("\\" not in value or value.isascii())
    session.execute(f"set standard_conforming_strings = {standard}")
    switch(session, EMPTY, dotted(("my.setting", value)))
    assert setting(session, "my.setting") == value


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("search_path", 'a, "B c", "d""e"', 'a, "B c", "d""e"'),
        ("search_path", '"$user", public', '"$user", public'),
        ("search_path", "", ""),
        ("DateStyle", "German, DMY", "German, DMY"),
        ("datestyle", "iso", "ISO, MDY"),
        ("TimeZone", "Europe/Paris", "Europe/Paris"),
        ("statement_timeout", "1500", "1500ms"),
        ("statement_timeout", "2min", "2min"),
        ("work_mem", "8MB", "8MB"),
        ("IntervalStyle", "iso_8601", "iso_8601"),
        ("extra_float_digits", "2", "2"),
        ("client_encoding", "LATIN1", "LATIN1"),
        ("application_name", "it's \\ mine", "it's \\ mine"),
        ("temp_tablespaces", '""', '""'),
        ("myapp.user.id", "42", "42"),
        ("default_transaction_isolation", "repeatable read", "repeatable read"),
    ],
)
def test_setting_means_what_it_means_in_a_startup_packet(
    database: Database, session: psycopg.Connection, name: str, value: str, shown: str
) -> None:
    before = setting(session, name)
    switch(session, EMPTY, dotted((name, value)))
    assert setting(session, name) == shown
    switch(session, dotted((name, value)), EMPTY)
    assert setting(session, name) == (before if before != "None" else "")
    if name != "client_encoding":
        escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
        with psycopg.connect(database.url, options=f"-c {name}={escaped}") as direct:
            assert setting(direct, name) == shown


@pytest.mark.parametrize("name", ["x; drop table t", "a.b'c", 'a."b', "no such setting", "a..b", "."])
def test_impossible_name_is_refused_by_the_server_and_runs_nothing(session: psycopg.Connection, name: str) -> None:
    session.execute("create table t ()")
    for old, new in ((EMPTY, dotted((name, "x"))), (dotted((name, "x")), EMPTY)):
        result = session.pgconn.exec_(switch_statement(old, new))
        assert result.status == psycopg.pq.ExecStatus.FATAL_ERROR
    session.execute("select from t")


def test_refused_value_leaves_no_half_of_the_switch(session: psycopg.Connection) -> None:
    new = dotted(("my.setting", "x"), ("statement_timeout", "never"))
    result = session.pgconn.exec_(switch_statement(EMPTY, new))
    assert result.status == psycopg.pq.ExecStatus.FATAL_ERROR
    assert setting(session, "my.setting") != "x"
