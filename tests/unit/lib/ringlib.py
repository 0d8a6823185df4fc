"""lib/ring in C, compiled and seen by cffi; memory for it, and a maker's end."""

from __future__ import annotations

import fcntl
import functools
import mmap
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path

from cffi import FFI

LIBRARY = Path(__file__).resolve().parents[3] / "lib" / "ring"
READ, WRITE = 1, 2
UP_PRODUCER, UP_CONSUMER, DOWN_PRODUCER, DOWN_CONSUMER = 128, 256, 384, 512
POSITION, SLEEP, STATE = 0, 4, 8
SIZE = 4096
LENGTH = 4096 + 2 * SIZE
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Wconversion"]
FLAGS += ["-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]


def declarations():
    text = (LIBRARY / "fastpath_ring.h").read_text()
    text = re.sub(r"^(#|_Static_assert).*$", "", text, flags=re.MULTILINE)
    for name, value in (("FPRING_MAGIC", ""), ("FPRING_LINE", "128")):
        text = text.replace(name, value)
    return re.sub(r"^.*docs/ring.md\"\);$", "", text, flags=re.MULTILINE)


@functools.cache
def library():
    """Return cffi's view of the library."""
    ffi = FFI()
    ffi.cdef("struct iovec { void *iov_base; size_t iov_len; };\n" + declarations())
    source = str(LIBRARY / "fastpath_ring.c")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ring.so"
        command = ["gcc", *FLAGS, "-shared", "-fPIC", source, "-o", str(out)]
        subprocess.run(command, check=True)
        return ffi, ffi.dlopen(str(out))


class Memory:
    """Two rings, with the maker's end of them."""

    def __init__(self, *, at=0):
        self.ffi, self.lib = library()
        self.fd = os.memfd_create("ring", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, LENGTH)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        self.map = mmap.mmap(self.fd, LENGTH)
        self.base = self.ffi.from_buffer(self.map)
        self.lib.fpring_format(self.base, SIZE, SIZE)
        self.maker = self.attach(maker=True)
        if at:  # as if so many bytes had gone both ways before
            for line in (UP_PRODUCER, UP_CONSUMER, DOWN_PRODUCER, DOWN_CONSUMER):
                self.set(line, POSITION, at)
            self.maker["in"].position = self.maker.out.position = at

    def attach(self, *, maker):
        ring = self.ffi.new("struct fpring *")
        self.lib.fpring_attach(ring, self.base, SIZE, SIZE, maker)
        return Ring(self, ring)

    def get(self, line, word):
        return struct.unpack_from("=I", self.map, line + word)[0]

    def set(self, line, word, value):
        # in one store: struct.pack_into() writes zeros first, which others may read
        at = line + word
        self.map[at : at + 4] = struct.pack("=I", value)

    def close(self):
        self.ffi.release(self.base)
        self.map.close()
        os.close(self.fd)


class Ring:
    """`struct fpring` with what one wants to do to it."""

    def __init__(self, memory, ring):
        self.memory, self.ring = memory, ring
        self.ffi, self.lib = memory.ffi, memory.lib

    def __getitem__(self, name):
        return getattr(self.ring, name)

    @property
    def out(self):
        return self.ring.out

    def write(self, data):
        """Write what fits; return how much, or -errno."""
        iov = self.ffi.new("struct iovec[2]")
        n = self.lib.fpring_room(self.ring, iov)
        if n < 0:
            return n
        assert n == iov[0].iov_len + iov[1].iov_len
        data = data[:n]
        first = data[: iov[0].iov_len]
        self.ffi.memmove(iov[0].iov_base, first, len(first))
        self.ffi.memmove(iov[1].iov_base, data[len(first) :], len(data) - len(first))
        self.rang = self.lib.fpring_produced(self.ring, len(data))
        return len(data)

    def read(self, size=1 << 30):
        """Read what is there; return it, or 0 or -errno."""
        iov = self.ffi.new("struct iovec[2]")
        n = self.lib.fpring_readable(self.ring, iov)
        if n <= 0:
            return n
        parts = [bytes(self.ffi.buffer(i.iov_base, i.iov_len)) for i in iov]
        data = b"".join(parts)[:size]
        assert n == sum(map(len, parts))
        self.rang = self.lib.fpring_consumed(self.ring, len(data))
        return data
