"""Hand-off `ring` beside unix sockets: the hop alone, and what connections cost.

The hop is the engine's own far sides, polling and turns, and another process, each on a
core and spinning (bench/host/ringhop.c): what differs is how the bytes get across. The
connections are those of a guest in user space, to an echo server of each kind that
sleeps when there is nothing to do.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import procfs
from bench.harness import (
    ECHO,
    HERE,
    TWO_CORES,
    Guest,
    MeasureError,
    _compile,
    _scratch,
    awake,
    pinned,
    process,
    server,
)
from bench.measures import connections_a_second
from bench.report import Target
from bench.ring_backend import RING
from tests.support.native import LINKS, SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = HERE.parent
LIBRARY = ROOT / "lib" / "ring"
LIBRARIES = ("-Wl,--no-as-needed", *LINKS)
"""What the engine uses; named before the sources that do."""
GROUP = "Hand-off `ring`, beside unix sockets"
COUNT, ROUNDS, SHORT_ROUNDS = 20_000, 11, 5
CONNS = 1000
RESIDENT = ("RssShmem", "RssAnon")


@functools.cache
def ring_program(name: str, *sources: Path) -> Path:
    """Compile bench/host/NAME.c with the library, and what else it needs."""
    out = Path(_scratch().name) / name
    native = ROOT / "vhost_user" / "native"
    flags = ("-pthread", f"-I{LIBRARY}", f"-I{native}", *LIBRARIES)
    own = {HERE / "host" / f"{name}.c", LIBRARY / "fastpath_ring.c"}
    _compile(*sorted(own.union(sources)), out=out, flags=flags)
    return out


def bench_ring_hop(bench):
    """A round trip of 64 bytes to the process, and the way there."""
    command = [str(ring_program("ringhop", *SOURCES)), "0", "1", str(COUNT)]

    def run() -> dict[str, float]:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    runs = bench.each(run, rounds=SHORT_ROUNDS if bench.short else ROUNDS)
    for key, title, target in (
        ("rtt", "round trip engine - process, 64 B, two cores that poll", Target(0.5)),
        ("one_way", "engine to process, 64 B, two cores that poll", Target(2, "ours")),
    ):
        bench.note(
            key=f"ring-{key}",
            group=GROUP,
            title=f"{title}, p50",
            unit="us",
            less=True,
            ours=tuple(each[f"ring_{key}_ns"] / 1e3 for each in runs),
            other=tuple(each[f"unix_{key}_ns"] / 1e3 for each in runs),
            against="unix socket",
            target=target,
            recorded=True,
        )


@contextmanager
def one_guest() -> Iterator[tuple[Guest, int]]:
    """Run both servers, a back-end and a guest; yield the guest and its pid."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake())
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-bench-"))
        folder = Path(name)
        stack.enter_context(pinned(TWO_CORES.driver))
        host = stack.enter_context(server(folder, TWO_CORES.server))
        argv = [str(ring_program("ringserver")), f"{folder}/ring"]
        rings = process(argv, TWO_CORES.server, stdout=subprocess.PIPE)
        ring_server = stack.enter_context(rings)
        assert ring_server.stdout is not None
        if ring_server.stdout.readline() != b"ready\n":
            raise MeasureError("the server did not start")
        argv = [sys.executable, "-m", "bench.ring_backend", f"{folder}/s", str(host)]
        own = process([*argv, f"{folder}/ring"], TWO_CORES.backend)
        backend = stack.enter_context(own)
        guest = Guest(folder / "s")
        stack.callback(guest.close)
        yield guest, backend.pid


@pytest.mark.parametrize("in_flight", [1, 8])
def bench_ring_connections(bench, in_flight: int):
    """Connections a second, made and closed."""
    with one_guest() as (guest, _pid):
        rounds = bench.turns(
            [ECHO, RING],
            lambda port: connections_a_second(guest, port, CONNS, in_flight),
            rounds=ROUNDS,
            short=SHORT_ROUNDS,
        )
    bench.note(
        key=f"ring-churn-{in_flight}",
        group=GROUP,
        title=f"connections made and closed, {in_flight} in flight",
        unit="1/s",
        less=False,
        ours=tuple(each[RING] for each in rounds),
        other=tuple(each[ECHO] for each in rounds),
        against="unix socket",
    )


def bench_ring_idle_connections(bench):
    """What 1,000 that have carried one round trip each take."""
    kib, fds = [], []
    with one_guest() as (guest, pid):

        def run() -> None:
            guest.close_conn(guest.connect(RING))
            before = procfs.kib(pid, *RESIDENT)
            open_before = procfs.descriptors(pid)
            first = guest.connect(RING, CONNS)
            guest.rtt_ns(first, 64, CONNS, CONNS)
            kib.append((procfs.kib(pid, *RESIDENT) - before) / CONNS)
            fds.append((procfs.descriptors(pid) - open_before) / CONNS)
            guest.close_conn(first, CONNS)

        bench.each(run, rounds=1)
    for key, title, unit, values in (
        ("memory", "memory of one of 1,000 connections after a round trip", "KiB", kib),
        ("fds", "descriptors of a connection", "", fds),
    ):
        bench.note(
            key=f"ring-{key}",
            group=GROUP,
            title=title,
            unit=unit,
            less=True,
            ours=tuple(values),
            timed=False,
            recorded=True,
        )
