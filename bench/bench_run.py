"""`fastpath run` as a user meets it: from the command to its end."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

from bench.report import Target

MOST_S: Final = 6.0
RUN: Final = (sys.executable, "-m", "fastpath", "run", "--", "true")
LOOP: Final = (sys.executable, "-c", "sum(range(30_000_000))")
"""What the machine takes for work of its CPU's, as most of a boot under TCG is."""


def took_s(command: tuple[str, ...]) -> float:
    begin = time.monotonic()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.monotonic() - begin


def bench_true(bench):
    found = bench.turns([RUN, LOOP], took_s, rounds=5, short=3)
    bench.note(
        ours=tuple(each[RUN] for each in found),
        other=tuple(each[LOOP] for each in found),
        against="a loop of Python's",
        key="run-true",
        group="fastpath run",
        title="a microVM that runs `true`, boot to end",
        unit="s",
        less=True,
        target=Target(MOST_S, "ours"),
        recorded=True,
    )
