"""Links over real sockets: bounded memory, hang-ups that are seen, TLS byte by byte, faults that are contained."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
import trustme
from harness.fakeserver import command_complete, data_row, error_response, parameter_status, ready, row_description
from harness.linkworld import LinkWorld, Peer, tcp_pair
from harness.rawclient import bind, close, execute, frame, parse, query, sync, terminate
from harness.relaymodel import NOTICE, copy_data, copy_done, frames, kinds

from proxy.errors import QUERY_CANCELED, Failure
from proxy.net.client_link import ClientLink
from proxy.net.hub import MAIL_CANCEL
from proxy.net.stream import HIGH_WATER, Stream
from proxy.net.syscalls import MAX_READ
from proxy.pool.ledger import ACTIVE, CLOSING, FLAG_DIRTY, IDLE, BackendEntry, PoolLedger
from proxy.session.parameters import ParameterSet, parameter_pairs

CHUNK = 4096
BULK = 24 << 20
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def world() -> Iterator[LinkWorld]:
    with LinkWorld() as made:
        yield made


@pytest.fixture
def pool(world: LinkWorld) -> PoolLedger:
    return world.add_pool("acme", world.add_server("s"), pool_size=2)


def entry_of(client: ClientLink) -> BackendEntry | None:
    backend = client.backend
    return None if backend is None else backend.entry


def linked(world: LinkWorld, pool: PoolLedger) -> tuple[ClientLink, Peer, Peer]:
    """A client in a transaction, its peer, and its server."""
    client, peer = world.connect(pool)
    peer.sock.sendall(query("begin"))
    world.settle()
    assert client.backend is not None
    return client, peer, world.servers[client.backend.entry]


def test_client_that_vanishes_has_only_its_last_request_cancelled(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer, server = linked(world, pool)
    peer.sock.sendall(query("commit"))
    world.settle()
    world.answering = False
    peer.sock.sendall(query("begin") + query("dml"))
    world.until(lambda: client.backend is not None and len(client.backend.state.queue) == 2)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.sock.close()
    peer.ended = True
    entry = entry_of(client)
    assert entry is not None
    world.until(lambda: entry.state == CLOSING)
    assert MAIL_CANCEL not in {mail.kind for mail in world.mail}, "without its BEGIN the change would last"
    server.sock.sendall(command_complete("BEGIN") + ready("T"))
    world.until(lambda: MAIL_CANCEL in {mail.kind for mail in world.mail})


# Back-pressure.


def test_client_that_does_not_read_does_not_fill_the_memory(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer, server = linked(world, pool)
    peer.sock.sendall(query("copyout"))
    while world.turn():
        pass
    assert server.sock.recv(CHUNK) == query("copyout")
    row = copy_data("x" * (CHUNK - 5))
    sent = [frame("H", b"\0\0\0")]
    server.sock.sendall(sent[0])
    server.sock.settimeout(0)
    blocked = 0
    largest = 0
    while blocked < 50:
        try:
            count = server.sock.send(row)
            sent.append(row[:count])
            if count < len(row):
                server.sock.settimeout(None)
                break
            blocked = 0
        except BlockingIOError:
            blocked += 1
        world.turn()
        largest = max(largest, client.unsent_size)
        assert sum(map(len, sent)) < BULK, "the server is never slowed down"
    assert largest > 0
    assert largest <= HIGH_WATER + MAX_READ
    before = world.selector.events
    for _ in range(20):
        world.turn()
    assert world.selector.events <= before + 1, "spins on a paused backend"
    server.sock.settimeout(None)
    last = row[len(sent[-1]) % len(row) :] + copy_done() + command_complete("COPY 1") + ready()
    rest = threading.Thread(target=server.sock.sendall, args=(last,))
    rest.start()
    world.until(lambda: (peer.pump(), bytes(peer.received[-6:]) == ready())[1], "the end of the copy")
    rest.join()
    assert not client.broken
    got = bytes(peer.received)[len(command_complete("BEGIN") + ready("T")) :]
    assert got.startswith(b"".join(sent))
    assert set(kinds(got)) == set("HdcCZ")


def test_server_that_does_not_read_does_not_fill_the_memory(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer, server = linked(world, pool)
    backend = client.backend
    assert backend is not None
    data = copy_data("x" * 9000) * 2500
    digest = hashlib.sha256(data)
    sender = threading.Thread(target=lambda: peer.sock.sendall(data))
    sender.start()
    largest = 0

    def stuck() -> bool:
        nonlocal largest
        largest = max(largest, backend.unsent_size)
        return backend.unsent_size > HIGH_WATER

    world.until(stuck, "a full buffer")
    for _ in range(20):
        world.turn()
        stuck()
    assert largest <= HIGH_WATER + MAX_READ
    received = bytearray()

    def drained() -> bool:
        stuck()
        try:
            received.extend(server.sock.recv(1 << 16, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False
        return len(received) >= len(data)

    world.until(drained, "all the data")
    sender.join()
    assert hashlib.sha256(received).digest() == digest.digest()
    assert largest <= HIGH_WATER + MAX_READ


# Hang-ups.


def test_waiting_client_that_hangs_up_leaves_the_queue_at_once(world: LinkWorld) -> None:
    pool = world.add_pool("acme", world.add_server("s"), pool_size=1)
    linked(world, pool)
    waiting, peer = world.connect(pool)
    peer.sock.sendall(query("select"))
    world.settle()
    assert pool.waiting == 1
    before = world.selector.events
    for _ in range(20):
        world.turn()
    assert world.selector.events == before, "spins on a waiting client"
    peer.sock.close()
    world.until(lambda: pool.waiting == 0, "leaving the queue")
    assert world.selector.events <= before + 2
    assert not waiting.polled


def test_waiting_client_with_more_to_say_than_is_held_is_paused_and_its_hang_up_seen(world: LinkWorld) -> None:
    pool = world.add_pool("acme", world.add_server("s"), pool_size=1)
    linked(world, pool)
    waiting, peer = world.connect(pool)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    peer.sock.settimeout(0)
    sent = 0

    def full() -> bool:
        nonlocal sent
        try:
            sent += peer.sock.send(query("x" * 1000) * 20)
        except BlockingIOError:
            return True
        assert sent < BULK
        return False

    world.until(full, "a paused client")
    assert len(waiting.held) <= 3 * MAX_READ
    for _ in range(20):
        world.turn()
    before = world.selector.events
    for _ in range(20):
        world.turn()
    assert world.selector.events == before
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.sock.close()
    world.until(lambda: pool.waiting == 0, "leaving the queue")
    assert world.selector.events <= before + 2


def test_cancel_before_the_settings_are_made_refuses_the_query_and_spares_the_settings(
    world: LinkWorld, pool: PoolLedger
) -> None:
    parameters = ParameterSet(parameter_pairs([(b"application_name", b"app")]))
    client, peer = world.connect(pool, parameters)
    world.answering = False
    peer.sock.sendall(query("select"))
    world.until(lambda: world.opening, "a backend")
    entry = world.opening[0]
    backend = world.open_backend(entry)
    server = world.servers[entry].sock
    world.until(lambda: backend.state.swallowing_own, "settings on their way")
    assert world.hub.cancel_queued(client, Failure(QUERY_CANCELED))
    assert not world.hub.cancel_queued(client, Failure(QUERY_CANCELED))
    assert kinds(peer.sock.recv(4096)) == "EZ"
    server.sendall(row_description("set_config") + data_row("app") + command_complete("SELECT 1") + ready())
    world.until(lambda: entry.state == IDLE, "the backend free again")
    assert kinds(server.recv(4096)) == "Q", "the settings only"
    peer.sock.sendall(query("select"))
    world.until(lambda: entry.state == ACTIVE, "the next query")
    assert client.backend is backend


def test_client_that_does_not_read_and_hangs_up_is_gone_at_once(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer, server = linked(world, pool)
    entry = entry_of(client)
    assert entry is not None
    client.write(b"x" * (8 << 20))
    assert client.unsent_size > HIGH_WATER
    client.watch()
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.sock.close()
    world.until(lambda: not client.polled, "the client's end")
    assert entry.state >= CLOSING
    world.until(lambda: not server.pump() or server.ended)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (query("select"), "I"),
        (query("select"), "T"),
        (query("select set_config('my.x', 'y', true)"), "I"),
        (query("select pg_advisory_unlock(1)"), "I"),
    ],
    ids=["between transactions", "in a transaction", "with a text that is kept", "with a pin that may be gone"],
)
def test_server_that_closes_right_behind_its_reply_costs_the_client_only_its_transaction(
    asked: bytes, status: str, world: LinkWorld, pool: PoolLedger
) -> None:
    client, peer = world.connect(pool)
    world.answering = False
    peer.sock.sendall(asked)
    world.until(lambda: world.opening, "a backend")
    entry = world.opening[0]
    world.open_backend(entry)
    server = world.servers[entry].sock
    world.until(lambda: entry.state == ACTIVE, "a backend")
    reply = command_complete("SELECT 1") + ready(status)
    server.sendall(reply + error_response("57P01", "terminating connection", severity="FATAL"))
    server.close()
    world.until(lambda: entry.state >= CLOSING, "a backend that is not used again")
    world.until(lambda: entry not in entry.server.entries, "a slot that is free again")
    if status == "I":
        assert peer.sock.recv(4096) == reply
        assert client.polled
        assert not client.finishing
    else:
        assert kinds(peer.sock.recv(4096)) == "CZE"
        assert client.finishing


def test_client_gone_in_a_transaction_never_gives_its_backend_to_another(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer, _ = linked(world, pool)
    entry = entry_of(client)
    assert entry is not None
    peer.sock.close()
    world.settle()
    assert entry not in pool.idle
    assert entry.state >= CLOSING
    assert pool.held == 0


def test_terminate_after_a_transaction_keeps_the_backend(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer = world.connect(pool)
    peer.sock.sendall(query("select") + terminate())
    world.settle()
    assert not client.polled
    again, peer = world.connect(pool)
    peer.sock.sendall(query("select"))
    world.settle()
    peer.sock.sendall(terminate())
    world.settle()
    assert not again.polled
    assert len(pool.idle) == 1


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (NOTICE, True),
        (parameter_status("TimeZone", "CET"), True),
        (NOTICE[:-1], False),
        (error_response("57P01", "going down", severity="FATAL"), False),
        (ready(), False),
        (data_row("1"), False),
        (b"x", False),
    ],
)
def test_idle_backend_may_only_report(world: LinkWorld, pool: PoolLedger, words: bytes, kept: bool) -> None:
    _, peer = world.connect(pool)
    peer.sock.sendall(query("select"))
    world.settle()
    (entry,) = pool.idle
    world.servers[entry].sock.sendall(words)
    world.settle()
    assert (entry.state == IDLE) is kept


def test_backend_lost_in_a_query_is_told_to_its_client(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer, server = linked(world, pool)
    world.answering = False
    peer.sock.sendall(query("select"))
    while world.turn():
        pass
    server.sock.close()
    world.until(lambda: (peer.pump(), peer.ended)[1], "the end of the client")
    assert kinds(bytes(peer.received))[-1] == "E"
    assert b"FATAL" in frames(bytes(peer.received))[-1][1]
    assert client.backend is None


# Pins.


def test_pinned_are_counted_while_they_are_pinned(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer = world.connect(pool)
    peer.sock.sendall(parse("ok", "name") + sync())
    world.settle()
    assert pool.pinned == 1
    assert entry_of(client) is not None
    peer.sock.sendall(close("name") + sync())
    world.settle()
    assert entry_of(client) is None
    assert pool.pinned == 0
    peer.sock.sendall(parse("ok", "name") + bind(statement="name") + execute("select") + sync())
    world.settle()
    assert pool.pinned == 1
    peer.sock.sendall(terminate())
    world.settle()
    assert pool.pinned == 0
    (entry,) = pool.idle
    assert not entry.flags & FLAG_DIRTY


def test_backend_is_brought_in_line_before_the_first_message(world: LinkWorld, pool: PoolLedger) -> None:
    settings = ParameterSet(parameter_pairs([(b"my.setting", b"x")]))
    _, plain = world.connect(pool)
    _, special = world.connect(pool, settings)
    for peer in (plain, special, special, plain):
        peer.sock.sendall(query("select"))
        world.settle()
    (server,) = world.servers.values()
    said = [body[:-1] for kind, body in frames(bytes(server.received)) if kind == "Q"]
    switch = b"SELECT pg_catalog.set_config('my.setting', 'x', false)"
    assert said == [b"select", switch, b"select", b"select", b'RESET "my"."setting"', b"select"]
    for peer in (plain, special):
        assert kinds(bytes(peer.received)) == "TDDCZ" * 2


# Faults.


class FaultyIO:
    """Stands before a link's own reading and writing, and raises where told."""

    def __init__(self, link: Stream) -> None:
        self.faulty: set[str] = set()
        self._receive, self._send = link.receive, link.send
        link.receive, link.send = self.receive, self.send

    def receive(self) -> bytes | None:
        if "recv" in self.faulty:
            raise RuntimeError("recv failed oddly")
        data: bytes | None = self._receive()
        return data

    def send(self, data: bytes) -> int:
        if "send" in self.faulty:
            raise RuntimeError("send failed oddly")
        sent: int = self._send(data)
        return sent


