"""A ring as the front-end describes it, on its way to the C side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_user._native import ffi

if TYPE_CHECKING:
    from vhost_user._vu import CStruct

_NOT_LOGGED: Final = 0xFFFF_FFFF_FFFF_FFFF  # UINT64_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class RingConfig:
    """A ring as the front-end describes it; `struct vu_ring_config`."""

    num: int
    """Entries, a power of two, at most 32768."""
    base: int
    """VRING_BASE: the next available entry to take; packed: and the next used one."""
    desc_uva: int
    avail_uva: int
    used_uva: int
    features: int
    """Negotiated feature bits."""
    kick_fd: int
    """eventfd, borrowed; -1: poll."""
    call_fd: int
    """eventfd, borrowed; -1: none."""
    log_used_gpa: int | None = None
    """Where the dirty log has the used ring; None: it isn't logged."""
    inflight: int = 0
    """Our address of the ring's part of the inflight area; 0: there is none."""
    inflight_size: int = 0
    """Size of that part, bytes."""

    def native(self) -> CStruct:
        """Return it as `struct vu_ring_config *`."""
        raw = ffi.new("struct vu_ring_config *")
        special = {
            "log_used_gpa": (
                _NOT_LOGGED if self.log_used_gpa is None else self.log_used_gpa
            ),
            "inflight": ffi.cast("void *", self.inflight),
        }
        for name in self.__slots__:
            setattr(raw, name, special.get(name, getattr(self, name)))
        return raw
