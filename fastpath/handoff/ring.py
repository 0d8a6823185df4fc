"""The other end of hand-off `ring`: a process that takes a sandbox's connections.

    async def echo(ring: Ring, hello: Hello) -> None:
        while data := await ring.read():
            await ring.write(data)

    asyncio.run(serve(Path("/run/echo.ring"), echo))

Bytes go through two rings in memory that the engine and we share. What lib/ring does in
C, in pure Python over mmap; this module,
`ringhello` and `ringmemory` need nothing but the standard library. A `Ring` belongs to
one thread at a time.

Spec: docs/ring.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import mmap
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from fastpath.handoff.ringhello import ANSWER, HELLO, VERSION, Hello
from fastpath.handoff.ringmemory import (
    DATA,
    DOWN_CONSUMER,
    DOWN_PRODUCER,
    MAX_BYTES,
    UP_CONSUMER,
    UP_PRODUCER,
    WORD,
    State,
    Way,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

READ: Final = 1
"""There are bytes, or they have ended."""
WRITE: Final = 2
"""There is room, or nobody reads."""
POLL_US: Final = 50
"""Longest that `Ring.wait` spins."""
REST_S: Final = 0.1
"""Between two tries to accept, where descriptors are short."""
HELLO_S: Final = 10.0
"""One who connects has to say in this time what for."""

_BELL: Final = struct.pack("=Q", 1)
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

log = logging.getLogger(__name__)


class Ring:
    """One connection; made by `take`.

    Args:
        sock: the unix socket; its own from now on.
        bell: eventfd that wakes the engine; likewise.
        memory: the rings.
        hello: what was said of them.
    """

    def __init__(
        self, sock: socket.socket, bell: int, memory: mmap.mmap, hello: Hello
    ) -> None:
        self._sock = sock
        self._bell = bell
        self._memory = memory
        self._words = memoryview(memory).cast("I")
        up, down = hello.up_bytes, hello.down_bytes
        self._in = Way(self._words, UP_CONSUMER, UP_PRODUCER, DATA, up)
        self._out = Way(self._words, DOWN_PRODUCER, DOWN_CONSUMER, DATA + up, down)
        self._lock = threading.Lock()
        self._window_us = 0.0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.gone = False
        """The engine has closed its socket."""
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: object, tb: object
    ) -> None:
        """Close it; after an exception the program in the guest sees a reset."""
        del exc, tb
        if exc_type is not None and not self.closed:
            self.reset()
        self.close()

    def fileno(self) -> int:
        """What becomes readable when we are woken: for poll() and epoll."""
        return self._sock.fileno()

    def answer(self, error: int = 0) -> None:
        """Say whether there is a connection.

        Args:
            error: 0: there is; an errno: what the program's connect() gets.

        Raises:
            OSError: the engine has left.
        """
        self._sock.send(ANSWER.pack(VERSION, error))

    # ---- bytes ----

    def recv(self, size: int = MAX_BYTES) -> bytes:
        """Read what is there, at most `size` bytes; b"": they have ended.

        Raises:
            BlockingIOError: there is nothing now.
            OSError: it was reset, the engine was killed (ECONNRESET) or broke the
                rules (EPROTO).
        """
        count = min(self._checked(self._readable()), size)
        if not count:
            return b""
        way = self._in
        at = way.position & (way.size - 1)
        first = min(count, way.size - at)
        data = self._memory[way.data + at : way.data + at + first]
        data += self._memory[way.data : way.data + count - first]
        way.advance(count)
        self._fence()
        # one who waits for room gets half of it at once
        if way.used() <= way.size // 2 and way.sleeps():
            self._ring()
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Write what fits; return how many bytes did.

        Raises:
            BlockingIOError: none did.
            BrokenPipeError: no more are taken.
            OSError: it was reset, or the engine broke the rules (EPROTO).
        """
        count = min(self._checked(self._room()), len(data))
        way = self._out
        at = way.position & (way.size - 1)
        first = min(count, way.size - at)
        self._memory[way.data + at : way.data + at + first] = data[:first]
        self._memory[way.data : way.data + count - first] = data[first:count]
        way.advance(count)
        self._fence()
        if way.sleeps():
            self._ring()
        return count

    # ---- waiting ----

    def ready(self, want: int) -> int:
        """Return those of READ and WRITE for which there is something to do."""
        found = 0
        if want & READ and self._readable() != -errno.EAGAIN:
            found |= READ
        if want & WRITE and self._room() != -errno.EAGAIN:
            found |= WRITE
        return found

    def rest(self, want: int) -> bool:
        """Ask to be woken for this, and nothing else; False: there is something."""
        self._in.set_sleep(asleep=bool(want & READ))
        self._out.set_sleep(asleep=bool(want & WRITE))
        self._fence()
        if not self.gone and not self.ready(want):
            return True
        self._awake()
        return False

    def woken(self) -> None:
        """Take the wake-ups: our descriptor is readable."""
        try:
            while self._sock.recv(64, socket.MSG_DONTWAIT):
                pass
            self.gone = True
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True
        self._awake()

    def wait(self, want: int, timeout_s: float | None = None) -> int:
        """Wait until there is something to do: spin, then sleep.

        Returns:
            Those of `want` for which there is; 0: the time is up.
        """
        start = time.monotonic()
        while time.monotonic() - start < self._window_us / 1e6:
            if found := self.ready(want):
                return found
        while self.rest(want):
            begun = time.monotonic()
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            woken = poll.poll(None if timeout_s is None else timeout_s * 1e3)
            self._adapt((time.monotonic() - begun) * 1e6)
            if not woken:
                self._awake()
                return 0
            self.woken()
        return self.ready(want) or want

    async def read(self, size: int = MAX_BYTES) -> bytes:
        """Read as `recv` does, once there is something."""
        while True:
            try:
                return self.recv(size)
            except BlockingIOError:
                await self._until(READ)

    async def write(self, data: bytes | memoryview) -> None:
        """Write all of it, as there is room."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.send(view) :]
            except BlockingIOError:
                await self._until(WRITE)

    # ---- the end ----

    def shutdown(self, what: int) -> None:
        """Read no more, write no more, or both."""
        if what & WRITE:
            self._out.say(State.ENDED)
        if what & READ:
            self._in.say(State.ENDED)
        self._ring()

    def reset(self, error: int = errno.ECONNRESET) -> None:
        """End all at once, with an error."""
        for way in (self._out, self._in):
            way.say(State.RESET | error << 8)
        self._ring()

    def close(self) -> None:
        """Let go of it; what was written still arrives. Again: nothing.

        Bytes that came and were not read make it a reset, as with a socket.
        """
        if self.closed:
            return
        self.closed = True
        self._wake_all()
        if self._readable() > 0:
            self.reset()
        for way in (self._out, self._in):
            way.say(State.ENDED)
        self._sock.close()
        os.close(self._bell)
        self._words.release()
        self._memory.close()

    # ---- inside ----

    def _readable(self) -> int:
        """Return how many bytes are there; 0: they have ended; or -errno."""
        end = self._in.verdict()  # before the position: the last bytes come first
        used = self._in.used()
        if end and end != errno.EPIPE:
            return -end
        if used > self._in.size:
            return -errno.EPROTO
        return used or (0 if end else -errno.EAGAIN)

    def _room(self) -> int:
        """Return how many bytes fit; or -errno."""
        end = self._out.verdict()
        used = -self._out.used() & WORD
        if end:
            return -end
        if used > self._out.size:
            return -errno.EPROTO
        return self._out.size - used or -errno.EAGAIN

    def _checked(self, count: int) -> int:
        if count >= 0:
            return count
        if count == -errno.EAGAIN and self.gone:
            count = -errno.ECONNRESET
        raise OSError(-count, os.strerror(-count))

    def _fence(self) -> None:
        self._lock.acquire()
        self._lock.release()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # then a wake-up is pending
            os.write(self._bell, _BELL)

    def _awake(self) -> None:
        self._in.set_sleep(asleep=False)
        self._out.set_sleep(asleep=False)

    def _adapt(self, slept_us: float) -> None:
        """Learn from how long a sleep took how long to spin."""
        longer = max(4.0, 2 * self._window_us)
        window = self._window_us / 2 if slept_us >= POLL_US else longer
        self._window_us = min(window, POLL_US)

    async def _until(self, want: int) -> None:
        """Wait until there is something to do, or nearly: look again then."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        if not self._waiters:
            loop.add_reader(self._sock, self._readers_woken)
        self._waiters.append((want, waiter))
        wanted = 0
        for each, _ in self._waiters:
            wanted |= each
        if not self.rest(wanted):
            self._wake_all()
        try:
            await waiter
        finally:
            if (want, waiter) in self._waiters:  # it was cancelled
                self._waiters.remove((want, waiter))
                if not self._waiters:
                    loop.remove_reader(self._sock)

    def _readers_woken(self) -> None:
        self.woken()
        self._wake_all()

    def _wake_all(self) -> None:
        if not self._waiters:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def take(sock: socket.socket) -> tuple[Ring, Hello]:
    """Take the memory of a connection; answer it then.

    Args:
        sock: unix SOCK_SEQPACKET socket from accept(), taken over on success; it never
            blocks from now on.

    Raises:
        BlockingIOError: its message has yet to come.
        OSError: that isn't one (EPROTO), is of another version (EPROTONOSUPPORT), or
            the memory can't be mapped.
    """
    sock.setblocking(False)
    data, fds, _, _ = socket.recv_fds(sock, HELLO.size, 2)
    try:
        hello = Hello.decode(data)
        memory = _map(fds, hello)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    os.close(fds[0])
    return Ring(sock, fds[1], memory, hello), hello


