"""The composition root: one node, from its settings to a running proxy and back to nothing."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from proxy.errors import SHUTTING_DOWN, Failure
from proxy.net.client_handshake import AuthPolicy, GreetPolicy
from proxy.net.client_link import ClientLink
from proxy.net.dialer import Dialer, DialSettings
from proxy.net.front_door import DoorSettings, FrontDoor
from proxy.net.hub import Hub, held_back
from proxy.net.listener import Listener
from proxy.net.mailroom import Mailroom
from proxy.net.relay_loop import RelaySelector
from proxy.net.scram_keys import ScramKeyCache
from proxy.net.statuses import StatusCache
from proxy.net.tls import ClientTls, ServerTlsContexts
from proxy.pool.janitor import run_janitor
from proxy.pool.ledger import NodeLedger
from proxy.pool.tenancy import Defaults, Tenancy
from proxy.routing.names import name_rules
from proxy.routing.resolver import Resolver, ResolverConfig, RouteUpdate
from proxy.session.parameters import ParameterTable
from proxy.settings import Settings
from registry.contract import RegistryReader, TenantState

log = structlog.get_logger(__name__)

COLD_AFTER: Final = 60.0
"""Seconds without a client or backend after which a tenant's pools are freed."""
COLD_SWEEP: Final = 5.0
DRAIN_STEP: Final = 0.05
CLOSE_WAIT: Final = 1.0
"""Seconds that servers have to close their side when the node ends."""


class Node:
    """One node: everything between the listening socket and the servers.

    `start`, then `stop`; both in the loop that `selector` belongs to.  `reader` is the registry.
    """

    def __init__(self, settings: Settings, selector: RelaySelector, reader: RegistryReader) -> None:
        pool = settings.pool
        self.settings = settings
        self.clock: Callable[[], float] = time.monotonic
        self.ledger = NodeLedger(pool.max_backends, pool.max_connecting)
        self.hub = Hub(selector, self.ledger, pool.cross_tenant_wait)
        self.table = ParameterTable()
        self.statuses = StatusCache()
        self.client_tls = client_tls(settings)
        self.resolver = Resolver(reader, rules=rules_of(settings), config=resolver_config(settings))
        self.tenancy = Tenancy(
            self.ledger,
            self.hub.driver,
            defaults_of(settings),
            watch=self.resolver.watch,
            unwatch=self._forget_tenant,
        )
        self.dialer = Dialer(
            self.hub,
            self.statuses,
            self.table.empty,
            dial_settings(settings),
            spawn=self.spawn,
            chance=random.Random(),
            tls_contexts=ServerTlsContexts(),
            keys=ScramKeyCache(),
        )
        self.door = FrontDoor(
            self.hub,
            self.resolver,
            self.tenancy,
            self.statuses,
            self.table,
            self.dialer,
            door_settings(settings, self.client_tls),
            clock=self.clock,
        )
        self.mailroom = Mailroom(self.hub, self.dialer, self.door, self.statuses, spawn=self.spawn)
        self.listener = Listener(
            settings.listen.host,
            settings.listen.port,
            self.door.welcome,
            backlog=settings.listen.backlog,
            accepts_per_turn=settings.listen.accepts_per_turn,
            max_logins=settings.listen.max_logins,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_cold_sweep = self.clock()
        self.resolver.subscribe(self._on_route_update)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this node's: it ends with the node, and its failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    async def start(self) -> None:
        """Begin to serve; raises ListenError when the port cannot be had."""
        self.mailroom.open()
        self.spawn(self.resolver.follow())
        self.spawn(run_janitor(self._sweep, self.clock))
        self.listener.start()

    async def reload(self) -> int:
        """Read the registry and the certificate again now; returns the registry's version.

        Raises RegistryUnavailable or TlsConfigError, and what was in force stays in force.
        """
        if self.client_tls is not None:
            self.client_tls.reload()
        return await self.resolver.reload()

    async def stop(self, grace: float) -> None:
        """Stop accepting, let transactions finish for up to `grace` seconds, close."""
        self.door.stopping = True
        self.listener.stop()
        await self._drain(grace)
        await self.listener.close()
        for client in list(self.door.clients.values()):
            self.hub.terminate(client, Failure(SHUTTING_DOWN))
        await self._close_backends()
        await self.door.close()
        await self._cancel_tasks()
        self.mailroom.close()
        await self.resolver.close()

    def _sweep(self, now: float) -> None:
        self.hub.driver.tick(now, self.settings.pool.linger)
        self.hub.sweep(now)
        if now - self._last_cold_sweep >= COLD_SWEEP:
            self._last_cold_sweep = now
            self.tenancy.forget_cold(now, COLD_AFTER)

    def _forget_tenant(self, tenant_id: int) -> None:
        self.resolver.unwatch(tenant_id)
        self.statuses.forget_tenant(tenant_id)

    def _on_route_update(self, update: RouteUpdate) -> None:
        """Follow a change of a tenant's route; clients of a tenant that is not served any more are told so."""
        now = self.hub.selector.now
        self.tenancy.apply_route(update.tenant_id, update.new, now)
        state = update.new.state if update.new is not None else None
        log.info("route changed", tenant_id=update.tenant_id, state=state, generation=getattr(update.new, "generation", None))
        if state is not TenantState.READY:
            for client in list(self.door.clients.values()):
                if client.pool.tenant.tenant_id == update.tenant_id and is_between(client):
                    self.hub.terminate(client, held_back(client.pool))

    async def _drain(self, grace: float) -> None:
        """Tell clients that are between transactions; wait for the others."""
        deadline = self.clock() + grace
        while True:
            for client in list(self.door.clients.values()):
                if is_between(client):
                    self.hub.terminate(client, Failure(SHUTTING_DOWN))
            self.mailroom.read()
            if not any(not client.finishing for client in self.door.clients.values()) or self.clock() >= deadline:
                return
            await asyncio.sleep(DRAIN_STEP)

    async def _close_backends(self) -> None:
        now = self.hub.selector.now
        for server in self.ledger.servers.values():
            for entry in list(server.entries):
                if entry.link is not None:
                    self.hub.driver.close(entry, "the node is shutting down", now)
        deadline = self.clock() + CLOSE_WAIT
        while self.clock() < deadline and (
            any(entry.link is not None for server in self.ledger.servers.values() for entry in server.entries)
            or self.door.clients
        ):
            await asyncio.sleep(DRAIN_STEP / 5)

    async def _cancel_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the node failed", exc_info=task.exception())


def is_between(client: ClientLink) -> bool:
    """Say whether a client has nothing under way: neither linked within a transaction, nor waiting."""
    if client.finishing:
        return False
    backend = client.backend
    if backend is None:
        return client.waiter is None and not client.held
    return backend.between_transactions() and client.front.left == 0 and not client.held
