"""Startup options are split and read as PostgreSQL does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import StartupOptionError
from proxy.wire.options import parse_startup_options, split_startup_options


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", []),
        ("  \t\n ", []),
        ("-c a=b", [("a", "b")]),
        ("-ca=b", [("a", "b")]),
        ("--a=b", [("a", "b")]),
        ("--a-b=c-d", [("a_b", "c-d")]),
        ("-c a=b=c --d=", [("a", "b=c"), ("d", "")]),
        ("-c search_path=x,\\ y", [("search_path", "x, y")]),
        ("-c a=back\\\\slash", [("a", "back\\slash")]),
        ("-c a=lost\\", [("a", "lost")]),
        ("-c a=1 -c a=2", [("a", "1"), ("a", "2")]),
        ("-e -S 64", [("datestyle", "euro"), ("work_mem", "64")]),
        ("-ec a=b", [("datestyle", "euro"), ("a", "b")]),
        ("-f s -fi", [("enable_seqscan", "false"), ("enable_indexscan", "false")]),
        ("-t pa -tex", [("log_parser_stats", "true"), ("log_executor_stats", "true")]),
        ("-d 2", [("log_min_messages", "debug2"), ("log_statement", "all")]),
        ("-d x", [("log_min_messages", "notice")]),
        ("-n -T -r file -v3", []),
        ("-c a=b --", [("a", "b")]),
    ],
)
def test_options_become_settings(options: str, settings: list[tuple[str, str]]) -> None:
    assert list(parse_startup_options(options)) == settings


@pytest.mark.parametrize(
    ("options", "switch"),
    [
        ("-x", "-x"),
        ("-c", "-c"),
        ("-c a", "-c a"),
        ("--a", "--a"),
        ("-f z", "-f"),
        ("-t p", "-t"),
        ("word", "word"),
        ("-c a=b tenant=acme", "tenant=acme"),
        ("-", "-"),
        ("-- more", "more"),
        ("\\", ""),
        ("-o x", "-o"),
    ],
)
def test_what_postgresql_refuses_is_refused_by_name(options: str, switch: str) -> None:
    with pytest.raises(StartupOptionError) as caught:
        parse_startup_options(options)
    assert caught.value.switch == switch
    assert switch in str(caught.value)


def test_bare_words_are_taken_only_where_allowed() -> None:
    assert parse_startup_options("tenant=acme -c a=b", bare={"tenant"}) == (("tenant", "acme"), ("a", "b"))
    with pytest.raises(StartupOptionError):
        parse_startup_options("role=root", bare={"tenant"})


def test_a_long_refused_word_is_cut_in_the_error() -> None:
    with pytest.raises(StartupOptionError) as caught:
        parse_startup_options("x" * 9000)
    assert len(str(caught.value)) < 200


@given(st.lists(st.text(min_size=1).filter(lambda word: "\0" not in word), max_size=5))
def test_escaped_words_come_back_whole(words: list[str]) -> None:
    escaped = " ".join("".join("\\" + character for character in word) for word in words)
    assert split_startup_options(escaped) == words


@given(st.text())
def test_any_text_is_parsed_or_refused(options: str) -> None:
    try:
        parse_startup_options(options)
    except StartupOptionError:
        pass
