"""`fastpath run` as a user meets it: from the command to its end."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

import pytest

from bench import quiet
from bench.report import Target

MOST_S: Final = 6.0
COMMAND: Final = (sys.executable, "-m", "fastpath", "run", "--", "true")


def run_s() -> float:
    begin = time.monotonic()
    subprocess.run(COMMAND, check=True, stdin=subprocess.DEVNULL)
    return time.monotonic() - begin


def bench_true(bench):
    run_s()  # whatever is built or probed at first use
    took = bench.each(run_s, rounds=3)
    bench.note(
        ours=tuple(took),
        key="run-true",
        group="fastpath run",
        title="a microVM that runs `true`, boot to end",
        unit="s",
        less=True,
        target=Target(MOST_S, "ours"),
    )
    if min(took) >= MOST_S and not quiet.noise():
        pytest.fail(f"the fastest of {len(took)} took {min(took):.1f} s")
