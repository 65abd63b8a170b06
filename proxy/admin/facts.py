"""The tables of few rows: the node as a whole, its settings, its registry, the way of a connection, the commands.

They are made at once.  The columns are those of `catalogue`, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from proxy.admin.catalogue import ORDERS, TOPICS
from proxy.admin.node import NodeView
from proxy.admin.tables import Row
from proxy.routing.explain import Explanation
from proxy.routing.names import Selectors
from proxy.settings import Settings

Facts: TypeAlias = Callable[[NodeView], Iterator[Row]]


def config(node: NodeView) -> Iterator[Row]:
    """SHOW CONFIG; secrets are masked by the settings themselves."""
    defaults = Settings().model_dump(mode="json")
    for section, values in node.settings().model_dump(mode="json").items():
        for name, value in values.items():
            yield f"{section}.{name}", _written(value), _written(defaults[section][name])


def version(node: NodeView) -> Iterator[Row]:
    """SHOW VERSION."""
    yield (str(node.build),)


def state(node: NodeView) -> Iterator[Row]:
    """SHOW STATE."""
    checks = node.readiness()
    yield "ready", "yes" if all(check.ok for check in checks) else "no"
    for check in checks:
        yield check.name, check.detail or ("yes" if check.ok else "no")
    moment = node.moment()
    status = node.resolver.status()
    yield "registry_version", str(status.version)
    yield "registry_lag_seconds", f"{status.lag:.3f}"
    yield "node", str(node.settings().node.id)
    yield "started", moment.day(node.started)
    yield "uptime_seconds", f"{moment.since(node.started):.0f}"
    yield "clients", str(len(node.clients))
    yield "max_clients", str(node.settings().listen.max_clients)
    yield "backends", str(node.ledger.held)
    yield "max_backends", str(node.ledger.max_backends)


def registry(node: NodeView) -> Iterator[Row]:
    """SHOW REGISTRY."""
    status = node.resolver.status()
    yield "up", "yes" if status.registry_up else "no"
    yield "reason", status.reason or ""
    yield "live", "yes" if status.live else "no"
    yield "version", str(status.version)
    yield "lag_seconds", f"{status.lag:.3f}"
    yield "reconnects", str(status.reconnects)
    yield "questions", str(status.queries)
    yield "overtaken", str(status.overtaken)
    yield "answered_from_memory", str(status.remembered)
    yield "watched_tenants", str(status.watched)
    yield "verifiers_asked", str(status.asked_servers)
    yield "verifiers_asked_in_vain", str(status.asked_in_vain)


def commands(node: NodeView) -> Iterator[Row]:
    """SHOW HELP."""
    del node
    for topic in TOPICS.values():
        yield topic.usage, topic.meaning
    for order in ORDERS.values():
        yield order.usage, order.meaning


async def route(node: NodeView, arguments: tuple[str, ...]) -> list[Row]:
    """SHOW ROUTE; asks the registry, no server, and says where one would be asked."""
    user, *database = arguments
    return list(_explained(await node.resolver.explain(Selectors(user, database[0] if database else None))))


def _explained(found: Explanation) -> Iterator[Row]:
    for step in found.steps:
        yield step.selector, step.value, step.says, step.found, "yes" if step.decides else "no", step.note
    where = found.destination
    if where is not None:
        yield "tenant", where.tenant, f"state {where.state}", None, None, f"generation {where.generation}"
        yield "server", where.server, ", ".join(where.addresses), None, None, f"database {where.database}"
        yield "role", where.role, f"pool mode {where.pool_mode}", None, None, "shared database" if where.shared else ""
    yield "login", found.login, None, None, None, found.note or ("" if found.login else "there is no such login here")
    if found.problem is not None:
        yield "refused", found.problem.sqlstate, found.problem.message, None, None, found.problem.hint


def _written(value: object) -> str | None:
    """A setting's value as it stands in the file, texts without their quotes."""
    if value is None:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FACTS: Final[Mapping[str, Facts]] = MappingProxyType(
    {
        "CONFIG": config,
        "VERSION": version,
        "STATE": state,
        "REGISTRY": registry,
        "HELP": commands,
    }
)
