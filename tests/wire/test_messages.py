"""Every message: what is encoded decodes to the same value, and nothing malformed passes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import ProtocolError, UnsupportedProtocol, backend, frontend, startup
from proxy.wire.backend import decode_backend
from proxy.wire.frontend import Target, decode_frontend
from proxy.wire.startup import decode_startup

# Names in any encoding: whatever bytes arrive must leave again.
text = st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
name = text.filter(bool)
data = st.binary(max_size=30)
values = st.lists(st.none() | data, max_size=5).map(tuple)
int16 = st.integers(-(2**15), 2**15 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
uint32 = st.integers(0, 2**32 - 1)
formats = st.lists(int16, max_size=5).map(tuple)
oids = st.lists(uint32, max_size=5).map(tuple)
key = st.binary(min_size=4, max_size=256)
pairs = st.lists(st.tuples(name, text), max_size=5).map(tuple)
error_fields = st.lists(
    st.tuples(st.integers(1, 255).map(lambda code: bytes((code,)).decode("utf-8", "surrogateescape")), text), max_size=6
).map(tuple)
column = st.builds(backend.FieldDescription, text, uint32, int16, uint32, int16, int32, int16)

FRONTEND = st.one_of(
    st.builds(frontend.Query, text),
    st.builds(frontend.Parse, text, text, oids),
    st.builds(frontend.Bind, text, text, values, formats, formats),
    st.builds(frontend.Describe, st.sampled_from(Target), text),
    st.builds(frontend.Close, st.sampled_from(Target), text),
    st.builds(frontend.Execute, text, int32),
    st.builds(frontend.FunctionCall, uint32, values, formats, int16),
    st.builds(frontend.CopyData, data),
    st.builds(frontend.CopyDone),
    st.builds(frontend.CopyFail, text),
    st.builds(frontend.Sync),
    st.builds(frontend.Flush),
    st.builds(frontend.Terminate),
    st.builds(frontend.PasswordMessage, data.map(lambda raw: raw.replace(b"\0", b""))),
    st.builds(frontend.SASLInitialResponse, text, st.none() | data),
    st.builds(frontend.SASLResponse, data),
)
BACKEND = st.one_of(
    st.builds(backend.AuthenticationOk),
    st.builds(backend.AuthenticationKerberosV5),
    st.builds(backend.AuthenticationCleartextPassword),
    st.builds(backend.AuthenticationMD5Password, st.binary(min_size=4, max_size=4)),
    st.builds(backend.AuthenticationGSS),
    st.builds(backend.AuthenticationGSSContinue, data),
    st.builds(backend.AuthenticationSSPI),
    st.builds(backend.AuthenticationSASL, st.lists(name, max_size=4).map(tuple)),
    st.builds(backend.AuthenticationSASLContinue, data),
    st.builds(backend.AuthenticationSASLFinal, data),
    st.builds(backend.BackendKeyData, uint32, key),
    st.builds(backend.BindComplete),
    st.builds(backend.CloseComplete),
    st.builds(backend.CommandComplete, text),
    st.builds(backend.CopyInResponse, st.integers(0, 1), formats),
    st.builds(backend.CopyOutResponse, st.integers(0, 1), formats),
    st.builds(backend.CopyBothResponse, st.integers(0, 1), formats),
    st.builds(backend.CopyData, data),
    st.builds(backend.CopyDone),
    st.builds(backend.DataRow, values),
    st.builds(backend.EmptyQueryResponse),
    st.builds(backend.ErrorResponse, error_fields),
    st.builds(backend.NoticeResponse, error_fields),
    st.builds(backend.FunctionCallResponse, st.none() | data),
    st.builds(backend.NegotiateProtocolVersion, uint32, st.lists(text, max_size=4).map(tuple)),
    st.builds(backend.NoData),
    st.builds(backend.NotificationResponse, uint32, text, text),
    st.builds(backend.ParameterDescription, oids),
    st.builds(backend.ParameterStatus, text, text),
    st.builds(backend.ParseComplete),
    st.builds(backend.PortalSuspended),
    st.builds(backend.ReadyForQuery, st.sampled_from(backend.TransactionStatus)),
    st.builds(backend.RowDescription, st.lists(column, max_size=4).map(tuple)),
)
STARTUP = st.one_of(
    st.builds(startup.SSLRequest),
    st.builds(startup.GSSENCRequest),
    st.builds(startup.CancelRequest, uint32, key),
    st.builds(startup.StartupMessage, st.integers(0x00030000, 0x0003FFFF), pairs),
)


def split_frame(frame: bytes) -> tuple[int, bytes]:
    (length,) = struct.unpack_from("!I", frame, 1)
    assert length == len(frame) - 1
    return frame[0], frame[5:]


def decode_as(message: Any) -> Callable[[bytes], object]:
    if type(message) in (frontend.PasswordMessage, frontend.SASLInitialResponse, frontend.SASLResponse):
        return lambda body: decode_frontend(ord("p"), body, type(message))
    decode: Callable[[bytes], object] = type(message).decode
    return decode


@given(FRONTEND)
def test_frontend_messages_survive_the_round_trip(message: Any) -> None:
    kind, body = split_frame(message.encode())
    assert decode_as(message)(body) == message
    if kind != ord("p"):
        assert decode_frontend(kind, body) == message


@given(BACKEND)
def test_backend_messages_survive_the_round_trip(message: Any) -> None:
    assert decode_backend(*split_frame(message.encode())) == message


@given(STARTUP)
def test_startup_messages_survive_the_round_trip(message: Any) -> None:
    packet = message.encode()
    assert struct.unpack_from("!I", packet)[0] == len(packet)
    assert decode_startup(packet[4:]) == message


@given(st.one_of(FRONTEND, BACKEND, STARTUP), st.data())
def test_a_truncated_body_never_decodes_to_the_same_message(message: Any, choose: st.DataObject) -> None:
    header = 4 if isinstance(message, startup.FirstMessage) else 5
    body = message.encode()[header:]
    shorter = body[: choose.draw(st.integers(0, max(len(body) - 1, 0)))]
    if shorter == body:
        return
    try:
        assert type(message).decode(shorter) != message
    except ProtocolError:
        pass


UNBOUNDED = (
    frontend.CopyData,
    frontend.SASLResponse,
    backend.AuthenticationGSSContinue,
    backend.AuthenticationSASLContinue,
    backend.AuthenticationSASLFinal,
    backend.BackendKeyData,
    startup.CancelRequest,
)


@given(st.one_of(FRONTEND, BACKEND, STARTUP), st.binary(min_size=1, max_size=3))
def test_bytes_after_the_last_field_are_refused(message: Any, more: bytes) -> None:
    if isinstance(message, UNBOUNDED):
        return
    header = 4 if isinstance(message, startup.FirstMessage) else 5
    with pytest.raises(ProtocolError):
        type(message).decode(message.encode()[header:] + more)


@given(st.integers(0, 255), st.binary(max_size=60))
def test_random_bodies_raise_nothing_but_protocol_errors(kind: int, body: bytes) -> None:
    for decode in (
        lambda: decode_frontend(kind, body),
        lambda: decode_frontend(ord("p"), body, frontend.SASLInitialResponse),
        lambda: decode_backend(kind, body),
        lambda: decode_startup(body),
        lambda: decode_startup(b"\0\3\0\0" + body),
    ):
        try:
            decode()
        except ProtocolError:
            pass


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"D", b"\xff\xff"),  # a count of -1, or 65,535, in an empty row
        (b"D", b"\x00\x01\x7f\xff\xff\xff"),  # a value of 2 GB
        (b"D", b"\x00\x01\xff\xff\xff\xfe"),  # a value of length -2
        (b"T", b"\xff\xff" + bytes(40)),
        (b"t", b"\x40\x00" + bytes(8)),
        (b"v", b"\x00\x03\x00\x00\xff\xff\xff\xff"),
        (b"v", b"\x00\x03\x00\x00\x7f\xff\xff\xff"),
        (b"E", b"SERROR\0"),  # no terminator
        (b"E", b"SERROR"),
        (b"S", b"name\0value"),
        (b"Z", b"X"),
        (b"Z", b""),
        (b"Z", b"IT"),
        (b"K", b"\0\0\0\1abc"),
        (b"K", b"\0\0\0\1" + bytes(257)),
        (b"R", b"\0\0\0\x63"),
        (b"R", b"\0\0\0\5abc"),
        (b"R", b"\0\0\0\nSCRAM-SHA-256\0"),
        (b"G", b"\2\0\0"),
        (b"?", b""),
    ],
)
def test_malformed_backend_messages_are_refused(kind: bytes, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_backend(ord(kind), body)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"Q", b"select 1"),
        (b"Q", b"select 1\0;"),
        (b"P", b"\0select 1\0\0\x02\0\0\0\x17"),
        (b"B", b"\0\0\0\0\xff\xff\0\0"),
        (b"D", b"Xname\0"),
        (b"C", b""),
        (b"E", b"\0\0\0\0"),
        (b"S", b"x"),
        (b"p", b""),
        (b"p", b"secret"),
        (b"p", b"se\0cret\0"),
        (b"!", b""),
    ],
)
def test_malformed_frontend_messages_are_refused(kind: bytes, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_frontend(ord(kind), body)


def test_more_parameters_than_a_signed_count_are_legal() -> None:
    bind = frontend.Bind("", "s", (b"1",) * 65535)
    assert frontend.Bind.decode(bind.encode()[5:]) == bind
    with pytest.raises(ProtocolError, match="range"):
        frontend.Bind("", "s", (b"1",) * 65536).encode()


def test_a_row_of_1600_columns_survives() -> None:
    row = backend.DataRow((b"x", None) * 800)
    assert backend.DataRow.decode(row.encode()[5:]) == row


def test_an_error_without_sqlstate_is_read() -> None:
    error = backend.ErrorResponse.decode(b"SFATAL\0Mgone\0\0")
    assert (error.severity, error.sqlstate, error.message) == ("FATAL", None, "gone")


def test_the_unlocalised_severity_is_preferred() -> None:
    error = backend.ErrorResponse.decode(b"SFEHLER\0VERROR\0C42601\0\0")
    assert (error.severity, error.sqlstate) == ("ERROR", "42601")


def test_a_built_error_carries_its_fields_in_order() -> None:
    error = backend.ErrorResponse.build("FATAL", "53300", "too many", hint="wait")
    assert error.encode() == b"E\0\0\0\x2aSFATAL\0VFATAL\0C53300\0Mtoo many\0Hwait\0\0"
    assert error.detail is None


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_text_that_would_break_a_frame_is_not_encoded(bad: str) -> None:
    with pytest.raises(ProtocolError):
        frontend.Query(bad).encode()
    with pytest.raises(ProtocolError):
        startup.StartupMessage(startup.PROTOCOL_3_0, (("user", bad),)).encode()


def test_secrets_do_not_show_in_representations() -> None:
    shown = repr(
        [
            frontend.PasswordMessage(b"hunter2"),
            frontend.SASLResponse(b"hunter2"),
            frontend.SASLInitialResponse("SCRAM-SHA-256", b"hunter2"),
            backend.BackendKeyData(1, b"hunter2"),
            startup.CancelRequest(1, b"hunter2"),
        ]
    )
    assert "hunter2" not in shown


@pytest.mark.parametrize("version", [0x00020000, 0x00040000, 0, 0xFFFFFFFF, 1196314761])
def test_another_major_version_is_named_in_the_error(version: int) -> None:
    with pytest.raises(UnsupportedProtocol) as caught:
        decode_startup(struct.pack("!I", version) + b"\0")
    assert (caught.value.major, caught.value.minor) == (version >> 16, version & 0xFFFF)


@pytest.mark.parametrize(
    "body",
    [b"", b"user\0app\0", b"user\0app", b"user\0", b"user\0app\0\0x", b"\0\0"],
    ids=["nothing", "no terminator", "open value", "no value", "trailing byte", "two terminators"],
)
def test_malformed_startup_packets_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_startup(b"\0\3\0\0" + body)


@pytest.mark.parametrize("size", [0, 3, 257])
def test_cancel_keys_of_impossible_size_are_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        decode_startup(struct.pack("!II", startup.CANCEL_CODE, 7) + bytes(size))


def test_the_parameters_of_a_startup_message_mean_what_they_mean_to_postgresql() -> None:
    message = startup.StartupMessage(
        startup.PROTOCOL_3_0,
        (("user", "first"), ("TimeZone", "UTC"), ("_pq_.x", "1"), ("options", "-c a=b"), ("user", "app")),
    )
    assert (message.user, message.database, message.options) == ("app", "app", "-c a=b")
    assert message.settings == (("TimeZone", "UTC"),)
    assert message.replication is startup.ReplicationMode.NONE
    assert startup.StartupMessage(startup.PROTOCOL_3_0, (("user", ""),)).user is None


@pytest.mark.parametrize(
    ("asked", "options", "spoken", "told"),
    [
        (0x00030000, (), 0x00030000, None),
        (0x00030002, (), 0x00030002, None),
        (0x0003270F, (), 0x00030002, (0x00030002, ())),
        (0x00030000, ("_pq_.a",), 0x00030000, (0x00030000, ("_pq_.a",))),
        (0x00030003, ("_pq_.a", "_pq_.b"), 0x00030002, (0x00030002, ("_pq_.a", "_pq_.b"))),
    ],
)
def test_the_version_is_negotiated_down_and_unknown_options_are_named(
    asked: int, options: tuple[str, ...], spoken: int, told: tuple[int, tuple[str, ...]] | None
) -> None:
    message = startup.StartupMessage(asked, (("user", "app"), *((option, "1") for option in options)))
    expected = None if told is None else backend.NegotiateProtocolVersion(*told)
    assert startup.negotiate(message) == (spoken, expected)
