"""virtio-vsock packet header: bytes to values and back; no I/O, no state.

The device's own packets are made and read in C; this is the driver's side, for
`driver.py` and tests.

Spec: VIRTIO 1.2 section 5.10.6 "Device Operation". Every field is little-endian
on the wire.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, Self

from vhost_user.errors import GuestError

HDR_SIZE: Final = 44
"""Size of an encoded header, bytes."""

CID_HOST: Final = 2
"""The host's CID, well known (VIRTIO 1.2 section 5.10.4)."""

CID_ANY: Final = 0xFFFF_FFFF
"""VMADDR_CID_ANY: no CID; a listener on it hears whoever asks this machine."""

PORT_ANY: Final = 0xFFFF_FFFF
"""VMADDR_PORT_ANY: no port; never the port of a connection."""

_HDR: Final = struct.Struct("<QQIIIHHIII")
assert _HDR.size == HDR_SIZE


F_SEQPACKET: Final = 1 << 1
"""VIRTIO_VSOCK_F_SEQPACKET, a feature bit (VIRTIO 1.2 section 5.10.3)."""


class Type(enum.IntEnum):
    """Socket types (VIRTIO 1.2 section 5.10.6)."""

    STREAM = 1
    SEQPACKET = 2


class Op(enum.IntEnum):
    """Packet operations (VIRTIO 1.2 section 5.10.6)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Seq(enum.IntFlag):
    """Flags of a SEQPACKET connection's RW packet (VIRTIO 1.2 section 5.10.6.6)."""

    EOM = 1
    """It ends a message."""
    EOR = 2
    """It ends a record."""


class Shutdown(enum.IntFlag):
    """Flags of a SHUTDOWN packet: what its sender will not do any more."""

    RECEIVE = 1
    SEND = 2
    BOTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One packet header; `decode()` makes only well-formed ones.

    `encode()` also takes values that the specification forbids, as long as they
    fit their field: a test plays the hostile guest with them.
    """

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int = 0
    """Payload that follows the header, bytes."""
    type: int = Type.STREAM
    op: int
    flags: int = 0
    buf_alloc: int = 0
    """Sender's receive buffer for this connection, bytes."""
    fwd_cnt: int = 0
    """Payload the sender has consumed so far, bytes, modulo 2**32."""

    @classmethod
    def decode(cls, buf: bytes | bytearray | memoryview) -> Self:
        """Decode the header at the start of `buf`.

        Args:
            buf: at least `HDR_SIZE` bytes, already copied out of shared memory
                (the other side can change a shared buffer between check and use).

        Raises:
            GuestError: `buf` is short, `op` is unknown, or a CID has any of
                its upper 32 bits set, which section 5.10.6.2 reserves.
        """
        if len(buf) < HDR_SIZE:
            raise GuestError(f"vsock header: {len(buf)} bytes, need {HDR_SIZE}")
        src_cid, dst_cid, src_port, dst_port, size, type_, op, *rest = _HDR.unpack_from(
            buf
        )
        if (src_cid | dst_cid) >> 32:
            raise GuestError(f"vsock header: reserved CID bits {src_cid=} {dst_cid=}")
        try:
            op = Op(op)
        except ValueError:
            raise GuestError(f"vsock header: unknown {op=}") from None
        flags, buf_alloc, fwd_cnt = rest
        return cls(
            src_cid=src_cid,
            dst_cid=dst_cid,
            src_port=src_port,
            dst_port=dst_port,
            len=size,
            type=type_,
            op=op,
            flags=flags,
            buf_alloc=buf_alloc,
            fwd_cnt=fwd_cnt,
        )

    def encode(self) -> bytes:
        """Return the `HDR_SIZE` bytes of this header."""
        return _HDR.pack(
            self.src_cid,
            self.dst_cid,
            self.src_port,
            self.dst_port,
            self.len,
            self.type,
            self.op,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        )
