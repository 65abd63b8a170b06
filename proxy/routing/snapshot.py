"""The snapshot on disk: what a node knew of the registry, for a restart while the registry is down.

It holds passwords and verifiers.  So it is sealed by a `Sealer` that the composition root provides, readable by the
node's user only, replaced as a whole, and ignored when it is not exactly what this version of the node wrote.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from proxy.routing.cache import LoginKey
from proxy.routing.encoding import decode_login, decode_route, encode_login, encode_route
from proxy.routing.resolver import Resolver
from registry.contract import Login, Route

log = logging.getLogger(__name__)

FORMAT: Final = 1
CONTEXT: Final = "pgtenant routing snapshot"
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_AGE: Final = 7 * 24 * 3600.0

_SLICE: Final = 100
_CLOCK_SKEW: Final = 60.0


class Sealer(Protocol):
    """Authenticated encryption: what `open` returns is what `seal` was given under the same context.

    `open` raises for anything else.
    """

    def seal(self, data: bytes, context: str, /) -> bytes: ...

    def open(self, sealed: bytes, context: str, /) -> bytes: ...


class SnapshotError(Exception):
    """The file is not a snapshot that may be used; the text says why and repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a node remembered, at the registry's `version`; `saved_at` in seconds since the epoch.

    The last used stands first.
    """

    version: int
    saved_at: float
    mock_secret: bytes | None = field(repr=False)
    routes: tuple[Route, ...]
    databases: tuple[tuple[str, tuple[int, ...]], ...]
    logins: tuple[tuple[LoginKey, Login], ...] = field(repr=False)


class SnapshotFile:
    """One snapshot in one file.

    `refusals` are the errors by which the sealer's `open` says that something is not what it sealed.  `max_age` in
    seconds.
    """

    def __init__(
        self,
        path: Path,
        sealer: Sealer,
        *,
        refusals: tuple[type[Exception], ...] = (ValueError,),
        max_age: float = MAX_AGE,
    ) -> None:
        self.path = path
        self._sealer = sealer
        self._refusals = refusals
        self._max_age = max_age

    def write(self, text: bytes) -> None:
        """Seal and store an encoded snapshot, all or nothing; raises OSError.  Blocks for the disk."""
        sealed = self._sealer.seal(text, CONTEXT)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(self.path.parent)

    def read(self, now: float) -> Snapshot:
        """Read the snapshot; `now` in seconds since the epoch.  Raises SnapshotError, FileNotFoundError too."""
        try:
            with self.path.open("rb") as file:
                sealed = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SnapshotError(f"it cannot be read: {error.strerror}") from error
        if len(sealed) > MAX_BYTES:
            raise SnapshotError(f"it is larger than {MAX_BYTES} bytes")
        try:
            text = self._sealer.open(sealed, CONTEXT)
        except self._refusals:
            raise SnapshotError("it was changed, or sealed with a key that this node does not have") from None
        snapshot = decode_snapshot(text)
        if not -_CLOCK_SKEW <= now - snapshot.saved_at <= self._max_age:
            raise SnapshotError(f"it is not from the last {self._max_age / 3600:g} hours")
        return snapshot


def unusable(path: Path) -> str:
    """Why a snapshot could not be written here by this user, `""` if it could; tries it with a file beside it."""
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where the way to it is barred
        return f"{path} is a directory"
    trial = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        trial.unlink()
    except OSError as error:
        return f"no file can be made in {path.parent}: {error.strerror}"
    if path.exists() and not os.access(path, os.R_OK):
        return f"{path} cannot be read by this user"
    return ""


async def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Write a snapshot as lines of JSON, in slices, so that the loop goes on between them.

    Stops where the size limit is reached: routes, which stand first, matter most.
    """
    secret = None if snapshot.mock_secret is None else base64.b64encode(snapshot.mock_secret).decode("ascii")
    head = {"format": FORMAT, "version": snapshot.version, "saved_at": snapshot.saved_at, "mock_secret": secret}
    lines = [_line(head)]
    size = len(lines[0])
    entries: list[tuple[str, Callable[[], Mapping[str, Any]]]] = [
        *(("route", partial(encode_route, route)) for route in snapshot.routes),
        *(("login", partial(_encode_login_entry, key, login)) for key, login in snapshot.logins),
        *(("database", partial(_encode_database, name, ids)) for name, ids in snapshot.databases),
    ]
    for number, (kind, encode) in enumerate(entries, start=1):
        line = _line({"kind": kind, **encode()})
        size += len(line)
        if size > MAX_BYTES // 2:
            log.warning("the snapshot holds %d of %d entries: it has reached its size limit", number - 1, len(entries))
            break
        lines.append(line)
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return b"".join(lines)


