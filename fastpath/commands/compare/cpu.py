"""Host CPU: who may run where, and how much time a process has used.

Spec: Linux, Documentation/scheduler/sched-stats.rst (`/proc/PID/schedstat`:
nanoseconds on a CPU), proc(5) (`/proc/PID/stat`: clock ticks), clock_getcpuclockid(3)
(the clock of a process).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection


KTHREADD: Final = 2
"""The kernel's threads are its children."""
CPUCLOCK_SCHED: Final = 2
"""Of a process's clock: what its threads ran; Linux, include/linux/posix-timers.h."""


@dataclass(frozen=True, slots=True)
class Pinning:
    """The guest's CPU, and that of everything on the host's side."""

    vcpu: int
    host: int

    @classmethod
    def choose(cls) -> Pinning:
        """Take two of the CPUs that we may use, or the only one twice.

        Both ends of the host's side stay on one CPU: spread over several, the
        wake-ups between them cost more than the paths that are compared.
        """
        allowed = sorted(os.sched_getaffinity(0))
        return cls(vcpu=allowed[0], host=allowed[min(1, len(allowed) - 1)])

    def __str__(self) -> str:
        if self.vcpu == self.host:
            return (
                f"everything on CPU {self.host}, the only one: guest and host take "
                "turns on it, so the figures hold for this machine alone"
            )
        return (
            f"vCPU on CPU {self.vcpu}; ztunnel, server and QEMU's other threads on "
            f"CPU {self.host}"
        )


def used_ns(pid: int, *, without: Collection[int] = ()) -> int:
    """CPU time that the threads of `pid` have used, in ns; those that ended, too.

    Args:
        pid: a process that is alive.
        without: ids of threads that are there, to leave out.

    Raises:
        OSError: the process, or such a thread, is gone.
    """
    tasks = Path(f"/proc/{pid}/task")
    total = time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED)
    return total - sum(_thread_ns(tasks / str(tid)) for tid in without)


@dataclass
class KernelTime:
    """CPU time of the kernel's own threads.

    All of the machine's: whose work one does isn't known. What those that have ended
    had when they were last seen stays.
    """

    _seen: dict[tuple[str, str], int] = field(default_factory=dict)
    """ns, by process id and when it began."""

    def ns(self) -> int:
        """Return what they have used so far."""
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                try:
                    stat = (process / "stat").read_text().rpartition(")")[2].split()
                    if KTHREADD in (int(stat[1]), int(process.name)):
                        self._seen[process.name, stat[19]] = _thread_ns(process)
                except (FileNotFoundError, ProcessLookupError):  # it just ended
                    continue
        return sum(self._seen.values())


def memory_mb(pid: int) -> tuple[float, float]:
    """Memory of a process, in 10**6 bytes: resident, and its proportional share.

    Raises:
        OSError: the process is gone, or its memory may not be looked at.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = {
        name: int(words.split()[0])
        for name, _, words in (line.partition(":") for line in rollup.splitlines()[1:])
    }
    return kib["Rss"] * 1024 / 1e6, kib["Pss"] * 1024 / 1e6


def _thread_ns(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def count() -> int:
    """CPUs that we may use."""
    return len(os.sched_getaffinity(0))


def model() -> str:
    """Return the name that the CPU gives itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown CPU"


def note() -> str:
    """Say what a host CPU figure of this machine contains and what not."""
    parts = (
        "Host CPU a round trip: time of all threads of ztunnel, of the proxy that it "
        "hands over to, of passt or another's back-end, if any, and of QEMU's threads "
        "but the vCPU's, over a run of many round trips less a run of one"
    )
    if not Path("/proc/self/schedstat").exists():
        parts += f", counted in ticks of {1000 // os.sysconf('SC_CLK_TCK')} ms"
    return (
        f"{parts}. Packet work of the kernel counts where it runs in those threads' "
        "system calls; what runs in ksoftirqd or in an interrupt (and all softirq "
        "time on kernels with IRQ_TIME_ACCOUNTING) does not, so the standard path's "
        "figure is a lower bound."
    )
