"""`fastpath completion`'s options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath.commands.cli.command import Command

if TYPE_CHECKING:
    import argparse

    from vhost_user.options import Parser

SHELLS: Final = ("bash", "zsh", "tcsh")


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS)
    )


def _call(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(options.top, shell=options.shell))  # noqa: T201
    return 0


COMMAND: Final = Command(
    line="print what a shell needs to complete command lines",
    declare=_declare,
    call=_call,
    examples=(
        ("bash, now", 'eval "$(fastpath completion bash)"'),
        ("zsh, from its next start on", "fastpath completion zsh > ~/.zfunc/_fastpath"),
    ),
)
