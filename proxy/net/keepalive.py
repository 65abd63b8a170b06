"""Noticing a peer that is gone without a word: its machine has stopped, or the way to it is cut.

The kernel asks a silent peer whether it is there, and gives up a connection whose bytes nobody confirms.  With its own
times that takes two hours and a quarter of an hour; until then a lost server's backends would hold their slots, and a
lost client its backend.

Source: Linux `tcp(7)`, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT and TCP_USER_TIMEOUT.
"""

from __future__ import annotations

import socket
from typing import Final

IDLE: Final = 60
"""Seconds of silence before the first question."""
INTERVAL: Final = 10
COUNT: Final = 3
"""Questions without an answer after which the peer counts as gone."""
UNCONFIRMED: Final = 60_000
"""Milliseconds for which bytes may stay unconfirmed."""


def notice_silence(sock: socket.socket) -> None:
    """Have the kernel notice that the peer of a TCP connection is gone; sockets accepted from `sock` inherit it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, COUNT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNCONFIRMED)
