"""PostgreSQL's wire protocol as values: bytes to messages and back, with no I/O.

`framing` finds frames, `frontend`, `backend` and `startup` hold the messages, `options` takes a StartupMessage's
`options` apart.
"""

from proxy.wire.errors import ImpossibleLength, ProtocolError, StartupOptionError, UnsupportedProtocol

__all__ = ["ImpossibleLength", "ProtocolError", "StartupOptionError", "UnsupportedProtocol"]
