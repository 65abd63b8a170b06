"""Gets the drivers: from PyPI, the npm registry, Maven's or Debian's packages, into one folder of the source tree."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.process import run

from drivers.catalogue import SCRIPTS, DriverSpec, Kind
from drivers.model import DriversError

TREE = Path(__file__).parents[2]
CACHE = TREE / ".venv-drivers"
PYTHON_PACKAGES = (
    "psycopg[binary,pool]>=3.2",
    "psycopg2-binary>=2.9",
    "asyncpg>=0.30",
    "psqlpy>=0.11",
    "pg8000>=1.31",
    "SQLAlchemy[asyncio]>=2.0.30",
    "Django>=5.1",
)
NODE_PACKAGES = ("pg@8", "pg-cursor@2", "pg-copy-streams@7", "postgres@3")
PGJDBC_MAVEN = "org.postgresql:postgresql:42.7.4"
PGJDBC_DEBIAN = "libpostgresql-jdbc-java"
PATIENCE = 300.0
LAST_WORDS = 300
QUIET_NODE = {"npm_config_update_notifier": "false", "npm_config_fund": "false", "npm_config_audit": "false"}


@dataclass(frozen=True, slots=True)
class Ready:
    """A driver that can be run: its command, what it needs of the environment, its version."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


class Missing(Exception):
    """The driver cannot be had here; the message says why."""


