"""What the engine tells Python: steps in the lives of connections and devices."""

from __future__ import annotations

import enum
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from vhost_user._native import ffi

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """The last of a closed listener or pool; no handler gets it."""
    TUNNEL = 8
    """A tunnel is there, failed (`tag` 0) or has ended (`tag` 1): `reason` says why."""
    FORGOT = 9
    """No event with this `tag` of `Gate.decide()` comes any more from this source."""
    MAKER = 10
    """A network namespace's maker said nonsense (EPROTO) or is gone (ECONNRESET)."""


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


class Event(NamedTuple):
    """One step in a connection's life; `struct vu_event`.

    There are a few for each connection: a tuple is made in a fraction of the time that
    a frozen dataclass takes.
    """

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
    tag: int = 0
    """`Engine.add_guest_listener()`, `Gate.decide()`: of a client, until OPENED;
    else 0."""
    src: SocketAddress | None = None
    """Listener: the client; without `tag` None once it has hung up."""
    dst: SocketAddress | None = None
    """Listener: the socket's own name; with TPROXY, the original destination."""
    reason: int = 0
    """Why a tunnel or a stream failed; `hbone.Reason`."""
    answer: int = 0
    """OPENED of one to another network: what `hbone.answer()` reads; else 0."""


if TYPE_CHECKING:
    Handler = Callable[[Event], None]


def want_bits(kinds: frozenset[EventKind]) -> int:
    """Return what a device or listener asks for, as `VU_WANT_` bits."""
    return sum(1 << kind for kind in kinds & ALL_EVENTS)


_KINDS: Final = {kind.value: kind for kind in EventKind}
_FIELDS: Final = struct.Struct("=QQQQIIiIIIIHH28s28sII")
"""Those of `struct vu_event`, in its order; `test_engine_events.py` compares."""


def decode(raw: CStruct) -> Event:
    """Return a `struct vu_event` as a value of its own."""
    (
        conn,
        up_bytes,
        down_bytes,
        duration_us,
        kind,
        _source,
        error,
        peer_port,
        port,
        cid,
        tag,
        src_len,
        dst_len,
        src,
        dst,
        reason,
        answer,
    ) = _FIELDS.unpack_from(ffi.buffer(ffi.addressof(raw)))
    return Event(
        _KINDS[kind],
        conn,
        error,
        port,
        peer_port,
        cid,
        up_bytes,
        down_bytes,
        duration_us,
        tag,
        _address(src, src_len) if src_len else None,
        _address(dst, dst_len) if dst_len else None,
        reason,
        answer,
    )


def _address(data: bytes, size: int) -> SocketAddress | None:
    """Return a sockaddr as an address; None for another one."""
    if size < 4:
        return None
    family = struct.unpack_from("=H", data)[0]
    port = struct.unpack_from("!H", data, 2)[0]
    if family == socket.AF_INET:
        return socket.inet_ntop(family, data[4:8]), port
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, data[8:24]), port
    return None
