"""Interrupts through a pipe, for front-ends that have no eventfd for them.

User-mode Linux is one: an eventfd gives it no SIGIO. A write to a pipe can wait for
ever (it may be full, and its lock is also taken by those that read it, who may be
stopped in the middle), so it has a thread of its own, and the device signals an eventfd
of ours.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from typing import TYPE_CHECKING, Final

from vhost_user.descriptors import THREAD_NAME

if TYPE_CHECKING:
    from vhost_user.descriptors import Offload

_ONE: Final = struct.pack("=Q", 1)  # what a write to an eventfd would be


class PipeCall:
    """Writes to a pipe whenever its eventfd is signalled.

    Args:
        pipe_fd: the write end; taken over.
        offload: waits for the thread, once it is no longer needed.
    """

    def __init__(self, pipe_fd: int, offload: Offload) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)
        """The eventfd; nobody else has it, so its counter is never full."""
        self._pipe_fd = pipe_fd
        self._offload = offload
        self._left = False
        self._thread = threading.Thread(
            target=self._run, name=f"{THREAD_NAME}-pipe", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop; nobody signals the eventfd any more."""
        self._left = True
        os.eventfd_write(self.fd, 1)
        self._offload.run(self._end)

    def _end(self) -> None:
        self._thread.join()
        os.close(self.fd)
        with contextlib.suppress(OSError):
            os.close(self._pipe_fd)

    def _run(self) -> None:
        while True:
            os.eventfd_read(self.fd)
            if self._left:
                break
            with contextlib.suppress(OSError):  # full, or nobody reads: no matter
                os.write(self._pipe_fd, _ONE)
