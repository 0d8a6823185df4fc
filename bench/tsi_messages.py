"""What it costs a program that sendmsg() and recvmsg() are looked at for UDP's sake.

    python -m bench.tsi_messages [--count 500] [--rounds 20]

A program in a guest makes round trips of one byte by write() and read(), and by
sendmsg() and recvmsg(), in turn: on a unix socket pair, where the look is all there is,
and on a TCP connection to the echo address of ztunnel. Run once with the agent and once
without, which leaves the pair only. Prints medians.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.sandbox import ECHO, Booted, booted
from fastpath.vm import accel

if TYPE_CHECKING:
    from fastpath.vm.spec import Accelerator

PROGRAM: Final = Path(__file__).parent / "guest" / "messages.c"
COLUMNS: Final = (
    "unix, write/read",
    "unix, sendmsg/recvmsg",
    "TCP, write/read",
    "TCP, sendmsg/recvmsg",
)
TIMEOUT_S: Final = 500


async def measure(
    count: int, rounds: int, accelerator: Accelerator
) -> dict[str, list[float]]:
    """Boot a guest and run the program; return medians by who runs it, in us."""
    argv = ["messages", str(count), str(rounds)]
    async with asyncio.timeout(TIMEOUT_S), booted(accelerator, program=PROGRAM) as one:
        return {
            "with the agent": await _run(one, *argv, ECHO[0], str(ECHO[1]), tsi=True),
            "without": await _run(one, *argv, tsi=False),
        }


async def _run(one: Booted, *argv: str, tsi: bool) -> list[float]:
    said = bytearray()
    status = await one.run(*argv, tsi=tsi, stdout=said.extend, stderr=said.extend)
    if status:
        raise RuntimeError(f"status {status}: {said.decode(errors='replace')}")
    lines = [[float(word) for word in line.split()] for line in said.splitlines()]
    return [statistics.median(column) for column in zip(*lines, strict=True)]


def main() -> int:
    """Run it by hand; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--accel", default="auto")
    options = parser.parse_args()
    chosen = accel.choose(options.accel)
    found = asyncio.run(measure(options.count, options.rounds, chosen))
    for who, medians in found.items():
        for column, median in zip(COLUMNS, medians, strict=False):
            print(f"{who}: {column}: {median:.1f} us")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
