"""File descriptors from a front-end: which kinds there are, and how they end.

Whoever sends a descriptor keeps the open file description: it can change its flags at
any time, O_NONBLOCK among them, and may be the one that serves the file. So what a call
on it costs is the sender's to decide, and "a file" can mean for ever: FUSE and NFS
answer reads, page faults, fstat(), fstatfs() and close() when they like, a TCP socket
lingers in close(), a pipe has a lock that its other users can hold. One event loop
serves many VMs; it makes calls on two kinds only:

    EVENTFD   `notify.py` signals it without waiting; reading has RWF_NOWAIT
    RAM       memory itself, tmpfs (memfds are that) and hugetlbfs: nobody serves it

What else is taken at all, or has to be closed, is left to an `Offload`.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import enum
import fcntl
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vhost_user.errors import FrontendError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_OFFLOADED: Final = 64
"""Calls of one front-end that may wait at a time; more end its session."""

THREAD_NAME: Final = "vu-offload"


class Kind(enum.Enum):
    """What a descriptor is; the names are used in messages."""

    EVENTFD = "an eventfd"
    PIPE = "a pipe"
    SOCKET = "a socket"
    RAM = "memory (tmpfs, hugetlbfs)"
    OTHER = "another file"


class MemoryFiles(enum.Enum):
    """Which files a VM's memory may be in."""

    RAM = "ram"
    """tmpfs, memfds and hugetlbfs."""
    ANY = "any"
    """Any file that can be mapped: whoever serves it can stop the back-end."""


@dataclass(frozen=True, slots=True)
class Received:
    """What came on a unix socket."""

    data: bytes
    """b"": the end."""
    fds: list[int]
    """The caller's, now."""
    truncated: bool
    """More descriptors came than there was room for."""


_FD: Final = array.array("i")
_NAMES: Final = {"anon_inode:[eventfd]": Kind.EVENTFD}
_PREFIXES: Final = {"pipe:[": Kind.PIPE, "socket:[": Kind.SOCKET}
_LIBC: Final = ctypes.CDLL(None)
_CLOSE_AT_ONCE: Final = {Kind.EVENTFD, Kind.RAM}


def kind_of(fd: int) -> Kind:
    """Return what `fd` is, without a call that its file could answer late.

    The kernel's own names have no leading slash, and no file's path lacks it. Seals are
    known to tmpfs and hugetlbfs only, even where a file has none.
    """
    name = str(Path(f"/proc/self/fd/{fd}").readlink())
    if kind := _NAMES.get(name):
        return kind
    for prefix, kind in _PREFIXES.items():
        if name.startswith(prefix):
            return kind
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        return Kind.RAM
    return Kind.OTHER


def require(fd: int, *kinds: Kind, what: str) -> Kind:
    """Return the kind of `fd`.

    Raises:
        FrontendError: it is none of `kinds`.
    """
    kind = kind_of(fd)
    if kind not in kinds:
        wanted = " or ".join(each.value for each in kinds)
        raise FrontendError(f"{what} is {kind.value}, need {wanted}")
    return kind


def require_memory(fd: int, allowed: MemoryFiles, *, what: str) -> None:
    """Check a file that is to be mapped.

    Raises:
        FrontendError: it is not allowed.
    """
    if kind_of(fd) is not Kind.OTHER:
        require(fd, Kind.RAM, what=what)
    elif allowed is MemoryFiles.RAM:
        raise FrontendError(
            f"{what} is not in {Kind.RAM.value} (hint: use a memfd, or allow any file "
            "with --memory-files any)"
        )


def is_unix_stream(fd: int) -> bool:
    """Is it a stream socket of the family AF_UNIX?

    `socket.socket(fileno=fd)` would ask more: getsockname() takes a TCP socket's lock.
    """
    return (_option(fd, socket.SO_DOMAIN), _option(fd, socket.SO_TYPE)) == (
        socket.AF_UNIX,
        socket.SOCK_STREAM,
    )


def _option(fd: int, name: int) -> int:
    value = ctypes.c_int(-1)
    size = ctypes.c_uint(ctypes.sizeof(value))
    _LIBC.getsockopt(
        *(fd, socket.SOL_SOCKET, name),
        *(ctypes.byref(value), ctypes.byref(size)),
    )
    return value.value


def receive(sock: socket.socket, size: int, most_fds: int) -> Received:
    """Receive at most `size` bytes, and the descriptors that came with them.

    Without waiting if the socket does not, and no child of ours inherits them:
    `socket.recv_fds()` drops its flags (CPython 3.11), MSG_CMSG_CLOEXEC too.

    Raises:
        OSError: as `recvmsg()`.
    """
    data, control, flags, _ = sock.recvmsg(
        size, socket.CMSG_LEN(most_fds * _FD.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array(_FD.typecode)
    for level, kind, part in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(part[: len(part) - len(part) % _FD.itemsize])
    return Received(data, list(fds), truncated=bool(flags & socket.MSG_CTRUNC))


class Offload:
    """Makes calls that may wait for ever, each in a thread of its own.

    Belongs to one front-end, or to a row of them on one socket: whoever leaves calls
    that wait is not followed by another, so what they hold is bounded.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._on_idle: Callable[[], None] | None = None

    @property
    def waiting(self) -> int:
        """Calls that have not returned yet."""
        return self._waiting

    def check(self) -> None:
        """Raise FrontendError if too many calls wait."""
        if self._waiting > MAX_OFFLOADED:
            raise FrontendError(
                f"{self._waiting} calls wait for file descriptors that it sent"
            )

    def run(self, call: Callable[[], object]) -> None:
        """Make `call` in a thread; it raises nothing."""
        with self._lock:
            self._waiting += 1
        threading.Thread(
            target=self._run, args=(call,), name=THREAD_NAME, daemon=True
        ).start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        finally:
            with self._lock:
                self._waiting -= 1
                idle, self._on_idle = (
                    (self._on_idle, None)
                    if not self._waiting
                    else (None, self._on_idle)
                )
            if idle is not None:
                idle()

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call back once no call waits: now, or on another thread."""
        with self._lock:
            if self._waiting:
                self._on_idle = callback
                return
        callback()

    def close(self, fd: int) -> None:
        """Close `fd`, whatever it is."""
        if kind_of(fd) in _CLOSE_AT_ONCE:
            os.close(fd)
        else:
            self.run(lambda: _close(fd))


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # NFS reports what it could not write
        os.close(fd)
