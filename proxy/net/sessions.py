"""The clients of a node that have logged in, and the keys by which their cancel requests are known."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from proxy.net.client_link import ClientLink

LONG_SECRET: Final = 32
SHORT_SECRET: Final = 4
"""All that protocol 3.0 has room for.  With the random part of a made-up process id there are 56 bits to guess."""
NODE_SHIFT: Final = 24
"""A made-up process id is the node's number above this bit, and random bits below it."""


@dataclass(frozen=True, slots=True)
class CancelKey:
    """What a client is told in BackendKeyData: a process id, and a secret."""

    pid: int
    secret: bytes = field(repr=False)


@dataclass(slots=True)
class ClientInfo:
    """What is known of a client besides its link; for logs, metrics and the console."""

    user: str
    address: str
    tls: bool
    since: float
    key: CancelKey


class Sessions:
    """The register of clients: `links` are theirs by `ClientLink.ident`.

    Several clients may have been told the same process id, as each server has its own: a cancel request is known by the
    process id and the secret together.
    """

    def __init__(self) -> None:
        self.links: dict[int, ClientLink] = {}
        # A key without a client yet is promised to one that is still logging in.
        self._by_pid: dict[int, dict[CancelKey, ClientLink | None]] = {}

    def promise(self, node_id: int, minor: int, pid: int = 0) -> CancelKey:
        """Make an unguessable key that no other client has, to be followed by `add` or `forget`.

        `pid` is that of a server's process; without it one is made up, with the node's number in it, that no other
        client has.  `minor` is that of the client's protocol, on which the length of the secret depends.
        """
        while True:
            key = CancelKey(
                pid or (node_id << NODE_SHIFT) | secrets.randbits(NODE_SHIFT),
                secrets.token_bytes(LONG_SECRET if minor >= 2 else SHORT_SECRET),
            )
            others = self._by_pid.get(key.pid, {})
            if key.pid and key not in others and (pid or not others):
                self._by_pid.setdefault(key.pid, {})[key] = None
                return key

    def forget(self, key: CancelKey) -> None:
        """Take a promise back."""
        keys = self._by_pid.get(key.pid, {})
        keys.pop(key, None)
        if not keys:
            self._by_pid.pop(key.pid, None)

    def add(self, client: ClientLink) -> None:
        """Enter a client, whose `info` is complete."""
        key = _key_of(client)
        self.links[client.ident] = client
        self._by_pid.setdefault(key.pid, {})[key] = client

    def remove(self, client: ClientLink) -> bool:
        """Strike a client off; False when it was not there."""
        if self.links.pop(client.ident, None) is None:
            return False
        self.forget(_key_of(client))
        return True

    def find(self, pid: int, secret: bytes) -> ClientLink | None:
        """The client with this key, None when there is none; the time taken says nothing of any secret."""
        found = None
        for key, client in self._by_pid.get(pid, {}).items():
            if hmac.compare_digest(key.secret, secret):
                found = client
        return found


def _key_of(client: ClientLink) -> CancelKey:
    info = client.info
    assert isinstance(info, ClientInfo), "whoever is among the clients has logged in"
    return info.key
