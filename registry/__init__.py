"""The control plane: which servers exist, which tenants live where, and the operations on them.

`open_registry` is the way in.  It is imported when first asked for: whoever needs only `registry.contract` does not
pay for a database library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.opening import Registry, open_registry

__all__ = ["Registry", "open_registry"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from registry import opening  # noqa: PLC0415 - nodes that only need the contract import no store

    value: object = getattr(opening, name)
    return value
