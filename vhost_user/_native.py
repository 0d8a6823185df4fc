"""The C hot path, as `memory.py`, `queue.py` and `engine.py` use it.

Ownership, in one place: Python allocates and frees, C borrows. A C object that
holds a pointer into Python memory is closed before that memory is.
"""

from __future__ import annotations

import os
from typing import Final

from vhost_user.errors import (
    FrontendError,
    GuestError,
    NativeError,
    StateError,
    VhostUserError,
)

try:
    from vhost_user._vu import ffi, lib
except ImportError as error:
    raise NativeError(f"{error}") from error

__all__ = ["check", "ffi", "lib"]

_ERRORS: Final[dict[int, tuple[type[VhostUserError], str]]] = {
    lib.VU_ERR_EMPTY: (GuestError, "empty range"),
    lib.VU_ERR_RANGE: (GuestError, "address outside guest memory"),
    lib.VU_ERR_FULL: (StateError, "fixed-size table is full"),
    lib.VU_ERR_NOMEM: (StateError, "out of memory"),
    lib.VU_ERR_RING: (GuestError, "ring breaks the virtio specification"),
    lib.VU_ERR_CHAIN: (GuestError, "descriptor chain breaks the specification"),
    lib.VU_ERR_GONE: (StateError, "no such device, listener, route or connection"),
    lib.VU_ERR_STATE: (StateError, "not possible in this state"),
    lib.VU_ERR_INVAL: (StateError, "argument out of range"),
    lib.VU_ERR_FAULT: (FrontendError, "guest memory is gone: its file was truncated"),
    lib.VU_ERR_REGION: (FrontendError, "memory region wraps or overlaps another"),
    lib.VU_ERR_CALL: (FrontendError, "its call eventfd is full and blocks"),
}


def check(ret: int, context: str) -> int:
    """Return `ret` unless it is an error code of the C side.

    Args:
        ret: what the C function returned: a count, or a negated `enum vu_err`.
        context: what was being done, for the message.

    Raises:
        FrontendError: the front-end did.
        GuestError: the guest gave bad values.
        StateError: the caller did.
        OSError: a system call failed.
    """
    if ret >= 0:
        return ret
    if ret == -lib.VU_ERR_SYS:
        raise OSError(ffi.errno, f"{context}: {os.strerror(ffi.errno)}")
    kind, text = _ERRORS[-ret]
    raise kind(f"{context}: {text}")
