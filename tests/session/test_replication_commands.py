"""What a login that may replicate one database only can say on a replication connection."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.session.replication import LOOK, REFUSAL, CommandFilter, is_physical

LOGICAL = [
    b"START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '4', publication_names '\"p\"')",
    b'  start_replication  slot "a ""b"" LOGICAL"\tlogical 0/16B3748',
    b"CREATE_REPLICATION_SLOT s LOGICAL pgoutput (SNAPSHOT 'nothing')",
    b'CREATE_REPLICATION_SLOT "s" TEMPORARY LOGICAL test_decoding',
    b"IDENTIFY_SYSTEM",
    b"DROP_REPLICATION_SLOT s WAIT",
    b"SHOW wal_segment_size",
    b"select 'BASE_BACKUP'",
    b"",
    b"-- BASE_BACKUP\nselect 1",
    b"; BASE_BACKUP",
]
PHYSICAL = [
    b"BASE_BACKUP",
    b"\n\t base_Backup(LABEL 'x')",
    b"BASE_BACKUP;",
    b"START_REPLICATION 0/0",
    b"START_REPLICATION PHYSICAL 0/0",
    b"START_REPLICATION SLOT s 0/0",
    b"START_REPLICATION SLOT s PHYSICAL 0/0 TIMELINE 1",
    b'START_REPLICATION SLOT " LOGICAL " 0/0',
    b"START_REPLICATION SLOTs LOGICAL 0/0",
    b"START_REPLICATION",
    b"CREATE_REPLICATION_SLOT s PHYSICAL",
    b"CREATE_REPLICATION_SLOT logical PHYSICAL",
    b"CREATE_REPLICATION_SLOT s TEMPORARY PHYSICAL",
    b"TIMELINE_HISTORY 1",
    b"UPLOAD_MANIFEST",
    b" " * LOOK,
    *(b" " * (LOOK - seen) + b"BASE_BACKUP" for seen in range(1, 12)),
]
REPLACED = b"Q" + struct.pack("!I", len(REFUSAL) + 5) + REFUSAL + b"\0"


def framed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def command(text: bytes) -> bytes:
    return framed(b"Q", text + b"\0")


@pytest.mark.parametrize("text", LOGICAL)
def test_commands_of_logical_replication_and_sql_are_passed_on(text: bytes) -> None:
    assert not is_physical(text)


@pytest.mark.parametrize("text", PHYSICAL)
def test_whatever_reads_the_whole_server_is_not(text: bytes) -> None:
    assert is_physical(text[:LOOK])


def test_who_may_replicate_servers_is_not_limited() -> None:
    every = b"".join(command(text) for text in PHYSICAL)
    assert CommandFilter(limited=False).pass_on(every) is every


# What is sent, and what is passed on of it.
MESSAGES = [
    *[(command(text), command(text)) for text in LOGICAL],
    *[(command(text), REPLACED) for text in PHYSICAL],
    (command(b"BASE_BACKUP " + b"x" * 3 * LOOK), REPLACED),
    *[(message, message) for message in (command(b"select '" + b"x" * 3 * LOOK + b"'"), framed(b"c", b""))],
    # Data may say what it likes.
    (framed(b"d", command(b"BASE_BACKUP")), framed(b"d", command(b"BASE_BACKUP"))),
]


@given(
    chosen=st.lists(st.integers(0, len(MESSAGES) - 1), max_size=6),
    sizes=st.lists(st.integers(1, 5000), min_size=1),
)
def test_the_answer_is_the_same_however_the_bytes_come(chosen: list[int], sizes: list[int]) -> None:
    messages = [MESSAGES[number] for number in chosen]
    data = b"".join(message for message, _ in messages)
    commands = CommandFilter(limited=True)
    passed = b""
    position = number = 0
    while position < len(data):
        size = sizes[number % len(sizes)]
        passed += commands.pass_on(data[position : position + size])
        position += size
        number += 1
        assert not commands.fault
    assert passed == b"".join(expected for _, expected in messages)


def test_a_goodbye_ends_it_and_is_told_from_data_that_looks_like_one() -> None:
    goodbye = b"X\0\0\0\4"
    commands = CommandFilter(limited=True)
    data = framed(b"d", goodbye)
    assert commands.pass_on(data[:5]) + commands.pass_on(data[5:]) == data
    assert not commands.goodbye
    assert commands.pass_on(command(b"select 1") + goodbye) == command(b"select 1")
    assert commands.goodbye


@pytest.mark.parametrize("size", [0, 3, 0x40000000, 0xFFFFFFFF])
def test_an_impossible_length_is_a_fault(size: int) -> None:
    commands = CommandFilter(limited=True)
    assert commands.pass_on(b"Q" + struct.pack("!I", size) + b"select") == b""
    assert commands.fault
