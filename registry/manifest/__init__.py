"""Manifests: TOML files that say which servers, tenants and logins there shall be."""

from registry.manifest.apply import Applied, apply_manifest, rehearse_on_nothing
from registry.manifest.differences import Difference, FieldChange
from registry.manifest.export import export_manifest
from registry.manifest.parse import Manifest, load_manifest, parse_manifest
from registry.manifest.tables import ManifestError

__all__ = [
    "Applied",
    "Difference",
    "FieldChange",
    "Manifest",
    "ManifestError",
    "apply_manifest",
    "export_manifest",
    "load_manifest",
    "parse_manifest",
    "rehearse_on_nothing",
]
