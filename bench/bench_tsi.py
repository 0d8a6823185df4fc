"""TSI beside raw vsock, in one guest: what it adds to calls, and what to memory.

Both sides go to the same port of the same device: the token that the destination was
given. The engine answers it itself, so no host socket is in the figures, but in those
of destinations that are new, which lead to a server of the host on both sides. QEMU on
CPU 0, the engine on CPU 1; the two sides take turns.

A form is who has the program's sockets: `module` is tsi_inet, `agent` the agent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench import sandbox, soak_tsi, tsi_accept
from bench.bench_vm import POLL_US
from bench.harness import TWO_CORES, MeasureError, awake, pinned
from bench.report import Target
from bench.sandbox import ECHO, Booted
from bench.soak_tsi import VIP
from fastpath.vm import accel

CONNECT = Path(__file__).parent / "guest/connect.c"
HELD = Path(__file__).parent / "guest/held.c"
ROUNDS = 15
FIRST_TOKENS = 1 << 20
"""A control stream's tokens start at a multiple of this: the first stream's here."""
TO = {"known": ECHO, "rtt": ECHO, "up": (ECHO[0], 9), "down": (ECHO[0], 19)}
COUNTS = {"known": 300, "new": 100, "rtt": 2000, "up": 20, "down": 20}
NEW_PORTS = range(10000, 16000)
IDLE, UNREAD, SETTLE_S = 1000, 600, 3
FDS, LOOPBACKS = 20_000, 200
RUN_S = 120.0
KERNELS = {"base": "6.1", "linux-6.12": "6.12"}
kernels = pytest.mark.parametrize("image", KERNELS)


class Pair:
    """One guest, and what was measured in it over TSI and raw."""

    def __init__(self, one: Booted, form: str) -> None:
        self._one = one
        self._form = form
        self._streams = 0
        self._tokens: dict[tuple[str, int], int] = {}
        self._port = NEW_PORTS.start

    async def turns(self, how: str) -> tuple[float, float]:
        """Return medians in us, over TSI and raw, of a program that does both."""
        count = COUNTS[how]
        if how == "new":
            token = await self._token(VIP[0], NEW_PORTS.start)
            to = VIP[0], self._port + 1
            self._port += count + 20  # the program warms up
            if self._port >= NEW_PORTS.stop:
                raise MeasureError("no port is left that is new")
        else:
            to = TO[how]
            token = await self._token(*to)
        args = how, *map(str, to), str(token), str(count)
        tsi, raw = await self._samples(*args, tsi=True)
        if how == "new":
            self._tokens |= {(to[0], to[1] + i): 0 for i in range(count + 20)}
        return tsi, raw

    async def connects(self) -> tuple[float, float]:
        """Same of connects, by a program of its own each: raw without an agent."""
        token = self._next_stream()
        count = str(COUNTS["known"])
        (tsi,) = await self._samples("alone", *map(str, ECHO), count, tsi=True)
        (raw,) = await self._samples("alone", "vsock", str(token), count, tsi=False)
        return tsi, raw

    async def memory(self, count: int, port: int) -> list[float]:
        """MiB less available, and less free, for connections which nobody reads."""
        argv = "held", "memory", ECHO[0], str(port), str(count), str(SETTLE_S)
        said = await self.run(*argv, tsi=True)
        return [int(kib) / 1024 for kib in said.split()]

    async def loopback(self) -> tuple[list[float], list[float]]:
        """Return medians of bind() and connect() in us: sockets of TSI's, and TCP's."""
        out = []
        for ours in True, False:
            said = await self.run(
                "held", "loopback", str(FDS), str(LOOPBACKS), tsi=ours
            )
            out.append(_medians(said))
        return out[0], out[1]

    async def _token(self, host: str, port: int) -> int:
        """The token of a destination, which it gets if it has none."""
        if self._form != "module":  # each program has an agent, with a stream
            return self._next_stream()
        if (host, port) not in self._tokens:
            await self._samples("alone", host, str(port), "1", tsi=True)
            self._tokens[host, port] = len(self._tokens)
        return FIRST_TOKENS + self._tokens[host, port]

    def _next_stream(self) -> int:
        self._streams += 1
        return self._streams * FIRST_TOKENS

    async def _samples(self, *args: str, tsi: bool) -> list[float]:
        return _medians(await self.run("connect", *args, tsi=tsi))

    async def run(self, *argv: str, tsi: bool = False) -> bytes:
        """Run a program in the guest; return what it says."""
        said, errors = bytearray(), bytearray()
        streams = {"stdout": said.extend, "stderr": errors.extend}
        async with asyncio.timeout(RUN_S):
            if await self._one.run(*argv, tsi=tsi, **streams):
                raise MeasureError(f"{' '.join(argv)}: {errors.decode().strip()}")
        return bytes(said)


def _medians(said: bytes) -> list[float]:
    """Return each line's, ns as us."""
    lines = said.splitlines()
    return [statistics.median(map(int, line.split())) / 1e3 for line in lines]


