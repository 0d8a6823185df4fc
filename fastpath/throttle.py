"""Bounds on what others cause: so much at once, so much a second.

`Throttle` is that for log lines.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LINES_A_SECOND: Final = 10
"""In the long run."""
BURST: Final = 100
"""Lines at once after a quiet time."""
TELL_S: Final = 10.0
"""How long after the first line that was left out it is said how many were."""


class Bucket:
    """So many at once after a quiet time, and so many a second in the long run.

    Args:
        rate: a second.
        burst: at once.
        now: seconds of a clock that doesn't go back, here and below.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._filled_at = now

    def take(self, now: float) -> bool:
        """Whether there may be one more; it is counted then."""
        gained = (now - self._filled_at) * self._rate
        self._left = min(self._left + gained, self._burst)
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Throttle:
    """Counts the lines of one sandbox.

    Args:
        tell: called with how many lines were left out, some time after the first.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._bucket = Bucket(LINES_A_SECOND, BURST, time.monotonic())
        self._left_out = 0
        self._timer: asyncio.TimerHandle | None = None

    def admits(self) -> bool:
        """Whether one more line may be written; if not, it is counted."""
        if self._bucket.take(time.monotonic()):
            return True
        self._left_out += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(TELL_S, self.flush)
        return False

    def flush(self) -> None:
        """Say now how many lines were left out, if any."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        left_out, self._left_out = self._left_out, 0
        self._tell(left_out)
