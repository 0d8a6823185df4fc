"""The options of `fastpath report`'s commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.cli import shared
from fastpath.commands.cli.command import Command, add

if TYPE_CHECKING:
    import argparse

    from vhost_user.options import Parser


def _diff(parser: Parser) -> None:
    for name in "first", "second":
        parser.add_argument(
            name,
            metavar=name.upper(),
            type=Path,
            help=f"what the {name} `fastpath compare --json` wrote",
        )
    shared.thresholds(parser)
    parser.add_argument(
        "--check", action="store_true", help="exit status 1 if a figure is worse"
    )


def _call_diff(options: argparse.Namespace) -> int:
    from fastpath.commands import report

    return report.diff(
        options.first,
        options.second,
        shared.thresholds_of(options),
        check=options.check,
    )


COMMANDS: Final = {
    "diff": Command(
        line="compare the second run's figures with the first's, path by path",
        more="This is weaker than compare --variant, which measures both in one run.",
        declare=_diff,
        call=_call_diff,
        status="0; 1 with --check if a figure is worse; 2 if it could not be done",
        examples=(
            ("two nights", "fastpath report diff monday.json tuesday.json --check"),
        ),
    )
}

COMMAND: Final = Command(
    line="look at reports of comparisons again",
    declare=lambda parser: add(parser, COMMANDS),
)
