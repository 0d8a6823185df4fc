"""What the engine tells Python: steps in the lives of connections and devices."""

from __future__ import annotations

import enum
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_user._native import ffi

if TYPE_CHECKING:
    from collections.abc import Callable

    from cffi import FFI

    from vhost_user._vu import CStruct
    from vhost_user.targets import SocketAddress

ALL_QUEUES: Final = 0xFFFFFFFF
"""`Event.port` of a BROKEN event about the whole device: its memory is gone."""


class EventKind(enum.IntEnum):
    """Why a handler is called; `enum vu_event_kind`."""

    REQUEST = 1
    OPENED = 2
    FAILED = 3
    CLOSED = 4
    BROKEN = 5
    LIMIT = 6
    GONE = 7
    """The last of a closed listener; no handler gets it."""


class Limit(enum.IntEnum):
    """What a VM may run into; `enum vu_limit`."""

    CONNS = 0
    BYTES = 1
    RATE = 2
    FDS = 3
    MEMORY = 4
    BACKLOG = 5


ALL_EVENTS: Final = frozenset({EventKind.OPENED, EventKind.FAILED, EventKind.CLOSED})
"""What a device or listener may ask for; REQUEST, BROKEN and LIMIT always come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step in a connection's life; `struct vu_event`."""

    kind: EventKind
    conn: int = 0
    error: int = 0
    """errno; for BROKEN, the `enum vu_err`."""
    port: int = 0
    """vsock port on our side; for BROKEN, the queue, or `ALL_QUEUES`; for LIMIT, the
    `Limit`."""
    peer_port: int = 0
    """vsock port in the guest."""
    cid: int = 0
    """vsock CID on our side: 2, or a sibling's; 0 for a listener."""
    up_bytes: int = 0
    """Payload from the side that opened the connection, bytes; for LIMIT, how often
    it was met."""
    down_bytes: int = 0
    """Payload back to it, bytes."""
    duration_us: int = 0
    """Since the request, us."""
    src: SocketAddress | None = None
    """Listener: the client; None once it has hung up."""
    dst: SocketAddress | None = None
    """Listener: the socket's own name; with TPROXY, the original destination."""


if TYPE_CHECKING:
    Handler = Callable[[Event], None]


def want_bits(kinds: frozenset[EventKind]) -> int:
    """Return what a device or listener asks for, as `VU_WANT_` bits."""
    return sum(1 << kind for kind in kinds & ALL_EVENTS)


def decode(raw: CStruct) -> Event:
    """Return a `struct vu_event` as a value of its own."""
    return Event(
        kind=EventKind(raw.kind),
        conn=raw.conn,
        error=raw.error,
        port=raw.port,
        peer_port=raw.peer_port,
        cid=raw.cid,
        up_bytes=raw.up_bytes,
        down_bytes=raw.down_bytes,
        duration_us=raw.duration_us,
        src=_address(raw.src, raw.src_len),
        dst=_address(raw.dst, raw.dst_len),
    )


def _address(raw: FFI.CData, size: int) -> SocketAddress | None:
    """Return a sockaddr as an address; None for an empty or other one."""
    data = bytes(ffi.buffer(raw, size))
    if len(data) < 4:
        return None
    family = struct.unpack_from("=H", data)[0]
    port = struct.unpack_from("!H", data, 2)[0]
    if family == socket.AF_INET:
        return socket.inet_ntop(family, data[4:8]), port
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, data[8:24]), port
    return None
