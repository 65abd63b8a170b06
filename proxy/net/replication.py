"""The way in for replication connections: who may have one, and a backend for each alone.

A login's permission is in the registry, and the server has its own say: the role needs REPLICATION and a line in
pg_hba.conf.  The backend is opened for the client with the client's own startup parameters, holds a slot under all caps
as any other, and is closed with the client.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from proxy.errors import BACKEND_LOGIN_FAILED, BACKEND_LOST, REPLICATION_REFUSED, Failure
from proxy.net.displaced import why_displaced
from proxy.net.hub import Hub
from proxy.net.pipe_link import PipeBackend, PipeClient, Seat
from proxy.pool.ledger import PoolLedger, Waiter
from proxy.pool.pool import NEVER
from proxy.pool.tenancy import Tenancy
from proxy.routing.resolution import Resolution
from proxy.session.parameters import ParameterSet
from proxy.session.replication import CommandFilter
from proxy.wire.startup import ReplicationMode
from registry.contract import ReplicationAccess

_ROLE_HINT: Final = (
    "The backend role must have REPLICATION, and pg_hba.conf a line for it (database `replication` for physical "
    "replication); the operator finds the server's answer in the proxy's log."
)


def check_access(resolution: Resolution, mode: ReplicationMode) -> None:
    """Raise Failure unless the login may replicate that much."""
    access = ReplicationAccess.NONE if resolution.login is None else resolution.login.replication
    if access is ReplicationAccess.SERVER:
        return
    if mode is ReplicationMode.LOGICAL:
        if access is ReplicationAccess.DATABASE:
            return
        raise Failure(REPLICATION_REFUSED, user=resolution.user, what="a database", access="database")
    raise Failure(REPLICATION_REFUSED, user=resolution.user, what="a whole server", access="server")


def is_limited(resolution: Resolution) -> bool:
    """Say whether a login may give no commands of physical replication, whatever its connection was opened for."""
    return resolution.login is None or resolution.login.replication is not ReplicationAccess.SERVER


class ReplicationDesk:
    """Gets replication clients their backends."""

    def __init__(self, hub: Hub, tenancy: Tenancy, plain: ParameterSet) -> None:
        self._hub = hub
        self._tenancy = tenancy
        self._plain = plain

    async def open(self, pool: PoolLedger, mode: ReplicationMode, resolution: Resolution) -> PipeBackend:
        """Open a backend for a client of this tenant and role (`pool`), once the caps leave room for it.

        Raises Failure.  Whoever gets it gives it to a client or calls `give_up`.
        """
        now = self._hub.selector.now
        startup = (("replication", mode.value), *resolution.settings)
        own = self._tenancy.dedicated_pool(pool, startup, now)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        seat = Seat(future)
        deadline = now + own.queue_wait_timeout if own.queue_wait_timeout else NEVER
        waiter = Waiter(own, now, deadline, seat)
        self._hub.driver.request(waiter, now)
        try:
            await future
        except BaseException:
            if seat.backend is not None:
                self.give_up(seat.backend)
            self._hub.driver.abandon(waiter)
            self._tenancy.abandon_dedicated(own, self._hub.selector.now)
            raise
        if seat.backend is not None:
            return seat.backend
        assert seat.failure is not None
        if seat.failure.spec is BACKEND_LOGIN_FAILED:
            raise Failure(BACKEND_LOGIN_FAILED, hint=_ROLE_HINT, tenant=own.tenant.slug, reason=own.login_refused)
        raise seat.failure

    def give_up(self, backend: PipeBackend) -> None:
        """Close a backend whose client has not come."""
        if backend.polled:
            self._hub.discard(backend, "its client left during the login")

    def client(self, sock: socket.socket, ident: int, backend: PipeBackend, resolution: Resolution) -> PipeClient:
        """Make the client's end, which is to be attached once the selector has it."""
        commands = CommandFilter(limited=is_limited(resolution))
        pool = backend.entry.pool
        return PipeClient(self._hub, self._hub.selector, sock, ident, pool, self._plain, commands, backend)


def check_backend(backend: PipeBackend) -> None:
    """Raise Failure where a backend was lost, or its tenant is elsewhere or not served, while its client logged in."""
    failure = why_displaced(backend.entry.pool, backend)
    if failure is not None:
        raise failure
    if not backend.polled:
        raise Failure(BACKEND_LOST)
