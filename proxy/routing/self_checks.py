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

    `unfit` is why the node is not ready: what the first look has found, until a later one finds nothing.  A node that
    was ready stays so whatever later looks find, as all nodes find it at once; `problem` is what the last one found.
    `timeout` is in seconds, for one look.
    """

    def __init__(self, inspect: InspectSecrets, *, timeout: float) -> None:
        self._inspect = inspect
        self.timeout = timeout
        self.known = False
        self.problem = ""
        self.unfit = ""

    async def look(self) -> None:
        """Find it out, and log what has changed; a registry that cannot be asked changes nothing."""
        try:
            async with asyncio.timeout(self.timeout):
                problem = await self._inspect()
        except (RegistryUnavailable, TimeoutError):
            return
        if not self.known or not problem:
            self.unfit = problem
        if problem and problem != self.problem:
            log.error("this node cannot open all secrets of the registry%s: %s", self._consequence(), problem)
        elif self.problem and not problem:
            log.info("this node has the registry's keys now")
        self.known, self.problem = True, problem

    def _consequence(self) -> str:
        return " and is not ready" if self.unfit else ""
