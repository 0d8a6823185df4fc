"""A ring in shared memory, as one of its two ends sees it.

Order. On x86-64 loads and stores become visible in their order, but a load may overtake
an earlier store. Between a store of ours and the look that must not come before it is a
full fence, therefore: a lock that is taken, which is a locked instruction. A 32-bit
word of a memoryview is read and written by one instruction.

Spec: docs/ring.md.
"""

from __future__ import annotations

import enum
import errno
from typing import Final

DATA: Final = 4096
"""Where the bytes of the rings begin."""
MIN_BYTES: Final = 4096
MAX_BYTES: Final = 1 << 30
UP_PRODUCER, UP_CONSUMER, DOWN_PRODUCER, DOWN_CONSUMER = 32, 64, 96, 128
"""Words: each line has 128 bytes."""
_POSITION, _SLEEP, _STATE = 0, 1, 2
"""Words of a line."""
WORD: Final = 0xFFFF_FFFF
_MAX_ERRNO: Final = 4095


class State(enum.IntEnum):
    """In the lower 8 bits of a line's state."""

    OPEN = 0
    ENDED = 1
    """Producer: no more come; consumer: no more are taken."""
    RESET = 2
    """All is over, by the errno in the upper 24 bits."""


_VERDICTS: Final[dict[int, int]] = {State.OPEN: 0, State.ENDED: errno.EPIPE}


class Way:
    """A ring, as one of its ends sees it."""

    def __init__(
        self, words: memoryview, mine: int, theirs: int, data: int, size: int
    ) -> None:
        self._words = words
        self._mine = mine
        self._theirs = theirs
        self.data = data
        self.size = size
        self.position = 0
        self._sleep = 0
        self._rung = 0

    def used(self) -> int:
        """How far their position is ahead of ours; it may be anything."""
        return (self._words[self._theirs + _POSITION] - self.position) & WORD

    def verdict(self) -> int:
        """What they say by their state: 0, EPIPE (ended), or why they reset."""
        state: int = self._words[self._theirs + _STATE]
        kind, error = state & 0xFF, state >> 8
        if kind == State.RESET:
            return error if 0 < error <= _MAX_ERRNO else errno.ECONNRESET
        return _VERDICTS.get(kind, errno.EPROTO)

    def advance(self, count: int) -> None:
        """Move our position."""
        self.position = (self.position + count) & WORD
        self._words[self._mine + _POSITION] = self.position

    def say(self, state: int) -> None:
        """Change our state; a reset is the last one."""
        now: int = self._words[self._mine + _STATE]
        if now == State.OPEN or (now == State.ENDED and state != now):
            self._words[self._mine + _STATE] = state

    def set_sleep(self, *, asleep: bool) -> None:
        """Say that we sleep, by a new odd number, or that we don't."""
        slept = self._sleep & 1
        if not asleep and not slept:
            return
        self._sleep = (self._sleep + (2 if asleep and slept else 1)) & WORD
        self._words[self._mine + _SLEEP] = self._sleep

    def sleeps(self) -> bool:
        """Behind a fence: whether they have to be woken, once for each sleep."""
        sleep: int = self._words[self._theirs + _SLEEP]
        if not sleep & 1 or sleep == self._rung:
            return False
        self._rung = sleep
        return True
