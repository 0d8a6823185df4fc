"""The console script `fastpath`; see `vhost_user.entry` for why it is not cli.py."""

from __future__ import annotations

from typing import NoReturn

from vhost_user.entry import start


def main() -> NoReturn:
    """Run the program."""
    start("fastpath", "fastpath.commands.cli")
