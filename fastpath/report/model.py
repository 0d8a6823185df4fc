"""What `fastpath compare` measured: rounds, paths, targets, the machine.

Raw samples stay in here (nanoseconds and bytes a second, as measured); units
and words are made where they are shown. A `Report` is complete: each way to
show it takes nothing else.
"""

from __future__ import annotations

import enum
import statistics
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from fastpath.report import stats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FAST_PATH: Final = "tsi"
"""The path that the others are compared with."""
HEADLINE: Final = "inpod-l3forwarding"
"""The standard path that the headline ratio is about: today's."""
HANDED_ON: Final = f"{FAST_PATH}+"
"""How the names of its hand-offs begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One path's samples in one round; times in ns, rates in bytes a second."""

    connect_ns: tuple[int, ...]
    rtt_ns: tuple[int, ...]
    up_bps: float
    """Sandbox to ztunnel."""
    down_bps: float
    cpu_ns_per_rtt: float
    """Host CPU time a round trip: `Report.cpu_note` says what it contains."""
    through_connect_ns: tuple[int, ...]
    """Through ztunnel, to a server behind it."""
    through_rtt_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFacts:
    """What a path is made of: known from the code, not measured."""

    title: str
    stacks: tuple[str, ...]
    """TCP/IP stacks that a byte crosses between the program and who answers."""
    copies_up: tuple[str, ...]
    """Copies of a payload byte by a CPU, program to who answers."""
    copies_down: tuple[str, ...]
    connections: tuple[str, ...] = ()
    """TCP connections that are left, program to a server behind who answers."""
    answers: str = "ztunnel"
    """Who does, where a figure is one to ztunnel."""


