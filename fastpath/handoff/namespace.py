"""A pod's network namespace, and the process in it that makes its sockets.

A `PodNamespace` is opened by its path, once: what that path names later is another
namespace, and this one is *gone*. The process (vhost_user/native/maker) is started
once, and anew only if it is lost while the namespace is there: it died, or is silent.

    OPEN ---> RUNNING <---> LOST        the process is lost; a new one is started
      |          |            |
      +----------+------------+--> CLOSED

Spec: network_namespaces(7), ioctl_ns(2), setns(2).
"""

from __future__ import annotations

import asyncio
import enum
import errno
import fcntl
import logging
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.handoff.control import ANSWER, Control
from vhost_user import _vu

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM: Final = Path(_vu.__file__).with_name("_maker")
START_S: Final = 60.0
"""For the process to start, and to enter."""
RESTART_S: Final = 1.0
"""Between two starts."""

_NS_GET_NSTYPE: Final = 0xB703
_CLONE_NEWNET: Final = 0x4000_0000
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH})
_HINTS: Final = {
    errno.ENOENT: "make it first (ip netns add NAME), or name the pod's: "
    "/run/netns/NAME or /proc/PID/ns/net",
    errno.EACCES: "run as root, or as the user that may enter it",
    errno.EPERM: "run as root: to enter it takes CAP_SYS_ADMIN, here and in the user"
    " namespace that it belongs to",
}
_NO_DESCRIPTOR: Final = "raise the limit of open files (ulimit -Hn)"
_NO_PROGRAM: Final = "install it anew (make setup)"
_NO_NAMESPACE: Final = "name one as /run/netns/NAME or /proc/PID/ns/net"

log = logging.getLogger(__name__)


class State(enum.Enum):
    """Of the process in a namespace."""

    OPEN = "open"
    """Not started yet."""
    RUNNING = "running"
    LOST = "lost"
    """It is of no use any more; a new one comes."""
    CLOSED = "closed"


class NamespaceError(Exception):
    """A namespace can't be opened or entered.

    Args:
        why: what is wrong.
        hint: what mends it.
    """

    def __init__(self, why: str, hint: str | None) -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


class PodNamespace:
    """One network namespace. All methods belong to the event loop's thread.

    Args:
        path: /run/netns/NAME, /proc/PID/ns/net or the like.

    Raises:
        NamespaceError: there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = _open(path)
        status = os.fstat(self._fd)
        self._identity = status.st_dev, status.st_ino
        self._state = State.OPEN
        self._control: Control | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restarted: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None

    def fileno(self) -> int:
        """The namespace's descriptor; ours to close."""
        return self._fd

    @property
    def state(self) -> State:
        """Of its process."""
        return self._state

    @property
    def pid(self) -> int:
        """Of its process; 0: there is none."""
        return self._process.pid if self._process else 0

    @property
    def gone(self) -> bool:
        """Whether its path names it no more: its pod is over."""
        try:
            status = self.path.stat()
        except OSError as error:
            return error.errno in _GONE
        return (status.st_dev, status.st_ino) != self._identity

    async def start(self) -> None:
        """Start the process, and wait until it is in the namespace.

        Raises:
            NamespaceError: it may not enter.
        """
        ours = self._spawn()
        try:
            await _ready(ours)
        except BaseException:
            ours.close()
            self._end()
            raise
        self._control = Control(ours, self._lost)
        self._state = State.RUNNING

    def on_restart(self, call: Callable[[], None]) -> None:
        """Have `call` called when there is another process: channels are to be new."""
        self._restarted.append(call)

    def suspect(self, why: str) -> None:
        """Start another process if this one runs: it is of no use to who asked it.

        Args:
            why: what it did.
        """
        if self._state is State.RUNNING:
            self._lost(why)

    def channel(self) -> socket.socket:
        """Return a socket by which an engine gets sockets (`Engine.add_netns()`).

        Raises:
            OSError: the process is not there.
        """
        return self._running().channel()

    def make(self, family: int, kind: int) -> socket.socket:
        """Make a socket there. It hardly waits for the process (`Control.take`).

        Args:
            family: AF_INET or AF_INET6.
            kind: SOCK_STREAM or SOCK_DGRAM.

        Raises:
            OSError: there is none to be had now.
        """
        return self._running().take(family, kind)

    def close(self) -> None:
        """Let go of the namespace, and end the process."""
        if self._state is State.CLOSED:
            return
        self._end()
        self._state = State.CLOSED
        if self._task is not None:
            self._task.cancel()
        os.close(self._fd)

    def _spawn(self) -> socket.socket:
        """Start the process, on this thread, with whose end it ends."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            why = f"its process can't be asked: {error.strerror}"
            raise NamespaceError(why, _NO_DESCRIPTOR) from error
        ours.setblocking(False)
        fds = (self._fd, theirs.fileno())
        try:
            self._process = subprocess.Popen(
                [PROGRAM, *(str(number) for number in (*fds, os.getpid()))],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
            )
        except OSError as error:
            ours.close()
            why = f"its process can't be started: {PROGRAM}: {error.strerror}"
            raise NamespaceError(why, _NO_PROGRAM) from error
        finally:
            theirs.close()
        return ours

    def _running(self) -> Control:
        if self._state is State.RUNNING and self._control is not None:
            return self._control
        number = errno.EAGAIN if self._state is State.LOST else errno.ENETUNREACH
        raise OSError(number, os.strerror(number))

    def _lost(self, why: str) -> None:
        """Start another process, unless the namespace is going, too."""
        self._end()
        self._state = State.LOST
        if not self.gone:
            log.warning("%s: its process is lost (%s), another one starts", self, why)
        self._task = asyncio.get_running_loop().create_task(self._restart())

    async def _restart(self) -> None:
        told = ""
        while self._state is State.LOST:
            await asyncio.sleep(RESTART_S)
            if self.gone:  # whoever looks for that closes us
                continue
            try:
                await self.start()
            except NamespaceError as error:
                if told != str(error):
                    told = str(error)
                    log.error("%s: no process in it: %s", self, told)  # noqa: TRY400
                continue
            for call in self._restarted:
                call()

    def _end(self) -> None:
        """End the process, which has nothing to lose."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __str__(self) -> str:
        return str(self.path)


async def _ready(ours: socket.socket) -> None:
    """Wait for the first message of a process.

    Raises:
        NamespaceError: it can't enter, or isn't heard of.
    """
    try:
        async with asyncio.timeout(START_S):
            loop = asyncio.get_running_loop()
            said = await loop.sock_recv(ours, ANSWER.size + 1)
    except OSError as error:  # a time-out is one
        why = f"its process says nothing: {error.strerror or 'for too long'}"
        raise NamespaceError(why, None) from error
    if len(said) != ANSWER.size:
        why = "says nonsense" if said else "ended"
        raise NamespaceError(f"its process {why}", None)
    number = ANSWER.unpack(said)[0]
    if number:
        why = f"can't be entered: {os.strerror(number)}"
        raise NamespaceError(why, _HINTS.get(number))


def _open(path: Path) -> int:
    """Open a network namespace.

    Raises:
        NamespaceError: there is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        why = f"{path}: {error.strerror}"
        number = errno.ENOENT if error.errno in _GONE else error.errno or 0
        raise NamespaceError(why, _HINTS.get(number)) from error
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise NamespaceError(f"{path} is no network namespace", _NO_NAMESPACE)
    return fd
