"""One control stream's I/O: reads messages, paced; writes without waiting.

All streams of a sandbox share one pace, so that many are read no faster than one.

What the messages mean is `service.py`'s; what they look like, `protocol.py`'s.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final

from fastpath.tsi.protocol import Decoder, ProtocolError, Refused
from vhost_user.engine import Reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.tsi.protocol import GuestMessage
    from vhost_user.engine import Engine

MESSAGES_A_SECOND: Final = 2000
"""What a sandbox's streams are read at, at most, in the long run. A guest that sends
faster fills its own socket buffers. See `service.MAX_TOKENS` for what rests on it."""
BURST: Final = 8192
"""Messages that are read at once after a quiet time: one window of ROUTEs."""

_READ_SIZE: Final = 16384
_DRAIN_SIZE: Final = 65536
_PAUSE_S: Final = 0.05
_MESSAGES_AT_ONCE: Final = 64
"""Messages that are handled before others have their turn."""


class Pace:
    """How fast the streams that share it are read: it says when, they obey.

    One read may go beyond what is left; the next waits until that is made up for.

    Args:
        rate: messages a second in the long run.
        burst: messages at once after a quiet time.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._filled_at = self._loop.time()

    def admits(self) -> bool:
        """Whether more may be read now."""
        now = self._loop.time()
        gained = (now - self._filled_at) * self._rate
        self._left = min(self._left + gained, self._burst)
        self._filled_at = now
        return self._left > 0

    def count(self) -> None:
        """A message was read."""
        self._left -= 1


def far_end(engine: Engine, conn: int) -> socket.socket | None:
    """Answer a request by being the other end of the connection.

    Returns:
        Our end; None: there is no connection, the guest took the request back, or it
        was refused because descriptors are short.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        engine.answer(conn, Reset(error.errno or errno.EMFILE))
        return None
    if not engine.answer_fd(conn, theirs):
        ours.close()
        return None
    return ours


class ControlStream:
    """The host's end of a control stream.

    Args:
        sock: connected, taken over.
        pace: shared with the sandbox's other streams.
        on_message: called with each message; may raise `ProtocolError`.
        on_end: called once when the stream has ended by the guest's doing, with
            what it did wrong, or None if it just closed it. Not after `close()`.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        pace: Pace,
        on_message: Callable[[GuestMessage], None],
        on_end: Callable[[ProtocolError | None], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._decoder = Decoder()
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.Handle | None = None
        """Set while the socket is not watched: `_go_on` watches it again."""
        self._paused = False
        """By the pace: nothing is read."""
        self._backlog = False
        """The decoder may have messages that were not handled."""
        self._closed = False
        self._loop.add_reader(sock, self._read, _is_a_turn)

    def drain(self, enough: Callable[[], bool]) -> None:
        """Handle what the guest sent so far until it is `enough`.

        As far as its pace allows, that is, and no more than `_DRAIN_SIZE` of it.
        """
        left = _DRAIN_SIZE
        while left > 0 and not self._closed and not enough():
            if self._backlog:
                self._decode(b"", lambda _: enough())
                continue
            size = self._read(lambda _: enough())
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

    def _read(self, stop: Callable[[int], bool]) -> int:
        """Read once, if the pace allows it; return how many bytes came."""
        if self._paused:
            return 0
        if not self._pace.admits():
            self._paused = True
            self._watch_later(self._loop.call_later(_PAUSE_S, self._go_on))
            return 0
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if data:
            self._decode(data, stop)
        else:
            self._end(None)
        return len(data)

    def _decode(self, data: bytes, stop: Callable[[int], bool]) -> None:
        """Handle messages; when `stop` says so of their number, the rest later."""
        self._backlog = False
        try:
            for number, message in enumerate(self._decoder.feed(data), start=1):
                self._pace.count()
                self._on_message(message)
                if self._closed:
                    return
                if stop(number):
                    self._backlog = True
                    break
        except ProtocolError as error:
            self.send(Refused(error.code, error.text).encode())
            self._end(error)
        if self._backlog and self._resume is None:
            self._watch_later(self._loop.call_soon(self._go_on))

    def _watch_later(self, handle: asyncio.Handle) -> None:
        if self._resume is None:
            self._loop.remove_reader(self._sock)
        else:
            self._resume.cancel()
        self._resume = handle

    def _go_on(self) -> None:
        self._resume = None
        self._paused = False
        if self._backlog:
            self._decode(b"", _is_a_turn)
        if not self._closed and self._resume is None:
            self._loop.add_reader(self._sock, self._read, _is_a_turn)

    def _end(self, error: ProtocolError | None) -> None:
        if not self._closed:
            self.close()
            self._on_end(error)


def _is_a_turn(handled: int) -> bool:
    """Whether after so many messages it is others' turn."""
    return handled >= _MESSAGES_AT_ONCE
