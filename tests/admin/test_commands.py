"""What the console makes of a statement's text."""

from __future__ import annotations

import pytest
from harness.references import ROOT, console_page
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin.catalogue import ORDERS, TOPICS
from proxy.admin.commands import Accepted, Constant, Do, Move, Nothing, Show, parse
from proxy.errors import CONSOLE_UNKNOWN_COMMAND, CONSOLE_UNSUPPORTED, Failure


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("show clients", ()),
        (" SHOW\n Clients ; ", ()),
        ("SHOW CLIENTS acme", ("acme",)),
        ("SHOW CLIENTS 'o''brien'", ("o'brien",)),
        ('SHOW CLIENTS "My-Tenant"', ("My-Tenant",)),
        ("/* from a tool; */ SHOW CLIENTS acme -- all of them", ("acme",)),
    ],
)
def test_show_is_read_whatever_its_spelling(text: str, arguments: tuple[str, ...]) -> None:
    assert parse(text) == [Show(TOPICS["CLIENTS"], arguments)]


def test_a_second_argument_may_follow_a_comma_and_pgbouncers_word_is_ours() -> None:
    assert parse("show route 'app', acme") == [Show(TOPICS["ROUTE"], ("app", "acme"))]
    assert parse("show backends") == parse("show servers")


@pytest.mark.parametrize("text", ["", " ; ;", "-- nothing", "/* nothing */"])
def test_nothing_is_one_empty_statement(text: str) -> None:
    assert parse(text) == [Nothing()]


def test_what_drivers_say_is_accepted_and_tells_where_the_transaction_is() -> None:
    said = "BEGIN READ ONLY; SET application_name = 'a;b'; RESET ALL; select 1; ROLLBACK; show server_version"
    kinds = [(one.tag, getattr(one, "move", None)) for one in parse(said) if isinstance(one, Accepted | Constant)]
    assert kinds == [
        ("BEGIN", Move.BEGIN),
        ("SET", Move.NONE),
        ("RESET", Move.NONE),
        ("SELECT 1", None),
        ("ROLLBACK", Move.END),
        ("SHOW", None),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("select * from secrets", "select * from secrets"),
        ("SHOW", "SHOW"),
        ("SHOW nonsense", "SHOW nonsense"),
        ("SHOW 'clients", "a text without its closing quote"),
        ("/* show clients", "a comment without its end"),
        ("SELECT " + "(" * 16_000, "a text of more than 1,000 words, symbols and gaps"),
        ("alter role x password 'secret'", "alter role x password '...'"),
        ("RELOAD now", "RELOAD now"),
    ],
)
def test_what_is_no_command_is_said_without_quoted_texts_and_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(Failure) as failed:
        parse(text)
    assert failed.value.spec is CONSOLE_UNKNOWN_COMMAND
    assert failed.value.message == f"this is no command of the console: {said}"
    assert failed.value.hint


def test_a_wrong_number_of_arguments_shows_how_it_is_spelled() -> None:
    with pytest.raises(Failure) as failed:
        parse("SHOW ROUTE")
    assert failed.value.hint == "It is spelled: SHOW ROUTE user [database]"
    with pytest.raises(Failure) as failed:
        parse("SHOW CLIENTS $1")
    assert failed.value.spec is CONSOLE_UNSUPPORTED


def test_the_page_of_the_console_is_in_step_with_the_code() -> None:
    assert (ROOT / "docs" / "console.md").read_text() == console_page()


def test_every_command_is_known_by_its_usage() -> None:
    for topic in TOPICS.values():
        words = topic.usage.replace("[", "").replace("]", "")
        assert parse(words) == [Show(topic, topic.parameters)]
        assert len({column.name for column in topic.columns}) == len(topic.columns)
    for order in ORDERS.values():
        assert parse(order.usage) == [Do(order, order.parameters)]


@given(st.text(alphabet="show clients;'\"-/*,()=$1\n", max_size=300))
def test_no_text_is_beyond_reading(text: str) -> None:
    try:
        assert parse(text)
    except Failure:
        return
