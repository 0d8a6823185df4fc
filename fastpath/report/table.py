"""The report on the terminal, with rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from fastpath.report.difference import Change
from fastpath.report.figures import DEFAULT_GROUPS, METRICS
from fastpath.report.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from rich.console import Console, RenderableType

    from fastpath.report.difference import Difference, Thresholds
    from fastpath.report.figures import Metric
    from fastpath.report.model import PathResult, Report, VariantFacts, Verdict
    from fastpath.report.stats import Summary

_STYLES: Final = {
    None: "",
    Outcome.MET: "green",
    Outcome.MISSED: "bold red",
    Outcome.NOT_SHOWN: "yellow",
}


def show(report: Report, console: Console) -> None:
    """Print the whole report."""
    for part in _parts(report):
        console.print(part)


def machine_lines(report: Report) -> tuple[tuple[str, str], ...]:
    """Return what the figures hold for, as (name, value) lines."""
    setting = report.setting
    program = (("fastpath", setting.version), ("command", setting.command))
    return (
        ("accelerator", f"{setting.accel} ({setting.accel_reason})"),
        *(((f"variant {v.name}"), variant_line(v)) for v in report.variants),
        ("geneve", _geneve(setting.geneve)),
        ("guest kernel", f"{setting.guest_kernel}, clocksource {setting.clocksource}"),
        ("host", f"{setting.cpu_model}, {setting.cpus} CPUs, {setting.host_kernel}"),
        ("vmm", setting.qemu),
        ("pinning", setting.pinning),
        ("rounds", str(report.rounds)),
        *((name, value) for name, value in program if value),
    )


def variant_line(variant: VariantFacts) -> str:
    """Return what a variant is, in words."""
    if variant.failure:
        return f"not measured: {variant.failure}"
    words = [
        variant.spec or "as it is by default",
        f"guest {variant.guest_kernel}, sockets by the {variant.sockets}",
        variant.qemu,
    ]
    return "; ".join(words)


def thresholds_line(thresholds: Thresholds) -> str:
    """Say what counts as a difference."""
    return (
        f"A difference: p below {thresholds.alpha:g}, by a permutation test and "
        "adjusted for all figures of the run (Holm), and a ratio off 1 by "
        f"{thresholds.least:.0%} or more."
    )


def verdict_line(verdict: Verdict) -> str:
    """Return one ratio in plain words, as used on the terminal and the page."""
    ratio = verdict.ratio
    line = f"{ratio.median:.2f}x ({interval_words(verdict)})"
    if verdict.metric.bound is not None:
        line += f", target {verdict.metric.target}: {verdict.words}"
    return line


def interval_words(verdict: Verdict) -> str:
    """Return a ratio's interval in words."""
    if verdict.ratio.interval is None:
        return f"no interval from {verdict.ratio.pairs} rounds"
    low, high = verdict.ratio.interval
    return f"95 % interval {low:.2f} to {high:.2f}"


def _geneve(kind: str | None) -> str:
    return {
        "kernel": "the kernel's own geneve device",
        "bpf": "tc-eBPF encapsulation (this kernel has no geneve device)",
        None: "not on any path of this run",
    }.get(kind, str(kind))


def _parts(report: Report) -> Iterator[RenderableType]:
    paths = tuple(report.paths.values())
    yield Text()
    for warning in report.warnings:
        yield Text(f"warning: {warning}", style="bold yellow")
    for failed in (each for each in report.variants if each.failure):
        words = f"variant {failed.name} was not measured: {failed.failure}"
        yield Text(words, style="bold red")
    for left in report.left_out_lines:
        yield Text(left, style="bold yellow")
    to = f"Sandbox to ztunnel{report.who_answers}"
    if all(path.has("rtt_64") for path in paths):
        yield _latencies(to, paths, through=False)
        behind = "Through ztunnel, to a server behind it"
        yield _latencies(behind, paths, through=True)
    yield _costs(f"Bulk and cost, {to[0].lower()}{to[1:]}", paths)
    if rows := load_rows(paths):
        yield _load(rows, paths)
    for pair in report.standard:
        yield _ratios(report, pair)
    if report.handed_on:
        yield _hand_offs(report)
    for pair, differences in report.differences.items():
        yield differences_table(f"{pair}: {report.rounds} paired rounds", differences)
    if report.differences:
        yield Text(thresholds_line(report.thresholds), style="dim")
    grid = Table.grid(padding=(0, 2))
    for name, value in machine_lines(report):
        grid.add_row(Text(name, style="dim"), value)
    yield grid
    yield Text(report.setting.cpu_note, style="dim")
    if report.setting.calls_note:
        yield Text(report.setting.calls_note, style="dim")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", min_width=60)


LATENCIES: Final = (("connect", "connect"), ("64 B round trip", "rtt_64"))
THROUGH: Final = "through_"
"""How the key begins of a figure that is taken through ztunnel."""


def _latencies(title: str, paths: tuple[PathResult, ...], *, through: bool) -> Table:
    table = _table(f"{title} (us)")
    table.add_column("figure")
    table.add_column("path")
    for name in ("p50", "p99", "min", "n"):
        table.add_column(name, justify="right")
    for words, key in LATENCIES:
        for path in paths:
            cells = _cells(path.summary(f"{THROUGH if through else ''}{key}"))
            table.add_row(words, path.name, *cells)
        table.add_section()
    return table


