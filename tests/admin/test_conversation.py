"""The protocol of the console, message by message."""

from __future__ import annotations

import struct

import pytest
from harness import rawclient
from harness.fuzzconsole import play

from proxy.admin.catalogue import Column, Kind
from proxy.admin.conversation import MAX_NAMES, Conversation
from proxy.admin.tables import describe, encode_row, formats_for
from proxy.errors import Failure
from proxy.wire import ProtocolError
from proxy.wire.backend import DataRow, RowDescription
from proxy.wire.framing import FrameReader


def answers(conversation: Conversation, *messages: bytes) -> str:
    """The kinds of messages that these messages are answered with."""
    reader = FrameReader(1 << 20)
    said = b""
    for message in messages:
        reader.push(message)
        while (frame := reader.next_frame()) is not None:
            said += play(conversation, *frame)
    return "".join(chr(kind) for kind, _ in frames(said))


def frames(data: bytes) -> list[tuple[int, bytes]]:
    reader = FrameReader(1 << 20)
    reader.push(data)
    found = []
    while (frame := reader.next_frame()) is not None:
        found.append(frame)
    return found


def test_a_simple_query_of_several_statements_ends_with_the_first_that_fails() -> None:
    conversation = Conversation()
    assert answers(conversation, rawclient.query("SHOW HELP; SHOW VERSION")) == "TTZ"
    assert answers(conversation, rawclient.query("")) == "IZ"
    assert answers(conversation, rawclient.query("SHOW HELP; drop table x")) == "EZ"
    assert answers(conversation, rawclient.query("SHOW HELP")) == "TZ"


def test_the_extended_protocol_describes_binds_and_skips_to_sync_after_an_error() -> None:
    conversation = Conversation()
    prepared = rawclient.parse("SHOW CLIENTS", "s"), rawclient.describe("s", kind="S"), rawclient.sync()
    assert answers(conversation, *prepared) == "1tTZ"
    bound = rawclient.bind(statement="s"), rawclient.describe(), rawclient.execute(), rawclient.sync()
    assert answers(conversation, *bound) == "2TZ"
    wrong = rawclient.bind(statement="none"), rawclient.execute(), rawclient.flush(), rawclient.sync()
    assert answers(conversation, *wrong) == "EZ"
    assert answers(conversation, rawclient.close("s"), rawclient.bind(statement="s"), rawclient.sync()) == "3EZ"
    assert answers(conversation, rawclient.parse("SET x = 1"), rawclient.describe("", kind="S"), rawclient.sync()) == (
        "1tnZ"
    )


def test_ready_for_query_tells_the_transaction_that_a_driver_began() -> None:
    conversation = Conversation()
    statuses = []
    for sql in ("BEGIN", "SHOW HELP", "nonsense", "COMMIT"):
        said = b"".join(play(conversation, *frame) for frame in frames(rawclient.query(sql)))
        statuses.append(said[-1:])
    assert statuses == [b"T", b"T", b"T", b"I"]


def test_names_are_bounded() -> None:
    conversation = Conversation()
    for number in range(MAX_NAMES):
        assert answers(conversation, rawclient.parse("SHOW HELP", f"s{number}")) == "1"
    assert answers(conversation, rawclient.parse("SHOW HELP", "one more"), rawclient.sync()) == "EZ"
    assert answers(conversation, rawclient.parse("SHOW HELP", "s1"), rawclient.sync()) == "1Z"
    assert answers(conversation, rawclient.close("s1"), rawclient.parse("SHOW HELP", "n" * 300)) == "3E"


@pytest.mark.parametrize(
    "message", [rawclient.bind(["x"], statement="s"), rawclient.frame("F", b"\0\0\0\1\0\0\0\0\0\0")]
)
def test_what_the_console_cannot_do_is_an_error_that_the_session_survives(message: bytes) -> None:
    conversation = Conversation()
    assert answers(conversation, rawclient.parse("SHOW HELP", "s")) == "1"
    assert answers(conversation, message)[0] == "E"
    assert answers(conversation, rawclient.sync(), rawclient.query("SHOW HELP")).endswith("TZ")


def test_a_password_after_the_login_is_a_violation_and_terminate_is_the_end() -> None:
    with pytest.raises(ProtocolError):
        answers(Conversation(), rawclient.frame("p", b"x\0"))
    conversation = Conversation()
    assert answers(conversation, rawclient.terminate()) == ""
    assert conversation.over


COLUMNS = (Column("a", Kind.TEXT, ""), Column("b", Kind.INT, ""), Column("c", Kind.FLOAT, ""))


def test_rows_are_encoded_as_text_or_in_binary() -> None:
    text = DataRow.decode(encode_row(COLUMNS, formats_for(COLUMNS, ()), ("Zoë\udc80", 7, None))[5:])
    assert text.values == ("Zoë?".encode(), b"7", None)
    hostile = DataRow.decode(encode_row(COLUMNS, formats_for(COLUMNS, ()), ("\x1b[2J\n\x9b1m\0", 7, None))[5:])
    assert hostile.values == (b"?[2J??1m?", b"7", None), "a client's name for itself does not rule the terminal"
    binary = DataRow.decode(encode_row(COLUMNS, formats_for(COLUMNS, (1,)), ("x", -7, 0.5))[5:])
    assert binary.values == (b"x", struct.pack("!q", -7), struct.pack("!d", 0.5))
    fields = RowDescription.decode(describe(COLUMNS, formats_for(COLUMNS, (0, 1, 0)))[5:]).fields
    assert [(field.type, field.type_size, field.format) for field in fields] == [(25, -1, 0), (20, 8, 1), (701, 8, 0)]


@pytest.mark.parametrize("codes", [(2,), (0, 0), (-1, 0, 0)])
def test_formats_that_do_not_fit_are_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(Failure):
        formats_for(COLUMNS, codes)
