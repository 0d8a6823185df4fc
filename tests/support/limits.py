"""How long tests wait for what has to come: here, and nowhere else.

A test waits for the event itself, and asserts no time. These limits only end a run
that hangs, so they are far above what any machine needs. `FASTPATH_TEST_SCALE`
multiplies them, for machines that are slower still (a float, at least 1).

Where a rest or a rate is tested, time is passed in: `tests.support.clock`.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SCALE: Final = max(1.0, float(os.environ.get("FASTPATH_TEST_SCALE", "1")))
LIMIT_S: Final = 120.0 * SCALE
"""For anything on the host: an event, a message, a process's end."""
GUEST_LIMIT_S: Final = 900.0 * SCALE
"""For a guest's boot, and for a program in it, which TCG may run."""

_POLL_S: Final = 0.01


def wait_until(
    condition: Callable[[], T], *, what: str = "", limit_s: float = LIMIT_S
) -> T:
    """Wait until `condition()` is true; return what it returned.

    Raises:
        AssertionError: it never was; `what` says what was waited for.
    """
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what or condition}"
        time.sleep(_POLL_S)
    return found


async def until(
    condition: Callable[[], T], *, what: str = "", limit_s: float = LIMIT_S
) -> T:
    """Wait as `wait_until()` does, for a condition that the event loop brings about."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while not (found := condition()):
        assert loop.time() < end, f"not within {limit_s:g} s: {what or condition}"
        await asyncio.sleep(_POLL_S)
    return found
