"""What a change makes of a login."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from cryptography import x509

from registry.contract import AuthMethod, ReplicationAccess
from registry.domain.models import KEEP, LoginChange, LoginRecord, Tenant, chosen
from registry.domain.names import check_identifier
from registry.errors import Invalid

MAX_SPELLINGS: Final = 64
MAX_SPELLING_CHARS: Final = 128
MAX_CERTIFICATE_CHARS: Final = 512
DISTINGUISHED: Final = "dn:"


@dataclass(frozen=True, slots=True)
class LoginOutcome:
    """The login after the change; `md5_stale`: its md5 hashes must be made anew, which takes the password."""

    login: LoginRecord
    md5_stale: bool


def usual_spellings(user: str, tenant: Tenant | None) -> tuple[str, ...]:
    """How clients may spell the user name: alone, or with the tenant's slug or alias behind a dot."""
    names = () if tenant is None else (tenant.slug, *tenant.aliases)
    return (user, *(f"{user}.{name}" for name in names))


def change_login(before: LoginRecord, change: LoginChange, *, verifier: str, tenant: Tenant | None) -> LoginOutcome:
    """Apply a change; `verifier` is the one that the login shall have.  Raises Invalid."""
    methods = chosen(change.methods, before.methods)
    if not methods:
        raise Invalid("methods", "a login needs a method", f"one of {', '.join(sorted(AuthMethod))}")
    spellings: tuple[str, ...] = ()
    if AuthMethod.MD5 in methods:
        usual = usual_spellings(before.user, tenant)
        spellings = _check_spellings(
            before.md5_spellings or usual if change.md5_spellings is KEEP else change.md5_spellings
        )
    elif change.md5_spellings is not KEEP and change.md5_spellings:
        raise Invalid("md5_spellings", "spellings for md5, but md5 is not among the methods", "add md5 to the methods")
    after = replace(
        before,
        user=check_identifier("user", before.user),
        verifier=verifier,
        methods=methods,
        certificate=_check_certificate(chosen(change.certificate, before.certificate), methods),
        md5_spellings=spellings,
        role_user=chosen(change.role_user, before.role_user),
        has_role_password=before.has_role_password
        if change.role_password is KEEP
        else change.role_password is not None,
        replication=chosen(change.replication, before.replication),
    )
    if after.replication is ReplicationAccess.SERVER and after.tenant_id is not None:
        raise Invalid(
            "replication",
            f"login {after.user!r} is of one tenant, and replicating a server shows the data of all tenants on it",
            "replication = database, or a login for all tenants",
        )
    if after.role_user is not None:
        check_identifier("role", after.role_user)
    elif after.has_role_password:
        raise Invalid("role", "a role's password without a role", "name the role, or take the password away")
    stale = bool(spellings) and (spellings != before.md5_spellings or verifier != before.verifier)
    return LoginOutcome(after, stale)


def _check_certificate(identity: str | None, methods: frozenset[AuthMethod]) -> str | None:
    if identity is None:
        return None
    if AuthMethod.CERT not in methods:
        raise Invalid(
            "certificate", "a certificate's name, but cert is not among the methods", "add cert to the methods"
        )
    name = identity.removeprefix(DISTINGUISHED)
    if name != identity:
        name = _canonical(name)
        identity = DISTINGUISHED + name
    if not name or len(identity) > MAX_CERTIFICATE_CHARS or not name.isprintable():
        raise Invalid(
            "certificate",
            f"{identity!r} is no name of a certificate",
            f"its common name, or {DISTINGUISHED} and its whole subject: {DISTINGUISHED}CN=app,O=Acme",
        )
    return identity


def _canonical(subject: str) -> str:
    """A subject in the spelling in which those of certificates are compared with it, empty where it is none."""
    try:
        return x509.Name.from_rfc4514_string(subject).rfc4514_string()
    except ValueError:
        return ""


def _check_spellings(spellings: Iterable[str]) -> tuple[str, ...]:
    found = tuple(sorted(set(spellings)))
    if not found:
        raise Invalid("md5_spellings", "md5 needs a spelling of the user name", "give one, or leave the key out")
    if len(found) > MAX_SPELLINGS or any(not 0 < len(one) <= MAX_SPELLING_CHARS or "\0" in one for one in found):
        raise Invalid(
            "md5_spellings",
            "too many spellings of the user name, or one that is too long",
            f"at most {MAX_SPELLINGS} of at most {MAX_SPELLING_CHARS} characters",
        )
    return found
