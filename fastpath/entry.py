"""The console script `fastpath`; `vhost_user.entry` says why it has a module."""

from __future__ import annotations

from typing import NoReturn

from vhost_user.entry import start


def main() -> NoReturn:
    """Run the program."""
    start("fastpath", "fastpath.commands.cli")
