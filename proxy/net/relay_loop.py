"""The selector inside asyncio's event loop: established sessions are served in `select()` itself.

`RelaySelector` has the surface of `selectors.BaseSelector` and is given to `asyncio.SelectorEventLoop`.  Descriptors
that asyncio registers are reported to asyncio as ever.  Sockets of established sessions are *links*, which only this
selector knows: when one is ready, `select()` calls it, and polls again.

The rules that keep the loop whole:

- `select()` returns when asyncio has something to do or its timeout is due.  It looks after each batch of events, and
  takes as many at a time as fit into `budget` seconds.
- Code that runs inside `select()` never calls the loop: asyncio has computed its timeout already.  It appends to
  `mailbox` instead; a non-empty mailbox is reported to asyncio as a readable descriptor (`watch_mailbox`).
- An exception in a link is contained: `Link.contain` closes that link and what is linked to it.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, Final

from mypy_extensions import mypyc_attr

from proxy.net.syscalls import MAX_EVENTS, Poller

EPOLLIN: Final = 0x001
EPOLLOUT: Final = 0x004
EPOLLERR: Final = 0x008
EPOLLHUP: Final = 0x010
EPOLLRDHUP: Final = 0x2000

FEW_EVENTS: Final = 8
UNTIL_FOREVER: Final = 1e18
LONGEST_WAIT: Final = 86400.0
"""Seconds of one poll at most; the system call takes milliseconds as a C int."""


# Tests have links of their own, uncompiled.
@mypyc_attr(allow_interpreted_subclasses=True)
class Link:
    """A socket served inside `select()`.  The subclasses are in `links`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.mask = 0
        self.polled = False
        self.on_ready_list = False

    def event(self, mask: int) -> None:
        """Serve the socket, which is ready as `mask` (EPOLL bits) says."""
        raise NotImplementedError

    def buffered(self) -> None:
        """Serve what lies decrypted in the TLS layer, which no poll reports."""
        raise NotImplementedError

    def contain(self, error: BaseException) -> None:
        """Close after an exception in this link's own code, so that it harms no other."""
        raise NotImplementedError


