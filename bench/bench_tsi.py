"""TSI beside raw vsock, in one guest: what the agent adds to connect(), and else not.

Both sides go to the same port of the same device: the token that the agent gave the
destination. The engine answers it itself, so no host socket is in the figures. QEMU on
CPU 0, the engine on CPU 1; the two sides take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import statistics
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.bench_vm import POLL_US
from bench.harness import TWO_CORES, MeasureError, awake, pinned
from bench.report import Target
from fastpath.vm import accel, images
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
from fastpath.ztunnel.config import for_sandbox
from fastpath.ztunnel.process import Ztunnel

SOURCE = Path(__file__).parent / "guest/connect.c"
ADDRESS, ECHO = "198.18.0.1", 7
CONNECTS, ROUND_TRIPS, ROUNDS = 300, 2000, 15
FIRST_TOKENS = 1 << 20
"""A control stream's tokens start at a multiple of this: the first stream's here."""
RUN_S = 60.0


class Pair:
    """One guest, and what was measured in it over TSI and raw."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._agents = 0

    async def connects(self) -> tuple[float, float]:
        """Return medians in us: over TSI and raw, to what the former's token is."""
        token = self._next_token()
        tsi = await self._run(ADDRESS, str(ECHO), str(CONNECTS), tsi=True)
        raw = await self._run("vsock", token, str(CONNECTS), tsi=False)
        return tsi[0], raw[0]

    async def round_trips(self) -> tuple[float, float]:
        """Same of round trips, by a program that makes them in turns."""
        token = self._next_token()
        args = "rtt", ADDRESS, str(ECHO), token, str(ROUND_TRIPS)
        tsi, raw = await self._run(*args, tsi=True)
        return tsi, raw

    def _next_token(self) -> str:
        self._agents += 1
        return str(self._agents * FIRST_TOKENS)

    async def _run(self, *args: str, tsi: bool) -> list[float]:
        said, errors = bytearray(), bytearray()
        argv = ["connect", *args]
        work = self._guest.run(argv, tsi=tsi, stdout=said.extend, stderr=errors.extend)
        async with asyncio.timeout(RUN_S):
            if await work:
                raise MeasureError(f"{' '.join(argv)}: {errors.decode().strip()}")
        lines = said.splitlines()
        return [statistics.median(map(int, line.split())) / 1e3 for line in lines]


@contextmanager
def one_guest():
    """Boot a guest on a ztunnel of this process; yields a way to run rounds."""
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="tsi-bench-")
        folder = Path(stack.enter_context(made))
        stack.enter_context(awake())
        stack.enter_context(pinned(TWO_CORES.backend))
        program = folder / "connect"
        subprocess.run(["cc", "-O2", "-static", "-o", program, SOURCE], check=True)
        image = images.build("base")
        image = images.with_files(
            image, {"/bin/connect": program}, folder / "initramfs"
        )
        spec = VmSpec(
            image=image,
            accel=accel.choose("auto"),
            vsock_socket=folder / "vhost",
            console=folder / "console",
            qmp=folder / "qmp",
            cpu_affinity=frozenset({TWO_CORES.driver}),
        )
        loop = stack.enter_context(asyncio.Runner())
        inside = contextlib.AsyncExitStack()
        stack.callback(lambda: loop.run(inside.aclose()))
        pair = Pair(loop.run(_boot(inside, spec, folder)))
        yield lambda what: loop.run(getattr(pair, what)())


async def _boot(stack: contextlib.AsyncExitStack, spec: VmSpec, folder: Path) -> Guest:
    config = for_sandbox(
        name="bench",
        socket=folder / "vhost",
        cid=3,
        addresses=(ipaddress.ip_address("10.0.0.5"),),
        uds_path=folder / "vsock",
        echo=ipaddress.ip_address(ADDRESS),
        access_log=Path(os.devnull),
    )
    own = replace(config.fastpath, poll_us=POLL_US)
    await stack.enter_async_context(Ztunnel(replace(config, fastpath=own)))
    guest = Guest(folder / "vsock", console=spec.console)
    await stack.enter_async_context(guest)
    machine = await stack.enter_async_context(Machine(spec))
    await machine.watch(guest.ready())
    return guest


@pytest.mark.long
@pytest.mark.parametrize(
    ("key", "what", "title", "bound"),
    [
        ("tsi-connect", "connects", "connect(), p50", 2.0),
        ("tsi-rtt", "round_trips", "round trip 64 B, p50", 1.02),
    ],
)
def bench_tsi(bench, key, what, title, bound):
    with one_guest() as measure:
        measure(what)
        rounds = bench.each(lambda: measure(what), rounds=ROUNDS)
    bench.note(
        key=key,
        group="TSI beside raw vsock, one guest",
        title=title,
        unit="us",
        less=True,
        ours=tuple(tsi for tsi, _ in rounds),
        other=tuple(raw for _, raw in rounds),
        against="raw AF_VSOCK",
        target=Target(bound),
    )
