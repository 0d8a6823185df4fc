"""Has material fetched by a process that is there only meanwhile.

What makes and reads certificates takes 10 MB, and gRPC 14 MB more: for a few ms at the
start, and again at half of a certificate's life. The process (`fetching`) is started
when something is to be fetched, serves all that ask, and ends when nobody has asked for
a while. So the key of an embedded CA is not where guests are spoken to, either.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.mesh.fetching import frame, read_frame
from fastpath.mesh.issued import Plain, since

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from fastpath.mesh.issued import Issued
    from fastpath.mesh.sources import Source

    _Answer = Plain | tuple[str, str, str | None]

REST_S: Final = 5.0
"""How long the process stays when nobody waits for it."""
_ENDED: Final = ("certificates", "the process that fetches them ended", None)


@dataclass(slots=True)
class _Child:
    """A process that runs."""

    process: asyncio.subprocess.Process
    waiting: dict[int, asyncio.Future[_Answer]] = field(default_factory=dict)

    def end(self) -> None:
        """Let it end: there will be no more requests."""
        assert self.process.stdin
        self.process.stdin.close()

    async def listen(self) -> None:
        """Take its answers until it ends."""
        assert self.process.stdout
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                number, answer = await read_frame(self.process.stdout)
                self._tell(self.waiting.pop(number, None), answer)

    def fail(self) -> None:
        """There will be no more answers."""
        while self.waiting:
            self._tell(self.waiting.popitem()[1], _ENDED)

    @staticmethod
    def _tell(waiting: asyncio.Future[_Answer] | None, answer: _Answer) -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


class Fetcher:
    """Fetches from sources, in another process.

    Args:
        rest_s: how long that stays when nobody waits for it.

    Use: `await fetch()` as often as one likes, at last `await close()`.
    """

    def __init__(self, rest_s: float = REST_S) -> None:
        self._rest_s = rest_s
        self._child: _Child | None = None
        self._children: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._rest: asyncio.TimerHandle | None = None

    async def fetch(self, source: Source, now: datetime) -> Issued:
        """Have a source's `fetch()` called.

        Args:
            source: can be pickled; what it keeps in mind is not brought back.
            now: the time.

        Raises:
            FastpathError: what the source says, or the process has ended, or can't be
                started.
        """
        began_s = time.monotonic()
        async with self._starting:
            try:
                child = self._child or await self._start()
            except OSError as exc:
                why = f"the process that fetches them: {exc.strerror or exc}"
                raise FastpathError("certificates", why) from exc
        assert child.process.stdin
        number = next(self._numbers)
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        child.waiting[number] = answer
        self._stay()
        try:
            child.process.stdin.write(frame(number, source, since(now, began_s)))
            found = await answer
        finally:
            child.waiting.pop(number, None)
            if child is self._child and not child.waiting:
                self._stay()
                loop = asyncio.get_running_loop()
                self._rest = loop.call_later(self._rest_s, self._end)
        if isinstance(found, Plain):
            return found
        raise FastpathError(*found)

    async def close(self) -> None:
        """End the process, whatever it does."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.process.kill()
        self._end()
        await asyncio.gather(*self._children, return_exceptions=True)

    async def _start(self) -> _Child:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fastpath.mesh.fetching"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C means us, and it ends with its input
        )
        child = self._child = _Child(process)
        task = asyncio.create_task(self._listen(child), name="certificates fetched")
        self._children.add(task)
        task.add_done_callback(self._children.discard)
        return child

    async def _listen(self, child: _Child) -> None:
        try:
            await child.listen()
        finally:
            if child is self._child:  # nobody asks it any more
                self._end()
            child.fail()
            await child.process.wait()

    def _stay(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _end(self) -> None:
        self._stay()
        if self._child is not None:
            self._child.end()
            self._child = None


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A source whose material another process fetches."""

    fetcher: Fetcher
    source: Source

    @property
    def paths(self) -> tuple[Path, ...]:
        """The source's."""
        return self.source.paths

    async def fetch(self, now: datetime) -> Issued:
        """Have it fetched.

        Raises:
            FastpathError: see `Fetcher.fetch`.
        """
        return await self.fetcher.fetch(self.source, now)

    def look(self) -> None:
        """See the source."""
        self.source.look()

    async def close(self) -> None:
        """Let go of what the source holds."""
        await self.source.close()
