"""The report's arithmetic, against values worked out by hand."""

from __future__ import annotations

import pytest

from fastpath.report.stats import (
    Ratio,
    bootstrap_median,
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
    assert paired_ratio([1, 2, 3], [2, 4, 6]) == Ratio(0.5, 0.5, 0.5, 3)


def test_ratio_needs_as_many_rounds_on_both_sides():
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1, 2], [1])


def test_ratio_of_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="no rounds"):
        paired_ratio([], [])


def test_bootstrap_gives_the_same_interval_each_time():
    values = [0.5, 0.7, 0.6, 0.9, 0.4, 0.65]
    assert bootstrap_median(values) == bootstrap_median(values)


def test_bootstrap_interval_holds_the_median_and_stays_in_the_data():
    values = [0.5, 0.7, 0.6, 0.9, 0.4, 0.65, 0.55]
    low, high = bootstrap_median(values)
    assert min(values) <= low <= 0.6 <= high <= max(values)


def test_bootstrap_of_two_values_is_their_span():
    # A resample's median is a, b or their mean; a quarter of them are a, a
    # quarter b, so both 2.5 % ends are reached.
    assert bootstrap_median([1.0, 3.0]) == (1.0, 3.0)
