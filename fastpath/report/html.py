"""The report as one HTML page: no script, no asset, light and dark.

The page is the same content as the terminal's table plus the distributions; a
reader who was not there finds the method and the machine on it.
"""

from __future__ import annotations

import base64
import gzip
import json
from html import escape
from typing import TYPE_CHECKING, Final

from fastpath import files
from fastpath.report import hops, jsonfile, svg
from fastpath.report.figures import BY_KEY
from fastpath.report.table import (
    costs,
    difference_cells,
    hand_off_titles,
    interval_words,
    load_rows,
    machine_lines,
    thresholds_line,
    variant_line,
    verdict_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from fastpath.report.model import PathResult, Report, Verdict
    from fastpath.report.stats import Summary

STYLE: Final = """
:root { color-scheme: light dark;
  --page: #fbfbfa; --card: #fff; --ink: #1d2327; --soft: #5d676e; --rule: #dfe3e6;
  --path0: #0b7285; --path1: #d9480f; --path2: #6741d9; --path3: #5c940d;
  --path4: #c2255c; --path5: #1c4fd6; --path6: #6b5a51; --path7: #a17a00;
  --good: #2b8a3e; --bad: #c92a2a; --open: #9c5700; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14181b; --card: #1c2226; --ink: #e6eaed; --soft: #9aa5ac; --rule: #333c42;
  --path0: #3bc9db; --path1: #ff922b; --path2: #b197fc; --path3: #a9e34b;
  --path4: #f783ac; --path5: #7a9cff; --path6: #d2bab0; --path7: #ffe066;
  --good: #69db7c; --bad: #ff8787; --open: #ffd43b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 40px 0 12px; }
h3 { font-size: .95rem; margin: 0 0 8px; }
p { margin: 0 0 8px; max-width: 75ch; }
.soft, caption, th { color: var(--soft); }
.cards { display: grid; gap: 12px; margin: 20px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 14px 16px; }
.card .big { font-size: 1.9rem; font-weight: 650; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.card small { display: block; color: var(--soft); }
.low { margin-top: 12px; }
.gap { height: 12px; } .note { margin-top: 8px; }
.met { color: var(--good); } .missed { color: var(--bad); }
.open, .warning { color: var(--open); } .warning { font-weight: 600; }
.charts { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 12px; }
.charts + .legend { margin-top: 28px; }
.legend i { display: inline-block; width: 26px; border-top: 3px solid;
  margin: 0 8px 4px 0; }
.scroll { overflow-x: auto; } svg.narrow { display: none; }
table { border-collapse: collapse; width: 100%; background: var(--card);
  border: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; border-top: 1px solid var(--rule); }
th { font-weight: 600; font-size: .85rem; min-width: 5.5em; vertical-align: bottom; }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
td { vertical-align: top; white-space: nowrap; }
td.list { min-width: 11em; text-align: left; white-space: normal; }
td small { display: block; color: var(--soft); }
td ol { margin: 0; padding-left: 1.2em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
@media (max-width: 640px) { dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin: 0 0 8px; overflow-wrap: anywhere; }
  h1, h2 { overflow-wrap: anywhere; }
  main { padding: 20px 12px 40px; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .card .big { font-size: 1.5rem; }
  svg.wide { display: none; } svg.narrow { display: block; }
  th, td { padding: 6px 8px; } th { min-width: 4em; }
  .crosses, .crosses tbody, .crosses tr, .crosses td { display: block; border: 0; }
  .crosses th { display: none; }
  .crosses td:first-child { font-weight: 600; border-top: 1px solid var(--rule); }
  .crosses td { white-space: normal; }
  .crosses td.list::before { content: attr(data-path); color: var(--soft);
    display: block; }
  .scroll th { white-space: nowrap; } svg.ecdf text { font-size: 16px; } }
@media print { :root { --page: #fff; --card: #fff; --ink: #000; --soft: #444;
  --rule: #bbb; color-scheme: light; }
  main { max-width: none; padding: 0; } body { font-size: 11pt; }
  .card, svg, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; } td { white-space: normal; } }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .tick, svg .label { text-anchor: middle; }
svg .share, svg .name { text-anchor: end; }
svg .name, svg .above { fill: var(--ink); font-size: 13px; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); }
svg .one { stroke: var(--soft); stroke-dasharray: 3 4; }
svg .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
svg .dot { stroke: var(--card); stroke-width: 1.5; }
svg .target { stroke: var(--ink); stroke-width: 1.6; fill: none; }
svg .interval { stroke-width: 3; stroke-linecap: round; opacity: .55; }
svg .interval.met { stroke: var(--good); } svg .point.met { fill: var(--good); }
svg .interval.missed { stroke: var(--bad); } svg .point.missed { fill: var(--bad); }
svg .interval.open { stroke: var(--open); } svg .point.open { fill: var(--open); }
svg .interval.none { stroke: var(--soft); } svg .point.none { fill: var(--soft); }
"""

COLOURS: Final = 8
"""That are told apart."""
PATH_STYLES: Final = "".join(
    f"svg .curve.path{i} {{ stroke: var(--path{i}); }} "
    f"svg .dot.path{i} {{ fill: var(--path{i}); }} "
    f".legend i.path{i} {{ border-color: var(--path{i}); }}\n"
    for i in range(COLOURS)
) + "".join(
    f"svg .curve.path{i} {{ stroke-dasharray: 9 3; }} "
    f".legend i.path{i} {{ border-top-style: dashed; }}\n"
    for i in range(COLOURS // 2, COLOURS)
)
"""A colour each; those of the second half are dashed, too."""

CHARTS: Final = (
    ("connect", "connect, sandbox to ztunnel"),
    ("rtt_64", "64 B round trip, sandbox to ztunnel"),
    ("through_connect", "connect, through ztunnel to a server"),
    ("through_rtt_64", "64 B round trip, through ztunnel to a server"),
)
"""Figures with samples that are drawn, by key."""


def write(report: Report, path: Path) -> None:
    """Write the page to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    files.replace(path, render(report))


def render(report: Report) -> str:
    """Return the page; well-formed as XML too, so that a test can read it."""
    names = ", ".join(report.paths)
    body = "".join(
        [
            f"<h1>fastpath compare: {escape(names)}</h1>",
            _subtitle(report),
            *(f'<p class="warning">{escape(each)}</p>' for each in report.warnings),
            *(f'<p class="warning">{escape(x)}</p>' for x in report.left_out_lines),
            _variants(report),
            *(_verdicts(pair, rows) for pair, rows in report.standard.items()),
            _hand_offs(report),
            _distributions(report),
            _figures(report),
            hops.pictures(report.paths.values()),
            _anatomy(tuple(report.paths.values())),
            _method(report),
            _download(report),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>fastpath compare: {escape(names)}</title>"
        f"<style>{STYLE}{PATH_STYLES}{hops.STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _subtitle(report: Report) -> str:
    each = ", one more a hand-off" if report.handed_on else ""
    if any(path.beside for path in report.paths.values()):
        each += " in each part"
    return (
        f'<p class="soft">One run, one microVM{each}, one ztunnel process, the same '
        f"unmodified program on each path. {escape(report.setting.started)}, "
        f"accelerator {escape(report.setting.accel)}.</p>"
    )


def _variants(report: Report) -> str:
    """What differs between the set-ups, and which of them were not measured."""
    if not report.variants:
        return ""
    failed = "".join(
        f'<p class="missed">{escape(f"variant {each.name}: {variant_line(each)}")}</p>'
        for each in report.variants
        if each.failure
    )
    tables = "".join(
        f"<h3>{escape(pair)}</h3>"
        + _table(
            ("figure", "ratio", "95 % interval", "p", "verdict"),
            [(each.metric.title, *difference_cells(each)) for each in differences],
        )
        for pair, differences in report.differences.items()
    )
    return (
        "<h2>Variants</h2>"
        + failed
        + f'<p class="soft">{escape(thresholds_line(report.thresholds))}</p>'
        + tables
    )


def _verdicts(pair: str, verdicts: Sequence[Verdict]) -> str:
    cards = "".join(_card(v) for v in verdicts if v.metric.bound is not None)
    lines = "".join(
        f"<dt>{escape(v.metric.title)}</dt><dd>{escape(verdict_line(v))}</dd>"
        for v in verdicts
    )
    return (
        f"<h2>{escape(pair)}</h2>"
        '<p class="soft">Below 1x the first path is quicker (connect, round trip) '
        "or slower (bulk). The bracket in the picture is the target, open towards "
        "where the ratio should be. Met, or not met: the whole interval is on that "
        "side; else neither is shown.</p>"
        f'<div class="cards">{cards}</div>'
        f'<div class="card low">{svg.forest(verdicts)}'
        f"{svg.forest(verdicts, narrow=True)}</div>"
        f'<div class="card low"><dl>{lines}</dl></div>'
    )


def _hand_offs(report: Report) -> str:
    """What a hand-off costs beside the path without one."""
    if not report.handed_on:
        return ""
    rows = [
        (pair, *(f"{v.ratio.median:.2f}x\n{_ends(v)}" for v in verdicts))
        for pair, verdicts in report.handed_on.items()
    ]
    table = _table(("ratio of", *hand_off_titles(report)), rows)
    return (
        "<h2>Hand-offs</h2>"
        '<p class="soft">Below 1x the hand-off is quicker (connect, round trip) or '
        "slower (bulk); below each ratio is its 95 % interval. "
        "&quot;Through ztunnel&quot; is through the other proxy, too.</p>" + table
    )


def _ends(verdict: Verdict) -> str:
    low_high = verdict.ratio.interval
    return "no interval" if low_high is None else f"{low_high[0]:.2f}-{low_high[1]:.2f}"


def _card(verdict: Verdict) -> str:
    kind = svg.KINDS[verdict.outcome]
    return (
        f'<div class="card"><h3>{escape(verdict.metric.title)}</h3>'
        f'<div class="big {kind}">{verdict.ratio.median:.2f}x</div>'
        f"<small>{escape(interval_words(verdict))}</small>"
        f"<small>target {escape(verdict.metric.target)}</small>"
        f'<small class="{kind}">{escape(verdict.words)}</small></div>'
    )


def _distributions(report: Report) -> str:
    drawn = [
        (key, title)
        for key, title in CHARTS
        if all(p.has(key) for p in report.paths.values())
    ]
    if not drawn:
        return ""
    groups = "".join(_group(group, drawn) for group in _groups(report))
    return (
        "<h2>Latency distributions</h2>"
        '<p class="soft">Share of all samples at or below a time; further left is '
        "quicker, steeper is steadier. The dot is the median; the axis ends at the "
        f"99.5th percentile.</p>{groups}"
    )


def _groups(report: Report) -> Iterator[list[PathResult]]:
    """Divide paths into pictures with a colour for each; the first is in all."""
    first, *others = report.paths.values()
    for at in range(0, max(len(others), 1), COLOURS - 1):
        yield [first, *others[at : at + COLOURS - 1]]


def _group(paths: Sequence[PathResult], drawn: Sequence[tuple[str, str]]) -> str:
    legend = "".join(
        f'<span><i class="path{i}"></i>{escape(path.facts.title)}</span>'
        for i, path in enumerate(paths)
    )
    charts = "".join(
        f'<div class="card"><h3>{escape(title)}</h3>{_chart(key, title, paths)}</div>'
        for key, title in drawn
    )
    return f'<div class="legend">{legend}</div><div class="charts">{charts}</div>'


def _chart(key: str, title: str, paths: Sequence[PathResult]) -> str:
    samples = {
        path.name: [ns / 1e3 for each in path.rounds for ns in each.times_ns[key]]
        for path in paths
    }
    return svg.ecdf(title, samples)


def _figures(report: Report) -> str:
    paths = tuple(report.paths.values())
    rows = [
        _summary_row(BY_KEY[key].title, p.name, p.summary(key))
        for key, _ in CHARTS
        for p in paths
        if p.has(key)
    ]
    figures = costs(paths)
    rows_of_costs = [(p.name, *(of(p) for of in figures.values())) for p in paths]
    calls = report.setting.calls_note
    return (
        "<h2>Figures</h2>"
        + _table(("latency, us", "path", "p50", "p99", "min", "n"), rows, words=2)
        + '<div class="gap"></div>'
        + _table(("path", *figures), rows_of_costs)
        + _load(paths)
        + f'<p class="soft note">{escape(report.setting.cpu_note)}</p>'
        + (f'<p class="soft note">{escape(calls)}</p>' if calls else "")
    )


def _load(paths: Sequence[PathResult]) -> str:
    rows = load_rows(paths)
    if not rows:
        return ""
    head = ("load and cost: medians of the rounds", *(path.name for path in paths))
    return '<div class="gap"></div>' + _table(head, rows)


def _summary_row(title: str, name: str, summary: Summary) -> tuple[str, ...]:
    numbers = (f"{v:.1f}" for v in (summary.p50, summary.p99, summary.min))
    return title, name, *numbers, str(summary.n)


def _anatomy(paths: Sequence[PathResult]) -> str:
    kinds: tuple[tuple[str, Callable[[PathResult], Sequence[str]]], ...] = (
        ("who answers", lambda p: (p.facts.answers,)),
        ("TCP/IP stacks crossed to there", lambda p: p.facts.stacks),
        ("copies, program to there", lambda p: p.facts.copies_up),
        ("copies, from there to program", lambda p: p.facts.copies_down),
        ("TCP connections left, program to server", lambda p: p.facts.connections),
        ("system calls a round trip", _calls),
    )
    head = "".join(f'<th class="words">{escape(p.facts.title)}</th>' for p in paths)
    rows = "".join(
        f"<tr><td>{title}</td>"
        + "".join(
            f'<td class="list" data-path="{escape(p.name)}">{_numbered(of(p))}</td>'
            for p in paths
        )
        + "</tr>"
        for title, of in kinds
        if of is not _calls or any(p.calls for p in paths)
    )
    return (
        "<h2>What a byte crosses</h2>"
        '<div class="scroll"><table class="crosses">'
        f"<tr><th></th>{head}</tr>{rows}</table></div>"
    )


def _calls(path: PathResult) -> Sequence[str]:
    """One line a process, its calls by name, most first."""
    return [
        f"{process}: " + ", ".join(f"{name} {n:g}" for name, n in calls.items())
        for process, calls in path.calls.items()
    ]


def _numbered(items: Sequence[str]) -> str:
    if not items:
        return "none"
    return "<ol>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ol>"


def _download(report: Report) -> str:
    """A link to all that was measured: the JSON file, within the page."""
    text = json.dumps(jsonfile.to_dict(report), separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    name = "compare.json.gz"
    return (
        f'<p><a download="{name}" href="data:application/gzip;base64,{packed}">'
        f"{name}</a>: each round's samples, as JSON (docs/compare.md)</p>"
    )


def _method(report: Report) -> str:
    machine = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in machine_lines(report)
    )
    setting = report.setting
    method = "".join(f"<p>{escape(line)}</p>" for line in setting.method)
    checks = "".join(f"<li>{escape(line)}</li>" for line in setting.checks)
    checked = f"<p>Checked before the first round:</p><ul>{checks}</ul>"
    return (
        f'<h2>Machine</h2><div class="card"><dl>{machine}</dl></div>'
        f"<h2>Method</h2>{method}{checked if checks else ''}"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns are `words`, the others figures."""
    kinds = [' class="words"' if i < words else "" for i in range(len(head))]
    top = "".join(
        f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, head, strict=True)
    )
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{_cell(cell)}</td>"
            for kind, cell in zip(kinds, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{lines}</table></div>'


def _cell(text: str) -> str:
    """A cell's text; what is behind a line break is small print."""
    first, _, small = text.partition("\n")
    return escape(first) + (f"<small>{escape(small)}</small>" if small else "")
