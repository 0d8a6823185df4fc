"""The process at the other end of a ring, by hand: offsets from docs/ring.md.

It keeps to no rule: a test says what is written where, and which wake-ups are given.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time

from tests.conformance.threads import TIMEOUT_S

UP_PRODUCER, UP_CONSUMER, DOWN_PRODUCER, DOWN_CONSUMER = 128, 256, 384, 512
POSITION, SLEEP, STATE = 0, 4, 8
OPEN, ENDED, RESET = 0, 1, 2
DATA = 4096
HELLO = 1024


class HandMade:
    """One connection.

    Args:
        sock: from accept().
    """

    def __init__(self, sock):
        self.sock = sock
        sock.settimeout(TIMEOUT_S)
        self.hello, self.fds, flags, _ = socket.recv_fds(sock, 2 * HELLO, 8)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        self.memfd, self.bell = self.fds
        self.up_bytes, self.down_bytes = struct.unpack_from("=II", self.hello, 16)
        self.memory = mmap.mmap(self.memfd, 0)
        self.read = self.written = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def answer(self, error=0, *, version=1):
        self.sock.send(struct.pack("=Ii", version, error))

    def get(self, line, word):
        return struct.unpack_from("=I", self.memory, line + word)[0]

    def set(self, line, word, value):
        # in one store: struct.pack_into() writes zeros first, which the engine may read
        at = line + word
        self.memory[at : at + 4] = struct.pack("=I", value & 0xFFFF_FFFF)

    def ring(self):
        os.eventfd_write(self.bell, 1)

    def put(self, data):
        """Write bytes, and wake the engine whether it sleeps or not."""
        base = DATA + self.up_bytes
        for byte in data:
            self.memory[base + self.written % self.down_bytes] = byte
            self.written += 1
        self.set(DOWN_PRODUCER, POSITION, self.written)
        self.ring()

    def woken(self):
        """Whether a wake-up has come; it is taken."""
        self.sock.setblocking(False)
        try:
            return self.sock.recv(64) == b"\0"
        except BlockingIOError:
            return False
        finally:
            self.sock.settimeout(TIMEOUT_S)

    def end(self):
        self.set(DOWN_PRODUCER, STATE, ENDED)
        self.ring()

    def waits(self):
        return (self.get(UP_PRODUCER, POSITION) - self.read) & 0xFFFF_FFFF

    def take(self, size):
        """Read bytes without asking for a wake-up."""
        until = time.monotonic() + TIMEOUT_S
        while self.waits() < size:
            assert time.monotonic() < until, f"{self.waits()} of {size} bytes came"
            time.sleep(0.001)
        at = [DATA + (self.read + i) % self.up_bytes for i in range(size)]
        data = bytes(self.memory[i] for i in at)
        self.read += size
        self.set(UP_CONSUMER, POSITION, self.read)
        self.ring()
        return data

    def close(self):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.memory.close()
