"""What two set-ups of one path differ by: better, worse, or nothing that is shown.

A figure is better or worse where two things hold: the permutation test's p-value,
adjusted for all figures of the run (`permutation.holm`), is below `Thresholds.alpha`,
and the ratio is off 1 by `Thresholds.least` or more. Two instances of one set-up do
differ by a percent or two, by where their memory lies, and that is no news.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.report import permutation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastpath.report.figures import Metric, Round
    from fastpath.report.permutation import Shift
    from fastpath.report.stats import Interval

ALPHA: Final = 0.05
LEAST: Final = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What counts as a difference."""

    alpha: float = ALPHA
    """A run of two equal set-ups shows one with at most this probability."""
    least: float = LEAST
    """A share by which the ratio has to be off 1."""


class Change(enum.Enum):
    """What a figure shows."""

    BETTER = "better"
    WORSE = "worse"
    NONE = "no difference"
    UNKNOWN = "too few rounds"
    """However they came out, they could not have shown one."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of one set-up over another's."""

    metric: Metric
    ratio: float
    interval: Interval | None
    p: float
    """Adjusted for all figures of the run."""
    verdict: Change


def paired(key: str, ours: Sequence[Round], theirs: Sequence[Round]) -> Shift:
    """Compare a figure of the same rounds."""
    first = [each.figure(key) for each in ours]
    second = [each.figure(key) for each in theirs]
    return permutation.paired(first, second)


def unpaired(key: str, ours: Sequence[Round], theirs: Sequence[Round]) -> Shift:
    """Compare a figure of two runs."""
    first = [each.figure(key) for each in ours]
    second = [each.figure(key) for each in theirs]
    return permutation.unpaired(first, second)


def judged(
    found: Mapping[str, Sequence[tuple[Metric, Shift]]], thresholds: Thresholds
) -> dict[str, tuple[Difference, ...]]:
    """Judge all figures of a run together.

    Args:
        found: by what is compared.
        thresholds: what counts.
    """
    every = [shift for shifts in found.values() for _, shift in shifts]
    p_values = iter(permutation.holm([shift.p for shift in every]))
    least = iter([shift.least_p * len(every) for shift in every])
    return {
        what: tuple(
            _judge(metric, shift, next(p_values), next(least), thresholds)
            for metric, shift in shifts
        )
        for what, shifts in found.items()
    }


def _judge(
    metric: Metric, shift: Shift, p: float, least_p: float, thresholds: Thresholds
) -> Difference:
    low, high = 1 / (1 + thresholds.least), 1 + thresholds.least
    if p >= thresholds.alpha or low < shift.ratio < high:
        few = least_p >= thresholds.alpha
        verdict = Change.UNKNOWN if few else Change.NONE
    elif (shift.ratio > 1) is metric.more_is_better:
        verdict = Change.BETTER
    else:
        verdict = Change.WORSE
    return Difference(metric, shift.ratio, shift.interval, p, verdict)
