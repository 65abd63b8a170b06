"""PostgreSQL's wire protocol as values: bytes to messages and back, with no I/O."""

from proxy.wire.errors import ProtocolError, StartupOptionError, UnsupportedProtocol

__all__ = ["ProtocolError", "StartupOptionError", "UnsupportedProtocol"]
