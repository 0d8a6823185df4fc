"""What bench/baseline.json records, and when a figure that got worse fails a run."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from bench import conftest, quiet
from bench.report import Figure, baseline, save

NOISY = "a loop on CPU 0 got 40% of it"


def figure(key="k", *, less=True, **more) -> Figure:
    about = {"key": key, "group": "g", "title": "t", "unit": "us", "less": less}
    return Figure(**(about | {"ours": (2.0, 4.0, 3.0)} | more))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The fixture of the benches, in short, with a baseline of its own."""
    recorded = tmp_path / "baseline.json"
    recorded.write_text(json.dumps({"figures": {"k": 1.0}}))
    monkeypatch.setattr(conftest, "BASELINE", recorded)
    stash: Any = {conftest.FIGURES: [], conftest.UNJUDGED: []}
    config: Any = SimpleNamespace(stash=stash, getoption=lambda name: name == "--short")
    return conftest.Bench(SimpleNamespace(extra_info={}), config)


def noted(bench, **more):
    """Note a figure; return what was said and failed nothing."""
    about = {"key": "k", "group": "g", "title": "t", "unit": "us", "less": True}
    bench.note(**(about | more))
    return bench._unjudged


def test_a_figure_alone_is_worth_its_median_and_one_beside_another_their_ratio():
    assert figure().worth == 3.0
    assert figure(other=(4.0, 8.0, 6.0)).worth == 0.5
    assert figure().kept(1.5) == 0.5
    assert figure(less=False).kept(1.5) == 2.0


def test_a_lost_timing_fails_on_a_quiet_machine(bench, monkeypatch):
    monkeypatch.setattr(quiet, "noise", lambda: "")
    with pytest.raises(pytest.fail.Exception, match=r"recorded 1 us: 50% of it"):
        noted(bench, ours=(2.0,))


def test_a_lost_timing_is_only_said_on_an_unquiet_one(bench, monkeypatch):
    monkeypatch.setattr(quiet, "noise", lambda: NOISY)
    (line,) = noted(bench, ours=(2.0,))
    assert line.startswith(NOISY)


def test_a_timing_is_lost_only_if_all_of_its_interval_is(bench, monkeypatch):
    monkeypatch.setattr(quiet, "noise", lambda: "")
    assert noted(bench, ours=(2.0, 1.3, 2.0)) == []  # a round that nothing disturbed
    assert noted(bench, ours=(2.0,) * 6, other=(1.0, 2.0) * 3) == []
    assert noted(bench, ours=(1.0, 0.5, 0.5), less=False) == []
    one_of_ten = (1.0, *9 * [2.0])  # is below the interval
    with pytest.raises(pytest.fail.Exception, match=r"50% of it"):
        noted(bench, ours=one_of_ten, other=10 * (1.0,))


def test_of_a_size_the_median_counts(bench):
    with pytest.raises(pytest.fail.Exception):
        noted(bench, ours=(2.0, 1.0, 2.0), timed=False)


def test_a_lost_size_fails_on_any_machine(bench, monkeypatch):
    monkeypatch.setattr(quiet, "noise", lambda: NOISY)
    with pytest.raises(pytest.fail.Exception):
        noted(bench, ours=(2.0,), timed=False)


def test_what_keeps_three_quarters_of_it_is_well(bench, monkeypatch):
    monkeypatch.setattr(quiet, "noise", lambda: "")
    assert noted(bench, ours=(1.33,)) == []


def test_the_baseline_has_the_least_of_what_is_recorded(tmp_path):
    runs = []
    for name, ours in (("a", 2.0), ("b", 3.0)):
        runs.append(tmp_path / name)
        figures = [
            figure("alone"),
            figure("size", ours=(ours,), recorded=True),
            figure("peer", ours=(ours,), other=(1.0,)),
            figure("else", ours=(ours,), other=(1.0,), against="plain"),
            figure("more", less=False, ours=(ours,), other=(1.0,)),
        ]
        save(runs[-1], figures)
    found = baseline(runs)["figures"]
    assert found == {"size": 3.0, "peer": 3.0, "more": 2.0}
