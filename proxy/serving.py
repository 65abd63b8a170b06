"""Running a node as a process: its event loop, its signals, its beginning and end."""

from __future__ import annotations

import asyncio
import selectors
import signal
from collections.abc import Callable, Coroutine
from typing import Any, cast

import structlog

from proxy.net.descriptors import raise_limit
from proxy.net.garbage import spare_what_is_there
from proxy.net.relay_loop import RelaySelector
from proxy.observability.logs import ignored_errors_in_the_log
from proxy.server import Node
from proxy.settings import Settings

log = structlog.get_logger(__name__)


async def serve(node: Node, *, on_ready: Callable[[Node], None]) -> None:
    """Run a node until SIGTERM or SIGINT; SIGHUP reloads.  A second SIGTERM or SIGINT ends the grace time.

    Raises what `Node.start` raises.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    hurry = asyncio.Event()

    def stop() -> None:
        (hurry if stopping.is_set() else stopping).set()

    stopped: asyncio.Future[None] | None = None
    try:
        await node.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: node.spawn(node.reload_on_signal()))
        spare_what_is_there()
        on_ready(node)
        await stopping.wait()
        grace = node.settings.shutdown.grace
        log.info("stopping", clients=len(node.door.clients), grace=grace)
        stopped = asyncio.ensure_future(node.stop(grace))
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({stopped, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        node.grace_over = True
    finally:
        await (node.stop(0.0) if stopped is None else stopped)
    log.info("stopped")


def run(main: Callable[[RelaySelector], Coroutine[Any, Any, None]], settings: Settings) -> None:
    """Run a coroutine in an event loop of the relay's own kind."""
    selector = RelaySelector(settings.relay.budget_ms / 1000.0)
    # RelaySelector has the surface of BaseSelector without being one: compiled classes cannot inherit from it.
    base = cast("selectors.BaseSelector", selector)
    raise_limit()
    runner = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(base))
    with ignored_errors_in_the_log(), runner:
        runner.run(main(selector))
