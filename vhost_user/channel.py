"""The back-end's own channel: requests from us to the front-end.

One message is under way at a time. What a message says ("the configuration changed")
stays true when said again, so further ones wait as one. A front-end that answers with
garbage, hangs up or doesn't read loses the channel, not its session.

Spec: vhost-user, "Back-end communication" and "Back-end message types".
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat

from vhost_user.errors import FrontendError
from vhost_user.message import (
    FLAG_REPLY,
    HEADER_SIZE,
    BackendRequest,
    decode_reply,
    decode_u64,
    encode,
)

log = logging.getLogger(__name__)

_REPLY_SIZE = HEADER_SIZE + 8


class BackendChannel:
    """Sends requests and takes the replies in the running event loop.

    Args:
        fd: a connected stream socket; taken over.
        need_reply: ask the front-end whether it did what it was asked (REPLY_ACK).

    Raises:
        FrontendError: it isn't a socket; it is still the caller's.
    """

    def __init__(self, fd: int, *, need_reply: bool) -> None:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise FrontendError("the back-end channel is not a socket")
        self._sock: socket.socket | None = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._need_reply = need_reply
        self._loop: asyncio.AbstractEventLoop | None = None
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
        if self._loop is not None:
            self._loop.remove_reader(self._sock)
        self._sock.close()
        self._sock = None

    def _send(self, request: BackendRequest) -> None:
        if self._sock is None:
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._sock, self._readable)
        message = encode(request, need_reply=self._need_reply)
        try:
            whole = self._sock.send(message, socket.MSG_NOSIGNAL) == len(message)
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return
        if not whole:
            self._give_up("the front-end does not read")
        elif self._need_reply:
            self._awaited = request

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_REPLY_SIZE - len(self._buf))
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return
        if not data:
            self._give_up("the front-end hung up")
            return
        self._buf += data
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
