"""Run a command with a share of the machine's CPU time, in a cgroup of its own.

`python tests/support/quota.py --percent 25 --limit 4800 -- COMMAND...`, as root: a
machine that is four times slower, and stalls. The exit status is the command's; 124
if it took longer than the limit (s), and then all of it is killed. The last line says
how long it took and how much CPU time it had. The cgroup is removed in any case.

Spec: Linux, Documentation/scheduler/sched-bwc.rst (cpu.cfs_quota_us, cgroup v1) and
Documentation/admin-guide/cgroup-v2.rst (cpu.max).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

V2: Final = Path("/sys/fs/cgroup/cgroup.controllers")
ROOT_V2: Final = Path("/sys/fs/cgroup")
ROOT_V1: Final = Path("/sys/fs/cgroup/cpu")
PERIOD_US: Final = 100_000
GRACE_S: Final = 60.0
TIMED_OUT: Final = 124


class Cgroup:
    """A new cgroup whose processes share a quota; `close()` ends them.

    Args:
        percent: of the CPU time of all CPUs together.

    Raises:
        OSError: it can't be made: not root, or no CPU controller.
    """

    def __init__(self, percent: float) -> None:
        quota_us = round(PERIOD_US * (os.cpu_count() or 1) * percent / 100)
        name = f"fastpath-quota-{os.getpid()}"
        if V2.exists():
            self.path = ROOT_V2 / name
            self.path.mkdir()
            self._set("cpu.max", f"{quota_us} {PERIOD_US}")
        else:
            self.path = ROOT_V1 / name
            self.path.mkdir()
            self._set("cpu.cfs_period_us", str(PERIOD_US))
            self._set("cpu.cfs_quota_us", str(quota_us))

    def _set(self, file: str, value: str) -> None:
        try:
            (self.path / file).write_text(value)
        except OSError:
            self.path.rmdir()
            raise

    def join(self) -> None:
        """Move this process into it."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        """Kill what is left in it, and remove it."""
        while pids := (self.path / "cgroup.procs").read_text().split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)
        self.path.rmdir()


def run(command: list[str], percent: float, limit_s: float) -> int:
    """Run a command; return its exit status."""
    cgroup = Cgroup(percent)
    begin = time.monotonic()
    try:
        with subprocess.Popen(command, preexec_fn=cgroup.join) as child:
            try:
                status = child.wait(limit_s)
                status = status if status >= 0 else 128 - status
            except subprocess.TimeoutExpired:
                child.terminate()  # so that it still sums up
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE_S)
                cgroup.close()
                status = TIMED_OUT
        wall_s = time.monotonic() - begin
        used = os.times()
        cpu_s = used.children_user + used.children_system
        sys.stdout.write(
            f"{wall_s:.0f} s and {cpu_s:.0f} CPU s with {percent:g} % of "
            f"{os.cpu_count()} CPUs; exit status {status}\n"
        )
        return status
    finally:
        if cgroup.path.exists():
            cgroup.close()


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--percent", type=float, default=25)
    parser.add_argument("--limit", type=float, default=4800, metavar="S")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    try:
        return run(options.command, options.percent, options.limit)
    except OSError as error:
        hint = "run as root, or: systemd-run --user --scope -p CPUQuota=50% COMMAND"
        sys.stderr.write(f"quota: {error}; hint: {hint}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
