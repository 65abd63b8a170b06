"""Explanations: how a connection's names were understood, step by step, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from proxy.errors import Failure
from proxy.routing.names import Selectors, Source
from proxy.routing.verdict import Found, Survey, fits, service_failure
from registry.contract import Login, Route, VerifierSource


@dataclass(frozen=True, slots=True)
class Step:
    """One selector: its value, what it says, whether it `decides`, and how that was judged.

    `found` is the slug it leads to; None where it leads nowhere or was not followed.
    """

    selector: str
    value: str | None
    says: str
    found: str | None
    decides: bool
    note: str


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the connection's queries would go."""

    tenant: str
    tenant_id: int
    state: str
    server: str | None
    addresses: tuple[str, ...]
    database: str | None
    role: str | None
    pool_mode: str
    generation: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """The error that a client would be told once it has proved who it is."""

    name: str
    sqlstate: str
    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """All steps and the result.  Holds no secret: neither verifiers nor passwords.

    `login` says which login the password would be checked against, None: no such login.  `note` is what else decides.
    """

    user: str
    steps: tuple[Step, ...]
    login: str | None
    destination: Destination | None
    problem: Problem | None
    note: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None and self.login is not None

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON-ready dictionaries and lists."""
        return {"ok": self.ok, **asdict(self)}


def explanation(
    survey: Survey, failed: Failure | None, *, asks_server: bool = False, barred: bool = False
) -> Explanation:
    """Put a survey into words; `failed` is what stands against the connection.

    `asks_server`: a user who has no login may be a role of the tenant's server.  `barred`: the client's address is none
    of the tenant's.
    """
    route, login = survey.route, None if barred else survey.effective_login
    role = _role(survey, asks_server=asks_server)
    if failed is None and route is not None:
        failed = service_failure(route, role)
    named = None if login is None else _login(login)
    if named is None and asks_server and not barred:
        named = f"{survey.user} (if its server has such a role)"
    return Explanation(
        user=survey.user,
        steps=tuple(_steps(survey)),
        login=named,
        destination=None if route is None else _destination(route, role),
        problem=None if failed is None else problem(failed),
        note="the tenant's clients may not come from this address" if barred else None,
    )


def refused(selectors: Selectors, failed: Failure) -> Explanation:
    """The explanation of names that are refused before anything is looked up."""
    return Explanation(selectors.user, (), None, None, problem(failed))


def problem(failed: Failure) -> Problem:
    """An error as part of an explanation."""
    return Problem(failed.spec.name, failed.sqlstate, failed.message, failed.hint)


def _steps(survey: Survey) -> list[Step]:
    asked = {found.statement: found for found in (survey.whole, survey.found) if found is not None}
    steps = []
    for statement in survey.reading.statements:
        says = f"tenant {' or '.join(statement.names)}"
        if statement.source is Source.USER:
            says += f", login {survey.reading.user}"
        found = asked.get(statement)
        decides = statement is survey.decider.statement
        note = _note(survey, found, statement.source, decides=decides)
        if not decides and survey.route is not None and statement in survey.statements:
            note = "fits" if fits(survey.route, statement) else "names another tenant"
        slug = found.route.slug if found is not None and found.route is not None else None
        steps.append(Step(statement.source.value, statement.value, says, slug, decides, note))
    steps += [
        Step(silence.source.value, silence.value, "nothing", found=None, decides=False, note=silence.reason)
        for silence in survey.reading.silences
    ]
    return steps


def _note(survey: Survey, found: Found | None, source: Source, *, decides: bool) -> str:
    if survey.by_whole_name and source is Source.USER:
        return f"no suffix: {survey.reading.exact_user} is the whole name of a login"
    if found is None:
        return "not followed"
    if not found.certain:
        return "the registry cannot be asked"
    return f"decides: {found.how}" if decides else found.how


def _login(login: Login) -> str:
    return f"{login.user} (all tenants)" if login.tenant_id is None else login.user


def _role(survey: Survey, *, asks_server: bool) -> str | None:
    """The role of the backends: the login's own, the tenant's, or the user's where that is a role of the server."""
    login, route = survey.effective_login, survey.route
    if login.source is VerifierSource.SERVER if login is not None else asks_server:
        return survey.user
    role = login.role if login is not None and login.role is not None else None if route is None else route.role
    return None if role is None else role.user


def _destination(route: Route, role: str | None) -> Destination:
    server = route.server
    return Destination(
        tenant=route.slug,
        tenant_id=route.tenant_id,
        state=route.state.value,
        server=None if server is None else server.name,
        addresses=() if server is None else tuple(f"{one.host}:{one.port}" for one in server.addresses),
        database=route.database_name,
        role=role,
        pool_mode=route.pool_mode.value,
        generation=route.generation,
        shared=route.shared,
    )
