"""Builds the package; the modules named in `proxy/compiled_modules.txt` are compiled, by Cython those which have a
file of C declarations (`.pxd`) beside them, by mypyc all others.

Without a C compiler (or when compiling fails) the package is built all the same, the relay then runs interpreted;
`REQUIRE_COMPILED=1` makes that an error.  `CC` chooses the compiler.  Editable installs never compile: an extension
module would shadow the source beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).resolve().parent
REQUIRE_COMPILED = os.environ.get("REQUIRE_COMPILED", "") not in {"", "0"}
BUILDING = {"bdist_wheel", "build", "build_ext", "install"}
EDITABLE = {"editable_wheel", "develop", "--inplace", "-i"}
# One shared library for all compiled modules: calls between them are plain C calls.
GROUP = "pgtenant_relay"


def load_version_module() -> ModuleType:
    """Load proxy/version.py by its path: the package itself cannot be imported before it is installed."""
    spec = importlib.util.spec_from_file_location("_pgtenant_version", ROOT / "proxy" / "version.py")
    if spec is None or spec.loader is None:
        raise SystemExit("proxy/version.py is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


VERSION = load_version_module()
# What the installed package knows of its build.
RECORD: dict[str, str | None] = {}
# Emptied when this process ends: builds leave no trace in the tree, and none finds what another has left.
SCRATCH = tempfile.TemporaryDirectory(prefix="pgtenant-build-")


def interpreted(reason: str) -> None:
    """Say and record why the relay will run interpreted, or end the build where that is not acceptable."""
    if REQUIRE_COMPILED:
        raise SystemExit(f"REQUIRE_COMPILED is set, but: {reason}")
    print(f"pgtenant: {reason}; the relay will run interpreted", file=sys.stderr)
    RECORD["reason"] = reason


def compiler_works() -> bool:
    """Try to compile a file that needs Python's headers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setuptools deprecates its own way to the compiler without offering another
        from distutils.ccompiler import new_compiler  # noqa: PLC0415
        from distutils.sysconfig import customize_compiler, get_python_inc  # noqa: PLC0415
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\nint probe(void) { return PY_VERSION_HEX != 0; }\n", encoding="utf-8")
        compiler = new_compiler()
        customize_compiler(compiler)
        try:
            compiler.compile([str(source)], output_dir=folder, include_dirs=[get_python_inc()])
        except (CCompilerError, BaseError):
            return False
    return True


def extensions() -> list[Any]:
    """Translate the listed modules to C, where this build is to compile and can."""
    arguments = set(sys.argv[1:])
    if not arguments & BUILDING or arguments & EDITABLE:
        return []
    modules = VERSION.listed_modules(ROOT / "proxy")
    for module in modules:
        if not (ROOT / module).is_file() or not (ROOT / module).with_name("__init__.py").is_file():
            raise SystemExit(f"proxy/{VERSION.LIST_NAME} names {module}, which is no module of a package here")
    if not compiler_works():
        interpreted(VERSION.NO_COMPILER)
        return []
    os.chdir(ROOT)
    by_cython = [module for module in modules if Path(module).with_suffix(".pxd").is_file()]
    try:
        found = [
            *through_mypyc([module for module in modules if module not in by_cython]),
            *through_cython(by_cython),
        ]
    except ImportError as error:
        interpreted(f"{error.name} is not installed where the package was built")
        return []
    except SystemExit:
        interpreted("the relay could not be translated to C")
        return []
    for extension in found:
        # A warning that a newer C compiler brings is no reason to run interpreted.
        extension.extra_compile_args = [flag for flag in extension.extra_compile_args if flag != "-Werror"]
    return found


def through_mypyc(modules: list[str]) -> list[Any]:
    """Translate what is mypyc's; raises ImportError without mypyc, SystemExit when it finds a fault."""
    from mypyc.build import mypycify  # noqa: PLC0415

    # The project's own mypy settings name test files and plug-ins that the build's environment does not have.
    flags = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--explicit-package-bases"]
    flags.append(f"--cache-dir={SCRATCH.name}/mypy")
    arguments = [*flags, *modules]
    found: list[Any] = mypycify(arguments, opt_level="3", debug_level="1", group_name=GROUP, target_dir=SCRATCH.name)
    return found


def through_cython(modules: list[str]) -> list[Any]:
    """Translate what is Cython's; raises ImportError without Cython, SystemExit when it finds a fault."""
    from Cython.Build import cythonize  # noqa: PLC0415
    from Cython.Compiler.Errors import CompileError  # noqa: PLC0415

    # Methods as C has them: called with no Python function in between.
    directives = {"language_level": 3, "binding": False, "warn.unreachable": False}
    try:
        found: list[Any] = cythonize(modules, build_dir=SCRATCH.name, quiet=True, compiler_directives=directives)
    except CompileError as error:
        raise SystemExit(str(error)) from error
    return found


class BuildExtensions(build_ext):
    """Compiles all extension modules or none: half of them could not be imported."""

    def run(self) -> None:
        """Compile; on failure leave nothing behind and go on interpreted, unless that is not acceptable."""
        try:
            super().run()
        except (CCompilerError, BaseError) as error:
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []
            print(error, file=sys.stderr)
            interpreted("the C compiler could not compile the relay")


class Build(build):
    """Builds outside the tree unless told otherwise, and records of which source and commit the build is."""

    def initialize_options(self) -> None:
        """Choose the scratch directory; `--build-base` still overrides it."""
        super().initialize_options()
        self.build_base = SCRATCH.name

    def run(self) -> None:
        """Build and record; editable installs do not come this way."""
        super().run()
        RECORD["digest"] = VERSION.source_digest(ROOT, VERSION.listed_modules(ROOT / "proxy"))
        RECORD["commit"] = commit()
        target = Path(self.build_lib, "proxy", VERSION.RECORD_NAME)
        target.write_text(json.dumps(RECORD) + "\n", encoding="utf-8")


def commit() -> str | None:
    """Name the commit: `PGTENANT_BUILD_COMMIT`, else what git says; `+` marks a tree with changes."""
    given = os.environ.get("PGTENANT_BUILD_COMMIT")
    if given:
        return given
    if not (ROOT / ".git").exists():
        return None
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(describe, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


setup(ext_modules=extensions(), cmdclass={"build": Build, "build_ext": BuildExtensions})
