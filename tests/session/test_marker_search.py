"""The quick look for words of session state never misses one, wherever it stands."""

from __future__ import annotations

import random

import pytest

from proxy.session.markers import session_markers
from proxy.session.texts import LONG_TEXT, find_semicolon, may_begin_with_marker, may_have_markers

WORDS = [b"temp", b"temporary", b"hold", b"advisory_lock", b"set_config"]


def found(text: bytes) -> bool:
    """Look at a text in the middle of others, which must not count."""
    return may_have_markers(b"hold" + text + b"temp", 4, 4 + len(text))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("around", [b" ", b"\0", b"\xff", b"9"], ids=repr)
def test_a_word_is_found_at_every_place(word: bytes, around: bytes) -> None:
    for spelled in (word, word.upper(), word.title()):
        for before in range(20):
            for after in range(20):
                text = around * before + spelled + around * after
                assert found(text), text
                if around in b" \0":
                    assert session_markers(text.lower()), text


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_found_in_a_long_statement(word: bytes) -> None:
    for place in (0, LONG_TEXT // 2, LONG_TEXT - 1, 3 * LONG_TEXT):
        text = bytearray(b"." * 4 * LONG_TEXT)
        text[place : place + len(word)] = word.upper()
        assert found(bytes(text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b";\0",
        b"Q\0\0\0\x06;\0",
        b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;\0",
        b"begin\0",
        b"UPDATE t SET a = 1, c = 2 WHERE id = 3",
        bytes(range(0x61)) + bytes(range(0x80, 0x100)),
    ],
)
def test_ordinary_statements_are_passed_over(text: bytes) -> None:
    assert not found(text)


@pytest.mark.parametrize("view", [b"pg_settings", b"pg_catalog . pg_settings", b'"pg_settings"', b"only pg_settings"])
@pytest.mark.parametrize("space", [b" ", b"\n\t "])
def test_an_update_of_the_settings_is_found(view: bytes, space: bytes) -> None:
    for text in (b"update" + space + view + b" set setting = ''", space + b"UPDATE" + space + view.upper() + b" x"):
        assert may_begin_with_marker(b"up" + text, 2, 2 + len(text))
        assert session_markers(text.lower())


@pytest.mark.parametrize("text", [b"", b"update", b"update pgbench", b"UPDATE t SET a = 1", b"insert into pg_settings"])
def test_another_statement_updates_no_settings(text: bytes) -> None:
    assert not session_markers(text.lower())
    if text != b"update pgbench":
        assert not may_begin_with_marker(text, 0, len(text))


def test_says_the_same_as_a_slow_search_for_its_pairs() -> None:
    chance = random.Random(4)
    letters = b'mpldvMPLDV_cC \0\xff\x80aAx\xed\xf0e&"'
    for _ in range(2000):
        text = bytes(chance.choice(letters) for _ in range(chance.randrange(40)))
        lower = bytes(letter | 0x20 for letter in text[1:])
        assert found(text) == any(pair in lower for pair in (b"mp", b"ld", b"dv", b"\x7fc", b'&"')), text


def test_semicolon_is_found_where_it_is_first() -> None:
    chance = random.Random(5)
    for _ in range(3000):
        text = bytes(chance.choice(b";:<\xbbabc \0\xff" if chance.random() < 0.3 else b"abc\xbb") for _ in range(30))
        start, end = sorted((chance.randrange(31), chance.randrange(31)))
        assert find_semicolon(text, start, end) == text.find(b";", start, end), (text, start, end)
