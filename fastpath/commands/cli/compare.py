"""`fastpath compare`'s options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.cli import shared
from fastpath.commands.cli.command import Command
from vhost_user.options import seconds, whole

if TYPE_CHECKING:
    import argparse

    from vhost_user.options import Parser


def _declare(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--paths",
        metavar="NAME,...",
        default="tsi,inpod-l3forwarding",
        help="see docs/compare.md; all: what can be measured here "
        "(tsi,inpod-l3forwarding)",
    )
    add(
        "--variant",
        metavar="NAME[:KEY=VALUE,...]",
        action="append",
        default=[],
        help="a set-up to compare with the first of them (docs/compare.md)",
    )
    add(
        "--figures",
        metavar="NAME,...",
        default="latency,bulk",
        help="latency, bulk, rates, open-loop, both, http, cpu, memory, policy, "
        "restart; load: all but the first two and the last; all (latency,bulk)",
    )
    add(
        "--rate",
        metavar="N",
        type=whole(1, 1_000_000),
        default=1000,
        help="requests a second of open-loop (1000)",
    )
    add("--rounds", metavar="N", type=whole(2, 1000), default=20, help="(20)")
    add("--quick", action="store_true", help="three short rounds: does it work?")
    add(
        "--budget",
        metavar="S",
        type=seconds,
        default=180.0,
        help="measure no longer than this (180)",
    )
    shared.geneve(parser)
    shared.vm(parser)
    add("--json", metavar="FILE", type=Path, help="write the figures as JSON")
    add("--html", metavar="FILE", type=Path, help="write the report as a page")
    add("--markdown", metavar="FILE", type=Path, help="write it for a pull request")
    add(
        "--benchmark-json",
        metavar="FILE",
        type=Path,
        help="write the rounds as pytest-benchmark's JSON",
    )
    shared.thresholds(parser)
    add(
        "--check",
        action="store_true",
        help="exit status 1 unless all targets are shown to be met; with variants, if "
        "one is shown to be worse than the first",
    )


def _call(options: argparse.Namespace) -> int:
    from fastpath.commands import compare
    from fastpath.commands.compare import paths, sections
    from fastpath.commands.compare.variants import parse_all

    return compare.run(
        compare.CompareOptions(
            paths=paths.parse(options.paths),
            whatever_can=options.paths == paths.ALL,
            variants=parse_all(options.variant),
            figures=sections.parse(options.figures),
            rate=options.rate,
            rounds=options.rounds,
            quick=options.quick,
            geneve=options.geneve,
            accel=options.accel,
            qemu=options.qemu,
            budget_s=options.budget,
            boot_timeout_s=options.boot_timeout,
            json=options.json,
            html=options.html,
            markdown=options.markdown,
            benchmark=options.benchmark_json,
            thresholds=shared.thresholds_of(options),
            check=options.check,
        )
    )


COMMAND: Final = Command(
    line="measure the fast path beside a standard path, in one run",
    declare=_declare,
    call=_call,
    status="0; 1 with --check, see there; 2 if it could not be done",
    examples=(
        ("does it work here?", "fastpath compare --quick"),
        ("all figures, and a page", "fastpath compare --html out/compare.html"),
        (
            "another guest kernel beside today's",
            "fastpath compare --variant base --variant patched:kernel=bzImage",
        ),
        ("each path that this machine has", "fastpath compare --paths all --quick"),
        (
            "what a restart of who takes the connections costs",
            "fastpath compare --paths tsi+unix,inpod-l3forwarding --figures restart",
        ),
        (
            "what a hand-off to another process costs",
            "fastpath compare --paths tsi,tsi+unix,tsi+ring",
        ),
    ),
)
