"""`fastpath doctor`'s options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath.commands.cli import shared
from fastpath.commands.cli.command import Command

if TYPE_CHECKING:
    import argparse


def _call(options: argparse.Namespace) -> int:
    from fastpath.commands import doctor

    return doctor.run(as_json=options.json)


COMMAND: Final = Command(
    line='say what this host can do, and what mends each "no"',
    declare=shared.as_json,
    call=_call,
    status="0, or 1 if something is missing that a command needs",
)
