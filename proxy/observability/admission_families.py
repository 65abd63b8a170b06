"""Metrics of what clients wait for before they are logged in."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from proxy.net.admission import Admissions


def admission_families(admissions: Admissions) -> Iterator[Metric]:
    """The places of logins (`kind="login"`) and of TLS handshakes (`kind="tls"`)."""
    states = GaugeMetricFamily(
        "pgtenant_login_places",
        "Logins and TLS handshakes (kind) by state: silent and speaking ones have a place, queued ones wait for it.",
        labels=["kind", "state"],
    )
    most = GaugeMetricFamily("pgtenant_login_places_max", "Places for logins and TLS handshakes.", labels=["kind"])
    waited = CounterMetricFamily(
        "pgtenant_login_places_waited", "Logins and TLS handshakes that had to wait for a place.", labels=["kind"]
    )
    for kind, admission in (("login", admissions.logins), ("tls", admissions.handshakes)):
        places = admission.places
        states.add_metric([kind, "silent"], places.silent)
        states.add_metric([kind, "speaking"], places.used - places.silent)
        states.add_metric([kind, "queued"], places.queued)
        most.add_metric([kind], places.limits.places)
        waited.add_metric([kind], admission.waited)
    evicted = CounterMetricFamily(
        "pgtenant_logins_evicted", "Connections closed that had said nothing, because their place was wanted."
    )
    evicted.add_metric([], admissions.logins.places.evicted)
    yield from (states, most, waited, evicted)
