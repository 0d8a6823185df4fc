"""Whether something else used the machine: figures taken then hold for less.

    before   a look of half a second while nothing of ours runs yet: the load
             average, and how long programs waited for a CPU (PSI)
    after    the CPU time that the hypervisor gave to others meanwhile (steal)

What our own processes do to each other during the run is part of the figures and
no news.

Spec: proc(5) (`/proc/stat`, `/proc/loadavg`), Linux, Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

LOOK_S: Final = 0.5
LOADED: Final = 0.5
"""Load average for each CPU above which it is said."""
PRESSED: Final = 0.1
"""Share of the time that a program waited for a CPU."""
STOLEN: Final = 0.01
"""Share of the CPUs' time that was given to others."""

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Ticks:
    """The CPUs' time since boot, in clock ticks."""

    all: int
    stolen: int

    @classmethod
    def now(cls, proc: Path = _PROC) -> Self:
        """Read it."""
        first = (proc / "stat").read_text(encoding="ascii").partition("\n")[0]
        # user nice system idle iowait irq softirq steal; guest is in user already
        fields = [int(word) for word in first.split()[1:9]]
        return cls(sum(fields), fields[7] if len(fields) > 7 else 0)


@dataclass(frozen=True, slots=True)
class Before:
    """What was seen before the run."""

    average: float
    """Programs that ran or wanted to, over the last minute."""
    waited: float | None
    """Share of `LOOK_S` that a program waited for a CPU; None: no PSI here."""
    ticks: Ticks

    @classmethod
    async def look(cls, proc: Path = _PROC, look_s: float = LOOK_S) -> Self:
        """Look, while nothing of ours runs."""
        average = float((proc / "loadavg").read_text(encoding="ascii").split()[0])
        began, waited = time.monotonic(), _waited_us(proc)
        await asyncio.sleep(look_s)
        share = None
        if waited is not None and (now := _waited_us(proc)) is not None:
            share = (now - waited) / 1e6 / (time.monotonic() - began)
        return cls(average, share, Ticks.now(proc))

    def warnings(self, after: Ticks, *, cpus: int | None = None) -> tuple[str, ...]:
        """Return what a reader of the figures has to know.

        Args:
            after: at the end of the run.
            cpus: of the machine; None: look.
        """
        cpus = cpus or os.cpu_count() or 1
        found = []
        if self.average > LOADED * cpus:
            found.append(
                f"the machine was loaded: a load average of {self.average:.1f} on "
                f"{cpus} CPUs in the minute before"
            )
        if self.waited is not None and self.waited > PRESSED:
            found.append(
                f"other programs used the CPUs: one waited {self.waited:.0%} of the "
                "time before the run (PSI)"
            )
        ticks = after.all - self.ticks.all
        stolen = (after.stolen - self.ticks.stolen) / ticks if ticks > 0 else 0.0
        if stolen > STOLEN:
            found.append(
                f"the hypervisor gave {stolen:.0%} of the CPUs' time to others (steal)"
            )
        return tuple(found)


def _waited_us(proc: Path) -> int | None:
    """Time for which some program waited for a CPU since boot, us."""
    try:
        text = (proc / "pressure" / "cpu").read_text(encoding="ascii")
    except OSError:
        return None
    some = re.search(r"^some .*total=(\d+)$", text, re.MULTILINE)
    return int(some[1]) if some else None
