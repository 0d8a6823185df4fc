"""The report on the terminal, with rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from fastpath.report.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from fastpath.report.model import PathResult, Report, Verdict
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
    return (
        ("accelerator", f"{setting.accel} ({setting.accel_reason})"),
        ("geneve", _geneve(setting.geneve)),
        ("guest kernel", f"{setting.guest_kernel}, clocksource {setting.clocksource}"),
        ("host", f"{setting.cpu_model}, {setting.cpus} CPUs, {setting.host_kernel}"),
        ("vmm", setting.qemu),
        ("pinning", setting.pinning),
        ("rounds", str(report.rounds)),
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
    yield _latencies("Sandbox to ztunnel", paths, through=False)
    yield _latencies("Through ztunnel, to a server behind it", paths, through=True)
    yield _costs(paths)
    for pair in report.verdicts:
        yield _ratios(report, pair)
    grid = Table.grid(padding=(0, 2))
    for name, value in machine_lines(report):
        grid.add_row(Text(name, style="dim"), value)
    yield grid
    yield Text(report.setting.cpu_note, style="dim")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", min_width=60)


def _latencies(title: str, paths: tuple[PathResult, ...], *, through: bool) -> Table:
    table = _table(f"{title} (us)")
    table.add_column("figure")
    table.add_column("path")
    for name in ("p50", "p99", "min", "n"):
        table.add_column(name, justify="right")
    for path in paths:
        summary = path.through_connect if through else path.connect
        table.add_row("connect", path.name, *_cells(summary))
    table.add_section()
    for path in paths:
        summary = path.through_rtt if through else path.rtt
        table.add_row("64 B round trip", path.name, *_cells(summary))
    return table


def _cells(summary: Summary) -> tuple[str, str, str, str]:
    return (
        f"{summary.p50:.1f}",
        f"{summary.p99:.1f}",
        f"{summary.min:.1f}",
        str(summary.n),
    )


def _costs(paths: tuple[PathResult, ...]) -> Table:
    table = _table("Bulk and cost, sandbox to ztunnel")
    table.add_column("")
    for path in paths:
        table.add_column(path.name, justify="right")
    rows = {
        "bulk up, MB/s": [f"{p.up_mb_per_s:.1f}" for p in paths],
        "bulk down, MB/s": [f"{p.down_mb_per_s:.1f}" for p in paths],
        "host CPU a round trip, us": [f"{p.cpu_us_per_rtt:.1f}" for p in paths],
        "TCP/IP stacks crossed": [str(len(p.facts.stacks)) for p in paths],
        "copies up / down": [
            f"{len(p.facts.copies_up)} / {len(p.facts.copies_down)}" for p in paths
        ],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
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
