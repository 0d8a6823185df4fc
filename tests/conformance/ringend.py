"""The process at the other end of a guest's ring, seen as a socket is."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Self

from fastpath.handoff import ring as rings
from fastpath.handoff.ring import READ, WRITE
from tests.conformance.threads import TIMEOUT_S

if TYPE_CHECKING:
    from fastpath.handoff.ring import Ring

FLAGS = {
    socket.SHUT_RD: READ,
    socket.SHUT_WR: WRITE,
    socket.SHUT_RDWR: READ | WRITE,
}


class RingEnd:
    """What the tests of connections do with a socket, done with a ring."""

    family = socket.AF_UNIX
    """Like a unix socket, it tells what its other end no longer does."""
    type = socket.SOCK_STREAM

    def __init__(self, sock: socket.socket, *, error: int = 0) -> None:
        sock.settimeout(TIMEOUT_S)
        sock.recv(1, socket.MSG_PEEK)  # the hello is there
        self.ring: Ring
        self.ring, self.hello = rings.take(sock)
        self._timeout: float | None = TIMEOUT_S
        self._got = 0
        self._final: int | None = None
        self.ring.answer(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def taken(self) -> int:
        """Bytes that it took, read or not."""
        if self._final is not None:
            return self._final
        return self._got + self.ring._in.used()

    def settimeout(self, timeout_s: float | None) -> None:
        self._timeout = timeout_s

    def setblocking(self, flag: bool) -> None:  # socket's own
        self._timeout = TIMEOUT_S if flag else 0

    def fileno(self) -> int:
        return self.ring.fileno()

    def recv(self, size: int) -> bytes:
        data: bytes = self._do(READ, lambda: self.ring.recv(size))
        self._got += len(data)
        return data

    def send(self, data: bytes) -> int:
        count: int = self._do(WRITE, lambda: self.ring.send(data))
        return count

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[self.send(data) :]

    def shutdown(self, how: int) -> None:
        self.ring.shutdown(FLAGS[how])

    def close(self) -> None:
        if self._final is None:
            self._final = self.taken
        self.ring.close()

    def _do(self, want, action):
        while True:
            try:
                return action()
            except BlockingIOError:
                if self._timeout == 0:
                    raise
            if not self.ring.wait(want, self._timeout):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
