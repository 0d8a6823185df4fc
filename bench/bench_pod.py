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

import statistics
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from bench.harness import ONE_CORE, TWO_CORES
from bench.measures import connect_us, connections_a_second, guest_of
from bench.pod_backend import OWN, PEERS, POD, WAYS
from bench.report import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bench.harness import Guest, Pins

CONNECTS, BATCH, ROUNDS, SHORT_ROUNDS, SHORT_HOP_ROUNDS = 960, 48, 25, 11, 6
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
    """Return what a connect() takes in us; no ends count."""
    return connect_us(guest, port, CONNECTS, BATCH)


def churn(guest: Guest, port: int) -> float:
    """Return connections a second, made and closed, eight at a time."""
    return connections_a_second(guest, port, CONNECTS, in_flight=8)


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


def one_guest(pins: Pins) -> AbstractContextManager[tuple[Guest, int]]:
    """Run the back-end in a network namespace of its own, and a guest on it."""
    return guest_of("pod_backend", pins, own_netns=True)


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
    with one_guest(pins) as (guest, _pid):
        rounds = bench.turns(
            [OWN, POD],
            lambda port: measure(guest, port),
            rounds=ROUNDS,
            short=SHORT_ROUNDS,
        )
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
        recorded=what == "connect" and key == "one",
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
    with one_guest(pins) as (guest, _pid):
        rounds = bench.turns(
            list(WAYS),
            lambda way: measure(guest, way, bulk_s),
            rounds=ROUNDS,
            short=SHORT_HOP_ROUNDS,
        )
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
            recorded=what == "rtt" and way == "pod",
        )
