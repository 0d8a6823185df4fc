"""What each hand-off costs, beside a connection that is handed to nobody.

One guest in user space, one engine, one run: the ways take turns, in turned order. At
the end of each is the same server, on the engine's CPU; what it does in place of a
proxy is nothing (bench/host/proxy.c). So what differs is the way to it, and what has to
be said first. `pod` is behind a loopback interface, as Istio's ztunnel is in its pod.

With `--ztunnel BIN` there are two ways more, through Istio's ztunnel to a server: what
that proxy does is in their figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.handoff_backend import ISTIOS, OURS, Deed, Way, port
from bench.harness import TWO_CORES, program
from bench.measures import (
    POLL_US,
    connect_us,
    down_mb_per_s,
    guest_of,
    round_trip_us,
    up_mb_per_s,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.harness import Guest

CONNECTS, BATCH = 480, 48
ROUNDS, SHORT_ROUNDS = 15, 5


def connect(guest: Guest, port: int) -> float:
    """Return what one takes, as some in a row do."""
    return connect_us(guest, port, CONNECTS, BATCH)


MEASURES: dict[str, tuple[Callable[[Guest, int], float], Deed, str]] = {
    "connect(), p50 of batches": (connect, Deed.ECHO, "us"),
    "64 B round trip, p50": (round_trip_us, Deed.ECHO, "us"),
    "bulk up": (up_mb_per_s, Deed.SINK, "MB/s"),
    "bulk down": (down_mb_per_s, Deed.SOURCE, "MB/s"),
}


RECORDED = ("64 B round trip, p50",)
"""What differs little between runs."""


def bench_handoff(bench, pytestconfig):
    ztunnel = pytestconfig.getoption("--ztunnel")
    ways = [*OURS, *(ISTIOS if ztunnel else ())]
    args = [
        POLL_US,
        str(program("proxy")),
        *([str(ztunnel.resolve())] if ztunnel else []),
    ]
    backend = guest_of("handoff_backend", TWO_CORES, *args, own_netns=True)
    with backend as (guest, _pid):

        def of(way: Way) -> dict[str, float]:
            return {
                what: measure(guest, port(way, deed))
                for what, (measure, deed, _) in MEASURES.items()
            }

        rounds = bench.turns(ways, of, rounds=ROUNDS, short=SHORT_ROUNDS)
    for what, (_, _, unit) in MEASURES.items():
        for way in ways[1:]:
            bench.note(
                key=f"handoff-{way.name.lower()}-{what}",
                group="Hand-offs beside passthrough, two cores",
                title=f"{what}: {way.name.lower()}",
                unit=unit,
                less=unit == "us",
                ours=tuple(each[way][what] for each in rounds),
                other=tuple(each[Way.PASSTHROUGH][what] for each in rounds),
                against="passthrough",
                recorded=what in RECORDED,
            )
