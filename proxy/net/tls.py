"""TLS contexts: the certificate that clients see, and what is asked of servers' certificates."""

from __future__ import annotations

import ssl
from collections import OrderedDict
from pathlib import Path
from typing import Final

from proxy.net.handshake_io import tls_reason
from registry.contract import ServerInfo, TlsMode

ALPN: Final = "postgresql"
"""The protocol name of PostgreSQL, registered with IANA; without it direct TLS is refused."""

MAX_CONTEXTS: Final = 256


class TlsConfigError(Exception):
    """A certificate, key or authority cannot be used; `hint` says what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class ClientTls:
    """The certificate shown to clients, and whether they have to use TLS.

    Raises TlsConfigError when the files cannot be used.
    """

    def __init__(self, cert: Path, key: Path, *, required: bool = False) -> None:
        self.required = required
        self._cert = cert
        self._key = key
        self._names: dict[int, str] = {}
        self.context = self._build()

    def reload(self) -> None:
        """Read the files again for connections from now on.

        Raises TlsConfigError when they cannot be used, and the certificate of before stays in force.
        """
        self.context = self._build()

    def take_server_name(self, fd: int) -> str | None:
        """The host name (SNI) that the client on this descriptor gave in its handshake; forgotten with the call."""
        return self._names.pop(fd, None)

    def _build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # PostgreSQL's own choice: no driver resumes sessions, and tickets would be sent for nothing.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0
        context.set_alpn_protocols([ALPN])
        context.sni_callback = self._note_name
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except ssl.SSLError as error:
            raise TlsConfigError(
                f"certificate {self._cert} with key {self._key} cannot be used: {tls_reason(error)}",
                "Both are PEM files, the certificate first in its chain, and the key is the certificate's own and is "
                "not encrypted.",
            ) from None
        except (OSError, ValueError) as error:
            raise TlsConfigError(
                f"certificate {self._cert} or key {self._key} cannot be read: {error}",
                "Check that both files exist and that this user may read them.",
            ) from None
        return context

    def _note_name(self, sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        if name is not None and isinstance(sock, ssl.SSLSocket):
            self._names[sock.fileno()] = name


class ServerTlsContexts:
    """The contexts for connections to servers, one for each mode and authority."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[tuple[TlsMode, str | None], ssl.SSLContext] = OrderedDict()

    def context(self, server: ServerInfo) -> ssl.SSLContext | None:
        """The context for a server; None where TLS is not to be asked for.

        The modes are those of libpq, also in this: with an authority given, `require` checks the certificate against
        it.  Raises TlsConfigError when the authority is no PEM certificate.
        """
        if server.tls_mode is TlsMode.DISABLE:
            return None
        wanted = (server.tls_mode, server.tls_ca)
        context = self._contexts.get(wanted)
        if context is None:
            context = self._contexts[wanted] = _build_for_server(server)
            if len(self._contexts) > MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        else:
            self._contexts.move_to_end(wanted)
        return context


def _build_for_server(server: ServerInfo) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([ALPN])
    mode = server.tls_mode
    verifies = mode in {TlsMode.VERIFY_CA, TlsMode.VERIFY_FULL} or (mode is TlsMode.REQUIRE and bool(server.tls_ca))
    context.check_hostname = mode is TlsMode.VERIFY_FULL
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    if not verifies:
        return context
    if server.tls_ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    try:
        context.load_verify_locations(cadata=server.tls_ca)
    except (ssl.SSLError, ValueError):
        raise TlsConfigError(
            f'the TLS authority of server "{server.name}" is not a PEM certificate',
            'Give the file of the certificate authority to "pgtenant server add --tls-ca".',
        ) from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")
