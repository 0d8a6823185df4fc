"""A command's own time limit: from its beginning on, whatever it is busy with.

What comes before the event loop blocks in system calls: a build, a lock, a file
that is a pipe nobody writes to. SIGALRM ends these. Within the loop the limit is
the loop's business, and SIGALRM comes only if the loop itself is blocked.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final, NoReturn, Self

from vhost_user.closing import Closing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

BLOCKED_S: Final = 10.0
"""How long after the limit the loop is given to end things in order."""


class TimedOut(BaseException):
    """The time is up. No `Exception`: nothing on the way may take it for its own."""


class Deadline(Closing):
    """Ends what runs in it after `seconds`; None: never. For the main thread.

    Raises (while it is open):
        TimedOut: the time is up, and no loop has taken the limit over.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds
        self._before = signal.getsignal(signal.SIGALRM)
        if seconds is not None:
            signal.signal(signal.SIGALRM, self._alarm)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def hand_over(
        self, loop: asyncio.AbstractEventLoop, expire: Callable[[], None]
    ) -> None:
        """From now on the time's end is a call of `expire` in `loop`."""
        if self._end is None:
            return
        left = max(self._end - time.monotonic(), 0.0)
        signal.setitimer(signal.ITIMER_REAL, left + BLOCKED_S)
        loop.call_later(left, self._expire, expire)

    def close(self) -> None:
        """Let things run."""
        if self.seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def __enter__(self) -> Self:
        return self

    def _expire(self, expire: Callable[[], None]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the loop isn't blocked
        expire()

    def _alarm(self, _signo: int, _frame: object) -> NoReturn:
        raise TimedOut(f"not done within {self.seconds:g} s")
