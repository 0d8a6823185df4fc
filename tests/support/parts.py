"""Run parts of `make test`, each to its end, and sum up which failed.

`python tests/support/parts.py PART... [NAME=VALUE...]`: a part is a target of the
Makefile, with variables to set in it. The last lines are those in which pytest names
what failed and why, once more; of each part whether it passed, and the seconds and CPU
seconds that it took; and "N passed, N failed". Exit status 0 if none failed.

CPU seconds are those of all processes that the part started and waited for. What CI
needs on a machine of which it gets a share follows from their sum.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Final

NAMING: Final = (b"FAILED ", b"ERROR ")
"""How pytest's summary begins the lines of what failed."""
LAST_WORDS_S: Final = 10
"""How long what a part said may take to arrive once it has ended."""


@dataclass(frozen=True)
class Result:
    """How one part ended."""

    name: str
    status: int
    """make's; negative: the signal that ended it."""
    wall_s: float
    cpu_s: float
    failures: list[str]
    """What of it failed, in pytest's words."""

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


def pass_on(said: IO[bytes], failures: list[str]) -> None:
    """Print what a part says, as it says it; keep what names a failure."""
    for line in said:
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
        if line.startswith(NAMING):
            failures.append(line.decode(errors="replace").rstrip())


def run(name: str, variables: list[str]) -> Result:
    """Run one part; what it says passes through."""
    begin = time.monotonic()
    say(f"==== {name} ====")
    make = os.environ.get("MAKE", "make")
    child = subprocess.Popen(
        [make, "--no-print-directory", name, *variables],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert child.stdout is not None
    failures: list[str] = []
    # A process that a part has left behind keeps the pipe open: it isn't waited for.
    passing = threading.Thread(
        target=pass_on, args=(child.stdout, failures), daemon=True
    )
    passing.start()
    try:
        _, status, used = os.wait4(child.pid, 0)
    except KeyboardInterrupt:
        child.terminate()  # who sent the signal may have sent it to us alone
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    passing.join(LAST_WORDS_S)
    cpu_s = used.ru_utime + used.ru_stime
    wall_s = time.monotonic() - begin
    return Result(name, child.returncode, wall_s, cpu_s, failures)


def summary(results: list[Result], left: list[str]) -> list[str]:
    """Return the last lines; `left`: parts that were not run."""
    failed = sum(result.status != 0 for result in results)
    wall_s = sum(result.wall_s for result in results)
    cpu_s = sum(result.cpu_s for result in results)
    return [
        *(line for result in results for line in result.failures),
        "",
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
