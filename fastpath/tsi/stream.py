"""One control stream's I/O: reads messages, paced; writes without waiting.

What the messages mean is `service.py`'s; what they look like, `protocol.py`'s.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from fastpath.tsi.protocol import Decoder, ProtocolError, Refused

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastpath.tsi.protocol import GuestMessage

MESSAGES_A_SECOND: Final = 2000
"""What a stream is read at, at most, in the long run. A guest that sends faster
fills its own socket buffers. See `service.MAX_TOKENS` for what rests on it."""
BURST: Final = 8192
"""Messages that are read at once after a quiet time: one window of ROUTEs."""

_READ_SIZE: Final = 16384
_DRAIN_SIZE: Final = 65536
_PAUSE_S: Final = 0.05


class ControlStream:
    """The host's end of a control stream.

    Args:
        sock: connected, taken over.
        on_message: called with each message; may raise `ProtocolError`.
        on_end: called once when the stream has ended by the guest's doing, with
            what it did wrong, or None if it just closed it. Not after `close()`.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_message: Callable[[GuestMessage], None],
        on_end: Callable[[ProtocolError | None], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._decoder = Decoder()
        self._budget = float(BURST)
        self._filled_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop.add_reader(sock, self._read)

    def drain(self) -> None:
        """Handle what the guest sent so far, as far as its pace allows."""
        left = _DRAIN_SIZE
        while left > 0 and not self._closed and self._resume is None:
            size = self._read()
            if size == 0:
                break
            left -= size

    def send(self, data: bytes) -> bool:
        """Send a message.

        Returns:
            False if the stream has no room: the guest does not read, and the
            message is lost.
        """
        if self._closed:
            return False
        try:
            sent = self._sock.send(data)
        except OSError:
            return False
        if sent < len(data):  # the rest makes no sense without this part
            self._end(None)
            return False
        return True

    def close(self) -> None:
        """End the stream."""
        if self._closed:
            return
        self._closed = True
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> int:
        """Read once; return how many bytes came."""
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._end(None)
            return 0
        try:
            for message in self._decoder.feed(data):
                self._budget -= 1
                self._on_message(message)
        except ProtocolError as error:
            self.send(Refused(error.code, error.text).encode())
            self._end(error)
        else:
            self._pace()
        return len(data)

    def _pace(self) -> None:
        """Stop reading for a while if the guest is ahead of its pace."""
        now = time.monotonic()
        gained = (now - self._filled_at) * MESSAGES_A_SECOND
        self._budget = min(self._budget + gained, BURST)
        self._filled_at = now
        if self._budget >= 0 or self._closed:
            return
        self._loop.remove_reader(self._sock)
        self._resume = self._loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._budget += _PAUSE_S * MESSAGES_A_SECOND
        self._filled_at = time.monotonic()
        if self._budget < 0:
            self._resume = self._loop.call_later(_PAUSE_S, self._go_on)
        else:
            self._loop.add_reader(self._sock, self._read)

    def _end(self, error: ProtocolError | None) -> None:
        if not self._closed:
            self.close()
            self._on_end(error)
