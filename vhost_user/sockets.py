"""Listening unix sockets whose file is never stolen and never left behind.

A socket file outlives the process that bound it, so `bind()` alone can't tell a dead
owner from a live one. Here the file of a dead one is replaced and that of a live
one is an error. Two processes that start at once settle it under a lock on the
directory, which needs no file of its own and goes away with its holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import math
import os
import socket
import stat
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

MAX_PATH: Final = 107
"""Bytes of path that fit into a sockaddr_un with the final NUL."""

_LOCK_TIMEOUT_S: Final = 2.0
_FULL_RETRY_S: Final = 0.5
_REPORT_S: Final = 60.0
_BACKLOG: Final = 128
_SO_PASSRIGHTS: Final = 83

# What connect() says to a stream socket when somebody listens; the last two: its
# backlog is full, it isn't for streams.
_LIVE: Final = {0, errno.EAGAIN, errno.EPROTOTYPE}
# What accept() says when this process or the machine has no room for one more.
_FULL: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Listener:
    """Accepts clients on a listening socket and hands each to a callback.

    Args:
        name: what messages call it.
        on_client: gets each client, non-blocking, and owns it. Called in the
            event loop.
    """

    def __init__(self, name: str, on_client: Callable[[socket.socket], None]) -> None:
        self._name = name
        self._on_client = on_client
        self._sock: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._told_at = -math.inf

    def listen(self, sock: socket.socket) -> None:
        """Accept from now on; `sock` listens, does not block, and is taken over."""
        self._sock = sock
        self.resume()

    def pause(self) -> None:
        """Leave further clients in the backlog."""
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def resume(self) -> None:
        """Accept clients again."""
        if self._sock is not None:
            asyncio.get_running_loop().add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        if self._sock is None:
            return
        self.pause()
        self._sock.close()
        self._sock = None

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            client, _ = self._sock.accept()
        except OSError as error:
            if error.errno in _FULL:
                self._wait_for_room(error)
            return  # else: the client has gone again
        client.setblocking(False)
        self._on_client(client)

    def _wait_for_room(self, error: OSError) -> None:
        """Let clients wait: the socket stays readable and would spin the loop."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._told_at >= _REPORT_S:
            log.warning("%s: can't accept: %s; waiting", self._name, error.strerror)
            self._told_at = loop.time()
        self.pause()
        self._retry = loop.call_later(_FULL_RETRY_S, self.resume)


class UnixListener(Listener):
    """Listens on a unix socket that it makes and removes.

    Args:
        path: where the socket is made by `start()` and removed by `close()`.
        on_client: as `Listener`'s.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        rights: clients may send file descriptors. Where nobody takes them, the kernel
            closes them on our thread, which can take for ever (SO_LINGER); Linux 6.16
            and younger don't let them be sent, then.
    """

    def __init__(
        self,
        path: Path,
        on_client: Callable[[socket.socket], None],
        *,
        kind: int = socket.SOCK_STREAM,
        rights: bool = False,
    ) -> None:
        super().__init__(str(path), on_client)
        self.path = path
        self._kind = kind
        self._rights = rights
        self._identity = (0, 0)

    def start(self) -> None:
        """Make the socket and accept from now on.

        Raises:
            OSError: it can't be made; EADDRINUSE: a live process listens there, or
                the file isn't a socket. `filename` is set.
        """
        sock = _listen(self.path, self._kind)
        if not self._rights:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        status = self.path.stat()
        self._identity = (status.st_dev, status.st_ino)
        self.listen(sock)

    def close(self) -> None:
        """Stop listening and remove the file; a second call does nothing."""
        if self._sock is None:
            return
        super().close()
        with contextlib.suppress(OSError):
            status = self.path.stat(follow_symlinks=False)
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()


def _listen(path: Path, kind: int) -> socket.socket:
    if len(os.fsencode(path)) > MAX_PATH:
        reason = os.strerror(errno.ENAMETOOLONG)
        raise OSError(errno.ENAMETOOLONG, reason, str(path))
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        with _locked(path.parent):
            _remove_stale(path)
            sock.bind(os.fsencode(path))
            sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        error.filename = str(path)
        raise
    return sock


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock on `directory`; TimeoutError after `_LOCK_TIMEOUT_S`."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        errno.ETIMEDOUT, f"{directory} stays locked"
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a dead process; raise OSError if it isn't one."""
    try:
        mode = path.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, "exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(os.fsencode(path))
    if refused in _LIVE:
        raise OSError(errno.EADDRINUSE, "a live process listens there")
    if refused != errno.ECONNREFUSED:
        raise OSError(refused, os.strerror(refused))
    path.unlink()
