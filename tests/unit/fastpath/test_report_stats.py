"""The report's arithmetic, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from fastpath.report.stats import (
    Interval,
    Ratio,
    median_interval,
    paired_ratio,
    quantile,
    summarize,
)


@pytest.mark.parametrize(
    ("share", "value"),
    [(0.0, 10), (0.25, 17.5), (0.5, 25), (0.99, 39.7), (1.0, 40)],
)
def test_quantile_is_linear_between_neighbours(share, value):
    assert quantile([10, 20, 30, 40], share) == pytest.approx(value)


def test_quantile_of_one_sample_is_that_sample():
    assert quantile([7.0], 0.99) == 7.0


def test_quantile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


def test_summary_sorts_and_scales():
    summary = summarize([3000, 1000, 2000], scale=1e-3)
    assert (summary.p50, summary.min, summary.n) == (2.0, 1.0, 3)
    assert summary.p99 == pytest.approx(2.98)


def test_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_medians():
    # Pairs 0.1, 2, 0.5: median 0.5; the medians are 10 and 10.
    ratio = paired_ratio([1, 20, 10], [10, 10, 20])
    assert ratio.median == 0.5
    assert ratio.pairs == 3


def test_ratio_of_equal_pairs_has_an_interval_of_no_width():
    pairs = [1, 2, 3, 4, 5, 6], [2, 4, 6, 8, 10, 12]
    assert paired_ratio(*pairs) == Ratio(0.5, Interval(0.5, 0.5), 6)


def test_a_ratio_of_few_rounds_has_no_interval():
    assert paired_ratio([1, 2, 3], [2, 4, 6]) == Ratio(0.5, None, 3)


def test_ratio_needs_as_many_rounds_on_both_sides():
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1, 2], [1])


def test_ratio_of_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="no rounds"):
        paired_ratio([], [])


# Least and largest place (from 1) of the two order statistics, and the coverage
# 1 - 2 P(fewer than k of n) worked out by hand: 1 - 2/64, 1 - 2*(1+8)/256 and so on.
@pytest.mark.parametrize(
    ("count", "places"),
    [
        pytest.param(6, (1, 6), id="6-97 %"),
        pytest.param(8, (1, 8), id="8-99 %"),  # (2, 7): 93 %
        pytest.param(9, (2, 8), id="9-96 %"),
        pytest.param(12, (3, 10), id="12-96 %"),
        pytest.param(20, (6, 15), id="20-96 %"),
    ],
)
def test_an_interval_is_of_two_order_statistics(count, places):
    values = [float(place) for place in range(count, 0, -1)]
    assert median_interval(values) == places


@pytest.mark.parametrize("count", range(6))
def test_fewer_than_six_values_have_no_interval(count):
    """The span of five holds the median in 94 % of runs only."""
    assert median_interval([1.0] * count) is None


@pytest.mark.parametrize("count", [6, 7, 9, 14, 20, 33])
def test_an_interval_holds_the_median_in_at_least_95_percent_of_runs(count):
    """Counted, not drawn: all patterns of values below and above the median."""
    low, high = median_interval(list(map(float, range(count)))) or (0.0, 0.0)
    missed = sum(
        math.comb(count, below)
        for below in range(count + 1)
        if not low < below <= high  # as many values are below the median
    )
    assert missed / 2**count <= 0.05
