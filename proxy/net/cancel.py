"""Passing a cancel request on to a server.

A cancel request is an asynchronous signal to a process, whoever uses that process by then.  So it is sent only if it
is still wanted at the last moment, and until the server has closed its connection, which it does after signalling, the
backend must not serve anybody else.

Source: PostgreSQL documentation, "Protocol Flow", section "Canceling Requests in Progress".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from proxy.net.backend_handshake import connect
from proxy.net.endpoints import DialFailed, Endpoint
from proxy.net.handshake_io import PeerGone
from proxy.net.tls import ServerTlsContexts, TlsConfigError
from proxy.wire.startup import CancelRequest
from registry.contract import ServerInfo

log = structlog.get_logger(__name__)


class CancelUncertain(TimeoutError):
    """A cancel request was sent, and the server did not confirm it: it may take effect at any time from now on."""


async def send_cancel(
    server: ServerInfo,
    address: Endpoint,
    pid: int,
    key: bytes,
    *,
    still_wanted: Callable[[], bool],
    timeout: float,  # noqa: ASYNC109 - what it means for the request differs before and after sending
    tls_contexts: ServerTlsContexts,
) -> bool:
    """Ask the server to cancel what the session with this process id and key does, and wait until it has.

    `address` is that of the backend's own connection; TLS is agreed on anew, as the server's mode wants it.
    `still_wanted` is called once there is a connection, and nothing runs between its answer and the request.
    `timeout` in seconds is for all of it.

    Returns True when the server has closed the connection, so that nothing more can come of it; False when nothing
    was sent, as it was no longer wanted or the server could not be reached.  Raises CancelUncertain otherwise: the
    backend must be closed then, and so it must when this coroutine is cancelled.
    """
    sent = False
    try:
        async with asyncio.timeout(timeout):
            io = await connect(server, address, tls_contexts)
            try:
                if not still_wanted():
                    return False
                sent = True
                await io.send(CancelRequest(pid, key).encode())
                await io.wait_for_end()
            finally:
                io.close()
    except (TimeoutError, DialFailed, PeerGone, TlsConfigError) as error:
        reason = str(error) or f"no answer within {timeout:g} s"
        if sent:
            raise CancelUncertain(reason) from None
        log.warning("cancel request could not be sent", server=server.name, address=str(address), reason=reason)
        return False
    return True
