"""Rules for names and addresses.

Source of the lengths: PostgreSQL documentation, "Identifiers and Key Words" (63 bytes).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from registry.contract import Address
from registry.errors import Invalid

MAX_IDENTIFIER_BYTES: Final = 63
MAX_ALIASES: Final = 32
MAX_HOSTS: Final = 16
MAX_NETWORKS: Final = 64
MAX_HOST_CHARS: Final = 255
DEFAULT_PORT: Final = 5432
MAPPED_BITS: Final = 96
"""Bits before an IPv4 address in its IPv6 spelling, as in `::ffff:192.0.2.7`."""

RESERVED: Final = frozenset({"pgtenant", "postgres", "template0", "template1"})
"""Names that are no tenant's: the console's database and those that every server has."""

_SLUG: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?", re.ASCII)
_ALIAS: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9_.%:-]+|/[^\s,\0]*", re.ASCII)


def check_slug(slug: str) -> str:
    """Return a slug that is one; raises Invalid."""
    if _SLUG.fullmatch(slug) is None:
        raise Invalid(
            "slug",
            f"{slug!r} is no slug",
            "1 to 63 lower-case letters, digits, '-' and '_', with a letter or digit at both ends",
        )
    if slug in RESERVED:
        raise Invalid("slug", f"{slug!r} is reserved", "choose another slug")
    return slug


def check_aliases(aliases: Iterable[str], slug: str) -> tuple[str, ...]:
    """Return the aliases of a tenant, sorted; raises Invalid."""
    names = tuple(sorted(aliases))
    for name in names:
        if _ALIAS.fullmatch(name) is None:
            raise Invalid("aliases", f"{name!r} is no alias", "1 to 63 letters, digits, '_', '-' and '.'")
        if name in RESERVED:
            raise Invalid("aliases", f"{name!r} is reserved", "choose another alias")
        if name == slug:
            raise Invalid("aliases", f"{name!r} is the tenant's slug already", "leave the alias out")
    if len(set(names)) != len(names):
        raise Invalid("aliases", "an alias stands there twice", "leave one out")
    if len(names) > MAX_ALIASES:
        raise Invalid("aliases", f"a tenant has at most {MAX_ALIASES} aliases", "leave some out")
    return names


def check_server_name(name: str) -> str:
    """Return the name of a server; raises Invalid."""
    if _SLUG.fullmatch(name) is None:
        raise Invalid(
            "name",
            f"{name!r} cannot be a server's name",
            "1 to 63 lower-case letters, digits, '-' and '_', with a letter or digit at both ends",
        )
    return name


def check_identifier(field: str, name: str) -> str:
    """Return the name of a database, role or user as PostgreSQL takes it; raises Invalid."""
    if not name or "\0" in name or len(name.encode("utf-8", "surrogateescape")) > MAX_IDENTIFIER_BYTES:
        raise Invalid(field, f"{name!r} cannot be a {field.replace('_', ' ')}", "PostgreSQL allows 1 to 63 bytes")
    if any(unicodedata.category(char) == "Cc" for char in name):
        raise Invalid(
            field, f"{name!r} has a control character", "leave out line breaks and the like: they are no part of names"
        )
    return name


def check_networks(networks: Iterable[str]) -> tuple[str, ...]:
    """Return networks (CIDR, or single addresses) in their usual spelling, sorted; raises Invalid."""
    found = set()
    for text in networks:
        try:
            found.add(_as_ipv4(ip_network(text)))
        except ValueError as error:
            raise Invalid(
                "networks", f"{text!r} is no network: {error}", "for example 10.1.0.0/16, 192.0.2.7 or 2001:db8::/32"
            ) from None
    if len(found) > MAX_NETWORKS:
        raise Invalid("networks", f"a tenant has at most {MAX_NETWORKS} networks", "join neighbours into larger ones")
    ordered = sorted(found, key=lambda network: (network.version, int(network.network_address), network.prefixlen))
    return tuple(str(network) for network in ordered)


def _as_ipv4(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """IPv4 networks in IPv6 spelling as what they are: clients' addresses are taken for IPv4 then, too."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < MAPPED_BITS:
        return network
    return IPv4Network((mapped, network.prefixlen - MAPPED_BITS))


def _check_is_no_url(text: str) -> None:
    """Refuse what may have a password in it without repeating it."""
    if "@" in text or "://" in text:
        raise Invalid(
            "hosts", "a host is given as a URL", "give host:port alone; user and password have their own places"
        )


def check_addresses(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """Return a server's addresses in their order; raises Invalid."""
    found = tuple(addresses)
    if not found:
        raise Invalid("hosts", "a server needs a host", "for example 10.0.0.5 or db.example.com:5433")
    if len(found) > MAX_HOSTS:
        raise Invalid("hosts", f"a server has at most {MAX_HOSTS} hosts", "leave some out")
    for address in found:
        _check_is_no_url(address.host)
        if len(address.host) > MAX_HOST_CHARS or _HOST.fullmatch(address.host) is None:
            raise Invalid("hosts", f"{address.host!r} is no host", "a name, an IP address or a socket's directory")
        if ":" in address.host and not address.host.startswith("/") and not _is_ip_address(address.host):
            raise Invalid("hosts", f"{address.host!r} is no IPv6 address", "with a port it is [IPv6]:port")
        if not 1 <= address.port <= 65535:
            raise Invalid("hosts", f"{address.port} is no port", "1 to 65535")
    if len(set(found)) != len(found):
        raise Invalid("hosts", "a host stands there twice", "leave one out")
    return found


def _is_ip_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """Read `host`, `host:port`, `[::1]:port`, `::1` or `/directory[:port]`; raises Invalid."""
    _check_is_no_url(text)
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::([0-9]{1,5}))?", text)
    plain = re.fullmatch(r"(/[^:]*|[^:]+)(?::([0-9]{1,5}))?", text)
    match = bracketed or plain
    if match is not None:
        return check_addresses([Address(match[1], int(match[2] or default_port))])[0]
    if text.count(":") > 1:
        return check_addresses([Address(text, default_port)])[0]
    raise Invalid("hosts", f"{text!r} is no address", "host, host:port or [IPv6]:port")


def format_address(address: Address) -> str:
    """Write an address as `parse_address` reads it, always with its port."""
    host = f"[{address.host}]" if ":" in address.host and not address.host.startswith("/") else address.host
    return f"{host}:{address.port}"
