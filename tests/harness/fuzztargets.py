"""What must survive any bytes: one function for each reader of what others send, for Hypothesis and for atheris.

A target takes bytes and returns.  What it raises is a defect: the errors that its reader documents are caught in it,
and nothing else is.  `python -m harness.fuzz` drives one with atheris.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from harness.fuzzconsole import console_messages
from harness.fuzztalks import client_talks, server_talks
from harness.relaymodel import RelayPair
from proxy.auth import AuthError, ScramClient, ScramKeys, ScramServer, ScramVerifier, build_verifier, derive_keys
from proxy.auth.saslprep import prepare_password
from proxy.errors import Failure
from proxy.routing import names
from proxy.session.markers import calls_are_readable, session_markers
from proxy.session.parameters import ParameterTable, switch_statement
from proxy.session.replication import CommandFilter
from proxy.session.set_statements import TouchedSettings, is_for_transaction_only, shift_of
from proxy.session.statement_names import deallocated
from proxy.session.texts import may_have_markers
from proxy.session.tracked import first_row, told_in_passing
from proxy.wire import ProtocolError, StartupOptionError, proxy_protocol
from proxy.wire.authentication import decode_authentication
from proxy.wire.backend import decode_backend
from proxy.wire.framing import FrameReader
from proxy.wire.frontend import PasswordMessage, SASLInitialResponse, SASLResponse, decode_frontend
from proxy.wire.options import parse_startup_options
from proxy.wire.startup import StartupMessage, decode_startup, negotiate
from registry.domain.names import check_aliases, check_identifier, check_server_name, check_slug, parse_address
from registry.errors import Invalid
from registry.manifest import ManifestError, parse_manifest

Target: TypeAlias = Callable[[bytes], None]

LIMIT: Final = 1000
RULES: Final = names.name_rules(
    sni_patterns=("{tenant}.db.example.com",), database_patterns=("db_{tenant}", "{tenant}_x")
)
NONCE: Final = bytes(range(18))
UNQUOTED: Final = rb"(RESET \.*(; )?)*(SELECT (pg_catalog\.set_config\( *, *, false\)(, )?)+)?"
VERIFIER: Final = build_verifier("right", b"salt" * 4, 1)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def pieces(data: bytes, separator: bytes = b"\n") -> Iterator[bytes]:
    return iter(data.split(separator))


def survives_the_round_trip(message: Any, decode: Callable[[bytes], object]) -> None:
    """What was decoded can be encoded, and means the same then."""
    assert decode(message.encode()) == message


def startup_packet(data: bytes) -> None:
    """The body of a client's first packet, up to which tenant it names."""
    try:
        message = decode_startup(data)
    except ProtocolError:
        return
    survives_the_round_trip(message, lambda packet: decode_startup(packet[4:]))
    if isinstance(message, StartupMessage):
        negotiate(message)
        with suppress(Failure):
            names.read(names.selectors_from_startup(message, "acme.db.example.com", RULES), RULES)


def frontend_message(data: bytes) -> None:
    """A type byte and a body from a client."""
    for password_as in (PasswordMessage, SASLInitialResponse, SASLResponse):
        kind, body = data[0] if data else 0, data[1:]
        try:
            message = decode_frontend(kind, body, password_as)
        except ProtocolError:
            continue
        survives_the_round_trip(message, lambda sent: decode_frontend(kind, sent[5:], password_as))  # noqa: B023


def backend_message(data: bytes) -> None:
    """A type byte and a body from a server."""
    with suppress(ProtocolError):
        message = decode_backend(data[0] if data else 0, data[1:])
        survives_the_round_trip(message, lambda sent: decode_backend(sent[0], sent[5:]))


def authentication_message(data: bytes) -> None:
    """The body of a server's message of type R."""
    with suppress(ProtocolError):
        message = decode_authentication(data)
        survives_the_round_trip(message, lambda sent: decode_authentication(sent[5:]))


def frames(data: bytes) -> None:
    """Chunks of a stream, each behind one byte with its length, through the reader of whole frames."""
    for typed in (True, False):
        reader = FrameReader(LIMIT, typed)
        pos, pushed, taken = 0, 0, 0
        with suppress(ProtocolError):
            while pos < len(data):
                chunk = data[pos + 1 : pos + 1 + data[pos]]
                pos += 1 + data[pos]
                pushed += len(chunk)
                reader.push(chunk)
                while (frame := reader.next_frame()) is not None:
                    assert len(frame[1]) <= LIMIT
                    taken += len(frame[1]) + (5 if typed else 4)
                assert 0 < reader.wanted() <= LIMIT
            assert len(reader.rest()) == pushed - taken


def relay(data: bytes) -> None:
    """A client and a server by turns, whatever they say: a byte tells whose turn it is (the highest bit) and how long.

    What passes is bounded by what came; neither side ever gets bytes that the other one has not sent, but for the
    names of statements and the proxy's own words.
    """
    pair = RelayPair()
    pos, answered = 0, 0
    while pos < len(data):
        turn, size = data[pos] & 0x80, data[pos] & 0x7F
        chunk = data[pos + 1 : pos + 1 + size]
        pos += 1 + size
        if turn:
            answered += len(chunk)
            pair.server(chunk)
        else:
            pair.client(chunk)
        assert len(pair.swallowed) <= answered
    pair.releasable()


def replication_commands(data: bytes) -> None:
    """What a login sends that may replicate one database: in one piece, and in chunks, each behind its length."""
    whole, parts = CommandFilter(limited=True), CommandFilter(limited=True)
    sent, passed = b"", b""
    pos = 0
    while pos < len(data):
        chunk = data[pos + 1 : pos + 1 + data[pos]]
        pos += 1 + data[pos]
        sent += chunk
        if not (parts.fault or parts.goodbye):
            passed += parts.pass_on(chunk)
    assert passed == whole.pass_on(sent)
    assert (parts.fault, parts.goodbye) == (whole.fault, whole.goodbye)


