"""Processes of ours: started in a place and on a CPU, watched, and ended.

A child gets SIGTERM when its context is left, and from the kernel when we die
ourselves (PR_SET_PDEATHSIG), so that nothing outlives a run.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Self, TypeVar

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

READY_TIMEOUT_S: Final = 120.0
END_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.05
READY_FD: Final = "{ready_fd}"
"""Stands in a command line for the descriptor that takes the ready line."""


class Child:
    """A child process that says when it is ready; an async context manager.

    Args:
        name: for messages.
        argv: its command line, in which `READY_FD` is replaced.
        cpu: the one CPU that it may use.
        log: gets its stderr.
        socket: a file of its own that says that it is ready, in place of the line.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        cpu: int,
        log: Path,
        socket: Path | None = None,
    ) -> None:
        self._name = name
        self._socket = socket
        self._argv = argv
        self._cpu = cpu
        self._log = log
        self._process: asyncio.subprocess.Process
        self._ended: asyncio.Task[int]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def __aenter__(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            FastpathError: it ended before, or is not ready in time.
        """
        read_fd, write_fd = os.pipe()
        argv = [str(write_fd) if word == READY_FD else word for word in self._argv]
        own = ["setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", str(self._cpu)]
        try:
            with self._log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *own,
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=(write_fd,),
                    start_new_session=True,  # Ctrl-C is ours alone to handle
                )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        self._ended = asyncio.create_task(self._process.wait())
        try:
            if self._socket is None:
                await self._ready(read_fd)
            else:
                os.close(read_fd)
                await self.watch(self._listening(self._socket))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._stop()

    async def restart(self, away_s: float) -> float:
        """End it, and start it again after a while.

        Returns:
            how long it was away, from the signal to its ready line, s.

        Raises:
            FastpathError: it doesn't start again.
        """
        began = asyncio.get_running_loop().time()
        await self._stop()
        await asyncio.sleep(away_s)
        await self.__aenter__()
        return asyncio.get_running_loop().time() - began

    def said(self, words: str) -> int:
        """How often its log has some words so far."""
        return self._log.read_text(errors="replace").count(words)

    async def watch(self, work: Awaitable[T]) -> T:
        """Await `work`, but stop when the child ends first.

        Raises:
            FastpathError: it ended; with the last thing it said.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self._died()
            return task.result()
        finally:
            task.cancel()

    async def _ready(self, fd: int) -> None:
        reader = asyncio.StreamReader()
        pipe = os.fdopen(fd, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await reader.readline()
        except TimeoutError:
            raise FastpathError(
                self._name, f"not ready within {READY_TIMEOUT_S:g} s"
            ) from None
        finally:
            transport.close()
        if not line:
            await self._ended
            raise self._died()

    async def _listening(self, socket: Path) -> None:
        """Wait for a file that its maker can't tell us of."""
        loop = asyncio.get_running_loop()
        end = loop.time() + READY_TIMEOUT_S
        while not os.access(socket, os.F_OK):
            if loop.time() > end:
                why = f"not at {socket.name} within {READY_TIMEOUT_S:g} s"
                raise FastpathError(self._name, why)
            await asyncio.sleep(POLL_S)

    def _died(self) -> FastpathError:
        said = self._log.read_text(errors="replace").strip().splitlines()
        why = said[-1] if said else f"exit status {self._process.returncode}"
        return FastpathError(f"the {self._name} process ended", why)

    async def _stop(self) -> None:
        if not self._ended.done():
            self._process.terminate()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await asyncio.shield(self._ended)
        except TimeoutError:
            self._process.kill()
            await self._ended
