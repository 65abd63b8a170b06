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


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens now; take it soon, nothing reserves it.

    Raises OSError when none is found.
    """
    for _ in range(ATTEMPTS):
        port = random.SystemRandom().randint(LOWEST, HIGHEST)
        if is_free(port, host):
            return port
    raise OSError(f"no free TCP port between {LOWEST} and {HIGHEST} on {host}")
