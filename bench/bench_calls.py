"""System calls of a round trip of 64 bytes: counts, so they hold on any machine.

Engines that do not poll, so that each message finds them asleep, under strace(1). One
guest in user space. What stands behind `TCP` and `HBONE` is an engine, too, in the same
process: both nodes' calls are counted there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from bench import hbone_backend
from bench.handoff_backend import OURS, Deed, port
from bench.harness import TWO_CORES, program
from bench.measures import guest_of
from fastpath.commands.compare import calls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.harness import Guest

GROUP: Final = "System calls of a round trip, engines that don't poll"
TRIPS: Final = 200
ASLEEP: Final = "0"


def counted(pid: int, work: Callable[[], object]) -> dict[str, int]:
    """Return the calls that a process makes meanwhile, by name."""

    async def traced() -> list[str]:
        async with calls.tracing(pid, TWO_CORES.backend) as said:
            work()
        return said

    try:
        return calls.parse("".join(asyncio.run(traced())))
    except calls.NotCountedError as error:
        pytest.skip(f"system calls can't be counted here: {error}")


def of_a_round_trip(guest: Guest, pid: int, vsock_port: int) -> Mapping[str, float]:
    """Return how many of each the back-end makes."""
    conn = guest.connect(vsock_port)
    few, many = (
        counted(pid, lambda trips=trips: guest.rtt_ns(conn, 64, trips))  # type: ignore[misc]
        for trips in (1, TRIPS + 1)
    )
    guest.close_conn(conn)
    return calls.less(many, few, TRIPS)


def note(bench, key: str, title: str, found: Mapping[str, float]) -> None:
    """Take one way's into the report."""
    bench.note(
        key=f"calls-{key}",
        group=GROUP,
        title=f"{title}: {', '.join(found)}",
        unit="",
        less=True,
        ours=(sum(found.values()),),
        timed=False,
        recorded=True,
    )


@pytest.fixture
def handoffs():
    args = ("handoff_backend", TWO_CORES, ASLEEP, str(program("proxy")))
    with guest_of(*args, own_netns=True) as found:
        yield found


@pytest.fixture
def nodes():
    with guest_of("hbone_backend", TWO_CORES, ASLEEP) as found:
        yield found


def bench_calls_of_handoffs(bench, handoffs):
    guest, pid = handoffs

    def each() -> dict[str, Mapping[str, float]]:
        return {
            way.name.lower(): of_a_round_trip(guest, pid, port(way, Deed.ECHO))
            for way in OURS
        }

    (found,) = bench.each(each, rounds=1)
    for name, of in found.items():
        note(bench, name, name, of)


def bench_calls_of_two_nodes(bench, nodes):
    guest, pid = nodes
    ways = {"tcp": hbone_backend.TCP, "hbone": hbone_backend.HBONE}

    def each() -> dict[str, Mapping[str, float]]:
        return {
            name: of_a_round_trip(guest, pid, way + hbone_backend.ECHO)
            for name, way in ways.items()
        }

    (found,) = bench.each(each, rounds=1)
    for name, of in found.items():
        note(bench, f"nodes-{name}", f"two nodes, {name}", of)
