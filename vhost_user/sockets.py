"""Listening unix sockets whose file is never stolen and never left behind.

A socket file outlives the process that bound it, so `bind()` alone can't tell a dead
owner from a live one. Here the file of a dead one is replaced and that of a live
one is an error. Two processes that start at once take turns (`vhost_user.turns`).

A socket is never open to more users than asked for, not even while it is made: Linux
gives the file the mode of the unbound socket (unix(7): fchmod() before bind()), and
who may connect is settled before listen().
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import math
import os
import re
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_user.turns import turn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

MAX_PATH: Final = 107
"""Bytes of path that fit into a sockaddr_un with the final NUL."""

_FULL_RETRY_S: Final = 0.5
_REPORT_S: Final = 60.0
_BACKLOG: Final = 128
_SO_PASSRIGHTS: Final = 83

# What connect() says to a stream socket when somebody listens; the last two: its
# backlog is full, it isn't for streams.
_LIVE: Final = {0, errno.EAGAIN, errno.EPROTOTYPE}
# What accept() says when this process or the machine has no room for one more.
_FULL: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

DEFAULT_SOCKET_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect to a unix socket: who may write to its file."""

    mode: int = DEFAULT_SOCKET_MODE
    """Permission bits. The default leaves it to its owner: who connects to a VM's
    vhost-user socket *is* that VM, and to its hybrid socket, the host."""
    group: int | None = None
    """The file's group id; None: as the system has it."""


def parse_mode(text: str) -> int:
    """Read permission bits in octal (`660`, `0660`), or raise `ValueError`."""
    if not re.fullmatch("0?[0-7]{3}", text):
        raise ValueError(f"{text!r} is not a mode in octal, such as 0660")
    mode = int(text, 8)
    if mode & DEFAULT_SOCKET_MODE != DEFAULT_SOCKET_MODE:
        raise ValueError(f"{text!r} keeps the socket's owner out; 0600 is the least")
    return mode


def parse_group(text: str) -> int:
    """Read a group's name or number, or raise `ValueError`."""
    if text.isascii() and text.isdecimal() and int(text) < 2**32 - 1:
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):  # ValueError: a NUL in it
        raise ValueError(f"there is no group {text!r}") from None


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
        access: who may connect.
    """

    def __init__(
        self,
        path: Path,
        on_client: Callable[[socket.socket], None],
        *,
        kind: int = socket.SOCK_STREAM,
        rights: bool = False,
        access: Access = Access(),
    ) -> None:
        super().__init__(str(path), on_client)
        self.path = path
        self._kind = kind
        self._rights = rights
        self._access = access
        self._identity = (0, 0)

    async def start(self) -> None:
        """Make the socket and accept from now on.

        Raises:
            OSError: it can't be made; EADDRINUSE: a live process listens there, or
                the file isn't a socket. `filename` is set.
        """
        sock = await _listen(self.path, self._kind, self._access)
        if not self._rights:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        status = self.path.stat(follow_symlinks=False)
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


async def _listen(path: Path, kind: int, access: Access) -> socket.socket:
    if len(os.fsencode(path)) > MAX_PATH:
        reason = os.strerror(errno.ENAMETOOLONG)
        raise OSError(errno.ENAMETOOLONG, reason, str(path))
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        async with turn(path):
            _remove_stale(path)
            _bind(sock, path, access)
        sock.setblocking(False)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    return sock


def _bind(sock: socket.socket, path: Path, access: Access) -> None:
    os.fchmod(sock.fileno(), DEFAULT_SOCKET_MODE)
    sock.bind(os.fsencode(path))
    try:
        _open_to(path, access)
        sock.listen(_BACKLOG)
    except OSError:
        path.unlink()
        raise


def _open_to(path: Path, access: Access) -> None:
    """Give the socket that was just bound its group and mode.

    By a descriptor: where others may write to the directory, the name may be
    another file's by now.
    """
    if access == Access():
        return
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(errno.EADDRINUSE, "was replaced by another user")
        itself = f"/proc/self/fd/{fd}"
        if access.group is not None:
            os.chown(itself, -1, access.group)
        os.chmod(itself, access.mode)  # noqa: PTH101  # a Path would say no more
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