@pytest.mark.parametrize("side", ["client", "backend"])
@pytest.mark.parametrize("way", ["recv", "send", "drain"])
def test_exception_in_any_callback_costs_one_session_and_its_backend(
    world: LinkWorld, pool: PoolLedger, side: str, way: str
) -> None:
    world.answering = False
    far, near = tcp_pair()
    server_far, server_near = tcp_pair()
    world.sockets += [far, near, server_far, server_near]
    client = ClientLink(world.hub, world.selector, near, 99, pool, world.plain)
    world.selector.add(client, client.reading())
    far.sendall(query("begin"))
    world.until(lambda: world.opening)
    backend = world.open_backend(world.opening[0], server_near)
    faults = {"client": FaultyIO(client), "backend": FaultyIO(backend)}
    entry = backend.entry
    server_far.sendall(command_complete("BEGIN") + ready("T"))
    while world.turn():
        pass
    assert entry_of(client) is entry
    # One more session, which must not notice anything.
    other, peer = world.connect(pool)
    world.answering = True
    peer.sock.sendall(query("select"))
    world.settle()

    victim = client if side == "client" else backend
    if way == "drain":
        # More than the socket takes, so that EPOLLOUT is waited for, and then the far end reads.
        victim.write(b"x" * (8 << 20))
        assert victim.unsent is not None
        faults[side].faulty = {"send"}
        end = far if side == "client" else server_far
        world.until(lambda: world.hub.internal_errors or len(end.recv(1 << 20)) < 0, "the fault")
    else:
        faults[side].faulty = {way}
        # "send" is met by what comes from the other side, "recv" by what comes from this one.
        from_client = (side == "client") == (way == "recv")
        if from_client:
            far.sendall(query("select"))
        else:
            server_far.sendall(NOTICE)
    world.until(lambda: world.hub.internal_errors, "the fault")
    for _ in range(5):
        world.turn()
    assert world.internal_errors()
    assert "failed oddly" in world.internal_errors()[0]
    assert entry.state >= CLOSING
    assert entry_of(client) is None
    assert client.finishing or not client.polled
    assert world.hub.internal_errors <= 3, "an exception that comes again and again"
    peer.sock.sendall(query("select"))
    world.settle()
    assert kinds(bytes(peer.received)) == "TDDCZ" * 2
    assert other.polled


