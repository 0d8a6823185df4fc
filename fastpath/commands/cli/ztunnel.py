"""`fastpath ztunnel`'s options."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.cli.command import Command

if TYPE_CHECKING:
    import argparse

    from vhost_user.options import Parser


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        required=True,
        help="our settings; they name Istio's file (docs/ztunnel-config.md)",
    )
    parser.add_argument(
        "--ready-fd",
        metavar="FD",
        type=int,
        help="write a line to this descriptor when ready",
    )


def _call(options: argparse.Namespace) -> int:
    from fastpath.commands import ztunnel

    return ztunnel.run(options.config, options.ready_fd)


COMMAND: Final = Command(
    line="serve sandboxes and the captured traffic until SIGTERM",
    declare=_declare,
    call=_call,
    level=logging.INFO,
    status="0 after SIGTERM; 2 if it could not serve",
    examples=(
        (
            "the sandboxes of a file",
            "fastpath ztunnel --config docs/ztunnel.example.yaml",
        ),
    ),
)
