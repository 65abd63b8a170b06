"""Keys that clients' proofs have shown: with them the proxy logs in to the server as the same role.

A client that proves to the proxy that it knows a password shows its ClientKey by that, and the verifier has the rest.
No password is known or stored; but such a key is as good as one where the server has the same verifier, so that it is
kept in memory only, and only as long as it is of use.

Source: RFC 5802 section 3 (`ClientKey := ClientProof XOR ClientSignature`).
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from proxy.auth.errors import KeyOutdated
from proxy.auth.verifiers import ScramKeys, ScramVerifier

MAX_KEYS: Final = 10_000

Owner: TypeAlias = tuple[int, str]
"""Whose key it is: a tenant's id, and the name of the role."""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """The key that a proof has shown, and the verifier that it was checked against."""

    verifier: ScramVerifier = field(repr=False)
    key: bytes = field(repr=False)

    def derive(self, _password: str | bytes, salt: bytes, iterations: int) -> ScramKeys:
        """Stand in for `derive_keys`: the keys, whatever the password is said to be.

        Raises KeyOutdated where the server wants them for another salt or count: then its verifier is another one.
        """
        verifier = self.verifier
        if iterations != verifier.iterations or not hmac.compare_digest(salt, verifier.salt):
            raise KeyOutdated("the role has another password on the server than the one that its client has proved")
        return ScramKeys(self.key, verifier.server_key)


class ClientKeys:
    """The keys of the `limit` owners that were last used.

    Each change of an owner's verifier gives it another serial number, by which a pool sees that the role's password
    is another one.
    """

    def __init__(self, limit: int = MAX_KEYS) -> None:
        self._limit = limit
        self._keys: OrderedDict[Owner, tuple[ClientKey, int]] = OrderedDict()
        self._by_tenant: dict[int, set[str]] = {}
        self._serial = 0

    @property
    def limit(self) -> int:
        """Keys remembered at most; those last used stay when it is lowered."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        while len(self._keys) > limit:
            self._forget(next(iter(self._keys)))

    def keep(self, owner: Owner, key: ClientKey) -> int:
        """Remember an owner's key; returns its serial number, the same as before if the verifier is."""
        known = self._keys.get(owner)
        if known is not None and known[0].verifier == key.verifier:
            self._keys.move_to_end(owner)
            return known[1]
        self._serial += 1
        self._keys[owner] = (key, self._serial)
        self._keys.move_to_end(owner)
        self._by_tenant.setdefault(owner[0], set()).add(owner[1])
        if len(self._keys) > self._limit:
            self._forget(next(iter(self._keys)))
        return self._serial

    def find(self, owner: Owner, serial: int) -> ClientKey | None:
        """The owner's key of this serial number, if it is still known."""
        known = self._keys.get(owner)
        if known is None or known[1] != serial:
            return None
        self._keys.move_to_end(owner)
        return known[0]

    def drop(self, owner: Owner, serial: int) -> None:
        """Forget the owner's key of this serial number: the server does not take it."""
        if self.find(owner, serial) is not None:
            self._forget(owner)

    def outdate(self, owner: Owner, verifier: ScramVerifier | None) -> None:
        """Forget the owner's key unless it is of this verifier, which is the server's now."""
        known = self._keys.get(owner)
        if known is not None and known[0].verifier != verifier:
            self._forget(owner)

    def forget_tenant(self, tenant_id: int) -> None:
        """Forget all keys of a tenant that has no clients any more."""
        for user in tuple(self._by_tenant.get(tenant_id, ())):
            self._forget((tenant_id, user))

    def __len__(self) -> int:
        return len(self._keys)

    def _forget(self, owner: Owner) -> None:
        tenant_id, user = owner
        del self._keys[owner]
        users = self._by_tenant[tenant_id]
        users.remove(user)
        if not users:
            del self._by_tenant[tenant_id]