def test_idle_backend_that_raises_is_closed(world: LinkWorld, pool: PoolLedger) -> None:
    _, peer = world.connect(pool)
    world.answering = False
    peer.sock.sendall(query("select"))
    world.until(lambda: world.opening)
    far, near = tcp_pair()
    world.sockets += [far, near]
    backend = world.open_backend(world.opening[0], near)
    faults = FaultyIO(backend)
    far.sendall(row_description("x") + command_complete("SELECT 0") + ready())
    while world.turn():
        pass
    assert pool.idle == [backend.entry]
    faults.faulty = {"recv"}
    far.sendall(NOTICE)
    world.until(lambda: world.hub.internal_errors)
    assert not pool.idle
    assert backend.entry.state >= CLOSING


# TLS.


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


TlsPair = Callable[[str], tuple[ssl.SSLSocket, ssl.SSLSocket]]


@pytest.fixture
def tls_pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[TlsPair]:
    made: list[ssl.SSLSocket] = []

    def make(near_is: str) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
        far, near = tcp_pair()
        for sock in (far, near):
            sock.settimeout(10)
        wrapped: list[ssl.SSLSocket] = []
        server_end, client_end = (near, far) if near_is == "server" else (far, near)
        thread = threading.Thread(
            target=lambda: wrapped.append(contexts[1].wrap_socket(client_end, server_hostname="localhost"))
        )
        thread.start()
        accepted = contexts[0].wrap_socket(server_end, server_side=True)
        thread.join()
        made.extend((accepted, wrapped[0]))
        near_tls, far_tls = (accepted, wrapped[0]) if near_is == "server" else (wrapped[0], accepted)
        near_tls.settimeout(0)
        return far_tls, near_tls

    yield make
    for sock in made:
        sock.close()


