"""How the benchmarks run: rounds that alternate, and the table at the end.

Each benchmark compares two sides. A round asks each side for one figure, one right
after the other, in turned order every other round; so what drifts hits both. A sitting
starts both sides' processes afresh, warms them up (that round is dropped) and runs a
few rounds; what is luck of a start (memory layout, a neighbour) is a part of the
interval.

The short form compares figures with bench/baseline.json and fails when more than a
quarter of an advantage is gone: of a timing, by its interval's better end, or by the
best of a few rounds. A ratio to the peer that looks lost gets more sittings, whose
rounds count like the first ones: more evidence, not another try.

Timings are judged on a quiet machine only (`bench.quiet`): what an unquiet one makes
of them is said in the summary and fails nothing. Sizes and counts are judged on any.
That each side does what it should, byte for byte, is asserted in any case.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import pytest
from rich.console import Console

from bench import harness, quiet
from bench.report import LOST, Figure, save, tables
from fastpath.errors import FastpathError
from fastpath.image import programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    Measure = Callable[[], float]
    Measures = Callable[[], Sequence[float]]
    Side = Callable[[], AbstractContextManager[Measure]]
    Sides = Callable[[], AbstractContextManager[Measures]]

T = TypeVar("T")
W = TypeVar("W")
BASELINE: Final = Path(__file__).with_name("baseline.json")
FIGURES = pytest.StashKey[list[Figure]]()
UNJUDGED = pytest.StashKey[list[str]]()
SITTINGS, SHORT_SITTINGS = 3, 1
ROUNDS = 5
MORE_SITTINGS = 3


def pytest_addoption(parser):
    group = parser.getgroup("bench")
    group.addoption("--short", action="store_true", help="the short form, for CI")
    group.addoption(
        "--against",
        type=Path,
        metavar="DIR",
        help="not the peer, but this checkout's build of ours (after its make setup)",
    )
    group.addoption(
        "--ztunnel", type=Path, metavar="BIN", help="Istio's, to be measured, too"
    )
    group.addoption("--out", type=Path, metavar="FILE", help="write the summary")


def pytest_configure(config):
    config.stash[FIGURES] = []
    harness.ANOTHER = config.getoption("--against")
    config.stash[UNJUDGED] = []
    config.addinivalue_line("markers", "long: not a part of the short form")


def pytest_collection_modifyitems(config, items):
    left_out = {
        "long": config.getoption("--short"),
        "ztunnel": config.getoption("--ztunnel") is None,
    }
    marks = [mark for mark, out in left_out.items() if out]
    gone = [item for item in items if any(map(item.get_closest_marker, marks))]
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=gone)


def pytest_sessionfinish(session):
    if (out := session.config.getoption("--out")) is not None:
        save(out, session.config.stash[FIGURES])


def pytest_terminal_summary(terminalreporter, config):
    console = Console(width=118, file=terminalreporter._tw._file)
    for table in tables(config.stash[FIGURES]):
        console.print(table)
    for line in config.stash[UNJUDGED]:
        terminalreporter.write_line(f"not judged: {line}")


class Bench:
    """Compares two sides; what a benchmark takes as its fixture."""

    def __init__(self, benchmark: Any, config: pytest.Config) -> None:
        self.short = bool(config.getoption("--short"))
        self._benchmark = benchmark
        self._figures = config.stash[FIGURES]
        self._unjudged = config.stash[UNJUDGED]

    def pair(self, ours: Side, other: Side, **about: Any) -> Figure:
        """Measure, note and return the figure that `about` (Figure's) describes."""
        (figure,) = self.pairs(_one_figure(ours), _one_figure(other), [about])
        return figure

    def pairs(
        self, ours: Sides, other: Sides, about: Sequence[dict[str, Any]]
    ) -> Sequence[Figure]:
        """Measure sides that give several figures a round; note and return each."""
        sittings = SHORT_SITTINGS if self.short else SITTINGS
        noise = ""
        with _Sitting((ours, other), ROUNDS) as sitting:
            self._benchmark.pedantic(sitting.round, rounds=sittings * ROUNDS)
            figures = _figures(sitting.done, about)
            for _ in range(MORE_SITTINGS):
                if not any(map(self._lost, figures)) or (noise := quiet.noise()):
                    break
                for _ in range(ROUNDS):
                    sitting.round()
                figures = _figures(sitting.done, about)
        self._note(figures, noise)
        return figures

    def each(self, measure: Callable[[], T], *, rounds: int) -> list[T]:
        """Call `measure` a few times; return what it returned."""
        done: list[T] = []
        self._benchmark.pedantic(lambda: done.append(measure()), rounds=rounds)
        return done

    def turns(
        self, ways: Sequence[W], measure: Callable[[W], T], *, rounds: int, short: int
    ) -> list[dict[W, T]]:
        """Measure the ways in turns, in turned order; the first round is dropped."""
        order = list(ways)

        def one_round() -> dict[W, T]:
            order.append(order.pop(0))
            return {way: measure(way) for way in order}

        one_round()
        return self.each(one_round, rounds=short if self.short else rounds)

    def note(self, **about: Any) -> None:
        """Note a figure that was measured otherwise."""
        figure = Figure(**about)
        noise = quiet.noise() if figure.timed and self._lost(figure) else ""
        self._note([figure], noise)

    def _note(self, figures: Sequence[Figure], noise: str = "") -> None:
        """Take figures into the report; fail if one is lost and there is no `noise`."""
        for figure in figures:
            self._figures.append(figure)
            self._benchmark.extra_info[figure.key] = {
                "unit": figure.unit,
                "ours": figure.ours,
                figure.against: figure.other,
            }
        if lost := "; ".join(filter(None, map(self._lost, figures))):
            if not noise:
                pytest.fail(lost, pytrace=False)
            self._unjudged.append(f"{noise}: {lost}")

    def _lost(self, figure: Figure) -> str:
        """Say how much of the recorded advantage is gone; "": enough may be left."""
        if not self.short or harness.ANOTHER or not BASELINE.exists():
            return ""
        recorded = json.loads(BASELINE.read_text())["figures"].get(figure.key)
        if recorded is None:
            return ""
        kept = figure.kept(recorded, figure.best if figure.timed else figure.worth)
        if kept >= LOST:
            return ""
        return (
            f"{figure.group}: {figure.title}: {figure.words(figure.worth)} over "
            f"{len(figure.ours)} rounds, recorded {figure.words(recorded)}: "
            f"{kept:.0%} of it is left"
        )


def _one_figure(side: Side) -> Sides:
    @contextmanager
    def run() -> Iterator[Measures]:
        with side() as measure:
            yield lambda: (measure(),)

    return run


def _figures(
    done: Sequence[Sequence[Sequence[float]]], about: Sequence[dict[str, Any]]
) -> list[Figure]:
    """Turn rounds of sides of figures into figures of sides of rounds."""
    ours, other = (list(zip(*side, strict=True)) for side in zip(*done, strict=True))
    return [
        Figure(ours=mine, other=its, **words)
        for mine, its, words in zip(ours, other, about, strict=True)
    ]


class _Sitting:
    """Rounds over sides that are started afresh every few of them."""

    def __init__(self, sides: Sequence[Sides], rounds: int) -> None:
        self.done: list[list[Sequence[float]]] = []
        self._sides = sides
        self._rounds = rounds
        self._left = 0
        self._open = contextlib.ExitStack()
        self._measures: list[Measures] = []

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
        figures = [measure() for measure in self._order(self._measures)]
        self.done.append(self._order(figures))

    def _order(self, sides: list[T]) -> list[T]:
        """Turn sides round every other time, or back."""
        return sides[::-1] if len(self.done) % 2 else sides

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._open.close()


@pytest.fixture
def bench(benchmark, pytestconfig):
    return Bench(benchmark, pytestconfig)


@pytest.fixture(scope="session", autouse=True)
def _peer():
    """Without the peer there is nothing to measure against: the run ends."""
    try:
        programs.unpack(programs.VHOST_DEVICE_VSOCK)
    except FastpathError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session", autouse=True)
def _two_cpus():
    """Every benchmark is pinned to CPU 0, or to CPUs 0 and 1."""
    try:
        os.sched_setaffinity(0, {0, 1})
    except OSError:
        pytest.skip("the benchmarks need CPUs 0 and 1")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("the benchmarks need CPUs 0 and 1")