class Workshop:
    """Installs each kind of driver once, into `cache`, and remembers what it did from one run to the next."""

    def __init__(self, bin_dirs: Mapping[int, Path], python: str, progress: Callable[[str], None], cache: Path = CACHE):
        self._bin_dirs = bin_dirs
        self._python = python
        self._progress = progress
        self._cache = cache
        self._done: dict[Kind, Ready | Missing] = {}

    def ready(self, driver: DriverSpec) -> Ready:
        """How to run this driver's program.

        Raises Missing.
        """
        if driver.kind not in self._done:
            steps = {Kind.PYTHON: self._venv, Kind.NODE: self._npm, Kind.JAVA: self._pgjdbc, Kind.POSTGRES: self._own}
            try:
                self._done[driver.kind] = steps[driver.kind]()
            except Missing as why:
                self._done[driver.kind] = why
        found = self._done[driver.kind]
        if isinstance(found, Missing):
            raise found
        return Ready(_command(found, driver), found.env, self._version(driver))

    def own_python(self, driver: DriverSpec) -> Ready:
        """How to run a Python driver that is installed for this very Python, or one of PostgreSQL's programs."""
        found = self._own()
        return Ready(_command(found, driver), found.env)

    def _venv(self) -> Ready:
        folder = self._cache / "python"
        python = folder / "bin" / "python"
        if self._changed(folder, PYTHON_PACKAGES):
            self._progress("installing the Python drivers")
            venv.create(folder, clear=True, with_pip=True)
            _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PYTHON_PACKAGES])
            self._remember(folder, PYTHON_PACKAGES)
        return Ready((str(python),), {"PYTHONPATH": str(TREE / "tests"), "PYTHONDONTWRITEBYTECODE": "1"})

    def _npm(self) -> Ready:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise Missing("there is no Node.js with npm on this machine")
        folder = self._cache / "node"
        if self._changed(folder, NODE_PACKAGES):
            self._progress("installing the Node.js drivers")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _run([npm, "install", "--silent", "--prefix", str(folder), *NODE_PACKAGES], QUIET_NODE)
            self._remember(folder, NODE_PACKAGES)
        return Ready((node,), {"DRIVERS_NODE_MODULES": str(folder / "node_modules")})

    def _pgjdbc(self) -> Ready:
        java = shutil.which("java")
        if java is None or shutil.which("javac") is None:
            raise Missing("there is no Java Development Kit on this machine")
        folder = self._cache / "java"
        jar = folder / "postgresql.jar"
        if not jar.exists():
            self._progress("getting pgjdbc")
            folder.mkdir(parents=True, exist_ok=True)
            reasons = []
            for way in (_jar_by_maven, _jar_by_apt):
                try:
                    shutil.copyfile(way(folder), jar)
                except Missing as why:
                    reasons.append(str(why))
                else:
                    break
            else:
                raise Missing("; ".join(reasons))
        return Ready((java, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", str(jar)))

    def _own(self) -> Ready:
        folders = {f"DRIVERS_BIN_{version}": str(folder) for version, folder in self._bin_dirs.items()}
        return Ready((self._python,), {"PYTHONPATH": str(TREE / "tests"), "PYTHONDONTWRITEBYTECODE": "1", **folders})

    def _version(self, driver: DriverSpec) -> str:
        if driver.kind is Kind.PYTHON:
            python = str(self._cache / "python" / "bin" / "python")
            code = f"from importlib.metadata import version; print(version({driver.package!r}))"
            return _run([python, "-c", code]).strip()
        if driver.kind is Kind.NODE:
            about = self._cache / "node" / "node_modules" / driver.package / "package.json"
            return str(json.loads(about.read_text())["version"])
        if driver.kind is Kind.JAVA:
            return _jar_version(self._cache / "java" / "postgresql.jar")
        return _run([str(self._bin_dirs[max(self._bin_dirs)] / driver.package), "--version"]).split()[-1]

    def _changed(self, folder: Path, packages: Sequence[str]) -> bool:
        mark = folder / ".drivers-installed"
        return not mark.exists() or mark.read_text() != _digest(packages)

    @staticmethod
    def _remember(folder: Path, packages: Sequence[str]) -> None:
        (folder / ".drivers-installed").write_text(_digest(packages))


def _command(ready: Ready, driver: DriverSpec) -> tuple[str, ...]:
    if driver.kind in (Kind.PYTHON, Kind.POSTGRES):
        return (*ready.command, "-m", f"drivers.scripts.{driver.program}", *driver.arguments)
    return (*ready.command, str(SCRIPTS / driver.program), *driver.arguments)


def _jar_by_maven(folder: Path) -> Path:
    mvn = shutil.which("mvn")
    if mvn is None:
        raise Missing("there is no Maven")
    copy = f"-DoutputDirectory={folder}"
    _run([mvn, "-q", "-B", "dependency:copy", f"-Dartifact={PGJDBC_MAVEN}", copy])
    return next(folder.glob("postgresql-*.jar"))


def _jar_by_apt(folder: Path) -> Path:
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise Missing("this is no Debian")
    with tempfile.TemporaryDirectory() as scratch:
        _run([apt, "download", "-q", PGJDBC_DEBIAN], directory=Path(scratch))
        packed = next(Path(scratch).glob("*.deb"))
        _run([dpkg, "-x", str(packed), str(folder / "deb")])
    return folder / "deb" / "usr" / "share" / "java" / "postgresql.jar"


def _jar_version(jar: Path) -> str:
    with zipfile.ZipFile(jar) as packed:
        about = packed.read("META-INF/MANIFEST.MF").decode()
    lines = [line.partition(": ") for line in about.splitlines()]
    return next((value for name, _, value in lines if name == "Implementation-Version"), "")


def _run(command: Sequence[str], env: Mapping[str, str] | None = None, directory: Path | None = None) -> str:
    """Run a program to its end and return its output.

    Raises Missing with its last words.
    """
    try:
        ran = run(command, env={**os.environ, **(env or {})}, cwd=directory, seconds=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Missing(f"{Path(command[0]).name} took more than {PATIENCE:g} s") from None
    except OSError as error:
        raise Missing(f"{command[0]} cannot be run: {error.strerror}") from None
    if ran.returncode:
        words = " ".join((ran.stderr or ran.stdout).split())
        raise Missing(f"{Path(command[0]).name} failed: {words[-LAST_WORDS:]}")
    return ran.stdout


def _digest(packages: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(packages).encode()).hexdigest()


def check_cache(cache: Path) -> None:
    """Raise DriversError where nothing can be installed."""
    try:
        cache.mkdir(exist_ok=True)
    except OSError as error:
        raise DriversError(f"{cache} cannot be made: {error.strerror}", "give another folder with --cache") from None
