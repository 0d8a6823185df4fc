"""What a pod's network namespace costs, beside our own: dials, round trips, bulk.

One guest in user space, one engine; the two sides take turns, in turned order. Both
servers are behind a loopback interface, so what differs is who made the socket: the
engine, or the process in the namespace, which passed it before. That process shares the
engine's CPU, so what it does is in the figures, too; on one core all of it.

What a mesh adds is a hop: REDIRECT leads the connection to a proxy in the namespace,
over loopback, and the proxy makes another one. `hop` measures that with the least that
a proxy can be (host/hop.c), so it is what no proxy, however fast, can take away.
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

import pytest

from bench.harness import ONE_CORE, TWO_CORES, Guest, awake, pinned, process
from bench.pod_backend import OWN, PEERS, POD, WAYS
from bench.report import Target
from fastpath.datapath import netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.harness import Pins

CONNECTS, BATCH, ROUNDS, SHORT_ROUNDS = 960, 48, 25, 11
"""A batch has as many dials as fill up the stock three times."""
CORES = pytest.mark.parametrize(
    ("key", "pins"),
    [
        pytest.param("one", ONE_CORE, id="one"),
        pytest.param("two", TWO_CORES, id="two"),
    ],
)
TRIPS, WARM_UP, BULK_S, SHORT_BULK_S = 2000, 200, 1.0, 0.3


def connects(guest: Guest, port: int) -> float:
    """Return what a connect() takes in us, the median of batches; no ends count."""
    taken = []
    for _ in range(CONNECTS // BATCH):
        begin = time.perf_counter_ns()
        first = guest.connect(port, BATCH)
        taken.append(time.perf_counter_ns() - begin)
        for conn in range(first, first + BATCH):
            guest.close_conn(conn)
    return statistics.median(taken) / BATCH / 1e3


def churn(guest: Guest, port: int) -> float:
    """Return connections a second, made and closed, eight at a time."""
    return CONNECTS * 1e9 / guest.churn_ns(port, 8, CONNECTS)


def trips(guest: Guest, way: str, bulk_s: float) -> float:
    """Return a round trip of 64 B in us, the median."""
    del bulk_s
    with connected(guest, way, "echo") as conn:
        guest.rtt_ns(conn, 64, WARM_UP)
        return statistics.median(guest.rtt_ns(conn, 64, TRIPS)) / 1e3


def up(guest: Guest, way: str, bulk_s: float) -> float:
    """Return MB/s from the guest, by writes of 64 KiB."""
    with connected(guest, way, "sink") as conn:
        return guest.send_for(conn, 65536, bulk_s) / bulk_s / 1e6


def down(guest: Guest, way: str, bulk_s: float) -> float:
    """Return MB/s to the guest."""
    with connected(guest, way, "source") as conn:
        return guest.receive_for(conn, bulk_s) / bulk_s / 1e6


@contextmanager
def connected(guest: Guest, way: str, peer: str) -> Iterator[int]:
    """Connect for the block."""
    conn = guest.connect(WAYS[way] + PEERS[peer])
    yield conn
    guest.close_conn(conn)


@contextmanager
def one_guest(pins: Pins) -> Iterator[Guest]:
    """Run the back-end in a network namespace of its own, and a guest on it."""
    own = ("unshare", "--net") if netns.may_configure() else netns.UNSHARE
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-bench-"))
        stack.enter_context(pinned(pins.driver))
        socket = Path(folder) / "s"
        argv = [*own, "--", sys.executable, "-m", "bench.pod_backend", str(socket)]
        stack.enter_context(process(argv, pins.backend))
        guest = Guest(socket)
        stack.callback(guest.close)
        yield guest


@CORES
@pytest.mark.parametrize(
    ("what", "measure", "title", "unit"),
    [
        pytest.param(
            "connect", connects, "connect(), p50 of batches", "us", id="connect"
        ),
        pytest.param("churn", churn, "connections, 8 in flight", "1/s", id="churn"),
    ],
)
def bench_pod(
    bench,
    key: str,
    pins: Pins,
    what: str,
    measure: Callable[[Guest, int], float],
    title: str,
    unit: str,
):
    with one_guest(pins) as guest:

        def round_of(order: list[int] = [OWN, POD]) -> dict[int, float]:  # noqa: B006
            order.reverse()
            return {port: measure(guest, port) for port in order}

        round_of()
        count = SHORT_ROUNDS if bench.short else ROUNDS
        rounds = bench.each(round_of, rounds=count)
    cores = "one core" if key == "one" else "two cores"
    bench.note(
        key=f"pod-{what}-{key}",
        group="A dial in a pod's namespace beside one in our own",
        title=f"{title}, {cores}",
        unit=unit,
        less=unit == "us",
        ours=tuple(each[POD] for each in rounds),
        other=tuple(each[OWN] for each in rounds),
        against="own namespace",
        target=Target(1.05 if unit == "us" else 0.95),
    )


@CORES
@pytest.mark.parametrize(
    ("what", "measure", "title", "unit"),
    [
        pytest.param("rtt", trips, "64 B round trip, p50", "us", id="rtt"),
        pytest.param("up", up, "guest to host", "MB/s", id="up"),
        pytest.param("down", down, "host to guest", "MB/s", id="down"),
    ],
)
def bench_pod_hop(
    bench,
    key: str,
    pins: Pins,
    what: str,
    measure: Callable[[Guest, str, float], float],
    title: str,
    unit: str,
):
    bulk_s = SHORT_BULK_S if bench.short else BULK_S
    with one_guest(pins) as guest:

        def round_of(order: list[str] = list(WAYS)) -> dict[str, float]:  # noqa: B006
            order.append(order.pop(0))
            return {way: measure(guest, way, bulk_s) for way in order}

        round_of()
        count = SHORT_ROUNDS if bench.short else ROUNDS
        rounds = bench.each(round_of, rounds=count)
    cores = "one core" if key == "one" else "two cores"
    for way, other, against in (
        ("pod", "own", "own namespace"),
        ("hop", "pod", "without proxy"),
    ):
        where = "pod's" if way == "pod" else "pod's, by REDIRECT and a proxy"
        bench.note(
            key=f"pod-{what}-{way}-{key}",
            group="A server in a pod's namespace, and the hop that a mesh adds",
            title=f"{title}, {where}, {cores}",
            unit=unit,
            less=unit == "us",
            ours=tuple(each[way] for each in rounds),
            other=tuple(each[other] for each in rounds),
            against=against,
        )
