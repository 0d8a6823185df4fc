"""Both back-ends through QEMU, under TCG: program to program.

A guest with Debian's 6.1 kernel on each back-end, both up at once and one working at a
time: QEMU on CPU 0, back-ends and servers on CPU 1. guest/probe is the program in the
guest, bench/host/server.c the one on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.harness import (
    CID,
    ECHO,
    TWO_CORES,
    Backend,
    MeasureError,
    against,
    backend,
    bound,
    ours,
    pinned,
    server,
    theirs,
    wait_for_socket,
)
from fastpath.image import images
from fastpath.vm import accel
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec

CONNECTS, ROUND_TRIPS, BULK = 200, 1000, 16 << 20
POLL_US = 1000
"""Under TCG a round trip often takes longer than our default window."""
RUN_S = 60.0
LINES: tuple[dict[str, Any], ...] = (
    {
        "key": "vm-connect",
        "title": "connect, p50",
        "unit": "us",
        "less": True,
        "target": 0.6,
    },
    {
        "key": "vm-rtt-64",
        "title": "round trip 64 B, p50",
        "unit": "us",
        "less": True,
        "target": 0.65,
    },
    {
        "key": "vm-echo",
        "title": "bulk echo, both ways at once",
        "unit": "MB/s",
        "less": False,
        "target": 1.7,
    },
)


async def _boot(stack: contextlib.AsyncExitStack, folder: Path, socket: Path) -> Guest:
    spec = VmSpec(
        image=images.build("base"),
        accel=accel.choose("tcg"),
        vsock_socket=Path(f"{socket}{CID}"),
        console=folder / "console",
        qmp=folder / "qmp",
        cpu_affinity=frozenset({TWO_CORES.driver}),
    )
    uds = socket.with_suffix(".uds")
    guest = Guest(Path(f"{uds}{CID}"), console=spec.console)
    await stack.enter_async_context(guest)
    machine = await stack.enter_async_context(Machine(spec))
    await machine.watch(guest.ready())
    return guest


async def _probe(guest: Guest, *args: object) -> dict[str, Any]:
    said, errors = bytearray(), bytearray()
    argv = ["probe", "vsock:2", str(ECHO), *map(str, args)]
    work = guest.run(argv, tsi=False, stdout=said.extend, stderr=errors.extend)
    async with asyncio.timeout(RUN_S):
        if await work:
            raise MeasureError(f"{' '.join(argv)}: {errors.decode().strip()}")
    result: dict[str, Any] = json.loads(said)
    return result


async def _round(guest: Guest) -> tuple[float, float, float]:
    connect = await _probe(guest, "connect", CONNECTS)
    rtt = await _probe(guest, "rtt", ROUND_TRIPS, 64)
    echo = await _probe(guest, "echo", BULK)
    return (
        statistics.median(connect["ns"]) / 1e3,
        statistics.median(rtt["ns"]) / 1e3,
        echo["bytes"] * 1e3 / echo["ns"],
    )


def _side(kind: Backend):
    @contextmanager
    def side():
        with contextlib.ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="vsock-bench-")
            folder = Path(stack.enter_context(made))
            stack.enter_context(pinned(TWO_CORES.backend))
            host = stack.enter_context(server(folder, TWO_CORES.server))
            running = backend(kind, folder, host, TWO_CORES.backend)
            socket, _pid = stack.enter_context(running)
            wait_for_socket(Path(f"{socket}{CID}"))
            loop = stack.enter_context(asyncio.Runner())
            in_loop = contextlib.AsyncExitStack()
            stack.callback(lambda: loop.run(in_loop.aclose()))
            guest = loop.run(_boot(in_loop, folder, socket))
            yield lambda: loop.run(_round(guest))

    return side


@pytest.mark.long
def bench_vm(bench):
    shared = {"group": "Through QEMU under TCG, guest 6.1", "against": against()}
    about = [
        line | shared | {"target": bound(line["target"], less=line["less"])}
        for line in LINES
    ]
    bench.pairs(_side(ours(POLL_US)), _side(theirs(poll_us=POLL_US)), about)
