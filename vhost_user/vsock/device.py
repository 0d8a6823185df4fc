"""A virtio-vsock device for `Backend`: the engine's device and its configuration.

Spec: VIRTIO 1.2 section 5.10 "Socket Device". The rings and the packets are the
engine's; nothing here runs for a packet.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from typing import TYPE_CHECKING, Final

from vhost_user._native import lib
from vhost_user.device import RING_FEATURES, SESSION_FEATURES
from vhost_user.engine import (
    ALL_QUEUES,
    DEFAULT_BUF_ALLOC,
    DEFAULT_MAX_CONNS,
    DEFAULT_MAX_QUEUED_BYTES,
    MAX_QUEUE_SIZE,
    Event,
    EventKind,
    Limit,
)
from vhost_user.errors import StateError
from vhost_user.message import ProtocolFeature
from vhost_user.vsock.packet import F_SEQPACKET

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.engine import Engine, RingConfig
    from vhost_user.events import Handler
    from vhost_user.memory import GuestMemory

log = logging.getLogger(__name__)

DEFAULT_QUEUE_SIZE: Final = MAX_QUEUE_SIZE
"""Entries of the largest ring that a device takes if it isn't told; at most
`MAX_QUEUE_SIZE`."""

MIN_GUEST_CID: Final = 3
MAX_GUEST_CID: Final = 0xFFFF_FFFE


_LIMIT_MET: Final = {
    Limit.CONNS: "has max_conns connections ({}); more are refused",
    Limit.BYTES: "nears max_queued_bytes; windows are smaller",
    Limit.RATE: "exceeds accept_rate; requests are refused",
    Limit.FDS: "a connection failed: out of file descriptors",
    Limit.MEMORY: "a connection failed: out of memory",
    Limit.BACKLOG: "a host program does not accept: its backlog is full",
}


class VsockDevice:
    """Virtio-vsock over `Engine.add_device()`.

    Args:
        engine: must be running, and outlives the device.
        guest_cid: the guest's CID, `MIN_GUEST_CID` to `MAX_GUEST_CID`.
        buf_alloc: receive window that a connection offers to the guest, bytes.
        max_conns: connections; one more is refused.
        max_queued_bytes: bytes from the guest that the engine may hold.
        accept_rate: requests a second from the guest, and from the host; 0: any.
        queue_size: most entries that a ring may have.
        on_event: gets the events of the device's connections, in the event loop.
        want: the kinds of event besides REQUEST and BROKEN that it gets.
        groups: the guest and those of other devices that are in one of these groups
            reach each other by CID.
    """

    features: Final[int] = RING_FEATURES | F_SEQPACKET
    protocol_features: Final = SESSION_FEATURES | ProtocolFeature.CONFIG
    queues: Final = 3

    def __init__(
        self,
        engine: Engine,
        *,
        guest_cid: int,
        buf_alloc: int = DEFAULT_BUF_ALLOC,
        max_conns: int = DEFAULT_MAX_CONNS,
        max_queued_bytes: int = DEFAULT_MAX_QUEUED_BYTES,
        accept_rate: int = 0,
        queue_size: int = DEFAULT_QUEUE_SIZE,
        on_event: Handler | None = None,
        want: frozenset[EventKind] = frozenset(),
        groups: frozenset[str] = frozenset(),
    ) -> None:
        self.guest_cid = guest_cid
        self.queue_size = queue_size
        self.on_ring_broke: Callable[[int], None] | None = None
        self.on_config_change: Callable[[], None] | None = None
        """See `vhost_user.device.Device`."""
        self._on_event = on_event
        self._max_conns = max_conns
        self._broken = 0
        """Rings that the guest broke."""
        self.handle = engine.add_device(
            guest_cid=guest_cid,
            buf_alloc=buf_alloc,
            max_conns=max_conns,
            max_queued_bytes=max_queued_bytes,
            accept_rate=accept_rate,
            on_event=self._handle_event,
            want=want,
            groups=groups,
        )

    def config(self) -> bytes:
        """Return the guest CID (VIRTIO 1.2 section 5.10.4)."""
        return struct.pack("<Q", self.guest_cid)

    def set_features(self, acked: int) -> None:
        """Do nothing: the rings get theirs when they start."""

    def set_memory(self, memory: GuestMemory | None) -> None:
        """Borrow `memory` until the next call."""
        self.handle.set_memory(memory)

    def start_ring(self, queue: int, config: RingConfig) -> None:
        """Process ring `queue`.

        Raises:
            GuestError: it isn't in guest memory, or breaks the specification.
        """
        self.handle.start_ring(queue, config)

    def stop_ring(self, queue: int) -> int:
        """Leave ring `queue` alone; return its next available index."""
        return self.handle.stop_ring(queue)

    def set_call(self, queue: int, call_fd: int) -> None:
        """Change the interrupt eventfd of ring `queue`; -1: none."""
        # A ring that the guest broke a moment ago is stopped without our doing;
        # nobody needs its interrupts.
        with contextlib.suppress(StateError):
            self.handle.set_call(queue, call_fd)

    def reset(self) -> None:
        """Drop all connections; a driver that goes on all the same will hear of it."""
        self.handle.reset()
        self.handle.transport_reset()

    def limit(self, *, max_conns: int, max_queued_bytes: int, accept_rate: int) -> None:
        """Change limits that the device was made with.

        Raises:
            StateError: see `DeviceHandle.limit()`.
        """
        self.handle.limit(
            max_conns=max_conns,
            max_queued_bytes=max_queued_bytes,
            accept_rate=accept_rate,
        )
        self._max_conns = max_conns

    def close(self) -> None:
        """Take the device out of the engine."""
        self.handle.close()

    def _log_broken(self, event: Event) -> None:
        self._broken += 1
        if self._broken & (self._broken - 1) == 0:  # 1, 2, 4, ...: a guest that resets
            log.warning(  # its device can go on for ever
                "CID %d: the guest broke ring %d (error %d); it is stopped (%d so far)",
                self.guest_cid,
                event.port,
                event.error,
                self._broken,
            )

    def _handle_event(self, event: Event) -> None:
        if event.kind is EventKind.BROKEN:
            if event.port != ALL_QUEUES:
                self._log_broken(event)
            elif event.error == lib.VU_ERR_CALL:
                log.warning("CID %d: a call eventfd is full and blocks", self.guest_cid)
            if self.on_ring_broke is not None:
                self.on_ring_broke(event.port)
        if event.kind is EventKind.LIMIT:
            log.warning(
                "CID %d: %s (%d so far)",
                self.guest_cid,
                _LIMIT_MET[Limit(event.port)].format(self._max_conns),
                event.up_bytes,
            )
        elif self._on_event is not None:
            self._on_event(event)
