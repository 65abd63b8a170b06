"""The composition root: one node, from its settings to a running proxy and back to nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog

from proxy.admin.console import Console, ConsoleRules
from proxy.admin.node import NodeView
from proxy.auth import ClientKeys
from proxy.errors import SHUTTING_DOWN, Failure
from proxy.net.auth_query import AuthQueries
from proxy.net.client_tls import ClientTls
from proxy.net.descriptors import current_limit, say_shortfall, share_out, shortfall
from proxy.net.dialer import Dialer
from proxy.net.displaced import DisplacedSessions, is_between
from proxy.net.front_door import FrontDoor
from proxy.net.host_names import HostNames
from proxy.net.hub import Hub
from proxy.net.listener import Listener
from proxy.net.mailroom import Mailroom
from proxy.net.relay_loop import RelaySelector
from proxy.net.scram_keys import ScramKeyCache
from proxy.net.statuses import StatusCache
from proxy.net.time_keeper import TimeKeeper
from proxy.net.tls import ServerTlsContexts, TlsConfigError
from proxy.observability.http import Check, HttpEndpoint, Routes
from proxy.observability.logs import Limiter, configure_logs
from proxy.observability.metrics import CONTENT_TYPE, NodeMetrics
from proxy.pool.janitor import run_janitor
from proxy.pool.ledger import NodeLedger
from proxy.pool.tenancy import Tenancy
from proxy.reloading import InspectSecrets, Plan, Tell, Told, plan_reload, registry_is_down
from proxy.routing.resolver import Resolver
from proxy.routing.self_checks import SecretsCheck
from proxy.routing.server_logins import ServerLogins
from proxy.routing.snapshot import SnapshotFile, SnapshotKeeper
from proxy.routing.verdict import state_failure
from proxy.routing.watches import RouteUpdate
from proxy.settings import Reloaded, ReloadFailed
from proxy.version import build_info
from proxy.wiring import (
    admissions_of,
    ask_settings,
    client_tls,
    console_rules,
    defaults_of,
    dial_settings,
    door_settings,
    handshake_limits,
    login_limits,
    resolver_config,
    rules_of,
    server_login_limits,
    wanted_descriptors,
)
from registry.contract import RegistryReader, RegistryUnavailable
from registry.errors import SecretError

log = structlog.get_logger(__name__)

COLD_AFTER: Final = 60.0
"""Seconds without a client or backend after which a tenant's pools are freed."""
COLD_SWEEP: Final = 5.0
CERTIFICATE_LOOK: Final = 1.0
"""Seconds between two looks whether the files of certificates have changed."""
DRAIN_STEP: Final = 0.05
CLOSE_WAIT: Final = 1.0
"""Seconds that servers have to close their side when the node ends."""


