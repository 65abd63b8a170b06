"""Which settings a SET or RESET touches, however it is spelled; and what the server tells of them arrives elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from harness.databases import Database, create_database, drop_database
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.demo.facts import ServerFacts
from proxy.session.parameters import ParameterSet, parameter_pairs, switch_statement
from proxy.session.set_statements import (
    LAST_RESET,
    MAX_TOUCHED,
    TOUCH_RESET,
    TOUCH_SET,
    UNREADABLE,
    TouchedSettings,
    is_for_transaction_only,
    is_safe_text,
    shift_of,
)
from proxy.session.tracked import first_row, followed, inquire, told_in_passing

SET, RESET = TOUCH_SET, TOUCH_RESET | LAST_RESET
CHARACTERISTICS = {f"default_transaction_{name}": SET for name in ("isolation", "read_only", "deferrable")}

READ: list[tuple[str, dict[str, int]]] = [
    ("SET application_name = 'x'", {"application_name": SET}),
    ("set Application_Name to x", {"application_name": SET}),
    ("SET SESSION statement_timeout = 5", {"statement_timeout": SET}),
    ('SET "Mixed.Case" TO 1', {"mixed.case": SET}),
    ('SET "with ""quotes"".b" TO 1', {'with "quotes".b': SET}),
    ("SET app.user.id = 'x; y'", {"app.user.id": SET}),
    ("SET app . tenant = 1", {"app.tenant": SET}),
    ("SET local.x = 1", {"local.x": SET}),
    ("SET session.x = 1", {"session.x": SET}),
    ("SET transaction.x = 1", {"transaction.x": SET}),
    ("SET names.x = 1", {"names.x": SET}),
    ("SET search_path TO a, \"B;c\", 'd'", {"search_path": SET}),
    ("SET search_path FROM CURRENT", {"search_path": SET}),
    ("SET x.y TO DEFAULT", {"x.y": RESET}),
    ("SET x.y = 'default'", {"x.y": SET}),
    ("SET TIME ZONE 'UTC'", {"timezone": SET}),
    ("SET SESSION TIME ZONE -7", {"timezone": SET}),
    ("SET TIME ZONE LOCAL", {"timezone": RESET}),
    ("SET TIME ZONE DEFAULT", {"timezone": RESET}),
    ("SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE", {"timezone": SET}),
    ("SET NAMES 'latin1'", {"client_encoding": SET}),
    ("SET NAMES", {"client_encoding": RESET}),
    ("SET SCHEMA 'x'", {"search_path": SET}),
    ("SET XML OPTION DOCUMENT", {"xmloption": SET}),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", CHARACTERISTICS),
    ("SET LOCAL x.y = 1", {}),
    ("SET LOCAL TIME ZONE 'UTC'", {}),
    ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", {}),
    ("SET TRANSACTION SNAPSHOT '1'", {}),
    ("SET CONSTRAINTS ALL DEFERRED", {}),
    ("SET transaction_isolation = 'serializable'", {}),
    ("RESET x.y", {"x.y": RESET}),
    ("RESET TIME ZONE", {"timezone": RESET}),
    ("RESET TRANSACTION ISOLATION LEVEL", {}),
    ("/* a /* nested */ comment; */ SET -- ; more\n x.y = 1", {"x.y": SET}),
    ("SET a.b = 1; SELECT 'SET c.d = 1'; SET e.f = 2", {"a.b": SET, "e.f": SET}),
    ("SET a.b = 1; RESET a.b", {"a.b": SET | RESET}),
    ("RESET a.b; SET a.b = 1", {"a.b": SET | TOUCH_RESET}),
    ("SELECT $a$; SET c.d = 1; $b$ $a$; SET e.f = 2", {"e.f": SET}),
    ("SELECT E'\\'; SET c.d = 1; --'; SET e.f = 2", {"e.f": SET}),
    ("SELECT '\\'; SET e.f = 2", {"e.f": SET}),
    ('SELECT 1 AS "; SET c.d = 1"; SET e.f = 2', {"e.f": SET}),
    ("UPDATE t SET a = 1; SET e.f = 2", {"e.f": SET}),
    ("CREATE FUNCTION f() RETURNS int LANGUAGE sql SET work_mem = 1 RETURN 1", {}),
    ("SELECT set_config('A.b', $1, false), pg_catalog.set_config( 'c.d' , 'x', true)", {"a.b": SET}),
    ("", {}),
    (";;", {}),
]


@pytest.mark.parametrize(("text", "names"), READ)
def test_names_are_read_however_they_are_spelled(text: str, names: dict[str, int]) -> None:
    touched = TouchedSettings()
    touched.read(text.encode(), standard_strings=True)
    assert not touched.unreadable
    assert not touched.role
    assert {name.decode(): done for name, done in touched.names.items()} == names


@pytest.mark.parametrize(
    "text",
    [
        "SET seed = 0.5",
        'SET U&"d\\0061t" = 1',
        "SET x.y",
        "SET 1 = 1",
        "SET a.b = 'unfinished",
        "/* unfinished SET a.b = 1",
        "SELECT $$ unfinished; SET a.b = 1",
        "SET " + "n" * 200 + " = 1",
        UNREADABLE.decode(),
        "; ".join(f"SET a.n{number} = 1" for number in range(MAX_TOUCHED + 1)),
    ],
)
def test_what_is_not_understood_is_unreadable(text: str) -> None:
    touched = TouchedSettings()
    touched.read(text.encode(), standard_strings=True)
    assert touched.unreadable
    assert len(touched.names) <= MAX_TOUCHED


def test_texts_without_a_tag_that_says_so_have_set_nothing_but_by_calls() -> None:
    touched = TouchedSettings()
    for text in (
        b"SET a.b = 1; RESET c.d",
        UNREADABLE,
        b"SET a.b = 'unfinished",
        b"SELECT set_config('e.f', '1', false)",
    ):
        touched.read(text, standard_strings=True, only_calls=True)
    assert touched.names == {b"e.f": SET}
    assert not touched.unreadable
    touched.read(b"SELECT set_config('e.f', 'unfinished", standard_strings=True, only_calls=True)
    assert touched.unreadable


def test_backslash_in_an_ordinary_string_is_unreadable_unless_it_means_nothing() -> None:
    touched = TouchedSettings()
    touched.read(b"SELECT '\\'; SET a.b = 1 --'", standard_strings=False)
    assert touched.unreadable


@pytest.mark.parametrize(
    "text",
    [
        "SET ROLE x",
        "SET SESSION ROLE x",
        "RESET ROLE",
        "SET role = 'x'",
        "SET SESSION AUTHORIZATION x",
        "RESET SESSION AUTHORIZATION",
        "SET session_authorization TO x",
    ],
)
def test_roles_are_told_apart_from_settings(text: str) -> None:
    touched = TouchedSettings()
    touched.read(text.encode(), standard_strings=True)
    assert touched.role
    assert not touched.names


def test_reset_of_everything_takes_back_what_was_set_before_it() -> None:
    touched = TouchedSettings()
    touched.read(b"SET a.b = 1; RESET ALL; SET c.d = 1", standard_strings=True)
    assert touched.everything
    assert touched.names == {b"a.b": SET | RESET, b"c.d": SET}


@pytest.mark.parametrize(
    ("text", "only"),
    [
        ("SET LOCAL a.b = 1;", True),
        ("set transaction isolation level serializable", True),
        ("SET LOCAL a.b = 1; SET c.d = 2", False),
        ("SET local.a = 1", False),
        ("SET transaction.a = 1", False),
        ("SET a.b = 1", False),
    ],
)
def test_set_local_by_itself_is_known_for_what_it_is(text: str, only: bool) -> None:
    assert is_for_transaction_only(text.encode()) is only


@pytest.mark.parametrize(
    ("text", "shift"),
    [
        ("SET LOCAL app.tenant = 'x'", b""),
        ("SET search_path = a", b""),
        ("RESET statement_timeout;", b""),
        ("SET DateStyle = German", b"SET DateStyle = German"),
        ("SET app.tenant = 'x'; SET TIME ZONE 'UTC'", b"SET app.tenant = 'x'; SET TIME ZONE 'UTC'"),
        ("SELECT set_config('app.tenant', $1, true)", b""),
        ("SELECT set_config('datestyle', $1, true)", UNREADABLE),
        ("SELECT set_config($1, $2, true)", UNREADABLE),
        ("SET DateStyle = '" + "x" * 1000 + "'", UNREADABLE),
    ],
)
def test_settings_that_change_what_statements_mean_keep_them_apart(text: str, shift: bytes) -> None:
    assert shift_of(text.encode()) == shift


@pytest.mark.parametrize(
    ("text", "encoding", "safe"),
    [("表".encode("cp932"), b"SJIS", False), (b"plain", b"SJIS", True), ("é".encode(), b"UTF8", True)],
)
def test_texts_in_encodings_with_backslashes_inside_characters_are_not_read(
    text: bytes, encoding: bytes, safe: bool
) -> None:
    assert is_safe_text(text, encoding) is safe


STATEMENTS = st.sampled_from(
    [
        ("SET {name} = {value}", True),
        ("set session {name} to {value}", True),
        ("RESET {name}", True),
        ("SELECT {value} AS {name}", False),
        ("/* SET {name} = 1; */ SELECT {value}", False),
        ("SELECT {value} -- ; SET {name} = 1\n", False),
        ("SET LOCAL {name} = {value}", False),
        ("UPDATE t SET x = {value}", False),
    ]
)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}\.[a-z_][a-z0-9_]{0,8}", fullmatch=True)
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"])
VALUES = st.one_of(st.text(CHARACTERS, max_size=12), st.text("';\\$\"-/*eE ", max_size=8))


def quoted(value: str, way: int) -> str:
    plain = value.replace("'", "''")
    if way == 0:
        return f"'{plain}'"
    if way == 1:
        return "E'" + plain.replace("\\", "\\\\") + "'"
    tag = "$q$"
    return f"'{plain}'" if "$" in value else f"{tag}{value}{tag}"


@settings(max_examples=300)
@given(st.lists(st.tuples(STATEMENTS, NAMES, VALUES, st.integers(0, 2)), max_size=5))
def test_only_statements_that_set_are_read_whatever_stands_around_them(
    parts: list[tuple[tuple[str, bool], str, str, int]],
) -> None:
    text = ";".join(form.format(name=name, value=quoted(value, way)) for (form, _), name, value, way in parts)
    touched = TouchedSettings()
    touched.read(text.encode(), standard_strings=True)
    assert set(touched.names) == {name.encode() for (_, sets), name, _, _ in parts if sets}
    assert not touched.unreadable


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=60), st.text("setSET RESET=';\"$\\-/*.a\n", max_size=40).map(str.encode)))
def test_any_bytes_are_read_or_not_and_nothing_is_raised(text: bytes) -> None:
    touched = TouchedSettings()
    touched.read(text, standard_strings=True)
    shift_of(text)
    first_row(text)
    told_in_passing(text)


# On a real server.


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: ServerFacts = request.getfixturevalue("pg18")
    made = create_database(server, "set_statements")
    yield made
    drop_database(made)


@pytest.fixture(scope="module")
def connect(database: Database) -> Iterator[Callable[[], psycopg.Connection]]:
    made: list[psycopg.Connection] = []

    def one() -> psycopg.Connection:
        made.append(psycopg.connect(database.url, autocommit=True))
        return made[-1]

    yield one
    for connection in made:
        connection.close()


@pytest.fixture(scope="module")
def pair(connect: Callable[[], psycopg.Connection]) -> tuple[psycopg.Connection, psycopg.Connection]:
    return connect(), connect()


EMPTY = ParameterSet(())


def follow(one: psycopg.Connection, other: psycopg.Connection, text: str) -> ParameterSet:
    """Do what the proxy does: run the text, ask what is in force, bring the other session in line with it."""
    one.pgconn.exec_(text.encode())
    touched = TouchedSettings()
    touched.read(text.encode(), standard_strings=True)
    assert not touched.unreadable
    inquiry = inquire(touched, 0, EMPTY, {}, "nobody")
    result = one.pgconn.exec_(inquiry.statement)
    values = {name: result.get_value(0, at) for at, name in enumerate(inquiry.names)}
    wanted = ParameterSet(followed(touched, inquiry, values, EMPTY, EMPTY))
    other.pgconn.exec_(b"reset all")
    answer = other.pgconn.exec_(switch_statement(EMPTY, wanted))
    assert answer.status == psycopg.pq.ExecStatus.TUPLES_OK, answer.error_message
    return wanted


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES, st.integers(0, 2), st.sampled_from(["UTF8", "LATIN1"]))
def test_any_value_that_is_set_in_one_session_arrives_in_another(
    pair: tuple[psycopg.Connection, psycopg.Connection], value: str, way: int, encoding: str
) -> None:
    one, other = pair
    other.pgconn.exec_(f"set client_encoding = '{encoding}'".encode())
    follow(one, other, f"set my.value = {quoted(value, way)}")
    other.pgconn.exec_(b"set client_encoding = 'UTF8'")
    ask = b"select current_setting('my.value')"
    assert one.pgconn.exec_(ask).get_value(0, 0) == other.pgconn.exec_(ask).get_value(0, 0)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("set search_path = a, \"B c\", 'd''e', \"user\"", "search_path"),
        ("set search_path = 'a, b'", "search_path"),
        ("set temp_tablespaces = ''", "temp_tablespaces"),
        ("set time zone -7.5", "timezone"),
        ("set time zone interval '-08:00' hour to minute", "timezone"),
        ("set datestyle = german, dmy", "datestyle"),
        ("set statement_timeout = 90000", "statement_timeout"),
        ("set vacuum_cost_delay = 1.5", "vacuum_cost_delay"),
        ("set sort_mem = 1000", "work_mem"),
        ("set geqo = 0", "geqo"),
        ("set names 'latin1'", "client_encoding"),
    ],
)
def test_value_is_followed_in_the_servers_own_spelling(
    pair: tuple[psycopg.Connection, psycopg.Connection], text: str, name: str
) -> None:
    one, other = pair
    follow(one, other, text)
    ask = f"select current_setting('{name}')".encode()
    assert one.pgconn.exec_(ask).get_value(0, 0) == other.pgconn.exec_(ask).get_value(0, 0)
    one.pgconn.exec_(b"reset all")


def test_settings_that_are_too_many_or_too_long_do_not_follow() -> None:
    touched = TouchedSettings()
    touched.add(b"a.b", TOUCH_SET)
    inquiry = inquire(touched, 0, EMPTY, {}, "nobody")
    with pytest.raises(ValueError, match="long"):
        followed(touched, inquiry, {b"a.b": b"x" * 10_000}, EMPTY, EMPTY)
    many = ParameterSet(parameter_pairs((f"a.n{number}".encode(), b"x") for number in range(64)))
    with pytest.raises(ValueError, match="settings"):
        followed(touched, inquiry, {b"a.b": b"x"}, EMPTY, many)