def decode_snapshot(text: bytes) -> Snapshot:
    """Read what `encode_snapshot` wrote; raises SnapshotError."""
    try:
        head, *entries = (json.loads(line) for line in text.splitlines())
        if head["format"] != FORMAT:
            raise SnapshotError(f"it is of format {head['format']!r}, this node writes {FORMAT}")
        secret = head["mock_secret"]
        by_kind: dict[str, list[Mapping[str, Any]]] = {"route": [], "database": [], "login": []}
        for entry in entries:
            by_kind[entry["kind"]].append(entry)
        return Snapshot(
            version=int(head["version"]),
            saved_at=float(head["saved_at"]),
            mock_secret=None if secret is None else base64.b64decode(secret, validate=True),
            routes=tuple(decode_route(one) for one in by_kind["route"]),
            databases=tuple((str(one["name"]), tuple(int(id_) for id_ in one["ids"])) for one in by_kind["database"]),
            logins=tuple(((str(one["key"][0]), int(one["key"][1])), decode_login(one)) for one in by_kind["login"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SnapshotError(f"its contents are not understood ({type(error).__name__})") from None


class SnapshotKeeper:
    """Keeps the file up to date while the node runs, and falls back to it at the start.

    `run` writes at most once in `interval` seconds, and only what has changed.  `failures` counts what was in vain.
    """

    def __init__(
        self,
        resolver: Resolver,
        file: SnapshotFile,
        *,
        interval: float = 5.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._resolver = resolver
        self._file = file
        self._interval = interval
        self._wall_clock = wall_clock
        self._saved = 0
        self._problem: str | None = None
        self.failures = 0

    async def check(self) -> None:
        """At the start of a node: warn where the file cannot be written, long before anybody needs it."""
        problem = await asyncio.to_thread(unusable, self._file.path)
        if problem:
            self.failures += 1
            log.error(
                "no snapshot can be written, so that a start without the registry would serve nobody: %s", problem
            )

    async def restore(self) -> bool:
        """At the start of a node: where the registry cannot be asked, remember what the file holds.

        Returns whether it did.  Call it before `Resolver.follow` begins.
        """
        if await self._resolver.reachable():
            return False
        try:
            snapshot = await asyncio.to_thread(self._file.read, self._wall_clock())
        except FileNotFoundError:
            log.warning("the registry cannot be reached, and there is no snapshot at %s", self._file.path)
            return False
        except SnapshotError as error:
            log.warning("the registry cannot be reached, and the snapshot %s is ignored: %s", self._file.path, error)
            return False
        self._resolver.cache.restore(snapshot.routes[::-1], snapshot.databases[::-1], snapshot.logins[::-1])
        self._resolver.lookups.take_secret(snapshot.mock_secret)
        age = self._wall_clock() - snapshot.saved_at
        log.warning(
            "the registry cannot be reached: serving %d tenants from a snapshot that is %.0f s old",
            len(snapshot.routes),
            age,
        )
        return True

    async def run(self) -> None:
        """Write the snapshot whenever it has changed, until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.save()

    async def save(self) -> bool:
        """Write the snapshot if anything in it has changed; a disk that fails is logged and costs only the file."""
        cache, mutations = self._resolver.cache, self._resolver.cache.mutations
        if mutations == self._saved:
            return False
        routes, databases, logins = cache.remembered()
        snapshot = Snapshot(
            version=cache.version,
            saved_at=self._wall_clock(),
            mock_secret=self._resolver.lookups.secret,
            routes=tuple(routes[::-1]),
            databases=tuple(databases[::-1]),
            logins=tuple(logins[::-1]),
        )
        try:
            await asyncio.to_thread(self._file.write, await encode_snapshot(snapshot))
        except OSError as error:
            self.failures += 1
            # Tried again every few seconds: told once.
            if error.strerror != self._problem:
                log.warning("the snapshot %s cannot be written: %s", self._file.path, error.strerror)
            self._problem = error.strerror
            return False
        if self._problem is not None:
            log.info("the snapshot %s is written again", self._file.path)
            self._problem = None
        self._saved = mutations
        return True


def _encode_login_entry(key: LoginKey, login: Login) -> Mapping[str, Any]:
    return {"key": list(key), **encode_login(login)}


def _encode_database(name: str, ids: tuple[int, ...]) -> Mapping[str, Any]:
    return {"name": name, "ids": list(ids)}


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode("utf-8") + b"\n"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
