"""Long manifests, measured: `python -m bench.registry` applies one with many tenants, on SQLite and on PostgreSQL.

Meanwhile another administrator asks for the registry's lock again and again; how long it waits is what others feel.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from bench.report import console_for
from proxy.demo.embedded import EmbeddedServer
from registry import open_registry
from registry.secrets import KEYS_VARIABLE, KeyRing, generate_key
from registry.verifiers import build_verifier

DEFAULT_OUTPUT: Final = Path("bench/results/registry.json")
POSTGRES: Final = 18
LOOK: Final = 0.01

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one application of the manifest took, in seconds; `longest_wait`: what another writer waited at most."""

    registry: str
    what: str
    seconds: float
    longest_wait: float


@app.command()
def registry(
    tenants: Annotated[int, typer.Option(min=1, help="Tenants in the manifest, each with a login")] = 20_000,
    output: Annotated[Path, typer.Option(help="Where to write the results as JSON")] = DEFAULT_OUTPUT,
) -> None:
    """Apply a manifest of many tenants, anew and once more, with verifiers and with passwords."""
    findings: list[Finding] = []
    errors = console_for(stderr=True)
    with errors.status("starting") as status:
        for where in ("SQLite", "PostgreSQL"):
            for secret in ("verifiers", "passwords"):
                with fresh_registry(where) as url, tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                    file.write(manifest_text(tenants, secret))
                    file.flush()
                    for what in (f"new, {secret}", f"unchanged, {secret}"):
                        status.update(f"{where}: {what}")
                        findings.append(asyncio.run(measure(url, where, what, Path(file.name))))
    table = Table("registry", "what", "seconds", "longest wait of another writer, s")
    for one in findings:
        table.add_row(one.registry, one.what, f"{one.seconds:.1f}", f"{one.longest_wait:.2f}")
    console_for(stderr=False).print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"tenants": tenants, "findings": [asdict(one) for one in findings]}, indent=2))


KEYS: Final = generate_key("bench")


async def measure(url: str, where: str, what: str, manifest: Path) -> Finding:
    """Run `pgtenant registry apply` while another writer takes turns."""
    async with open_registry(url, KeyRing.parse(KEYS)) as other:
        await other.upgrade()
        longest, done = 0.0, asyncio.Event()

        async def ask() -> None:
            nonlocal longest
            while not done.is_set():
                began = time.perf_counter()
                async with other.service.transaction():
                    longest = max(longest, time.perf_counter() - began)
                await asyncio.sleep(LOOK)

        asking = asyncio.create_task(ask())
        command = (sys.executable, "-m", "proxy", "registry", "apply", str(manifest), "--registry", url)
        environment = {**os.environ, KEYS_VARIABLE: KEYS}
        began = time.perf_counter()
        running = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        status = await running.wait()
        seconds = time.perf_counter() - began
        done.set()
        await asking
        if status:
            raise SystemExit(f"`registry apply` has failed with status {status}")
        return Finding(where, what, seconds, longest)


def manifest_text(tenants: int, secret: str) -> str:
    """A manifest of so many tenants on two servers, each with an alias and a login."""
    verifier = build_verifier("sesame", b"0" * 16)
    parts = [f'[[server]]\nname = "s{number}"\nhost = "127.0.0.1:1"\nrole = "app"\n' for number in (0, 1)]
    for number in range(tenants):
        proof = f'verifier = "{verifier}"' if secret == "verifiers" else f'password = "secret {number}"'
        parts.append(
            f'[[tenant]]\nslug = "t{number}"\nserver = "s{number % 2}"\ndatabase = "shop_{number}"\n'
            f'aliases = ["alias-{number}"]\nlimits = {{ pool_size = 4 }}\n'
            f'[[login]]\nuser = "app"\ntenant = "t{number}"\n{proof}\n'
        )
    return "\n".join(parts)


@contextmanager
def fresh_registry(where: str) -> Iterator[str]:
    """The URL of a registry that is empty."""
    if where == "SQLite":
        with tempfile.TemporaryDirectory() as directory:
            yield f"sqlite:///{directory}/registry.db"
    else:
        with EmbeddedServer(POSTGRES) as server:
            yield server.url()


if __name__ == "__main__":
    app()
