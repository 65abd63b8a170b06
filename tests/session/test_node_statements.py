"""Statements that concern the node are noticed in whatever way they come, and read as PostgreSQL reads them."""

from __future__ import annotations

import pytest
from harness.fakeserver import command_complete, ready
from harness.rawclient import bind, describe, execute, frame, parse, query, sync
from harness.relaymodel import RelayPair
from hypothesis import given
from hypothesis import strategies as st

from proxy.session.node_statements import MAX_DATABASES, MAX_NAME, MAX_TEXT, databases_to_leave
from proxy.session.pins import CONCERNS_NODE
from proxy.session.texts import MAX_CONCERNS, may_concern_node

TEXTS = [
    (b"drop database shop", [b"shop"]),
    (b"DROP DATABASE Shop;", [b"shop"]),
    (b'drop database "Shop ""2"""', [b'Shop "2"']),
    (b"drop database if exists shop with (force)", [b"shop"]),
    (b"drop database shop (force)", [b"shop"]),
    (b"drop/* why */database -- this\n shop", [b"shop"]),
    (b"-- first\ndrop database shop", [b"shop"]),
    (b"/* app:shop */ drop database shop", [b"shop"]),
    (b"drop database " + b"x" * 70, [b"x" * MAX_NAME]),
    ("drop database größe".encode(), ["größe".encode()]),
    (b"alter database shop rename to other", [b"shop"]),
    (b'alter database "Shop" set tablespace fast', [b"Shop"]),
    (b"alter database shop set work_mem = '1MB'", []),
    (b"alter database shop owner to app", []),
    (b"create database copy template shop", [b"shop"]),
    (b"create database copy with owner = app encoding 'UTF8' template = \"Shop\"", [b"Shop"]),
    (b"create database copy template 'shop''s' strategy file_copy", [b"shop's"]),
    (b"create database template template shop", [b"shop"]),
    (b"create database copy", [b"template1"]),
    (b"create database copy template default", [b"template1"]),
    (b"begin; alter database shop rename to other; commit", [b"shop"]),
    (b"drop database a; drop database b", [b"a", b"b"]),
    (b"select 'drop database shop'", []),
    (b"select $$ drop database shop $$", []),
    (b"/* drop database shop */ select 1", []),
    (b"drop table database", []),
    (b"comment on database shop is 'drop database shop'", []),
    (b"create table t (a text default 'create database x')", []),
    (b"drop database", []),
    (b"drop database 'shop'", []),
    (b'drop database U&"sh\\006fp"', []),
    (b"drop database shop /* open", []),
    (b"select '\\'; drop database shop", []),
    (b"drop database shop " + b" " * MAX_TEXT, []),
]


@pytest.mark.parametrize(("text", "names"), TEXTS)
def test_the_database_is_read_that_others_must_leave(text: bytes, names: list[bytes]) -> None:
    assert databases_to_leave(text) == names


@given(
    st.lists(st.sampled_from([b"drop", b" database ", b"x", b"/*", b"*/", b"'", b'"', b";", b"--", b"\n", b"create"]))
)
def test_whatever_is_read_is_noticed_at_the_quick_look(parts: list[bytes]) -> None:
    text = b"".join(parts)
    if databases_to_leave(text) and b";" not in text:
        assert may_concern_node(b"x" + text + b"\0", 1, 2 + len(text))


def noticed(pair: RelayPair) -> list[bytes]:
    texts, pair.front.texts.concerns = pair.front.texts.concerns, []
    return texts


@pytest.mark.parametrize("text", [text for text, names in TEXTS if names and len(text) < 100])
def test_it_is_noticed_before_it_is_forwarded(text: bytes) -> None:
    sql = text.decode()
    pair = RelayPair()
    pair.client(query("select 1"))
    pair.server(command_complete("SELECT 1"), ready())
    pair.client(query(sql))
    assert noticed(pair) == [text]
    pair.server(command_complete("DROP DATABASE"), ready())
    assert noticed(pair) == []
    if len(databases_to_leave(text)) > 1 or b"; alter" in text:
        # The protocol's Parse takes one statement.
        return
    pair.client(parse(sql) + bind() + describe() + execute() + sync())
    assert noticed(pair) == [text]
    pair.server(frame("1"), frame("2"), frame("n"), command_complete("DROP DATABASE"), ready())
    assert pair.pins() & CONCERNS_NODE == 0
    assert pair.releasable()


def test_a_prepared_one_is_noticed_whenever_it_is_bound() -> None:
    pair = RelayPair()
    pair.client(parse("drop database shop", "s") + sync())
    assert noticed(pair) == []
    pair.server(frame("1"), ready())
    for _ in range(2):
        pair.client(bind(statement="s") + execute() + sync())
        assert noticed(pair) == [b"drop database shop"]
        pair.server(frame("2"), command_complete("DROP DATABASE"), ready())
        assert pair.front.pins & CONCERNS_NODE == 0


def test_a_name_that_may_mean_a_set_is_not_taken_for_the_statement_that_failed_to_replace_it() -> None:
    pair = RelayPair()
    pair.client(parse("set a.b = 'c'", "s") + sync())
    pair.server(frame("1"), ready())
    pair.client(parse("drop database shop", "s") + sync())
    pair.client(bind(statement="s") + execute() + sync())
    assert noticed(pair) == []
    assert pair.front.texts.kept, "the SET is to be looked for"


def test_no_more_are_kept_than_anybody_sends_at_once() -> None:
    pair = RelayPair()
    pair.client(query("drop database shop") * (MAX_CONCERNS + 5))
    assert len(noticed(pair)) == MAX_CONCERNS


def test_a_text_names_each_database_once_and_a_bounded_number_of_them() -> None:
    assert databases_to_leave(b"drop database shop;" * 100) == [b"shop"]
    many = b"".join(b"drop database d%d;" % number for number in range(200))
    assert len(many) <= MAX_TEXT
    assert databases_to_leave(many) == [b"d%d" % number for number in range(MAX_DATABASES)]
