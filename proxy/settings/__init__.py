"""The settings of a node: one frozen model per section of `pgtenant.toml`, each field with its explanation.

`configs/pgtenant.toml` is made from these models, so what a field's description says here is what operators read.  A
value is taken from the environment (`PGTENANT_POOL__POOL_SIZE=50`), else from the file, else the default is in
force.  Times are seconds; 0 switches a time limit off where the description says so.

To add a setting: one line in its section, made by `live` or `fixed`; then write the reference anew
(`python -m harness.references` in `tests/`).
"""

from proxy.settings.changes import Change, Reloaded, ReloadFailed, change_settings
from proxy.settings.fields import Setting, SettingsError, needs_restart
from proxy.settings.loading import admin_token, load_settings
from proxy.settings.model import Settings

__all__ = [
    "Change",
    "ReloadFailed",
    "Reloaded",
    "Setting",
    "Settings",
    "SettingsError",
    "admin_token",
    "change_settings",
    "load_settings",
    "needs_restart",
]
