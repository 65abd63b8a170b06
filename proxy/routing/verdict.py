"""Verdicts: what follows from a connection's names and the registry's answers about them.

Free of I/O; the resolver asks the questions.  Two errors come out of it.  The *refusal* is told when the client
fails to prove who it is, and depends on the spelling of the selectors alone, so that nobody learns from it which
tenants exist.  The *failure* is told to a client that has proved who it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from proxy.auth.addresses import is_within
from proxy.errors import (
    AMBIGUOUS_TENANT,
    INVALID_PASSWORD,
    NO_DATABASE,
    NO_ROLE,
    NO_SHARED_DATABASE,
    NOT_READY,
    SUSPENDED,
    UNKNOWN_TENANT,
    Failure,
)
from proxy.routing.names import Reading, Source, Statement, contradiction, disagreement
from registry.contract import Login, Route, TenantState

_UNDER_WAY: Final = {
    TenantState.CREATING: "it is being created",
    TenantState.MOVING: "it is being moved",
    TenantState.ERROR: "creating or moving it has failed",
}
_CHECK_BOTH = (
    "If both mean the same tenant, the password or the user name is wrong; else name the tenant once, or the same way "
    "everywhere."
)


@dataclass(frozen=True, slots=True)
class Found:
    """What the registry says of one statement: the route and how it was found, or how many it may be.

    `certain` is False where the registry could not be asked.
    """

    statement: Statement
    route: Route | None
    how: str
    ambiguous: bool = False
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Survey:
    """The names of a connection and all that the registry says of them.

    `found` is about the statement that decides; `whole` about the one that would decide if the whole user name
    were a login's, and `whole_login` that login.
    """

    reading: Reading
    found: Found
    login: Login | None
    login_certain: bool
    whole: Found | None = None
    whole_login: Login | None = None
    whole_certain: bool = True

    @property
    def by_whole_name(self) -> bool:
        """Whether the user name is to be read whole, although it looks as if it had a suffix.

        So it is for a login for all tenants, too, where the tenant is not known: it must look the same.
        """
        return self.whole_login is not None

    @property
    def statements(self) -> tuple[Statement, ...]:
        """The statements that hold, the deciding one first."""
        return self.reading.without_suffix() if self.by_whole_name else self.reading.statements

    @property
    def decider(self) -> Found:
        return self.whole if self.by_whole_name and self.whole is not None else self.found

    @property
    def route(self) -> Route | None:
        return self.decider.route

    @property
    def user(self) -> str:
        return self.reading.exact_user if self.by_whole_name else self.reading.user

    @property
    def effective_login(self) -> Login | None:
        return self.whole_login if self.by_whole_name else self.login

    @property
    def certain(self) -> bool:
        """Whether the registry answered all that the verdict rests on."""
        if self.by_whole_name:
            return self.route is not None or self.decider.certain
        if self.found.route is None and not self.found.certain:
            return False
        if self.login is None and not self.login_certain:
            return False
        if self.whole is None or (self.whole_certain and self.whole.certain):
            return True
        # The whole name may be a login's.  That changes nothing where both readings lead to one tenant's login.
        return not self.contradicting

    @property
    def contradicting(self) -> Statement | None:
        """The first statement that does not fit the deciding one."""
        route = self.route
        decider, *others = self.statements
        for other in others:
            if route is not None and fits(route, other):
                continue
            if route is None and set(decider.names) & set(other.names):
                continue
            return other
        return None

    @property
    def mock_selector(self) -> bytes:
        """What a login that does not exist is told apart by: of a tenant that does, the same for all its names.

        So it is for a login that exists, which has one salt.
        """
        route, statement = self.route, self.reading.statements[0]
        tenant = statement.names[-1] if route is None else route.slug
        return f"{self.user}\0{tenant}".encode("utf-8", "surrogateescape")


def fits(route: Route, statement: Statement) -> bool:
    """Whether a statement may mean this tenant: by slug, alias, pattern or the database it is on."""
    if any(name == route.slug or name in route.aliases for name in statement.names):
        return True
    return statement.database is not None and statement.database == route.database_name


def allows(route: Route, address: str | None) -> bool:
    """Whether clients of a tenant may come from an address; None: it is not known, and nothing is held against it."""
    return not route.networks or address is None or is_within(address, route.networks)


def refusal(reading: Reading) -> Failure:
    """The error for a client that failed to prove who it is, from the spelling of its selectors only."""
    pair = disagreement(reading.statements)
    if pair is not None:
        return contradiction(*pair, hint=_CHECK_BOTH)
    return Failure(INVALID_PASSWORD, user=reading.exact_user)


def failure(survey: Survey) -> Failure | None:
    """The error for a client that has proved who it is; None: it may go on."""
    route = survey.route
    other = survey.contradicting
    if other is not None:
        return contradiction(survey.statements[0], other)
    if route is not None:
        return state_failure(route)
    statement = survey.decider.statement
    if survey.decider.ambiguous:
        return Failure(AMBIGUOUS_TENANT, name=statement.value)
    return Failure(UNKNOWN_TENANT, tenant=statement.names[0])


def state_failure(route: Route) -> Failure | None:
    """Why clients of this tenant are not served now; None: they are, in the state READY and with a database alone."""
    if route.state is TenantState.SUSPENDED:
        return Failure(SUSPENDED, tenant=route.slug)
    if route.state is TenantState.DROPPING:
        return Failure(UNKNOWN_TENANT, tenant=route.slug)
    if route.state in _UNDER_WAY:
        return Failure(NOT_READY, tenant=route.slug, reason=_UNDER_WAY[route.state])
    if route.state is TenantState.READY and route.server is not None and route.database_name is not None:
        return None
    is_shared = route.state is TenantState.READY and route.shared
    return Failure(NO_SHARED_DATABASE if is_shared else NO_DATABASE, tenant=route.slug)


def service_failure(route: Route, role: object | None) -> Failure | None:
    """The same for clients whose backends would log in with this role, None where there is none."""
    failed = state_failure(route)
    return Failure(NO_ROLE, tenant=route.slug) if failed is None and role is None else failed


def find(
    statement: Statement, names: Sequence[tuple[str, Route | None]], on_database: Sequence[Route], *, certain: bool
) -> Found:
    """Decide which tenant a statement means: its names in their order, then the database where one tenant has it."""
    for name, route in names:
        if route is not None:
            return Found(statement, route, _how(statement, name, route), certain=certain)
    if len(on_database) == 1:
        return Found(statement, on_database[0], "the database on its server", certain=certain)
    if on_database:
        return Found(statement, None, "the database of more than one tenant", ambiguous=True, certain=certain)
    return Found(statement, None, "nothing known", certain=certain)


def _how(statement: Statement, name: str, route: Route) -> str:
    spelled = statement.source is Source.DATABASE and name != statement.value
    kind = "slug" if name == route.slug else "alias"
    return f"pattern, {kind}" if spelled else kind
