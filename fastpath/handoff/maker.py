"""The process in a pod's network namespace: it makes sockets, and nothing else.

It is started once for a namespace (`namespace.py`), with two descriptors: that of the
namespace, which it enters, and a unix SOCK_SEQPACKET socket to its parent. Then it
gives up all capabilities, and answers each message with sockets, until the parent is
gone. It connects, binds to a port, listens, reads and writes nowhere: whoever has a
socket from here does that.

It runs alone (`python -I -S maker.py`), so it imports the standard library only.

    parent --- ASK ------------------> maker      on the control socket,
           <-- ANSWER + sockets ------            and on each channel
           --- ASK(CHANNEL) + socket ->           a channel for an engine

Spec: vhost_user/native/vu_netns.h has the messages; setns(2), capabilities(7),
PR_SET_PDEATHSIG(2const), ip(7) for IP_BIND_ADDRESS_NO_PORT.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import select
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

ASK: Final = struct.Struct("=BBHHH16s")
"""What, IP version, count, two fields that are 0, address."""
ANSWER: Final = struct.Struct("=iBBH")
"""errno, what, IP version, count."""
MAX_COUNT: Final = 64
"""Sockets of one answer; the kernel passes no more than 253."""

_CLONE_NEWNET: Final = 0x4000_0000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION: Final = 0x2008_0522
_IP_BIND_ADDRESS_NO_PORT: Final = 24


class What(enum.IntEnum):
    """What is asked for."""

    READY = 0
    """Not asked: the first answer, when the namespace is entered, or why it isn't."""
    STREAM = 1
    """TCP sockets, bound to an address but no port, that don't wait."""
    SOCKET = 2
    """A TCP socket as socket() makes it."""
    DATAGRAM = 3
    """A UDP socket as socket() makes it."""
    CHANNEL = 4
    """Not answered: one more socket by which sockets are asked for comes with it."""


def main(argv: Sequence[str]) -> int:
    """Run until the parent is gone.

    Args:
        argv: the descriptors of the namespace and of the control socket, and the
            parent's process id.
    """
    namespace, control, parent = map(int, argv)
    with socket.socket(fileno=control) as ours:
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signo, signal.SIG_IGN)  # the terminal's are for the parent
        try:
            _enter(namespace)
            _confine(parent)
        except OSError as error:
            ours.send(ANSWER.pack(error.errno or -1, What.READY, 0, 0))
            return 1
        ours.send(ANSWER.pack(0, What.READY, 0, 0))
        _serve(ours)
    return 0


def make(what: int, version: int, address: bytes) -> socket.socket:
    """Make one socket.

    Args:
        what: `What.STREAM`, `SOCKET` or `DATAGRAM`.
        version: 4 or 6.
        address: what a STREAM is bound to; of IPv4 the first 4 bytes count.

    Raises:
        OSError: it can't be had.
    """
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    kind = socket.SOCK_DGRAM if what == What.DATAGRAM else socket.SOCK_STREAM
    if what != What.STREAM:
        return socket.socket(family, kind)
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # connect() takes the port: else there were 28,000 for all peers together
        made.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        host = socket.inet_ntop(family, address[: 16 if version == 6 else 4])
        made.bind((host, 0))
    except OSError:
        made.close()
        raise
    return made


def answer(to: socket.socket, message: bytes) -> None:
    """Answer one message.

    Raises:
        OSError: whoever asks is gone.
    """
    what, version, count, _, _, address = ASK.unpack(message)
    made: list[socket.socket] = []
    error = 0
    try:
        while len(made) < min(count, MAX_COUNT):
            made.append(make(what, version, address))
    except OSError as problem:
        error = 0 if made else problem.errno or -1
    try:
        head = ANSWER.pack(error, what, version, len(made))
        socket.send_fds(to, [head], [each.fileno() for each in made])
    finally:
        for each in made:
            each.close()


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    os.close(namespace)  # it stays while we are in it


def _confine(parent: int) -> None:
    """Give up all rights, and end with the parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    if libc.capset(header, bytes(24)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise ProcessLookupError(3, "the parent is gone")


def _serve(control: socket.socket) -> None:
    """Answer whoever asks, until the control socket ends."""
    channels = {control.fileno(): control}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while control.fileno() in channels:
        for fd, _ in poll.poll():
            asker = channels[fd]
            try:
                message, fds, _, _ = socket.recv_fds(asker, ASK.size, 1)
                if len(message) != ASK.size:
                    raise ConnectionError
                if fds:
                    new = socket.socket(fileno=fds[0])
                    channels[new.fileno()] = new
                    poll.register(new, select.POLLIN)
                else:
                    answer(asker, message)
            except OSError:
                poll.unregister(fd)
                del channels[fd]
                asker.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
