"""Memory that the front-end shares with us: guest RAM, and the logs it keeps for us.

Spec: vhost-user, "Memory regions description", `VHOST_USER_SET_MEM_TABLE`,
`VHOST_USER_ADD_MEM_REG`, "Migration".
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_user._native import check, ffi, lib
from vhost_user.closing import Closing
from vhost_user.errors import FrontendError, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence


MAP_ERRORS: Final = (OSError, OverflowError, ValueError)
"""`mmap()` refuses a bad size, offset or fd in as many ways as it has checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One memory region as the VMM describes it; all values in bytes."""

    gpa: int
    uva: int
    """Address of its first byte in the front-end."""
    size: int
    fd: int
    """Borrowed: the caller closes it, we only map it."""
    offset: int = 0
    """Where it begins in `fd`; any value, pages are our business."""


class SharedArea:
    """A piece of a file, mapped for reading and writing.

    Args:
        fd: borrowed; the mapping holds the file.
        size: bytes.
        offset: where in the file it begins; any value.

    Raises:
        FrontendError: it is empty.
        MAP_ERRORS: it can't be mapped.
    """

    def __init__(self, fd: int, size: int, offset: int = 0) -> None:
        if size == 0:  # mmap() would take it for "the whole file"
            raise FrontendError("a shared area is empty")
        skip = offset % mmap.PAGESIZE
        self.size = size
        self._map = mmap.mmap(fd, size + skip, offset=offset - skip)
        self._map.madvise(mmap.MADV_DONTDUMP)  # it is what the guest knows
        self._view = ffi.from_buffer(self._map, require_writable=True)
        self.va = self._view + skip
        """Where it is in our address space, for the C side."""

    @property
    def address(self) -> int:
        """The same as a number."""
        return int(ffi.cast("uintptr_t", self.va))

    def close(self) -> None:
        """Unmap it; a second call does nothing."""
        ffi.release(self._view)
        self._map.close()


class GuestMemory(Closing):
    """Maps guest RAM and reads it by guest physical address.

    Owns its mappings until `close()`. The C side borrows them, so `close()` drops the
    C map first, then the mappings.

    Args:
        regions: at most 32, in any order, not overlapping.

    Raises:
        FrontendError: a region wraps, or overlaps another.
        StateError: more regions than the C table holds.
        MAP_ERRORS: a region could not be mapped.
    """

    def __init__(self, regions: Sequence[Region] = ()) -> None:
        self._regions: list[tuple[Region, SharedArea]] = []
        mem = lib.vu_mem_new()
        if mem == ffi.NULL:
            raise MemoryError
        self.native = ffi.gc(mem, lib.vu_mem_free)
        """`struct vu_mem *`, for the C calls that borrow it."""
        try:
            for region in regions:
                self.add(region)
        except BaseException:
            self.close()
            raise

    @property
    def regions(self) -> list[Region]:
        """What is mapped; the fds are closed by now."""
        return [region for region, _ in self._regions]

    def add(self, region: Region) -> None:
        """Map one more region; no ring runs meanwhile.

        Raises:
            FrontendError: it wraps, or overlaps one that is there.
            StateError, MAP_ERRORS: as for the class.
        """
        area = SharedArea(region.fd, region.size, region.offset)
        self._regions.append((region, area))
        try:
            ret = lib.vu_mem_add(
                self.native, region.gpa, region.uva, region.size, area.va
            )
            check(ret, f"region at {region.gpa:#x}")
        except BaseException:
            self._regions.pop()
            area.close()
            raise

    def remove(self, *, gpa: int, uva: int, size: int) -> None:
        """Unmap a region, which these three values name; no ring runs meanwhile.

        Raises:
            FrontendError: there is none.
        """
        names = [(region.gpa, region.uva, region.size) for region in self.regions]
        if (gpa, uva, size) not in names:
            raise FrontendError(f"no region of {size} bytes at {gpa:#x}")
        check(lib.vu_mem_del(self.native, gpa, uva, size), f"region at {gpa:#x}")
        _, area = self._regions.pop(names.index((gpa, uva, size)))
        area.close()

    def set_log(self, log: SharedArea | None) -> None:
        """Keep the dirty log there, or none; no ring runs meanwhile.

        Args:
            log: borrowed until the next call, or `close()`.

        Raises:
            StateError, OSError: no room to guard it against truncation.
        """
        va, size = (ffi.NULL, 0) if log is None else (log.va, log.size)
        check(lib.vu_mem_set_log(self.native, va, size), "dirty log")

    @property
    def end(self) -> int:
        """The guest address behind the last one, bytes."""
        return max((r.gpa + r.size for r in self.regions), default=0)

    def to_gpa(self, uva: int) -> int | None:
        """Return the guest address of an address of the front-end; None: has none."""
        for region in self.regions:
            if region.uva <= uva < region.uva + region.size:
                return region.gpa + uva - region.uva
        return None

    def read(self, gpa: int, size: int) -> bytes:
        """Copy `size` bytes at guest physical address `gpa`.

        For the control plane: the data path stays in C.

        Raises:
            FrontendError: the memory's file was truncated.
            GuestError: part of the range is not guest memory.
            StateError: the memory is closed.
        """
        if not self._regions:
            raise StateError("guest memory is closed")
        va = ffi.new("void **")
        span = ffi.new("uint64_t *")
        chunks = []
        while size:
            span[0] = size
            check(lib.vu_mem_translate(self.native, gpa, span, va), f"read {gpa:#x}")
            chunks.append(bytes(ffi.buffer(va[0], span[0])))
            gpa += span[0]
            size -= span[0]
        if self.lost:
            check(-lib.VU_ERR_FAULT, f"read {gpa:#x}")
        return b"".join(chunks)

    @property
    def lost(self) -> bool:
        """Whether the front-end truncated a file under us.

        What was read since the last look may be zeroes that nobody wrote.
        """
        return bool(self._regions) and lib.vu_mem_faulted(self.native)

    def close(self) -> None:
        """Unmap everything; a second call does nothing."""
        ffi.release(self.native)
        for _, area in self._regions:
            area.close()
        self._regions.clear()
