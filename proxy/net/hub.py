"""Where links, pools and the mailbox meet: carries out the driver's wishes on links, and the links' on the driver.

Everything here runs inside `select()` as well as in coroutines, so it never calls the loop: what needs a coroutine
(opening a backend, sending a cancel request, a log line) is put into the selector's mailbox as a `Mail`.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

import traceback
from typing import Final

from proxy.errors import (
    BACKEND_LOGIN_FAILED,
    BACKEND_LOST,
    INTERNAL,
    INVALID_OPTIONS,
    POOL_PINNED,
    PROTOCOL_VIOLATION,
    QUEUE_TIMEOUT,
    RESULT_TYPE_CHANGED,
    SERVER_DOWN,
    SESSION_STATE_LEFT,
    SESSION_STATE_REFUSED,
    STATEMENT_MODE_TRANSACTION,
    TERMINATED,
    TOO_MANY_WAITING,
    Failure,
    Severity,
)
from proxy.net.backend_link import TERMINATE, BackendLink, link_of
from proxy.net.client_link import ClientLink
from proxy.net.failures import error_response
from proxy.net.link_host import (
    FAREWELL_TIME,
    TOLD_BACKEND_LOST,
    TOLD_FAULT,
    TOLD_SETTING_REFUSED,
    TOLD_STATE_LEFT,
    TOLD_STATE_REFUSED,
    TOLD_STATEMENT_MODE,
    LinkHost,
)
from proxy.net.pipe_link import Seat
from proxy.net.probe import Claim, Probe
from proxy.net.relay_loop import RelaySelector
from proxy.net.stream import Stream
from proxy.pool.allocator import REFUSED_HELD_BACK, REFUSED_QUEUE_FULL, REFUSED_SERVER_DOWN, REFUSED_TIMEOUT
from proxy.pool.ledger import (
    FLAG_DIRTY,
    RESETTING,
    WAIT_NAMES,
    BackendEntry,
    NodeLedger,
    PoolLedger,
    Waiter,
    mark_obsolete,
)
from proxy.pool.pool import NEVER, Effects, PoolDriver
from proxy.pool.tenancy import PASSED
from proxy.routing.verdict import service_failure
from proxy.session.node_statements import databases_to_leave
from proxy.session.parameters import ParameterSet, ParameterTable
from proxy.session.pins import NAMES, pin_names

MAIL_OPEN: Final = 1
MAIL_CANCEL: Final = 2
MAIL_CLIENT_GONE: Final = 3
MAIL_BACKEND_GONE: Final = 4
MAIL_PROBED: Final = 5
MAIL_ERROR: Final = 6
MAIL_STATUS_CHANGED: Final = 7
MAIL_CLOSED: Final = 8
MAIL_SEATED: Final = 9
MAIL_PINNED: Final = 10
MAIL_REFUSED: Final = 11
MAIL_ROLES_CHANGED: Final = 12

SETTLE_TIME: Final = 30.0
"""Seconds that a server has for a statement of the proxy's own while no client waits with it: DISCARD ALL, settings."""

TIMEOUTS: Final = (
    "query_timeout",
    "transaction_timeout",
    "idle_transaction_timeout",
    "client_idle_timeout",
    "queue_wait_timeout",
    "login_timeout",
    "connect_timeout",
)
"""The time limits that are counted, by the names of their settings."""

KEY_REFUSED_STATE: Final = "28P01"
KEY_REFUSED: Final = f"SQLSTATE {KEY_REFUSED_STATE}"
"""The refusal of a server that does not take the key of a role that passes through."""


class Mail:
    """Something for the coroutine side to do; `subject` is what the kind says, `text` a reason."""

    def __init__(self, kind: int, subject: object, text: str = "") -> None:
        self.kind = kind
        self.subject = subject
        self.text = text


