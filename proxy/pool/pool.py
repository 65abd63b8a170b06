"""The driver: carries out what the allocator plans, and keeps the ledger true while doing so.

It knows no socket: what has to be done to one is asked of `Effects`, which the net room implements.  Every method
takes the time as an argument and returns at once; nothing here waits.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from proxy.pool.allocator import (
    CLOSE,
    GRANT,
    NOTHING,
    OPEN,
    PARK,
    QUEUE,
    REFUSE,
    REFUSED_HELD_BACK,
    REFUSED_SERVER_DOWN,
    RESET,
    Operation,
    plan_acquire,
    plan_growth,
    plan_release,
    plan_timeouts,
    plan_upkeep,
)
from proxy.pool.ledger import (
    ABANDONED,
    ACTIVE,
    CANCELLING,
    CLOSING,
    FLAG_CANCELLING,
    FLAG_CLEARS,
    FLAG_DIRTY,
    FLAG_HELD_BACK,
    FLAG_LEAVES,
    FLAG_OBSOLETE,
    FLAG_OVER_CAP,
    GONE,
    GRANTED,
    IDLE,
    LINGERING,
    RESETTING,
    WAITING,
    BackendEntry,
    NodeLedger,
    PoolLedger,
    ServerLedger,
    TenantLedger,
    Waiter,
    dequeue,
    enqueue,
    mark_obsolete,
    move,
    open_entry,
    waiters_of,
)

NEVER: Final = 1e18
LEAVE_TIME: Final = 6.0
"""Seconds at most for which a database is left: PostgreSQL waits for five that all others have disconnected."""
SPARES_AGAIN: Final = 15.0
"""Seconds after which `min_size` is tried for again with something that does not exist."""

# Whose fault it is that a backend could not be opened.
FAULT_SERVER: Final = 0
"""It cannot be reached, or serves nobody now."""
FAULT_LOGIN: Final = 1
"""It refused this pool's role, and serves others."""
FAULT_MISSING: Final = 2
"""It has no such role or database, which somebody may create at any moment."""


# Simulations implement this, uncompiled.
@mypyc_attr(allow_interpreted_subclasses=True)
class Effects:
    """What the driver asks of the room that has the sockets.  Only `grant` and `refuse` may call the driver back."""

    def open(self, entry: BackendEntry) -> None:
        """Begin to open a backend; `opened` or `open_failed` reports the end."""
        raise NotImplementedError

    def close(self, entry: BackendEntry, reason: str) -> None:
        """Begin to close a backend; `closed` reports when the server has closed too."""
        raise NotImplementedError

    def reset(self, entry: BackendEntry) -> None:
        """Begin DISCARD ALL; `reset_done` or the backend's loss reports the end."""
        raise NotImplementedError

    def grant(self, waiter: Waiter, entry: BackendEntry) -> None:
        """Hand a backend to a waiter.  An owner that is gone by now gives it back with `release`."""
        raise NotImplementedError

    def refuse(self, waiter: Waiter, reason: int) -> None:
        """Tell a waiter that it will not get a backend."""
        raise NotImplementedError


