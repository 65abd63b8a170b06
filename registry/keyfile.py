"""Where the key ring comes from: a file that can change while a node runs, and the environment."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from registry.errors import SecretError
from registry.secrets import FILE_SETTING, GENERATE, KeyRing

MAX_FILE: Final = 65_536
"""Bytes that a file of keys may have."""

_NOT_FOR_OTHERS: Final = stat.S_IRWXO | stat.S_IWGRP
_COMMENT: Final = "#"

log = logging.getLogger(__name__)


def find_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> KeyRing | None:
    """The keys in the file, and behind them those in `PGTENANT_ENCRYPTION_KEYS`; None where there are none.

    Raises SecretError for a file that cannot be used, for bad keys, and for two keys with one id.
    """
    given = KeyRing.from_environment(environment)
    if file is None:
        return given
    read = read_keys(file)
    return read if given is None else read.joined(given)


def read_keys(path: Path) -> KeyRing:
    """Read keys with a line each or commas between them, and lines of comment that begin with `#`.

    Raises SecretError, which repeats no key, also for a file that others may read or anybody but its owner write.
    """
    text = _read(path)
    lines = [line.strip() for line in text.splitlines()]
    keys = ",".join(line.strip(",") for line in lines if line and not line.startswith(_COMMENT))
    if not keys:
        raise SecretError(f"there is no key in {path}", GENERATE)
    return KeyRing.parse(keys, source=str(path))


def _read(path: Path) -> str:
    try:
        # What is no file (a pipe, say) would hold up the node until somebody writes.
        if not stat.S_ISREG(path.stat().st_mode):
            raise SecretError(f"{FILE_SETTING} {path} is no file", "name a file that has the keys")
        with path.open("rb") as file:
            _check_permissions(path, os.fstat(file.fileno()))
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise SecretError(
            f"{FILE_SETTING} {path} cannot be read: {error.strerror}", "name a file that this user may read"
        ) from None
    if len(text) > MAX_FILE:
        raise SecretError(f"{path} is larger than {MAX_FILE:,} bytes", "name a file with keys and nothing else")
    try:
        return text.decode("ascii")
    except UnicodeDecodeError:
        raise SecretError(f"{path} is not plain text", "write a key in each line, as id:base64") from None


def _check_permissions(path: Path, status: os.stat_result) -> None:
    if status.st_mode & _NOT_FOR_OTHERS:
        raise SecretError(
            f"{path} may be read or changed by others (its permissions are {stat.filemode(status.st_mode)})",
            f"take that away: chmod 600 {path}; 640 will do where it belongs to root and the node's group",
        )
    if status.st_mode & stat.S_IRGRP and status.st_uid != 0:
        log.warning("the keys in %s may be read by all of its group: chmod 600 would keep them from it", path)
