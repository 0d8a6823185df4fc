"""A vhost-user back-end on a unix socket: frames, file descriptors, lifetimes.

One front-end is served at a time; the next waits in the socket's backlog until the
first is gone, so a front-end that comes back at once is never refused. Whatever a
front-end sends or does, it ends at most its own session.

Spec: vhost-user, "Communication".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from typing import TYPE_CHECKING, Final

from vhost_user.closing import stop_event
from vhost_user.descriptors import MemoryFiles, Offload, receive
from vhost_user.device import Device
from vhost_user.engine import ALL_QUEUES
from vhost_user.errors import FrontendError
from vhost_user.message import HEADER_SIZE, MAX_REGIONS, Header, Message, Reply
from vhost_user.requests import RefusedError
from vhost_user.session import Session
from vhost_user.sockets import Access, UnixListener

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["MAX_FDS", "Backend", "Device", "serve"]

log = logging.getLogger(__name__)

MAX_FDS: Final = MAX_REGIONS
"""File descriptors that may come with one message."""

_ANY_FDS: Final = 253
"""SCM_MAX_FD: room for all that can come at once. Those that found none would be closed
by the kernel on our thread, whatever they are."""

_DRAIN: Final = 1 << 16
_PATIENCE_S: Final = 5.0


class Backend:
    """Serves one device on a unix socket.

    Args:
        path: the socket, made by `start()` and removed by `close()`.
        device: stays the caller's, who ends it after `close()`.
        name: begins each log line.
        memory_files: which files the memory of a front-end may be in.
        access: who may connect: be the device's VM.
    """

    def __init__(
        self,
        path: Path,
        device: Device,
        *,
        name: str = "vhost-user",
        memory_files: MemoryFiles = MemoryFiles.RAM,
        access: Access = Access(),  # noqa: B008  frozen
    ) -> None:
        self.path = path
        self.connected = asyncio.Event()
        """Set while a front-end is there."""
        self._device = device
        self._name = name
        self._memory_files = memory_files
        self._offload = Offload()
        self._listener = UnixListener(path, self._on_client, rights=True, access=access)
        self._connection: _Connection | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket can't be made; `filename` is set.
        """
        await self._listener.start()
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
        session = Session(
            self._device, memory_files=self._memory_files, offload=self._offload
        )
        self._connection = _Connection(sock, session, self._offload, self._on_end)
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
        self._resume()

    def _resume(self) -> None:
        """Let the next front-end come, once no call waits for the last one's files."""
        loop = asyncio.get_running_loop()
        told = loop.call_later(_PATIENCE_S, self._tell_of_waiting)

        def resume() -> None:
            told.cancel()
            self._listener.resume()

        def idle() -> None:  # on whatever thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: all is over
                loop.call_soon_threadsafe(resume)

        if self._offload.waiting:
            self._offload.when_idle(idle)
        else:
            resume()

    def _tell_of_waiting(self) -> None:
        log.warning(
            "%s: %d calls still wait for files of the last front-end (on FUSE or NFS, "
            "say); the next one waits for them",
            self._name,
            self._offload.waiting,
        )


async def serve(
    path: Path,
    device: Device,
    *,
    name: str,
    memory_files: MemoryFiles = MemoryFiles.RAM,
    access: Access = Access(),  # noqa: B008  frozen
) -> None:
    """Serve one device until a signal ends it: all that a small back-end's main does.

    Says "ready" on stderr once a VMM may connect.

    Raises:
        OSError: the socket can't be made.
    """
    stop = stop_event()
    backend = Backend(path, device, name=name, memory_files=memory_files, access=access)
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
        offload: closes what it did not ask for.
        on_end: called once, with the reason, when the session should be closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        offload: Offload,
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self.session = session
        self._sock = sock
        self._offload = offload
        self._on_end = on_end
        self._buf = bytearray()
        self._header: Header | None = None
        self._fds: list[int] = []
        asyncio.get_running_loop().add_reader(sock, self._readable)

    def close(self) -> None:
        """Take everything back from the device and hang up."""
        asyncio.get_running_loop().remove_reader(self._sock)
        with contextlib.suppress(OSError):
            self._hang_up()
        self._sock.close()
        Message(0, fds=self._fds).close(self._offload.close)
        self.session.close()

    def _hang_up(self) -> None:
        """Leave no fd in the socket: the kernel would close it on our thread."""
        self._sock.shutdown(socket.SHUT_RDWR)
        while (got := receive(self._sock, _DRAIN, _ANY_FDS)).data:
            self._fds += got.fds

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
            got = receive(self._sock, size - len(self._buf), _ANY_FDS)
        except BlockingIOError:
            return True
        self._fds += got.fds
        if got.truncated or len(self._fds) > MAX_FDS:
            raise FrontendError(f"more than {MAX_FDS} fds, or no room for them")
        if not got.data:
            if self._buf or self._header:
                raise FrontendError("hung up in the middle of a message")
            return False
        self._buf += got.data
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
        try:
            reply = self.session.receive(message)
        except RefusedError as error:
            with contextlib.suppress(FrontendError, OSError):  # its end in any case
                self._send(error.reply)
            raise
        if reply is not None:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        try:
            sent = socket.send_fds(self._sock, [reply.data], reply.fds)
        except BlockingIOError:
            sent = 0
        if sent != len(reply.data):
            raise FrontendError("asks, but does not read the replies")
