"""The console script `fastpath`; see `vhost_user.entry` for why it is not cli.py.

A command that stays has a parser of its own, and nothing that only the others need
stays with it: typer, with what it imports, takes 11 MB.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NoReturn

from vhost_user.entry import start

if TYPE_CHECKING:
    from collections.abc import Mapping

OWN: Final[Mapping[str, str]] = {"ztunnel": "fastpath.commands.ztunnel"}
"""Modules of commands that stay, by their names."""


def main() -> NoReturn:
    """Run the program."""
    start("fastpath", OWN.get("".join(sys.argv[1:2]), "fastpath.commands.cli"))
