"""An event loop whose time passes when nothing else happens.

For tests of rests and rates whose other ends live in the same loop, over unix sockets
or none: what has been sent is there at once, so a turn in which no descriptor is ready
has nothing to wait for but a timer. The clock then jumps to that timer. A rest of a
minute takes no time, and nothing that is ready is ever overtaken by one, however slow
the machine is.

Not for threads, processes and TCP: what they bring about comes later, by the real
clock, and a jump would overtake it.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

from tests.support.limits import LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Never waits for a timer: the clock goes there."""

    now = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timer, either: only a signal could come
            found = super().select(LIMIT_S)
            assert found, "the test waits for what nothing brings about"
            return found
        found = super().select(0)
        if not found:
            self.now += timeout
        return found


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, which begins at 0."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return seconds since the loop began."""
        return self._clock.now


class Stopped:
    """Stands for the module `time` where a clock must not go on."""

    @staticmethod
    def monotonic() -> float:
        """Return the same second, always."""
        return 1000.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run()` does, in a `Loop`."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)
