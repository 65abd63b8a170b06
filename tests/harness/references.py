"""Pages of documentation that are made from code, so that tests can hold them in step.

`python -m harness.references`, run in `tests/`, writes them anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric

from proxy.admin.catalogue import ORDERS, TOPICS
from proxy.errors import ERRORS
from proxy.settings.reference import settings_reference

ROOT = Path(__file__).resolve().parents[2]

ERRORS_HEAD = """\
# Errors

What the proxy itself tells a client. Errors of PostgreSQL are passed on as they are and are not listed here. "retry"
says that nothing of the refused request has run, and that the same request may succeed later without anybody changing
it. FATAL ends the connection; during a login every error does.

| name | SQLSTATE | severity | retry | text | hint |
|---|---|---|---|---|---|
"""
METRICS_HEAD = """\
# Metrics

`GET /metrics` on the HTTP endpoint (`[http]`) in Prometheus' text format; besides these there are the process metrics
of prometheus-client (`process_cpu_seconds_total` and so on).

The number of series is bounded: the busiest tenants have series of their own, as many as the setting
`http.metrics_tenants` says (200), and all others share `tenant="_other"`. How busy a tenant is, is the time for which
it had backends, and a millisecond for each transaction; what it did five minutes ago counts half. Free places go to
whoever comes first. After that a tenant takes the place of the least busy one that has one when it is twice as busy,
and whoever has got a place keeps it for five minutes, so that series do not come and go all the time. Places change
hands when `/metrics` is read, and it shows the next time.

What a tenant does is counted by the series that it has at that moment and never moved to another: no counter decreases
while a node runs, and rates summed up over all tenants are exact. Who gets a place begins there at 0, or goes on where
it was if it had one before. A server that no tenant here uses any more keeps its counter and shows no slots.

| metric | type | labels | meaning |
|---|---|---|---|
"""
CONSOLE_HEAD = """\
# The console

`SHOW` with any PostgreSQL client: who is connected, who waits and for what, who keeps a backend and why. Operators
connect to the port of all clients, with the database name `pgtenant`:

    psql "postgresql://ann@proxy:6432/pgtenant" -c "show clients"

## Who may use it

It is off until it has users. They stand in the settings of the node, each with the SCRAM verifier of a password,
which `pgtenant secrets verifier` makes; the password itself is kept nowhere.

    [console]
    admins = { ann = "SCRAM-SHA-256$4096:..." }    # may look, and RELOAD
    stats = { grafana = "SCRAM-SHA-256$4096:..." } # may only look

- They log in with SCRAM-SHA-256, over TLS with channel binding; `listen.tls_mode`, the PROXY protocol and the slowing
  of failed logins are the same as for everybody.
- A user name that is not there, a wrong password and a node without a console meet the same conversation as a tenant
  that does not exist.
- The registry refuses `pgtenant` as a tenant's slug or alias. With another name in `console.database`, or where a
  server has a database of that name, the console takes only connections of its own users; if one of these could have
  logged in to the tenant, a warning says so, in the log and to the client.
- Sessions do not count as clients: the console can be reached when the node has all the clients that it may have, and
  while the registry is down. `console.max_sessions` bounds them. Users who may only look get three quarters of that, so
  that an exporter that leaks connections keeps no admin out. A session that asks nothing for `console.idle_timeout` (an
  hour) ends with `57P05`. In the log they are `console connected` and `console disconnected`, in
  [the metrics](metrics.md) `pgtenant_console_logins_total` and `pgtenant_console_sessions`.

## What it understands

The simple and the extended protocol, so that drivers and exporters can use it; no parameters. `BEGIN`, `COMMIT`,
`ROLLBACK`, `SET`, `RESET`, `DISCARD`, `DEALLOCATE`, `UNLISTEN` and `CLOSE` are accepted and do nothing, because
drivers say them unasked; `SELECT 1`, `SELECT version()` and `SHOW server_version` are answered. Anything else is an
error that names the commands. Names may be quoted; commands may be in lower case, and several in one text. There is
no catalog: a driver that reads types when it connects has to be told not to (postgres.js: `fetch_types: false`).

Tables are made while they are sent, a slice at a time: what has gone meanwhile is left out, and the relay is not held
up. Many columns are called as in PgBouncer's console; [from-pgbouncer.md](from-pgbouncer.md) lists the others.
Times are in UTC.

"""


def errors_page() -> str:
    """The text of docs/errors.md."""
    rows = [
        f"| {spec.name} | `{spec.sqlstate}` | {spec.severity.value} | {'yes' if spec.retry_safe else 'no'} | "
        f"{_cell(spec.text)} | {_cell(spec.hint or '')} |"
        for spec in ERRORS.values()
    ]
    return ERRORS_HEAD + "\n".join(rows) + "\n"


def console_page() -> str:
    """The text of docs/console.md."""
    parts = [CONSOLE_HEAD]
    parts += [f"## {order.usage}\n\n{order.meaning}\n\n" for order in ORDERS.values()]
    for topic in TOPICS.values():
        rows = "".join(f"| `{column.name}` | {_cell(column.meaning)} |\n" for column in topic.columns)
        parts.append(f"## {topic.usage}\n\n{topic.meaning}\n\n| column | meaning |\n|---|---|\n{rows}\n")
    return "".join(parts).rstrip() + "\n"


def metrics_page(families: Iterable[Metric]) -> str:
    """The text of docs/metrics.md; the families need one sample each, which tells their labels."""
    rows = []
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        rows.append(f"| `{name}` | {family.type} | {', '.join(labels)} | {_cell(family.documentation)} |")
    return METRICS_HEAD + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write all pages."""
    from harness.metricsworld import busy_metrics  # noqa: PLC0415 - only the writer needs a world

    (ROOT / "docs" / "errors.md").write_text(errors_page())
    (ROOT / "docs" / "console.md").write_text(console_page())
    (ROOT / "docs" / "metrics.md").write_text(metrics_page(busy_metrics().families()))
    (ROOT / "configs" / "pgtenant.toml").write_text(settings_reference())


if __name__ == "__main__":
    main()
