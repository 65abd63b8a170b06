"""A client's socket: from its bytes to a backend's.

A client is *linked* to a backend from its first message that needs one until the relay rules allow the release.  What
may be forwarded is decided by the session room, who gets which backend by the pool room; here bytes are read, written
and handed over.  Memory per session is bounded: in each direction at most one read chunk beyond `HIGH_WATER`, and
what `FrontState` holds back.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Any, Final

from proxy.net.backend_link import TERMINATE, BackendLink, link_of, sqlstate_text
from proxy.net.link_host import (
    FAREWELL_TIME,
    MODE_SESSION,
    MODE_TRANSACTION,
    TOLD_FAULT,
    TOLD_INTERNAL,
    TOLD_SETTING_REFUSED,
    TOLD_STATE_REFUSED,
    LinkHost,
)
from proxy.net.relay_loop import EPOLLIN, EPOLLOUT, EPOLLRDHUP, RelaySelector
from proxy.net.stream import HIGH_WATER, LOW_WATER, Stream
from proxy.pool.ledger import ACTIVE, FLAG_DIRTY, FLAG_MODE, PoolLedger, Waiter, mark_obsolete
from proxy.session.desk import NEED_COPY, NEED_ERROR, NEED_NOTHING
from proxy.session.parameters import ParameterSet
from proxy.session.pins import PIN_SET, PINS_DIRTY, POLICY_REJECT, pin_names
from proxy.session.relay import FOUND_NOTHING, FOUND_TERMINATE, FrontState
from proxy.wire.framing import F_TERMINATE

READY_IDLE: Final = b"Z\x00\x00\x00\x05I"
HELD_MOST: Final = 65536
"""Bytes kept for a client that waits for a backend, beyond which it is not read any more."""


class ClientLink(Stream):
    """An authenticated client; `serves_all` says that its login is one for all tenants."""

    def __init__(
        self,
        host: LinkHost,
        selector: RelaySelector,
        sock: Any,
        ident: int,
        pool: PoolLedger,
        parameters: ParameterSet,
    ) -> None:
        super().__init__(selector, sock)
        self.host: LinkHost = host
        self.ident: int = ident
        self.pool: PoolLedger = pool
        self.parameters: ParameterSet = parameters
        self.startup: ParameterSet = parameters
        self.front: FrontState = FrontState(ident)
        self.mode: int = MODE_TRANSACTION
        self.backend: BackendLink | None = None
        self.waiter: Waiter | None = None
        self.held: bytes = b""
        self.feeding: bool = False
        self.refusal: bytes | None = None
        self.linked_at: float = 0.0
        self.counted_pins: int = 0
        self.ever_pinned: int = 0
        self.refused_switches: int = 0
        self.cut_off: bool = False
        self.goodbye: bool = False
        self.finishing: bool = False
        self.finish_by: float = 0.0
        self.reason: str = ""
        self.serves_all: bool = False
        self.info: object = None
        self.told_pid: bytes = b""

    def reading(self) -> int:
        """A client is read unless it waits with a lot to say already, or one of the ways is blocked."""
        if self.finishing:
            return EPOLLIN
        if self.unsent_size > HIGH_WATER:
            return EPOLLRDHUP
        backend = self.backend
        if backend is not None and backend.unsent_size > HIGH_WATER:
            return EPOLLRDHUP
        if len(self.held) > HELD_MOST:
            return EPOLLRDHUP
        return EPOLLIN | EPOLLRDHUP

    def event(self, mask: int) -> None:
        """Serve the client's socket."""
        if mask & EPOLLIN:
            self.buffered()
        elif mask & ~EPOLLOUT:
            self.hang_up("the client closed the connection")
            return
        if mask & EPOLLOUT and self.polled:
            self._drain()

    def buffered(self) -> None:
        """Read once and go on from there."""
        data = self.read()
        if data is None:
            return
        if len(data) == 0 or self.finishing:
            if len(data) == 0:
                self.hang_up("the client closed the connection")
            return
        self.pool.counters.bytes_from_clients += len(data)
        if len(self.held) != 0:
            data = self.held + data
            self.held = b""
        if self.waiter is not None or self.feeding or self.front.found != FOUND_NOTHING:
            self._hold(data)
            return
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Take the client's next bytes, from the beginning of a message or from within one."""
        self.feeding = True
        while len(data) != 0:
            backend = self.backend
            if backend is None or self.front.is_discarding():
                data = self._without_backend(data)
                if len(data) == 0:
                    if backend is not None:
                        backend.try_release()
                    break
            if backend is None:
                backend = None if self._must_refuse(data) else self._acquire(data)
                if backend is None:
                    data = self._after_refusal()
                    continue
            if backend.state.swallowing_own or backend.state.halted:
                self._hold(data)
                break
            data = self._forward(backend, data)
        self.feeding = False

    def pin_names(self) -> tuple[str, ...]:
        """Name the reasons for which this client keeps its backend now."""
        backend = self.backend
        # There, PIN_SET is a mark: a SET that is still to be read, and then most often follows its client.
        return pin_names(self.front.pins | (0 if backend is None else backend.state.pins & ~PIN_SET))

    def switch_refused(self, message: bytes) -> None:
        """The server has refused this client's settings, and is closed: try another once, the fault may be its own."""
        self.refused_switches += 1
        if self.refused_switches == 1:
            self.resume()
            return
        self.finish(
            self.host.farewell(self, TOLD_SETTING_REFUSED, sqlstate_text(message)),
            "its settings were refused",
            self.selector.now + FAREWELL_TIME,
        )

    def granted(self, backend: BackendLink) -> None:
        """Take the backend that this client waited for."""
        self.waiter = None
        self._link(backend)
        if not self.feeding:
            self.resume()

    def refused(self, message: bytes) -> None:
        """Take note that there will be no backend for the request in hand; `message` is an ErrorResponse."""
        self.waiter = None
        self.refusal = message
        if not self.feeding:
            self.feed(self._after_refusal())
            if self.polled:
                self.watch()

    def resume(self) -> None:
        """Go on with what was held back."""
        data = self.held
        self.held = b""
        if data:
            self.feed(data)
        if self.polled:
            self.watch()

    def finish(self, message: bytes, reason: str, until: float) -> None:
        """End the session with a last message; the socket is closed when the client has closed, or at `until`.

        There is no last message within another one, of which it would seem to be the rest.
        """
        if self.finishing or not self.polled:
            return
        self.reason = reason
        self._leave_backend()
        self.finishing = True
        self.host.client_finishing(self)
        self.finish_by = until
        self.held = b""
        if message and not self.cut_off:
            self.write(message)
        if self.unsent is None:
            self.end_writing()
        self.watch()

    def close(self, reason: str) -> None:
        """End the session at once."""
        if not self.polled:
            return
        self._leave_backend()
        self.close_socket()
        self.host.client_gone(self, self.reason or reason)

    def contain(self, error: BaseException) -> None:
        """Close this client and its backend after an exception in the relay's code."""
        self.host.internal_error(self, error)
        self.feeding = False
        backend = self.backend
        if backend is not None:
            self.part(backend)
            backend.drop("an internal error")
        if not self.finishing:
            until = self.selector.now + FAREWELL_TIME
            try:
                self.finish(self.host.farewell(self, TOLD_INTERNAL, ""), "internal error", until)
            except Exception as second:  # noqa: BLE001 - it would stay on the books for ever
                self.host.internal_error(self, second)
            else:
                return
        self.close("internal error")

    def _without_backend(self, data: bytes) -> bytes:
        """Deal with what needs no backend; the answer is empty, or begins with a message that needs one."""
        front = self.front
        if front.begins_request(data):
            return data
        while True:
            dropped = front.discard(data)
            if dropped:
                data = data[dropped:]
            if not data:
                return b""
            fault = front.fault_of(data) if len(data) >= 5 else ""
            if fault:
                self._fault(fault)
                return b""
            if not front.whole(data):
                self._hold(data)
                return b""
            if data[0] == F_TERMINATE:
                self.close("the client disconnected")
                return b""
            if not front.skip_to_sync:
                return data
            if not front.ends_skipping(data):
                return data
            self.write(READY_IDLE)
            data = data[5:]

    def _acquire(self, data: bytes) -> BackendLink | None:
        """Take the pool's own idle backend, or ask; None when the client waits (`held`) or was refused."""
        pool = self.pool
        if pool.flags & ~FLAG_MODE == 0 and pool.idle:
            entry = pool.idle.pop()
            entry.state = ACTIVE
            backend = link_of(entry)
            self._link(backend)
            return backend
        self.held = data
        self.host.want_backend(self)
        linked = self.backend
        if linked is not None:
            self.held = b""
        return linked

    def _must_refuse(self, data: bytes) -> bool:
        """Refuse in advance what is known to leave state in the session, where the tenant's policy is to reject it."""
        if self.pool.state_policy != POLICY_REJECT or self.mode == MODE_SESSION:
            return False
        pins = self.front.state_in_advance(data)
        if pins:
            self.held = data
            self.refusal = self.host.farewell(self, TOLD_STATE_REFUSED, ", ".join(pin_names(pins)))
        return pins != 0

    def _after_refusal(self) -> bytes:
        """Answer a refused request; the answer is what follows it, or empty when the client goes on waiting."""
        message = self.refusal
        if message is None:
            return b""
        self.refusal = None
        data = self.held
        self.held = b""
        if not data or not self.polled:
            return b""
        self.write(message)
        data = data[self.front.refuse(data) :]
        if self.front.answered:
            self.write(READY_IDLE)
        return data

    def _link(self, backend: BackendLink) -> None:
        self.backend = backend
        backend.client = self
        self.linked_at = self.selector.now
        if backend.applied is not self.parameters:
            backend.apply(self.parameters)

    def _forward(self, backend: BackendLink, data: bytes) -> bytes:
        """Forward what may be forwarded; the answer is empty unless the backend was released with more to do."""
        front = self.front
        state = backend.state
        count = front.scan(data, state)
        if len(front.texts.concerns) != 0:
            self.host.concerns_node(backend, front.texts.concerns)
            front.texts.concerns = []
        if front.desk.pieces is not None:
            backend.write(front.desk.rewritten(data, count))
            data = data[count:]
        elif count == len(data):
            backend.write(data)
            data = b""
        elif count:
            backend.write(data[:count])
            data = data[count:]
        if backend.broken:
            backend.hear_out()
            return b"" if self.finishing or not self.polled else data
        if front.found != FOUND_NOTHING:
            self._found(backend, data)
            return b""
        if front.desk.need != NEED_NOTHING:
            return self._attend(backend, data)
        if len(data) != 0:
            self._hold(data)
        if backend.unsent_size > HIGH_WATER:
            self.watch()
        if state.head == len(state.queue):
            backend.try_release()
        return b""

    def _attend(self, backend: BackendLink, data: bytes) -> bytes:
        """See to what the message at the beginning of `data` needs of a prepared statement before it can go on."""
        desk = self.front.desk
        if desk.need == NEED_ERROR:
            backend.write(desk.fail(backend.state, self.host.result_type_changed(self)))
            return data
        if desk.need == NEED_COPY:
            self.pool.counters.prepared_again += 1
        self._hold(data)
        backend.write(desk.attend(backend.state))
        return b""

    def _found(self, backend: BackendLink, data: bytes) -> None:
        """End the session at what the scan has found, once everything before it is answered."""
        # What is held keeps the backend from being released.
        self._hold(data)
        if not backend.state.will_answer():
            self.end_as_found()

    def end_as_found(self) -> None:
        """End the session at what the scan has found."""
        front = self.front
        if front.found == FOUND_TERMINATE:
            backend = self.backend
            if backend is not None and (backend.state.owes() or backend.state.doubt):
                # When all is answered only the server knows: it closes then, and `BackendLink.lost` follows.
                if not self.goodbye:
                    self.goodbye = True
                    mark_obsolete(backend.entry)
                    backend.write(TERMINATE)
                return
            self.close("the client disconnected")
        else:
            self._fault(front.fault)

    def _fault(self, text: str) -> None:
        self.finish(
            self.host.farewell(self, TOLD_FAULT, text),
            "protocol violation",
            self.selector.now + FAREWELL_TIME,
        )

    def _hold(self, data: bytes) -> None:
        self.held = data
        if len(data) > HELD_MOST:
            self.watch()

    def _drain(self) -> None:
        self.flush()
        if self.broken:
            self.hang_up("the client closed the connection")
            return
        if self.finishing and self.unsent is None:
            self.end_writing()
            return
        if self.unsent_size <= LOW_WATER:
            backend = self.backend
            if backend is not None:
                backend.watch()
            self.watch()

    def hang_up(self, reason: str) -> None:
        """The client is gone; what it asked for before a Terminate is still to be done."""
        backend = self.backend
        if self.front.found == FOUND_TERMINATE and backend is not None and backend.state.owes():
            self.part(backend)
            backend.leave()
        self.close(reason)

    def _leave_backend(self) -> None:
        """Part from the backend or the queue: a clean backend goes back, any other is closed."""
        if self.waiter is not None:
            self.host.stop_waiting(self)
            self.waiter = None
        backend = self.backend
        if backend is None:
            return
        dirty = (self.front.pins | backend.state.pins) & PINS_DIRTY != 0
        clean = backend.between_transactions() and self.front.left == 0
        self.part(backend)
        if backend.state.only_owes_own() and self.front.left == 0:
            # Its own statement will be answered without anybody's help.
            backend.leaving = True
            self.host.left_settling(backend)
            return
        if not clean:
            self.host.discard(backend, "its client left in the middle of something")
            return
        if dirty or self.mode == MODE_SESSION or self.pool.reset_always:
            backend.entry.flags |= FLAG_DIRTY
        self.host.give_back(backend)

    def part(self, backend: BackendLink) -> None:
        self.backend = None
        backend.client = None
        backend.mid_message = self.front.left != 0
        self.cut_off = backend.state.left != 0 and not backend.state.swallowing
        if backend.mask != EPOLLIN | EPOLLRDHUP:
            # It may have waited for this client to take what there is.
            backend.watch()
        if self.counted_pins:
            self.host.pins_changed(self, 0)
