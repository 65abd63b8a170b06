"""The scenarios for drivers written in Python, and the entry of each driver's program."""

from __future__ import annotations

from drivers.scripts import conversations, statements
from drivers.scripts.play import Scenario, play
from drivers.scripts.session import Driver

SCENARIOS: dict[str, Scenario] = {
    "connect": statements.connect,
    "types": statements.types,
    "parameters": statements.parameters,
    "named": statements.named,
    "unnamed": statements.unnamed,
    "batch": statements.batch,
    "pipeline": statements.pipeline,
    "transactions": conversations.transactions,
    "errors": conversations.errors,
    "cursors": conversations.cursors,
    "copy": conversations.copy,
    "cancel": conversations.cancel,
    "notify": conversations.notify,
    "tls": conversations.tls,
    "settings": conversations.settings,
    "pool": conversations.pool,
    "reconnect": conversations.reconnect,
}
ALONE = frozenset({"pool", "reconnect"})


def main(driver: Driver) -> None:
    """Play what the environment asks for."""
    play(driver, SCENARIOS, ALONE)