def tls_client(world: LinkWorld, pool: PoolLedger, near: ssl.SSLSocket) -> ClientLink:
    client = ClientLink(world.hub, world.selector, near, 7, pool, world.plain)
    world.selector.add(client, client.reading())
    return client


def test_large_answers_arrive_byte_by_byte_at_a_slow_tls_client(
    world: LinkWorld, pool: PoolLedger, tls_pair: TlsPair
) -> None:
    far, near = tls_pair("server")
    client = tls_client(world, pool, near)
    far.sendall(query("select"))
    world.answering = False
    world.until(lambda: world.opening)
    backend = world.open_backend(world.opening[0])
    server = world.servers[backend.entry].sock
    answer = row_description("x") + b"".join(data_row(os.urandom(n % 5000 + 1).hex()) for n in range(0, 400_000, 997))
    answer += data_row("y" * 3_000_000) + command_complete("SELECT") + ready()
    sender = threading.Thread(target=lambda: server.sendall(answer))
    sender.start()
    largest = 0

    def pressed() -> bool:
        nonlocal largest
        largest = max(largest, client.unsent_size)
        return client.unsent_size > HIGH_WATER

    world.until(pressed, "back-pressure")
    received = bytearray()
    reader = threading.Thread(target=lambda: read_all(far, received, len(answer)))
    reader.start()
    world.until(lambda: (pressed(), len(received) >= len(answer))[1], "the whole answer")
    reader.join()
    sender.join()
    assert bytes(received) == answer
    assert largest <= HIGH_WATER + MAX_READ
    world.until(lambda: backend.entry.state == IDLE)


