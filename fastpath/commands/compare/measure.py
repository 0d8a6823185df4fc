"""The rounds: the same program on each path, in turns, in guests of one image.

A round has sections (`sections`): connect, round trip and so on. Within a section the
paths run one right after the other, and the next round turns their order around, so
that what drifts hits all alike.

The program is guest/probe, which knows nothing of the paths: over the fast
path it runs under tsi-agent, over the standard path without.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fastpath.commands.compare.cpu import KernelTime, used_ns
from fastpath.commands.compare.site import SERVER_PORT
from fastpath.errors import FastpathError
from fastpath.report.figures import Round

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from fastpath.commands.compare.child import Child
    from fastpath.commands.compare.load import Watch
    from fastpath.vm.guest import Guest
    from fastpath.vm.machine import Machine

    Section = Callable[["Bench", str, "Counts"], Awaitable[Round]]
    """A part of a round on one path."""

PROBE: Final = "probe"
PROBE_TIMEOUT_S: Final = 60.0
"""Far more than any of them takes; a path that lost a byte must not hang us."""
COUNTERS: Final = frozenset({"tsc", "tsc-early", "kvm-clock"})
"""Clock sources that count and do not tick."""
ECHO_PORT: Final = 7
DISCARD_PORT: Final = 9
CHARGEN_PORT: Final = 19
PAYLOAD: Final = 64
"""Bytes of a round trip."""

MIN_ROUNDS: Final = 3
"""The time budget never cuts below this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much of each one round does on one path."""

    connect: int
    rtt: int
    bulk: int
    """Bytes each way."""
    through_connect: int
    through_rtt: int
    crowd: int = 0
    """Transactions for each number in flight."""
    open_loop: int = 0
    """Requests, `rate` a second."""
    rate: int = 1000

    def __str__(self) -> str:
        return (
            f"{self.connect} connections, {self.rtt} round trips of {PAYLOAD} B, "
            f"{self.bulk >> 20} MiB each way; through ztunnel "
            f"{self.through_connect} connections and {self.through_rtt} round trips"
        )


FULL: Final = Counts(
    connect=200,
    rtt=2000,
    bulk=32 << 20,
    through_connect=200,
    through_rtt=1000,
    crowd=400,
    open_loop=1000,
)
QUICK: Final = Counts(
    connect=40,
    rtt=300,
    bulk=10 << 20,
    through_connect=40,
    through_rtt=200,
    crowd=100,
    open_loop=200,
)
"""Also what the warm-up round does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a path is driven."""

    guest: Guest
    machine: Machine
    echo: str
    """The address of who answers: ztunnel, or another in its place."""
    server: str
    """The server behind that."""
    logged: tuple[str, str] | None
    """Both, as ztunnel's access log has them; None: it never hears of them."""
    tsi: bool
    proxy: Child | None = None
    """That proxy."""
    http: bool = True
    """Whether the HTTP server behind can be reached."""
    put: str = "up"
    """The probe's word for sending: "put", where a device has no half-close."""
    restarts: Child | None = None
    """Who takes its connections, if that can be ended and started again alone."""
    pids: Mapping[str, int] = field(default_factory=dict)
    """More processes that carry the path's bytes, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is measured: the paths' guests, the processes, the destinations."""

    ways: Mapping[str, Way]
    """By path."""
    ztunnel: Child
    new_mesh: Callable[[], Awaitable[float]] | None = None
    """Gives ztunnel another mesh; returns how long that took, s."""
    clocksources: set[str] = field(default_factory=set)
    """What the guests' clocks were read from so far."""
    _kernel: KernelTime = field(default_factory=KernelTime)

    async def probe(
        self, path: str, address: str, port: int, *args: str
    ) -> dict[str, Any]:
        """Run the probe once on `path` and return what it prints.

        Raises:
            FastpathError: it failed or hangs, the guest's clock only ticks, or
                a process or the guest died.
        """
        argv = [PROBE, address, str(port), *args]
        what = f"{' '.join(argv)} on path {path}"
        out, err = bytearray(), bytearray()
        way = self.ways[path]
        work: Awaitable[int] = way.guest.run(
            argv, tsi=way.tsi, stdout=out.extend, stderr=err.extend
        )
        if way.proxy:
            work = way.proxy.watch(work)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                status = await self.ztunnel.watch(way.machine.watch(work))
        except TimeoutError:
            raise FastpathError(
                what, f"not done within {PROBE_TIMEOUT_S:g} s"
            ) from None
        if status:
            said = err.decode(errors="replace").strip()
            raise FastpathError(what, said or f"exit status {status}")
        result: dict[str, Any] = json.loads(out)
        if result["clocksource"] not in COUNTERS:
            raise FastpathError(
                f"the guest's clock source is {result['clocksource']}",
                "it does not count finely enough to time a round trip",
                "use another --accel, or a host whose TSC is stable",
            )
        self.clocksources.add(result["clocksource"])
        return result

    async def near(self, path: str, port: int, *args: str) -> dict[str, Any]:
        """The same, against who answers."""
        return await self.probe(path, self.ways[path].echo, port, *args)

    async def through(
        self, path: str, *args: str, port: int = SERVER_PORT
    ) -> dict[str, Any]:
        """The same, against the server behind."""
        return await self.probe(path, self.ways[path].server, port, *args)

    def processes(self, path: str) -> dict[str, int]:
        """Process ids of who carries a path's bytes on the host, but for QEMU."""
        proxy, more = self.ways[path].proxy, self.ways[path].pids
        own = {"ztunnel": self.ztunnel.pid} | ({"proxy": proxy.pid} if proxy else {})
        return own | dict(more)

    def cpu_ns(self, path: str) -> dict[str, int]:
        """CPU time so far, in ns, by who used it: all that carry a path's bytes."""
        machine = self.ways[path].machine
        vmm = used_ns(machine.pid, without=machine.vcpu_thread_ids)
        return {
            "guest": used_ns(machine.pid) - vmm,
            "vmm": vmm,
            "ztunnel": sum(map(used_ns, self.processes(path).values())),
            "kernel": self._kernel.ns(),
        }

    def host_ns(self, path: str) -> int:
        """CPU time of those, and of QEMU without its vCPUs, so far, in ns."""
        machine = self.ways[path].machine
        return sum(map(used_ns, self.processes(path).values())) + used_ns(
            machine.pid, without=machine.vcpu_thread_ids
        )


