"""How things end: objects that `with` closes, processes that a signal stops."""

from __future__ import annotations

import abc
import asyncio
import signal
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType


ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a process of ours, with all its sockets removed. SIGHUP: its
terminal is gone."""


def stop_event() -> asyncio.Event:
    """Return an event of the running loop that each of `ENDING` sets.

    A SIGHUP that is ignored stays so: that is what nohup(1) does.
    """
    stop = asyncio.Event()
    for signo in ENDING:
        if signo != signal.SIGHUP or not hangup_is_ignored():
            asyncio.get_running_loop().add_signal_handler(signo, stop.set)
    return stop


def hangup_is_ignored() -> bool:
    """Whether this process was started to outlive its terminal."""
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


class Closing(abc.ABC):
    """A context manager that ends by `close()`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what the object holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
