"""What the codec raises when bytes are not the protocol."""

from __future__ import annotations


class ProtocolError(ValueError):
    """The peer's bytes, or values given to `encode`, do not form a message of PostgreSQL's protocol.

    The text never quotes the bytes themselves: they may hold a password.  Whoever owns the connection ends it
    with SQLSTATE 08P01.
    """


class ImpossibleLength(ProtocolError):
    """A length field has a value that it cannot have, or must not have here: the stream has no further meaning."""

    def __init__(self, message: str, length: int) -> None:
        super().__init__(message)
        self.length = length


class UnsupportedProtocol(ProtocolError):
    """A StartupMessage asks for a major version other than 3; PostgreSQL answers 0A000."""

    def __init__(self, major: int, minor: int) -> None:
        super().__init__(f"unsupported frontend protocol {major}.{minor}: 3.0 to 3.2 are supported")
        self.major = major
        self.minor = minor


class StartupOptionError(ProtocolError):
    """The `options` of a StartupMessage hold a switch that cannot be honoured; `switch` names it."""

    def __init__(self, message: str, switch: str) -> None:
        super().__init__(message)
        self.switch = switch
