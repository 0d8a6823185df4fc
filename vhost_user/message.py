"""vhost-user messages: bytes to values and back; no I/O, no state.

Decoding a value checks its size and its own fields and nothing else: what a value
means for the session (is there such a ring, is it running) is `session.py`'s.

Spec: vhost-user, "Message Specification". Every number is in the byte order of
the machine; both sides run on the same one.
"""

from __future__ import annotations

import enum
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Self

from vhost_user.errors import FrontendError

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION: Final = 1
"""The protocol's only version, the lowest two bits of a header's flags."""

FLAG_VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 1 << 2
FLAG_NEED_REPLY: Final = 1 << 3

MAX_REGIONS: Final = 32
"""Memory regions in one table; also the most fds that one message can carry."""

MAX_CONFIG: Final = 256
"""Bytes of device configuration in one message (QEMU's limit as well)."""

LOG_PAGE: Final = 4096
"""Bytes of guest memory that one bit of the dirty log stands for."""

_HEADER: Final = struct.Struct("=III")
_U64: Final = struct.Struct("=Q")
_STATE: Final = struct.Struct("=II")
_ADDRESS: Final = struct.Struct("=IIQQQQ")
_TABLE: Final = struct.Struct("=II")
_REGION: Final = struct.Struct("=QQQQ")
_SINGLE_REGION: Final = struct.Struct("=QQQQQ")
_LOG: Final = struct.Struct("=QQ")
_INFLIGHT: Final = struct.Struct("=QQHH")
_INFLIGHT_PADDING: Final = bytes(4)  # C front-ends send the struct as it lies there
_CONFIG: Final = struct.Struct("=III")

HEADER_SIZE: Final = _HEADER.size
"""Size of an encoded header, bytes."""

MAX_PAYLOAD: Final = _TABLE.size + MAX_REGIONS * _REGION.size
"""The longest payload of any message we know, bytes."""


class Request(enum.IntEnum):
    """Messages that the front-end sends ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44
    GET_VRING_BASE_SKIP_DRAIN = 45

    @classmethod
    def describe(cls, number: int) -> str:
        """Return the name of request `number`, or the number if it has none."""
        return cls(number).name if number in cls._value2member_map_ else f"{number}"


class BackendRequest(enum.IntEnum):
    """Messages that the back-end sends ("Back-end message types"); the one we use."""

    CONFIG_CHANGE_MSG = 2


class Feature(enum.IntFlag):
    """Feature bits that the transport or the rings own (VIRTIO 1.2 section 6)."""

    LOG_ALL = 1 << 26
    """vhost: log writes to guest memory."""
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    """vhost-user: a bit that virtio leaves unused; the driver never sees it."""
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34
    RING_RESET = 1 << 40


class ProtocolFeature(enum.IntFlag):
    """Extensions of the protocol itself ("Protocol features")."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


class Status(enum.IntFlag):
    """Device status (VIRTIO 1.2 section 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class ConfigFlag(enum.IntFlag):
    """Why the front-end writes configuration space."""

    WRITABLE = 0
    """The driver wrote fields that a driver may write."""
    MIGRATION = 1
    """The destination of a live migration restores the whole space."""


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of each message ("Header")."""

    request: int
    size: int
    """Payload that follows, bytes."""
    need_reply: bool = False

    @classmethod
    def decode(cls, buf: bytes | bytearray) -> Self:
        """Decode the `HEADER_SIZE` bytes of a front-end's header.

        Raises:
            FrontendError: wrong version, a reply (a front-end sends none), or a
                payload longer than any message has.
        """
        request, flags, size = _HEADER.unpack(buf)
        name = Request.describe(request)
        if flags & FLAG_VERSION_MASK != VERSION:
            raise FrontendError(
                f"request {name}: version {flags & FLAG_VERSION_MASK}, need {VERSION}"
            )
        if flags & FLAG_REPLY:
            raise FrontendError(f"request {name}: is marked as a reply")
        if size > MAX_PAYLOAD:
            raise FrontendError(
                f"request {name}: payload of {size} bytes, at most {MAX_PAYLOAD}"
            )
        return cls(request, size, bool(flags & FLAG_NEED_REPLY))


