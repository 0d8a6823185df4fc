"""What serves guests of a test: an event loop in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from tests.support.limits import LIMIT_S

TIMEOUT_S = LIMIT_S


class InThread:
    """Runs `_serve()` in a thread as long as the `with` block.

    `_serve()` calls `_until_left()` when all is there, and cleans up after it.
    """

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._error = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *exc):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def _run(self):
        try:
            with contextlib.closing(self._loop):
                self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self):
        raise NotImplementedError

    async def _until_left(self):
        self._ready.set()
        await self._stop.wait()

    def run(self, coroutine):
        """Run a coroutine in the loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT_S)

    def call(self, function, *args):
        """Call a function in the loop and return what it returns."""

        async def call():
            return function(*args)

        return self.run(call())
