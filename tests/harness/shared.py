"""The PostgreSQL servers of one test run, shared by all of its worker processes.

They belong to the controlling pytest process, which starts each when it is first asked for, and with which they
end, however it ends.  Workers of pytest-xdist ask for them over a Unix socket.
"""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import trustme

from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts
from proxy.demo.install import EmbeddedError

MAX_CONNECTIONS = 200
CA_FILE = "ca.pem"


class SharedServers:
    """The servers in the controlling process; safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[int, EmbeddedServer] = {}
        self._directory: Path | None = None
        self._listener: _Listener | None = None

    def get(self, version: int) -> ServerFacts:
        """The running server of this version, started if need be; version 17 speaks TLS (see `ca_file`)."""
        with self._lock:
            if version not in self._servers:
                self._servers[version] = self._start(version)
            return self._servers[version].facts

    @property
    def address(self) -> str:
        """Where workers ask; the first use begins to listen there."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="pgtenant-tests-"))
            self._listener = _Listener(str(self._directory / "servers"), self)
            threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        return str(self._directory / "servers")

    def close(self) -> None:
        """Stop the servers and delete their files."""
        if self._listener is not None and self._directory is not None:
            self._listener.shutdown()
            self._listener.server_close()
            shutil.rmtree(self._directory)
        with self._lock:
            for server in self._servers.values():
                server.stop("immediate")
                server.close()
            self._servers.clear()

    def _start(self, version: int) -> EmbeddedServer:
        tls = None
        authority = trustme.CA()
        if version == 17:
            certificate = authority.issue_cert("localhost", "127.0.0.1")
            chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
            tls = (chain, certificate.private_key_pem.bytes())
        server = EmbeddedServer(version, max_connections=MAX_CONNECTIONS, durable=False, tls=tls)
        server.start()
        if tls is not None:
            authority.cert_pem.write_to_path(str(server.base_dir / CA_FILE))
        return server


class _Listener(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, address: str, servers: SharedServers) -> None:
        super().__init__(address, _Answer)
        self.servers = servers


class _Answer(socketserver.StreamRequestHandler):
    server: _Listener

    def handle(self) -> None:
        try:
            facts = self.server.servers.get(int(self.rfile.readline()))
        except EmbeddedError as error:
            answer: dict[str, object] = {"message": error.message, "hint": error.hint}
        else:
            answer = {"facts": facts.to_json()}
        self.wfile.write(json.dumps(answer).encode())


def ask_for_server(address: str) -> Callable[[int], ServerFacts]:
    """What a worker uses in place of `SharedServers.get`."""

    def get(version: int) -> ServerFacts:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            connection.sendall(f"{version}\n".encode())
            answer = json.load(connection.makefile())
        if "facts" not in answer:
            raise EmbeddedError(answer["message"], answer["hint"])
        return ServerFacts.from_json(answer["facts"])

    return get


def ca_file(server: ServerFacts) -> Path:
    """The certificate authority of a shared server that speaks TLS, for sslrootcert."""
    return server.base_dir / CA_FILE
