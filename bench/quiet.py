"""Whether this machine is quiet enough that a ratio of two timings means something.

A loop on each CPU that the benchmarks use has to get nearly all of it. It gets less
under a quota and beside other programs; where the hypervisor gives the CPU to others,
/proc/stat says so.

Spec: proc(5), /proc/stat (steal).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from bench.harness import TWO_CORES, pinned

LOOK_S: Final = 0.25
"""More than two periods of a CPU quota, which are 100 ms."""
LEAST: Final = 0.95
"""Share of a CPU that a loop gets on a quiet machine, at least."""


def noise() -> str:
    """Say why timings mean nothing now; "": they do."""
    for cpu in sorted({TWO_CORES.driver, TWO_CORES.backend}):
        share, stolen = look(cpu)
        if share < LEAST:
            return f"a loop on CPU {cpu} got {share:.0%} of it"
        if stolen > 1 - LEAST:
            return f"the hypervisor took {stolen:.0%} of CPU {cpu}"
    return ""


def look(cpu: int) -> tuple[float, float]:
    """Return the shares of a CPU's time that a loop gets, and that is stolen."""
    with pinned(cpu):
        begin, used, stolen = time.monotonic(), time.thread_time(), _stolen_s(cpu)
        while time.monotonic() - begin < LOOK_S:
            pass
        wall_s = time.monotonic() - begin
        got_s, stolen_s = time.thread_time() - used, _stolen_s(cpu) - stolen
    return got_s / wall_s, stolen_s / wall_s


def _stolen_s(cpu: int) -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        words = line.split()
        if words[0] == f"cpu{cpu}":
            return int(words[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0
