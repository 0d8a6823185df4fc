"""The options of `fastpath path`'s commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath.commands.cli import shared
from fastpath.commands.cli.command import Command, add

if TYPE_CHECKING:
    import argparse

    from vhost_user.options import Parser


def _one(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="see `fastpath path list`")


def _one_built(parser: Parser) -> None:
    _one(parser)
    shared.geneve(parser)


def _call_list(options: argparse.Namespace) -> int:
    from fastpath.commands import path

    return path.show_all(as_json=options.json)


def _call_show(options: argparse.Namespace) -> int:
    from fastpath.commands import path

    return path.show_one(options.name)


def _call_up(options: argparse.Namespace) -> int:
    from fastpath.commands import path

    return path.up(options.name, options.geneve)


def _call_down(options: argparse.Namespace) -> int:
    from fastpath.commands import path

    return path.down(options.name)


def _call_check(options: argparse.Namespace) -> int:
    from fastpath.commands import path

    return path.check(options.name, options.geneve)


COMMANDS: Final = {
    "list": Command(line="list the paths", declare=shared.as_json, call=_call_list),
    "show": Command(
        line="show a path: a picture of its hops, and the commands that build it",
        declare=_one,
        call=_call_show,
        examples=(
            ("Kata's and Istio's of today", "fastpath path show inpod-l3forwarding"),
        ),
    ),
    "up": Command(
        line="build a path in named network namespaces and leave it; as root",
        declare=_one_built,
        call=_call_up,
    ),
    "down": Command(
        line="take a path down again; as root", declare=_one, call=_call_down
    ),
    "check": Command(
        line="send one connection over a path and say at which hop it was seen",
        declare=_one_built,
        call=_call_check,
        status="0, 1 if it did not arrive as it should, or 2 if it could not be sent",
    ),
}

COMMAND: Final = Command(
    line="read, build or try the standard paths",
    declare=lambda parser: add(parser, COMMANDS),
)
