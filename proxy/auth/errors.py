"""How a login may fail.  No text here holds anything that the peer sent, or a secret."""

from __future__ import annotations


class AuthError(Exception):
    """A login failed; the subclasses say whose fault it was."""


class MalformedExchange(AuthError):
    """The peer's authentication data is not what the mechanism prescribes (08P01 to a client)."""


class WrongPassword(AuthError):
    """The proof does not fit, or there is no such login: nobody outside may tell these apart (28P01)."""


class ChannelBindingFailed(AuthError):
    """The client is not at the other end of this TLS connection: somebody between has two of them (28000)."""


class KeyOutdated(AuthError):
    """A server wants another key than the one that a client has shown: the role's password has changed."""


class UntrustedServer(AuthError):
    """A server did not prove that it knows the password, asked for too much work, or refused the login."""


class VerifierError(AuthError, ValueError):
    """A stored verifier cannot be used."""
