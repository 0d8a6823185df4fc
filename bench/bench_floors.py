"""What this machine costs without any back-end: the floors under the figures."""

from __future__ import annotations

import json
import statistics
import subprocess
from contextlib import contextmanager, nullcontext

import pytest

from bench.harness import ECHO, ONE_CORE, awake, guest_on, ours, program
from bench.report import Target

TITLES = {
    "eventfd_us": ("eventfd ping-pong", "us"),
    "unix_us": ("unix socket ping-pong, 64 B", "us"),
    "relay_us": ("relay eventfd - unix socket - eventfd", "us"),
    "unix_gbits": ("unix socket, 64 KiB writes", "Gbit/s"),
    "spin_us": ("shared-memory spin ping-pong", "us"),
    "memcpy_cold": ("memcpy, 256 MiB", "GB/s"),
    "memcpy_hot": ("memcpy, 64 KiB", "GB/s"),
    "syscall_ns": ("system call", "ns"),
}
OF_THE_MACHINE = {"memcpy_cold", "memcpy_hot", "syscall_ns"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "cpus", "wakeful"),
    [
        pytest.param("one core", (0, 0), False, id="one"),
        pytest.param("two cores that sleep", (0, 1), False, id="asleep"),
        pytest.param("two cores", (0, 1), True, id="two"),
    ],
)
def bench_floors(bench, name, cpus, wakeful):
    command = [str(program("floors")), *map(str, cpus)]

    def run():
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    with awake() if wakeful else nullcontext():
        runs = bench.each(run, rounds=3)
    for key, (title, unit) in TITLES.items():
        if key in runs[0] and (cpus[0] != cpus[1] or key not in OF_THE_MACHINE):
            bench.note(
                ours=tuple(figures[key] for figures in runs),
                key=f"floor-{name}-{key}",
                group="Floors: no back-end at all",
                title=title if key in OF_THE_MACHINE else f"{title}, {name}",
                unit=unit,
                less="/s" not in unit,
            )


@contextmanager
def _round_trip():
    """Give the round trip of 64 bytes through our back-end, p50, us."""
    with guest_on(ours(0), ONE_CORE) as (guest, _pid):
        conn = guest.connect(ECHO)
        yield lambda: statistics.median(guest.rtt_ns(conn, 64, 2000)) / 1e3


@contextmanager
def _relay():
    """Give that of a relay that does nothing else, us."""
    command = [str(program("floors")), "0", "0"]

    def run():
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)["relay_us"]

    yield run


@pytest.mark.long
def bench_round_trip_beside_its_floor(bench):
    bench.pair(
        _round_trip,
        _relay,
        key="one-rtt-64-floor",
        group="one core, blocking",
        title="round trip 64 B beside a relay that does nothing, p50",
        unit="us",
        less=True,
        target=Target(1.5),
        against="relay",
    )
