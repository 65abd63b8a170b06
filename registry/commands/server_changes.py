"""From the options of `server add` and `server set` to the change that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.commands.options import given, read_secret
from registry.contract import ProtocolVersion, TlsMode, TlsNegotiation, TlsVersion
from registry.domain.models import KEEP, ServerChange
from registry.domain.names import parse_address
from registry.errors import Invalid


def server_change(
    host: list[str] | None,
    tls: TlsMode | None,
    tls_ca: Path | None,
    max_connections: int | None,
    reserve: int | None,
    admin: str | None,
    admin_password: tuple[str | None, str | None],
    role: str | None,
    role_password: tuple[str | None, str | None],
) -> ServerChange:
    """The part of a change that is neither about asking for verifiers nor about TLS; raises Invalid."""
    return ServerChange(
        addresses=tuple(parse_address(one) for one in host) if host else KEEP,
        tls_mode=given(tls),
        tls_ca=given(None if tls_ca is None else _read_pem("tls_ca", tls_ca)),
        max_connections=given(max_connections),
        reserve=given(reserve),
        admin_user=given(admin),
        admin_password=given(read_secret("admin password", file=admin_password[0], variable=admin_password[1])),
        role_user=given(role),
        role_password=given(read_secret("role password", file=role_password[0], variable=role_password[1])),
    )


def auth_change(
    role: str | None,
    password: tuple[str | None, str | None],
    database: str | None,
    query: str | None,
    *,
    cleared: bool = False,
) -> dict[str, Any]:
    """The fields of a change that are about asking the server for verifiers; raises Invalid."""
    return {
        "auth_user": given(role, cleared=cleared),
        "auth_password": given(read_secret("auth password", file=password[0], variable=password[1]), cleared=cleared),
        "auth_database": given(database, cleared=cleared),
        "auth_query": given(query, cleared=cleared),
    }


def tls_change(
    cert: Path | None,
    key: str | None,
    negotiation: TlsNegotiation | None,
    min_version: TlsVersion | None,
    protocol: ProtocolVersion | None,
    *,
    cleared: bool = False,
) -> dict[str, Any]:
    """The fields of a change that are about how the server is spoken to; raises Invalid."""
    return {
        "tls_cert": given(None if cert is None else _read_pem("tls_cert", cert), cleared=cleared),
        "tls_key": given(read_secret("TLS key", file=key, variable=None), cleared=cleared),
        "tls_negotiation": given(negotiation),
        "tls_min_version": given(min_version),
        "protocol": given(protocol),
    }


def _read_pem(field: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise Invalid(
            field, f"{path} cannot be read: {error.strerror}", "name a PEM file that this user may read"
        ) from None
    except UnicodeDecodeError:
        raise Invalid(field, f"{path} is no PEM file", "PEM text with -----BEGIN ...-----") from None
