"""TSI beside raw vsock, in one guest: what the agent adds to connect(), and else not.

Both sides go to the same port of the same device: the token that the agent gave the
destination. The engine answers it itself, so no host socket is in the figures. QEMU on
CPU 0, the engine on CPU 1; the two sides take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench import sandbox
from bench.bench_vm import POLL_US
from bench.harness import TWO_CORES, MeasureError, awake, pinned
from bench.report import Target
from bench.sandbox import ECHO, Booted
from fastpath.vm import accel

SOURCE = Path(__file__).parent / "guest/connect.c"
CONNECTS, ROUND_TRIPS, ROUNDS = 300, 2000, 15
FIRST_TOKENS = 1 << 20
"""A control stream's tokens start at a multiple of this: the first stream's here."""
RUN_S = 60.0


class Pair:
    """One guest, and what was measured in it over TSI and raw."""

    def __init__(self, one: Booted) -> None:
        self._one = one
        self._agents = 0

    async def connects(self) -> tuple[float, float]:
        """Return medians in us: over TSI and raw, to what the former's token is."""
        token = self._next_token()
        tsi = await self._run(*map(str, ECHO), str(CONNECTS), tsi=True)
        raw = await self._run("vsock", token, str(CONNECTS), tsi=False)
        return tsi[0], raw[0]

    async def round_trips(self) -> tuple[float, float]:
        """Same of round trips, by a program that makes them in turns."""
        token = self._next_token()
        args = "rtt", *map(str, ECHO), token, str(ROUND_TRIPS)
        tsi, raw = await self._run(*args, tsi=True)
        return tsi, raw

    def _next_token(self) -> str:
        self._agents += 1
        return str(self._agents * FIRST_TOKENS)

    async def _run(self, *args: str, tsi: bool) -> list[float]:
        said, errors = bytearray(), bytearray()
        argv = ["connect", *args]
        streams = {"stdout": said.extend, "stderr": errors.extend}
        async with asyncio.timeout(RUN_S):
            if await self._one.run(*argv, tsi=tsi, **streams):
                raise MeasureError(f"{' '.join(argv)}: {errors.decode().strip()}")
        lines = said.splitlines()
        return [statistics.median(map(int, line.split())) / 1e3 for line in lines]


@contextmanager
def one_guest():
    """Boot a guest on a ztunnel of this process; yields a way to run rounds."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake())
        stack.enter_context(pinned(TWO_CORES.backend))
        loop = stack.enter_context(asyncio.Runner())
        inside = contextlib.AsyncExitStack()
        stack.callback(lambda: loop.run(inside.aclose()))
        booted = sandbox.booted(
            accel.choose("auto"),
            config,
            program=SOURCE,
            cpu_affinity=frozenset({TWO_CORES.driver}),
        )
        pair = Pair(loop.run(inside.enter_async_context(booted)))
        yield lambda what: loop.run(getattr(pair, what)())


def config(folder):
    made = sandbox.config(folder)
    return replace(made, fastpath=replace(made.fastpath, poll_us=POLL_US))


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