def read_all(sock: socket.socket, into: bytearray, size: int) -> None:
    while len(into) < size:
        data = sock.recv(777)
        if not data:
            return
        into += data


@pytest.mark.parametrize("size", [10, 447, 448, 449, 1000, 8191, 8192, 16_384, 40_000, 300_000])
def test_what_lies_decrypted_in_the_tls_layer_is_not_forgotten(
    world: LinkWorld, pool: PoolLedger, tls_pair: TlsPair, size: int
) -> None:
    far, near = tls_pair("server")
    client = tls_client(world, pool, near)
    # One record with several messages, of which the last is only complete with the bytes that no poll reports.
    said = query("select") + query("y" * size)
    far.sendall(said)
    world.answering = False
    world.until(lambda: world.opening)
    backend = world.open_backend(world.opening[0])
    server = world.servers[backend.entry]
    model = server.model
    assert model is not None
    world.until(lambda: (server.pump(), len(server.received) >= len(said))[1], "all the client said")
    assert bytes(server.received) == said
    world.until(lambda: client.backend is None, "the release")


def test_tls_to_the_server_is_as_exact(world: LinkWorld, pool: PoolLedger, tls_pair: TlsPair) -> None:
    far, near = tls_pair("client")
    client, peer = world.connect(pool)
    world.answering = False
    large = query("z" * 16_000_000)
    sender = threading.Thread(target=lambda: peer.sock.sendall(large))
    sender.start()
    world.until(lambda: world.opening)
    backend = world.open_backend(world.opening[0], near)
    world.until(lambda: backend.unsent_size > HIGH_WATER, "back-pressure")
    received = bytearray()
    reader = threading.Thread(target=lambda: read_all(far, received, len(large)))
    reader.start()
    world.until(lambda: len(received) >= len(large), "the whole query")
    reader.join()
    sender.join()
    assert bytes(received) == large
    far.sendall(NOTICE + command_complete("INSERT 0 1") + ready())
    world.until(lambda: client.backend is None, "the release")
    world.until(lambda: peer.pump() or bytes(peer.received[-6:]) == ready())
    assert backend.entry.state == IDLE


