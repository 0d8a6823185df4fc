"""What is asked of the process in a pod's network namespace, and its answers.

It is asked for sockets before they are needed, so whoever takes one doesn't wait. Only
when more are taken at once than there are, the loop waits for it: 50 ms at most, and
then a 20th of the time. Once it has been waited for in vain nobody does until it has
answered: one sandbox's process must not stall others.

Answers come in the order of the questions. A process whose next answer doesn't come in
`TICK_S` or two, or is none, is *lost*: `namespace.py` replaces it.

    ours --- ASK ------------------> process      on the control socket,
         <-- ANSWER + sockets ------              and on each channel
         --- ASK(CHANNEL) + socket ->             a channel for an engine

Spec: vhost_user/native/vu_netns.h has the messages; unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ASK: Final = struct.Struct("=BBHI16s")
"""What, IP version, count, 0, address."""
ANSWER: Final = struct.Struct("=iBBH")
"""errno, what, IP version, count."""

WAIT_S: Final = 0.05
"""The longest that the loop waits, for one socket or for several on end."""
WAIT_SHARE: Final = 0.05
"""Of time, in the long run."""
TICK_S: Final = 5.0
"""How often it is looked whether the process answers; without a question it is asked
whether it is there."""
KEPT: Final = 2
"""Sockets of a kind and version to have."""

_NO_ADDRESS: Final = bytes(16)
_ROOM: Final = 64
"""Sockets of a message."""
_AT_ONCE: Final = 32
"""Answers that are taken before others have their turn."""


class What(enum.IntEnum):
    """What is asked for: enum vu_netns_what."""

    READY = 0
    STREAM = 1
    SOCKET = 2
    DATAGRAM = 3
    CHANNEL = 4


KINDS: Final = {
    (what, version): (family, kind)
    for what, kind in (
        (What.SOCKET, socket.SOCK_STREAM),
        (What.DATAGRAM, socket.SOCK_DGRAM),
    )
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
}
"""What is kept, and which sockets those are."""
_KEYS: Final = {tuple(map(int, of)): key for key, of in KINDS.items()}
_PRESENT: Final = (What.READY, 0)


@dataclass(slots=True)
class _Stock:
    """Sockets of a kind and version."""

    asked: bool = False
    error: int = 0
    """errno of the last answer."""
    socks: list[socket.socket] = field(default_factory=list)


class Control:
    """The questions and answers of one process.

    Args:
        sock: a SOCK_SEQPACKET socket to it, taken over.
        lost: called, once, with why it is of no use any more.
    """

    def __init__(self, sock: socket.socket, lost: Callable[[str], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lost: Callable[[str], None] | None = lost
        self._stocks = {key: _Stock() for key in KINDS}
        self._asked: deque[tuple[What, int]] = deque()
        self._answers = 0
        self._silent = False
        """It was waited for in vain."""
        self._may_wait_s = WAIT_S
        self._waited_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(TICK_S, self._tick, -1)
        self._loop.add_reader(sock, self._readable)
        for key in KINDS:
            self._fill(key)

    def take(self, family: int, kind: int) -> socket.socket:
        """Return a socket of that namespace, as socket() makes it.

        Args:
            family: AF_INET or AF_INET6.
            kind: SOCK_STREAM or SOCK_DGRAM.

        Raises:
            OSError: there is none to be had now.
        """
        key = _KEYS[family, kind]
        stock = self._stocks[key]
        if not stock.socks:
            self._fill(key)
            self._wait(stock)
        if not stock.socks:
            number = errno.EAGAIN if stock.asked else stock.error or errno.EAGAIN
            raise OSError(number, os.strerror(number))
        sock = stock.socks.pop()
        if len(stock.socks) <= KEPT // 2:
            self._fill(key)
        return sock

    def channel(self) -> socket.socket:
        """Return a socket by which an engine asks the process.

        Raises:
            OSError: it doesn't take it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ask = ASK.pack(What.CHANNEL, 0, 0, 0, _NO_ADDRESS)
        with theirs:
            try:
                socket.send_fds(self._sock, [ask], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Ask no more."""
        if self._lost is None:
            return
        self._lost = None
        self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for stock in self._stocks.values():
            for sock in stock.socks:
                sock.close()
            stock.socks.clear()

    def _fill(self, key: tuple[What, int]) -> None:
        """Ask for what a stock lacks, unless that is under way."""
        stock = self._stocks[key]
        if not stock.asked:
            stock.asked = self._ask(key, KEPT - len(stock.socks))

    def _ask(self, key: tuple[What, int], count: int) -> bool:
        """Send a question; False: not now."""
        try:
            self._sock.send(ASK.pack(*key, count, 0, _NO_ADDRESS))
        except OSError:  # if it is gone, the next read says so
            return False
        self._asked.append(key)
        return True

    def _wait(self, stock: _Stock) -> None:
        """Wait for an answer, but not for one that is late."""
        begin = time.monotonic()
        gained = (begin - self._waited_at) * WAIT_SHARE
        end = begin + min(WAIT_S, self._may_wait_s + gained)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while stock.asked and not self._silent and self._lost is not None:
            rest = max(0.0, end - time.monotonic())
            if poll.poll(rest * 1e3):
                self._receive()
            elif not rest:
                self._silent = True
        self._waited_at = time.monotonic()
        self._may_wait_s = max(0.0, end - self._waited_at)

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._receive():
                break

    def _receive(self) -> bool:
        """Take an answer; False: there is none."""
        if self._lost is None:
            return False
        try:
            said, fds, flags, _ = socket.recv_fds(
                self._sock, ANSWER.size + 1, _ROOM, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError as error:
            self._give_up(error.strerror or f"{error}")
            return False
        socks = _adopt(fds)
        why = "it ended"
        if said:
            why = self._answered(said, socks, short=bool(flags & socket.MSG_CTRUNC))
        if why:
            for sock in socks or ():
                sock.close()
            self._give_up(why)
        return not why

    def _answered(
        self, said: bytes, socks: list[socket.socket] | None, *, short: bool
    ) -> str:
        """Take an answer's sockets, or return what is wrong with it."""
        if len(said) != ANSWER.size or not self._asked or socks is None:
            return "it says nonsense"
        error, what, version, count = ANSWER.unpack(said)
        key = self._asked.popleft()
        right = (what, version) == key
        right &= len(socks) == count or (short and len(socks) < count)
        if key == _PRESENT:
            right &= not socks
        else:
            right &= all((it.family, it.type) == KINDS[key] for it in socks)
        if not right:
            return "it says nonsense"
        self._answers += 1
        self._silent = False
        if key != _PRESENT:
            stock = self._stocks[key]
            stock.asked = False
            # fewer than it sent: we are out of descriptors
            stock.error = error or (errno.EMFILE if short else 0)
            stock.socks += socks
        return ""

    def _tick(self, answers: int) -> None:
        """Look whether it has answered since the last time, if it had to."""
        if self._asked and self._answers == answers:
            self._give_up("it is silent")
            return
        if not self._asked:
            self._ask(_PRESENT, 0)
        self._timer = self._loop.call_later(TICK_S, self._tick, self._answers)

    def _give_up(self, why: str) -> None:
        lost = self._lost
        self.close()
        if lost is not None:
            lost(why)


def _adopt(fds: list[int]) -> list[socket.socket] | None:
    """Descriptors as sockets; None: one is none, all are closed."""
    socks: list[socket.socket] = []
    try:
        socks.extend(socket.socket(fileno=fd) for fd in fds)
    except OSError:
        for sock in socks:
            sock.close()
        for fd in fds[len(socks) :]:
            os.close(fd)
        return None
    return socks
