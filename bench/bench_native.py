"""The back-end without a VM: a driver in user space plays the guest.

Round trips, streams and connection rates through a hybrid unix socket to a server in
another process, everything on one CPU, blocking; and the echo inside the engine with
both sides spinning on two CPUs. `extra_info` says what one figure contains.
"""

from __future__ import annotations

import os
import statistics

import pytest

from bench.harness import (
    ECHO,
    ENGINE_ECHO,
    ONE_CORE,
    SINK,
    SOURCE,
    TWO_CORES,
    Guest,
    backend,
    ours,
    server,
)

ROUNDS = 5
MIB = 1 << 20


def _pinned_guest(folder, pins, *, poll_us, spin=False):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {pins.driver})
    try:
        with (
            server(folder, pins.server) as uds,
            backend(ours(poll_us), folder, uds, pins.backend) as socket,
        ):
            guest = Guest(socket, spin=spin)
            yield guest
            guest.close()
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    yield from _pinned_guest(tmp_path_factory.mktemp("b"), ONE_CORE, poll_us=0)


@pytest.mark.parametrize("size", [64, 4096])
def bench_round_trip_unix(benchmark, guest, size):
    conn = guest.connect(ECHO)
    benchmark.extra_info.update(size=size, round_trips=1000, cores=1)
    times = benchmark.pedantic(
        guest.rtt_ns, (conn, size, 1000), rounds=ROUNDS, warmup_rounds=1
    )
    benchmark.extra_info["p50_us"] = statistics.median(times) / 1000
    guest.close_conn(conn)


def bench_round_trip_engine_spinning(benchmark, tmp_path):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two CPUs")
    for guest in _pinned_guest(tmp_path, TWO_CORES, poll_us=50, spin=True):
        conn = guest.connect(ENGINE_ECHO)
        times = benchmark.pedantic(
            guest.rtt_ns, (conn, 64, 10_000), rounds=ROUNDS, warmup_rounds=1
        )
        benchmark.extra_info.update(size=64, round_trips=10_000, cores=2)
        benchmark.extra_info["p50_us"] = statistics.median(times) / 1000


@pytest.mark.parametrize("size", [64, 4096, 65536])
def bench_guest_to_host(benchmark, guest, size):
    conn = guest.connect(SINK)
    total = {64: MIB, 4096: 64 * MIB, 65536: 128 * MIB}[size]
    benchmark.extra_info.update(size=size, bytes=total, cores=1)
    ns = benchmark.pedantic(
        guest.send_ns, (conn, size, total), rounds=ROUNDS, warmup_rounds=1
    )
    benchmark.extra_info["gbit_per_s"] = total * 8 / ns
    guest.close_conn(conn)


def bench_host_to_guest(benchmark, guest):
    conn = guest.connect(SOURCE)
    total = 128 * MIB
    benchmark.extra_info.update(bytes=total, cores=1)
    ns = benchmark.pedantic(
        guest.receive_ns, (conn, total), rounds=ROUNDS, warmup_rounds=1
    )
    benchmark.extra_info["gbit_per_s"] = total * 8 / ns
    guest.close_conn(conn)


@pytest.mark.parametrize("in_flight", [1, 64])
def bench_connect_and_close(benchmark, guest, in_flight):
    count = 2000
    benchmark.extra_info.update(in_flight=in_flight, connections=count, cores=1)
    ns = benchmark.pedantic(
        guest.churn_ns, (ECHO, in_flight, count), rounds=ROUNDS, warmup_rounds=1
    )
    benchmark.extra_info["per_second"] = count * 1e9 / ns
