"""What each hand-off costs, beside a connection that is handed to nobody.

One guest in user space, one engine, one run: the ways take turns, in turned order. At
the end of each is the same server, on the engine's CPU; what it does in place of a
proxy is nothing (bench/host/proxy.c). So what differs is the way to it, and what has to
be said first. `pod` is behind a loopback interface, as Istio's ztunnel is in its pod.

With `--ztunnel BIN` there are two ways more, through Istio's ztunnel to a server: what
that proxy does is in their figures.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.handoff_backend import ISTIOS, OURS, Deed, Way, port
from bench.harness import TWO_CORES, Guest, awake, pinned, process, program
from fastpath.datapath import netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.harness import Pins

CONNECTS, BATCH = 480, 48
TRIPS = 2000
BULK = 64 << 20
ROUNDS, SHORT_ROUNDS = 15, 5


def connect(guest: Guest, way: Way) -> float:
    """How long one takes to connect in us, the median of batches; no ends count."""
    taken = []
    for _ in range(CONNECTS // BATCH):
        begin = time.perf_counter_ns()
        first = guest.connect(port(way, Deed.ECHO), BATCH)
        taken.append(time.perf_counter_ns() - begin)
        for conn in range(first, first + BATCH):
            guest.close_conn(conn)
    return statistics.median(taken) / BATCH / 1e3


def trip(guest: Guest, way: Way) -> float:
    """A round trip of 64 bytes in us, p50."""
    conn = guest.connect(port(way, Deed.ECHO))
    times = guest.rtt_ns(conn, 64, TRIPS)
    guest.close_conn(conn)
    return statistics.median(times) / 1e3


def up(guest: Guest, way: Way) -> float:
    """MB/s from the guest, in writes of 64 KiB."""
    conn = guest.connect(port(way, Deed.SINK))
    taken = guest.send_ns(conn, 65536, BULK)
    guest.close_conn(conn)
    return BULK * 1e3 / taken


def down(guest: Guest, way: Way) -> float:
    """MB/s to the guest."""
    conn = guest.connect(port(way, Deed.SOURCE))
    taken = guest.receive_ns(conn, BULK)
    guest.close_conn(conn)
    return BULK * 1e3 / taken


MEASURES: dict[str, tuple[Callable[[Guest, Way], float], str]] = {
    "connect(), p50 of batches": (connect, "us"),
    "64 B round trip, p50": (trip, "us"),
    "bulk up": (up, "MB/s"),
    "bulk down": (down, "MB/s"),
}


@contextmanager
def one_guest(pins: Pins, ztunnel: Path | None) -> Iterator[Guest]:
    """Run the back-end in a network namespace of its own, and a guest on it."""
    own = ("unshare", "--net") if netns.may_configure() else netns.UNSHARE
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-bench-"))
        stack.enter_context(pinned(pins.driver))
        socket = Path(folder) / "s"
        argv = [*own, "--", sys.executable, "-m", "bench.handoff_backend"]
        argv += [str(socket), str(program("proxy"))]
        argv += [str(ztunnel.resolve())] if ztunnel else []
        stack.enter_context(process(argv, pins.backend))
        guest = Guest(socket)
        stack.callback(guest.close)
        yield guest


def bench_handoff(bench, pytestconfig):
    ztunnel = pytestconfig.getoption("--ztunnel")
    ways = [*OURS, *(ISTIOS if ztunnel else ())]
    with one_guest(TWO_CORES, ztunnel) as guest:

        def round_of(order: list[Way] = ways[:]) -> dict[tuple[str, Way], float]:
            order.reverse()
            return {
                (what, way): measure(guest, way)
                for what, (measure, _) in MEASURES.items()
                for way in order
            }

        round_of()
        rounds = bench.each(round_of, rounds=SHORT_ROUNDS if bench.short else ROUNDS)
    for what, (_, unit) in MEASURES.items():
        for way in ways[1:]:
            bench.note(
                key=f"handoff-{way.name.lower()}-{what}",
                group="Hand-offs beside passthrough, two cores",
                title=f"{what}: {way.name.lower()}",
                unit=unit,
                less=unit == "us",
                ours=tuple(each[what, way] for each in rounds),
                other=tuple(each[what, Way.PASSTHROUGH] for each in rounds),
                against="passthrough",
            )