class Hub(Effects, LinkHost):
    """All links of one node."""

    def __init__(self, selector: RelaySelector, node: NodeLedger, foreign_wait: float) -> None:
        self.selector = selector
        self.node = node
        self.driver = PoolDriver(node, self, foreign_wait)
        self.table = ParameterTable()
        self.pins: dict[str, int] = {name: 0 for _, name in NAMES}
        self.internal_errors = 0
        self.timeouts: dict[str, int] = dict.fromkeys(TIMEOUTS, 0)
        self.finishing: dict[ClientLink, None] = {}
        self.settling: dict[BackendLink, float] = {}

    def post(self, kind: int, subject: object, text: str = "") -> None:
        """Leave something for the coroutine side."""
        self.selector.mailbox.append(Mail(kind, subject, text))

    def count_timeout(self, limit: str) -> None:
        """Count that a time limit was over for somebody; `limit` is one of `TIMEOUTS`."""
        self.timeouts[limit] += 1

    # What the driver asks.

    def open(self, entry: BackendEntry) -> None:
        """See `Effects`."""
        self.post(MAIL_OPEN, entry)

    def close(self, entry: BackendEntry, reason: str) -> None:
        """See `Effects`.  A server that is still busy is sent a cancel request, so that it notices."""
        link = link_of(entry)
        self.settling.pop(link, None)
        self._end_task(link, reason)
        if not link.polled:
            return
        if link.state.owes():
            link.cancel_rest()
        elif link.unsent is None and not link.mid_message:
            # Inside a message these bytes would become the end of it.
            link.write(TERMINATE)
        if not link.says_rest:
            link.end_writing()
        link.watch()

    def reset(self, entry: BackendEntry) -> None:
        """See `Effects`."""
        link = link_of(entry)
        self.settling[link] = self.selector.now
        link.reset()

    def grant(self, waiter: Waiter, entry: BackendEntry) -> None:
        """See `Effects`.  A fault in the new owner is its own, not that of whoever released the backend."""
        link = link_of(entry)
        owner = waiter.owner
        if isinstance(owner, ClientLink):
            try:
                owner.granted(link)
            except Exception as error:  # noqa: BLE001 - it must not close the client whose release granted
                owner.contain(error)
        elif isinstance(owner, Probe):
            owner.begin(link)
            link.task = owner
            self.settling[link] = self.selector.now
            link.apply(owner.parameters)
            if not link.state.swallowing_own:
                self.settled(link)
        elif isinstance(owner, Seat):
            owner.take(link)
            self.post(MAIL_SEATED, owner)

    def refuse(self, waiter: Waiter, reason: int) -> None:
        """See `Effects`."""
        failure = self.refusal(waiter, reason)
        if reason == REFUSED_TIMEOUT:
            self.count_timeout("queue_wait_timeout")
        waiter.pool.counters.count_error(failure.sqlstate)
        owner = waiter.owner
        if isinstance(owner, ClientLink):
            try:
                if failure.severity is Severity.FATAL:
                    owner.waiter = None
                    owner.finish(error_response(failure), failure.spec.name, self.selector.now + FAREWELL_TIME)
                else:
                    owner.refused(error_response(failure))
                    if reason != REFUSED_SERVER_DOWN:
                        self.post(MAIL_REFUSED, (owner, failure))
            except Exception as error:  # noqa: BLE001 - as in `grant`
                owner.contain(error)
        elif isinstance(owner, Probe):
            owner.fail(failure)
            self.post(MAIL_PROBED, owner)
        elif isinstance(owner, Seat):
            owner.fail(failure)
            self.post(MAIL_SEATED, owner)

    def refusal(self, waiter: Waiter, reason: int) -> Failure:
        """Say in the words of the error table why there is no backend."""
        pool = waiter.pool
        tenant = pool.tenant
        if reason == REFUSED_HELD_BACK:
            return held_back(pool)
        if reason == REFUSED_QUEUE_FULL:
            return Failure(TOO_MANY_WAITING, tenant=tenant.slug, limit=tenant.max_waiting)
        if reason == REFUSED_SERVER_DOWN:
            if pool.login_refused == KEY_REFUSED and pool.key[1].startswith(PASSED):
                return Failure(TERMINATED, reason=f'the password of role "{pool.role}" has changed')
            if pool.login_refused:
                return Failure(BACKEND_LOGIN_FAILED, tenant=tenant.slug, reason=pool.login_refused)
            return Failure(SERVER_DOWN, tenant=tenant.slug, reason=pool.last_error or "the last connection failed")
        seconds = pool.queue_wait_timeout
        if tenant.held > 0 and pool.pinned >= tenant.pool_size:
            return Failure(
                POOL_PINNED, tenant=tenant.slug, seconds=seconds, pinned=pool.pinned, pool_size=tenant.pool_size
            )
        return Failure(
            QUEUE_TIMEOUT, tenant=tenant.slug, seconds=seconds, reason=f"it waited for {WAIT_NAMES[waiter.reason]}"
        )

    # What the links ask.

    def want_backend(self, client: ClientLink) -> None:
        """See `LinkHost`."""
        pool = client.pool
        now = self.selector.now
        waiter = Waiter(pool, now, now + pool.queue_wait_timeout if pool.queue_wait_timeout else NEVER, client)
        client.waiter = waiter
        self.driver.request(waiter, now)

    def concerns_node(self, backend: BackendLink, texts: list[bytes]) -> None:
        """See `LinkHost`."""
        client = backend.client
        assert client is not None
        tenant = None if client.serves_all else client.pool.tenant
        for text in texts:
            for name in databases_to_leave(text):
                self.driver.leave(backend.entry, name.decode("utf-8", "replace"), tenant, self.selector.now)

    def stop_waiting(self, client: ClientLink) -> None:
        """See `LinkHost`."""
        waiter = client.waiter
        if waiter is not None:
            self.driver.abandon(waiter)

    def give_back(self, backend: BackendLink) -> None:
        """See `LinkHost`."""
        self.settling.pop(backend, None)
        self.driver.release(backend.entry, self.selector.now)

    def cancel_closing(self, backend: BackendLink) -> None:
        """See `LinkHost`."""
        self.post(MAIL_CANCEL, backend.entry)

    def discard(self, backend: BackendLink, reason: str) -> None:
        """See `LinkHost`."""
        self.driver.close(backend.entry, reason, self.selector.now)

    def backend_gone(self, backend: BackendLink, reason: str) -> None:
        """See `LinkHost`."""
        entry = backend.entry
        self.settling.pop(backend, None)
        if entry.close_reason:
            self.post(MAIL_CLOSED, entry)
        else:
            entry.close_reason = reason
            self.post(MAIL_BACKEND_GONE, entry)
        self._end_task(backend, reason)
        self.driver.closed(entry, self.selector.now)

    def client_gone(self, client: ClientLink, reason: str) -> None:
        """See `LinkHost`."""
        self.finishing.pop(client, None)
        self.post(MAIL_CLIENT_GONE, client, reason)

    def client_finishing(self, client: ClientLink) -> None:
        """See `LinkHost`."""
        self.finishing[client] = None

    def left_settling(self, backend: BackendLink) -> None:
        """See `LinkHost`."""
        self.settling[backend] = self.selector.now

    def settled(self, backend: BackendLink) -> None:
        """See `LinkHost`."""
        entry = backend.entry
        self.settling.pop(backend, None)
        error = backend.state.swallowed_error
        backend.state.swallowed_error = b""
        task = backend.task
        if isinstance(task, Probe):
            task.end(backend, error)
            self.post(MAIL_PROBED, task)
            if isinstance(task, Claim) and not error and not task.given_up:
                return
            backend.task = None
            if error:
                # Some of the settings may have taken effect.
                backend.entry.flags |= FLAG_DIRTY
            self.driver.release(entry, self.selector.now)
        elif error:
            self.driver.close(entry, "it refused DISCARD ALL", self.selector.now)
        elif entry.state == RESETTING:
            self.driver.reset_done(entry, self.selector.now)

    def roles_changed(self, backend: BackendLink) -> None:
        """See `LinkHost`."""
        self.post(MAIL_ROLES_CHANGED, backend.entry)

    def status_changed(self, backend: BackendLink) -> None:
        """See `LinkHost`."""
        self.post(MAIL_STATUS_CHANGED, backend.entry)

    def pins_changed(self, client: ClientLink, pins: int) -> None:
        """See `LinkHost`."""
        before = client.counted_pins
        client.counted_pins = pins
        for bit, name in NAMES:
            if (before ^ pins) & bit:
                self.pins[name] += 1 if pins & bit else -1
        if not before:
            client.pool.pinned += 1
        elif not pins:
            client.pool.pinned -= 1
        fresh = pins & ~client.ever_pinned
        if fresh:
            client.ever_pinned |= fresh
            self.post(MAIL_PINNED, client, ", ".join(pin_names(fresh)))

    def intern(self, pairs: tuple[tuple[bytes, bytes], ...]) -> ParameterSet:
        """See `LinkHost`."""
        return self.table.intern(pairs)

    def farewell(self, client: ClientLink, why: int, text: str) -> bytes:
        """See `LinkHost`."""
        slug = client.pool.tenant.slug
        if why == TOLD_BACKEND_LOST:
            failure = Failure(BACKEND_LOST)
        elif why == TOLD_FAULT:
            failure = Failure(PROTOCOL_VIOLATION, reason=text)
        elif why == TOLD_STATEMENT_MODE:
            failure = Failure(STATEMENT_MODE_TRANSACTION, tenant=slug)
        elif why == TOLD_STATE_REFUSED:
            failure = Failure(SESSION_STATE_REFUSED, tenant=slug, reason=text)
        elif why == TOLD_STATE_LEFT:
            failure = Failure(SESSION_STATE_LEFT, tenant=slug, reason=text)
        elif why == TOLD_SETTING_REFUSED:
            failure = Failure(INVALID_OPTIONS, reason=text)
        else:
            failure = Failure(INTERNAL)
        client.pool.counters.count_error(failure.sqlstate)
        return error_response(failure)

    def result_type_changed(self, client: ClientLink) -> bytes:
        """See `LinkHost`."""
        failure = Failure(RESULT_TYPE_CHANGED)
        client.pool.counters.count_error(failure.sqlstate)
        # asyncpg, postgres.js and pgjdbc prepare again when it is this routine that complains.
        return error_response(failure, routine="RevalidateCachedQuery")

    def internal_error(self, link: Stream, error: BaseException) -> None:
        """See `LinkHost`."""
        self.internal_errors += 1
        self.post(MAIL_ERROR, link, "".join(traceback.format_exception(error)))

    # What the coroutine side asks.

    def backend_ready(self, link: BackendLink) -> None:
        """Take a backend into service that has just logged in."""
        entry = link.entry
        entry.link = link
        link.defaults = {name.lower(): value for name, value in link.state.params.items()}
        self.selector.add(link, link.reading())
        if entry.generation != entry.pool.generation or entry.server is not entry.pool.server:
            mark_obsolete(entry)
        self.driver.opened(entry, self.selector.now)

    def give_up(self, claim: Claim) -> None:
        """Give a backend back that no client has come for; one that is still busy with the settings follows later."""
        claim.given_up = True
        backend = claim.backend
        if claim.done and backend is not None:
            claim.backend = None
            backend.task = None
            self.driver.release(backend.entry, self.selector.now)

    def sweep(self, now: float) -> None:
        """Close clients that do not take their last message, and backends that do not answer the proxy's own words."""
        for client in list(self.finishing):
            if client.finish_by <= now:
                client.close("it did not close in time")
        for backend, since in list(self.settling.items()):
            if since + SETTLE_TIME <= now:
                self.driver.close(backend.entry, "it did not answer a statement of the proxy's own in time", now)

    def terminate(self, client: ClientLink, failure: Failure) -> None:
        """End a client's session with an error."""
        client.finish(error_response(failure), failure.spec.name, self.selector.now + FAREWELL_TIME)

    def cancel_queued(self, client: ClientLink, failure: Failure) -> bool:
        """Refuse what a client has asked for and no server has seen yet; False when there is nothing of the kind.

        It waits for a backend, or for its own settings to be made on one, which nobody has asked to be cancelled.
        """
        waiter, backend = client.waiter, client.backend
        if waiter is not None:
            if not self.driver.abandon(waiter):
                return False
        elif backend is None or backend.switching is None or not client.front.whole(client.held):
            return False
        client.refused(error_response(failure))
        return True

    def _end_task(self, link: BackendLink, reason: str) -> None:
        task = link.task
        if isinstance(task, Probe):
            link.task = None
            task.fail(Failure(SERVER_DOWN, tenant=link.entry.pool.tenant.slug, reason=reason))
            self.post(MAIL_PROBED, task)


def held_back(pool: PoolLedger) -> Failure:
    """Say why a tenant is not served now."""
    route = pool.held_back_route
    failure = None if route is None else service_failure(route, route.role)
    return failure or Failure(TERMINATED, reason=f'tenant "{pool.tenant.slug}" was removed')
