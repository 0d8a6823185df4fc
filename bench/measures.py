"""What the benches of far sides measure of a guest in user space, each by a vsock port.

They run against a back-end of their own, a program of this folder that listens for the
guest at the socket that it is told.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.harness import Guest, awake, pinned, process
from fastpath.datapath import netns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.harness import Pins

TRIPS: Final = 2000
BULK: Final = 64 << 20
WRITE: Final = 65536
REST_S: Final = 0.02
"""After a batch of connections has ended here, for who served them, on the same CPU."""
POLL_US: Final = "200"
"""How long engines poll, as they do by default."""


@contextmanager
def guest_of(
    module: str, pins: Pins, *args: str, own_netns: bool = False
) -> Iterator[tuple[Guest, int]]:
    """Run a back-end; yield a guest on it, and the back-end's pid.

    Args:
        module: the program, of this folder; its first argument is the socket's path.
        pins: CPUs of the guest and the back-end.
        args: its other arguments.
        own_netns: it runs in a network namespace of its own.
    """
    own: Sequence[str] = ()
    if own_netns:
        own = ("unshare", "--net") if netns.may_configure() else netns.UNSHARE
        own = (*own, "--")
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-bench-"))
        stack.enter_context(pinned(pins.driver))
        socket = Path(folder) / "s"
        argv = [*own, sys.executable, "-m", f"bench.{module}", str(socket), *args]
        child = stack.enter_context(process(argv, pins.backend))
        guest = Guest(socket)
        stack.callback(guest.close)
        yield guest, child.pid


def round_trip_us(guest: Guest, port: int) -> float:
    """Return a round trip of 64 bytes, p50."""
    conn = guest.connect(port)
    taken = guest.rtt_ns(conn, 64, TRIPS)
    guest.close_conn(conn)
    return statistics.median(taken) / 1e3


def connect_us(guest: Guest, port: int, count: int, batch: int) -> float:
    """Return what a connect() takes, the median of batches; no ends count."""
    taken = []
    for _ in range(count // batch):
        begin = time.perf_counter_ns()
        first = guest.connect(port, batch)
        taken.append(time.perf_counter_ns() - begin)
        guest.close_conn(first, batch)
        if batch > 1:
            time.sleep(REST_S)
    return statistics.median(taken) / batch / 1e3


def connections_a_second(guest: Guest, port: int, count: int, in_flight: int) -> float:
    """Return how many are made and closed."""
    return count * 1e9 / guest.churn_ns(port, in_flight, count)


def up_mb_per_s(guest: Guest, port: int) -> float:
    """Return what one stream has to a sink."""
    conn = guest.connect(port)
    taken = guest.send_ns(conn, WRITE, BULK)
    guest.close_conn(conn)
    return BULK * 1e3 / taken


def down_mb_per_s(guest: Guest, port: int) -> float:
    """Return what one stream has from a source."""
    conn = guest.connect(port)
    taken = guest.receive_ns(conn, BULK)
    guest.close_conn(conn)
    return BULK * 1e3 / taken
