"""An event loop on a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for synchronous callers; a context manager.

    QEMU dies with the thread that started it: this one lives as long as they do.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fastpath", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine to its end; it is cancelled if this call ends before.

        Raises:
            TimeoutError: it has taken `timeout_s`.
        """

        async def bounded() -> T:
            async with asyncio.timeout(timeout_s):
                return await work

        future = self.begin(bounded())
        try:
            return future.result()
        finally:
            future.cancel()

    def soon(self, function: Callable[..., object], *args: object) -> None:
        """Have the loop call a function."""
        self._loop.call_soon_threadsafe(function, *args)