class Node:
    """One node: everything between the listening socket and the servers.

    `start`, then `stop`; both in the loop that `selector` belongs to.  `told` is what the node begins with, and `tell`
    reads all of it anew; the node changes the keys in it where the registry has them from.  `reader` is the registry,
    `inspect_secrets` says why its secrets cannot be opened.  `limiter` is the log's.
    """

    def __init__(
        self,
        told: Told,
        selector: RelaySelector,
        reader: RegistryReader,
        *,
        tell: Tell,
        inspect_secrets: InspectSecrets,
        limiter: Limiter,
    ) -> None:
        settings, pool = told.settings, told.settings.pool
        self.settings, self.keys, self.admin_token = settings, told.keys, told.admin_token
        self.limiter = limiter
        self._tell = tell
        self._inspect_secrets = inspect_secrets
        self._reloading = asyncio.Lock()
        self.clock: Callable[[], float] = time.monotonic
        wanted = wanted_descriptors(settings)
        self.shares = share_out(current_limit(), wanted)
        self.shortfall = shortfall(wanted, self.shares)
        self.admissions = admissions_of(settings, self.shares)
        self.ledger = NodeLedger(self.shares.backends, pool.max_connecting)
        self.selector = selector
        self.hub = Hub(selector, self.ledger, pool.cross_tenant_wait)
        self.table = self.hub.table
        self.statuses = StatusCache()
        self.client_tls = client_tls(settings)
        self.server_tls = ServerTlsContexts()
        self.scram_keys = ScramKeyCache()
        self.host_names = HostNames()
        self.client_keys = ClientKeys(settings.auth.cached_keys)
        self.auth_queries = AuthQueries(
            ask_settings(settings),
            clock=self.clock,
            tls_contexts=self.server_tls,
            keys=self.scram_keys,
            names=self.host_names,
        )
        self.server_logins = ServerLogins(
            self.auth_queries.ask, self.client_keys, clock=self.clock, limits=server_login_limits(settings)
        )
        self.resolver = Resolver(
            reader, rules=rules_of(settings), config=resolver_config(settings), server_logins=self.server_logins
        )
        self.tenancy = Tenancy(
            self.ledger,
            self.hub.driver,
            defaults_of(settings),
            is_served=lambda route: state_failure(route) is None,
            watch=self.resolver.watch,
            unwatch=self._forget_tenant,
        )
        self.dialer = Dialer(
            self.hub,
            self.statuses,
            self.table.empty,
            dial_settings(settings),
            spawn=self.spawn,
            chance=random.SystemRandom(),
            tls_contexts=self.server_tls,
            keys=self.scram_keys,
            names=self.host_names,
            client_keys=self.client_keys,
            on_key_refused=partial(self.server_logins.doubt, surely=True),
        )
        self.door = FrontDoor(
            self.hub,
            self.resolver,
            self.tenancy,
            self.statuses,
            self.table,
            self.dialer,
            door_settings(settings, self.client_tls, self.shares),
            self.admissions,
            client_keys=self.client_keys,
            clock=self.clock,
        )
        self.times = TimeKeeper(self.hub, self.dialer, self.door.clients.values, spawn=self.spawn)
        self.mailroom = Mailroom(
            self.hub,
            self.dialer,
            self.door,
            self.statuses,
            spawn=self.spawn,
            roles_changed=self.server_logins.forget_server,
        )
        self.listener = Listener(
            settings.listen.host,
            settings.listen.port,
            self.door.welcome,
            backlog=settings.listen.backlog,
            accepts_per_turn=settings.listen.accepts_per_turn,
        )
        path = settings.routing.snapshot
        self.keeper = None
        if path is not None:
            file = SnapshotFile(path, self.keys, refusals=(SecretError, ValueError))
            self.keeper = SnapshotKeeper(self.resolver, file)
        self.secrets = SecretsCheck(partial(inspect_secrets, self.keys), timeout=settings.routing.lookup_timeout)
        self.http: HttpEndpoint | None = None
        build = build_info()
        self.metrics = NodeMetrics(
            self.ledger,
            self.tenancy,
            self.door,
            self.hub,
            self.admissions,
            routing=self.resolver.status,
            build=build,
            snapshot_failures=lambda: 0 if self.keeper is None else self.keeper.failures,
            max_tenants=settings.http.metrics_tenants,
            lines_left_out=lambda: self.limiter.left_out,
        )
        self._build = build
        self._started = self.clock()
        self.console: Console | None = None
        self._follow_console(console_rules(settings))
        self.grace_over = False
        self.remembers = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.displaced = DisplacedSessions(self.hub, self.door.clients.values)
        self._last_cold_sweep = self._last_look = self.clock()
        self.resolver.subscribe(self._on_route_update)

    @property
    def http_port(self) -> int | None:
        """The port of the HTTP endpoint; None without one."""
        return None if self.http is None else self.http.port

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine as a task of this node's: it ends with the node, and its failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    async def start(self) -> None:
        """Begin to serve; raises ListenError when the port cannot be had."""
        if self.shortfall:
            say_shortfall(self.shortfall, current_limit(), wanted_descriptors(self.settings))
        self.mailroom.open()
        if self.keeper is not None:
            await self.keeper.check()
            self.remembers = await self.keeper.restore()
        await self.secrets.look()
        self.listener.start()
        if self.settings.http.enabled:
            self._start_http()
        # Behind what may fail: a look into the registry's file that is broken off leaves a thread with nobody to tell.
        self.spawn(self.resolver.follow())
        self.spawn(run_janitor(self._sweep, self.clock, self._sweep_failed))
        if self.keeper is not None:
            self.spawn(self.keeper.run())

    async def reload(self, user: str | None = None) -> Reloaded:
        """Read settings, certificates, keys and registry anew, for a user of the console if it is one.

        All that was read is put in force, or nothing, and the log says how it went.  Raises ReloadFailed.
        """
        work = asyncio.ensure_future(self._reload({} if user is None else {"user": user}))
        self._tasks.add(work)
        work.add_done_callback(self._reload_done)
        # Whoever asked may go; a reload that has begun ends.
        return await asyncio.shield(work)

    async def _reload(self, who: dict[str, str]) -> Reloaded:
        try:
            async with self._reloading:
                done = await self._reload_all()
        except ReloadFailed as failed:
            log.error("reload failed", reason=str(failed), hint=failed.hint, **who)
            raise
        log.info("reloaded", registry_version=done.registry_version, changed=list(done.changed), **who)
        if done.needs_restart:
            log.warning("settings need a restart", settings=list(done.needs_restart), **who)
        return done

    async def _reload_all(self) -> Reloaded:
        before = Told(self.settings, self.keys, self.admin_token)
        plan = await plan_reload(before, self._tell, self._inspect_secrets, were_fit=not self.secrets.problem)
        try:
            version = await self.resolver.reload()
        except RegistryUnavailable as error:
            raise registry_is_down(error) from None
        has_other_keys = not plan.keys.is_same(self.keys)
        await self.resolver.adopt(plan.rules, resolver_config(plan.settings))
        self._put_in_force(plan)
        for _ in self.tenancy.follow(defaults_of(plan.settings), self.resolver.current, self.hub.selector.now):
            await asyncio.sleep(0)
        # With the lifetimes that pools have now.
        self.dialer.follow(dial_settings(plan.settings))
        if has_other_keys:
            await self.resolver.ask_anew()
        await self.secrets.look()
        return Reloaded(version, plan.changed, plan.needs_restart)

    def _put_in_force(self, plan: Plan) -> None:
        """Bring what was read to where it is used.  What a client or backend was given when it came stays with it."""
        before, settings = self.settings, plan.settings
        self.settings, self.admin_token, self.client_tls = settings, plan.admin_token, plan.tls
        self.keys.take(plan.keys)
        if settings.log != before.log:
            self.limiter.most = settings.log.lines_per_second
            configure_logs(style=settings.log.format, level=settings.log.level, limiter=self.limiter)
        self.selector.budget = settings.relay.budget_ms / 1000.0
        self._share_out_anew()
        self.listener.tune(backlog=settings.listen.backlog, accepts_per_turn=settings.listen.accepts_per_turn)
        self.door.follow(door_settings(settings, plan.tls, self.shares))
        self._follow_console(plan.console)
        self.client_keys.limit = settings.auth.cached_keys
        self.auth_queries.follow(ask_settings(settings))
        self.server_logins.resize(server_login_limits(settings))
        self.secrets.timeout = settings.routing.lookup_timeout
        self.metrics.tenants.max_tenants = settings.http.metrics_tenants
        self.ledger.max_backends = self.shares.backends
        self.ledger.max_connecting = settings.pool.max_connecting
        self.hub.driver.foreign_wait = settings.pool.cross_tenant_wait
        self.ledger.refresh_flags()
        self.hub.driver.grow_all(self.hub.selector.now)

    def _share_out_anew(self) -> None:
        """Share descriptors out by the settings of now; what is too much of something goes as it ends."""
        settings, before = self.settings, self.shortfall
        wanted = wanted_descriptors(settings)
        self.shares = share_out(current_limit(), wanted)
        self.shortfall = shortfall(wanted, self.shares)
        trusted = settings.listen.trusted
        self.admissions.logins.set_limits(login_limits(settings, self.shares), trusted)
        self.admissions.handshakes.set_limits(handshake_limits(settings), trusted)
        if self.shortfall and self.shortfall != before:
            say_shortfall(self.shortfall, current_limit(), wanted)

    async def reload_for_http(self) -> dict[str, object]:
        """Reload because somebody with the token asked for it; raises ReloadFailed."""
        done = await self.reload()
        return {
            "registry_version": done.registry_version,
            "changed": list(done.changed),
            "needs_restart": list(done.needs_restart),
        }

    def readiness(self) -> list[Check]:
        """Whether this node should get clients.  A registry that is down does not make it useless: it remembers."""
        status = self.resolver.status()
        registry = "" if status.registry_up else f"serving from memory: {status.reason}"
        return [
            Check("accepting", not self.door.stopping, "stopping" if self.door.stopping else ""),
            Check("registry", status.registry_up or status.version > 0 or self.remembers, registry),
            Check("keys", not self.secrets.problem, self.secrets.problem),
            # Strangers cause this, and must not be able to take a node out of service by it.
            Check("logins", ok=True, detail=self.admissions.describe_queue()),
            Check("descriptors", ok=True, detail=self.shortfall and f"enough for {self.shortfall}"),
        ]

    async def reload_on_signal(self) -> None:
        """Reload where there is nobody to tell but the log."""
        with suppress(ReloadFailed):
            await self.reload()

    async def stop(self, grace: float) -> None:
        """Stop accepting, let transactions finish for up to `grace` seconds or until `grace_over`, close."""
        self.door.stopping = True
        self.listener.stop()
        await self._drain(grace)
        await self.listener.close()
        for client in list(self.door.clients.values()):
            self.hub.terminate(client, Failure(SHUTTING_DOWN))
        await self._close_backends()
        if self.console is not None:
            await self.console.close()
        await self.door.close()
        self.admissions.close()
        await self._cancel_tasks()
        if self.keeper is not None:
            await self.keeper.save()
        if self.http is not None:
            await self.http.stop()
        self.mailroom.close()
        await self.resolver.close()
        self.auth_queries.close()
        self.host_names.close()

    def _follow_console(self, rules: ConsoleRules | None) -> None:
        """Let those in to the console who may use it, and nobody where there are none."""
        if self.console is not None:
            self.console.follow(rules)
        elif rules is not None:
            self.console = self.door.console = Console(rules, self._view())

    def _view(self) -> NodeView:
        return NodeView(
            lambda: self.settings,
            self._build,
            self.door.clients,
            self.ledger,
            self.tenancy,
            self.resolver,
            readiness=self.readiness,
            reload=self.reload,
            clock=self.clock,
            wall=time.time,
            started=self._started,
        )

    def _start_http(self) -> None:
        """Serve HTTP; raises ListenError."""
        http = self.settings.http
        routes = Routes(
            metrics=self.metrics.render,
            metrics_type=CONTENT_TYPE,
            ready=self.readiness,
            reload=self.reload_for_http,
            admin_token=lambda: self.admin_token,
        )
        endpoint = HttpEndpoint(http.host, http.port, routes)
        endpoint.start()
        self.http = endpoint

    def _sweep(self, now: float) -> None:
        self.hub.driver.tick(now, self.settings.pool.linger)
        self.hub.sweep(now)
        self.times.sweep(now)
        self.tenancy.forget_dedicated()
        self.displaced.end()
        self.limiter.tell()
        if self.client_tls is not None and now - self._last_look >= CERTIFICATE_LOOK:
            self._last_look = now
            look_at_certificates(self.client_tls)
        if self.secrets.is_due(now):
            self.spawn(self.secrets.look())
        if now - self._last_cold_sweep >= COLD_SWEEP:
            self._last_cold_sweep = now
            self.tenancy.forget_cold(now, COLD_AFTER)

    def _sweep_failed(self, error: Exception) -> None:
        self.hub.internal_errors += 1
        log.error("a sweep failed, the next one goes on", exc_info=error)

    def _forget_tenant(self, tenant_id: int) -> None:
        self.resolver.unwatch(tenant_id)
        self.statuses.forget_tenant(tenant_id)
        self.client_keys.forget_tenant(tenant_id)

    def _on_route_update(self, update: RouteUpdate) -> None:
        """Follow a change of a tenant's route; clients of a tenant that is not served any more are told so."""
        now = self.hub.selector.now
        self.tenancy.apply_route(update.tenant_id, update.new, now)
        if update.new is None or state_failure(update.new) is not None:
            self.client_keys.forget_tenant(update.tenant_id)
        state = "removed" if update.new is None else update.new.state
        log.info("route changed", tenant=slug_of(update), state=state)
        self.displaced.add(update.tenant_id)
        self.displaced.end()

    async def _drain(self, grace: float) -> None:
        """Tell clients that are between transactions and have all replies; wait for the others."""
        deadline = self.clock() + grace
        while True:
            for client in list(self.door.clients.values()):
                if is_between(client) and client.unsent is None:
                    self.hub.terminate(client, Failure(SHUTTING_DOWN))
            self.mailroom.read()
            if self.grace_over or self.clock() >= deadline or all(c.finishing for c in self.door.clients.values()):
                return
            await asyncio.sleep(DRAIN_STEP)

    async def _close_backends(self) -> None:
        now = self.hub.selector.now
        for server in self.ledger.servers.values():
            for entry in list(server.entries):
                if entry.link is not None:
                    self.hub.driver.close(entry, "the node is shutting down", now)
        deadline = self.clock() + CLOSE_WAIT
        while self._is_connected() and self.clock() < deadline:  # noqa: ASYNC110 - what ends it happens in select()
            await asyncio.sleep(DRAIN_STEP / 5)

    def _is_connected(self) -> bool:
        """Whether any client, or any server that had been logged in to, has not closed yet."""
        entries = (entry for server in self.ledger.servers.values() for entry in server.entries)
        return bool(self.door.clients) or any(entry.link is not None for entry in entries)

    async def _cancel_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reload_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # It is told to whoever asked, who may have gone.

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the node failed", exc_info=task.exception())


def slug_of(update: RouteUpdate) -> str:
    """The name under which people know the tenant of an update."""
    route = update.new or update.old
    return route.slug if route is not None else str(update.tenant_id)


def look_at_certificates(tls: ClientTls) -> None:
    """Put certificates in force whose files have changed; where they cannot be used, what was in force stays."""
    try:
        changed = tls.reload_if_changed()
    except TlsConfigError as error:
        log.error("certificates were not reloaded, those of before stay in force", reason=str(error), hint=error.hint)
        return
    if changed:
        log.info("certificates reloaded, their files had changed", host_names=list(tls.host_names))
