r"""Host to guest over a unix socket: `CONNECT port\n`, answered with `OK port\n`.

A client connects to the device's unix socket and names a guest port in one line;
from then on the socket is the connection. Only that line is read here: what a
client sends right behind it stays in the socket for the engine, which writes the
answer when the guest accepts, and closes the socket when it doesn't.

The protocol is Firecracker's hybrid vsock, as vhost-device-vsock speaks it. A second
socket beside it, of type SOCK_SEQPACKET, is for SEQPACKET connections: there the line
is the first message, the answer another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING, Final

from vhost_user.errors import ClientError, VhostUserError
from vhost_user.sockets import MAX_PATH, Access, UnixListener
from vhost_user.vsock.packet import PORT_ANY

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vhost_user.vsock.device import VsockDevice

log = logging.getLogger(__name__)

SEQPACKET_SUFFIX: Final = "_seqpacket"
"""What the second socket's path has more than the first's."""

MAX_UDS_PATH: Final = MAX_PATH - len("_4294967295")
"""Bytes of the path: it leaves room for what is added for a port."""

MAX_LINE: Final = 32
"""Bytes of the CONNECT line with its newline; the longest right one has 19."""

TIMEOUT_S: Final = 5.0
"""A client that has not sent its line by then is closed."""

MAX_WAITING: Final = 256
"""Clients that may be about to send their line; `_crowd` says who goes for one more."""

_PEER: Final = struct.Struct("=iII")  # struct ucred


def seqpacket_path(path: Path) -> Path:
    """Return the second socket's path."""
    return path.with_name(path.name + SEQPACKET_SUFFIX)


class ConnectLine:
    r"""Takes the line `CONNECT port\n` in pieces."""

    def __init__(self) -> None:
        self._line = b""

    @property
    def room(self) -> int:
        """Bytes that the line may still have."""
        return MAX_LINE - len(self._line)

    def wanted(self, peeked: bytes) -> int:
        """Return how many of the `peeked` bytes, still unread, are the line's."""
        newline = peeked.find(b"\n")
        return len(peeked) if newline < 0 else newline + 1

    def feed(self, data: bytes) -> int | None:
        """Add the line's next bytes; return the port once it is complete.

        Args:
            data: b"" at the stream's end.

        Raises:
            ClientError: it isn't a CONNECT line, ends early or is too long.
        """
        if not data:
            raise ClientError("hung up before its CONNECT line")
        self._line += data
        if not self._line.endswith(b"\n"):
            if len(self._line) >= MAX_LINE:
                raise ClientError(f"no newline in the first {MAX_LINE} bytes")
            return None
        word, _, number = self._line.strip().partition(b" ")
        if word.upper() != b"CONNECT":
            raise ClientError(f"{self._line!r} is not CONNECT and a port")
        if not number.isdigit() or int(number) >= PORT_ANY:
            raise ClientError(f"{number!r} is not a port")
        return int(number)


class HybridListener:
    """Accepts host clients on two unix sockets and connects them to the guest.

    Args:
        device: whose guest it is.
        path: the socket for streams, made by `start()` and removed by `close()`; that
            for messages has `SEQPACKET_SUFFIX` behind.
        access: who may connect to them: be the guest's host.
    """

    def __init__(
        self,
        device: VsockDevice,
        path: Path,
        *,
        access: Access = Access(),  # noqa: B008  frozen
    ) -> None:
        self.path = path
        self.refused = 0
        """Clients closed because of what they sent or did not send."""
        self._device = device
        messages = seqpacket_path(path)
        self._listeners = (
            UnixListener(path, self._on_client, access=access),
            UnixListener(
                messages, self._on_client, kind=socket.SOCK_SEQPACKET, access=access
            ),
        )
        self._waiting: dict[_Client, None] = {}  # by age

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: a socket can't be made; `filename` is set.
        """
        for listener in self._listeners:
            await listener.start()

    async def close(self) -> None:
        """Stop listening, remove the sockets, close clients that wait."""
        for listener in self._listeners:
            listener.close()
        for client in tuple(self._waiting):
            client.release().close()
        self._waiting.clear()

    def _on_client(self, sock: socket.socket) -> None:
        self._waiting[_Client(sock, self._on_line, self._on_error)] = None
        if len(self._waiting) > MAX_WAITING:
            self._on_error(_crowd(self._waiting), "no CONNECT line, and others wait")

    def _done(self, client: _Client) -> socket.socket:
        del self._waiting[client]
        return client.release()

    def _on_line(self, client: _Client, port: int) -> None:
        sock = self._done(client)
        try:
            self._device.handle.open(port, sock, hybrid=True)
        except (OSError, VhostUserError) as error:
            self._refuse(sock, f"guest CID {self._device.guest_cid}: {error}")

    def _on_error(self, client: _Client, reason: str) -> None:
        self._refuse(self._done(client), reason)

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # 1, 2, 4, ...: a client can't
            log.warning(  # fill the log
                "%s: client refused: %s (%d so far)", self.path, reason, self.refused
            )
        with contextlib.suppress(OSError):
            sock.send(f"ERROR {reason}\n".encode(), socket.MSG_DONTWAIT)
        sock.close()


def _crowd(waiting: Iterable[_Client]) -> _Client:
    """Return the client that has to go: a flood makes room for itself.

    It is the oldest of the process that has most, of the user who has most: one that
    is slow and alone stays, whoever else comes.
    """
    clients = list(waiting)
    (uid, _), *_ = Counter(client.uid for client in clients).most_common(1)
    theirs = [client for client in clients if client.uid == uid]
    (pid, _), *_ = Counter(client.pid for client in theirs).most_common(1)
    return next(client for client in theirs if client.pid == pid)


class _Client:
    """A client that has not sent its whole line yet; owns the socket."""

    def __init__(
        self,
        sock: socket.socket,
        on_line: _OnLine,
        on_error: _OnError,
    ) -> None:
        self._sock = sock
        self.pid, self.uid, _ = _PEER.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        )
        self._on_line = on_line
        self._on_error = on_error
        self._line = ConnectLine()
        loop = asyncio.get_running_loop()
        loop.add_reader(sock, self._readable)
        self._timer = loop.call_later(
            TIMEOUT_S, on_error, self, f"no CONNECT line within {TIMEOUT_S:g} s"
        )

    def release(self) -> socket.socket:
        """Give the socket away; nothing more is called."""
        self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._sock)
        return self._sock

    def _readable(self) -> None:
        try:
            port = self._line.feed(self._read())
        except BlockingIOError:
            return
        except (ClientError, OSError) as error:
            self._on_error(self, str(error))
        else:
            if port is not None:
                self._on_line(self, port)

    def _read(self) -> bytes:
        """Take the line's next bytes from the socket; b"": the client has hung up."""
        if self._sock.type == socket.SOCK_SEQPACKET:
            data = self._sock.recv(MAX_LINE)
            if data and data.find(b"\n") != len(data) - 1:
                raise ClientError("the first message is not one line")
            return data
        peeked = self._sock.recv(self._line.room, socket.MSG_PEEK)
        # Never recv(0): nothing to read means that the client has hung up.
        wanted = self._line.wanted(peeked)
        return self._sock.recv(wanted) if wanted else b""


if TYPE_CHECKING:
    from collections.abc import Callable

    _OnLine = Callable[[_Client, int], None]
    _OnError = Callable[[_Client, str], None]
