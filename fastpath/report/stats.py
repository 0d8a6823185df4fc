"""The arithmetic of the report: quantiles, and ratios with an interval.

A ratio of two paths is the median of the per-round ratios: both sides of one
pair ran next to each other, so what drifts on the machine (clock, caches,
neighbours) falls out of it. Its interval is exact: two of the ratios themselves
(David and Nagaraja, "Order Statistics", 3rd edition, section 7.1), without an
assumption about their distribution and without chance. A bootstrap's is too narrow
for so few rounds: from three, its "95 %" held the median in 77 % of runs.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE: Final = 0.95
MIN_VALUES: Final = 6
"""Fewer have no interval of that confidence: the span of five holds the median in
1 - 2 / 2**5 = 94 % of runs, that of six in 97 %."""


class Interval(NamedTuple):
    """Where a median is, with `CONFIDENCE`."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What the report shows of one set of samples, in the samples' unit."""

    p50: float
    p99: float
    min: float
    n: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """One path's figure over another's, with its 95 % interval."""

    median: float
    interval: Interval | None
    """None: there are too few rounds."""
    pairs: int
    """Rounds that went into it."""


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile `share` (0 to 1) of samples in ascending order.

    Linear between neighbours, as Hyndman and Fan's definition 7 (NumPy's and
    R's default).

    Raises:
        ValueError: there is no sample.
    """
    if not ordered:
        raise ValueError("no samples")
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarize(samples: Sequence[float], *, scale: float = 1.0) -> Summary:
    """Summarize samples, each multiplied by `scale` (1e-3: ns to us).

    Raises:
        ValueError: there is no sample.
    """
    ordered = sorted(samples)
    return Summary(
        p50=quantile(ordered, 0.50) * scale,
        p99=quantile(ordered, 0.99) * scale,
        min=ordered[0] * scale,
        n=len(ordered),
    )


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the median of `ours[i] / theirs[i]` with its interval.

    Args:
        ours: one figure a round, above zero.
        theirs: the other path's, in the same rounds and the same order.

    Raises:
        ValueError: there is no round, or the lengths differ.
    """
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    if not pairs:
        raise ValueError("no rounds")
    return Ratio(statistics.median(pairs), median_interval(pairs), len(pairs))


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the narrowest interval of two values that holds the median for sure.

    "For sure" is in at least `CONFIDENCE` of all runs, whatever the distribution:
    each value is below the median with probability 1/2, so how many are is binomial,
    and the k-th least and the k-th largest value miss it with a probability of
    2 P(fewer than k of n). None: there are fewer than `MIN_VALUES`.
    """
    ordered = sorted(values)
    count = len(ordered)
    fewer, place = 0, 0  # sets of fewer than `place` + 1 values, of 2**count
    while place <= count // 2:
        fewer += math.comb(count, place)
        if 2 * fewer > (1 - CONFIDENCE) * 2**count:
            break
        place += 1
    return Interval(ordered[place - 1], ordered[-place]) if place else None
