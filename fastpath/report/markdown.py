"""The report as Markdown, for a pull request: verdicts first, then figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastpath import files
from fastpath.report.figures import METRICS
from fastpath.report.table import (
    difference_cells,
    machine_lines,
    median_of,
    thresholds_line,
    variant_line,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from fastpath.report.model import Report, Verdict


def write(report: Report, path: Path) -> None:
    """Write the report to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    files.replace(path, render(report))


def render(report: Report) -> str:
    """Return the report."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"### fastpath compare: {', '.join(f'`{name}`' for name in report.paths)}"
    for warning in (*report.warnings, *report.left_out_lines):
        yield from ("", f"> **Warning:** {_text(warning)}")
    for variant in report.variants:
        if variant.failure:
            words = f"variant {variant.name}: {variant_line(variant)}"
            yield from ("", f"> **{_text(words)}**")
    for pair, differences in report.differences.items():
        head = (f"`{pair}`", "ratio", "95 % interval", "p", "verdict")
        rows = [(d.metric.title, *difference_cells(d)) for d in differences]
        yield from _table(head, rows)
    if report.differences:
        yield from ("", thresholds_line(report.thresholds))
    for pair, verdicts in report.verdicts.items():
        yield from _table(
            (f"`{pair}`", "ratio", "95 % interval", "target", ""),
            [_verdict(each) for each in verdicts],
        )
    yield from _table(("median of the rounds", *report.paths), _figures(report))
    yield from ("", "<details><summary>machine</summary>", "")
    for name, value in machine_lines(report):
        yield f"- {name}: {_text(value)}"
    yield from ("", "</details>")


def _verdict(verdict: Verdict) -> tuple[str, ...]:
    ends = verdict.ratio.interval or ()
    return (
        verdict.metric.title,
        f"{verdict.ratio.median:.2f}x",
        " - ".join(f"{end:.2f}" for end in ends) or "none",
        verdict.metric.target,
        verdict.words,
    )


def _figures(report: Report) -> Iterator[tuple[str, ...]]:
    paths = report.paths.values()
    for metric in METRICS:
        if any(path.has(metric.key) for path in paths):
            yield (
                metric.words,
                *(median_of(metric, path) for path in paths),
            )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield _row(head)
    yield "|---" + "|--:" * (len(head) - 1) + "|"
    yield from (_row([_text(cell) for cell in row]) for row in rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(words: str) -> str:
    """Text without what Markdown or HTML would take for markup."""
    for mark in "\\`*_[]|<>":
        words = words.replace(mark, f"\\{mark}")
    return " ".join(words.split())
