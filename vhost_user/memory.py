"""Guest memory: the mappings the VMM shares with us, and addresses in them.

Spec: vhost-user, "Memory region description" and `VHOST_USER_SET_MEM_TABLE`.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vhost_user._native import check, ffi, lib
from vhost_user.errors import FrontendError, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from cffi import FFI


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

    def __post_init__(self) -> None:
        if self.size == 0:  # mmap() would take it for "the whole file"
            raise FrontendError(f"region at {self.gpa:#x} is empty")


class GuestMemory:
    """Maps guest RAM and reads it by guest physical address.

    Owns its mappings until `close()`. The C side borrows them, so `close()`
    drops the C map first, then its views, then the mappings.

    Args:
        regions: at most 32, in any order, not overlapping.

    Raises:
        FrontendError: a region wraps, or overlaps another.
        StateError: more regions than the C table holds.
        OSError: a region could not be mapped.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        mem = lib.vu_mem_new()
        if mem == ffi.NULL:
            raise MemoryError
        self.native = ffi.gc(mem, lib.vu_mem_free)
        """`struct vu_mem *`, for the C calls that borrow it."""
        self._maps: list[mmap.mmap] = []
        self._views: list[FFI.CData] = []
        try:
            for region in regions:
                self._add(region)
        except BaseException:
            self.close()
            raise

    def _add(self, region: Region) -> None:
        skip = region.offset % mmap.PAGESIZE
        mapping = mmap.mmap(region.fd, region.size + skip, offset=region.offset - skip)
        view = ffi.from_buffer(mapping, require_writable=True)
        self._maps.append(mapping)
        self._views.append(view)
        check(
            lib.vu_mem_add(
                self.native, region.gpa, region.uva, region.size, view + skip
            ),
            "add region",
        )

    def read(self, gpa: int, size: int) -> bytes:
        """Copy `size` bytes at guest physical address `gpa`.

        For the control plane: the data path stays in C.

        Raises:
            FrontendError: the memory's file was truncated.
            GuestError: part of the range is not guest memory.
            StateError: the memory is closed.
        """
        if not self._maps:
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
        return bool(self._maps) and lib.vu_mem_faulted(self.native)

    def close(self) -> None:
        """Unmap everything; a second call does nothing."""
        ffi.release(self.native)
        for view in self._views:
            ffi.release(view)
        for mapping in self._maps:
            mapping.close()
        self._views.clear()
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
