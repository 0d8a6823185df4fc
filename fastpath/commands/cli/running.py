"""Options of `fastpath exec`, `ps` and `stop`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from fastpath.commands.cli.command import Command
from fastpath.errors import FastpathError
from vhost_user.options import seconds

if TYPE_CHECKING:
    from vhost_user.options import Parser


def _declare_exec(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="of the microVM, see `fastpath ps`")
    add(
        "command",
        metavar="-- CMD...",
        nargs=argparse.REMAINDER,
        help="what to run, with its arguments",
    )
    add(
        "--env",
        metavar="K=V",
        action="append",
        default=[],
        help="set a variable; K alone takes ours",
    )
    add("--cwd", metavar="DIR", default="/", help="where to start it (%(default)s)")


def _exec(options: argparse.Namespace) -> int:
    from fastpath.commands import run, running

    argv = tuple(options.command[options.command[:1] == ["--"] :])
    if not argv:
        raise FastpathError("-- CMD...", "no command to run", "fastpath exec --help")
    env = run.parse_env(options.env)
    return running.execute(options.name, argv, env=env, cwd=options.cwd)


def _declare_ps(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _ps(options: argparse.Namespace) -> int:
    from fastpath.commands import running

    return running.show(as_json=options.json)


def _declare_stop(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="+", help="of a microVM, see `fastpath ps`"
    )
    parser.add_argument(
        "--grace",
        metavar="S",
        type=seconds,
        default=10.0,
        help="seconds that its program has after SIGTERM (%(default)g)",
    )


def _stop(options: argparse.Namespace) -> int:
    from fastpath.commands import running

    return running.stop(options.name, grace_s=options.grace)


EXEC: Final = Command(
    line="run CMD in a microVM that runs, beside its program",
    declare=_declare_exec,
    call=_exec,
    status="CMD's own, 128 + n for a signal; 2 if it didn't run",
    examples=(
        (
            "a look at what `fastpath run --name web` runs",
            "fastpath exec web -- netstat -tln",
        ),
    ),
)
PS: Final = Command(
    line="list this user's running microVMs",
    declare=_declare_ps,
    call=_ps,
)
STOP: Final = Command(
    line="end running microVMs",
    declare=_declare_stop,
    call=_stop,
    more="Their programs get SIGTERM first.",
)
