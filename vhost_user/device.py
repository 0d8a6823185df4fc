"""What a vhost-user device is: the calls that a session makes on it.

`vsock/device.py` is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from vhost_user.message import Feature, ProtocolFeature

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.engine import RingConfig
    from vhost_user.memory import GuestMemory

SESSION_FEATURES: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""Protocol features that the session brings along for each device."""

RING_FEATURES: Final = (
    Feature.VERSION_1
    | Feature.EVENT_IDX
    | Feature.INDIRECT_DESC
    | Feature.RING_PACKED
    | Feature.LOG_ALL
    | Feature.RING_RESET
)
"""Feature bits that the native rings and the session bring along for each device."""


class Device(Protocol):
    """What a vhost-user device gives its session.

    The session calls everything on one thread, in an order that the engine's
    contract allows: memory before rings, rings stopped before memory changes.
    """

    on_ring_broke: Callable[[int], None] | None
    """The back-end sets it; the device calls it with a queue it had to give up.

    `ALL_QUEUES`: the guest's memory is gone (its file was truncated), or the front-end
    makes interrupts block.
    """

    on_config_change: Callable[[], None] | None
    """The back-end sets it; the device calls it when `config()` has changed."""

    @property
    def features(self) -> int:
        """Feature bits offered, without `Feature.PROTOCOL_FEATURES`."""

    @property
    def protocol_features(self) -> ProtocolFeature:
        """Protocol features offered."""

    @property
    def queues(self) -> int:
        """How many rings the device has."""

    @property
    def queue_size(self) -> int:
        """Most entries that a ring may have."""

    def config(self) -> bytes:
        """Return the configuration space."""

    def set_features(self, acked: int) -> None:
        """Take the feature bits that the driver acknowledged."""

    def set_memory(self, memory: GuestMemory | None) -> None:
        """Borrow this guest memory until the next call."""

    def start_ring(self, queue: int, config: RingConfig) -> None:
        """Process a ring; borrows its eventfds. GuestError: it can't be used."""

    def stop_ring(self, queue: int) -> int:
        """Leave a ring alone and return where it goes on, as `RingConfig.base`."""

    def set_call(self, queue: int, call_fd: int) -> None:
        """Change a running ring's interrupt eventfd; -1: none."""

    def reset(self) -> None:
        """Forget everything that belongs to the driver that was there."""
