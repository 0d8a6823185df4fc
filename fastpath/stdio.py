"""Our standard streams, for a program that runs elsewhere: bytes, with pressure.

A reader that is slow must slow the program down and not our event loop, and our
descriptors are shared with the shell, so O_NONBLOCK is not ours to set. Instead
each read and write waits until it cannot block: a readable descriptor has at
least one byte or the end, and a writable pipe has room for PIPE_BUF bytes
(pipe(7)). Files and /dev/null, which epoll refuses, are always ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
from typing import IO, TYPE_CHECKING, Any, Final, Self, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.console import Console

READ_SIZE: Final = 65536
_NAMES: Final = {1: "stdout", 2: "stderr"}
WRITE_SIZE: Final = select.PIPE_BUF
"""The most that a writable pipe takes for sure."""


def console(*, progress: bool = False) -> Console:
    """Return a rich console that doesn't end the program when its reader has left.

    rich's own does, with status 1, which has a meaning here.

    Args:
        progress: on stderr, and what can't be written there is left out: nothing
            ends because nobody sees how far it is. Else on stdout, where that is
            an `OSError`.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # what it is called for

    return Plain(file=cast("IO[str]", _Lossy(sys.stderr))) if progress else Plain()


class _Lossy:
    """A text stream that takes whatever cannot be written."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


class Input:
    """A descriptor as a `StreamReader` that is filled only as it is read.

    A context manager: reads between enter and exit, in the running loop.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.reader = asyncio.StreamReader(limit=READ_SIZE)
        self._wanted = asyncio.Event()
        self._wanted.set()

    def __enter__(self) -> Self:
        self.reader.set_transport(_Pressure(self._wanted))
        self._task = asyncio.create_task(self._pump(), name="stdin")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._task.cancel()

    async def _pump(self) -> None:
        while True:
            await self._wanted.wait()
            await _ready(self._fd, select.POLLIN)
            try:
                data = os.read(self._fd, READ_SIZE)
            except OSError:  # a terminal that hung up: nothing more comes
                data = b""
            if not data:
                self.reader.feed_eof()
                return
            self.reader.feed_data(data)


class Output:
    """A descriptor that is written to without blocking the loop.

    Args:
        fd: borrowed.
        on_closed: called once, when nobody reads it any more (EPIPE) or it
            takes no more for another reason; the rest is dropped.
    """

    def __init__(self, fd: int, on_closed: Callable[[], None]) -> None:
        self.error: OSError | None = None
        """Why it takes no more."""
        self._fd = fd
        self._on_closed = on_closed

    async def write(self, data: bytes) -> None:
        """Write all of `data`; returns when the reader has made room for it."""
        rest = memoryview(data)
        while rest and self.error is None:
            await _ready(self._fd, select.POLLOUT)
            try:
                rest = rest[os.write(self._fd, rest[:WRITE_SIZE]) :]
            except BlockingIOError:  # somebody else took the room
                await asyncio.sleep(0.01)
            except OSError as error:
                error.filename = _NAMES.get(self._fd)
                self.error = error
                self._on_closed()


class _Pressure(asyncio.ReadTransport):
    """Tells the pump when the `StreamReader` has enough, and when not."""

    def __init__(self, wanted: asyncio.Event) -> None:
        super().__init__()
        self._wanted = wanted

    def pause_reading(self) -> None:
        self._wanted.clear()

    def resume_reading(self) -> None:
        self._wanted.set()


async def _ready(fd: int, event: int) -> None:
    """Wait until `fd` can be read or written, or is at its end."""
    poll = select.poll()
    poll.register(fd, event)
    if poll.poll(0):
        return
    loop = asyncio.get_running_loop()
    add, remove = (
        (loop.add_reader, loop.remove_reader)
        if event == select.POLLIN
        else (loop.add_writer, loop.remove_writer)
    )
    future: asyncio.Future[None] = loop.create_future()
    add(fd, _settle, future)
    try:
        await future
    finally:
        remove(fd)


def _settle(future: asyncio.Future[None]) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        future.set_result(None)
