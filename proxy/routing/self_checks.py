"""What a node finds out about itself before it says that it is ready: whether its keys are those of its registry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from registry.contract import RegistryUnavailable

log = logging.getLogger(__name__)

InspectSecrets: TypeAlias = Callable[[], Awaitable[str]]
"""Says why this node cannot open the registry's secrets, `""` if it can; raises RegistryUnavailable."""


RECHECK: Final = 60.0
"""Seconds between two looks while all is in order: a change of keys makes no new version of the registry."""
RETRY: Final = 5.0
"""Seconds between two looks while the registry cannot be asked, or has a secret that cannot be opened."""


class SecretsCheck:
    """Whether this node's keys fit the registry's secrets, as far as that is known: until then they do.

    `problem` is what the last look has found; while there is one the node is not ready.  `timeout` is in seconds, for
    one look.
    """

    def __init__(self, inspect: InspectSecrets, *, timeout: float) -> None:
        self._inspect = inspect
        self.timeout = timeout
        self.known = False
        self.problem = ""
        self._looked_at = 0.0

    def is_due(self, now: float) -> bool:
        """Say whether it is time for another look, and take note that it is taken."""
        interval = RECHECK if self.known and not self.problem else RETRY
        if now - self._looked_at < interval:
            return False
        self._looked_at = now
        return True

    async def look(self) -> None:
        """Find it out, and log what has changed; a registry that cannot be asked changes nothing."""
        try:
            async with asyncio.timeout(self.timeout):
                problem = await self._inspect()
        except (RegistryUnavailable, TimeoutError):
            return
        if problem and problem != self.problem:
            log.error("this node cannot open all secrets of the registry and is not ready: %s", problem)
        elif self.problem and not problem:
            log.info("this node has the registry's keys now")
        self.known, self.problem = True, problem
