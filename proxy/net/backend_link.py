"""A connection to a server: from its bytes to the client that is linked to it.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import i64

from proxy.net.link_host import (
    FAREWELL_TIME,
    MODE_STATEMENT,
    TOLD_BACKEND_LOST,
    TOLD_STATEMENT_MODE,
    LinkHost,
)
from proxy.net.relay_loop import EPOLLIN, EPOLLOUT, EPOLLRDHUP, RelaySelector
from proxy.net.settling import answered, discarded, keeps, restore, stays
from proxy.net.stream import HIGH_WATER, LOW_WATER, Stream
from proxy.pool.ledger import CLOSING, FLAG_DIRTY, IDLE, BackendEntry, mark_obsolete
from proxy.session.endings import readdressed
from proxy.session.parameters import ParameterSet, switch_statement
from proxy.session.pins import PIN_SESSION, PIN_SET, REPORTED, TO_RESET
from proxy.session.relay import FOUND_NOTHING
from proxy.session.replies import BackState
from proxy.session.statements import question_messages
from proxy.session.tracked import MAX_ANSWER, Inquiry
from proxy.wire.framing import B_ERROR, B_NOTICE, B_PARAMETER_STATUS, STATUS_IDLE, STATUS_TRANSACTION

if TYPE_CHECKING:
    from proxy.net.client_link import ClientLink

TERMINATE: Final = b"X\x00\x00\x00\x04"
LAST_READS: Final = 32
"""Chunks read at most from a server that has closed."""
_READY_HEADER: Final = b"Z\x00\x00\x00\x05"


class BackendLink(Stream):
    """A connection to a server that has logged in."""

    def __init__(
        self,
        host: LinkHost,
        selector: RelaySelector,
        sock: Any,
        entry: BackendEntry,
        plain: ParameterSet,
        max_statements: int = 0,
    ) -> None:
        super().__init__(selector, sock)
        self.host: LinkHost = host
        self.entry: BackendEntry = entry
        self.state: BackState = BackState(max_statements)
        self.client: ClientLink | None = None
        self.held: bytes = b""
        self.plain: ParameterSet = plain
        self.applied: ParameterSet = plain
        self.defaults: dict[bytes, bytes] = {}
        self.switching: ParameterSet | None = None
        self.inquiry: Inquiry | None = None
        self.leaving: bool = False
        self.says_rest: bool = False
        self.awaits_cancel: bool = False
        self.pid: int = 0
        self.mid_message: bool = False
        self.last_words: str = ""
        self.task: object = None

    def introduce(self, pid: int) -> None:
        """Take note of the process id that the server has told; 0 is none."""
        self.pid = pid
        self.state.pid = pid.to_bytes(4, "big") if pid else b""

    def reading(self) -> int:
        """A backend is read always, except while its client does not take what there is."""
        client = self.client
        if client is not None and client.unsent_size > HIGH_WATER:
            return 0
        return EPOLLIN | EPOLLRDHUP

    def event(self, mask: int) -> None:
        """Serve the backend's socket."""
        if mask & ~EPOLLOUT:
            self.buffered()
        if mask & EPOLLOUT and self.polled:
            self._drain()

    def buffered(self) -> None:
        """Read once and pass it on."""
        data = self.read()
        if data is None:
            return
        if len(data) == 0:
            self.lost("the server closed the connection")
            return
        if self.entry.state >= CLOSING:
            if self.awaits_cancel:
                self._read_on(data)
            return
        if len(self.held) != 0:
            data = self.held + data
            self.held = b""
        client = self.client
        if client is None:
            self._unattended(data)
            return
        self._attended(client, data)

    def _attended(self, client: ClientLink, data: bytes) -> None:
        """Pass on what the server says to the client that is linked to it."""
        state = self.state
        farewell = b""
        count = state.scan(data, 0)
        if len(state.notified) != 0:
            data = readdressed(data, state.notified, client.told_pid)
        if count == len(data) and not state.swallowing:
            if client.mode == MODE_STATEMENT:
                data = self._without_ready(data)
            client.write(data)
            client.pool.counters.bytes_to_clients += count
        else:
            farewell = self._pieces(client, data, count)
        if len(state.fault) != 0:
            self._fault(client)
            return
        if state.remarks:
            self._remarks(client)
        if client.broken:
            client.hang_up("the client closed the connection")
            return
        if state.head == len(state.queue):
            self.try_release()
        if len(farewell) != 0 and self.client is client:
            # It is for the client that keeps this backend, and for nobody else.
            self._attended(client, farewell)
            return
        if client.unsent_size > HIGH_WATER:
            self.watch()
            client.watch()

    def try_release(self) -> None:
        """Give this backend back, if the relay rules allow it, and let its client go on without."""
        state = self.state
        client = self.client
        if client is None or len(self.held) != 0 or self.unsent is not None:
            return
        front = client.front
        if state.status != STATUS_IDLE and client.mode == MODE_STATEMENT and not state.open_batch:
            client.finish(
                self.host.farewell(client, TOLD_STATEMENT_MODE, ""),
                "a transaction in statement mode",
                self.selector.now + FAREWELL_TIME,
            )
            return
        if not state.releasable() or front.left or len(client.held) != 0:
            if front.found != FOUND_NOTHING and not client.finishing:
                client.end_as_found()
            elif state.pins & (TO_RESET | PIN_SET) and state.status == STATUS_TRANSACTION and client.startup.pairs:
                restore(self, client)
            return
        if (front.pins or state.pins) and keeps(self, client):
            if self.inquiry is None:
                self._stay_pinned(client)
            return
        client.part(self)
        now = self.selector.now
        pool = client.pool
        counters = pool.counters
        counters.transactions += 1
        counters.queries += state.queries
        state.queries = 0
        counters.transaction_times.add(now - client.linked_at)
        entry = self.entry
        if entry.flags | pool.flags | entry.server.flags == 0:
            entry.state = IDLE
            entry.since = now
            pool.idle.append(entry)
        else:
            if pool.reset_always:
                entry.flags |= FLAG_DIRTY
            self.host.give_back(self)

    def between_transactions(self) -> bool:
        """Say whether nothing is outstanding and nothing half done, so that it may serve somebody else."""
        return self.state.releasable() and not self.held and self.unsent is None

    def apply(self, parameters: ParameterSet) -> None:
        """Bring the session's settings in line with these; `state.swallowing_own` is set until that is done."""
        statement = switch_statement(self.applied, parameters)
        if statement:
            self.switching = parameters
            self.run_own(statement)
        else:
            self.applied = parameters

    def reset(self) -> None:
        """Begin DISCARD ALL; `LinkHost.settled` follows."""
        self.switching = self.plain
        self.state.pins = 0
        self.state.before.clear()
        self.state.unnamed_owner = 0
        self.state.shelf.clear()
        self.run_own(b"DISCARD ALL")

    def run_own(self, statement: bytes) -> None:
        """Send a statement of the proxy's own, whose replies nobody else sees."""
        self.state.inject_query()
        self.write(b"Q" + (len(statement) + 5).to_bytes(4, "big") + statement + b"\0")

    def ask_gently(self, statement: bytes) -> None:
        """Do the same, and leave the client its unnamed statement and portal, which a Query would end."""
        self.state.inject_question()
        self.write(question_messages(statement))

    def cancel_rest(self) -> None:
        """Cancel what the server still does for nobody, as soon as that is the last request it has.

        If it were an earlier one, such as BEGIN, those behind it would be carried out, and outside of any transaction.
        """
        self.awaits_cancel = not self.state.fault and not self.state.does_its_last()
        if not self.awaits_cancel:
            self.host.cancel_closing(self)

    def _read_on(self, data: bytes) -> None:
        """Follow the replies that nobody waits for any more."""
        state = self.state
        data = self.held + data
        self.held = b""
        pos: i64 = 0
        while pos < len(data):
            count = state.scan(data, pos)
            if count == 0 or state.fault:
                break
            pos += count
        self.held = data[pos:]
        if state.fault or not state.owes():
            self.awaits_cancel = False
        else:
            self.cancel_rest()

    def leave(self) -> None:
        """Say Terminate behind what the server is still doing or has yet to take, and close without cancelling it."""
        self.write(TERMINATE)
        self.says_rest = self.unsent is not None
        self.state.queue.clear()
        self.state.head = 0
        self.host.discard(self, "its client disconnected in the middle of a transaction")

    def lost(self, reason: str) -> None:
        """The server has closed, or cannot be understood any more."""
        client = self.client
        self.close_socket()
        if client is not None:
            client.part(self)
        self.host.backend_gone(self, self.last_words or reason)
        if client is not None:
            # A server that says why it closes (FATAL) has told the client itself, and who says goodbye needs no reason.
            told = self.state.fatal or client.goodbye
            message = b"" if told else self.host.farewell(client, TOLD_BACKEND_LOST, reason)
            ending = "the client disconnected" if client.goodbye else "its backend was lost"
            client.finish(message, ending, self.selector.now + FAREWELL_TIME)

    def hear_out(self) -> None:
        """End the link when the server takes nothing more, and pass on before what it has said last, such as why."""
        mark_obsolete(self.entry)
        for _ in range(LAST_READS):
            if not self.polled or self.entry.state >= CLOSING:
                return
            self.buffered()
        self.lost("the server closed the connection")

    def contain(self, error: BaseException) -> None:
        """Close this backend and its client after an exception in the relay's code."""
        client = self.client
        if client is not None:
            client.contain(error)
            return
        self.host.internal_error(self, error)
        self.drop("an internal error")

    def drop(self, reason: str) -> None:
        """Close after an exception: at once, where closing in good order is what fails."""
        if self.entry.state < CLOSING:
            try:
                self.host.discard(self, reason)
            except Exception as error:  # noqa: BLE001 - its slot would never be free again
                self.host.internal_error(self, error)
            else:
                return
        if self.polled:
            self.lost(reason)

    def _without_ready(self, data: bytes) -> bytes:
        """Cut off the ReadyForQuery within a transaction, which statement mode refuses: see `try_release`.

        So the refusal is the statement's own error.  Behind a ReadyForQuery drivers would take it for a notice.
        """
        state = self.state
        if state.status == STATUS_IDLE or state.open_batch or state.head < len(state.queue):
            return data
        return data[:-6] if data[-6:-1] == _READY_HEADER else data

    def _pieces(self, client: ClientLink, data: bytes, count: i64) -> bytes:
        """Pass on a chunk of which not all is for the client, or not all can be judged yet.

        The answer is what a server that closes has said behind the end of a transaction, if this is the end of the link
        as well unless a pin holds.
        """
        state = self.state
        pos: i64 = 0
        while True:
            if count and not state.swallowing:
                client.write(data[pos : pos + count])
                client.pool.counters.bytes_to_clients += count
            elif count and self.inquiry is not None:
                self._hear(self.inquiry, data[pos : pos + count])
            pos += count
            if state.answer:
                client.write(client.front.desk.told(state.answer))
                state.answer = b""
            if pos == len(data) or count == 0 or state.fault:
                break
            if data[pos] == B_ERROR and self._may_part(client):
                mark_obsolete(self.entry)
                return data[pos:]
            count = state.scan(data, pos)
            if len(state.notified) != 0:
                data = readdressed(data, state.notified, client.told_pid)
        if pos < len(data):
            self.held = data[pos:]
        return b""

    def _hear(self, inquiry: Inquiry, data: bytes) -> None:
        """Keep a piece of the answer to the proxy's own question, unless it is absurdly long."""
        if len(inquiry.answer) + len(data) <= MAX_ANSWER:
            inquiry.answer += data

    def _may_part(self, client: ClientLink) -> bool:
        """Say whether `try_release` will part this backend from its client, unless a pin holds."""
        return self.state.releasable() and not (client.front.left or self.unsent or client.held)

    def _remarks(self, client: ClientLink) -> None:
        """Take up what a scan has noted besides what it forwarded."""
        state = self.state
        state.remarks = False
        state.params_changed = False
        for sqlstate in state.errors:
            client.pool.counters.count_error(sqlstate.decode("ascii", "replace"))
        state.errors.clear()
        client.front.heard(state)
        if state.discarded:
            discarded(self, client)
        if self.switching is not None and not state.swallowing_own:
            self._switched(client)
        elif self.inquiry is not None and not state.swallowing_own:
            answered(self, client)
            client.resume()
        if state.resumes():
            client.resume()
        if client.front.found != FOUND_NOTHING and not client.finishing and not state.will_answer():
            client.end_as_found()

    def _switched(self, client: ClientLink) -> None:
        """The settings are those of the client now, or the server has refused them."""
        state = self.state
        if state.swallowed_error:
            message = state.swallowed_error
            state.swallowed_error = b""
            self.switching = None
            client.part(self)
            self.host.discard(self, "it refused the settings of a client")
            client.switch_refused(message)
            return
        assert self.switching is not None
        self.applied = self.switching
        self.switching = None
        client.refused_switches = 0
        client.resume()

    def _unattended(self, data: bytes) -> None:
        """Read from a backend that has no client: an idle one may only say a Notice or a ParameterStatus."""
        state = self.state
        if not state.owes() and not self._only_reports(data):
            self.lost_while_idle(data)
            return
        pos: i64 = 0
        while pos < len(data):
            count = state.scan(data, pos)
            if count == 0 or state.fault:
                break
            pos += count
        if state.fault or (not state.swallowing_own and pos < len(data)):
            self.host.discard(self, state.fault or "an unfinished message from an idle server")
            return
        self.held = data[pos:]
        if state.pins & REPORTED:
            state.pins &= ~REPORTED
            self._note_defaults()
        if state.params_changed and not state.swallowing_own and self.switching is None:
            state.params_changed = False
            self.host.status_changed(self)
        state.remarks = False
        state.errors.clear()
        state.notified.clear()
        if self.leaving and not state.swallowing_own:
            self.leaving = False
            self.switching = None
            self.inquiry = None
            state.swallowed_error = b""
            self.entry.flags |= FLAG_DIRTY
            self.host.give_back(self)
        elif self.switching is not None and not state.swallowing_own:
            if not state.swallowed_error:
                self.applied = self.switching
            self.switching = None
            state.params_changed = False
            self.host.settled(self)

    def _note_defaults(self) -> None:
        """Take note of parameters that have changed although nobody has set them."""
        for name in self.state.before:
            if name.lower() not in self.applied.values:
                self.defaults[name.lower()] = self.state.params[name]
        self.state.before.clear()

    def _only_reports(self, data: bytes) -> bool:
        pos: i64 = 0
        end: i64 = len(data)
        while pos + 5 <= end:
            if data[pos] != B_NOTICE and data[pos] != B_PARAMETER_STATUS:
                return False
            pos += 1 + int.from_bytes(data[pos + 1 : pos + 5], "big")
        return pos == end

    def lost_while_idle(self, data: bytes) -> None:
        """An idle server said something else: keep its words for the log, and close."""
        if data[0] == B_ERROR:
            self.last_words = sqlstate_text(data)
        self.host.discard(self, self.last_words or "unexpected bytes from an idle server")

    def _fault(self, client: ClientLink) -> None:
        fault = self.state.fault
        client.part(self)
        self.host.discard(self, fault)
        client.finish(
            self.host.farewell(client, TOLD_BACKEND_LOST, fault),
            "its backend was lost",
            self.selector.now + FAREWELL_TIME,
        )

    def _stay_pinned(self, client: ClientLink) -> None:
        """The transaction is over and the client keeps its backend."""
        counters = client.pool.counters
        if self.state.queries:
            counters.transactions += 1
        counters.queries += self.state.queries
        self.state.queries = 0
        if not client.front.pins & PIN_SESSION:
            stays(self, client)

    def _drain(self) -> None:
        self.flush()
        if self.broken:
            self.hear_out()
            return
        if self.says_rest and self.unsent is None:
            self.says_rest = False
            self.end_writing()
        client = self.client
        if client is not None and self.unsent_size <= LOW_WATER:
            client.watch()
            if self.unsent is None and not self.state.owes():
                self.try_release()


def link_of(entry: BackendEntry) -> BackendLink:
    """The link of a backend that has logged in."""
    link = entry.link
    assert isinstance(link, BackendLink)
    return link


def sqlstate_text(message: bytes) -> str:
    """The SQLSTATE and text of an ErrorResponse, for a log line or the detail of another error."""
    fields: dict[str, str] = {}
    for field in message[5:].split(b"\0"):
        if field:
            fields[chr(field[0])] = field[1:].decode("utf-8", "replace")
    return f"{fields.get('M', 'unknown error')} ({fields.get('C', 'no SQLSTATE')})"
