"""A guest in user space: the virtio-vsock driver, on top of a front-end.

    with VsockGuest(path) as guest:
        conn = guest.connect(port=7)
        conn.send(b"hello")
        assert conn.receive().payload == b"hello"

Nothing happens by itself but the accounting of credit: the caller sees each packet
that comes and says each packet that goes, so a test can do what no kernel does.
Blocking; each wait has a time limit and raises TimeoutError.

Spec: VIRTIO 1.2 section 5.10.6 "Device Operation".
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from vhost_user.closing import Closing
from vhost_user.driver import TIMEOUT_S, DriverQueue, Ram, Segment
from vhost_user.errors import StateError
from vhost_user.frontend import (
    ALL_FEATURES,
    ALL_PROTOCOL_FEATURES,
    Frontend,
)
from vhost_user.packed_driver import make_queue
from vhost_user.vsock.driver_conn import (
    PAYLOAD_OPS,
    Connection,
    Packet,
    belongs,
)
from vhost_user.vsock.packet import (
    CID_HOST,
    F_SEQPACKET,
    HDR_SIZE,
    Header,
    Op,
    Type,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vhost_user.message import ProtocolFeature

__all__ = [
    "EVENT",
    "GUEST_FEATURES",
    "PAYLOAD_OPS",
    "RX",
    "TX",
    "Connection",
    "Packet",
    "VsockGuest",
]

RX: Final = 0
TX: Final = 1
EVENT: Final = 2

GUEST_FEATURES: Final = ALL_FEATURES | F_SEQPACKET
"""What a guest takes by default: all but packed rings."""

_FIRST_PORT: Final = 1024


class Watcher(Protocol):
    """Hears of what guests send and take; see `VsockGuest.watcher`."""

    def sent(self, guest: VsockGuest, data: bytes) -> None:
        """`data`, a packet or not, is about to be sent."""

    def received(self, guest: VsockGuest, header: Header) -> None:
        """A packet came."""

    def closing(self, guest: VsockGuest) -> None:
        """The guest is about to hang up."""


class VsockGuest(Closing):
    """One guest with its rings, connected to a back-end's socket.

    Args:
        path: the vhost-user socket.
        cid: the guest's CID.
        features: feature bits to take if they are offered.
        protocol_features: protocol features to take if they are offered.
        memory_slots: give the memory region by region, not as a table.
        queue_size: entries of both rings.
        rx_buffers: RX buffers to offer at once; more with `post_rx()`.
        rx_layout: sizes of the segments that make up one RX buffer, bytes.
        rx_indirect: describe each RX buffer by an indirect table.
        event_buffers: buffers on the event ring; None: the front-end keeps that ring.
        first: index that all rings start at.
        ram_size: bytes of guest memory.
        timeout_s: how long each wait may take.
    """

    watcher: ClassVar[Watcher | None] = None
    """Hears of all guests' packets, whatever the test does with them."""

    def __init__(
        self,
        path: Path,
        *,
        cid: int = 3,
        features: int = GUEST_FEATURES,
        protocol_features: ProtocolFeature = ALL_PROTOCOL_FEATURES,
        memory_slots: bool = False,
        queue_size: int = 256,
        rx_buffers: int = 64,
        rx_layout: Sequence[int] = (4096,),
        rx_indirect: bool = False,
        event_buffers: int | None = None,
        first: int = 0,
        ram_size: int = 32 << 20,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.cid = cid
        self.timeout_s = timeout_s
        self.vmm = Frontend(path, timeout_s=timeout_s)
        self.ram = Ram(ram_size)
        self._features = features
        self._protocol_features = protocol_features
        self._memory_slots = memory_slots
        acked = self._introduce()
        self.rx = make_queue(self.ram, queue_size, features=acked, first=first)
        self.tx = make_queue(self.ram, queue_size, features=acked, first=first)
        self.event: DriverQueue | None = None
        if event_buffers is not None:
            self.event = make_queue(self.ram, 8, features=acked, first=first)
        self._event_base = 0 if self.event is None else self.event.base
        self._rx_layout = tuple(rx_layout)
        self._rx_indirect = rx_indirect
        self._rx_segments: dict[int, list[Segment]] = {}
        self._tx_buffers: dict[int, tuple[int, int]] = {}
        self._event_buffers: dict[int, int] = {}
        self._queued: deque[Packet] = deque()
        self._next_port = _FIRST_PORT
        self._next_privileged = 0
        self._bases = (self.rx.base, self.tx.base)
        self.post_rx(rx_buffers)
        self.post_events(event_buffers or 0)
        self.start()

    def _introduce(self) -> int:
        acked = self.vmm.negotiate(self._features, self._protocol_features)
        if self._memory_slots:
            self.vmm.add_memory(self.ram)
        else:
            self.vmm.set_memory(self.ram)
        return acked

    def reconnect(self, path: Path, *, crashed: bool = False) -> None:
        """Leave the back-end for the one at `path`; `start()` goes on there.

        Args:
            path: the other's socket.
            crashed: the one that was there can't say where the rings stopped.
        """
        if crashed:
            self._bases = (self.rx.crash_base, self.tx.crash_base)
        self.vmm.close()
        self.vmm = Frontend(path, timeout_s=self.timeout_s)
        self._introduce()

    def start(self) -> None:
        """Start both rings, from where they were stopped."""
        for index, queue in ((RX, self.rx), (TX, self.tx)):
            self.vmm.start(index, queue, base=self._bases[index])
        self.rx.kick()
        self.tx.kick()
        if self.event is not None:
            self.vmm.start(EVENT, self.event, base=self._event_base)
            self.event.kick()

    def stop(self) -> tuple[int, int]:
        """Stop the rings; return RX's and TX's bases, that `start()` goes on from."""
        self._bases = (self.vmm.stop(RX), self.vmm.stop(TX))
        if self.event is not None:
            self._event_base = self.vmm.stop(EVENT)
        return self._bases

    # ---- events ----

    def post_events(self, count: int = 1, *, size: int = 4) -> None:
        """Offer buffers of `size` bytes on the event ring."""
        for _ in range(count):
            assert self.event is not None
            gpa = self.ram.alloc(size)
            head = self.event.add(writable=[(gpa, size)])
            self._event_buffers[head] = gpa
        if self.event is not None:
            self.event.kick()

    def receive_event(self) -> bytes:
        """Return the next event as it is written into its buffer.

        Raises:
            TimeoutError: none came.
        """
        assert self.event is not None
        used = self.event.wait_used(self.timeout_s)
        return self.ram.read(self._event_buffers.pop(used.head), used.len)

    def start_over(self, *queues: int) -> None:
        """Make rings anew and start them at 0, as a driver does after a reset.

        Args:
            queues: `RX`, `TX`; none: both. They are stopped.
        """
        bases = list(self._bases)
        for index in queues or (RX, TX):
            old = self.rx if index == RX else self.tx
            queue = make_queue(self.ram, old.num, features=self.vmm.features)
            old.close()
            if index == RX:
                self.rx = queue
                self._rx_segments.clear()
            else:
                self.tx = queue
                self._tx_buffers.clear()
            bases[index] = queue.base
            self.vmm.start(index, queue)
        self._bases = (bases[RX], bases[TX])

    # ---- packets ----

    def post_rx(self, count: int = 1) -> None:
        """Offer RX buffers, each of the layout that the guest was made with."""
        for _ in range(count):
            self._offer_rx([(self.ram.alloc(n), n) for n in self._rx_layout])
        self.rx.kick()

    def _offer_rx(self, segments: list[Segment]) -> None:
        head = self.rx.add(writable=segments, indirect=self._rx_indirect)
        self._rx_segments[head] = segments

    def send(
        self,
        packet: Header | bytes,
        payload: bytes = b"",
        *,
        split: Sequence[int] = (),
        indirect: bool = False,
        kick: bool = True,
    ) -> None:
        """Send a packet, well formed or not.

        Args:
            packet: its header, or any bytes.
            payload: what follows in the same chain.
            split: sizes of the descriptors that the packet starts with; the rest
                of it goes into one more.
            indirect: describe them by an indirect table.
            kick: notify the device, if it wants to be.

        Raises:
            TimeoutError: the ring stays full.
        """
        data = (packet if isinstance(packet, bytes) else packet.encode()) + payload
        if self.watcher is not None:
            self.watcher.sent(self, data)
        self._reap()
        while self.tx.free < len(split) + 1:
            self._reap(wait=True)
        gpa = self.ram.alloc(len(data))
        self.ram.write(gpa, data)
        segments = _split(gpa, len(data), split)
        head = self.tx.add(readable=segments, indirect=indirect)
        self._tx_buffers[head] = (gpa, len(data))
        if kick:
            self.tx.kick()

    def _reap(self, *, wait: bool = False) -> None:
        """Take back the TX buffers that the device is done with."""
        used = self.tx.wait_used(self.timeout_s) if wait else self.tx.pop_used()
        while used is not None:
            self.ram.free(*self._tx_buffers.pop(used.head))
            used = self.tx.pop_used()

    def drain(self) -> None:
        """Wait until the device has given back each TX buffer."""
        while self.tx.in_flight:
            self._reap(wait=True)

    def receive(self, *, repost: bool = True) -> Packet:
        """Return the next packet, whatever it belongs to.

        Args:
            repost: offer its buffer again.

        Raises:
            TimeoutError: none came.
            GuestError: it isn't a packet.
            StateError: its length isn't what the used ring says.
        """
        if self._queued:
            return self._queued.popleft()
        return self._take(repost=repost)

    def _take(self, *, repost: bool = True) -> Packet:
        used = self.rx.wait_used(self.timeout_s)
        segments = self._rx_segments.pop(used.head)
        data = b"".join(self.ram.read(gpa, size) for gpa, size in segments)[: used.len]
        header = Header.decode(data)
        if used.len != HDR_SIZE + header.len:
            raise StateError(f"{used.len} bytes used for a packet of {header.len}")
        if self.watcher is not None:
            self.watcher.received(self, header)
        if repost:
            self._offer_rx(segments)
            self.rx.kick()
        return Packet(header, data[HDR_SIZE:])

    def receive_for(
        self, guest_port: int, host_port: int, cid: int = CID_HOST
    ) -> Packet:
        """Return the next packet of one connection; others wait for their turn."""
        for i, packet in enumerate(self._queued):
            if belongs(packet, guest_port, host_port, cid):
                del self._queued[i]
                return packet
        while not belongs(packet := self._take(), guest_port, host_port, cid):
            self._queued.append(packet)
        return packet

    def fence(self) -> list[Packet]:
        """Return each packet that the device had reason to send so far.

        Asks for two answers, one after the other, with packets to a connection that
        isn't there: what was due before the first came with it or before it.
        """
        for _ in range(2):
            port = self.port()
            self.send(self.header(Op.RW, port, port))
            while not belongs(packet := self._take(), port, port):
                self._queued.append(packet)
        packets = list(self._queued)
        self._queued.clear()
        return packets

    # ---- connections ----

    def port(self) -> int:
        """Return a port that was not used before."""
        self._next_port += 1
        return self._next_port

    def header(self, op: int, guest_port: int, host_port: int, **fields: int) -> Header:
        """Make a header from this guest to the host; `fields` override any of it."""
        values = {
            "src_cid": self.cid,
            "dst_cid": CID_HOST,
            "src_port": guest_port,
            "dst_port": host_port,
            "op": op,
            "buf_alloc": 256 * 1024,
        }
        return Header(**(values | fields))

    def request(
        self,
        port: int,
        *,
        buf_alloc: int = 256 * 1024,
        cid: int = CID_HOST,
        kind: int = Type.STREAM,
    ) -> Connection:
        """Ask for a connection to port `port`; the answer is yet to come."""
        conn = Connection(
            self, self.port(), port, buf_alloc=buf_alloc, cid=cid, kind=kind
        )
        conn.say(Op.REQUEST)
        return conn

    def connect(
        self, port: int, *, buf_alloc: int = 256 * 1024, kind: int = Type.STREAM
    ) -> Connection:
        """Connect to host port `port`.

        Raises:
            ConnectionRefusedError: the device says RST.
        """
        return self._opened(self.request(port, buf_alloc=buf_alloc, kind=kind))

    def connect_privileged(self, port: int) -> Connection:
        """Same, from a port that a guest's kernel gives to privileged programs only.

        Raises:
            ConnectionRefusedError: the device says RST.
        """
        self._next_privileged += 1
        conn = Connection(
            self,
            self._next_privileged,
            port,
            buf_alloc=256 * 1024,
            cid=CID_HOST,
            kind=Type.STREAM,
        )
        conn.say(Op.REQUEST)
        return self._opened(conn)

    def _opened(self, conn: Connection) -> Connection:
        packet = conn.receive()
        if packet.op == Op.RST:
            raise ConnectionRefusedError(f"host port {conn.host_port}")
        conn.require(packet, Op.RESPONSE)
        return conn

    def accept(self, *, buf_alloc: int = 256 * 1024) -> Connection:
        """Take the next packet, a REQUEST, and accept it."""
        packet = self.receive()
        header = packet.header
        if header.op != Op.REQUEST:
            raise StateError(f"expected REQUEST, got {packet}")
        conn = Connection(
            self,
            header.dst_port,
            header.src_port,
            buf_alloc=buf_alloc,
            cid=header.src_cid,
            kind=header.type,
        )
        conn.take_credit(header)
        conn.say(Op.RESPONSE)
        return conn

    def close(self) -> None:
        """Hang up and release the memory."""
        if self.watcher is not None:
            self.watcher.closing(self)
        self.vmm.close()
        self.rx.close()
        self.tx.close()
        if self.event is not None:
            self.event.close()
        self.ram.close()


def _split(gpa: int, size: int, sizes: Sequence[int]) -> list[Segment]:
    """Cut `size` bytes into segments of `sizes` and one with the rest."""
    segments = []
    for piece in sizes:
        segments.append((gpa, piece))
        gpa += piece
        size -= piece
    if size:
        segments.append((gpa, size))
    return segments