@dataclass(slots=True)
class Message:
    """A whole message from the front-end.

    Owns the file descriptors that came with it: who keeps one takes it out of
    `fds`, and `close()` closes the rest.
    """

    request: int
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)
    need_reply: bool = False

    def close(self, close: Callable[[int], None] = os.close) -> None:
        """Close the file descriptors that nobody has taken, each by `close`."""
        while self.fds:
            close(self.fds.pop())


@dataclass(slots=True)
class Reply:
    """What goes back: a whole message, and file descriptors that it takes along.

    The descriptors are borrowed: they outlive the reply.
    """

    data: bytes
    fds: tuple[int, ...] = ()


def encode(
    request: int, payload: bytes = b"", *, reply: bool = False, need_reply: bool = False
) -> bytes:
    """Return header and payload of a message as one byte string."""
    flags = VERSION | FLAG_REPLY * reply | FLAG_NEED_REPLY * need_reply
    return _HEADER.pack(request, flags, len(payload)) + payload


def decode_reply(buf: bytes) -> tuple[int, int, int]:
    """Return (request, flags, payload size) of a back-end's reply header."""
    request, flags, size = _HEADER.unpack(buf)
    return request, flags, size


def encode_u64(value: int) -> bytes:
    """Return the payload "a single 64-bit integer"."""
    return _U64.pack(value)


def decode_u64(payload: bytes) -> int:
    """Return the value of the payload "a single 64-bit integer".

    Raises:
        FrontendError: wrong size.
    """
    _require(payload, _U64.size)
    (value,) = _U64.unpack(payload)
    return int(value)


def decode_nothing(payload: bytes) -> None:
    """Check the payload of a message that has none.

    Raises:
        FrontendError: there is one.
    """
    _require(payload, 0)


@dataclass(frozen=True, slots=True)
class VringState:
    """Ring `index` and a number ("A vring state description")."""

    index: int
    num: int

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Decode; raises FrontendError for a wrong size."""
        _require(payload, _STATE.size)
        return cls(*_STATE.unpack(payload))

    def encode(self) -> bytes:
        """Return the payload."""
        return _STATE.pack(self.index, self.num)


@dataclass(frozen=True, slots=True, kw_only=True)
class VringAddress:
    """Where a ring is ("A vring address description"); user addresses."""

    LOG: ClassVar = 1
    """Flag: log writes to the used ring, at guest address `log` (VHOST_VRING_F_LOG)."""

    index: int
    flags: int = 0
    desc: int
    used: int
    avail: int
    log: int = 0

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Decode; raises FrontendError for a wrong size."""
        _require(payload, _ADDRESS.size)
        index, flags, desc, used, avail, log = _ADDRESS.unpack(payload)
        return cls(index=index, flags=flags, desc=desc, used=used, avail=avail, log=log)

    def encode(self) -> bytes:
        """Return the payload."""
        return _ADDRESS.pack(
            self.index, self.flags, self.desc, self.used, self.avail, self.log
        )


