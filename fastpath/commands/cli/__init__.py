"""The command line: options in, one of the commands called, an exit status out.

Each module here has one command's options, `COMMAND`, and calls its body. The body is
imported when it is called, so `fastpath run` does not wait for what only `fastpath
compare` uses, and `fastpath ztunnel`, which stays, has no memory for it. `body` says
what becomes of an error.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final

from fastpath.commands import body
from fastpath.commands.body import PROG
from fastpath.commands.cli import (
    ca,
    compare,
    completion,
    doctor,
    image,
    path,
    policy,
    report,
    run,
    running,
    ztunnel,
)
from fastpath.commands.cli.command import add
from vhost_user import entry, logs, options
from vhost_user.options import MisuseError, Parser

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: Final = {
    "run": run.COMMAND,
    "exec": running.EXEC,
    "ps": running.PS,
    "stop": running.STOP,
    "compare": compare.COMMAND,
    "report": report.COMMAND,
    "doctor": doctor.COMMAND,
    "image": image.COMMAND,
    "policy": policy.COMMAND,
    "path": path.COMMAND,
    "ztunnel": ztunnel.COMMAND,
    "ca": ca.COMMAND,
    "completion": completion.COMMAND,
}


def parser() -> Parser:
    """The program's, with those of all commands."""
    top = Parser(
        prog=PROG,
        description="A shared-memory fast path between microVMs and a service mesh.",
        examples=[
            ("what this host can do", "fastpath doctor"),
            ("a program whose connections take the fast path", _RUN),
            ("the fast path beside the standard path", "fastpath compare --quick"),
            ("more of one command", "fastpath run --help"),
        ],
    )
    top.set_defaults(level=logging.WARNING, top=top)
    add(top, COMMANDS)
    return top


def main() -> int:
    """Run the program and return its exit status."""
    body.set_up()
    return invoke(sys.argv[1:])


def invoke(args: Sequence[str]) -> int:
    """Run one command and return its exit status; errors go to stderr."""
    return body.guarded(lambda: _invoke(args))


def _invoke(args: Sequence[str]) -> int:
    try:
        found = parser().parse_args(args)
    except MisuseError as exc:
        return entry.complain(PROG, str(exc))
    logs.show(options.level(found, found.level))
    return int(found.call(found))


_RUN: Final = "fastpath run --image apps -- curl -s http://example.org/"
