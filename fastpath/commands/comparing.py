"""The command lines of `fastpath compare` and `fastpath report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastpath.commands.options import Accel, BootTimeout, Qemu, seconds

report_app = typer.Typer(help="Reports of comparisons.", no_args_is_help=True)

Alpha = Annotated[
    float,
    typer.Option(
        metavar="P",
        min=0.0001,
        max=0.5,
        help="Two equal set-ups show a difference in at most this share of runs.",
    ),
]
MinChange = Annotated[
    float,
    typer.Option(
        metavar="PERCENT", min=0, max=1000, help="A smaller change is no difference."
    ),
]


def compare(
    *,
    paths: Annotated[
        str, typer.Option(help="The paths, by name, with commas.")
    ] = "tsi,inpod-l3forwarding",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            help="A set-up to compare with the first of them; docs/compare.md.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=2, max=1000)] = 20,
    quick: Annotated[
        bool, typer.Option("--quick", help="Three short rounds: does it work?")
    ] = False,
    geneve: Annotated[
        str, typer.Option(help="auto, kernel or bpf: which Geneve device.")
    ] = "auto",
    accel: Accel = "auto",
    qemu: Qemu = "qemu-system-x86_64",
    budget: Annotated[
        float,
        typer.Option(
            metavar="S", callback=seconds, help="Measure no longer than this."
        ),
    ] = 180.0,
    boot_timeout: BootTimeout = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as a page.")
    ] = None,
    alpha: Alpha = 0.05,
    min_change: MinChange = 3.0,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit status 1 unless all targets are shown to be met; with variants, "
            "if one is shown to be worse than the first.",
        ),
    ] = False,
) -> int:
    """Compare the fast path with the standard path, side by side, in one run."""
    from fastpath.commands import compare as comparer
    from fastpath.commands.compare import paths as paths_of
    from fastpath.commands.compare.variants import parse_all
    from fastpath.report.difference import Thresholds

    options = comparer.CompareOptions(
        paths=paths_of.parse(paths),
        variants=parse_all(variant or ()),
        rounds=rounds,
        quick=quick,
        geneve=comparer.parse_geneve(geneve),
        accel=accel,
        qemu=qemu,
        budget_s=budget,
        boot_timeout_s=boot_timeout,
        json=json,
        html=html,
        thresholds=Thresholds(alpha=alpha, least=min_change / 100),
        check=check,
    )
    return comparer.run(options)


Reported = Annotated[
    Path, typer.Argument(metavar="FILE", help="What compare --json wrote.")
]


@report_app.command("diff")
def diff(
    first: Reported,
    second: Reported,
    *,
    alpha: Alpha = 0.05,
    min_change: MinChange = 3.0,
    check: Annotated[
        bool, typer.Option("--check", help="Exit status 1 if a figure is worse.")
    ] = False,
) -> int:
    """Compare the second run's figures with the first's, path by path.

    This is weaker than compare --variant, which measures both in one run.
    """
    from fastpath.commands import report
    from fastpath.report.difference import Thresholds

    thresholds = Thresholds(alpha=alpha, least=min_change / 100)
    return report.diff(first, second, thresholds, check=check)