@dataclass(frozen=True, slots=True)
class VringFd:
    """A ring and whether an eventfd came along (`VHOST_USER_SET_VRING_KICK`)."""

    index: int
    has_fd: bool

    _NOFD = 1 << 8

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Decode bits 0-7 and 8; raises FrontendError for a wrong size."""
        value = decode_u64(payload)
        return cls(value & 0xFF, not value & cls._NOFD)

    def encode(self) -> bytes:
        """Return the payload."""
        return encode_u64(self.index | (0 if self.has_fd else self._NOFD))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRegion:
    """One region of guest memory ("Memory regions description"); all bytes."""

    gpa: int
    size: int
    uva: int
    offset: int = 0
    """Where the region starts in its file."""


def encode_mem_table(regions: list[MemoryRegion]) -> bytes:
    """Return the payload of `VHOST_USER_SET_MEM_TABLE`."""
    return _TABLE.pack(len(regions), 0) + b"".join(
        _REGION.pack(r.gpa, r.size, r.uva, r.offset) for r in regions
    )


def decode_mem_table(payload: bytes) -> list[MemoryRegion]:
    """Decode the payload of `VHOST_USER_SET_MEM_TABLE`.

    Front-ends differ in whether they send unused entries; what follows the last
    used one is not looked at.

    Raises:
        FrontendError: too many regions, fewer bytes than they need, or a region
            that ends behind the last address.
    """
    if len(payload) < _TABLE.size:
        raise FrontendError(f"payload of {len(payload)} bytes, need {_TABLE.size}")
    count, _padding = _TABLE.unpack_from(payload)
    if count > MAX_REGIONS:
        raise FrontendError(f"{count} memory regions, at most {MAX_REGIONS}")
    end = _TABLE.size + count * _REGION.size
    if len(payload) < end:
        raise FrontendError(f"payload of {len(payload)} bytes, need {end}")
    return [
        _region(*fields) for fields in _REGION.iter_unpack(payload[_TABLE.size : end])
    ]


def encode_mem_region(region: MemoryRegion) -> bytes:
    """Return the payload of `VHOST_USER_ADD_MEM_REG` and `VHOST_USER_REM_MEM_REG`."""
    return _SINGLE_REGION.pack(0, region.gpa, region.size, region.uva, region.offset)


def decode_mem_region(payload: bytes) -> MemoryRegion:
    """Decode a "single memory region description".

    Raises:
        FrontendError: wrong size, or a region that ends behind the last address.
    """
    _require(payload, _SINGLE_REGION.size)
    _padding, *fields = _SINGLE_REGION.unpack(payload)
    return _region(*fields)


def _region(gpa: int, size: int, uva: int, offset: int) -> MemoryRegion:
    if max(gpa, uva, offset) + size > 1 << 64:
        raise FrontendError(f"region at {gpa:#x} ends behind the last address")
    return MemoryRegion(gpa=gpa, size=size, uva=uva, offset=offset)


@dataclass(frozen=True, slots=True)
class LogArea:
    """Where in its file the dirty log is ("Log description"); bytes."""

    size: int
    offset: int

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Decode; raises FrontendError for a wrong size."""
        _require(payload, _LOG.size)
        return cls(*_LOG.unpack(payload))

    def encode(self) -> bytes:
        """Return the payload."""
        return _LOG.pack(self.size, self.offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class InflightArea:
    """Where in its file the in-flight log is ("Inflight description")."""

    size: int = 0
    """Bytes."""
    offset: int = 0
    queues: int
    queue_size: int
    """Entries of the largest ring in it."""
    padded: bool = False
    """The sender's struct ends with four bytes of padding; so does our answer."""

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Decode it, packed as the specification has it or padded as QEMU sends it.

        Raises:
            FrontendError: wrong size.
        """
        padded = len(payload) == _INFLIGHT.size + len(_INFLIGHT_PADDING)
        if not padded:
            _require(payload, _INFLIGHT.size)
        size, offset, queues, queue_size = _INFLIGHT.unpack_from(payload)
        return cls(
            size=size,
            offset=offset,
            queues=queues,
            queue_size=queue_size,
            padded=padded,
        )

    def encode(self) -> bytes:
        """Return the payload."""
        raw = _INFLIGHT.pack(self.size, self.offset, self.queues, self.queue_size)
        return raw + _INFLIGHT_PADDING * self.padded


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """Part of the configuration space ("Virtio device config space")."""

    offset: int
    data: bytes
    flags: int = 0

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Decode.

        Raises:
            FrontendError: wrong size, or the size field doesn't tell the truth.
        """
        if len(payload) < _CONFIG.size:
            raise FrontendError(f"payload of {len(payload)} bytes, need {_CONFIG.size}")
        offset, size, flags = _CONFIG.unpack_from(payload)
        data = payload[_CONFIG.size :]
        if size != len(data) or size > MAX_CONFIG:
            raise FrontendError(f"config of {size} bytes in a field of {len(data)}")
        return cls(offset, data, flags)

    def encode(self) -> bytes:
        """Return the payload."""
        return _CONFIG.pack(self.offset, len(self.data), self.flags) + self.data


def _require(payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise FrontendError(f"payload of {len(payload)} bytes, need {size}")
