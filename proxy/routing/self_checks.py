"""What a node finds out about itself before it says that it is ready: whether its keys are those of its registry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from registry.contract import RegistryUnavailable

log = logging.getLogger(__name__)

InspectSecrets: TypeAlias = Callable[[], Awaitable[str]]
"""Says why this node cannot open the registry's secrets, `""` if it can; raises RegistryUnavailable."""


class SecretsCheck:
    """Whether this node's keys fit the registry's secrets, as far as that is known: until then they do.

    `timeout` is in seconds, for one look.
    """

    def __init__(self, inspect: InspectSecrets, *, timeout: float) -> None:
        self._inspect = inspect
        self._timeout = timeout
        self.known = False
        self.problem = ""

    async def look(self) -> None:
        """Find it out, and log what has changed; a registry that cannot be asked changes nothing."""
        try:
            async with asyncio.timeout(self._timeout):
                problem = await self._inspect()
        except (RegistryUnavailable, TimeoutError):
            return
        if problem and problem != self.problem:
            log.error("this node has not the registry's keys and is not ready: %s", problem)
        elif self.problem and not problem:
            log.info("this node has the registry's keys now")
        self.known, self.problem = True, problem
