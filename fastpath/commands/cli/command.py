"""What a command is to the command line: a line in the list, options, and its body."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhost_user.options import Parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, or a group of them."""

    line: str
    """What it does; a word or two in the list of commands."""
    declare: Callable[[Parser], None]
    """Adds its options."""
    call: Callable[[argparse.Namespace], int] | None = None
    """Does its work, and returns the exit status; None: a group, which shows help."""
    level: int = logging.WARNING
    """Of its log lines, without -v and -q."""
    more: str = ""
    """What else its help says."""
    status: str = "0, or 2 if it could not be done"
    """Its exit statuses."""
    examples: tuple[tuple[str, str], ...] = ()
    """What, and its command line."""


def add(parser: Parser, commands: Mapping[str, Command]) -> None:
    """Have a parser's program or group take these commands."""

    def show_help(_: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(call=show_help)
    list_of = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=Parser
    )
    for name, command in commands.items():
        sub = list_of.add_parser(
            name,
            help=command.line,
            description=f"{command.line[0].upper()}{command.line[1:]}. "
            f"{command.more}".strip(),
            status=command.status,
            examples=command.examples,
        )
        parser.commands[name] = sub
        command.declare(sub)
        sub.set_defaults(level=command.level)
        if command.call:
            sub.set_defaults(call=command.call)
