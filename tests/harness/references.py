"""Pages of documentation that are made from code, so that tests can hold them in step.

`python -m harness.references`, run in `tests/`, writes them anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric

from proxy.errors import ERRORS
from proxy.settings_reference import settings_reference

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

The number of series is bounded: 200 tenants have series of their own, all others share `tenant="_other"`. A tenant
that has had no transaction for five minutes gives its place to a busy one that has none. What a tenant does is counted
by the series that it has at that moment and never moved to another: no counter decreases while a node runs, and rates
summed up over all tenants are exact. A server that no tenant here uses any more keeps its counter and shows no slots.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def errors_page() -> str:
    """The text of docs/errors.md."""
    rows = [
        f"| {spec.name} | `{spec.sqlstate}` | {spec.severity.value} | {'yes' if spec.retry_safe else 'no'} | "
        f"{_cell(spec.text)} | {_cell(spec.hint or '')} |"
        for spec in ERRORS.values()
    ]
    return ERRORS_HEAD + "\n".join(rows) + "\n"


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
    (ROOT / "docs" / "metrics.md").write_text(metrics_page(busy_metrics().families()))
    (ROOT / "configs" / "pgtenant.toml").write_text(settings_reference())


if __name__ == "__main__":
    main()
