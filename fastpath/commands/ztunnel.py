"""`fastpath ztunnel`: the ztunnel process, until SIGTERM.

It stays, and there is one on each node: what it imports is memory for as long. So it
parses its options by argparse, and tests/unit/fastpath/test_footprint.py names what is
not to be in it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from fastpath import logs
from fastpath.commands import body
from fastpath.errors import FastpathError
from fastpath.ztunnel import serving

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND: Final = f"{body.PROG} ztunnel"


def main() -> int:
    """Run the program and return its exit status."""
    body.set_up()
    return body.guarded(lambda: invoke(sys.argv[2:]))


def invoke(args: Sequence[str]) -> int:
    """Run it with these options, and return the exit status.

    Raises:
        FastpathError: see `run`.
    """
    try:
        options = _parser().parse_args(args)
    except _WrongOptionError as exc:
        return body.misused(COMMAND, f"{exc}")
    return run(options.config, options.ready_fd)


def run(config: Path, ready_fd: int | None) -> int:
    """Serve, and return the exit status.

    Args:
        config: our settings, which name Istio's local file.
        ready_fd: gets a line when the process is ready.

    Raises:
        FastpathError: the configuration is not good, or something is missing.
    """
    logs.set_up(logging.INFO)
    if ready_fd is not None:
        _check_writable(ready_fd)
    return asyncio.run(serving.serve(config, ready_fd=ready_fd))


def _check_writable(fd: int) -> None:
    """Refuse a descriptor that can't take the ready line."""
    try:
        os.write(fd, b"")
    except OSError as exc:
        raise FastpathError(
            f"--ready-fd {fd}",
            f"{exc.strerror}",
            "name a descriptor that is open for writing, such as 3 with 3>FILE",
        ) from None


class _WrongOptionError(Exception):
    """An option is missing, unknown or has a bad value."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage: one error is one line."""
        raise _WrongOptionError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=COMMAND,
        description="Serve sandboxes and the captured traffic until SIGTERM.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        required=True,
        help="our settings; they name Istio's file",
    )
    parser.add_argument(
        "--ready-fd",
        metavar="FD",
        type=int,
        help="write a line to this descriptor when ready",
    )
    return parser