def statement_text(data: bytes) -> None:
    """The text of a client's statement, of which is told what it leaves in the session."""
    for standard in (True, False):
        TouchedSettings().read(data, standard_strings=standard)
    shift_of(data)
    is_for_transaction_only(data)
    deallocated(data)
    session_markers(data.lower())
    calls_are_readable(data)
    assert may_have_markers(data, 0, len(data)) or not session_markers(data.lower())


def answer_to_the_proxy(data: bytes) -> None:
    """A server's answer to a question of the proxy's own."""
    first_row(data)
    assert len(told_in_passing(data)) <= len(data)


def startup_options(data: bytes) -> None:
    with suppress(StartupOptionError):
        parse_startup_options(text_of(data), ("tenant",))


def scram_client(data: bytes) -> None:
    """A server's challenge and outcome, a line each."""
    lines = pieces(data)
    client = ScramClient("right", NONCE, derive=lambda *_: ScramKeys(bytes(32), bytes(32)))
    with suppress(AuthError):
        client.respond(next(lines))
        client.verify(next(lines, b""))


def scram_server(data: bytes) -> None:
    """A client's messages, a line each."""
    server = ScramServer(VERIFIER, NONCE)
    with suppress(AuthError):
        first, *others = pieces(data)
        server.start("SCRAM-SHA-256", first)
        for line in others:
            server.step(line)
    if server.done:
        assert server.client_key == derive_keys("right", VERIFIER.salt, VERIFIER.iterations).client_key


def verifier(data: bytes) -> None:
    with suppress(AuthError):
        found = ScramVerifier.parse(text_of(data))
        assert ScramVerifier.parse(found.text()) == found


def password(data: bytes) -> None:
    """Any bytes are a password, and preparing it twice changes nothing more."""
    once = prepare_password(data)
    assert prepare_password(once) == once


def proxy_header(data: bytes) -> None:
    """What a load balancer says first, in both versions of its protocol."""
    with suppress(ProtocolError):
        proxy_protocol.decode_line(data)
    with suppress(ProtocolError):
        header = proxy_protocol.Header.decode(data[: proxy_protocol.PREAMBLE])
        assert header.length <= proxy_protocol.MAX_BODY
        header.finish(data[proxy_protocol.PREAMBLE :])


def setting_names(data: bytes) -> None:
    """Names and values of settings, a line each, written into SQL: what is quoted ends where it began."""
    found = list(pieces(data))
    table = ParameterTable()
    try:
        old, new = (table.intern(zip(half[::2], half[1::2], strict=False)) for half in (found[::2], found[1::2]))
    except ValueError:
        return
    outside = _outside_of_quotes(switch_statement(old, new))
    assert re.fullmatch(UNQUOTED, outside), outside


def _outside_of_quotes(sql: bytes) -> bytes:
    """What is left of a statement without its literals and quoted names, as PostgreSQL's own scanner reads them."""
    left = bytearray()
    pos = 0
    while pos < len(sql):
        mark = sql[pos : pos + 1]
        if mark not in {b"'", b'"'}:
            left += mark
            pos += 1
            continue
        escaped = mark == b"'" and sql[pos - 1 : pos] == b"E"
        if escaped:
            left.pop()
        pos += 1
        while sql[pos : pos + 1] != mark or sql[pos + 1 : pos + 2] == mark:
            assert pos < len(sql), "a literal without its end"
            pos += 2 if sql[pos : pos + 1] == mark or (escaped and sql[pos : pos + 1] == b"\\") else 1
        pos += 1
    return bytes(left)


def registry_names(data: bytes) -> None:
    """Whatever an administrator may call a thing."""
    text = text_of(data)
    checks: tuple[Callable[[], object], ...] = (
        lambda: check_slug(text),
        lambda: check_aliases(text.split(","), "acme"),
        lambda: check_server_name(text),
        lambda: check_identifier("name", text),
        lambda: parse_address(text),
    )
    for check in checks:
        with suppress(Invalid):
            check()


def manifest(data: bytes) -> None:
    with suppress(ManifestError):
        parse_manifest(data.decode("utf-8", "replace"), environment={"PASSWORD": "secret"})


TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        target.__name__: target
        for target in (
            startup_packet,
            frontend_message,
            backend_message,
            authentication_message,
            frames,
            relay,
            replication_commands,
            statement_text,
            answer_to_the_proxy,
            startup_options,
            scram_client,
            scram_server,
            verifier,
            password,
            proxy_header,
            setting_names,
            registry_names,
            manifest,
            console_messages,
            client_talks,
            server_talks,
        )
    }
)

TEXTS: Final = frozenset(
    {"statement_text", "startup_options", "verifier", "password", "setting_names", "registry_names", "manifest"}
)
"""Targets whose data have no lengths inside."""
TALKS: Final = frozenset({"client_talks", "server_talks"})
"""Targets with sockets, which are slow."""

HUGE: Final = (
    struct.pack("!I", 0x7FFFFFFF),
    struct.pack("!I", 0x3FFFFFF0),
    struct.pack("!I", 0xFFFFFFFF),
    b"\xff\xff",
    b"\x7f\xff",
)
"""Lengths and counts that promise more than anybody sends."""


def with_huge_claims(data: bytes) -> Iterator[bytes]:
    """These bytes, with each of their fields in turn claiming to be huge."""
    for claim in HUGE:
        for at in range(len(data) - len(claim) + 1):
            yield data[:at] + claim + data[at + len(claim) :]
