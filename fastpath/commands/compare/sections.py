"""The sections of a round: what is measured on one path at a time.

latency      connect and round trip, with who answers and through it; host CPU
bulk         up and down
rates        connections, and connections with a request, 1, 16 and 64 at once
open-loop    round trips at a fixed rate, whatever becomes of those before
both         bulk both ways at once
http         HTTP/1.1 requests of 1 KiB to a server behind ztunnel
cpu          CPU a round trip and a GB, by who uses it
memory       of the microVM's process and of ztunnel
policy       a new mesh under load (`disturb`)
restart      of who takes the connections, under load
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath.commands.compare import disturb
from fastpath.commands.compare.cpu import memory_mb
from fastpath.commands.compare.measure import (
    CHARGEN_PORT,
    DISCARD_PORT,
    ECHO_PORT,
    PAYLOAD,
)
from fastpath.commands.compare.site import HTTP_PORT
from fastpath.errors import FastpathError
from fastpath.report.figures import FLIGHTS, WHO, Group, Round
from fastpath.report.stats import quantile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from fastpath.commands.compare.measure import Bench, Counts, Section

LEAST: Final = 0.001
"""Less than the clock's tick is 0, of which there is no ratio."""
HTTP_BYTES: Final = 1024
START_BYTES: Final = 4096
"""Of a transfer that costs what starting one costs."""


def chosen(groups: Collection[Group]) -> list[Section]:
    """The sections of some groups."""
    return [section for group, section in SECTIONS if group in groups]


def parse(value: str) -> tuple[Group, ...]:
    """Read the names of groups, with commas between them.

    Raises:
        FastpathError: there is none of that name.
    """
    found: list[Group] = []
    for name in (word.strip() for word in value.split(",")):
        if name in _SEVERAL:
            found += _SEVERAL[name]
        elif name in {group.value for group in Group}:
            found.append(Group(name))
        else:
            names = ", ".join([*(group.value for group in Group), *_SEVERAL])
            what = f"--figures {value}"
            raise FastpathError(what, f"no figures {name!r}; there are {names}")
    return tuple(group for group in Group if group in found)


_NO_LOAD: Final = {Group.LATENCY, Group.BULK, Group.RESTART}
_LOAD: Final = tuple(group for group in Group if group not in _NO_LOAD)
_SEVERAL: Final = {"load": _LOAD, "all": tuple(Group)}


async def _connect(bench: Bench, path: str, counts: Counts) -> Round:
    result = await bench.near(path, ECHO_PORT, "connect", str(counts.connect))
    return Round(times_ns={"connect": tuple(result["ns"])})


async def _rtt(bench: Bench, path: str, counts: Counts) -> Round:
    """Measure round trips, and the host CPU that they took.

    A run of one round trip costs what starting the program and connecting
    costs; the difference to it is the round trips' own.
    """

    async def run(count: int) -> tuple[list[int], int]:
        before = bench.host_ns(path)
        result = await bench.near(path, ECHO_PORT, "rtt", str(count), str(PAYLOAD))
        return result["ns"], bench.host_ns(path) - before

    _, start_ns = await run(1)
    times, all_ns = await run(counts.rtt)
    used_us = (all_ns - start_ns) / (counts.rtt - 1) / 1e3
    return Round(
        times_ns={"rtt_64": tuple(times)},
        values={"host_cpu": max(used_us, LEAST)},
    )


async def _up(bench: Bench, path: str, counts: Counts) -> Round:
    op = bench.ways[path].put
    result = await bench.near(path, DISCARD_PORT, op, str(counts.bulk))
    return Round(values={"up": result["bytes"] * 1e3 / result["ns"]})


async def _down(bench: Bench, path: str, counts: Counts) -> Round:
    result = await bench.near(path, CHARGEN_PORT, "down", str(counts.bulk))
    return Round(values={"down": result["bytes"] * 1e3 / result["ns"]})


async def _through_connect(bench: Bench, path: str, counts: Counts) -> Round:
    result = await bench.through(path, "connect", str(counts.through_connect))
    return Round(times_ns={"through_connect": tuple(result["ns"])})


async def _through_rtt(bench: Bench, path: str, counts: Counts) -> Round:
    result = await bench.through(path, "rtt", str(counts.through_rtt), str(PAYLOAD))
    return Round(times_ns={"through_rtt_64": tuple(result["ns"])})


