"""How the benchmarks run: rounds that alternate, and the table at the end.

Each benchmark compares two sides. A round asks each side for one figure, one right
after the other, in turned order every other round; so what drifts hits both. A sitting
starts both sides' processes afresh, warms them up (that round is dropped) and runs a
few rounds; what is luck of a start (memory layout, a neighbour) is a part of the
interval.

The short form compares the ratio to the peer with bench/baseline.json and fails when
more than a quarter of the advantage is gone. A ratio that looks lost gets more
sittings, whose rounds count like the first ones: more evidence, not another try.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import pytest
from rich.console import Console

from bench.report import LOST, Figure, save, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    Measure = Callable[[], float]
    Side = Callable[[], AbstractContextManager[Measure]]

T = TypeVar("T")
BASELINE: Final = Path(__file__).with_name("baseline.json")
FIGURES = pytest.StashKey[list[Figure]]()
SITTINGS, ROUNDS = 3, 5
SHORT_SITTINGS, SHORT_ROUNDS = 1, 5
MORE_SITTINGS = 3


def pytest_addoption(parser):
    group = parser.getgroup("bench")
    group.addoption("--short", action="store_true", help="the short form, for CI")
    group.addoption("--out", type=Path, metavar="FILE", help="write the summary")


def pytest_configure(config):
    config.stash[FIGURES] = []
    config.addinivalue_line("markers", "long: not a part of the short form")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--short"):
        gone = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=gone)


def pytest_sessionfinish(session):
    if (out := session.config.getoption("--out")) is not None:
        save(out, session.config.stash[FIGURES])


def pytest_terminal_summary(terminalreporter, config):
    console = Console(width=118, file=terminalreporter._tw._file)
    for table in tables(config.stash[FIGURES]):
        console.print(table)


class Bench:
    """Compares two sides; what a benchmark takes as its fixture."""

    def __init__(self, benchmark: Any, config: pytest.Config) -> None:
        self.short = bool(config.getoption("--short"))
        self._benchmark = benchmark
        self._figures = config.stash[FIGURES]

    def pair(
        self,
        ours: Side,
        other: Side,
        *,
        sittings: int | None = None,
        rounds: int | None = None,
        **about: Any,
    ) -> Figure:
        """Measure, note and return the figure that `about` (Figure's) describes."""
        sittings = sittings or (SHORT_SITTINGS if self.short else SITTINGS)
        rounds = rounds or (SHORT_ROUNDS if self.short else ROUNDS)
        with _Sitting((ours, other), rounds) as sitting:
            self._benchmark.pedantic(sitting.round, rounds=sittings * rounds)
            figure = _figure(sitting.done, about)
            recorded = self._recorded(figure)
            for _ in range(MORE_SITTINGS):
                if recorded is None or figure.kept(recorded) >= LOST:
                    break
                for _ in range(rounds):
                    sitting.round()
                figure = _figure(sitting.done, about)
        self._note(figure)
        if recorded is not None and figure.kept(recorded) < LOST:
            pytest.fail(
                f"{figure.group}: {figure.title}: {figure.ratio} to the peer, recorded "
                f"{recorded:.2f}: {figure.kept(recorded):.0%} of the advantage is left",
                pytrace=False,
            )
        return figure

    def each(self, measure: Callable[[], T], *, rounds: int) -> list[T]:
        """Call `measure` a few times; return what it returned."""
        done: list[T] = []
        self._benchmark.pedantic(lambda: done.append(measure()), rounds=rounds)
        return done

    def note(self, **about: Any) -> Figure:
        """Note a figure that was measured otherwise."""
        figure = Figure(**about)
        self._note(figure)
        return figure

    def _note(self, figure: Figure) -> None:
        self._figures.append(figure)
        self._benchmark.extra_info[figure.key] = {
            "unit": figure.unit,
            "ours": figure.ours,
            figure.against: figure.other,
        }

    def _recorded(self, figure: Figure) -> float | None:
        """Return the ratio to hold on to, if this is a run that judges."""
        if not self.short or not BASELINE.exists():
            return None
        ratios: dict[str, float] = json.loads(BASELINE.read_text())["ratios"]
        return ratios.get(figure.key)


def _figure(done: Sequence[Sequence[float]], about: dict[str, Any]) -> Figure:
    ours, other = zip(*done, strict=True)
    return Figure(ours=ours, other=other, **about)


class _Sitting:
    """Rounds over sides that are started afresh every few of them."""

    def __init__(self, sides: Sequence[Side], rounds: int) -> None:
        self.done: list[tuple[float, ...]] = []
        self._sides = sides
        self._rounds = rounds
        self._left = 0
        self._open = contextlib.ExitStack()
        self._measures: list[Measure] = []

    def round(self) -> None:
        """Do one round; begin a sitting if it is time to."""
        if self._left == 0:
            self._open.close()
            self._measures = [self._open.enter_context(s()) for s in self._sides]
            for warm_up in self._measures:
                warm_up()
            self._left = self._rounds
            gc.collect()
        self._left -= 1
        order = list(enumerate(self._measures))
        figures = dict.fromkeys(range(len(order)), 0.0)
        for at, measure in order if len(self.done) % 2 else reversed(order):
            figures[at] = measure()
        self.done.append(tuple(figures.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._open.close()


@pytest.fixture
def bench(benchmark, pytestconfig):
    return Bench(benchmark, pytestconfig)


@pytest.fixture(scope="session", autouse=True)
def _two_cpus():
    """Every benchmark is pinned to CPU 0, or to CPUs 0 and 1."""
    try:
        os.sched_setaffinity(0, {0, 1})
    except OSError:
        pytest.skip("the benchmarks need CPUs 0 and 1")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("the benchmarks need CPUs 0 and 1")
