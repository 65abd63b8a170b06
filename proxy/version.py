"""Which build this is: its version, and whether the relay runs compiled or interpreted.

The build (`setup.py`) loads this file by its path, before anything is installed, so that both sides read the list of
compiled modules and digest their source in the same way: only the standard library may be imported here.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

LIST_NAME = "compiled_modules.txt"
RECORD_NAME = "build_record.json"
NO_COMPILER = "no working C compiler with Python's headers was found (CC chooses one)"


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """What is known of the running build.

    `relay` tells what Python imports: native modules or their source.  `source_matches` is False when the source
    beside native modules is not the one they were compiled from, or when only some of them are native.
    `reason` says why the build did not compile, None where it did or did not try (a source tree).  `commit` is None
    where the build did not know it.
    """

    version: str
    relay: Literal["compiled", "interpreted"]
    source_matches: bool
    python: str
    reason: str | None = None
    commit: str | None = None

    def __str__(self) -> str:
        relay = f"relay {self.relay}" if self.reason is None else f"relay {self.relay}: {self.reason}"
        details = [relay, self.python]
        if self.commit is not None:
            details.append(f"commit {self.commit}")
        if not self.source_matches:
            details.append("the source beside the compiled modules has changed since, reinstall")
        return f"pgtenant {self.version} ({'; '.join(details)})"


def build_info() -> BuildInfo:
    """Describe the running build.

    Reads a few small files; call it once and keep the answer.  Raises OSError when the installation lacks the list.
    """
    package = Path(__file__).resolve().parent
    modules = listed_modules(package)
    native = [module for module in modules if is_native(package.parent / module)]
    record = _read_record(package / RECORD_NAME)
    complete = bool(native) and len(native) == len(modules)
    matches = not native or (complete and _source_is(record.get("digest"), package.parent, modules))
    return BuildInfo(
        version=_distribution_version(),
        relay="compiled" if complete else "interpreted",
        source_matches=matches,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        reason=None if complete else record.get("reason"),
        commit=record.get("commit"),
    )


def listed_modules(package: Path) -> list[str]:
    """Read which modules are compiled where a C compiler exists, as paths relative to the project's root.

    `package` is the directory of the package `proxy`.  Lines that begin with `#` are comments.
    """
    lines = (package / LIST_NAME).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def source_digest(root: Path, modules: Sequence[str]) -> str:
    """Digest the names and contents of `modules`, paths relative to `root`, as SHA-256 in hexadecimal.

    The C declarations beside a module that Cython compiles are part of it.
    """
    digest = hashlib.sha256()
    for module in modules:
        declarations = (root / module).with_suffix(".pxd")
        content = (root / module).read_bytes() + (declarations.read_bytes() if declarations.is_file() else b"")
        digest.update(f"{module}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def is_native(source: Path) -> bool:
    """Tell whether an extension module lies beside `source`; Python then imports it and not the source."""
    return any(source.with_name(source.stem + suffix).exists() for suffix in EXTENSION_SUFFIXES)


def _source_is(digest: str | None, root: Path, modules: Sequence[str]) -> bool:
    try:
        return source_digest(root, modules) == digest
    except FileNotFoundError:
        return False


def _read_record(path: Path) -> dict[str, str]:
    """Read what the build recorded of itself; nothing where the package runs from its source tree."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)}


def _distribution_version() -> str:
    try:
        return version("pgtenant")
    except PackageNotFoundError:
        return "unknown"
