"""Our back-end beside vhost-device-vsock, without a VM, in one run.

`python bench/native.py [--peer BINARY] [--rounds N] [--two-cores]`: each round runs
every measure on each back-end in turn; the table has the medians and the ratio of
paired rounds. The peer's binary is in Debian sid's package vhost-device-vsock, which
runs on Debian 12 (apt-get download, dpkg -x). Stops by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.harness import (
    ECHO,
    ENGINE_ECHO,
    ONE_CORE,
    SINK,
    SOURCE,
    TWO_CORES,
    Backend,
    Guest,
    Pins,
    backend,
    ours,
    peer,
    server,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def _rtt(port: int, size: int) -> Callable[[Guest], float]:
    def measure(guest: Guest) -> float:
        conn = guest.connect(port)
        guest.rtt_ns(conn, size, 200)
        return statistics.median(guest.rtt_ns(conn, size, 3000)) / 1000

    return measure


def _send(size: int, total: int) -> Callable[[Guest], float]:
    def measure(guest: Guest) -> float:
        return total * 8 / guest.send_ns(guest.connect(SINK), size, total)

    return measure


def _receive(guest: Guest) -> float:
    conn = guest.connect(SOURCE)
    rate = 256 * MIB * 8 / guest.receive_ns(conn, 256 * MIB)
    guest.close_conn(conn)
    return rate


def _churn(in_flight: int) -> Callable[[Guest], float]:
    def measure(guest: Guest) -> float:
        return 3000 * 1e6 / guest.churn_ns(ECHO, in_flight, 3000)

    return measure


MEASURES: dict[str, Callable[[Guest], float]] = {
    "round trip 64 B, us": _rtt(ECHO, 64),
    "round trip 4 KiB, us": _rtt(ECHO, 4096),
    "guest to host 64 B, Gbit/s": _send(64, MIB),
    "guest to host 4 KiB, Gbit/s": _send(4096, 64 * MIB),
    "guest to host 64 KiB, Gbit/s": _send(65536, 256 * MIB),
    "host to guest, Gbit/s": _receive,
    "connect + close, 1 in flight, k/s": _churn(1),
    "connect + close, 64 in flight, k/s": _churn(64),
}
"""Each on a fresh guest: what one leaves behind is not the next one's."""


def one(kind: Backend, pins: Pins, measure: Callable[[Guest], float]) -> float:
    """Start a back-end and measure it once."""
    with (
        tempfile.TemporaryDirectory(prefix="vsock-bench-") as name,
        server(Path(name), pins.server) as uds,
        backend(kind, Path(name), uds, pins.backend) as socket,
    ):
        guest = Guest(socket)
        try:
            return measure(guest)
        finally:
            guest.close()


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, help="vhost-device-vsock's binary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--poll-us", type=int, default=0)
    parser.add_argument("--two-cores", action="store_true")
    options = parser.parse_args()
    pins = TWO_CORES if options.two_cores else ONE_CORE
    os.sched_setaffinity(0, {pins.driver})
    kinds = [ours(options.poll_us), *([peer(options.peer)] if options.peer else [])]
    table = Table("measure", *(kind.name for kind in kinds), "ratio")
    for name, measure in MEASURES.items():
        rounds = [[one(k, pins, measure) for k in kinds] for _ in range(options.rounds)]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        ratio = statistics.median(row[0] / row[-1] for row in rounds)
        cells = [f"{value:.2f}" for value in medians]
        table.add_row(name, *cells, f"{ratio:.2f}x" if options.peer else "")
    if options.poll_us == 0 and not options.two_cores:
        echo = one(kinds[0], pins, _rtt(ENGINE_ECHO, 64))
        table.add_row("round trip 64 B in the engine, us", f"{echo:.2f}")
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
