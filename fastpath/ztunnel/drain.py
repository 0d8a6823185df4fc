"""The end of the process: no new connections, and some time for those that there are.

    SIGTERM   not ready; no new connections, outbound and inbound
    drained   nobody is left, or `drainS` is over, or a second signal came
    end       what is left is reset, with its line in the access log

Spec: istio/ztunnel, CONNECTION_TERMINATION_DEADLINE.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S: Final = 0.02

_log = logging.getLogger(__name__)


async def drained(
    live: Callable[[], int], limit_s: float, hurry: asyncio.Event
) -> None:
    """Wait until no connection is left.

    Args:
        live: how many there are.
        limit_s: how long, at most.
        hurry: set: wait no longer.
    """
    if not live():
        return
    _log.warning("draining: %d connections have %g s to end", live(), limit_s)
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while live() and loop.time() < end and not hurry.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await hurry.wait()
    if live():
        _log.warning("drained: %d connections are ended", live())
