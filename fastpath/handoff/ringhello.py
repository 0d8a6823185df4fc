"""The messages of hand-off `ring`: what a connection is, and the answer.

Spec: docs/ring.md.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from dataclasses import dataclass
from typing import Final, Self

from fastpath.handoff.ringmemory import MAX_BYTES, MIN_BYTES

VERSION: Final = 1
MAGIC: Final = b"fpring\r\n"
HELLO: Final = struct.Struct("=8sIIIIQHHI16sHHI16sII936s")
ANSWER: Final = struct.Struct("=Ii")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a connection is."""

    conn: int
    """Its number, for logs."""
    destination: tuple[str, int] | None
    """Where the program connected to."""
    source: tuple[str, int] | None
    identity: str
    """SPIFFE ID of the program's workload."""
    up_bytes: int
    """Of the ring that we read."""
    down_bytes: int
    """Of the ring that we write."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a message.

        Raises:
            OSError: it isn't one (EPROTO), or of another version (EPROTONOSUPPORT).
        """
        if len(data) != HELLO.size or not data.startswith(MAGIC):
            raise OSError(errno.EPROTO, "no message of hand-off `ring`")
        _, version, _, up, down, conn, *rest = HELLO.unpack(data)
        if version != VERSION:
            why = f"version {version}, not {VERSION}"
            raise OSError(errno.EPROTONOSUPPORT, why)
        *addresses, length, _, identity = rest
        sizes = all(
            MIN_BYTES <= n <= MAX_BYTES and n & (n - 1) == 0 for n in (up, down)
        )
        if not sizes or length > len(identity):
            raise OSError(errno.EPROTO, "a size is out of range")
        return cls(
            conn=conn,
            destination=_address(*addresses[:4]),
            source=_address(*addresses[4:]),
            identity=identity[:length].decode("utf-8", "replace"),
            up_bytes=up,
            down_bytes=down,
        )


def _address(family: int, port: int, _: int, ip: bytes) -> tuple[str, int] | None:
    if family not in {4, 6}:
        return None
    packed = ip if family == 6 else ip[:4]
    return str(ipaddress.ip_address(packed)), port
