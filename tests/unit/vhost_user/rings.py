"""A ring as a device in Python would have it, without a session."""

from __future__ import annotations

from vhost_user._native import check, ffi, lib
from vhost_user.engine import RingConfig
from vhost_user.memory import GuestMemory, Region


def memory_of(ram):
    """Return the device's view of a driver's RAM; to be closed."""
    region = ram.region
    return GuestMemory(
        [
            Region(
                gpa=region.gpa,
                uva=region.uva,
                size=region.size,
                fd=ram.fd,
                offset=region.offset,
            )
        ]
    )


def start_ring(memory, ram, queue, *, features, **more):
    """Start the device's side of a driver's queue; return `struct vu_ring *`."""
    config = RingConfig(
        **{
            "num": queue.num,
            "base": queue.base,
            "desc_uva": ram.to_uva(queue.desc),
            "avail_uva": ram.to_uva(queue.avail),
            "used_uva": ram.to_uva(queue.used),
            "features": features,
            "kick_fd": -1,
            "call_fd": -1,
            **more,
        }
    )
    error = ffi.new("int *")
    ring = lib.vu_ring_new(memory.native, config.native(), error)
    check(error[0], "ring")
    return ring
