"""Sealing anew only what differs: a secret that stays the same keeps its sealed form, and makes no new version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from registry.contract import Secret
from registry.domain.models import Keep
from registry.errors import SecretError
from registry.secrets import Vault
from registry.store.rows import secret_context


@dataclass(frozen=True, slots=True)
class Sealed:
    """The sealed secrets of one row by column, and the columns whose secret differs from the one before."""

    columns: Mapping[str, bytes | None]
    replaced: tuple[str, ...]


def reseal_row(
    vault: Vault,
    table: str,
    row_id: int,
    wanted: Mapping[str, Secret | Keep | None],
    present: Mapping[str, bytes | None],
) -> Sealed:
    """Seal the wanted secrets of one row, by column; raises SecretError where there is no key."""
    columns: dict[str, bytes | None] = {}
    replaced = []
    for column, secret in wanted.items():
        columns[column], differs = reseal(vault, secret, present[column], secret_context(table, row_id, column))
        if differs:
            replaced.append(column)
    return Sealed(columns, tuple(replaced))


def reseal(vault: Vault, wanted: Secret | Keep | None, sealed: bytes | None, context: str) -> tuple[bytes | None, bool]:
    """Return the sealed form of a wanted secret, and whether it differs from the present one.

    A secret that is the same already stays sealed as it is.  Raises SecretError where there is no key.
    """
    if isinstance(wanted, Keep):
        return sealed, False
    if wanted is None or sealed is None:
        return vault.seal(wanted, context), (wanted is None) != (sealed is None)
    ring = vault.ring
    try:
        present = vault.open(sealed, context)
    except SecretError:
        present = None  # Setting it anew is how a secret whose key is lost is repaired.
    if present == wanted and ring.is_current(sealed):
        return sealed, False
    return vault.seal(wanted, context), present != wanted
