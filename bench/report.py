"""What a run of the benchmarks found: figures, targets, the table, the JSON.

`python -m bench.report FILE` prints a run's JSON as the Markdown tables of
docs/measurements.md. A figure is ours beside another one: the peer's, or our own in
another setting. Its ratio is paired by rounds (fastpath.report.stats).
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.table import Table

from fastpath import files
from fastpath.report.stats import Ratio, median_interval, paired_ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LOST: Final = 0.75
"""Below this share of the recorded advantage, the advantage counts as lost."""
_VERDICTS: Final = {None: "not shown", True: "met", False: "not met"}
MARKDOWN_HEADER: Final = (
    "| measure | ours | against | ratio (95 % interval) | target | |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A bound from the issue, on the ratio or on our own figure."""

    bound: float
    of: Literal["ratio", "ours"] = "ratio"

    def text(self, *, less: bool, unit: str) -> str:
        """Say it; `less`: lower is better."""
        sign = "<=" if less else ">="
        after = "x" if self.of == "ratio" else f" {unit}"
        return f"{sign} {self.bound:g}{after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    key: str
    """Names it in bench/baseline.json."""
    group: str
    title: str
    unit: str
    less: bool
    """Lower is better."""
    ours: tuple[float, ...]
    """One figure a round."""
    other: tuple[float, ...] = ()
    """The other side's, in the same rounds; empty: there is none."""
    against: str = "peer"
    target: Target | None = None
    timed: bool = True
    """It comes from a clock, so that it means something on a quiet machine only."""
    recorded: bool | None = None
    """bench/baseline.json has it; None: it has, if this is beside the peer."""

    @property
    def ratio(self) -> Ratio | None:
        """Ours over the other."""
        return paired_ratio(self.ours, self.other) if self.other else None

    @property
    def met(self) -> bool | None:
        """Whether the target is, by a ratio's whole interval; None: not shown."""
        if self.target is None:
            return None
        ends: Sequence[float] = (statistics.median(self.ours),)
        if self.target.of == "ratio":
            assert self.ratio is not None
            ends = self.ratio.interval or ()
        bound = self.target.bound
        reached = {end <= bound if self.less else end >= bound for end in ends}
        return reached.pop() if len(reached) == 1 else None

    @property
    def worth(self) -> float:
        """What bench/baseline.json records: the ratio, or what stands alone."""
        return self.ratio.median if self.ratio else statistics.median(self.ours)

    @property
    def best(self) -> float:
        """The better end of where `worth` is: of its interval, or of a few rounds."""
        rounds = self.ours
        if self.other:
            rounds = tuple(a / b for a, b in zip(self.ours, self.other, strict=True))
        ends = median_interval(rounds) or rounds
        return min(ends) if self.less else max(ends)

    def kept(self, recorded: float, worth: float | None = None) -> float:
        """Return which share of a recorded advantage is still there."""
        worth = self.worth if worth is None else worth
        return recorded / worth if self.less else worth / recorded

    def words(self, worth: float) -> str:
        """Say what is recorded."""
        return (
            f"{worth:.2f}x {self.against}" if self.ratio else f"{worth:g} {self.unit}"
        )

    def cells(self) -> tuple[str, ...]:
        """Return the columns of the table: title to verdict."""
        ratio = self.ratio
        other = f"{number(statistics.median(self.other))}" if self.other else ""
        if self.other and self.against != "peer":
            other += f" ({self.against})"
        return (
            f"{self.title}, {self.unit}" if self.unit else self.title,
            number(statistics.median(self.ours)),
            other,
            _ratio_cell(ratio) if ratio else "",
            self.target.text(less=self.less, unit=self.unit) if self.target else "",
            _VERDICTS[self.met] if self.target else "",
        )


def _ratio_cell(ratio: Ratio) -> str:
    if ratio.interval is None:
        return f"{ratio.median:.2f}x"
    return f"{ratio.median:.2f}x ({ratio.interval.low:.2f} - {ratio.interval.high:.2f})"


def number(value: float) -> str:
    """Three digits that matter."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def machine() -> dict[str, Any]:
    """Return what the figures hold for; `load` is of 15 minutes, the run included."""
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "date": datetime.now(UTC).date().isoformat(),
        "load": round(os.getloadavg()[2], 1),
    }


def tables(figures: Iterable[Figure]) -> list[Table]:
    """Return one rich table a group."""
    out: dict[str, Table] = {}
    for figure in figures:
        if figure.group not in out:
            out[figure.group] = Table(
                figure.group, "ours", "other", "ratio, 95 % interval", "target", ""
            )
        *cells, verdict = figure.cells()
        style = {"met": "green", "not met": "red", "not shown": "yellow"}.get(
            verdict, ""
        )
        out[figure.group].add_row(*cells, f"[{style}]{verdict}[/]" if style else "")
    return list(out.values())


def save(path: Path, figures: Sequence[Figure]) -> None:
    """Write the summary of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        dataclasses.asdict(figure)
        | {
            "ratio": figure.ratio and dataclasses.asdict(figure.ratio),
            "met": figure.met,
        }
        for figure in figures
    ]
    text = json.dumps({"machine": machine(), "figures": rows}, indent=1)
    files.replace(path, text + "\n")


def load(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """Read what `save` wrote: the machine, and the figures."""
    run = json.loads(path.read_text())
    figures = []
    for row in run["figures"]:
        del row["ratio"], row["met"]
        target = row.pop("target")
        row["ours"], row["other"] = tuple(row["ours"]), tuple(row["other"])
        figures.append(Figure(**row, target=target and Target(**target)))
    return run["machine"], figures


def baseline(runs: Sequence[Path]) -> dict[str, Any]:
    """Return what bench/baseline.json records of runs: the least of each figure.

    Ratios across cores depend on what waking one costs, so on the machine.
    """
    machines = []
    least: dict[str, float] = {}
    for run in runs:
        on, figures = load(run)
        machines.append(on)
        for figure in figures:
            beside_the_peer = bool(figure.other) and figure.against == "peer"
            if not (beside_the_peer if figure.recorded is None else figure.recorded):
                continue
            if figure.kept(least.get(figure.key, figure.worth)) <= 1:
                least[figure.key] = round(figure.worth, 3)
    return {"machines": machines, "figures": least}


def markdown(on: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Return the tables for docs/measurements.md."""
    where = f"{on['cpus']} CPUs of {on['cpu']}, Linux {on['kernel']}, {on['date']}"
    lines = [f"{where}."]
    for group in dict.fromkeys(figure.group for figure in figures):
        lines += ["", f"### {group}", MARKDOWN_HEADER]
        for figure in figures:
            if figure.group == group:
                lines.append(f"| {' | '.join(figure.cells())} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """`FILE`: print Markdown; `--baseline FILE...`: print the baseline."""
    if argv[0] == "--baseline":
        found = baseline([Path(name) for name in argv[1:]])
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        sys.stdout.write(markdown(*load(Path(argv[0]))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
