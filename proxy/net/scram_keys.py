"""Keys derived from backend passwords, kept: a pool that opens twenty backends hashes its password once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from proxy.auth import ScramClient, ScramKeys, derive_keys

CHEAP_ITERATIONS: Final = 16_384
"""Iterations up to which hashing (some 4 ms at the most) is done where it is asked for, instead of in a thread."""


class KeysNotAtHand(Exception):
    """Keys must be derived first, which takes too long for the event loop: see `ScramKeyCache.respond`."""

    def __init__(self, password: str | bytes, salt: bytes, iterations: int) -> None:
        super().__init__("keys have to be derived first")
        self.arguments = (password, salt, iterations)


class ScramKeyCache:
    """The keys of the `limit` most recently used combinations of password, salt and iterations; secrets all.

    `derived` counts how often a password had to be hashed.
    """

    def __init__(self, limit: int = 4096) -> None:
        self.derived = 0
        self._limit = limit
        self._keys: OrderedDict[tuple[str | bytes, bytes, int], ScramKeys] = OrderedDict()

    def derive(self, password: str | bytes, salt: bytes, iterations: int) -> ScramKeys:
        """Stand in for `derive_keys`; raises KeysNotAtHand where it would hold up the loop."""
        wanted = (password, salt, iterations)
        keys = self._keys.get(wanted)
        if keys is not None:
            self._keys.move_to_end(wanted)
            return keys
        if iterations > CHEAP_ITERATIONS:
            raise KeysNotAtHand(password, salt, iterations)
        return self._keep(wanted, derive_keys(password, salt, iterations))

    async def respond(self, scram: ScramClient, server_first: bytes) -> bytes:
        """Answer a server's challenge; `scram` must have been made with this cache's `derive`."""
        try:
            return scram.respond(server_first)
        except KeysNotAtHand as missing:
            self._keep(missing.arguments, await asyncio.to_thread(derive_keys, *missing.arguments))
        return scram.respond(server_first)

    def _keep(self, wanted: tuple[str | bytes, bytes, int], keys: ScramKeys) -> ScramKeys:
        self.derived += 1
        self._keys[wanted] = keys
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)
        return keys
