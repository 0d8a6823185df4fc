"""The arithmetic of the report: quantiles, and ratios with an interval.

A ratio of two paths is the median of the per-round ratios: both sides of one
pair ran next to each other, so what drifts on the machine (clock, caches,
neighbours) falls out of it. Its interval is a percentile bootstrap over the
rounds (Efron, "Bootstrap methods: another look at the jackknife", 1979): no
assumption about the distribution, and with a fixed seed the same input gives
the same interval.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES: Final = 5000
"""Bootstrap resamples; the ends of a 95 % interval move by < 1 % beyond it."""

SEED: Final = 20240501
"""Any fixed number: it makes an interval repeatable."""


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
    low: float
    high: float
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
    """Return the median of `ours[i] / theirs[i]` with its bootstrap interval.

    Args:
        ours: one figure a round, above zero.
        theirs: the other path's, in the same rounds and the same order.

    Raises:
        ValueError: there is no round, or the lengths differ.
    """
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    if not pairs:
        raise ValueError("no rounds")
    low, high = bootstrap_median(pairs)
    return Ratio(statistics.median(pairs), low, high, len(pairs))


def bootstrap_median(
    values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the median of `values`."""
    rng = random.Random(seed)  # noqa: S311 - statistics, not secrets
    medians = sorted(
        statistics.median(rng.choices(values, k=len(values))) for _ in range(resamples)
    )
    return quantile(medians, 0.025), quantile(medians, 0.975)
