"""`fastpath report`: what was measured before, looked at again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text

from fastpath import stdio
from fastpath.errors import FastpathError
from fastpath.report import difference, jsonfile
from fastpath.report.difference import Change, Difference, Thresholds
from fastpath.report.figures import COMPARED
from fastpath.report.table import differences_table, thresholds_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fastpath.report.jsonfile import Run

EXIT_WORSE: Final = 1
WEAKER: Final = (
    "Two runs: what changed on the machine between them is in each ratio, and no test "
    "tells it from what is compared. compare --variant measures both by turns."
)


def diff(first: Path, second: Path, thresholds: Thresholds, *, check: bool) -> int:
    """Show what the second run's figures differ by; return the exit status.

    Args:
        first: what the other is compared with.
        second: the other.
        thresholds: what counts as a difference.
        check: status 1 if a figure is worse.

    Raises:
        FastpathError: a file can't be read, or they have nothing in common.
    """
    before, after = jsonfile.read(first), jsonfile.read(second)
    found = differences(before, after, thresholds)
    if not any(found.values()):
        why = f"{first} has {_names(before)}, {second} has {_names(after)}"
        raise FastpathError("no figure is in both files", why)
    console = stdio.console()
    for warning in warnings(before, after):
        console.print(Text(f"warning: {warning}", style="bold yellow"))
    for name, each in found.items():
        counts = f"{len(after.paths[name])} and {len(before.paths[name])} rounds"
        title = f"{name}, of {second.name} / {first.name}: {counts}"
        console.print(differences_table(title, each))
    console.print(Text(thresholds_line(thresholds), style="dim"))
    worse = any(d.verdict is Change.WORSE for each in found.values() for d in each)
    return EXIT_WORSE if check and worse else 0


def differences(
    before: Run, after: Run, thresholds: Thresholds
) -> Mapping[str, tuple[Difference, ...]]:
    """Compare what two runs have both, by path."""
    both = [name for name in after.paths if name in before.paths]
    return difference.judged(
        {
            name: [
                (metric, difference.unpaired(metric.key, ours, theirs))
                for metric in COMPARED
                if all(metric.key in each for each in (*ours, *theirs))
            ]
            for name, ours, theirs in (
                (name, after.paths[name], before.paths[name]) for name in both
            )
            if ours and theirs
        },
        thresholds,
    )


def warnings(before: Run, after: Run) -> list[str]:
    """What makes the comparison less than it looks."""
    found = [WEAKER]
    if before.host != after.host:
        found.append(f"the machines differ: {before.host}; {after.host}")
    if before.accel != after.accel:
        found.append(f"the accelerators differ: {before.accel}; {after.accel}")
    for which, run in (("first", before), ("second", after)):
        found += [f"of the {which} run: {each}" for each in run.warnings]
    return found


def _names(run: Run) -> str:
    return ", ".join(run.paths) or "nothing"
