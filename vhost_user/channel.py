"""The back-end's own channel: requests from us to the front-end.

One message is under way at a time. What a message says ("the configuration changed")
stays true when said again, so further ones wait as one. A front-end that answers with
garbage, hangs up or doesn't read loses the channel, not its session.

The front-end has our end of the socket as well. A unix socket takes what is sent
without waiting for anybody (MSG_DONTWAIT; the flag O_NONBLOCK is the front-end's), but
to receive is to wait for whoever receives on the same end: that is done beside the
event loop.

Spec: vhost-user, "Back-end communication" and "Back-end message types".
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from typing import TYPE_CHECKING

from vhost_user.descriptors import Kind, is_unix_stream, kind_of
from vhost_user.errors import FrontendError
from vhost_user.message import (
    FLAG_REPLY,
    HEADER_SIZE,
    BackendRequest,
    decode_reply,
    decode_u64,
    encode,
)

if TYPE_CHECKING:
    from vhost_user.descriptors import Offload

log = logging.getLogger(__name__)

_REPLY_SIZE = HEADER_SIZE + 8


class BackendChannel:
    """Sends requests and takes the replies in the running event loop.

    Args:
        fd: a connected stream socket; taken over.
        need_reply: ask the front-end whether it did what it was asked (REPLY_ACK).
        offload: receives, and closes the socket.

    Raises:
        FrontendError: it isn't a socket; it is still the caller's.
    """

    def __init__(self, fd: int, *, need_reply: bool, offload: Offload) -> None:
        if kind_of(fd) is not Kind.SOCKET:
            raise FrontendError("the back-end channel is not a socket")
        if not is_unix_stream(fd):
            raise FrontendError("the back-end channel is not a unix stream socket")
        self._sock: socket.socket | None = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd
        )
        self._sock.setblocking(False)
        self._need_reply = need_reply
        self._offload = offload
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receiving = False
        self._awaited: BackendRequest | None = None
        self._waiting = False
        self._buf = bytearray()

    def config_changed(self) -> None:
        """Tell the front-end to read the configuration space again."""
        if self._awaited is not None:
            self._waiting = True
        else:
            self._send(BackendRequest.CONFIG_CHANGE_MSG)

    def close(self) -> None:
        """Hang up; a second call does nothing, and nothing is sent from now on."""
        if self._sock is None:
            return
        sock, self._sock = self._sock, None
        if self._loop is not None:
            self._loop.remove_reader(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        if not self._receiving:  # else that thread closes it
            self._offload.close(sock.detach())

    def _send(self, request: BackendRequest) -> None:
        if self._sock is None:
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._sock, self._readable)
        message = encode(request, need_reply=self._need_reply)
        flags = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
        try:
            whole = self._sock.send(message, flags) == len(message)
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return
        if not whole:
            self._give_up("the front-end does not read")
        elif self._need_reply:
            self._awaited = request

    def _readable(self) -> None:
        assert self._sock is not None
        assert self._loop is not None
        self._loop.remove_reader(self._sock)
        self._receiving = True
        size = _REPLY_SIZE - len(self._buf)
        self._offload.run(
            functools.partial(self._receive, self._loop, self._sock, size)
        )

    def _receive(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int
    ) -> None:
        """Receive, on another thread, and report it to the event loop."""
        result: bytes | OSError
        try:
            result = sock.recv(size, socket.MSG_DONTWAIT)
        except OSError as error:
            result = error
        try:
            loop.call_soon_threadsafe(self._received, sock, result)
        except RuntimeError:  # the loop is closed, and nobody is left to tell
            sock.close()

    def _received(self, sock: socket.socket, result: bytes | OSError) -> None:
        self._receiving = False
        if self._sock is None:
            self._offload.close(sock.detach())
            return
        assert self._loop is not None
        self._loop.add_reader(sock, self._readable)
        if isinstance(result, BlockingIOError):
            return
        if isinstance(result, OSError):
            self._give_up(result.strerror or str(result))
            return
        if not result:
            self._give_up("the front-end hung up")
            return
        self._buf += result
        if len(self._buf) == _REPLY_SIZE:
            self._take_reply(bytes(self._buf))
            self._buf.clear()

    def _take_reply(self, reply: bytes) -> None:
        request, flags, _ = decode_reply(reply[:HEADER_SIZE])
        if request != self._awaited or not flags & FLAG_REPLY:
            self._give_up(f"an answer to {request}, which was not asked")
            return
        if status := decode_u64(reply[HEADER_SIZE:]):
            log.warning("front-end refuses %s: %d", self._awaited.name, status)
        self._awaited = None
        if self._waiting:
            self._waiting = False
            self.config_changed()

    def _give_up(self, reason: str) -> None:
        log.warning("back-end channel closed: %s", reason)
        self.close()
