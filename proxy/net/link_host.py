"""What links ask of the room that holds them all together, and the reasons they give.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from mypy_extensions import trait

from proxy.net.stream import Stream
from proxy.session.parameters import ParameterSet

if TYPE_CHECKING:
    from proxy.net.backend_link import BackendLink
    from proxy.net.client_link import ClientLink

FAREWELL_TIME: Final = 2.0
"""Seconds that a client has to take its last message and close."""

# What a client is told when the proxy ends its session (see `LinkHost.farewell`).
TOLD_BACKEND_LOST: Final = 1
TOLD_FAULT: Final = 2
TOLD_INTERNAL: Final = 3
TOLD_STATEMENT_MODE: Final = 4
TOLD_SETTING_REFUSED: Final = 5
TOLD_STATE_REFUSED: Final = 6
TOLD_STATE_LEFT: Final = 7

MODE_TRANSACTION: Final = 0
MODE_SESSION: Final = 1
MODE_STATEMENT: Final = 2


@trait
class LinkHost:
    """What links ask of the room that holds them all together.  Nothing here may call the event loop."""

    @abstractmethod
    def want_backend(self, client: ClientLink) -> None:
        """Queue a client for a backend; the answer is `ClientLink.granted` or `refused`, at once or later."""

    @abstractmethod
    def concerns_node(self, backend: BackendLink, texts: list[bytes]) -> None:
        """Attend to statements that concern the node before they go to this backend, which its client is linked to."""

    @abstractmethod
    def stop_waiting(self, client: ClientLink) -> None:
        """Take a client out of the queue."""

    @abstractmethod
    def give_back(self, backend: BackendLink) -> None:
        """Release a backend by asking the planner."""

    @abstractmethod
    def cancel_closing(self, backend: BackendLink) -> None:
        """Send a cancel request for what a backend that is being closed still does."""

    @abstractmethod
    def discard(self, backend: BackendLink, reason: str) -> None:
        """Close a backend that must never be used again."""

    @abstractmethod
    def backend_gone(self, backend: BackendLink, reason: str) -> None:
        """Note that a server has closed this backend's connection."""

    @abstractmethod
    def client_gone(self, client: ClientLink, reason: str) -> None:
        """Note that a client's session has ended."""

    @abstractmethod
    def client_finishing(self, client: ClientLink) -> None:
        """Note that a client has been sent its last message and is to close before its `finish_by`."""

    @abstractmethod
    def status_changed(self, backend: BackendLink) -> None:
        """Note that an idle server has reported another value of a parameter."""

    @abstractmethod
    def roles_changed(self, backend: BackendLink) -> None:
        """Note that a client has changed a role of the server, and that its transaction is over."""

    @abstractmethod
    def left_settling(self, backend: BackendLink) -> None:
        """Note that a backend whose client is gone has yet to answer the proxy's own statement."""

    @abstractmethod
    def settled(self, backend: BackendLink) -> None:
        """Note that a backend without a client has answered the proxy's own statement."""

    @abstractmethod
    def pins_changed(self, client: ClientLink, pins: int) -> None:
        """Note for which reasons a client keeps its backend now."""

    @abstractmethod
    def intern(self, pairs: tuple[tuple[bytes, bytes], ...]) -> ParameterSet:
        """Find the one object for a client's settings; raises ValueError as `parameter_pairs` does."""

    @abstractmethod
    def farewell(self, client: ClientLink, why: int, text: str) -> bytes:
        """The ErrorResponse with which a session ends."""

    @abstractmethod
    def result_type_changed(self, client: ClientLink) -> bytes:
        """The ErrorResponse for a prepared statement whose result is no longer what its client was told."""

    @abstractmethod
    def internal_error(self, link: Stream, error: BaseException) -> None:
        """Count and log an exception that was contained."""
