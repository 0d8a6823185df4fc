"""Linux's own vsock_perf between two guests that are siblings of one back-end.

Guests with Debian's 6.1 kernel under TCG, both QEMUs on CPU 0, the back-end on CPU 1;
vsock_perf is of 6.12's sources (`tests.support.linux_tests`). It sends with writes of
64 KiB, one way and then the other; the figure is what the receiver saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.bench_native import POLL_US
from bench.harness import (
    CID,
    TWO_CORES,
    Backend,
    backend,
    ours,
    pinned,
    wait_for_socket,
)
from fastpath.image import images
from fastpath.vm import accel
from fastpath.vm.spec import VmSpec
from tests.support import linux_tests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CIDS = (CID, CID + 1)
SIZE, BUFFER = 32 << 20, 64 << 10
READY_S, RUN_S = 60.0, 60.0
WAYS = {"there": True, "back": False}


async def _boot(
    stack: contextlib.AsyncExitStack, folder: Path, socket: Path
) -> linux_tests.Pair:
    programs = linux_tests.programs(linux_tests.build("6.12"))
    image = images.with_files(images.build("base"), programs, folder / "initramfs")
    specs = tuple(
        VmSpec(
            image=image,
            accel=accel.choose("tcg"),
            vsock_socket=Path(f"{socket}{cid}"),
            console=folder / f"console{cid}",
            qmp=folder / f"qmp{cid}",
            cpu_affinity=frozenset({TWO_CORES.driver}),
        )
        for cid in CIDS
    )
    uds = socket.with_suffix(".uds")
    pair = linux_tests.pair(
        (specs[0], specs[1]),
        (Path(f"{uds}{CIDS[0]}"), Path(f"{uds}{CIDS[1]}")),
        CIDS,
        READY_S,
    )
    return await stack.enter_async_context(pair)


async def _round(both: linux_tests.Pair) -> tuple[float, ...]:
    rates = []
    for to_second in WAYS.values():
        async with asyncio.timeout(RUN_S):
            sent = linux_tests.vsock_perf(
                both, to_second=to_second, size=SIZE, buffer=BUFFER
            )
            rates.append((await sent)[1])
    return tuple(rates)


@contextmanager
def _siblings(kind: Backend) -> Iterator[Callable[[], tuple[float, ...]]]:
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="vsock-bench-")
        folder = Path(stack.enter_context(made))
        stack.enter_context(pinned(TWO_CORES.backend))
        running = backend(kind, folder, folder / "none", TWO_CORES.backend, CIDS)
        socket, _pid = stack.enter_context(running)
        for cid in CIDS:
            wait_for_socket(Path(f"{socket}{cid}"))
        loop = stack.enter_context(asyncio.Runner())
        in_loop = contextlib.AsyncExitStack()
        stack.callback(lambda: loop.run(in_loop.aclose()))
        both = loop.run(_boot(in_loop, folder, socket))
        yield lambda: loop.run(_round(both))


@pytest.mark.long
def bench_vsock_perf(bench):
    """Ours alone: with the peer between two guests vsock_perf does not end."""
    with _siblings(ours(POLL_US, CIDS, more=",groups=bench")) as measure:
        runs = bench.each(measure, rounds=5)
    for way, rates in zip(WAYS, zip(*runs, strict=True), strict=True):
        bench.note(
            ours=rates,
            key=f"vsock-perf-{way}",
            group="Siblings: Linux's vsock_perf under TCG, guests 6.1",
            title=f"64 KiB writes, {way}",
            unit="Gbit/s",
            less=False,
        )
