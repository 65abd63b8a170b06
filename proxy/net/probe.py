"""A login that needs a backend for a moment, to let PostgreSQL check and spell the client's settings.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from proxy.errors import Failure
from proxy.net.backend_link import BackendLink
from proxy.session.parameters import ParameterSet


class Probe:
    """Waits for a backend, applies `parameters` to it, and keeps what the server then reports.

    When `done` is set, exactly one of `statuses`, `error` (an ErrorResponse) and `failure` says how it ended.
    `future` belongs to the coroutine that waits.
    """

    def __init__(self, parameters: ParameterSet, future: object) -> None:
        self.parameters = parameters
        self.future = future
        self.done = False
        self.statuses: dict[bytes, bytes] = {}
        self.error: bytes = b""
        self.failure: Failure | None = None
        self.backend: BackendLink | None = None

    def begin(self, backend: BackendLink) -> None:
        """Take the backend that was waited for."""
        self.backend = backend

    def end(self, backend: BackendLink, error: bytes) -> None:
        """Take note of the server's answer."""
        self.done = True
        self.backend = None
        if error:
            self.error = error
        else:
            self.statuses = dict(backend.state.params)

    def fail(self, failure: Failure) -> None:
        """Take note that there is no backend."""
        if not self.done:
            self.done = True
            self.failure = failure
            self.backend = None


class Claim(Probe):
    """A login that takes a backend for its client and keeps it, with the client's settings applied to it.

    `backend` is there from `begin` on until it is lost; once `done` is set it waits for the client, and says nothing.
    A login that ends without a client sets `given_up`, and gives a backend that waits back.
    """

    def __init__(self, parameters: ParameterSet, future: object) -> None:
        super().__init__(parameters, future)
        self.given_up = False

    def end(self, backend: BackendLink, error: bytes) -> None:
        """See `Probe`.  A backend that has taken the settings stays."""
        super().end(backend, error)
        if not error:
            self.backend = backend

    def fail(self, failure: Failure) -> None:
        """See `Probe`.  The backend may also be lost after that."""
        super().fail(failure)
        self.backend = None