def test_tls_client_that_hangs_up_is_gone(world: LinkWorld, pool: PoolLedger, tls_pair: TlsPair) -> None:
    far, near = tls_pair("server")
    client = tls_client(world, pool, near)
    far.sendall(query("begin"))
    world.settle()
    assert client.backend is not None and client.backend.entry.state == ACTIVE
    far.close()
    world.until(lambda: not client.polled, "the client's end")
    world.settle()
    assert pool.held == 0


def during_settings(world: LinkWorld, pool: PoolLedger, request: bytes) -> tuple[ClientLink, Peer, Peer]:
    """A client whose settings are being made while its request waits for that, its peer, and its silent server."""
    client, peer = world.connect(pool, ParameterSet(parameter_pairs([(b"application_name", b"app")])))
    world.answering = False
    peer.sock.sendall(request)
    world.until(lambda: world.opening, "a backend")
    backend = world.open_backend(world.opening[0])
    world.until(lambda: backend.state.swallowing_own, "settings on their way")
    return client, peer, world.servers[backend.entry]


def test_cancel_before_the_settings_are_made_skips_an_extended_request_up_to_its_sync(
    world: LinkWorld, pool: PoolLedger
) -> None:
    client, peer, server = during_settings(world, pool, parse("", "select") + bind() + execute())
    assert world.hub.cancel_queued(client, Failure(QUERY_CANCELED))
    peer.sock.sendall(sync())
    world.answering = True
    world.settle()
    assert kinds(bytes(peer.received)) == "EZ"
    assert kinds(bytes(server.received)) == "Q", "the settings only"
    assert client.backend is None
    peer.sock.sendall(query("select"))
    world.settle()
    assert kinds(bytes(peer.received))[2:].endswith("CZ")


def test_rest_of_a_long_query_that_was_cancelled_before_the_settings_are_made_never_reaches_the_server(
    world: LinkWorld, pool: PoolLedger
) -> None:
    rest = query("smuggled")[:9]
    whole = query("x" * 20000)[: -len(rest)] + rest
    client, peer, server = during_settings(world, pool, whole[:10000])
    assert world.hub.cancel_queued(client, Failure(QUERY_CANCELED))
    world.answering = True
    world.settle()
    peer.sock.sendall(whole[10000:])
    world.settle()
    assert kinds(bytes(peer.received)) == "EZ"
    assert kinds(bytes(server.received)) == "Q", "the settings only"
    assert client.backend is None


def test_cancel_refuses_no_request_that_has_only_begun_to_come(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer, _ = during_settings(world, pool, query("select"))
    assert world.hub.cancel_queued(client, Failure(QUERY_CANCELED))
    peer.sock.sendall(query("select")[:3])
    world.until(lambda: client.held, "a beginning")
    assert not world.hub.cancel_queued(client, Failure(QUERY_CANCELED))
    world.answering = True
    peer.sock.sendall(query("select")[3:])
    world.settle()
    assert kinds(bytes(peer.received)).endswith("CZ")
    assert not world.internal_errors()
