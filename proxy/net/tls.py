"""What TLS has in common towards clients and servers, and the contexts for servers."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from proxy.net.handshake_io import tls_reason
from registry.contract import ServerInfo, TlsMode, TlsTerms, TlsVersion

ALPN: Final = "postgresql"
"""The protocol name of PostgreSQL, registered with IANA; without it direct TLS is refused."""

MAX_CONTEXTS: Final = 256

DESCRIPTORS: Final = Path("/proc/self/fd")
"""Where Linux shows a process its own files, those that only exist in memory too."""

TLS_VERSIONS: Final = {TlsVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3}


class TlsConfigError(Exception):
    """A certificate, key or authority cannot be used; `hint` says what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def load_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Give a context the certificate, with its chain, that it shows, and its key; both are PEM.

    Raises ssl.SSLError or ValueError when they cannot be used, as when the key is encrypted.
    """
    with as_file(certificate) as certificate_path, as_file(key) as key_path:
        context.load_cert_chain(certificate_path, key_path, password=_no_password)


@contextmanager
def as_file(data: bytes) -> Iterator[str]:
    """A file with this content, in memory where the system can do that: OpenSSL's API in Python wants a path."""
    if hasattr(os, "memfd_create") and DESCRIPTORS.is_dir():
        descriptor = os.memfd_create("pgtenant")
        try:
            os.write(descriptor, data)
            yield str(DESCRIPTORS / str(descriptor))
        finally:
            os.close(descriptor)
    else:
        # Readable by this user alone, and removed at the end of the block.
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            yield file.name


class ServerTlsContexts:
    """The contexts for connections to servers, one for all whose terms are the same."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[TlsTerms, ssl.SSLContext] = OrderedDict()

    def context(self, server: ServerInfo) -> ssl.SSLContext | None:
        """The context for a server; None where TLS is not to be asked for.

        The modes are those of libpq, also in this: with an authority given, `require` checks the certificate against
        it.  Raises TlsConfigError when the authority, or the certificate that the server is shown, cannot be used.
        """
        if server.tls_mode is TlsMode.DISABLE:
            return None
        wanted = server.tls
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
    context.minimum_version = TLS_VERSIONS[server.tls_min_version]
    context.set_alpn_protocols([ALPN])
    _show_certificate(context, server)
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


def _show_certificate(context: ssl.SSLContext, server: ServerInfo) -> None:
    if server.tls_cert is None:
        return
    reason: object = "its key cannot be opened with the encryption keys of this node"
    if server.tls_key is not None:
        try:
            load_certificate(context, server.tls_cert.encode(), server.tls_key.reveal().encode())
        except (ssl.SSLError, ValueError) as error:
            reason = tls_reason(error) if isinstance(error, ssl.SSLError) else error
        else:
            return
    raise TlsConfigError(
        f'the certificate for server "{server.name}" cannot be used: {reason}',
        'Set both anew with "pgtenant server set --tls-cert FILE --tls-key FILE".',
    )


def _no_password() -> str:
    raise ValueError("the key is encrypted")
