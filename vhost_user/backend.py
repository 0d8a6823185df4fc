"""A vhost-user back-end on a unix socket: frames, file descriptors, lifetimes.

One front-end is served at a time; the next waits in the socket's backlog until the
first is gone, so a front-end that comes back at once is never refused. Whatever a
front-end sends or does, it ends at most its own session.

Spec: vhost-user, "Communication".
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

from vhost_user.device import Device
from vhost_user.engine import ALL_QUEUES
from vhost_user.errors import FrontendError
from vhost_user.message import HEADER_SIZE, MAX_REGIONS, Header, Message, Reply
from vhost_user.session import Session
from vhost_user.sockets import UnixListener

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["MAX_FDS", "Backend", "Device", "serve"]

log = logging.getLogger(__name__)

MAX_FDS: Final = MAX_REGIONS
"""File descriptors that may come with one message."""


class Backend:
    """Serves one device on a unix socket.

    Args:
        path: the socket, made by `start()` and removed by `close()`.
        device: stays the caller's, who ends it after `close()`.
        name: begins each log line.
    """

    def __init__(self, path: Path, device: Device, *, name: str = "vhost-user") -> None:
        self.path = path
        self.connected = asyncio.Event()
        """Set while a front-end is there."""
        self._device = device
        self._name = name
        self._listener = UnixListener(path, self._on_client)
        self._connection: _Connection | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket can't be made; `filename` is set.
        """
        self._listener.start()
        self._device.on_ring_broke = self._ring_broke
        self._device.on_config_change = self._config_changed

    async def close(self) -> None:
        """End the session, stop listening, remove the socket."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self.connected.clear()

    def _ring_broke(self, queue: int) -> None:
        if self._connection is None:
            return
        if queue == ALL_QUEUES:
            why = "guest memory is gone (its file was truncated), or interrupts block"
            self._on_end(FrontendError(why))
        else:
            self._connection.session.ring_broke(queue)

    def _config_changed(self) -> None:
        if self._connection is not None:
            self._connection.session.config_changed()

    def _on_client(self, sock: socket.socket) -> None:
        self._listener.pause()
        log.info("%s: front-end connected", self._name)
        self._connection = _Connection(sock, Session(self._device), self._on_end)
        self.connected.set()

    def _on_end(self, error: Exception | None) -> None:
        assert self._connection is not None
        match error:
            case None:
                log.info("%s: front-end disconnected", self._name)
            case FrontendError() | OSError():
                log.warning("%s: session ended: %s", self._name, error)
            case _:
                log.error("%s: session ended by a bug", self._name, exc_info=error)
        try:
            self._connection.close()
        except Exception:
            log.exception("%s: the device can't be reset", self._name)
        self._connection = None
        self.connected.clear()
        self._listener.resume()


async def serve(path: Path, device: Device, *, name: str) -> None:
    """Serve one device until SIGTERM or SIGINT: all that a small back-end's main does.

    Says "ready" on stderr once a VMM may connect.

    Raises:
        OSError: the socket can't be made.
    """
    stop = asyncio.Event()
    for signo in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signo, stop.set)
    backend = Backend(path, device, name=name)
    await backend.start()
    try:
        sys.stderr.write(f"{name}: ready: {path}\n")
        sys.stderr.flush()
        await stop.wait()
    finally:
        await backend.close()


class _Connection:
    """Cuts one front-end's byte stream into messages for its session.

    Reads exactly a header, then exactly its payload: the kernel hands out file
    descriptors with the first byte that they were sent with, so those of the next
    message can never be taken for this one's.

    Args:
        on_end: called once, with the reason, when the session should be closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self.session = session
        self._sock = sock
        self._on_end = on_end
        self._buf = bytearray()
        self._header: Header | None = None
        self._fds: list[int] = []
        asyncio.get_running_loop().add_reader(sock, self._readable)

    def close(self) -> None:
        """Take everything back from the device and hang up."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        Message(0, fds=self._fds).close()
        self.session.close()

    def _readable(self) -> None:
        try:
            more = self._read()
        except Exception as error:
            self._on_end(error)
        else:
            if not more:
                self._on_end(None)

    def _read(self) -> bool:
        """Read what one system call gives; return False at the stream's end."""
        size = HEADER_SIZE if self._header is None else self._header.size
        try:
            data, fds, flags, _ = socket.recv_fds(
                self._sock,
                size - len(self._buf),
                MAX_FDS,
                socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT,
            )
        except BlockingIOError:
            return True
        self._fds += fds
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise FrontendError(f"more than {MAX_FDS} fds, or no room for them")
        if not data:
            if self._buf or self._header:
                raise FrontendError("hung up in the middle of a message")
            return False
        self._buf += data
        if len(self._buf) == size:
            self._frame()
        return True

    def _frame(self) -> None:
        """Take the complete header or payload out of the buffer."""
        if self._header is None:
            self._header = Header.decode(self._buf)
            self._buf.clear()
            if self._header.size:
                return
        header, self._header = self._header, None
        message = Message(
            header.request, bytes(self._buf), self._fds, header.need_reply
        )
        self._buf.clear()
        self._fds = []
        reply = self.session.receive(message)
        if reply is not None:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        try:
            sent = socket.send_fds(self._sock, [reply.data], reply.fds)
        except BlockingIOError:
            sent = 0
        if sent != len(reply.data):
            raise FrontendError("asks, but does not read the replies")
