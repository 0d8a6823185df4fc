"""Whether something else used the machine: figures taken then hold for less.

    before   a look of half a second while nothing of ours runs yet: the load
             average, and how long programs waited for a CPU (PSI)
    each     round: what the hypervisor gave to others (steal), and how long the vCPUs
             waited for their CPU (the run queue)
    after    steal over the whole run, and whether the clock was slewed meanwhile

What our own processes do to each other during the run is part of the figures and
no news. The vCPUs have a CPU that nothing else of ours is pinned to.

Spec: proc(5) (`/proc/stat`, `/proc/loadavg`), Linux, Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Collection

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


ROUND_STOLEN: Final = 0.05
"""Share of the CPUs' time that was given to others in a round that is disturbed."""
ROUND_WAITED: Final = 0.1
"""Share of a round's time that vCPUs waited for their CPU, if it is disturbed."""
SLEWED: Final = 500e-6
"""The most that a kernel slews its clock by is as much; a sane one is far below."""


@dataclass(slots=True)
class Watch:
    """Says of each round whether something else used the machine meanwhile."""

    threads: Collection[int]
    """Of the vCPUs."""
    proc: Path = _PROC
    disturbed: int = 0
    """Rounds that were."""
    stolen: float = 0.0
    """The largest share of a round."""
    waited: float = 0.0
    _since: tuple[float, Ticks, int] | None = None

    def begin(self) -> None:
        """A round begins now."""
        self._since = self._now()

    def end(self) -> bool:
        """It ends; return whether it was disturbed."""
        assert self._since is not None
        (began, ticks, waited), (now, after, waits) = self._since, self._now()
        all_ticks = after.all - ticks.all
        stolen = (after.stolen - ticks.stolen) / all_ticks if all_ticks > 0 else 0.0
        share = (waits - waited) / 1e9 / max(now - began, 1e-9)
        self.stolen, self.waited = max(self.stolen, stolen), max(self.waited, share)
        if stolen <= ROUND_STOLEN and share <= ROUND_WAITED:
            return False
        self.disturbed += 1
        return True

    def warnings(self, done: int, more: int) -> tuple[str, ...]:
        """Return what a reader has to know.

        Args:
            done: rounds that were measured.
            more: of those, how many more than were asked for.
        """
        if not self.disturbed:
            return ()
        line = (
            f"{self.disturbed} of {done} rounds were disturbed: in the worst, vCPUs "
            f"waited {self.waited:.0%} of the time for their CPU, and the hypervisor "
            f"gave {self.stolen:.0%} of the CPUs' time to others"
        )
        return (line + (f"; {more} more rounds were measured" if more > 0 else ""),)

    def _now(self) -> tuple[float, Ticks, int]:
        waits = sum(_wait_ns(self.proc / str(thread)) for thread in self.threads)
        return time.monotonic(), Ticks.now(self.proc), waits


def _wait_ns(thread: Path) -> int:
    """How long a thread was able to run and did not, ns; 0 where that isn't told."""
    try:
        return int((thread / "schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0


def slewed(began: tuple[int, int], ended: tuple[int, int]) -> tuple[str, ...]:
    """Return a warning if the clock that times everything was slewed.

    Args:
        began: CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW, ns.
        ended: the same later.
    """
    clock, raw = (after - before for before, after in zip(began, ended, strict=True))
    if raw <= 0 or abs(clock / raw - 1) < SLEWED:
        return ()
    return (f"the host's clock was slewed by {abs(clock / raw - 1) * 1e6:.0f} ppm",)


def clocks() -> tuple[int, int]:
    """CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW, ns."""
    return (
        time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW),
    )


def _waited_us(proc: Path) -> int | None:
    """Time for which some program waited for a CPU since boot, us."""
    try:
        text = (proc / "pressure" / "cpu").read_text(encoding="ascii")
    except OSError:
        return None
    some = re.search(r"^some .*total=(\d+)$", text, re.MULTILINE)
    return int(some[1]) if some else None
