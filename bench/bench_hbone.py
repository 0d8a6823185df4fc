"""What HBONE costs beside plain TCP, between two engines, for a guest in user space.

The two ways take turns, in turned order. Both end in what the second engine does by
itself, so what differs is TLS and HTTP/2 on both nodes; all of it shares one core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.harness import ONE_CORE
from bench.hbone_backend import CHARGEN, DISCARD, ECHO, HBONE, TCP
from bench.measures import (
    POLL_US,
    connect_us,
    connections_a_second,
    down_mb_per_s,
    guest_of,
    round_trip_us,
    up_mb_per_s,
)
from bench.report import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.harness import Guest

ROUNDS, SHORT_ROUNDS = 15, 5
CONNECTS = 240


def set_up(guest: Guest, port: int) -> float:
    """Return what connect() takes in us, p50, on a tunnel that is there."""
    return connect_us(guest, port, CONNECTS, batch=1)


def churn(guest: Guest, port: int) -> float:
    """Return connections a second, made and closed, 32 at a time."""
    return connections_a_second(guest, port, CONNECTS, in_flight=32)


@pytest.mark.parametrize(
    ("what", "does", "measure", "title", "unit", "target"),
    [
        ("rtt", ECHO, round_trip_us, "round trip, 64 B", "us", 2.0),
        ("connect", ECHO, set_up, "connect(), pooled", "us", 2.0),
        ("churn", ECHO, churn, "connections, 32 at once", "1/s", 0.5),
        ("up", DISCARD, up_mb_per_s, "bulk up, one stream", "MB/s", None),
        ("down", CHARGEN, down_mb_per_s, "bulk down, one stream", "MB/s", None),
    ],
    ids=["rtt", "connect", "churn", "up", "down"],
)
def bench_hbone(
    bench,
    what: str,
    does: int,
    measure: Callable[[Guest, int], float],
    title: str,
    unit: str,
    target: float | None,
):
    with guest_of("hbone_backend", ONE_CORE, POLL_US) as (guest, _pid):
        rounds = bench.turns(
            [TCP, HBONE],
            lambda way: measure(guest, way + does),
            rounds=ROUNDS,
            short=SHORT_ROUNDS,
        )
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
        recorded=target is not None,
    )
