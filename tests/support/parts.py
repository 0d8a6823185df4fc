"""Run parts of `make test`, each to its end, and sum up which failed.

`python tests/support/parts.py PART... [NAME=VALUE...]`: a part is a target of the
Makefile, with variables to set in it. The last lines say of each whether it passed, and
the seconds and CPU seconds that it took; the very last is "N passed, N failed". Exit
status 0 if none failed.

CPU seconds are those of all processes that the part started and waited for. What CI
needs on a machine of which it gets a share follows from their sum.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """How one part ended."""

    name: str
    status: int
    """make's; negative: the signal that ended it."""
    wall_s: float
    cpu_s: float

    def line(self) -> str:
        """Return it as a row of the summary."""
        word = "passed" if self.status == 0 else f"failed ({self.status})"
        return row(self.name, word, f"{self.wall_s:.0f}", f"{self.cpu_s:.0f}")


def row(name: str, word: str, wall: str, cpu: str) -> str:
    """Return a row of the summary."""
    return f"{name:<14} {word:<12} {wall:>8} {cpu:>8}"


def say(*lines: str) -> None:
    """Print lines at once, in the order of what the parts print."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def run(name: str, variables: list[str]) -> Result:
    """Run one part; what it says passes through."""
    begin = time.monotonic()
    say(f"==== {name} ====")
    make = os.environ.get("MAKE", "make")
    child = subprocess.Popen([make, "--no-print-directory", name, *variables])
    try:
        _, status, used = os.wait4(child.pid, 0)
    except KeyboardInterrupt:
        child.terminate()  # who sent the signal may have sent it to us alone
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = used.ru_utime + used.ru_stime
    return Result(name, child.returncode, time.monotonic() - begin, cpu_s)


def summary(results: list[Result], left: list[str]) -> list[str]:
    """Return the last lines; `left`: parts that were not run."""
    failed = sum(result.status != 0 for result in results)
    wall_s = sum(result.wall_s for result in results)
    cpu_s = sum(result.cpu_s for result in results)
    return [
        row("part", "", "seconds", "CPU s"),
        *(result.line() for result in results),
        *(row(name, "not run", "", "") for name in left),
        row("together", "", f"{wall_s:.0f}", f"{cpu_s:.0f}"),
        f"{len(results) - failed} passed, {failed} failed",
    ]


def main(words: list[str]) -> int:
    """Run them, whatever fails, until a signal says to stop."""
    for signo in (signal.SIGINT, signal.SIGTERM):  # parts need them, nohup or not
        signal.signal(signo, signal.default_int_handler)
    names = [word for word in words if "=" not in word]
    variables = [word for word in words if "=" in word]
    results: list[Result] = []
    stopped = False
    try:
        results.extend(run(name, variables) for name in names)
    except KeyboardInterrupt:
        stopped = True
    say("", *summary(results, names[len(results) :]))
    if stopped:
        return 130
    return 1 if any(result.status for result in results) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="PART")
    sys.exit(main(parser.parse_args().parts))
