"""What the front-end shares with us: guest memory, the dirty log, the in-flight log.

Each of them changes with all rings paused, since rings point into all three.

Spec: vhost-user, "Memory access", "Migration", "Inflight I/O tracking".
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vhost_user.descriptors import require_memory
from vhost_user.dirtylog import DirtyLog
from vhost_user.errors import FrontendError, StateError
from vhost_user.inflight import ALIGN as INFLIGHT_ALIGN
from vhost_user.inflight import Inflight
from vhost_user.memory import MAP_ERRORS, GuestMemory, Region
from vhost_user.message import Feature, Reply, Request, encode, encode_u64

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.descriptors import MemoryFiles
    from vhost_user.device import Device
    from vhost_user.message import InflightArea, LogArea, MemoryRegion
    from vhost_user.vring import Rings


class Sharing:
    """The memory of one session.

    A method that takes `fds` keeps none of them but those that it takes out.

    Args:
        device: gets the guest memory; stays the caller's.
        rings: use all of it; stay the caller's.
        memory_files: which files it may be in.
    """

    def __init__(self, device: Device, rings: Rings, memory_files: MemoryFiles) -> None:
        self._device = device
        self._rings = rings
        self._memory_files = memory_files
        self._memory: GuestMemory | None = None
        self._log = DirtyLog()
        self._inflight: Inflight | None = None

    # ---- guest memory ----

    def set_table(self, table: list[MemoryRegion], fds: list[int]) -> None:
        """Replace the guest's memory."""
        if len(fds) != len(table):
            raise FrontendError(f"{len(fds)} fds for {len(table)} regions")
        memory = GuestMemory()
        try:
            for region, fd in zip(table, fds, strict=True):
                self._map(memory, region, fd)
        except BaseException:
            memory.close()
            raise
        with self._changing_memory():
            old, self._memory = self._memory, memory
            if old is not None:
                old.close()

    def add_region(self, region: MemoryRegion, fds: list[int]) -> None:
        """Add to the guest's memory."""
        fd = _only(fds, "a region")
        with self._changing_memory():
            if self._memory is None:
                self._memory = GuestMemory()
            self._map(self._memory, region, fd)

    def remove_region(self, region: MemoryRegion) -> None:
        """Take away from the guest's memory; rings that were in it wait."""
        if self._memory is None:
            raise FrontendError("there is no memory yet")
        with self._changing_memory():
            self._memory.remove(gpa=region.gpa, uva=region.uva, size=region.size)
            self._rings.note_memory_removed()

    def _map(self, memory: GuestMemory, region: MemoryRegion, fd: int) -> None:
        self._require_memory(fd, "memory")
        mapped = Region(
            gpa=region.gpa,
            uva=region.uva,
            size=region.size,
            fd=fd,
            offset=region.offset,
        )
        try:
            memory.add(mapped)
        except (*MAP_ERRORS, StateError) as error:
            raise FrontendError(f"memory can't be mapped: {error}") from error

    def _require_memory(self, fd: int, what: str) -> None:
        require_memory(fd, self._memory_files, what=f"{what} can't be mapped: its file")

    @contextlib.contextmanager
    def _changing_memory(self) -> Iterator[None]:
        """Let the caller change the memory while neither ring nor device uses it."""
        with self._rings.paused():
            self._device.set_memory(None)
            yield
            self._rings.memory = self._memory
            self.apply_log()
            self._device.set_memory(self._memory)

    # ---- dirty log ----

    def set_log(self, where: LogArea, fds: list[int]) -> bytes:
        """Replace the dirty log; return the reply's payload."""
        fd = _only(fds, "a dirty log")
        self._require_memory(fd, "dirty log")
        self._log.set_area(where, fd)
        with self._rings.paused():
            self.apply_log()
        return encode_u64(0)

    def set_log_fd(self, fds: list[int]) -> None:
        """Replace the eventfd of the dirty log."""
        self._log.set_fd(_only(fds, "the log's eventfd"))
        fds.clear()

    def apply_log(self) -> None:
        """Turn logging on or off, as features and rings now ask; all rings paused."""
        self._log.apply(self._rings)

    def ring_stopped(self) -> None:
        """Tell the front-end, if it logs, that a ring has written its last for now."""
        self._log.ring_stopped()

    # ---- in-flight log ----

    def get_inflight(self, asked: InflightArea) -> Reply:
        """Make an in-flight log, use it and share it."""
        self._check_inflight(asked)
        inflight = Inflight.create(asked, packed=self._packed)
        self._use_inflight(inflight)
        payload = inflight.area.encode()
        data = encode(Request.GET_INFLIGHT_FD, payload, reply=True)
        return Reply(data, (inflight.fd,))

    def set_inflight(self, area: InflightArea, fds: list[int]) -> None:
        """Use the in-flight log that an earlier back-end made."""
        fd = _only(fds, "an in-flight log")
        self._require_memory(fd, "in-flight log")
        self._check_inflight(area)
        inflight = Inflight(fd, area, packed=self._packed)
        fds.clear()
        self._use_inflight(inflight)

    def drop_inflight(self) -> None:
        """Use none any more: the driver that had chains in flight is gone."""
        self._use_inflight(None)

    @property
    def _packed(self) -> bool:
        return bool(self._rings.features & Feature.RING_PACKED)

    def _check_inflight(self, area: InflightArea) -> None:
        queues, size = self._device.queues, self._device.queue_size
        if not 0 < area.queues <= queues:
            raise FrontendError(
                f"in-flight log of {area.queues} queues, there are {queues}"
            )
        if not 0 < area.queue_size <= size:
            raise FrontendError(
                f"in-flight log for rings of {area.queue_size} entries, at most {size}"
            )
        if area.offset % INFLIGHT_ALIGN:
            raise FrontendError(
                f"in-flight log at offset {area.offset}, need a multiple of "
                f"{INFLIGHT_ALIGN}"
            )

    def _use_inflight(self, inflight: Inflight | None) -> None:
        with self._rings.paused():
            old, self._inflight = self._inflight, inflight
            self._rings.inflight = inflight
            if old is not None:
                old.close()

    def close(self) -> None:
        """Take the memory back from the device and unmap all; no ring runs."""
        with contextlib.ExitStack() as stack:  # each step, even if one fails
            if self._inflight is not None:
                stack.callback(self._inflight.close)
            stack.callback(self._log.close)
            if self._memory is not None:
                stack.callback(self._memory.close)
            stack.callback(self._device.set_memory, None)


def _only(fds: list[int], what: str) -> int:
    if len(fds) != 1:
        raise FrontendError(f"{len(fds)} fds for {what}")
    return fds[0]
