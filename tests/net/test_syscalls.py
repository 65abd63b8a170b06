"""The relay's own system calls on real sockets: what is not now, what is the end, and what must not be touched."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from select import EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP

import pytest
from harness.linkworld import tcp_pair
from harness.waiting import allowed

from proxy.net.syscalls import MAX_EVENTS, MAX_READ, Poller, SocketIO

RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A peer that blocks, and a socket that does not."""
    far, near = tcp_pair()
    with far, near:
        yield far, near


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


# Reading.


def test_nothing_to_read_is_not_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    assert SocketIO(pair[1].fileno()).receive() is None


def test_reads_what_there_is(pair: tuple[socket.socket, socket.socket]) -> None:
    far, near = pair
    io = SocketIO(near.fileno())
    far.sendall(b"abc\0def")
    assert [io.receive(), io.receive()] == [b"abc\0def", None]


def test_one_read_is_never_longer_than_the_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    far, near = pair
    io = SocketIO(near.fileno())
    sent = os.urandom(3 * MAX_READ)
    sender = threading.Thread(target=far.sendall, args=(sent,))
    sender.start()
    got = bytearray()
    longest = 0
    while len(got) < len(sent):
        piece = io.receive()
        if piece is not None:
            longest = max(longest, len(piece))
            got += piece
    sender.join()
    assert bytes(got) == sent
    assert longest <= MAX_READ


def test_the_end_of_the_stream_is_empty(pair: tuple[socket.socket, socket.socket]) -> None:
    far, near = pair
    far.shutdown(socket.SHUT_WR)
    assert SocketIO(near.fileno()).receive() == b""


def test_a_reset_connection_is_at_its_end(pair: tuple[socket.socket, socket.socket]) -> None:
    far, near = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    far.close()
    assert SocketIO(near.fileno()).receive() == b""


# Writing.


def test_a_full_socket_takes_a_part_and_then_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    far, near = pair
    io = SocketIO(near.fileno())
    data = os.urandom(64 << 20)
    first = io.send(data)
    assert 0 < first < len(data)
    written = first
    while count := io.send(data[written:]):
        written += count
    assert io.send(b"x") == 0
    got = bytearray()
    while len(got) < written:
        got += far.recv(1 << 20)
    assert bytes(got) == data[:written]


def test_writing_to_a_lost_connection_says_so(pair: tuple[socket.socket, socket.socket]) -> None:
    far, near = pair
    io = SocketIO(near.fileno())
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    far.close()
    assert io.send(b"x") == -1
    assert io.send(b"x") == -1


@pytest.mark.parametrize("data", ["text", None, 7])
def test_only_bytes_are_written(pair: tuple[socket.socket, socket.socket], data: object) -> None:
    with pytest.raises(TypeError):
        SocketIO(pair[1].fileno()).send(data)  # type: ignore[arg-type]


# Closing.


def test_a_closed_one_never_touches_the_socket_that_has_its_number_now() -> None:
    far, near = tcp_pair()
    other_far, other_near = tcp_pair()
    with far, near, other_far, other_near:
        io = SocketIO(near.fileno())
        io.close()
        os.dup2(other_near.fileno(), near.fileno())
        other_far.sendall(b"for somebody else")
        assert io.receive() == b""
        assert io.send(b"to somebody else") == -1
        assert near.recv(100) == b"for somebody else"
        other_far.settimeout(0)
        with pytest.raises(BlockingIOError):
            other_far.recv(100)


# Polling.


def test_says_which_descriptors_are_ready_for_what(pair: tuple[socket.socket, socket.socket], poller: Poller) -> None:
    far, near = pair
    poller.epoll.register(near.fileno(), EPOLLIN | EPOLLRDHUP)
    poller.epoll.register(far.fileno(), EPOLLOUT)
    assert poller.wait(0, 10) == [far.fileno(), EPOLLOUT]
    far.sendall(b"x")
    ready = poller.wait(-1, 10)
    assert dict(zip(ready[::2], ready[1::2], strict=True)) == {near.fileno(): EPOLLIN, far.fileno(): EPOLLOUT}
    assert len(poller.wait(0, 1)) == 2
    far.close()
    assert poller.wait(0, 10) == [near.fileno(), EPOLLIN | EPOLLRDHUP]
    near.shutdown(socket.SHUT_WR)
    assert poller.wait(0, 10) == [near.fileno(), EPOLLIN | EPOLLRDHUP | EPOLLHUP]


def test_waits_as_long_as_it_is_told_and_lets_other_threads_run(poller: Poller) -> None:
    start = time.monotonic()
    assert poller.wait(0, 10) == []
    assert time.monotonic() - start < allowed(0.02)
    start = time.monotonic()
    assert poller.wait(30, 10) == []
    assert time.monotonic() - start >= 0.03
    one, two = socket.socketpair()
    with one, two:
        poller.epoll.register(one.fileno(), EPOLLIN)
        other = threading.Timer(0.01, two.send, [b"x"])
        other.start()
        assert poller.wait(-1, 10) == [one.fileno(), EPOLLIN]
        other.join()


def test_reports_no_more_at_a_time_than_it_has_room_for(poller: Poller) -> None:
    wanted = MAX_EVENTS + 1
    reading, writing = os.pipe()
    copies = [os.dup(writing) for _ in range(wanted)]
    try:
        for copy in copies:
            poller.epoll.register(copy, EPOLLOUT)
        assert len(poller.wait(0, wanted)) == 2 * MAX_EVENTS
    finally:
        for descriptor in (reading, writing, *copies):
            os.close(descriptor)


def test_a_signal_is_handled_and_is_no_error(poller: Poller) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: caught.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert poller.wait(200, 10) == []
        deadline = time.monotonic() + 1.0
        while not caught and time.monotonic() < deadline:
            pass
        assert caught == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_closed_epoll_is_an_error_and_not_silence() -> None:
    poller = Poller()
    poller.close()
    with pytest.raises((OSError, ValueError)):
        poller.wait(0, 10)