async def _rates(bench: Bench, path: str, counts: Counts) -> Round:
    """Measure connections, and connections with a request, a second."""
    values = {}
    for flight in FLIGHTS:
        for op, size in (("rate", ()), ("crr", (str(PAYLOAD),))):
            args = (op, str(counts.crowd), *size, str(flight))
            result = await bench.near(path, ECHO_PORT, *args)
            values[f"{op}_{flight}"] = counts.crowd * 1e9 / result["elapsed_ns"]
    return Round(values=values)


async def _open_loop(bench: Bench, path: str, counts: Counts) -> Round:
    args = ("open", str(counts.open_loop), str(PAYLOAD), str(counts.rate))
    result = await bench.near(path, ECHO_PORT, *args)
    ordered = sorted(result["ns"])
    return Round(
        times_ns={"open_loop": tuple(result["ns"])},
        values={
            "open_p99": quantile(ordered, 0.99) / 1e3,
            "open_p999": quantile(ordered, 0.999) / 1e3,
            "open_max": ordered[-1] / 1e3,
        },
    )


async def _both(bench: Bench, path: str, counts: Counts) -> Round:
    result = await bench.near(path, ECHO_PORT, "echo", str(counts.bulk))
    return Round(values={"both": result["bytes"] * 1e3 / result["ns"]})


async def _http(bench: Bench, path: str, counts: Counts) -> Round:
    """Measure requests one after the other, and of 16 connections a second."""
    if not bench.ways[path].http:
        return Round()

    async def run(flight: int) -> tuple[list[int], int]:
        args = ("http", str(counts.crowd), str(HTTP_BYTES), str(flight))
        result = await bench.through(path, *args, port=HTTP_PORT)
        return result["ns"], result["elapsed_ns"]

    times, _ = await run(1)
    _, elapsed_ns = await run(16)
    return Round(
        times_ns={"http_1k": tuple(times)},
        values={"http_rate_16": counts.crowd * 1e9 / elapsed_ns},
    )


async def _cpu(bench: Bench, path: str, counts: Counts) -> Round:
    """Measure who uses how much CPU time for a round trip, and for a GB.

    Less what a run of the least size costs, as in `_rtt`.
    """
    values = {}

    async def used(port: int, op: str, amount: int, *more: str) -> dict[str, int]:
        before = bench.cpu_ns(path)
        await bench.near(path, port, op, str(amount), *more)
        return {who: ns - before[who] for who, ns in bench.cpu_ns(path).items()}

    put = bench.ways[path].put
    for key, port, op, least, most, more, per in (
        ("rtt", ECHO_PORT, "rtt", 1, counts.rtt, (str(PAYLOAD),), 1e3),
        ("up", DISCARD_PORT, put, START_BYTES, counts.bulk, (), 1.0),
        ("down", CHARGEN_PORT, "down", START_BYTES, counts.bulk, (), 1.0),
    ):
        start = await used(port, op, least, *more)
        whole = await used(port, op, most, *more)
        for who in WHO:
            each = (whole[who] - start[who]) / (most - least) / per
            values[f"cpu_{key}_{who}"] = max(each, LEAST)
    return Round(values=values)


async def _memory(bench: Bench, path: str, counts: Counts) -> Round:
    del counts
    values: dict[str, float] = {}
    machine = bench.ways[path].machine
    for who, pid in (("vmm", machine.pid), ("ztunnel", bench.ztunnel.pid)):
        resident, proportional = memory_mb(pid)
        values |= {f"rss_{who}": resident, f"pss_{who}": proportional}
    return Round(values=values)


SECTIONS: Final[
    tuple[tuple[Group, Callable[[Bench, str, Counts], Awaitable[Round]]], ...]
] = (
    (Group.LATENCY, _connect),
    (Group.LATENCY, _rtt),
    (Group.BULK, _up),
    (Group.BULK, _down),
    (Group.LATENCY, _through_connect),
    (Group.LATENCY, _through_rtt),
    (Group.RATES, _rates),
    (Group.OPEN_LOOP, _open_loop),
    (Group.BOTH, _both),
    (Group.HTTP, _http),
    (Group.CPU, _cpu),
    (Group.MEMORY, _memory),
    (Group.POLICY, disturb.policy),
    (Group.RESTART, disturb.restart),
)
