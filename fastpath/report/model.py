"""What `fastpath compare` measured: rounds, paths, targets, the machine.

Raw samples stay in here; words are made where they are shown. A `Report` is complete:
each way to show it takes nothing else.
"""

from __future__ import annotations

import enum
import statistics
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from fastpath.report import difference, stats
from fastpath.report.figures import COMPARED, FAST_PATH, metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fastpath.report.difference import Difference, Thresholds
    from fastpath.report.figures import Metric, Round

AT: Final = "@"
"""Between the path and the variant, in the name of what was measured."""
HANDED_ON: Final = f"{FAST_PATH}+"
"""How the names of its hand-offs begin."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One that a payload byte passes, and what it does with it."""

    name: str
    at: str
    """Where it is: `guest`, `host`, or whose network namespace."""
    _: KW_ONLY
    thread: bool = False
    """It is a process, which a byte wakes up, if it sleeps."""
    stack: str = ""
    """The TCP/IP stack that it is, as a reader of a list calls it; empty: it's none."""
    up: tuple[str, ...] = ()
    """Copies by a CPU that it makes of a byte of the program's, in their order."""
    down: tuple[str, ...] = ()
    """And of a byte to the program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFacts:
    """What a path is made of: known from the code, not measured."""

    title: str
    hops: tuple[Hop, ...]
    """From the program to who answers, both included."""
    connections: tuple[str, ...] = ()
    """TCP connections that are left, program to a server behind who answers."""
    answers: str = "ztunnel"
    """Who does, where a figure is one to ztunnel."""

    @property
    def stacks(self) -> tuple[str, ...]:
        """TCP/IP stacks that a byte crosses."""
        return tuple(hop.stack for hop in self.hops if hop.stack)

    @property
    def copies_up(self) -> tuple[str, ...]:
        """Copies of a payload byte by a CPU, program to who answers."""
        return tuple(copy for hop in self.hops for copy in hop.up)

    @property
    def copies_down(self) -> tuple[str, ...]:
        """And from who answers to the program."""
        return tuple(copy for hop in reversed(self.hops) for copy in hop.down)


@dataclass(frozen=True, kw_only=True)
class PathResult:
    """All that was measured on one path."""

    name: str
    facts: PathFacts
    rounds: tuple[Round, ...]
    calls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """System calls a round trip with who answers: by process, by name. Empty: they
    were not counted."""
    beside: PathResult | None = None
    """The fast path as it was measured beside it, if that is not the report's."""

    @property
    def calls_words(self) -> str:
        """How many system calls, process by process, as `6.0 + 3.0`."""
        each = (f"{sum(calls.values()):.1f}" for calls in self.calls.values())
        return " + ".join(each) or "not counted"

    @property
    def handed_on(self) -> bool:
        """Whether another proxy takes the fast path's connections."""
        return self.name.startswith(HANDED_ON)

    @property
    def path(self) -> str:
        """The path's name, without the variant's."""
        return self.name.partition(AT)[0]

    @property
    def variant(self) -> str:
        """The variant's name; empty: there are none."""
        return self.name.partition(AT)[2]

    def has(self, key: str) -> bool:
        """Whether a figure was measured."""
        return all(key in each for each in self.rounds)

    def summary(self, key: str) -> stats.Summary:
        """All samples of a figure, us.

        Raises:
            KeyError: it has none.
        """
        samples = [ns for each in self.rounds for ns in each.times_ns[key]]
        return stats.summarize(samples, scale=1e-3)

    def median(self, key: str) -> float:
        """Of the rounds' numbers of a figure, in its unit.

        Raises:
            KeyError: it was not measured.
        """
        return statistics.median(each.figure(key) for each in self.rounds)


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
    command: str = ""
    """What to type for the same again."""
    version: str = ""
    """Of this program."""
    calls_note: str = ""
    """How system calls were counted, or why not; empty: they were not asked for."""
    method: tuple[str, ...]
    """Sentences: rounds, counts, order, what was checked before."""
    checks: tuple[str, ...] = ()
    """What the self check saw on each path."""
    warnings: tuple[str, ...] = ()
    """What makes these figures less than they look: load, rounds that were cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """One of the set-ups that were compared."""

    name: str
    spec: str
    """As it was asked for; empty: as it is by default."""
    guest_kernel: str = ""
    sockets: str = ""
    """Who has the programs' sockets in its guest."""
    qemu: str = ""
    failure: str = ""
    """Why it was not measured, or not to the end; empty: it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A path that was asked for and could not be measured."""

    name: str
    why: str
    hint: str | None
    """The command that would allow it, if one is known."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run of `fastpath compare`."""

    setting: Setting
    paths: Mapping[str, PathResult]
    """By name, in the order that they are shown in; `path@variant` with variants."""
    variants: tuple[VariantFacts, ...] = ()
    """The first is what the others are compared with; empty: none were asked for."""
    thresholds: Thresholds = field(default_factory=difference.Thresholds)
    left_out: tuple[LeftOut, ...] = ()

    @property
    def left_out_lines(self) -> tuple[str, ...]:
        """What was left out, and why: a line a reason."""
        reasons: dict[tuple[str, str | None], list[str]] = {}
        for each in self.left_out:
            reasons.setdefault((each.why, each.hint), []).append(each.name)
        return tuple(
            f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} left out: {why}"
            + (f" ({hint})" if hint else "")
            for (why, hint), names in reasons.items()
        )

    @property
    def rounds(self) -> int:
        """Rounds that were measured, the warm-up left out."""
        return min((len(path.rounds) for path in self.paths.values()), default=0)

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
        Only paths of one variant stand side by side.
        """
        return {
            f"{ours.name}/{theirs.name}": tuple(
                Verdict(metric, _ratio(metric, ours, theirs))
                for metric in metrics("" if ours.handed_on else theirs.path)
                if ours.has(metric.key) and theirs.has(metric.key)
            )
            for ours, theirs in self._pairs()
        }

    @cached_property
    def differences(self) -> Mapping[str, tuple[Difference, ...]]:
        """Each other variant over the first, by `path@other/path@first`."""
        return difference.judged(
            {
                f"{theirs.name}/{base.name}": [
                    (metric, difference.paired(metric.key, theirs.rounds, base.rounds))
                    for metric in COMPARED
                    if theirs.has(metric.key) and base.has(metric.key)
                ]
                for theirs, base in self._changes()
            },
            self.thresholds,
        )

    @property
    def worse(self) -> bool:
        """Whether a variant is shown to be worse than the first."""
        return any(
            each.verdict is difference.Change.WORSE
            for differences in self.differences.values()
            for each in differences
        )

    def _changes(self) -> Iterator[tuple[PathResult, PathResult]]:
        first = self.variants[0].name if self.variants else ""
        for path in self.paths.values():
            base = self.paths.get(f"{path.path}{AT}{first}")
            if path.variant and base and path is not base:
                yield path, base

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
        of_variants: dict[str, list[PathResult]] = {}
        for path in self.paths.values():
            of_variants.setdefault(path.variant, []).append(path)
        for paths in of_variants.values():
            first = next((p for p in paths if p.path == FAST_PATH), paths[0])
            for path in paths:
                if path is not first:
                    ours = path.beside or first
                    yield (path, ours) if path.handed_on else (ours, path)


def _ratio(metric: Metric, ours: PathResult, theirs: PathResult) -> stats.Ratio:
    return stats.paired_ratio(_numbers(metric, ours), _numbers(metric, theirs))


def _numbers(metric: Metric, path: PathResult) -> Sequence[float]:
    return [each.figure(metric.key) for each in path.rounds]
