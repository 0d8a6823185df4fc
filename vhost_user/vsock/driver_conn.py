"""The guest's end of a connection: what it says and takes, with both sides' credit.

Made by `driver.VsockGuest`. Spec: VIRTIO 1.2 section 5.10.6 "Device Operation".
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

from vhost_user.errors import StateError
from vhost_user.vsock.packet import CID_HOST, Header, Op, Seq, Shutdown, Type

PAYLOAD_OPS: Final = (Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST)
"""What comes while payload is awaited; a host whose window is full asks for credit."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet from the device."""

    header: Header
    payload: bytes

    @property
    def op(self) -> int:
        """What it says."""
        return self.header.op


class PacketIO(Protocol):
    """The guest, as far as its connections need it."""

    def header(self, op: int, guest_port: int, host_port: int, **fields: int) -> Header:
        """Make a header from the guest; `fields` override any of it."""

    def send(
        self, packet: Header | bytes, payload: bytes = b"", *, kick: bool = True
    ) -> None:
        """Send a packet."""

    def receive_for(self, guest_port: int, host_port: int, cid: int) -> Packet:
        """Return the next packet of one connection."""


class Connection:
    """The guest's end of a connection, with both sides' credit.

    Args:
        guest: whose it is.
        guest_port: its port there.
        host_port: its port on the other side, the host or a sibling.
        buf_alloc: window that it offers, bytes.
        cid: the other side's CID.
        kind: its socket type.
    """

    def __init__(
        self,
        guest: PacketIO,
        guest_port: int,
        host_port: int,
        *,
        buf_alloc: int,
        cid: int = CID_HOST,
        kind: int = Type.STREAM,
    ) -> None:
        self.guest = guest
        self.guest_port = guest_port
        self.host_port = host_port
        self.cid = cid
        self.buf_alloc = buf_alloc
        self.kind = kind
        self.fwd_cnt = 0
        """Payload consumed; `receive()` counts it, a test may hold it back."""
        self.tx_cnt = 0
        """Payload sent."""
        self.peer_buf_alloc = 0
        self.peer_fwd_cnt = 0
        self._early: deque[Packet] = deque()
        """Came while `send()` waited for credit; consumed already."""

    @property
    def credit(self) -> int:
        """Payload that may still be sent, bytes (section 5.10.6.3)."""
        return self.peer_buf_alloc - (self.tx_cnt - self.peer_fwd_cnt & 0xFFFF_FFFF)

    def say(
        self, op: int, payload: bytes = b"", *, kick: bool = True, **f: int
    ) -> None:
        """Send one packet of this connection; `f` overrides header fields."""
        fields = {
            "type": self.kind,
            "len": len(payload),
            "buf_alloc": self.buf_alloc,
            "fwd_cnt": self.fwd_cnt & 0xFFFF_FFFF,
            "dst_cid": self.cid,
        }
        header = self.guest.header(op, self.guest_port, self.host_port, **fields | f)
        self.guest.send(header, payload, kick=kick)
        self.tx_cnt += len(payload) if op == Op.RW else 0

    def send(self, data: bytes, *, packet_size: int = 32768) -> None:
        """Send all of `data` within the credit, waiting for more of it."""
        while data:
            self._await_credit(1)
            room = min(self.credit, packet_size)
            piece, data = data[:room], data[room:]
            self.say(Op.RW, piece)

    def send_message(
        self, data: bytes, *, packet_size: int = 32768, flags: int = Seq.EOM
    ) -> None:
        """Send a message of a SEQPACKET connection, waiting for credit.

        Args:
            data: the message.
            packet_size: most payload of one packet, bytes.
            flags: of its last packet.
        """
        last = max(len(data) - 1, 0) // packet_size * packet_size
        self.send(data[:last], packet_size=packet_size)
        self._await_credit(len(data) - last)
        self.say(Op.RW, data[last:], flags=flags)

    def _await_credit(self, size: int) -> None:
        """Wait until `size` bytes may be sent; keep the payload that comes before."""
        while self.credit < size:
            packet = self.require(self._next(), *PAYLOAD_OPS)
            self.fwd_cnt += packet.header.len
            if packet.op == Op.RW:
                self._early.append(packet)
            self._answer(packet)

    def receive_message(self) -> tuple[bytes, int]:
        """Return the next message of a SEQPACKET connection and its flags.

        Raises:
            StateError: the connection ended before.
        """
        data = b""
        while True:
            packet = self.expect(*PAYLOAD_OPS)
            self._answer(packet)
            data += packet.payload
            if packet.op == Op.RW and packet.header.flags:
                self.say(Op.CREDIT_UPDATE)
                return data, packet.header.flags

    def receive(self, *, consume: bool = True) -> Packet:
        """Return this connection's next packet.

        Args:
            consume: count its payload as consumed; the host hears of it with the
                next packet that goes.
        """
        if self._early:
            return self._early.popleft()
        packet = self._next()
        if consume:
            self.fwd_cnt += packet.header.len
        return packet

    def _answer(self, packet: Packet) -> None:
        """Tell of the credit if `packet` asks for it (section 5.10.6.3)."""
        if packet.op == Op.CREDIT_REQUEST:
            self.say(Op.CREDIT_UPDATE)

    def _next(self) -> Packet:
        packet = self.guest.receive_for(self.guest_port, self.host_port, self.cid)
        self.take_credit(packet.header)
        return packet

    def receive_bytes(self, size: int) -> bytes:
        """Return exactly `size` bytes of payload, giving credit back on the way.

        Raises:
            StateError: the stream ended before, or gave more.
        """
        data = b""
        told = self.fwd_cnt
        while len(data) < size:
            packet = self.expect(*PAYLOAD_OPS)
            self._answer(packet)
            data += packet.payload
            if self.fwd_cnt - told >= self.buf_alloc // 2:
                told = self.fwd_cnt
                self.say(Op.CREDIT_UPDATE)
        if len(data) > size:
            raise StateError(f"{len(data)} bytes came, expected {size}")
        return data

    def expect(self, *ops: Op) -> Packet:
        """Return the next packet, which must be one of `ops`."""
        return self.require(self.receive(), *ops)

    def require(self, packet: Packet, *ops: Op) -> Packet:
        """Return `packet` if it is one of `ops`.

        Raises:
            StateError: it isn't.
        """
        if packet.op not in ops:
            names = " or ".join(op.name for op in ops)
            raise StateError(f"expected {names}, got {packet}")
        return packet

    def shutdown(self, flags: Shutdown) -> None:
        """Say what this side will not do any more."""
        self.say(Op.SHUTDOWN, flags=flags)

    def take_credit(self, header: Header) -> None:
        """Note the credit that a packet of the host carries."""
        self.peer_buf_alloc = header.buf_alloc
        self.peer_fwd_cnt = header.fwd_cnt


def belongs(
    packet: Packet, guest_port: int, host_port: int, cid: int = CID_HOST
) -> bool:
    """Is `packet` one of the connection between these ports?"""
    header = packet.header
    end = (header.dst_port, header.src_port, header.src_cid)
    return end == (guest_port, host_port, cid)
