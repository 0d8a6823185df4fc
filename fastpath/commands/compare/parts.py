"""A run in parts: each standard path has its own namespaces, and so its own ztunnel.

Each part has the fast path, too, in the same microVM, so that a ratio is of one part's
rounds. One that can't be built, or breaks, is left out with the reason; the others go
on. Who interrupts a run gets the parts that are done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastpath.commands.compare.paths import PATHS
from fastpath.errors import FastpathError
from fastpath.report.figures import FAST_PATH
from fastpath.report.model import LeftOut, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastpath.report.model import PathResult

METHOD: Final = (
    "Each standard path has a part of the run, with namespaces, a ztunnel process and "
    "a microVM of its own, in which the fast path is measured beside it; a ratio is of "
    "the rounds of one part. Elsewhere the fast path's figures are the first part's."
)


def divide(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Divide a run's paths: one standard path each, and those that need none.

    Raises:
        FastpathError: there would be several without the fast path in them.
    """
    standard = [name for name in names if PATHS[name].standard]
    if len(standard) < 2:
        return (tuple(names),)
    if FAST_PATH not in names:
        raise FastpathError(
            f"--paths {','.join(names)}",
            "more than one standard path, and nothing that stands beside each",
            f"name {FAST_PATH}, too",
        )
    parts: list[tuple[str, ...]] = [(FAST_PATH, name) for name in standard]
    for namespaces in (True, False):  # there may be no right to make them
        others = tuple(
            name
            for name in names
            if not PATHS[name].standard
            and name != FAST_PATH
            and PATHS[name].namespaces is namespaces
        )
        parts += [(FAST_PATH, *others)] if others else []
    return tuple(parts)


def measure(
    parts: Sequence[tuple[str, ...]],
    measure_one: Callable[[tuple[str, ...]], tuple[Report | None, int]],
    say: Callable[[str], None],
) -> tuple[Report | None, int]:
    """Measure each part, and put together what there is.

    Args:
        parts: the paths of each.
        measure_one: returns its report, if anything was measured, and the signal that
            ended it.
        say: told which part it is.

    Returns:
        The same for all.

    Raises:
        FastpathError: nothing can be measured.
    """
    reports: list[Report] = []
    left_out: list[LeftOut] = []
    said = ""
    ended_by = 0
    for number, part in enumerate(parts, start=1):
        own = [name for name in part if name != FAST_PATH]
        say(f"part {number} of {len(parts)}: {', '.join(own)}")
        try:
            report, ended_by = measure_one(part)
        except FastpathError as exc:
            why = f"{exc.what}: {exc.why}"
            left_out += [LeftOut(name=name, why=why, hint=exc.hint) for name in own]
            words = "as that one" if str(exc) == said else str(exc)
            said = str(exc)
            say(f"left out: {words}")
            continue
        if report:
            reports.append(report)
        if ended_by:
            break
    if reports:
        return together(reports, [n for p in parts for n in p], left_out), ended_by
    if ended_by:
        return None, ended_by
    first = left_out[0]
    raise FastpathError("no path can be measured here", first.why, first.hint)


def together(
    reports: Sequence[Report], names: Sequence[str], left_out: Sequence[LeftOut]
) -> Report:
    """Make one report of those of some parts."""
    found: dict[str, PathResult] = {}
    for report in reports:
        beside = report.paths[FAST_PATH]
        for name, path in report.paths.items():
            if name == FAST_PATH:
                found.setdefault(name, path)
            else:
                found[name] = replace(path, beside=beside)
    settings = [report.setting for report in reports]
    first = settings[0]

    def each(of: Callable[[Report], Sequence[str]]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line for report in reports for line in of(report)))

    return replace(
        reports[0],
        paths={name: found[name] for name in dict.fromkeys(names) if name in found},
        left_out=tuple(left_out),
        setting=replace(
            first,
            geneve=next((it.geneve for it in settings if it.geneve), None),
            clocksource=", ".join(
                sorted({x for it in settings for x in it.clocksource.split(", ")})
            ),
            calls_note=next((it.calls_note for it in settings if it.calls_note), ""),
            method=(*max((it.method for it in settings), key=len), METHOD),
            checks=each(lambda report: report.setting.checks),
            warnings=each(lambda report: report.setting.warnings),
        ),
    )
