"""Messages of the TSI datagram stream: bytes to values and back; no I/O.

Spec: docs/tsi-protocol.md, section 9 "Datagrams".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.tsi.protocol import (
    HELLO_SIZES,
    VERSION,
    Hello,
    MessageDecoder,
    ProtocolError,
    Refusal,
    Type,
    decode_hello,
    endpoint,
    message,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.engine import SocketAddress

MAX_DATAGRAM: Final = 65507
"""Most bytes of a datagram's data: what UDP over IPv4 takes."""

_GRANT: Final = struct.Struct("<HHI")
_PEER: Final = struct.Struct("<IHH16s")
_VERDICT: Final = struct.Struct("<II")
_DATAGRAM: Final = struct.Struct("<HHI")
_UNREACHABLE: Final = struct.Struct("<HHII")


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to HELLO on a datagram stream."""

    peers: int
    """How many peers have a number at a time."""

    def encode(self) -> bytes:
        """Return the message."""
        return message(Type.GRANT, _GRANT.pack(VERSION, 0, self.peers))


@dataclass(frozen=True, slots=True)
class Peer:
    """The agent gives a UDP endpoint a number."""

    peer: int
    address: SocketAddress


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether datagrams to a peer are carried."""

    peer: int
    error: int
    """Errno of what is sent there; 0: it is carried."""

    def encode(self) -> bytes:
        """Return the message."""
        return message(Type.VERDICT, _VERDICT.pack(self.peer, self.error))


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram, in either direction."""

    flow: int
    """UDP port of the program's socket."""
    peer: int
    data: bytes

    def encode(self) -> bytes:
        """Return the message."""
        head = _DATAGRAM.pack(self.flow, 0, self.peer)
        return message(Type.DATAGRAM, head + self.data)


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A datagram that the flow sent to the peer did not arrive."""

    flow: int
    peer: int
    error: int
    """Linux errno."""

    def encode(self) -> bytes:
        """Return the message."""
        payload = _UNREACHABLE.pack(self.flow, 0, self.peer, self.error)
        return message(Type.UNREACHABLE, payload)


GuestDatagramMessage = Hello | Peer | Datagram
"""What an agent may send on a datagram stream."""


class DatagramDecoder(MessageDecoder[GuestDatagramMessage]):
    """For a datagram stream."""

    def __init__(self) -> None:
        super().__init__(_decoder_of)


def _decode_peer(payload: bytes) -> Peer:
    peer, family, port, address = _PEER.unpack(payload)
    return Peer(peer, endpoint("PEER", family, port, address))


def _decode_datagram(payload: bytes) -> Datagram:
    flow, _, peer = _DATAGRAM.unpack_from(payload)
    return Datagram(flow, peer, payload[_DATAGRAM.size :])


_DECODERS: Final[
    dict[int, tuple[int, int, Callable[[bytes], GuestDatagramMessage]]]
] = {
    Type.HELLO: (*HELLO_SIZES, decode_hello),
    Type.PEER: (_PEER.size, _PEER.size, _decode_peer),
    Type.DATAGRAM: (_DATAGRAM.size, _DATAGRAM.size + MAX_DATAGRAM, _decode_datagram),
}
"""By type: least and most bytes of payload, and what decodes them."""


def _decoder_of(number: int, size: int) -> Callable[[bytes], GuestDatagramMessage]:
    """Return what decodes a message with this header, on a datagram stream.

    Raises:
        ProtocolError: no agent may send such a message there.
    """
    found = _DECODERS.get(number)
    if found is None:
        raise ProtocolError(Refusal.UNEXPECTED, f"message type {number}")
    least, most, decode = found
    if not least <= size <= most:
        name = Type(number).name
        raise ProtocolError(Refusal.MALFORMED, f"{name}: {size} bytes")
    return decode