class PoolDriver:
    """Carries out the allocator's operations for one node.

    `foreign_wait` is the time in seconds after which a waiter of another tenant beats a younger one of the pool's
    own at a server's cap.
    """

    def __init__(self, node: NodeLedger, effects: Effects, foreign_wait: float) -> None:
        self.node = node
        self.effects = effects
        self.foreign_wait = foreign_wait
        self._next_ident = 1
        self._granting = False
        self._deferred: list[BackendEntry] = []
        self._left: dict[PoolLedger, BackendEntry] = {}

    def request(self, waiter: Waiter, now: float) -> None:
        """Ask for a backend; the answer is `Effects.grant` or `Effects.refuse`, at once or later."""
        operation = plan_acquire(self.node, waiter.pool, now)
        if operation.kind == GRANT:
            waiter.state = GRANTED
            assert operation.entry is not None
            self._hand_over(waiter, operation.entry, now)
        elif operation.kind == QUEUE:
            enqueue(self.node, waiter, operation.reason)
            self.grow(waiter.pool, now)
        else:
            waiter.state = ABANDONED
            self.effects.refuse(waiter, operation.reason)

    def abandon(self, waiter: Waiter) -> bool:
        """Take a waiter out of the queue; False when it had been granted or refused before."""
        if waiter.state != WAITING:
            return False
        dequeue(self.node, waiter, ABANDONED)
        return True

    def release(self, entry: BackendEntry, now: float) -> None:
        """Take a backend back that is between transactions and has nothing outstanding."""
        if self._granting:
            self._deferred.append(entry)
            return
        self._release(entry, now, self.foreign_wait)
        self._release_deferred(now)

    def opened(self, entry: BackendEntry, now: float) -> None:
        """Note that a backend has logged in and is ready."""
        entry.server.failures = 0
        entry.server.backoff_until = 0.0
        entry.pool.failures = 0
        entry.pool.backoff_until = 0.0
        entry.pool.spares_from = 0.0
        self._release(entry, now, NEVER)
        self._release_deferred(now)
        self._grow_server(entry.server, now)

    def open_failed(
        self,
        entry: BackendEntry,
        now: float,
        retry_at: float,
        text: str,
        fault: int,
        refusal: str = "",
    ) -> None:
        """Note that a backend could not be opened; nobody opens another before `retry_at`.

        `fault` is one of the FAULT constants, `refusal` how the server refused the login, if it did.
        Waiters of a pool that has no backend left are refused at once: they would only find out later.  Where the
        fault is FAULT_MISSING, those go on waiting who came when this attempt had begun: they may know better.
        """
        pool, server = entry.pool, entry.server
        whole_server = fault == FAULT_SERVER
        stale = entry.flags & FLAG_OBSOLETE != 0
        move(self.node, entry, GONE, now)
        server.connect_failures += 1
        server.last_error = text
        if not stale:
            pool.last_error = text
            pool.login_refused = "" if whole_server else refusal
            pool.awaits_creation = fault == FAULT_MISSING
            pool.spares_from = now + SPARES_AGAIN if pool.awaits_creation else 0.0
        if whole_server:
            server.failures += 1
            server.backoff_until = max(server.backoff_until, retry_at)
        elif not stale:
            pool.failures += 1
            pool.backoff_until = max(pool.backoff_until, retry_at)
        if whole_server or not stale:
            upto = entry.opened_at if fault == FAULT_MISSING else now
            for waiting in list(server.waiting_pools) if whole_server else [pool]:
                if waiting.useful() == 0:
                    self.refuse_waiters(waiting, REFUSED_SERVER_DOWN, upto)
        self._slot_freed(entry, now)

    def close(self, entry: BackendEntry, reason: str, now: float) -> None:
        """Close a backend, whatever it is doing; its slot stays taken until the server has closed as well."""
        if entry.state >= CLOSING:
            return
        move(self.node, entry, CLOSING, now)
        entry.close_reason = reason
        self.effects.close(entry, reason)

    def closed(self, entry: BackendEntry, now: float) -> None:
        """Note that the server has closed the connection: the slot is free."""
        if entry.state == GONE:
            return
        move(self.node, entry, GONE, now)
        self._slot_freed(entry, now)

    def reset_done(self, entry: BackendEntry, now: float) -> None:
        """Note that DISCARD ALL has succeeded."""
        entry.flags &= ~FLAG_DIRTY
        self.release(entry, now)

    def cancel_begins(self, entry: BackendEntry) -> None:
        """Keep a backend from everybody else while a cancel request for it is under way."""
        entry.cancels += 1
        entry.flags |= FLAG_CANCELLING

    def cancel_done(self, entry: BackendEntry, now: float) -> None:
        """Note that a cancel request aimed at this backend has been delivered or given up."""
        entry.cancels -= 1
        if entry.cancels:
            return
        entry.flags &= ~FLAG_CANCELLING
        if entry.state == CANCELLING:
            self.release(entry, now)

    def make_obsolete(self, pool: PoolLedger, now: float) -> None:
        """Close all backends of a pool that are older than its generation: the idle now, the others when released."""
        for server in list(self.node.servers.values()):
            for entry in list(server.entries):
                if entry.pool is pool and (entry.generation != pool.generation or entry.server is not pool.server):
                    mark_obsolete(entry)
                    if entry.state == IDLE:
                        self.close(entry, "its route has changed", now)
        self.grow(pool, now)

    def leave(self, runner: BackendEntry, database: str, tenant: TenantLedger | None, now: float) -> None:
        """Leave a database on the server of `runner`, until that has done the statement which needs it.

        Idle backends are closed, none is kept idle, and they are opened for waiting clients only.  Only those of
        `tenant` are meant; without one, those of all.
        """
        for entry in list(runner.server.entries):
            pool = entry.pool
            if entry.database != database or (tenant is not None and pool.tenant is not tenant):
                continue
            if not entry.flags & FLAG_OBSOLETE:
                runner.flags |= FLAG_CLEARS
                pool.flags |= FLAG_LEAVES
                pool.leaves_until = now + LEAVE_TIME
                self._left[pool] = runner
            if entry.state == IDLE:
                self.close(entry, "its database is to be left", now)

    def _stays(self, pool: PoolLedger) -> None:
        pool.flags &= ~FLAG_LEAVES
        del self._left[pool]

    def hold_back(self, pool: PoolLedger, now: float) -> None:
        """Refuse a pool's waiters and all that come after them, and close what is idle."""
        pool.flags |= FLAG_HELD_BACK
        self.refuse_waiters(pool, REFUSED_HELD_BACK)
        for entry in list(pool.idle):
            self.close(entry, "its tenant is not served now", now)

    def let_go(self, pool: PoolLedger, now: float) -> None:
        """Serve a pool again that was held back."""
        pool.flags &= ~FLAG_HELD_BACK
        self.grow(pool, now)

    def refuse_waiters(self, pool: PoolLedger, reason: int, upto: float = NEVER) -> None:
        """Refuse everybody who waits in one pool now, since `upto` or longer; who is refused may ask again at once."""
        for waiter in waiters_of(pool):
            if waiter.state == WAITING and waiter.since <= upto:
                dequeue(self.node, waiter, ABANDONED)
                self.effects.refuse(waiter, reason)

    def grow(self, pool: PoolLedger, now: float) -> None:
        """Open backends for a pool's waiters, or make room for them, as far as the caps allow; or refuse them."""
        while pool.waiting and not pool.flags & FLAG_HELD_BACK:
            operation = plan_growth(self.node, pool, now)
            if operation.kind == NOTHING:
                return
            self._carry_out(operation, now)

    def grow_all(self, now: float) -> None:
        """Do the same for every pool that waits, oldest waiter first."""
        for pool in sorted(self.node.waiting_pools, key=_oldest_since):
            self.grow(pool, now)

    def tick(self, now: float, linger: float) -> None:
        """Do what time brings: time limits of waiters, old and idle backends, back-offs that are over, lingering."""
        for pool in list(self.node.waiting_pools):
            operation = plan_timeouts(pool, now)
            while operation.kind == REFUSE:
                assert operation.waiter is not None
                dequeue(self.node, operation.waiter, ABANDONED)
                self.effects.refuse(operation.waiter, operation.reason)
                operation = plan_timeouts(pool, now)
        for pool in [pool for pool in self._left if pool.leaves_until <= now]:
            self._stays(pool)
        for pool in list(self.node.pools.values()):
            self._flag_over_cap(pool)
            if pool.idle or pool.min_size:
                operation = plan_upkeep(self.node, pool, now)
                while operation.kind != NOTHING:
                    self._carry_out(operation, now)
                    operation = plan_upkeep(self.node, pool, now)
        for server in self.node.servers.values():
            for entry in list(server.entries):
                if entry.state == CLOSING and entry.since + linger <= now:
                    move(self.node, entry, LINGERING, now)
                elif entry.state == ACTIVE and entry.expires_at and entry.expires_at <= now:
                    mark_obsolete(entry)
        self.grow_all(now)

    def _flag_over_cap(self, pool: PoolLedger) -> None:
        """Keep the relay from parking backends by itself where there are too many of them."""
        over = (
            pool.tenant.held > pool.tenant.pool_size
            or pool.server.held > pool.server.max_connections
            or self.node.held > self.node.max_backends
        )
        pool.flags = (pool.flags | FLAG_OVER_CAP) if over else (pool.flags & ~FLAG_OVER_CAP)

    def _carry_out(self, operation: Operation, now: float) -> None:
        if operation.kind == OPEN:
            pool = operation.pool
            assert pool is not None
            entry = open_entry(self.node, pool, self._next_ident, now)
            self._next_ident += 1
            self.effects.open(entry)
        elif operation.kind == CLOSE:
            assert operation.entry is not None
            self.close(operation.entry, operation.text, now)
        elif operation.kind == GRANT:
            assert operation.entry is not None and operation.waiter is not None
            dequeue(self.node, operation.waiter, GRANTED)
            self._hand_over(operation.waiter, operation.entry, now)
        elif operation.kind == REFUSE:
            assert operation.pool is not None
            self.refuse_waiters(operation.pool, operation.reason)

    def _release(self, entry: BackendEntry, now: float, foreign_wait: float) -> None:
        if entry.state >= CLOSING:
            return
        if entry.flags & FLAG_CLEARS:
            entry.flags &= ~FLAG_CLEARS
            for pool in [pool for pool, runner in self._left.items() if runner is entry]:
                self._stays(pool)
        if entry.flags & FLAG_CANCELLING:
            move(self.node, entry, CANCELLING, now)
            return
        if entry.expires_at and entry.expires_at <= now:
            mark_obsolete(entry)
        operation = plan_release(self.node, entry, now, foreign_wait)
        if operation.kind == GRANT:
            assert operation.waiter is not None
            dequeue(self.node, operation.waiter, GRANTED)
            self._hand_over(operation.waiter, entry, now)
        elif operation.kind == PARK:
            move(self.node, entry, IDLE, now)
        elif operation.kind == RESET:
            move(self.node, entry, RESETTING, now)
            self.effects.reset(entry)
        else:
            self.close(entry, operation.text, now)

    def _hand_over(self, waiter: Waiter, entry: BackendEntry, now: float) -> None:
        """Grant; whatever the new owner gives back during the call is released after it, not inside it."""
        move(self.node, entry, ACTIVE, now)
        waiter.pool.counters.waits.add(now - waiter.since)
        if self._granting:
            self.effects.grant(waiter, entry)
            return
        self._granting = True
        try:
            self.effects.grant(waiter, entry)
        finally:
            self._granting = False
        self._release_deferred(now)

    def _release_deferred(self, now: float) -> None:
        while self._deferred and not self._granting:
            self._release(self._deferred.pop(), now, self.foreign_wait)

    def _slot_freed(self, entry: BackendEntry, now: float) -> None:
        """Let whoever waits for it have the slot of a backend that is gone."""
        self._grow_server(entry.server, now)
        if len(entry.pool.tenant.pools) > 1 or self.node.held + 1 >= self.node.max_backends:
            self.grow_all(now)
        elif entry.pool.waiting:
            self.grow(entry.pool, now)

    def _grow_server(self, server: ServerLedger, now: float) -> None:
        if server.waiting_pools:
            for pool in sorted(server.waiting_pools, key=_oldest_since):
                self.grow(pool, now)


def _oldest_since(pool: PoolLedger) -> float:
    waiter = pool.first_waiter
    return NEVER if waiter is None else waiter.since