def _cells(summary: Summary) -> tuple[str, str, str, str]:
    return (
        f"{summary.p50:.1f}",
        f"{summary.p99:.1f}",
        f"{summary.min:.1f}",
        str(summary.n),
    )


COSTS: Final[dict[str, Callable[[PathResult], str]]] = {
    "up, MB/s": lambda p: _number(p, "up"),
    "down, MB/s": lambda p: _number(p, "down"),
    "host CPU a trip, us": lambda p: _number(p, "host_cpu"),
    "system calls a trip": lambda p: p.calls_words,
    "TCP/IP stacks": lambda p: str(len(p.facts.stacks)),
    "copies up / down": lambda p: (
        f"{len(p.facts.copies_up)} / {len(p.facts.copies_down)}"
    ),
    "TCP conns. left": lambda p: str(len(p.facts.connections)),
}
"""What a path costs, by the figure's name; a trip is one of 64 bytes there and back."""


def _number(path: PathResult, key: str) -> str:
    return f"{path.median(key):.1f}" if path.has(key) else ""


def costs(
    paths: Collection[PathResult],
) -> dict[str, Callable[[PathResult], str]]:
    """Return those of `COSTS` that there are for some paths."""
    without = set() if any(p.calls for p in paths) else {"system calls a trip"}
    return {
        name: of
        for name, of in COSTS.items()
        if name not in without and any(of(path) for path in paths)
    }


def _costs(title: str, paths: tuple[PathResult, ...]) -> Table:
    table = _table(title)
    table.add_column("path", no_wrap=True)
    figures = costs(paths)
    for name in figures:
        table.add_column(name, justify="right")
    for path in paths:
        table.add_row(path.name, *(of(path) for of in figures.values()))
    return table


def load_rows(paths: Collection[PathResult]) -> list[tuple[str, ...]]:
    """The figures of load: title with unit, then each path's median, or nothing."""
    return [
        (
            metric.words,
            *(median_of(metric, path) for path in paths),
        )
        for metric in METRICS
        if metric.group not in DEFAULT_GROUPS
        and any(path.has(metric.key) for path in paths)
    ]


def median_of(metric: Metric, path: PathResult) -> str:
    """Of the rounds; empty: it was not measured."""
    if not path.has(metric.key):
        return ""
    value = path.median(metric.key)
    return significant(value) if metric.unit else f"{value:g}"


def significant(value: float) -> str:
    """Three digits that matter."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _load(rows: Sequence[Sequence[str]], paths: Collection[PathResult]) -> Table:
    table = _table("Load and cost: medians of the rounds")
    table.add_column("figure", min_width=24)
    for path in paths:
        table.add_column(path.name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _ratios(report: Report, pair: str) -> Table:
    table = _table(f"{pair}: median of {report.rounds} paired rounds")
    table.add_column("figure", min_width=16)
    table.add_column("ratio", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("target")
    table.add_column("")
    for verdict in report.verdicts[pair]:
        ratio = verdict.ratio
        table.add_row(
            verdict.metric.title,
            f"{ratio.median:.2f}x",
            " - ".join(f"{end:.2f}" for end in ratio.interval or ()) or "none",
            verdict.metric.target,
            Text(verdict.words, style=_STYLES[verdict.outcome]),
        )
    return table


def _hand_offs(report: Report) -> Table:
    base = next(iter(report.handed_on)).partition("/")[2]
    table = _table(f"Over {base}: median of {report.rounds} paired rounds")
    table.add_column("hand-off", no_wrap=True)
    for title in hand_off_titles(report):
        table.add_column(title, justify="right")
    for pair, verdicts in report.handed_on.items():
        ours = pair.partition("/")[0]
        table.add_row(ours, *(f"{v.ratio.median:.2f}x" for v in verdicts))
    return table


def hand_off_titles(report: Report) -> list[str]:
    """The figures that hand-offs are compared by."""
    (verdicts, *_) = report.handed_on.values()
    return [verdict.metric.title for verdict in verdicts]


_CHANGES: Final = {
    Change.BETTER: "green",
    Change.WORSE: "bold red",
    Change.NONE: "",
    Change.UNKNOWN: "yellow",
}


def difference_cells(difference: Difference) -> tuple[str, str, str, str]:
    """Ratio, interval, p-value and verdict of a difference."""
    return (
        f"{difference.ratio:.3f}x",
        " - ".join(f"{end:.3f}" for end in difference.interval or ()) or "none",
        f"{difference.p:.4f}",
        difference.verdict.value,
    )


def differences_table(title: str, differences: Sequence[Difference]) -> Table:
    """Show what two set-ups differ by."""
    table = _table(title)
    table.add_column("figure", min_width=16)
    table.add_column("ratio", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("p", justify="right")
    table.add_column("")
    for each in differences:
        *cells, words = difference_cells(each)
        verdict = Text(words, style=_CHANGES[each.verdict])
        table.add_row(each.metric.title, *cells, verdict)
    return table