@dataclass(frozen=True, kw_only=True)
class PathResult:
    """All that was measured on one path."""

    name: str
    facts: PathFacts
    rounds: tuple[Round, ...]
    calls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """System calls a round trip with who answers: by process, by name. Empty: they
    were not counted."""

    @property
    def calls_words(self) -> str:
        """How many system calls, process by process, as `6.0 + 3.0`."""
        each = (f"{sum(calls.values()):.1f}" for calls in self.calls.values())
        return " + ".join(each) or "not counted"

    @property
    def handed_on(self) -> bool:
        """Whether another proxy takes the fast path's connections."""
        return self.name.startswith(HANDED_ON)

    @cached_property
    def connect(self) -> stats.Summary:
        """Time of a connection to ztunnel, us."""
        return _pooled(self.rounds, lambda r: r.connect_ns)

    @cached_property
    def rtt(self) -> stats.Summary:
        """Round trip of 64 bytes with ztunnel, us."""
        return _pooled(self.rounds, lambda r: r.rtt_ns)

    @cached_property
    def through_connect(self) -> stats.Summary:
        """Time of a connection to a server behind ztunnel, us."""
        return _pooled(self.rounds, lambda r: r.through_connect_ns)

    @cached_property
    def through_rtt(self) -> stats.Summary:
        """Round trip of 64 bytes with a server behind ztunnel, us."""
        return _pooled(self.rounds, lambda r: r.through_rtt_ns)

    @cached_property
    def up_mb_per_s(self) -> float:
        """Bulk, sandbox to ztunnel: median of the rounds, 10**6 bytes a second."""
        return statistics.median(r.up_bps for r in self.rounds) / 1e6

    @cached_property
    def down_mb_per_s(self) -> float:
        """Bulk, ztunnel to sandbox: median of the rounds, 10**6 bytes a second."""
        return statistics.median(r.down_bps for r in self.rounds) / 1e6

    @cached_property
    def cpu_us_per_rtt(self) -> float:
        """Host CPU a round trip: median of the rounds, us."""
        return statistics.median(r.cpu_ns_per_rtt for r in self.rounds) / 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure that is compared: one number a round."""

    key: str
    """Its name in the JSON file."""
    title: str
    of: Callable[[Round], float]
    bound: float | None = None
    """The target for the ratio; None: shown, not judged."""
    at_least: bool = False
    """The ratio must be at least `bound`; else at most."""

    def met(self, ratio: float) -> bool:
        """Whether `ratio` reaches the target (without one: always)."""
        if self.bound is None:
            return True
        return ratio >= self.bound if self.at_least else ratio <= self.bound

    @property
    def target(self) -> str:
        """The target in words, as `at most 0.80x`."""
        if self.bound is None:
            return ""
        return f"{'at least' if self.at_least else 'at most'} {self.bound:.2f}x"


METRICS: Final = (
    Metric(
        key="connect",
        title="connect",
        of=lambda r: statistics.median(r.connect_ns),
        bound=0.5,
    ),
    Metric(
        key="rtt_64",
        title="64 B round trip",
        of=lambda r: statistics.median(r.rtt_ns),
        bound=0.65,
    ),
    Metric(key="up", title="bulk up", of=lambda r: r.up_bps, bound=1.5, at_least=True),
    Metric(
        key="down", title="bulk down", of=lambda r: r.down_bps, bound=1.0, at_least=True
    ),
    Metric(
        key="host_cpu",
        title="host CPU a round trip",
        of=lambda r: max(r.cpu_ns_per_rtt, 1.0),  # less than the clock's tick is 0
        bound=0.6,
    ),
    Metric(
        key="through_connect",
        title="connect, through ztunnel",
        of=lambda r: statistics.median(r.through_connect_ns),
    ),
    Metric(
        key="through_rtt_64",
        title="64 B round trip, through ztunnel",
        of=lambda r: statistics.median(r.through_rtt_ns),
    ),
)
"""What is compared, with the targets against `HEADLINE`. The one place of those: the
pages and docs/measurements.md have them from here, and a test holds the latter to it.
"""

_GENEVE_BOUNDS: Final[Mapping[str, float | None]] = {
    "connect": 0.8,
    "rtt_64": 0.7,
    "up": 1.0,
    "down": 1.0,
}
_BOUNDS: Final[Mapping[str, Mapping[str, float | None]]] = {
    HEADLINE: {metric.key: metric.bound for metric in METRICS},
    "ambient-geneve": _GENEVE_BOUNDS,
}


def metrics(standard: str) -> tuple[Metric, ...]:
    """Return what the fast path is compared by with a path, with the targets if any."""
    bounds = _BOUNDS.get(standard, {})
    return tuple(replace(each, bound=bounds.get(each.key)) for each in METRICS)


class Outcome(enum.Enum):
    """What a run shows of a target."""

    MET = "met"
    """The whole interval is inside."""
    MISSED = "not met"
    """The whole interval is outside."""
    NOT_SHOWN = "not shown"
    """The target is inside the interval, or there is none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One ratio held against its target."""

    metric: Metric
    ratio: stats.Ratio

    @property
    def outcome(self) -> Outcome | None:
        """What is shown; None: there is no target."""
        if self.metric.bound is None:
            return None
        if self.ratio.interval is None:
            return Outcome.NOT_SHOWN
        ends = {self.metric.met(end) for end in self.ratio.interval}
        if len(ends) > 1:
            return Outcome.NOT_SHOWN
        return Outcome.MET if ends.pop() else Outcome.MISSED

    @property
    def met(self) -> bool:
        """Whether it is shown that the target is reached; without one: always."""
        return self.outcome in {None, Outcome.MET}

    @property
    def words(self) -> str:
        """The outcome in words; empty without a target."""
        return "" if self.outcome is None else self.outcome.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how it was measured."""

    started: str
    """UTC, ISO 8601."""
    accel: str
    accel_reason: str
    geneve: str | None
    """`kernel` or `bpf`; None when no path has a tunnel."""
    guest_kernel: str
    clocksource: str
    host_kernel: str
    cpu_model: str
    cpus: int
    qemu: str
    pinning: str
    cpu_note: str
    """What the host CPU figure contains and what not."""
    calls_note: str = ""
    """How system calls were counted, or why not; empty: they were not asked for."""
    method: tuple[str, ...]
    """Sentences: rounds, counts, order, what was checked before."""
    checks: tuple[str, ...] = ()
    """What the self check saw on each path."""
    warnings: tuple[str, ...] = ()
    """What makes these figures less than they look: load, rounds that were cut."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run of `fastpath compare`."""

    setting: Setting
    paths: Mapping[str, PathResult]
    """By name, in the order that they are shown in."""

    @property
    def rounds(self) -> int:
        """Rounds that were measured, the warm-up left out."""
        return min(len(path.rounds) for path in self.paths.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader has to know before the figures."""
        if self.rounds >= stats.MIN_VALUES or len(self.paths) < 2:
            return self.setting.warnings
        few = (
            f"{self.rounds} rounds: too few for an interval, so no target is shown to "
            f"be met or not; {stats.MIN_VALUES} are the least"
        )
        return (*self.setting.warnings, few)

    @cached_property
    def verdicts(self) -> Mapping[str, tuple[Verdict, ...]]:
        """The fast path over each other path, by `ours/theirs`; empty for one path.

        A hand-off stands over the fast path, as what it costs; there is no target.
        """
        return {
            f"{ours.name}/{theirs.name}": tuple(
                Verdict(metric, _ratio(metric, ours, theirs))
                for metric in metrics("" if ours.handed_on else theirs.name)
            )
            for ours, theirs in self._pairs()
        }

    @property
    def handed_on(self) -> Mapping[str, tuple[Verdict, ...]]:
        """The verdicts of hand-offs, which have no targets."""
        return self._split(handed_on=True)

    @property
    def standard(self) -> Mapping[str, tuple[Verdict, ...]]:
        """Those against standard paths, some of which have targets."""
        return self._split(handed_on=False)

    def _split(self, *, handed_on: bool) -> Mapping[str, tuple[Verdict, ...]]:
        return {
            pair: verdicts
            for pair, verdicts in self.verdicts.items()
            if pair.startswith(HANDED_ON) is handed_on
        }

    @property
    def who_answers(self) -> str:
        """Whose figures those to ztunnel are, if some are another's; or nothing."""
        if any(path.handed_on for path in self.paths.values()):
            return ", or to the proxy that it hands over to"
        others = {p.facts.answers for p in self.paths.values()} - {"ztunnel"}
        return ", or to who answers in its place" if others else ""

    @property
    def all_met(self) -> bool:
        """Whether every target is shown to be met against every other path."""
        return all(v.met for verdicts in self.verdicts.values() for v in verdicts)

    def _pairs(self) -> Iterator[tuple[PathResult, PathResult]]:
        first = FAST_PATH if FAST_PATH in self.paths else next(iter(self.paths))
        for name, path in self.paths.items():
            if name != first:
                ours, theirs = self.paths[first], path
                yield (theirs, ours) if theirs.handed_on else (ours, theirs)


def _pooled(
    rounds: tuple[Round, ...], of: Callable[[Round], tuple[int, ...]]
) -> stats.Summary:
    return stats.summarize([ns for r in rounds for ns in of(r)], scale=1e-3)


def _ratio(metric: Metric, ours: PathResult, theirs: PathResult) -> stats.Ratio:
    return stats.paired_ratio(
        [metric.of(r) for r in ours.rounds], [metric.of(r) for r in theirs.rounds]
    )
