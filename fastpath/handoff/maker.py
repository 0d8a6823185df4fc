"""The process in a pod's network namespace: it makes sockets, and nothing else.

It is started once for a namespace (`namespace.py`), with two descriptors: that of the
namespace, which it enters, and a unix SOCK_SEQPACKET socket to its parent. Then it
gives up all capabilities, and answers each message with sockets, until the parent is
gone. It connects, binds to a port, listens, reads and writes nowhere: whoever has a
socket from here does that.

It runs alone (`python -I -S maker.py`), so it imports the standard library only. What
it does from then on is C (vhost_user/native/maker).

    parent --- ASK ------------------> maker      on the control socket,
           <-- ANSWER + sockets ------            and on each channel
           --- ASK(CHANNEL) + socket ->           a channel for an engine

Spec: vhost_user/native/vu_netns.h has the messages; setns(2), capabilities(7),
PR_SET_PDEATHSIG(2const).
"""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

ASK: Final = struct.Struct("=BBHI16s")
"""What, IP version, count, 0, address."""
ANSWER: Final = struct.Struct("=iBBH")
"""errno, what, IP version, count."""

_CLONE_NEWNET: Final = 0x4000_0000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION: Final = 0x2008_0522


class What(enum.IntEnum):
    """What is asked for: enum vu_netns_what."""

    READY = 0
    STREAM = 1
    SOCKET = 2
    DATAGRAM = 3
    CHANNEL = 4


def main(argv: Sequence[str]) -> int:
    """Run until the parent is gone.

    Args:
        argv: the native module, the descriptors of the namespace and of the control
            socket, and the parent's process id.
    """
    native = ctypes.CDLL(argv[0])  # while we may read it
    namespace, control, parent = map(int, argv[1:])
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
        status: int = native.vu_maker_run(control)
    return -status


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
