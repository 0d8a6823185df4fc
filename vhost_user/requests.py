"""How a session handles one kind of message, and which kinds it refuses.

The rows themselves are `Session._TABLE`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from vhost_user.errors import FrontendError
from vhost_user.message import ProtocolFeature, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED: Final[dict[int, str]] = {
    Request.SEND_RARP: "protocol feature RARP",
    Request.NET_SET_MTU: "protocol feature NET_MTU",
    Request.IOTLB_MSG: "feature ACCESS_PLATFORM",
    Request.SET_VRING_ENDIAN: "protocol feature CROSS_ENDIAN",
    Request.CREATE_CRYPTO_SESSION: "protocol feature CRYPTO_SESSION",
    Request.CLOSE_CRYPTO_SESSION: "protocol feature CRYPTO_SESSION",
    Request.POSTCOPY_ADVISE: "protocol feature PAGEFAULT",
    Request.POSTCOPY_LISTEN: "protocol feature PAGEFAULT",
    Request.POSTCOPY_END: "protocol feature PAGEFAULT",
    Request.GPU_SET_SOCKET: "the GPU device",
    Request.VRING_KICK: "protocol feature INBAND_NOTIFICATIONS",
    Request.GET_SHARED_OBJECT: "protocol feature SHARED_OBJECT",
    Request.SET_DEVICE_STATE_FD: "protocol feature DEVICE_STATE",
    Request.CHECK_DEVICE_STATE: "protocol feature DEVICE_STATE",
    Request.GET_SHMEM_CONFIG: "protocol feature SHMEM",
    Request.GET_VRING_BASE_SKIP_DRAIN: "protocol feature GET_VRING_BASE_SKIP_DRAIN",
}
"""Messages of the specification that no device here takes, and what they belong to."""


class RefusedError(FrontendError):
    """A message with need_reply was refused: send `reply`, then end the session."""

    def __init__(self, text: str, reply: Reply) -> None:
        super().__init__(text)
        self.reply = reply


class NotGrantedError(Exception):
    """The request is legal but not granted: a non-zero REPLY_ACK, no more."""


P = TypeVar("P")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Row(Generic[S, P]):
    """How a session `S` handles one message with payload `P`."""

    decode: Callable[[bytes], P]
    handle: Callable[[S, P, list[int]], bytes | Reply | None]
    """Return the reply or its payload; None: the message has no reply of its own."""
    fds: int = 0
    """Most fds the message may carry."""
    needs: ProtocolFeature = field(default_factory=lambda: ProtocolFeature(0))
    """Must have been acknowledged before."""