def listen(path: Path, *, backlog: int = 1024) -> socket.socket:
    """Return a listening socket at `path`, which must be free.

    Raises:
        OSError: it isn't, or can't be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.bind(str(path))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


async def serve(
    listener: socket.socket, handle: Callable[[Ring, Hello], Awaitable[None]]
) -> None:
    """Answer all connections and have each handled, in a task; until cancelled.

    Args:
        listener: of `listen`; stays the caller's.
        handle: handles one. The ring is closed when it is done, and reset if it
            raises: an OSError is none of its faults, another error is logged.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors: others may end meanwhile
                log.warning("no connection is taken for a while: %s", error)
                await asyncio.sleep(REST_S)
                continue
            tasks.create_task(_serve_one(sock, handle))


async def _serve_one(
    sock: socket.socket, handle: Callable[[Ring, Hello], Awaitable[None]]
) -> None:
    try:
        async with asyncio.timeout(HELLO_S):
            await _readable(sock)
        ring, hello = take(sock)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        log.warning("a connection that is none of ours: %s", error)
        sock.close()
        return
    try:
        with ring:
            ring.answer()
            await handle(ring, hello)
    except OSError:
        pass  # the other end's
    except Exception:
        log.exception("connection %d: its handler failed", hello.conn)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    came = loop.create_future()
    loop.add_reader(sock, _settle, came)
    try:
        await came
    finally:
        loop.remove_reader(sock)


def _settle(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)


def _map(fds: list[int], hello: Hello) -> mmap.mmap:
    """Map memory that can't be taken away.

    Raises:
        OSError: it can, or has another size than was said.
    """
    size = DATA + hello.up_bytes + hello.down_bytes
    if len(fds) != 2:
        raise OSError(errno.EPROTO, "descriptors are missing")
    try:
        sealed = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        sealed = False
    if not sealed or os.fstat(fds[0]).st_size != size:
        raise OSError(errno.EPROTO, "the memory isn't sealed, or of another size")
    return mmap.mmap(fds[0], size)
