"""Addresses of clients: what they are counted by, and the networks that they are held against."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

_SITE_BITS: Final = 64


def is_within(host: str, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of these networks; IPv4 in IPv6 spelling counts as IPv4."""
    found = _read(host)
    return found is not None and any(found in network for network in networks)


def neighbourhood(host: str) -> str:
    """The address by which somebody is known who could take another one at will: of IPv6 the first 64 bits."""
    found = _read(host)
    if isinstance(found, IPv6Address):
        return str(IPv6Address(int(found) >> _SITE_BITS << _SITE_BITS))
    return host if found is None else str(found)


def _read(host: str) -> IPv4Address | IPv6Address | None:
    """The address without its zone; None for what is none."""
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return found if mapped is None else mapped