@dataclass(frozen=True, slots=True)
class Contestant:
    """A path of a bench, under the name that the report has for it."""

    name: str
    bench: Bench
    path: str


@dataclass(slots=True, kw_only=True)
class Rounds:
    """What was measured so far; whoever interrupts a run finds it here."""

    by_name: dict[str, list[Round]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Rounds that are there for all."""
        return min((len(each) for each in self.by_name.values()), default=0)

    def add(self, figures: Mapping[str, Round]) -> None:
        """Add one round of each."""
        for name, round_ in figures.items():
            self.by_name.setdefault(name, []).append(round_)

    def forget(self, names: Collection[str]) -> None:
        """Drop those that were lost."""
        for name in names:
            self.by_name.pop(name, None)


async def measure(
    contestants: Sequence[Contestant],
    into: Rounds,
    *,
    sections: Sequence[Section],
    rounds: int,
    counts: Counts,
    budget_s: float,
    progress: Callable[[int, int, float], None],
    watch: Watch,
    longer: bool,
    lose: Callable[[Contestant, FastpathError], Awaitable[set[str]]],
) -> None:
    """Measure `rounds` rounds after one of warm-up, or as many as there is time for.

    Args:
        contestants: what to measure.
        into: where each round goes when it is whole.
        sections: of a round.
        rounds: how many at most.
        counts: how much one round does.
        budget_s: no new round starts that would likely end after this.
        progress: called after each round with the number of rounds done, how many
            there will be, and the time that one takes, s.
        watch: says which rounds something else disturbed.
        longer: measure one more for each of those, `rounds` more at most.
        lose: called with one that failed; returns the names of all that are to be
            left out from then on, or raises.
    """
    started = time.monotonic()
    left = await _round(contestants, sections, QUICK, lose, Rounds())
    wanted, number = rounds, -1
    while (number := number + 1) < wanted:
        begun = time.monotonic()
        watch.begin()
        order = left if number % 2 == 0 else left[::-1]
        after = await _round(order, sections, counts, lose, into)
        left = [each for each in left if each in after]
        into.forget(set(into.by_name) - {each.name for each in left})
        now = time.monotonic()
        if watch.end() and longer:
            wanted = min(wanted + 1, 2 * rounds)
        progress(number + 1, wanted, now - begun)
        if number + 1 >= MIN_ROUNDS and now - started + (now - begun) > budget_s:
            break


async def _round(
    order: Sequence[Contestant],
    sections: Sequence[Section],
    counts: Counts,
    lose: Callable[[Contestant, FastpathError], Awaitable[set[str]]],
    into: Rounds,
) -> list[Contestant]:
    """Measure one round; return those that are left."""
    left = list(order)
    figures: dict[str, Round] = {each.name: Round() for each in order}
    for section in sections:
        for each in order:
            if each not in left:
                continue
            try:
                found = await section(each.bench, each.path, counts)
            except FastpathError as error:
                lost = await lose(each, error)
                left = [one for one in left if one.name not in lost]
            else:
                own = figures[each.name]
                figures[each.name] = Round(
                    times_ns={**own.times_ns, **found.times_ns},
                    values={**own.values, **found.values},
                )
    into.add({each.name: figures[each.name] for each in left})
    return left
