"""Whether two set-ups differ: against published values, and seeded noise."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from fastpath.report import permutation
from fastpath.report.permutation import holm, paired, unpaired

FIGURES = 7
ROUNDS = 20
RUNS = 200


def rounds(rng, count, ratio=1.0):
    """Pairs of noisy figures: drift that both have, noise, a neighbour's bursts."""
    drift = 0.0
    for _ in range(count):
        drift += rng.gauss(0, 0.1)

        def figure(drift=drift):
            burst = rng.expovariate(2.0) if rng.random() < 0.1 else 0.0
            return 100 * math.exp(drift + rng.gauss(0, 0.05) + burst)

        yield figure() * ratio, figure()


def run(rng, ratio=1.0):
    """The least adjusted p-value of a run's figures."""
    p_values = []
    for _ in range(FIGURES):
        ours, theirs = zip(*rounds(rng, ROUNDS, ratio), strict=True)
        p_values.append(paired(ours, theirs).p)
    return min(holm(p_values))


def test_two_equal_setups_show_no_difference_in_19_of_20_runs():
    rng = random.Random(13)
    wrong = sum(run(rng) < 0.05 for _ in range(RUNS))
    assert wrong <= RUNS // 20


def test_a_tenth_more_is_shown_in_19_of_20_runs():
    rng = random.Random(13)
    shown = sum(run(rng, 1.1) < 0.05 for _ in range(RUNS))
    assert shown >= RUNS - RUNS // 20


def test_a_paired_interval_holds_the_ratio_in_19_of_20_runs():
    rng = random.Random(7)
    held = 0
    for _ in range(RUNS):
        ours, theirs = zip(*rounds(rng, ROUNDS, 1.2), strict=True)
        interval = paired(ours, theirs).interval
        assert interval
        held += interval.low <= 1.2 <= interval.high
    assert held >= RUNS - RUNS // 20


@pytest.mark.parametrize(
    ("count", "below", "p"),
    # Hollander, Wolfe and Chicken, table A.4: P(T+ >= t) for n, doubled.
    [(5, 0, 0.0625), (6, 0, 0.03125), (8, 3, 0.0390625), (10, 8, 0.048828125)],
)
def test_the_paired_test_has_the_published_values(count, below, p):
    """The signed ranks whose sum is `below` are negative."""
    negative = {0: (), 3: (3,), 8: (8,)}[below]
    ours = [math.exp(-i if i in negative else i) for i in range(1, count + 1)]
    assert paired(ours, [1.0] * count).p == pytest.approx(p)


def test_the_unpaired_test_has_the_published_value():
    """4 and 5 values, U = 2: 2 * 0.032 (the same, table A.6: W = 12)."""
    ours = [1.0, 2.0, 3.0, 6.0]
    theirs = [4.0, 5.0, 7.0, 8.0, 9.0]
    assert unpaired(ours, theirs).p == pytest.approx(2 * 4 / 126)


def counted(sum_of, all_sums):
    """Twice the share of the permutations at or beyond a sum, on its side."""
    below = sum(each <= sum_of for each in all_sums)
    above = sum(each >= sum_of for each in all_sums)
    return min(1.0, 2 * min(below, above) / len(all_sums))


def test_ties_are_counted_as_every_permutation_says():
    """By going through all of them."""
    logs = [1.0, 1.0, -1.0, 2.0, 2.0, -3.0, 4.0]
    ranks = [2.0, 2.0, 2.0, 4.5, 4.5, 6.0, 7.0]
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    positive = sum(r for r, log in zip(ranks, logs, strict=True) if log > 0)
    found = paired([math.exp(x) for x in logs], [1.0] * len(logs))
    assert found.p == pytest.approx(counted(positive, sums))


def test_unpaired_ties_are_counted_as_every_permutation_says():
    ours, theirs = [1.0, 2.0, 2.0], [2.0, 3.0, 3.0, 4.0]
    ranks = [1.0, 3.0, 3.0, 3.0, 5.5, 5.5, 7.0]
    sums = [sum(each) for each in itertools.combinations(ranks, 3)]
    found = unpaired(ours, theirs)
    assert found.p == pytest.approx(counted(7.0, sums))


def test_many_rounds_take_the_normal_approximation_which_is_close(monkeypatch):
    rng = random.Random(3)
    ours, theirs = zip(*rounds(rng, 90, 1.02), strict=True)
    exact, both = paired(ours, theirs).p, unpaired(ours[:45], theirs[:45]).p
    monkeypatch.setattr(permutation, "EXACT", 1)
    assert paired(ours, theirs).p == pytest.approx(exact, abs=0.005)
    assert unpaired(ours[:45], theirs[:45]).p == pytest.approx(both, abs=0.005)


def test_equal_figures_have_the_ratio_one():
    found = paired([5.0] * 8, [5.0] * 8)
    assert (found.ratio, found.p) == (1.0, 1.0)
    assert unpaired([5.0] * 8, [5.0] * 8).p == 1.0


def test_few_rounds_have_no_interval_and_say_what_they_could_show():
    found = paired([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert found.interval is None
    assert found.least_p == 0.25
    assert paired([2.0] * 6, [1.0] * 6).interval == (2.0, 2.0)


def test_holm_is_stepwise():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
