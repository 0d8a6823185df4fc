"""What it costs a program that sendmsg() and recvmsg() are trapped for UDP's sake.

    python -m bench.tsi_messages [--count 500] [--rounds 20]

A program in a guest makes round trips of one byte by write() and read(), and by
sendmsg() and recvmsg(), in turn: on a unix socket pair, where the trap is all there is,
and on a TCP connection to the echo address of ztunnel. Run once with the agent and once
without, which leaves the pair only. Prints medians.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.soak_tsi import ECHO, config
from fastpath.vm import accel, images
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import Accelerator, VmSpec
from fastpath.ztunnel.process import Ztunnel

PROGRAM: Final = Path(__file__).parent / "guest" / "messages.c"
COLUMNS: Final = (
    "unix, write/read",
    "unix, sendmsg/recvmsg",
    "TCP, write/read",
    "TCP, sendmsg/recvmsg",
)
TIMEOUT_S: Final = 500


def compiled(folder: Path) -> Path:
    """Compile the guest's program."""
    out = folder / "messages"
    command = ["cc", "-std=gnu11", "-O2", "-static", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(out), str(PROGRAM)], check=True)
    return out


async def measure(
    count: int, rounds: int, accelerator: Accelerator
) -> dict[str, list[float]]:
    """Boot a guest and run the program; return medians by who runs it, in us."""
    with tempfile.TemporaryDirectory(prefix="fp-messages-") as name:
        folder = Path(name)
        image = images.with_files(
            images.build("base"),
            {"/bin/messages": compiled(folder)},
            folder / "initramfs",
        )
        spec = VmSpec(
            image=image,
            accel=accelerator,
            vsock_socket=folder / "vhost",
            console=folder / "console",
            qmp=folder / "qmp",
        )
        async with (
            asyncio.timeout(TIMEOUT_S),
            Ztunnel(config(folder, 9)),
            Guest(folder / "vsock", console=spec.console) as guest,
            Machine(spec) as machine,
        ):
            await machine.watch(guest.ready())
            argv = ["messages", str(count), str(rounds)]
            to = [ECHO[0], str(ECHO[1])]
            return {
                "with the agent": await _run(machine, guest, [*argv, *to], tsi=True),
                "without": await _run(machine, guest, argv, tsi=False),
            }


async def _run(
    machine: Machine, guest: Guest, argv: list[str], *, tsi: bool
) -> list[float]:
    said = bytearray()
    status = await machine.watch(
        guest.run(argv, tsi=tsi, stdout=said.extend, stderr=said.extend)
    )
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
