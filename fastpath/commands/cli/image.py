"""The options of `fastpath image`'s commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.cli import shared
from fastpath.commands.cli.command import Command, add

if TYPE_CHECKING:
    import argparse

    from vhost_user.options import Parser


def _build(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="one, not all of them")
    parser.add_argument(
        "--refresh", action="store_true", help="ask for newer packages first"
    )
    parser.add_argument(
        "--own-kernel",
        action="store_true",
        help="compile its kernel, without modules and with TSI (docs/kernels.md)",
    )
    parser.add_argument(
        "--kernel-config",
        metavar="FRAGMENT",
        type=Path,
        action="append",
        default=[],
        help="CONFIG_ lines for --own-kernel",
    )


def _call_build(options: argparse.Namespace) -> int:
    from fastpath.commands import image

    return image.build(
        options.name,
        refresh=options.refresh,
        own_kernel=options.own_kernel,
        fragments=tuple(options.kernel_config),
    )


def _list(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="one, not all of them")
    shared.as_json(parser)


def _call_list(options: argparse.Namespace) -> int:
    from fastpath.commands import image

    return image.show(options.name, as_json=options.json)


COMMANDS: Final = {
    "build": Command(
        line="build one, or all; what did not change is not built again",
        declare=_build,
        call=_call_build,
        examples=(
            ("the one that `fastpath run` boots", "fastpath image build base"),
            (
                "a kernel with TSI in it, and no modules",
                "fastpath image build base --own-kernel",
            ),
        ),
    ),
    "list": Command(
        line="list them: which are built, their kernels and sizes",
        declare=_list,
        call=_call_list,
    ),
}

COMMAND: Final = Command(
    line="build and list the microVM images",
    declare=lambda parser: add(parser, COMMANDS),
)