class RelaySelector:
    """One epoll for asyncio's descriptors and for links.

    `budget` is in seconds, and meant for the work between two looks at asyncio.  `now` is the monotonic time of the
    current batch of events, which everything in a link may use instead of asking the clock.
    """

    def __init__(self, budget: float = 0.0015) -> None:
        self._poller: Poller = Poller()
        self._epoll: Any = self._poller.epoll
        self._wait: Any = self._poller.wait
        self._clock: Any = time.monotonic
        self._keys: dict[int, SelectorKey] = {}
        self._links: list[Link | None] = [None] * 64
        self._ready_links: list[Link] = []
        self.budget = budget
        self._most_events = 64
        self._mail_fd = -1
        self.mailbox: list[object] = []
        self.now = time.monotonic()
        self.link_count = 0
        self.events = 0
        self.contained = 0

    # The surface of selectors.BaseSelector, for asyncio.

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Watch a descriptor for asyncio."""
        fd = _fd_of(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is already registered")
        key = SelectorKey(fileobj, fd, events, data)
        self._epoll.register(fd, _epoll_mask(events))
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        """Stop watching a descriptor for asyncio."""
        fd = _fd_of(fileobj)
        key = self._keys.pop(fd)
        try:
            self._epoll.unregister(fd)
        except OSError as error:
            # A descriptor that was closed has left the epoll by itself.
            if error.errno not in _GONE_FROM_EPOLL:
                raise
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Change what asyncio wants to know of a descriptor."""
        fd = _fd_of(fileobj)
        key = self._keys[fd]
        if events != key.events:
            self._epoll.modify(fd, _epoll_mask(events))
        changed = SelectorKey(fileobj, fd, events, data)
        self._keys[fd] = changed
        return changed

    def get_key(self, fileobj: Any) -> SelectorKey:
        """Return the key of a registered descriptor; KeyError if it is not registered."""
        return self._keys[_fd_of(fileobj)]

    def get_map(self) -> Mapping[Any, SelectorKey]:
        """Return the registered descriptors."""
        return self._keys

    def close(self) -> None:
        """Close the epoll; nothing may be served afterwards."""
        self._poller.close()
        self._keys.clear()
        self._links = []
        self._ready_links = []

    # Links.

    def watch_mailbox(self, fd: int) -> None:
        """Report a non-empty mailbox as this descriptor being readable; asyncio must have registered it."""
        self._mail_fd = fd

    def add(self, link: Link, mask: int) -> None:
        """Begin to serve a link's socket, which asyncio must not know any more."""
        fd = link.fd
        if fd in self._keys:
            raise KeyError(f"descriptor {fd} is still registered with asyncio")
        while fd >= len(self._links):
            self._links.extend([None] * len(self._links))
        self._epoll.register(fd, mask)
        self._links[fd] = link
        link.mask = mask
        link.polled = True
        self.link_count += 1

    def watch(self, link: Link, mask: int) -> None:
        """Change the EPOLL bits that a link waits for."""
        if link.mask != mask and link.polled:
            link.mask = mask
            self._epoll.modify(link.fd, mask)

    def remove(self, link: Link) -> None:
        """Stop serving a link; call before its socket is closed.  Events of this batch for it are dropped."""
        if not link.polled:
            return
        link.polled = False
        self._links[link.fd] = None
        self.link_count -= 1
        try:
            self._epoll.unregister(link.fd)
        except OSError as error:
            if error.errno not in _GONE_FROM_EPOLL:
                raise

    def serve_buffered(self, link: Link) -> None:
        """Call `buffered` of a link soon, whatever the poll says: its TLS layer holds bytes already."""
        if not link.on_ready_list:
            link.on_ready_list = True
            self._ready_links.append(link)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Serve links until asyncio has something to do, and return that."""
        ready: list[tuple[SelectorKey, int]] = []
        start: float = self._clock()
        self.now = start
        until = UNTIL_FOREVER
        if timeout is not None:
            until = start + timeout if timeout > 0.0 else 0.0
        while True:
            wait = self._wait_time(until)
            events: list[int] = self._wait(wait, self._most_events)
            self.now = self._clock()
            self._serve(events, ready)
            if self._ready_links:
                self._serve_ready_links()
            if len(events) >= 2 * FEW_EVENTS:
                self._keep_to_budget(len(events) // 2)
            if ready or self.mailbox or until <= self.now:
                break
            if len(events) == 0 and wait != 0:
                break
        if self.mailbox:
            self._announce_mail(ready)
        return ready

    def _wait_time(self, until: float) -> int:
        """How long the poll may block, in milliseconds; -1 is for ever."""
        if self._ready_links or self.mailbox or until <= self.now:
            return 0
        if until >= UNTIL_FOREVER:
            return -1
        return math.ceil(min(until - self.now, LONGEST_WAIT) * 1e3)

    def _keep_to_budget(self, count: int) -> None:
        """Take fewer events at a time when these took too long, more when there is room for them.

        A batch is never left before its end: the kernel puts what it has reported behind what it has not, so that
        everybody has a turn, but whoever is left out of a batch would be left out of the next one, too.
        """
        taken: float = self._clock() - self.now
        if taken > self.budget:
            self._most_events = max(FEW_EVENTS, count // 2)
        elif count == self._most_events and 2.0 * taken < self.budget:
            self._most_events = min(MAX_EVENTS, 2 * count)

    def _serve(self, events: list[int], ready: list[tuple[SelectorKey, int]]) -> None:
        links = self._links
        served = 0
        for i in range(0, len(events), 2):
            fd = events[i]
            mask = events[i + 1]
            link = links[fd] if fd < len(links) else None
            if link is not None:
                try:
                    link.event(mask)
                except Exception as error:  # noqa: BLE001 - one session's fault must not end the loop for all
                    self._contain(link, error)
                links = self._links
                served += 1
            else:
                key = self._keys.get(fd)
                if key is not None:
                    bits = 0
                    if mask & ~EPOLLIN:
                        bits |= EVENT_WRITE
                    if mask & ~EPOLLOUT:
                        bits |= EVENT_READ
                    bits &= key.events
                    if bits:
                        ready.append((key, bits))
        self.events += served

    def _serve_ready_links(self) -> None:
        turn = self._ready_links
        self._ready_links = []
        for link in turn:
            link.on_ready_list = False
            if link.polled:
                try:
                    link.buffered()
                except Exception as error:  # noqa: BLE001 - one session's fault must not end the loop for all
                    self._contain(link, error)

    def _contain(self, link: Link, error: Exception) -> None:
        self.contained += 1
        try:
            link.contain(error)
        except Exception as second:  # noqa: BLE001 - nothing may leave select()
            self.remove(link)
            second.__context__ = error
            self.mailbox.append(second)

    def _announce_mail(self, ready: list[tuple[SelectorKey, int]]) -> None:
        key = self._keys.get(self._mail_fd)
        if key is not None:
            for other, _ in ready:
                if other.fd == self._mail_fd:
                    return
            ready.append((key, EVENT_READ))


_GONE_FROM_EPOLL: Final = (2, 9)
"""ENOENT and EBADF."""


def _fd_of(fileobj: Any) -> int:
    if isinstance(fileobj, int):
        return fileobj
    fd: int = fileobj.fileno()
    return fd


def _epoll_mask(events: int) -> int:
    mask = 0
    if events & EVENT_READ:
        mask |= EPOLLIN
    if events & EVENT_WRITE:
        mask |= EPOLLOUT
    return mask


def mailbox_pipe() -> tuple[int, int]:
    """Make the pair of descriptors whose reading end stands for the mailbox; nothing is ever written to it."""
    return os.pipe()
