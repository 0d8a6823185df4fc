"""Signals an eventfd that somebody else has as well, and reads one, without waiting.

write() on an eventfd sleeps while the counter is full, unless O_NONBLOCK is set; both
are in the hands of whoever shares the open file description, between any check and the
write. RWF_NOWAIT is for reading only. But the kernel's own users of eventfds add to the
counter without ever waiting, a full one included, and one of them takes orders:
asynchronous I/O (IOCB_FLAG_RESFD). An empty read of the eventfd itself fails at once,
before anything could wait, and when a request has ended the kernel signals.

Spec: Linux, io_submit(2), eventfd(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import struct
from typing import Final

_EVENTS: Final = 16
_READ: Final = 0  # IOCB_CMD_PREAD
_SIGNAL: Final = 1  # IOCB_FLAG_RESFD
_REQUEST: Final = struct.Struct("=16xHhIQQq8xII")
"""`struct iocb`: opcode, priority, fd, buffer, its size, offset, flags, eventfd."""

_GENERIC: Final = (0, 2, 4)
_SYSCALLS: Final = {"x86_64": (206, 209, 208)}
"""Numbers of io_setup, io_submit and io_getevents; `_GENERIC` are those of younger
machines (aarch64, riscv64)."""


class _Signaller:
    """A context for asynchronous I/O; lives as long as this process."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        setup, self._submit, self._get = _SYSCALLS.get(platform.machine(), _GENERIC)
        self._context = ctypes.c_ulong(0)
        self._call(setup, ctypes.c_uint(_EVENTS), ctypes.byref(self._context))
        self._results = (ctypes.c_uint64 * (4 * _EVENTS))()
        self._no_time = (ctypes.c_long * 2)()

    def signal(self, fd: int) -> None:
        """Have the kernel add 1 to an eventfd's counter."""
        request = _REQUEST.pack(_READ, 0, fd, 0, 0, 0, _SIGNAL, fd)
        buffer = ctypes.create_string_buffer(request, _REQUEST.size)
        table = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
        self._call(self._submit, self._context, ctypes.c_long(1), table)
        self._call(
            self._get,
            *(self._context, ctypes.c_long(0), ctypes.c_long(_EVENTS)),
            *(self._results, self._no_time),
        )

    def _call(self, number: int, *args: object) -> None:
        if self._libc.syscall(ctypes.c_long(number), *args) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"asynchronous I/O: {os.strerror(code)}")


@functools.cache
def _signaller() -> _Signaller:
    return _Signaller()


def prepare() -> None:
    """Get what `signal()` needs while there is time to say that it can't be had.

    Raises:
        OSError: the kernel has no asynchronous I/O (CONFIG_AIO), this process may not
            use it (seccomp), or others have used it up (/proc/sys/fs/aio-max-nr).
    """
    _signaller()


def signal(fd: int) -> None:
    """Add 1 to the counter of eventfd `fd`; a full one stays full.

    Raises:
        OSError: it is no eventfd, or see `prepare()`.
    """
    _signaller().signal(fd)


def take(fd: int) -> bool:
    """Reset the counter of eventfd `fd`; return whether there was a signal.

    Raises:
        OSError: it is no eventfd.
    """
    with contextlib.suppress(BlockingIOError):
        return os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT) == 8
    return False
