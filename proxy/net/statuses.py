"""What PostgreSQL reports of its parameters at login, remembered, so that a client logs in without a backend.

The key is the pool (one server, database and role), the generation of its route, and the client's own settings:
ALTER ROLE and ALTER DATABASE, the server's own spelling of values and its version are all in the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.pool.ledger import PoolLedger
from proxy.session.parameters import ParameterSet
from proxy.wire.framing import B_PARAMETER_STATUS

SETS_PER_POOL: Final = 64


def encode_statuses(values: Mapping[bytes, bytes]) -> bytes:
    """Encode ParameterStatus messages for all the values."""
    return b"".join(
        bytes((B_PARAMETER_STATUS,)) + (len(name) + len(value) + 6).to_bytes(4, "big") + name + b"\0" + value + b"\0"
        for name, value in values.items()
    )


class StatusCache:
    """Remembers encoded ParameterStatus messages, at most `SETS_PER_POOL` per pool; forgets the oldest."""

    def __init__(self) -> None:
        self._known: dict[PoolLedger, tuple[int, dict[ParameterSet, bytes]]] = {}

    def get(self, pool: PoolLedger, parameters: ParameterSet) -> bytes | None:
        """Return what a client with these settings is to be told; None when that is not known."""
        known = self._known.get(pool)
        if known is None or known[0] != pool.generation:
            return None
        return known[1].get(parameters)

    def put(self, pool: PoolLedger, generation: int, parameters: ParameterSet, values: Mapping[bytes, bytes]) -> bytes:
        """Remember what a server of this generation of the route has reported; returns it encoded."""
        encoded = encode_statuses(values)
        known = self._known.get(pool)
        if known is None or known[0] != generation:
            known = (generation, {})
            self._known[pool] = known
        sets = known[1]
        sets.pop(parameters, None)
        if len(sets) >= SETS_PER_POOL:
            del sets[next(iter(sets))]
        sets[parameters] = encoded
        return encoded

    def observe(self, pool: PoolLedger, generation: int, plain: ParameterSet, values: Mapping[bytes, bytes]) -> None:
        """Take note of what a new backend reported: all is forgotten if it differs from what is known."""
        encoded = encode_statuses(values)
        known = self._known.get(pool)
        if known is not None and known[0] == generation and known[1].get(plain, encoded) == encoded:
            known[1][plain] = encoded
        else:
            self._known[pool] = (generation, {plain: encoded})

    def forget(self, pool: PoolLedger) -> None:
        """Forget all of a pool's."""
        self._known.pop(pool, None)

    def forget_tenant(self, tenant_id: int) -> None:
        """Forget all of a tenant's."""
        for pool in [pool for pool in self._known if pool.tenant.tenant_id == tenant_id]:
            del self._known[pool]
