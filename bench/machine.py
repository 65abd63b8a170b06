"""Facts of the machine and the programs, without which numbers say little."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

BUSY_SHARE = 0.25


def parse_processor(cpuinfo: str) -> str:
    """Read the processor's name from /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model", "cpu model"}:
            return value.strip()
    return "unknown"


def machine_facts() -> Mapping[str, str]:
    """The kernel, the processor, its cores and the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": parse_processor(Path("/proc/cpuinfo").read_text(errors="replace")),
        "cores": str(usable_cores()),
        "memory": f"{memory / 2**30:.1f} GiB",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def usable_cores() -> int:
    """The cores on which this program may run."""
    return len(os.sched_getaffinity(0))


def busy_with_others() -> float | None:
    """The load of the last minute if other programs keep the machine busy, else None."""
    load = os.getloadavg()[0]
    return load if load > BUSY_SHARE * usable_cores() else None
