"""Runs PostgreSQL's client programs and reads what pgbench prints."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.model import BenchError, Endpoint, Stuck
from proxy.demo.facts import clean_environment

PATIENCE = 60.0
PGBENCH_PATIENCE = 20.0
TPS = re.compile(
    r"^tps = ([0-9.]+) \((?:without initial connection time|including reconnection times)\)$", re.MULTILINE
)
TRANSACTIONS = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
FAILED = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PgbenchReport:
    """What one run of pgbench achieved; `tps` is its own figure, without the time of the first connections."""

    tps: float
    transactions: int


def parse_report(text: str) -> PgbenchReport:
    """Read what pgbench (14 or newer) prints at its end.

    Raises BenchError when it is not such a text, or when transactions failed.
    """
    tps, transactions, failed = TPS.search(text), TRANSACTIONS.search(text), FAILED.search(text)
    if tps is None or transactions is None:
        raise BenchError(f"pgbench printed no result: {text.strip()[-200:]!r}")
    if failed is not None and int(failed[1]) > 0:
        raise BenchError(f"{failed[1]} transactions of pgbench failed")
    if int(transactions[1]) == 0:
        raise BenchError("pgbench processed no transaction")
    return PgbenchReport(float(tps[1]), int(transactions[1]))


@dataclass(frozen=True, slots=True)
class Tools:
    """PostgreSQL's client programs in one directory."""

    bin_dir: Path

    def version(self, name: str) -> str:
        """What `name --version` prints."""
        ran = subprocess.run(
            [self.bin_dir / name, "--version"], env=clean_environment(), capture_output=True, text=True, check=True
        )
        return ran.stdout.strip()

    def pgbench(
        self, endpoint: Endpoint, *, mode: str, clients: int, threads: int, seconds: int, reconnect: bool = False
    ) -> PgbenchReport:
        """Run the built-in select-only script for some seconds.

        Raises BenchError when any of its clients failed.
        """
        arguments = [
            "--select-only",
            "--no-vacuum",
            f"--protocol={mode}",
            f"--client={clients}",
            f"--jobs={min(threads, clients)}",
            f"--time={seconds}",
            *(["--connect"] if reconnect else []),
        ]
        return parse_report(self.run("pgbench", arguments, endpoint, patience=seconds + PGBENCH_PATIENCE))

    def psql(
        self,
        sql: str,
        endpoint: Endpoint,
        *,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | int = subprocess.PIPE,
        patience: float = PATIENCE,
    ) -> str:
        """Run one statement; what it prints goes to `stdout`, else is returned.

        Raises BenchError.
        """
        arguments = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", f"--command={sql}"]
        return self.run("psql", arguments, endpoint, stdin=stdin, stdout=stdout, patience=patience)

    def run(
        self,
        name: str,
        arguments: Sequence[str],
        endpoint: Endpoint,
        *,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | int = subprocess.PIPE,
        patience: float = PATIENCE,
    ) -> str:
        """Run a program against an endpoint and return its output; it is killed when this program is interrupted.

        Raises BenchError with its last words when it fails, Stuck when it takes longer than `patience` seconds.
        """
        try:
            ran = subprocess.run(
                [self.bin_dir / name, *arguments],
                env={**clean_environment(), **endpoint.environment()},
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Stuck(f"{name} did not end within {patience:.0f} s") from None
        if ran.returncode != 0:
            raise BenchError(f"{name}: {_last_words(ran.stderr)}")
        return (ran.stdout or b"").decode(errors="replace")


def _last_words(output: bytes) -> str:
    """The first line with the word "error" or "FATAL", which names the cause, else the last line."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "ERROR" in line or "error:" in line]
    return (telling or lines[-1:] or ["it failed without a word"])[0][:300]
