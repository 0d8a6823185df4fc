"""Descriptors on which calls wait, as a hostile front-end would share them."""

from __future__ import annotations

import contextlib
import os
import socket

FULL = 2**64 - 2
"""What an eventfd's counter is at most."""


def full(fd):
    """Make an eventfd one on which a write waits, whoever had it non-blocking."""
    os.set_blocking(fd, True)
    os.eventfd_write(fd, FULL)
    return fd


def fill(fd):
    """Make a pipe's write end one on which a write waits."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    os.set_blocking(fd, True)


@contextlib.contextmanager
def lingering():
    """Yield a TCP socket whose last close() waits until the block is left."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    linger = b"\1\0\0\0" + (3600).to_bytes(4, "little")
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 20))
    with ours, peer:
        yield ours
