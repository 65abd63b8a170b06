"""Fuzz the readers of what others send with atheris, which looks for bytes that reach code not reached before.

`python -m harness.fuzz` from `tests`, or `make fuzz`.  What is found beyond the corpus of the tests stays in the
directory of findings, and inputs that raise something as `crash-*` in it; such a one belongs into `tests/fuzz/corpus`,
which the suite tries at every run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.process import started

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
FINDINGS = Path(__file__).parents[2] / ".fuzz"
MAX_SIZE = 4096
"""Longest input in bytes that is tried."""
MAX_MEMORY = 1024
"""Megabytes that a run may use."""
MAX_SECONDS = 5
"""Seconds that one input may take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz each target in a process of its own; the exit status is 1 where one has failed."""
    known = sorted(directory.name for directory in CORPUS.iterdir())
    parser = argparse.ArgumentParser(prog="make fuzz", description="Fuzz the readers of what others send.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"which ones, all unless told: {', '.join(known)}")
    parser.add_argument("--seconds", type=int, default=30, help="how long for each target (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in options.targets:
        if name not in known:
            parser.error(f"there is no target {name!r}; known: {', '.join(known)}")
    if options.here:
        fuzz(options.targets[0], options.seconds)
    command = [sys.executable, "-m", "harness.fuzz", "--here", "--seconds", str(options.seconds)]
    failed = []
    for name in options.targets or known:
        print(f"== {name}", flush=True)
        with started([*command, name], stdout=None) as fuzzing:
            if fuzzing.wait() != 0:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing found")
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with that."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed here, and without it nothing is fuzzed.\nhint: pip install atheris")
    with atheris.instrument_imports(include=["proxy", "registry"]):
        from harness.fuzztargets import TARGETS
    findings = FINDINGS / name
    findings.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_len={MAX_SIZE}", f"-rss_limit_mb={MAX_MEMORY}", f"-timeout={MAX_SECONDS}"]
    how = [f"-max_total_time={seconds}", f"-artifact_prefix={findings}/", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, *how, str(findings), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
