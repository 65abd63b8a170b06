"""A gate between the proxy and a server, for what a network may do to connections: let them wait."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK = 65536


class Passage:
    """One connection through the gate; `seen` is what its client has sent so far.

    With a `limit`, what the client sends beyond so many bytes, and its end, wait until `opened` is set.
    """

    def __init__(self, client: socket.socket, port: int, limit: int | None) -> None:
        self.seen = b""
        self.opened = threading.Event()
        self.ended = threading.Event()
        self._client = client
        self._server = socket.create_connection(("127.0.0.1", port))
        self._limit = limit
        self._pumps = [threading.Thread(target=pump) for pump in (self._towards_server, self._towards_client)]
        for pump in self._pumps:
            pump.start()

    def close(self) -> None:
        self.opened.set()
        for sock in (self._client, self._server):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for pump in self._pumps:
            pump.join()
        self._client.close()
        self._server.close()

    def _towards_server(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(CHUNK):
                at_once = len(data) if self._limit is None else max(0, self._limit - len(self.seen))
                self.seen += data
                self._server.sendall(data[:at_once])
                if at_once < len(data):
                    self.opened.wait()
                    self._server.sendall(data[at_once:])
        self.ended.set()
        if self._limit is not None:
            self.opened.wait()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)

    def _towards_client(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(CHUNK):
                self._client.sendall(data)
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)


class Gate:
    """Listens on a free port of 127.0.0.1 and leads to a server's; `passages` are those since the last `hold`."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._limit: int | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.passages: list[Passage] = []
        self._all: list[Passage] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def hold(self, after: int) -> None:
        """Let only so many bytes through on each connection from now on; those of before go on as they were."""
        self._limit = after
        self.passages.clear()

    def release(self) -> None:
        """Let everything through again."""
        self._limit = None
        for passage in self.passages:
            passage.opened.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                passage = Passage(self._listening.accept()[0], self._to, self._limit)
                self._all.append(passage)
                self.passages.append(passage)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for passage in self._all:
            passage.close()
