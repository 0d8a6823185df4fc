"""Whether two set-ups differ: exact permutation tests, a ratio and its interval.

    paired      both took turns in each round: Wilcoxon's signed ranks of the rounds'
                log ratios. Without a difference each sign is as likely as the other.
    unpaired    two runs: Mann and Whitney's ranks of the figures' logarithms. Without
                a difference each order is as likely as any other.

Ranks, because a neighbour's burst is one large value, and not a larger one counts more.
p-values are counted over all permutations, ties and all; beyond `EXACT` values the
normal approximation stands for the count. The ratio is Hodges and Lehmann's: the
median of the ratios of all pairs (of their geometric means, if paired), and its
interval is the test turned around, so that ratio, interval and p-value say the same.

No library: SciPy's exact forms of both tests know no ties, and it is 150 MB with NumPy.

Spec: Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", 3rd edition,
sections 3.1 to 3.3 and 4.1 to 4.3; S. Holm, "A Simple Sequentially Rejective Multiple
Test Procedure", 1979.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.report.stats import CONFIDENCE, Interval

if TYPE_CHECKING:
    from collections.abc import Sequence

EXACT: Final = 100
"""Values up to which permutations are counted."""


@dataclass(frozen=True, slots=True)
class Shift:
    """How one set-up's figure is to another's."""

    ratio: float
    interval: Interval | None
    """None: too few values for one."""
    p: float
    """How likely this or more is if there is no difference; two-sided."""
    least_p: float
    """The least that so few values can give."""


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Shift:
    """Compare figures of the same rounds.

    Args:
        ours: one a round, above zero.
        theirs: the same of the other, in the same order.

    Raises:
        ValueError: there are none, or not as many.
    """
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    if not logs:
        raise ValueError("no rounds")
    count = len(logs)
    walsh = sorted((a + b) / 2 for i, a in enumerate(logs) for b in logs[i:])
    moved = [value for value in logs if value]
    ranks = _ranks([abs(value) for value in moved])
    above = sum(r for r, value in zip(ranks, moved, strict=True) if value > 0)
    return Shift(
        math.exp(statistics.median(walsh)),
        _interval(walsh, _outside_paired(count)),
        _signed(ranks).two_sided(above),
        min(1.0, 2.0 ** (1 - count)),
    )


def unpaired(ours: Sequence[float], theirs: Sequence[float]) -> Shift:
    """Compare figures of two runs.

    Args:
        ours: one a round, above zero.
        theirs: the other run's.

    Raises:
        ValueError: there are none.
    """
    if not ours or not theirs:
        raise ValueError("no rounds")
    logs = [math.log(value) for value in (*ours, *theirs)]
    first, second = logs[: len(ours)], logs[len(ours) :]
    between = sorted(a - b for a in first for b in second)
    ranks = _ranks(logs)
    count = len(first)
    return Shift(
        math.exp(statistics.median(between)),
        _interval(between, _outside_unpaired(count, len(second))),
        _chosen(ranks, count).two_sided(sum(ranks[:count])),
        min(1.0, 2 / math.comb(len(logs), count)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of one run, so that all together err as seldom as one.

    With `alpha` 0.05, a run of two equal set-ups shows a difference in any of its
    figures in at most one of 20 runs.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, (len(order) - place) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


@dataclass(frozen=True, slots=True)
class _Distribution:
    """Of a sum of ranks when nothing differs."""

    up_to: Sequence[int]
    """Permutations whose sum is at most the place. Empty: not counted."""
    mean: float
    deviation: float

    def at_most(self, value: int) -> float:
        """Share of the permutations whose sum is `value` or less."""
        if not self.up_to:
            step = (value + 1 - self.mean) / (self.deviation or 1.0)
            return statistics.NormalDist().cdf(step)
        return self.up_to[min(value, len(self.up_to) - 1)] / self.up_to[-1]

    def two_sided(self, value: int) -> float:
        """Twice the share of those at or beyond `value`, on the side where it is."""
        above = 1 - self.at_most(value - 1) if value else 1.0
        return min(1.0, 2 * min(self.at_most(value), above))


def _signed(ranks: Sequence[int]) -> _Distribution:
    """Of the sum of those ranks whose sign is positive."""
    counts: list[int] = []
    if len(ranks) <= EXACT:
        width = len(ranks) // 8 + 1  # bytes that hold any count: sums are added as one
        packed = 1
        for rank in ranks:
            packed += packed << 8 * rank * width
        counts = _unpacked(packed, width, sum(ranks))
    spread = math.sqrt(sum(rank * rank for rank in ranks)) / 2
    return _Distribution(counts, sum(ranks) / 2, spread)


def _chosen(ranks: Sequence[int], count: int) -> _Distribution:
    """Of the sum of `count` of the ranks."""
    size, total = len(ranks), sum(ranks)
    counts: list[int] = []
    if size <= EXACT:
        width = size // 8 + 1
        packed = [1] + [0] * count
        for rank in ranks:
            for number in range(count, 0, -1):
                packed[number] += packed[number - 1] << 8 * rank * width
        counts = _unpacked(packed[count], width, total)
    mean = total / size
    around = sum((rank - mean) ** 2 for rank in ranks)
    spread = math.sqrt(around * count * (size - count) / (size * max(1, size - 1)))
    return _Distribution(counts, count * mean, spread)


def _unpacked(packed: int, width: int, largest: int) -> list[int]:
    """Return how many have a sum of at most 0, 1, ... `largest`."""
    data = packed.to_bytes((largest + 1) * width, "little")
    each = (
        int.from_bytes(data[at : at + width], "little")
        for at in range(0, len(data), width)
    )
    return list(itertools.accumulate(each))


@functools.cache
def _outside_paired(count: int) -> int:
    """Values outside the interval on each side, of `count` rounds."""
    sums = count * (count + 1) // 2
    return _outside(_signed(range(2, 2 * count + 2, 2)), sums)


@functools.cache
def _outside_unpaired(ours: int, theirs: int) -> int:
    ranks = range(2, 2 * (ours + theirs) + 2, 2)
    return _outside(_chosen(ranks, ours), ours * theirs, sum(ranks[:ours]))


def _outside(of: _Distribution, count: int, least: int = 0) -> int:
    """How many values are outside the interval on each side; -1: there is none.

    Args:
        of: the sum's, of twice the ranks without ties.
        count: values that the interval's ends are taken from.
        least: the least sum.
    """
    outside = -1
    while 2 * (outside + 1) < count:
        if of.at_most(least + 2 * (outside + 1)) > (1 - CONFIDENCE) / 2:
            break
        outside += 1
    return outside


def _interval(ordered: Sequence[float], outside: int) -> Interval | None:
    if outside < 0:
        return None
    low, high = ordered[outside], ordered[-1 - outside]
    return Interval(math.exp(low), math.exp(high))


def _ranks(values: Sequence[float]) -> list[int]:
    """Return twice the rank of each; equal ones have the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in range(start, end):
            ranks[order[place]] = start + 1 + end
        start = end
    return ranks
