"""What a process takes, from /proc: memory, descriptors, CPU time.

Spec: proc(5), /proc/[pid]/status, /proc/[pid]/fd, /proc/[pid]/task/[tid]/schedstat.
"""

from __future__ import annotations

from pathlib import Path


def kib(pid: int | str, *keys: str) -> int:
    """Return the sum of sizes that /proc/PID/status has, in KiB: VmRSS, RssAnon, ..."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return sum(int(found[key].split()[0]) for key in keys)


def descriptors(pid: int | str) -> int:
    """Return how many are open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def cpu_ns(pid: int | str) -> int:
    """Return the CPU time of the threads that there are."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
