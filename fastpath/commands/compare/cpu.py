"""Host CPU: who may run where, and how much time a process has used.

Spec: Linux, Documentation/scheduler/sched-stats.rst (`/proc/PID/schedstat`:
nanoseconds on a CPU), proc(5) (`/proc/PID/stat`: clock ticks).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection


KTHREADD: Final = 2
"""The kernel's threads are its children."""


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
    """CPU time that the threads of `pid` have used, in ns.

    Args:
        pid: a process that is alive.
        without: thread ids to leave out.

    Raises:
        OSError: the process is gone.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) not in without:
            try:
                total += _thread_ns(task)
            except (FileNotFoundError, ProcessLookupError):  # it just ended
                continue
    return total


def kernel_ns() -> int:
    """CPU time that the kernel's own threads have used, in ns.

    All of the machine's: whose work one does isn't known.
    """
    total = 0
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if _parent(process) == KTHREADD or int(process.name) == KTHREADD:
                    total += _thread_ns(process)
            except (FileNotFoundError, ProcessLookupError):  # it just ended
                continue
    return total


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


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
