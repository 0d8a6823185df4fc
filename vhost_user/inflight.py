"""The in-flight log: which chains the device has, kept where it outlives us.

The front-end holds the memory. A back-end that starts again after a crash gets it
back and takes up what the last one left; the rings (native/ring/) write and read
it.

Spec: vhost-user, "Inflight I/O tracking".
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
from typing import TYPE_CHECKING, Final, Self

from vhost_user._native import lib
from vhost_user.errors import FrontendError
from vhost_user.memory import MAP_ERRORS, SharedArea

if TYPE_CHECKING:
    from vhost_user.message import InflightArea

ALIGN: Final = 8
"""The log's offset in its file is a multiple of it: it has 64-bit numbers."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Inflight:
    """The mapped log; owns its mapping and its file.

    Args:
        fd: taken over, once there is no error.
        area: where in it the log is.
        packed: the rings are packed ones; their layout is another.

    Raises:
        FrontendError: it is too small for its queues, or can't be mapped.
    """

    def __init__(self, fd: int, area: InflightArea, *, packed: bool) -> None:
        self.area = area
        self.packed = packed
        self._part = int(lib.vu_inflight_size(area.queue_size, packed))
        if area.size < self._part * area.queues:
            raise FrontendError(
                f"in-flight log of {area.size} bytes, {area.queues} queues need "
                f"{self._part} each"
            )
        try:
            self._mapping = SharedArea(fd, area.size, area.offset)
        except MAP_ERRORS as error:
            raise FrontendError(f"in-flight log can't be mapped: {error}") from error
        self.fd = fd

    @classmethod
    def create(cls, asked: InflightArea, *, packed: bool) -> Self:
        """Make an empty log for the queues that `asked` names."""
        size = int(lib.vu_inflight_size(asked.queue_size, packed)) * asked.queues
        fd = os.memfd_create("vhost-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            area = dataclasses.replace(asked, size=size, offset=0)
            return cls(fd, area, packed=packed)
        except BaseException:
            os.close(fd)
            raise

    def part(self, queue: int) -> tuple[int, int]:
        """Return the address and size of a queue's part; (0, 0): it has none."""
        if queue >= self.area.queues:
            return 0, 0
        return self._mapping.address + queue * self._part, self._part

    def close(self) -> None:
        """Unmap it; what the front-end has lives on."""
        self._mapping.close()
        os.close(self.fd)
