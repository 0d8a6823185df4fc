"""What HBONE costs beside plain TCP, between two engines, for a guest in user space.

The two ways take turns, in turned order. Both end in what the second engine does by
itself, so what differs is TLS and HTTP/2 on both nodes; all of it shares one core.
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

from bench.harness import ONE_CORE, Guest, awake, pinned, process
from bench.hbone_backend import CHARGEN, DISCARD, ECHO, HBONE, TCP
from bench.report import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS, SHORT_ROUNDS = 15, 5
TRIPS, CONNECTS, BULK = 2000, 480, 64 << 20


def round_trip(guest: Guest, way: int) -> float:
    """Return a round trip of 64 bytes in us, p50."""
    conn = guest.connect(way + ECHO)
    taken = guest.rtt_ns(conn, 64, TRIPS)
    guest.close_conn(conn)
    return statistics.median(taken) / 1e3


def set_up(guest: Guest, way: int) -> float:
    """Return what connect() takes in us, p50, on a tunnel that is there."""
    taken = []
    for _ in range(CONNECTS):
        begin = time.perf_counter_ns()
        conn = guest.connect(way + ECHO)
        taken.append(time.perf_counter_ns() - begin)
        guest.close_conn(conn)
    return statistics.median(taken) / 1e3


def churn(guest: Guest, way: int) -> float:
    """Return connections a second, made and closed, 32 at a time."""
    return CONNECTS * 1e9 / guest.churn_ns(way + ECHO, 32, CONNECTS)


def up(guest: Guest, way: int) -> float:
    """Return MB/s of one stream up."""
    conn = guest.connect(way + DISCARD)
    taken = guest.send_ns(conn, 65536, BULK)
    guest.close_conn(conn)
    return BULK * 1e3 / taken


def down(guest: Guest, way: int) -> float:
    """Return MB/s of one stream down."""
    conn = guest.connect(way + CHARGEN)
    taken = guest.receive_ns(conn, BULK)
    guest.close_conn(conn)
    return BULK * 1e3 / taken


@contextmanager
def one_guest() -> Iterator[Guest]:
    """Run both engines, and a guest on the first."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-bench-"))
        stack.enter_context(pinned(ONE_CORE.driver))
        socket = Path(folder) / "s"
        argv = [sys.executable, "-m", "bench.hbone_backend", str(socket)]
        stack.enter_context(process(argv, ONE_CORE.backend))
        guest = Guest(socket)
        stack.callback(guest.close)
        yield guest


@pytest.mark.parametrize(
    ("what", "measure", "title", "unit", "target"),
    [
        pytest.param("rtt", round_trip, "round trip, 64 B", "us", 2.0, id="rtt"),
        pytest.param("connect", set_up, "connect(), pooled", "us", 2.0, id="connect"),
        pytest.param("churn", churn, "connections, 32 at once", "1/s", 0.5, id="churn"),
        pytest.param("up", up, "bulk up, one stream", "MB/s", None, id="up"),
        pytest.param("down", down, "bulk down, one stream", "MB/s", None, id="down"),
    ],
)
def bench_hbone(
    bench,
    what: str,
    measure: Callable[[Guest, int], float],
    title: str,
    unit: str,
    target: float | None,
):
    with one_guest() as guest:

        def round_of(order: list[int] = [TCP, HBONE]) -> dict[int, float]:  # noqa: B006
            order.reverse()
            return {way: measure(guest, way) for way in order}

        round_of()
        count = SHORT_ROUNDS if bench.short else ROUNDS
        rounds = bench.each(round_of, rounds=count)
    bench.note(
        key=f"hbone-{what}",
        group="HBONE beside plain TCP, both nodes on one core",
        title=title,
        unit=unit,
        less=unit == "us",
        ours=tuple(each[HBONE] for each in rounds),
        other=tuple(each[TCP] for each in rounds),
        against="plain TCP",
        target=None if target is None else Target(target),
    )
