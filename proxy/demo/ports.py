"""Free TCP ports for servers that are about to start."""

from __future__ import annotations

import random
import socket

# Below every usual range of ephemeral ports: a client that connects to its own stopped server would otherwise
# now and then be given that very port as its source and be connected to itself.
LOWEST, HIGHEST = 15_000, 31_999
ATTEMPTS = 200


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class PortClaim:
    """A port that nobody else who claims ports on this machine is given while this claim lives.

    Its server may stop and start again meanwhile.  The claim is a name in Linux's abstract namespace of sockets, so it
    leaves no file and ends with the process at the latest.
    """

    def __init__(self, port: int) -> None:
        """Claim the port; raises OSError where somebody else has."""
        self.port = port
        self._name = socket.socket(socket.AF_UNIX)
        self._name.bind(f"\0pgtenant port {port}")

    def __del__(self) -> None:
        self._name.close()


def claim_port(host: str = "127.0.0.1") -> PortClaim:
    """Claim a port on which nothing listens now; raises OSError when none is found."""
    for _ in range(ATTEMPTS):
        try:
            claim = PortClaim(random.SystemRandom().randint(LOWEST, HIGHEST))
        except OSError:
            continue
        if is_free(claim.port, host):
            return claim
    raise OSError(f"no free TCP port between {LOWEST} and {HIGHEST} on {host}")


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens now; take it soon, nothing reserves it.

    Raises OSError when none is found.
    """
    return claim_port(host).port
