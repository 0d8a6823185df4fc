"""The options of `fastpath policy`'s commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.cli.command import Command, add

if TYPE_CHECKING:
    import argparse

    from vhost_user.options import Parser


def _check(parser: Parser) -> None:
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="a policy file (docs/tsi-policy.md)"
    )
    parser.add_argument(
        "--would", metavar="ADDRESS:PORT", help="explain what it says of this one"
    )


def _call_check(options: argparse.Namespace) -> int:
    from fastpath.commands import policy_check

    return policy_check.run(options.file, options.would)


COMMANDS: Final = {
    "check": Command(
        line="check a policy file, and explain what it decides on a destination",
        declare=_check,
        call=_call_check,
        status="0, 1 if the destination is denied, or 2 if the file is wrong",
        examples=(
            (
                "may a sandbox connect there?",
                "fastpath policy check web.yaml --would 192.0.2.1:80",
            ),
        ),
    )
}

COMMAND: Final = Command(
    line="check what a sandbox may reach",
    declare=lambda parser: add(parser, COMMANDS),
)
