"""The resolver: from what a connection says to its route and login, and word of every change to those in use."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from proxy.auth import ScramVerifier, VerifierError, mock_verifier
from proxy.errors import REGISTRY_DOWN, TENANT_NOT_NAMED, VERIFIERS_UNAVAILABLE, Failure
from proxy.routing.cache import CacheLimits, RouteCache
from proxy.routing.explain import Explanation, explanation, refused
from proxy.routing.follower import Backoff, Follower
from proxy.routing.lookups import NO_TENANT, Answer, Health, Look, Lookups
from proxy.routing.names import NameRules, Reading, Selectors, Statement, read
from proxy.routing.resolution import Resolution
from proxy.routing.server_logins import CannotAsk, ServerLogins
from proxy.routing.shared import on_shared
from proxy.routing.verdict import Found, Survey, allows, failure, find, refusal
from proxy.routing.watches import Listener, Watches
from registry.contract import (
    ChangeKind,
    Login,
    RegistryReader,
    RegistryUnavailable,
    Route,
    RouteChange,
    VerifierSource,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ResolverConfig:
    """How the resolver behaves.

    `reveal_tenants` tells unknown and suspended tenants before the client has proved who it is.  `shared_tenant`
    is the slug of the tenant whose database serves those that are shared.  `verifiers` is where those are of tenants
    that do not say.  Time limits are in seconds.
    """

    limits: CacheLimits = field(default_factory=CacheLimits)
    reveal_tenants: bool = False
    shared_tenant: str | None = None
    verifiers: VerifierSource = VerifierSource.REGISTRY
    lookup_timeout: float = 2.0
    lookup_concurrency: int = 32
    backoff: Backoff = field(default_factory=Backoff)
    reload_timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class RoutingStatus:
    """What metrics and `/readyz` show of the resolver.

    `live`: the feed is followed and the cache has what it has shown; `lag` in seconds, 0 while live.  `queries`
    are those sent to the registry, `overtaken` those thrown away because a change came meanwhile, `remembered`
    the answers given from memory because the registry could not be asked.  `asked_servers` are verifiers that servers
    were asked for, `asked_in_vain` those that they could not be.
    """

    registry_up: bool
    reason: str | None
    live: bool
    version: int
    lag: float
    reconnects: int
    queries: int
    overtaken: int
    remembered: int
    watched: int
    cached: dict[str, int]
    asked_servers: int = 0
    asked_in_vain: int = 0


class Resolver:
    """The cache in front of the registry.

    The owner runs `follow()` as a task for as long as the node runs, and awaits `close()` at its end.  The pool
    room calls `watch(route)` before it opens the first backend of a tenant and `unwatch` when it has freed the
    tenant's pool: in between, every change of the route is told to the listeners in under a second.
    """

    def __init__(
        self,
        reader: RegistryReader,
        *,
        rules: NameRules | None = None,
        config: ResolverConfig | None = None,
        server_logins: ServerLogins | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.rules = rules or NameRules()
        self.config = config or ResolverConfig()
        self._reader = reader
        self._server_logins = server_logins
        self._clock = clock
        self._shared_id: int | None = None
        self.health = Health(clock)
        self.cache = RouteCache(self.config.limits, pinned=self._is_pinned, moved=self._on_moved)
        self.lookups = Lookups(
            reader,
            self.cache,
            clock=clock,
            health=self.health,
            timeout=self.config.lookup_timeout,
            concurrency=self.config.lookup_concurrency,
        )
        self._watches = Watches(self.cache, self.lookups, effective=self._effective, retries=self._retries, clock=clock)
        self._follower = Follower(
            reader,
            self.cache,
            self.health,
            apply=self.apply_change,
            caught_up=self._on_caught_up,
            clock=clock,
            chance=chance,
            timeout=self.config.lookup_timeout,
            backoff=self.config.backoff,
        )

    async def resolve(
        self, selectors: Selectors, address: str | None = None, look: Look = Look.REMEMBERED
    ) -> Resolution:
        """Find the route and the login of a connection; from an address that the tenant does not allow, no login.

        Strangers are looked up anew, so that the same questions are asked whatever exists and is in use.

        Raises Failure at once only for what depends on no tenant's existence: no tenant named, options and host
        name that contradict each other, a registry that is down and not needed for tenants already known; with
        `reveal_tenants` also for whatever the client would be told after its login.  And for a tenant whose server has
        to be asked for the login and cannot be.
        """
        reading = self._read(selectors)
        try:
            survey = await self._survey(reading, address, look)
        except CannotAsk:
            raise Failure(VERIFIERS_UNAVAILABLE) from None
        failed = failure(survey) if survey.certain else Failure(REGISTRY_DOWN)
        if failed is not None and (self.config.reveal_tenants or not survey.certain):
            raise failed
        barred = survey.route is not None and not allows(survey.route, address)
        verifier = await self._verifier(survey)
        return Resolution(
            selectors=selectors,
            user=survey.user,
            route=survey.route,
            login=None if barred else survey.effective_login,
            verifier=verifier.disabled() if barred else verifier,
            refusal=refusal(reading),
            failure=failed,
            settings=reading.settings,
            mock_selector=survey.mock_selector,
            survey=survey,
            barred=barred,
        )

    async def explain(self, selectors: Selectors, address: str | None = None) -> Explanation:
        """Explain how a connection is understood, whether or not it would be refused.

        No server is asked: where one would be, the explanation says so.
        """
        try:
            reading = self._read(selectors)
        except Failure as refusal_:
            return refused(selectors, refusal_)
        survey = await self._survey(reading, address, Look.REMEMBERED, asks_servers=False)
        failed = failure(survey) if survey.certain else Failure(REGISTRY_DOWN)
        route = survey.route
        return explanation(
            survey,
            failed,
            asks_server=route is not None and self._asks(route),
            barred=route is not None and not allows(route, address),
        )

    async def confirm(self, resolution: Resolution, address: str | None = None) -> bool:
        """Whether what a client was held to is still in force, however long its proof took: its login and networks.

        Raises Failure where the server would have to be asked and cannot be.
        """
        login, route = resolution.login, resolution.route
        if login is None or route is None:
            return True
        if self.cache.live:
            # Of a tenant that has no clients yet a change has only been noted so far.
            with suppress(RegistryUnavailable):
                await self.lookups.refresh(route.tenant_id)
        if not allows(self.current(route.tenant_id) or route, address):
            return False
        answer = await self.lookups.login(login.user, route.tenant_id)
        if login.source is VerifierSource.REGISTRY:
            return answer.value == login or not answer.certain
        if answer.value is not None or self._server_logins is None:
            return False
        try:
            now = await self._server_logins.login(route, login.user)
        except CannotAsk:
            raise Failure(VERIFIERS_UNAVAILABLE) from None
        return now is not None and now.verifier == login.verifier

    def doubt(self, resolution: Resolution) -> None:
        """Ask servers again for what a failed login was held to: there may be a new password, or a new role."""
        if self._server_logins is None:
            return
        survey = resolution.survey
        asked = [(survey.found.route, survey.reading.user)]
        if survey.whole is not None:
            asked.append((survey.whole.route, survey.reading.exact_user))
        for route, user in asked:
            if route is not None and route.server is not None:
                self._server_logins.doubt(route.tenant_id, route.server.server_id, user)

    async def mock_login(self, selector: bytes) -> ScramVerifier:
        """The verifier that stands in for a login that does not exist; raises Failure(REGISTRY_DOWN)."""
        secret = await self.lookups.mock_secret()
        if secret is None:
            raise Failure(REGISTRY_DOWN)
        return mock_verifier(secret, selector)

    async def reachable(self) -> bool:
        """Whether the registry answers now; asked once at the start of a node."""
        return await self.lookups.mock_secret() is not None

    # Changes.

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with a RouteUpdate for each change of a watched tenant's route; it must not block."""
        self._watches.listeners.append(listener)

    def watch(self, route: Route) -> None:
        """Keep a tenant's route current and its changes told, until `unwatch` is called as often.

        Tells the listeners before it returns if the route given has been overtaken already.
        """
        self._watches.add(route)

    def unwatch(self, tenant_id: int) -> None:
        self._watches.remove(tenant_id)

    def current(self, tenant_id: int) -> Route | None:
        """The route in force of a tenant that is remembered."""
        entry = self.cache.route(tenant_id)
        return None if entry is None else self._effective(entry.value)

    def apply_change(self, change: RouteChange) -> frozenset[int]:
        """Take one change of the log into account; returns the watched tenants that are asked for anew."""
        self.cache.apply(change)
        if self._server_logins is not None:
            self._server_logins.apply(change)
        affected = set(self._watches.affected_by(change))
        if self._shared_id is not None and self._is_stale(self._shared_id):
            affected.add(self._shared_id)
        for tenant_id in affected:
            self._watches.refresh(tenant_id)
        return frozenset(affected)

    async def follow(self) -> None:
        """Follow the registry's changes until cancelled."""
        await self._follower.run()

    async def adopt(self, rules: NameRules, config: ResolverConfig) -> None:
        """Read connections by other rules from now on; what is remembered stays, within the new limits."""
        shared_id = self._shared_id
        if config.shared_tenant != self.config.shared_tenant:
            shared_id = await self._find_shared(config.shared_tenant)
        self.rules, self.config = rules, config
        self.cache.resize(config.limits)
        self.lookups.timeout = self._follower.timeout = config.lookup_timeout
        if shared_id != self._shared_id:
            self._shared_id = shared_id
            self._watches.tell_all()

    async def ask_anew(self) -> None:
        """Ask for everything again before it is used next, for tenants in use at once.

        For a node that can open secrets now that it could not open before: the registry's version stays the same.
        """
        self.cache.doubt(self._clock())
        self._on_caught_up()
        await self._watches.settled()

    async def reload(self) -> int:
        """Take over now what the feed would bring at its next turn; returns the version that is then in force.

        Raises RegistryUnavailable, and nothing has changed then.
        """
        version, limit = await self._reader.reload(), self.config.reload_timeout
        if self._follower.running:
            try:
                async with asyncio.timeout(limit):
                    await self._follower.reached(version)
            except TimeoutError:
                raise RegistryUnavailable(f"version {version} did not arrive within {limit:g} s") from None
        else:
            self.apply_change(RouteChange(version, ChangeKind.EVERYTHING))
        await self._watches.settled()
        return version

    def status(self) -> RoutingStatus:
        """The figures of now."""
        return RoutingStatus(
            registry_up=self.health.up,
            reason=self.health.reason,
            live=self.cache.live,
            version=self.cache.version,
            lag=self._follower.lag(),
            reconnects=self._follower.reconnects,
            queries=self.lookups.queries,
            overtaken=self.lookups.overtaken,
            remembered=self.lookups.remembered,
            watched=len(self._watches),
            cached=self.cache.sizes(),
            asked_servers=0 if self._server_logins is None else self._server_logins.asked,
            asked_in_vain=0 if self._server_logins is None else self._server_logins.failed,
        )

    async def close(self) -> None:
        """Cancel what is in flight."""
        await self._watches.close()
        await self.lookups.close()
        if self._server_logins is not None:
            await self._server_logins.close()

    # Inside.

    def _read(self, selectors: Selectors) -> Reading:
        reading = read(selectors, self.rules)
        if not reading.statements:
            raise Failure(TENANT_NOT_NAMED)
        return reading

    async def _survey(self, reading: Reading, address: str | None, look: Look, *, asks_servers: bool = True) -> Survey:
        """Ask the questions that the spelling demands, always the same ones: timing shall not tell what exists."""
        await self._ask_shared()

        async def login_of(user: str, found: Found) -> Answer[Login | None]:
            may_ask = asks_servers and found.route is not None and allows(found.route, address)
            return await self._login(user, found, look, asks_servers=may_ask)

        found = await self._find(reading.statements[0], look)
        others = reading.without_suffix() if reading.has_suffix else ()
        whole = await self._find(others[0], look) if others else None
        whole_login: Answer[Login | None] = Answer(None)
        if whole is not None:
            whole_login = await login_of(reading.exact_user, whole)
        login = await login_of(reading.user, found)
        return Survey(
            reading=reading,
            found=found,
            login=login.value,
            login_certain=login.certain,
            whole=whole,
            whole_login=whole_login.value,
            whole_certain=whole_login.certain,
        )

    async def _login(self, user: str, found: Found, look: Look, *, asks_servers: bool) -> Answer[Login | None]:
        """Find a login in the registry, else on the tenant's server where that is asked; raises CannotAsk."""
        route = found.route
        tenant_id = NO_TENANT if route is None else route.tenant_id
        answer = await self.lookups.login(user, tenant_id, found.statement.names[-1], look)
        if answer.value is not None or route is None or not asks_servers:
            return answer
        if self._server_logins is None or not self._asks(route):
            return answer
        # A registry that is down may have a login of this name; but whom the server knows, it lets in as itself.
        login = await self._server_logins.login(route, user, look)
        return Answer(login, certain=answer.certain or login is not None)

    def _asks(self, route: Route) -> bool:
        """Whether users without a login in the registry may be roles of the tenant's server."""
        source = self.config.verifiers if route.verifiers is None else route.verifiers
        return source is VerifierSource.SERVER and route.server is not None and route.server.auth is not None

    async def _find(self, statement: Statement, look: Look) -> Found:
        certain = True
        names: list[tuple[str, Route | None]] = []
        for name in statement.names:
            answer = await self.lookups.by_name(name, look)
            names.append((name, None if answer.value is None else self._effective(answer.value)))
            certain = certain and answer.certain
        on_database: tuple[Route, ...] = ()
        if statement.database is not None:
            answers = await self.lookups.by_database(statement.database, look)
            on_database = tuple(self._effective(route) for route in answers.value)
            certain = certain and answers.certain
        return find(statement, names, on_database, certain=certain)

    async def _verifier(self, survey: Survey) -> ScramVerifier:
        login = survey.effective_login
        if login is not None:
            try:
                return ScramVerifier.parse(login.verifier)
            except VerifierError as error:
                log.error("a login cannot be used", login=login.login_id, user=login.user, reason=str(error))
        return await self.mock_login(survey.mock_selector)

    async def _ask_shared(self) -> None:
        slug = self.config.shared_tenant
        if slug is not None:
            found = await self._find_shared(slug)
            if slug == self.config.shared_tenant:
                self._shared_id = found

    async def _find_shared(self, slug: str | None) -> int | None:
        """The id of the tenant of this slug, None where there is none."""
        answer = Answer[Route | None](None) if slug is None else await self.lookups.by_name(slug)
        return None if answer.value is None else answer.value.tenant_id

    def _effective(self, route: Route) -> Route:
        shared = None if self._shared_id is None else self.cache.route(self._shared_id)
        return on_shared(route, None if shared is None else shared.value)

    def _is_pinned(self, tenant_id: int) -> bool:
        return tenant_id == self._shared_id or tenant_id in self._watches

    def _on_moved(self, tenant_id: int) -> None:
        if tenant_id == self._shared_id:
            self._watches.tell_all()
        else:
            self._watches.tell(tenant_id)

    def _on_caught_up(self) -> None:
        self._watches.refresh_stale()
        if self._shared_id is not None and self._is_stale(self._shared_id):
            self._watches.refresh(self._shared_id)

    def _retries(self) -> bool:
        """Whether a failed refresh tries again by itself: not while the follower will order it anyway."""
        return self.cache.live or not self._follower.running

    def _is_stale(self, tenant_id: int) -> bool:
        entry = self.cache.route(tenant_id)
        return entry is None or not self.cache.route_is_fresh(entry, self._clock())
