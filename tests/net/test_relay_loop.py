"""The selector inside asyncio's loop: asyncio works on it as ever, links are served within it and harm nobody."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest
from harness.linkworld import tcp_pair
from harness.waiting import allowed, eventually

from proxy.net.relay_loop import EPOLLIN, EPOLLOUT, EPOLLRDHUP, Link, RelaySelector, mailbox_pipe

PATIENCE = 10.0


def run(main: Callable[[RelaySelector], Coroutine[Any, Any, None]], budget: float = 0.0015) -> RelaySelector:
    """Run a coroutine on a loop with a relay selector."""
    selector = RelaySelector(budget)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:  # type: ignore[arg-type]
        runner.run(asyncio.wait_for(main(selector), PATIENCE))
    return selector


class EchoLink(Link):
    """Sends back what comes, and counts how often it was called."""

    def __init__(self, selector: RelaySelector, sock: socket.socket) -> None:
        super().__init__(sock.fileno())
        self.selector = selector
        self.sock = sock
        self.calls = 0
        self.masks: list[int] = []
        self.errors: list[BaseException] = []
        selector.add(self, EPOLLIN | EPOLLRDHUP)

    def event(self, mask: int) -> None:
        self.calls += 1
        self.masks.append(mask)
        data = self.sock.recv(65536)
        if data:
            self.sock.send(data)
        else:
            self.close()

    def buffered(self) -> None:
        self.calls += 1

    def contain(self, error: BaseException) -> None:
        self.errors.append(error)
        self.close()

    def close(self) -> None:
        self.selector.remove(self)
        self.sock.close()


class MakeLink(Protocol):
    """Makes a link on a selector, and the socket at its far end."""

    def __call__(self, selector: RelaySelector, kind: type[EchoLink] = ..., /) -> tuple[EchoLink, socket.socket]: ...


@pytest.fixture
def make_link() -> Iterator[MakeLink]:
    with ExitStack() as stack:

        def make(selector: RelaySelector, kind: type[EchoLink] = EchoLink) -> tuple[EchoLink, socket.socket]:
            far, near = tcp_pair()
            stack.callback(far.close)
            stack.callback(near.close)
            return kind(selector, near), far

        yield make


# asyncio on the selector.


def test_timers_fire_on_time_and_in_order() -> None:
    async def main(selector: RelaySelector) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        fired: list[tuple[int, float]] = []
        for number in (3, 1, 2):
            loop.call_later(number * 0.02, lambda which: fired.append((which, loop.time() - start)), number)
        await asyncio.sleep(0.08)
        assert [number for number, _ in fired] == [1, 2, 3]
        assert all(number * 0.02 <= when + 0.001 for number, when in fired)

    run(main)


def test_readers_and_writers_of_asyncio_are_called() -> None:
    async def main(selector: RelaySelector) -> None:
        loop = asyncio.get_running_loop()
        one, two = socket.socketpair()
        with one, two:
            readable, writable = asyncio.Event(), asyncio.Event()
            loop.add_reader(two, readable.set)
            loop.add_writer(two, writable.set)
            await writable.wait()
            loop.remove_writer(two)
            assert not readable.is_set()
            one.send(b"x")
            await readable.wait()
            loop.remove_reader(two)
            assert two.fileno() not in selector.get_map()

    run(main)


def test_streams_work_beside_links(make_link: MakeLink) -> None:
    async def main(selector: RelaySelector) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read(100)).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        link, far = make_link(selector)
        far.sendall(b"for the link")
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"for asyncio")
        assert await reader.read(100) == b"FOR ASYNCIO"
        writer.close()
        server.close()
        await server.wait_closed()
        assert far.recv(100) == b"for the link"
        link.close()
        far.close()

    run(main)


def test_subprocesses_are_waited_for() -> None:
    async def main(selector: RelaySelector) -> None:
        process = await asyncio.create_subprocess_exec(  # noqa: TID251  # asyncio's own is what is tested
            sys.executable, "-c", "print('out')", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert output == b"out\n"
        assert process.returncode == 0

    run(main)


def test_other_threads_wake_the_loop() -> None:
    async def main(selector: RelaySelector) -> None:
        loop = asyncio.get_running_loop()
        called = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(called.set))
        thread.start()
        await called.wait()
        thread.join()
        assert await loop.run_in_executor(None, lambda: 42) == 42

    run(main)


def test_surface_is_that_of_a_selector() -> None:
    selector = RelaySelector()
    one, two = socket.socketpair()
    with one, two:
        key = selector.register(one, 1, "data")
        assert (key.fd, key.events, key.data) == (one.fileno(), 1, "data")
        with pytest.raises(KeyError):
            selector.register(one, 2)
        assert selector.get_key(one) == key
        assert selector.modify(one, 3, "other").data == "other"
        assert selector.select(0) == [(selector.get_key(one), 2)]
        two.send(b"x")
        assert selector.select(0) == [(selector.get_key(one), 3)]
        selector.modify(one, 1, "other")
        assert selector.select(None) == [(selector.get_key(one), 1)]
        selector.unregister(one)
        assert selector.select(0.01) == []
        with pytest.raises(KeyError):
            selector.unregister(one)
        with pytest.raises(KeyError):
            selector.get_key(one)
    selector.close()


def test_descriptor_that_was_closed_first_can_be_unregistered() -> None:
    selector = RelaySelector()
    one, two = socket.socketpair()
    selector.register(one, 1)
    number = one.fileno()
    one.close()
    two.close()
    selector.unregister(number)
    selector.close()


# Links.


def test_links_are_served_while_asyncio_sleeps(make_link: MakeLink) -> None:
    async def main(selector: RelaySelector) -> None:
        link, far = make_link(selector)
        replies: list[bytes] = []

        def talk() -> None:
            for number in range(100):
                far.sendall(b"%d" % number)
                replies.append(far.recv(100))

        thread = threading.Thread(target=talk)
        thread.start()
        await eventually(lambda: not thread.is_alive())
        assert replies == [b"%d" % number for number in range(100)]
        assert link.calls == 100
        far.close()
        await eventually(lambda: not link.polled)
        assert selector.link_count == 0

    run(main)


def test_descriptor_of_asyncio_cannot_be_a_link_at_the_same_time() -> None:
    selector = RelaySelector()
    one, two = socket.socketpair()
    with one, two:
        selector.register(one, 1)
        with pytest.raises(KeyError):
            EchoLink(selector, one)
    selector.close()


def test_many_descriptors_find_their_links(make_link: MakeLink) -> None:
    selector = RelaySelector()
    pairs = [make_link(selector) for _ in range(100)]
    for number, (_, far) in enumerate(pairs):
        far.sendall(b"%d" % number)
    while sum(link.calls for link, _ in pairs) < 100:
        selector.select(0.01)
    for number, (link, far) in enumerate(pairs):
        assert far.recv(100) == b"%d" % number
        link.close()
        far.close()
    assert selector.link_count == 0
    selector.close()


class RemovesOthers(EchoLink):
    """Closes all the others with the first event of a batch."""

    others: tuple[EchoLink, ...] = ()

    def event(self, mask: int) -> None:
        super().event(mask)
        for other in self.others:
            if other is not self and other.polled:
                other.close()


def test_link_closed_by_another_of_the_same_batch_is_not_called(make_link: MakeLink) -> None:
    selector = RelaySelector()
    pairs = [make_link(selector, RemovesOthers) for _ in range(5)]
    links = tuple(link for link, _ in pairs)
    for link, far in pairs:
        assert isinstance(link, RemovesOthers)
        link.others = links
        far.sendall(b"x")
    for _ in range(5):
        selector.select(0)
    assert sorted(link.calls for link in links) == [0, 0, 0, 0, 1]
    assert selector.link_count == 1
    selector.close()


def test_removed_link_is_not_served_from_the_ready_list(make_link: MakeLink) -> None:
    selector = RelaySelector()
    (first, _), (second, _) = make_link(selector), make_link(selector)
    for link in (first, second, first):
        selector.serve_buffered(link)
    second.close()
    selector.select(0)
    assert (first.calls, second.calls) == (1, 0)
    selector.close()


def test_ready_list_is_served_without_waiting(make_link: MakeLink) -> None:
    selector = RelaySelector()
    link, _ = make_link(selector)
    selector.serve_buffered(link)
    start = time.monotonic()
    selector.select(0.2)
    assert link.calls == 1
    assert time.monotonic() - start >= 0.19, "and then the timeout is waited out"
    selector.close()


class Boom(Exception):
    """What a faulty link raises."""


class Faulty(EchoLink):
    def event(self, mask: int) -> None:
        raise Boom

    def buffered(self) -> None:
        raise Boom


class Hopeless(Faulty):
    def contain(self, error: BaseException) -> None:
        raise RuntimeError("even this fails") from error


@pytest.mark.parametrize("way", ["event", "buffered"])
def test_exception_in_a_link_is_contained(way: str, make_link: MakeLink) -> None:
    selector = RelaySelector()
    bad, far = make_link(selector, Faulty)
    good, good_far = make_link(selector)
    good_far.sendall(b"x")
    if way == "event":
        far.sendall(b"x")
    else:
        selector.serve_buffered(bad)
    for _ in range(3):
        selector.select(0)
    assert [type(error) for error in bad.errors] == [Boom]
    assert selector.contained == 1
    assert good_far.recv(10) == b"x"
    assert good.polled and not bad.polled
    selector.close()


def test_exception_in_containing_an_exception_is_contained_as_well(make_link: MakeLink) -> None:
    selector = RelaySelector()
    bad, far = make_link(selector, Hopeless)
    far.sendall(b"x")
    for _ in range(3):
        selector.select(0)
    assert selector.contained == 1
    assert not bad.polled
    (error,) = selector.mailbox
    assert isinstance(error, RuntimeError)
    selector.close()


# The mailbox.


class Posts(EchoLink):
    def event(self, mask: int) -> None:
        super().event(mask)
        self.selector.mailbox.append("letter")


def test_mail_left_by_a_link_wakes_asyncio(make_link: MakeLink) -> None:
    async def main(selector: RelaySelector) -> None:
        reading, writing = mailbox_pipe()
        letters: list[object] = []
        arrived = asyncio.Event()

        def read() -> None:
            letters.extend(selector.mailbox)
            selector.mailbox = []
            arrived.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(reading, read)
        selector.watch_mailbox(reading)
        link, far = make_link(selector, Posts)
        start = time.monotonic()
        far.sendall(b"x")
        await arrived.wait()
        assert letters == ["letter"]
        assert time.monotonic() - start < allowed(1.0)
        loop.remove_reader(reading)
        selector.watch_mailbox(-1)
        os.close(reading)
        os.close(writing)
        link.close()
        far.close()

    run(main)


# The budget.


class Busy(EchoLink):
    """Always has something to do: writes to itself, and takes its time."""

    def __init__(self, selector: RelaySelector, sock: socket.socket) -> None:
        super().__init__(selector, sock)
        selector.watch(self, EPOLLOUT)

    def event(self, mask: int) -> None:
        self.calls += 1
        until = time.perf_counter() + 0.0001
        while time.perf_counter() < until:
            pass


def test_asyncio_is_on_time_however_busy_the_links_are(make_link: MakeLink) -> None:
    late: list[float] = []
    readers: list[float] = []

    async def main(selector: RelaySelector) -> None:
        links = [make_link(selector, Busy) for _ in range(200)]
        loop = asyncio.get_running_loop()
        one, two = socket.socketpair()
        with one, two:
            for _ in range(40):
                start = loop.time()
                await asyncio.sleep(0.005)
                late.append(loop.time() - start - 0.005)
                ready = asyncio.Event()
                loop.add_reader(two, ready.set)
                start = loop.time()
                one.send(b"x")
                await ready.wait()
                readers.append(loop.time() - start)
                loop.remove_reader(two)
                two.recv(1)
        for link, _ in links:
            link.close()

    selector = run(main)
    assert selector.events > 1000
    # All the links in turn take 20 ms; between a timer and its coroutine lie a few turns of a budget each.
    assert sorted(late)[len(late) // 2] < allowed(0.012)
    # A descriptor waits for its turn behind every link that is ready.
    assert sorted(readers)[len(readers) // 2] < allowed(0.06)


def test_work_between_two_turns_of_asyncio_keeps_to_the_budget(make_link: MakeLink) -> None:
    selector = RelaySelector(0.002)
    for _ in range(300):
        make_link(selector, Busy)
    # Processor time, which others on the machine do not lengthen.
    taken = []
    for _ in range(60):
        start = time.thread_time()
        selector.select(0)
        taken.append(time.thread_time() - start)
    assert sorted(taken[10:])[25] < 0.02, "300 links of 0.1 ms each would take longer"
    selector.close()


def test_no_link_is_passed_over_however_busy_asyncio_and_the_others_are(make_link: MakeLink) -> None:
    selector = RelaySelector(0.001)
    links = [make_link(selector, Busy)[0] for _ in range(100)]
    selector.mailbox.append("unread")
    for _ in range(100):
        selector.select(0)
    calls = sorted(link.calls for link in links)
    assert calls[0] > 0
    assert calls[-1] <= 3 * calls[0]
    selector.close()


def test_idle_loop_does_not_spin(make_link: MakeLink) -> None:
    polls: list[float] = []

    async def main(selector: RelaySelector) -> None:
        link, far = make_link(selector)
        before, cpu = selector.events, time.process_time()
        await asyncio.sleep(0.3)
        polls.append(time.process_time() - cpu)
        assert selector.events == before
        link.close()
        far.close()

    run(main)
    assert polls[0] < 0.1
