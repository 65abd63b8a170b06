"""Writes the reference of all settings: `configs/pgtenant.toml`, made from the models and their explanations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pydantic import BaseModel, SecretStr

from proxy.settings.fields import needs_restart
from proxy.settings.model import Settings

HEADING: Final = """\
# Every setting of a pgtenant node, with its default.  A line that begins with "#" and has no default of its own is an
# example of what may stand there.  PGTENANT_<SECTION>__<NAME> in the environment overrides this file.
# Times are seconds.  A running node takes changes at a reload (SIGHUP, POST /reload, RELOAD); it says which ones need a
# restart, as the explanations here do.
"""
EXAMPLES: Final = {
    "listen.tls_cert": "/etc/pgtenant/tls.crt",
    "listen.tls_key": "/etc/pgtenant/tls.key",
    "listen.tls_client_ca": "/etc/pgtenant/client-ca.crt",
    "listen.tls_client_crl": "/etc/pgtenant/client-ca.crl",
    "http.admin_token": "a long random word",
    "http.admin_token_file": "/etc/pgtenant/admin-token",
    "registry.encryption_keys_file": "/etc/pgtenant/encryption-keys",
    "routing.shared_tenant": "shared",
    "routing.snapshot": "/var/lib/pgtenant/snapshot",
}


def settings_reference() -> str:
    """The text of `configs/pgtenant.toml`."""
    defaults = Settings()
    parts = [HEADING]
    for section, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        lines = [f"# {(model.__doc__ or '').strip()}", f"[{section}]"]
        for name, setting in model.model_fields.items():
            value = getattr(getattr(defaults, section), name)
            restart = " Needs a restart." if needs_restart(setting) else ""
            lines.append(f"# {setting.description}{restart}")
            if value is None:
                lines.append(f"# {name} = {_toml(EXAMPLES[f'{section}.{name}'])}")
            else:
                lines.append(f"{name} = {_toml(value)}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _toml(value: object) -> str:
    """Write a value as TOML does; the JSON of these kinds of values is TOML as well."""
    if isinstance(value, SecretStr):
        return json.dumps(value.get_secret_value())
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value)
