"""What is compared: each figure's name, unit and direction, and the targets.

A round holds a figure as samples (`Round.times_ns`) or as one number
(`Round.values`), by the same key. The median of the samples is the round's number.
"""

from __future__ import annotations

import enum
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FAST_PATH: Final = "tsi"
"""The path that the others are compared with."""
HEADLINE: Final = "inpod-l3forwarding"
"""The standard path that the headline ratio is about: today's."""


class Group(enum.Enum):
    """Figures that are asked for together; the value is `--figures`'s word."""

    LATENCY = "latency"
    BULK = "bulk"
    RATES = "rates"
    OPEN_LOOP = "open-loop"
    BOTH = "both"
    HTTP = "http"
    CPU = "cpu"
    MEMORY = "memory"
    POLICY = "policy"
    RESTART = "restart"


FLIGHTS: Final = (1, 16, 64)
"""How many connections are under way at once, where that is a figure."""
KEPT: Final = 16
"""Connections that are open while something is done to a path (guest/probe)."""
WHO: Final = {
    "guest": "guest",
    "vmm": "VMM",
    "ztunnel": "ztunnel and back-end",
    "kernel": "kernel threads",
}
"""Who uses CPU time, by key."""

DEFAULT_GROUPS: Final = (Group.LATENCY, Group.BULK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One path's figures in one round, by `Metric.key`; those that were measured."""

    times_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Samples."""
    values: Mapping[str, float] = field(default_factory=dict)
    """What is one number a round, in the metric's unit."""

    def __contains__(self, key: object) -> bool:
        return key in self.times_ns or key in self.values

    def figure(self, key: str) -> float:
        """The round's one number of a figure; of samples their median, us.

        Raises:
            KeyError: it was not measured.
        """
        if key in self.times_ns:
            return statistics.median(self.times_ns[key]) / 1e3
        return self.values[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure that is compared: one number a round."""

    key: str
    """Its name in the JSON file."""
    title: str
    unit: str
    group: Group
    more_is_better: bool = False
    bound: float | None = None
    """The target for the ratio; None: shown, not judged."""
    counted: bool = False
    """It is shown alone: it may be 0, of which there is no ratio, or says what was done
    to the path."""

    @property
    def words(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def met(self, ratio: float) -> bool:
        """Whether `ratio` reaches the target (without one: always)."""
        if self.bound is None:
            return True
        return ratio >= self.bound if self.more_is_better else ratio <= self.bound

    @property
    def target(self) -> str:
        """The target in words, as `at most 0.80x`."""
        if self.bound is None:
            return ""
        return f"{'at least' if self.more_is_better else 'at most'} {self.bound:.2f}x"


_BASIC: Final = (
    Metric(key="connect", title="connect", unit="us", group=Group.LATENCY, bound=0.5),
    Metric(
        key="rtt_64",
        title="64 B round trip",
        unit="us",
        group=Group.LATENCY,
        bound=0.65,
    ),
    Metric(
        key="up",
        title="bulk up",
        unit="MB/s",
        group=Group.BULK,
        more_is_better=True,
        bound=1.5,
    ),
    Metric(
        key="down",
        title="bulk down",
        unit="MB/s",
        group=Group.BULK,
        more_is_better=True,
        bound=1.0,
    ),
    Metric(
        key="host_cpu",
        title="host CPU a round trip",
        unit="us",
        group=Group.LATENCY,
        bound=0.6,
    ),
    Metric(
        key="through_connect",
        title="connect, through ztunnel",
        unit="us",
        group=Group.LATENCY,
    ),
    Metric(
        key="through_rtt_64",
        title="64 B round trip, through ztunnel",
        unit="us",
        group=Group.LATENCY,
    ),
)


def _load() -> Iterator[Metric]:
    """The figures of load: none has a target."""
    for flight in FLIGHTS:
        for key, words in (("rate", "connections"), ("crr", "connect, 64 B, close")):
            yield Metric(
                key=f"{key}_{flight}",
                title=f"{words}, {flight} at once",
                unit="1/s",
                group=Group.RATES,
                more_is_better=True,
            )
    for key, words in (
        ("loop", "p50"),
        ("p99", "p99"),
        ("p999", "p99.9"),
        ("max", "max"),
    ):
        title = f"64 B round trip at a fixed rate, {words}"
        yield Metric(key=f"open_{key}", title=title, unit="us", group=Group.OPEN_LOOP)
    yield Metric(
        key="both",
        title="bulk both ways, each",
        unit="MB/s",
        group=Group.BOTH,
        more_is_better=True,
    )
    yield Metric(key="http_1k", title="HTTP, GET of 1 KiB", unit="us", group=Group.HTTP)
    yield Metric(
        key="http_rate_16",
        title="HTTP, GET of 1 KiB, 16 at once",
        unit="1/s",
        group=Group.HTTP,
        more_is_better=True,
    )
    for key, words, unit in (
        ("rtt", "a round trip", "us"),
        ("up", "a GB up", "s"),
        ("down", "a GB down", "s"),
    ):
        for who, name in WHO.items():
            yield Metric(
                key=f"cpu_{key}_{who}",
                title=f"CPU {words}, {name}",
                unit=unit,
                group=Group.CPU,
            )
    for who, name in (("vmm", "VMM"), ("ztunnel", "ztunnel")):
        for key, words in (("rss", "resident"), ("pss", "proportional")):
            yield Metric(
                key=f"{key}_{who}",
                title=f"memory of {name}, {words}",
                unit="MB",
                group=Group.MEMORY,
            )
    for group, words, took in (
        (Group.POLICY, "a new mesh", "in force after"),
        (Group.RESTART, "a restart", "back after"),
    ):
        key = group.value
        yield Metric(
            key=f"{key}_gap", title=f"{words}, longest gap", unit="ms", group=group
        )
        for what, title, unit in (
            ("took", took, "ms"),
            ("failed", "failed", ""),
            ("broken", f"broken of {KEPT} open", ""),
        ):
            yield Metric(
                key=f"{key}_{what}",
                title=f"{words}, {title}",
                unit=unit,
                group=group,
                counted=True,
            )


METRICS: Final = (*_BASIC, *_load())
"""What is compared, with the targets against `HEADLINE`. The one place of those: the
pages and docs/measurements.md have them from here, and a test holds the latter to it.
"""
COMPARED: Final = tuple(metric for metric in METRICS if not metric.counted)
"""Those that ratios are of."""
BY_KEY: Final = {metric.key: metric for metric in METRICS}

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
    return tuple(replace(each, bound=bounds.get(each.key)) for each in COMPARED)
