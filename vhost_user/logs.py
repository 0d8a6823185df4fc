"""Log lines on stderr: when, how grave, who, what.

    2026-01-31T09:59:05.028Z WARNING fastpath.ztunnel.process: web: maxConns is 16

A message may contain what a guest or a client said, so nothing in it steers the
terminal, and it has one line.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from vhost_user.entry import printable

if TYPE_CHECKING:
    from collections.abc import Callable

_FORMAT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"


def set_up() -> None:
    """Write warnings and what is graver to stderr.

    A process that has its own handlers, such as a test's, keeps them.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    logging.raiseExceptions = False  # a stderr that is full or gone is no news


def show(level: int) -> None:
    """Write messages of at least this level."""
    logging.getLogger().setLevel(level)


class Formatter(logging.Formatter):
    """Formats in UTC, with one printable line a message."""

    converter: Callable[[float | None], time.struct_time] = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line; a traceback comes behind it."""
        return printable(super().formatMessage(record))