@contextmanager
def one_guest(image, form, program=CONNECT):
    """Boot a guest on a ztunnel of this process; yields a way to run rounds."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake())
        stack.enter_context(pinned(TWO_CORES.backend))
        loop = stack.enter_context(asyncio.Runner())
        inside = contextlib.AsyncExitStack()
        stack.callback(lambda: loop.run(inside.aclose()))
        server = inside.enter_async_context(soak_tsi.echo_server())
        port = loop.run(server)
        booted = sandbox.booted(
            accel.choose("auto"),
            lambda folder: config(folder, port),
            image=image,
            program=program,
            sockets=form,
            cpu_affinity=frozenset({TWO_CORES.driver}),
        )
        pair = Pair(loop.run(inside.enter_async_context(booted)), form)
        yield lambda what, *args: loop.run(getattr(pair, what)(*args))


def config(folder, port):
    made = soak_tsi.config(folder, port, NEW_PORTS)
    return replace(made, fastpath=replace(made.fastpath, poll_us=POLL_US))


def group(image, form):
    return f"TSI ({form}) beside raw vsock, one guest, Linux {KERNELS[image]}"


@pytest.mark.long
@kernels
@pytest.mark.parametrize(
    ("form", "how", "title", "bound"),
    [
        ("module", "known", "socket() + connect(), known, p50", 1.05),
        ("module", "new", "socket() + connect(), new, p50", 1.5),
        ("module", "rtt", "round trip 64 B, p50", 1.01),
        ("module", "up", "1 MiB to the host, p50", 1.01),
        ("module", "down", "1 MiB from the host, p50", 1.01),
        ("agent", "connects", "socket() + connect(), known, p50", 2.0),
        ("agent", "rtt", "round trip 64 B, p50", 1.02),
    ],
)
def bench_calls(bench, image, form, how, title, bound):
    what = ("connects",) if how == "connects" else ("turns", how)
    with one_guest(image, form) as measure:
        measure(*what)
        rounds = bench.each(lambda: measure(*what), rounds=ROUNDS)
    bench.note(
        key=f"tsi-{form}-{how}-{image}",
        group=group(image, form),
        title=title,
        unit="us",
        less=True,
        ours=tuple(tsi for tsi, _ in rounds),
        other=tuple(raw for _, raw in rounds),
        against="raw AF_VSOCK",
        target=Target(bound),
    )


@pytest.mark.long
@kernels
@pytest.mark.parametrize("in_flight", [1, 32, 128])
def bench_accept(bench, image, in_flight):
    options = argparse.Namespace(
        cpus=1, in_flight=in_flight, connections=max(200, 20 * in_flight)
    )
    accelerator = accel.choose("auto")
    with awake(), asyncio.Runner() as loop:
        inside = contextlib.AsyncExitStack()
        booted = tsi_accept.booted(
            options, accelerator, "127.0.0.1:0", image=image, sockets="module"
        )
        there = loop.run(inside.enter_async_context(booted))
        try:
            loop.run(there.pair())
            rounds = bench.each(lambda: loop.run(there.pair()), rounds=ROUNDS)
        finally:
            loop.run(inside.aclose())
    bench.note(
        key=f"tsi-module-accept-{in_flight}-{image}",
        group=group(image, "module"),
        title=f"accept(), {in_flight} in flight",
        unit="1/s",
        less=False,
        ours=tuple(tsi for tsi, _ in rounds),
        other=tuple(raw for _, raw in rounds),
        against="raw AF_VSOCK",
        target=Target(0.95),
    )


@pytest.mark.long
@kernels
@pytest.mark.parametrize("form", ["module", "agent"])
def bench_memory(bench, image, form):
    with one_guest(image, form, HELD) as measure:
        idle = measure("memory", IDLE, ECHO[1])
        unread = measure("memory", UNREAD, 19)
    for what, count, (available, free), bound in (
        ("idle", IDLE, idle, 4),
        ("unread", UNREAD, unread, 64),
    ):
        for memory, mib in ("available", available), ("free", free):
            bench.note(
                key=f"tsi-{form}-{what}-{memory}-{image}",
                group=group(image, form),
                title=f"{count} {what} connections, less memory {memory}",
                unit="MiB",
                less=True,
                ours=(mib,),
                target=Target(bound, "ours"),
                timed=False,
            )
    bench.each(lambda: None, rounds=1)


@pytest.mark.long
@kernels
def bench_loopback(bench, image):
    with one_guest(image, "module", HELD) as measure:
        measure("loopback")
        rounds = bench.each(lambda: measure("loopback"), rounds=ROUNDS)
    for number, call in enumerate(("bind()", "connect()")):
        bench.note(
            key=f"tsi-module-loopback-{call}-{image}",
            group=group(image, "module"),
            title=f"{call} to 127.0.0.1, {FDS} descriptors open, p50",
            unit="us",
            less=True,
            ours=tuple(tsi[number] for tsi, _ in rounds),
            other=tuple(tcp[number] for _, tcp in rounds),
            against="without TSI",
            target=Target(1.1),
        )
