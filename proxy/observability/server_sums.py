"""What is shown of each server, by its name.

The ledger forgets a server that no tenant uses any more, and may hold two of one name for a while, when one has been
removed and another added.  Neither may show: a counter never goes back, and a series appears once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.pool.ledger import NodeLedger, ServerLedger


@dataclass(slots=True)
class ServerSum:
    """What one value of the label `server` shows."""

    held: int = 0
    max_connections: int = 0
    waiting: int = 0
    connect_failures: int = 0
    in_backoff: bool = False


class ServerSums:
    """Sums up the servers of a node by name; `clock` is monotonic, in seconds.

    A server that the ledger has forgotten goes on with all it had counted, and with nothing held.
    """

    def __init__(self, ledger: NodeLedger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        # The ledgers themselves: what they count between the last look and their end is not lost.
        self._known: dict[int, ServerLedger] = {}
        self._former_failures: dict[str, int] = {}

    def gather(self) -> dict[str, ServerSum]:
        """Sum up; returns the sums by name."""
        self._retire()
        sums = {name: ServerSum(connect_failures=failures) for name, failures in self._former_failures.items()}
        now = self._clock()
        for server in self._ledger.servers.values():
            self._known[server.server_id] = server
            one = sums.setdefault(server.name, ServerSum())
            one.held += server.held
            one.max_connections += server.max_connections
            one.waiting += sum(pool.waiting for pool in server.waiting_pools)
            one.connect_failures += server.connect_failures
            one.in_backoff = one.in_backoff or server.backoff_until > now
        return sums

    def _retire(self) -> None:
        """Keep the counts of the servers that the ledger has forgotten since the last look."""
        for server_id, server in list(self._known.items()):
            if self._ledger.servers.get(server_id) is not server:
                del self._known[server_id]
                failures = self._former_failures.get(server.name, 0)
                self._former_failures[server.name] = failures + server.connect_failures
