"""Packets in flight: a guest counts what it keeps of each packet, not bytes alone.

Linux since 6.12.92 takes a packet only while (queued packets + 1) times the size of an
empty socket buffer, 576 bytes, is within buf_alloc. Before 6.12.94 it drops the packet
beyond, since then it resets the connection. So the device has as many packets in
flight as fit, and what comes meanwhile travels together when there is room again.

Spec: VIRTIO 1.2 section 5.10.6.3 "Buffer Space Management", which counts payload only.
"""

from __future__ import annotations

import contextlib
from collections import deque

import pytest

from tests.conformance.links import WAYS, pair_id, pairs, say
from tests.conformance.siblings import make_site, site
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op, Seq, Type

__all__ = ["make_site", "site"]

TRUESIZE = 576
"""SKB_TRUESIZE(0) on x86-64 and arm64."""
ECHO, CHARGEN = 7, 19
WRITES = 1200
PIECE = 200

KINDS = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())
WITHIN = pytest.mark.spec("virtio-1.2:5.10.6.3.2/rw-within-credit")


class Reader:
    """A guest's program that stops reading: packets pile up, no credit goes back."""

    def __init__(self, guest, conn):
        self.unread = []
        self._guest = guest
        self._conn = conn

    def take(self):
        """Take the packets that came; return how many with payload or an end."""
        came = 0
        for packet in self._guest.fence():
            if packet.header.dst_port != self._conn.guest_port:
                continue
            assert packet.op != Op.RST
            self._conn.take_credit(packet.header)
            if packet.op == Op.RW:
                self.unread.append(packet)
                came += 1
        return came

    def fits(self):
        """Whether Linux would have kept all that is unread."""
        return len(self.unread) * TRUESIZE <= self._conn.buf_alloc

    def read(self, most=None):
        """Read packets and tell the device of it; return their bytes."""
        read, self.unread = self.unread[:most], self.unread[most:] if most else []
        data = b"".join(packet.payload for packet in read)
        self._conn.fwd_cnt += len(data)
        self._conn.say(Op.CREDIT_UPDATE)
        return data


def read_all(reader, size, write=lambda: None):
    """Let the program go on; return `size` bytes and how many packets they came in.

    Args:
        reader: the program.
        size: bytes that are due.
        write: called now and then: the host's program goes on, too.
    """
    data, packets = b"", 0
    for _ in range(4 * WRITES):
        write()
        reader.take()
        assert reader.fits()
        packets += len(reader.unread)
        data += reader.read()
        if len(data) >= size:
            break
    return data, packets


def numbered(count):
    return [b"%0*d" % (PIECE, i) for i in range(count)]


@WITHIN
@pytest.mark.parametrize("buf_alloc", [65536, 262144, 1 << 20], ids=lambda n: f"{n}")
@pytest.mark.parametrize("pair", pairs(), ids=pair_id)
def test_what_a_guest_has_not_read_fits_into_its_buffer_with_its_overhead(
    link, guest, pair, buf_alloc
):
    way, kind = pair
    conn, sock = link(way, kind=kind, buf_alloc=buf_alloc)
    reader = Reader(guest, conn)
    writes = numbered(buf_alloc // TRUESIZE + 100)
    sock.setblocking(False)
    for data in writes:
        with contextlib.suppress(BlockingIOError):
            sock.send(data)
        reader.take()
    assert reader.fits(), f"{len(reader.unread)} packets of {PIECE} bytes in flight"


@WITHIN
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.id)
def test_nothing_is_lost_when_a_guest_reads_again_and_small_writes_travel_together(
    link, guest, way
):
    conn, sock = link(way, buf_alloc=262144)
    reader = Reader(guest, conn)
    left = deque(numbered(WRITES))
    sent = b"".join(left)
    sock.setblocking(False)

    def write(most=WRITES):
        with contextlib.suppress(BlockingIOError):
            while left and (most := most - 1) >= 0:
                sock.send(left[0])
                left.popleft()

    for _ in range(WRITES):  # what the device does not take waits in the host's socket
        write(1)
        reader.take()
    held, taken = len(reader.unread), WRITES - len(left)
    assert held <= 262144 // TRUESIZE
    assert taken >= held + 100
    # nobody writes meanwhile: how much then comes at once would hang on who is faster
    data, packets = read_all(reader, taken * PIECE)
    assert packets < held + (taken - held) // 4
    rest, _ = read_all(reader, len(sent) - len(data), write)
    assert data + rest == sent


@WITHIN
def test_room_for_packets_comes_with_each_half_that_is_read(link, guest):
    """Where each packet ends is not kept, but where runs of them do."""
    conn, sock = link(WAYS[0], buf_alloc=65536)
    reader = Reader(guest, conn)
    sock.setblocking(False)
    for data in numbered(WRITES // 6):
        sock.send(data)
        reader.take()
    assert reader.fits()
    reader.read(len(reader.unread) // 2)
    assert reader.take() >= 1
    assert reader.fits()


@WITHIN
@KINDS
@pytest.mark.parametrize("buf_alloc", [1, 100, 575, 576, 1000])
def test_a_buffer_of_less_than_a_packets_overhead_still_gets_one(
    link, guest, kind, buf_alloc
):
    """Linux has no such buffer; any other guest counts payload only."""
    conn, sock = link(WAYS[0], kind=kind, buf_alloc=buf_alloc)
    sock.send(b"x")
    while (packet := conn.receive()).op != Op.RW:
        assert packet.op == Op.CREDIT_REQUEST
    assert packet.payload == b"x"


@WITHIN
@KINDS
def test_an_echo_is_held_to_it_too(guest, kind):
    conn = guest.connect(ECHO, kind=kind, buf_alloc=65536)
    reader = Reader(guest, conn)
    for _ in range(65536 // TRUESIZE + 50):
        say(conn, b"x")
        reader.take()
    assert reader.fits()
    data, _ = read_all(reader, conn.tx_cnt)
    assert data == b"x" * conn.tx_cnt


@WITHIN
def test_rx_buffers_of_few_bytes_do_not_make_more_packets_than_fit(make_guest):
    """The device fills the buffers that there are: each of them is a packet."""
    guest = make_guest(rx_layout=(44 + 64,))
    conn = guest.connect(CHARGEN, buf_alloc=65536)
    reader = Reader(guest, conn)
    while reader.take():
        assert reader.fits()


@WITHIN
@KINDS
def test_a_sibling_is_held_to_it_too(site, kind):
    with VsockGuest(site.path(3), cid=3) as a, VsockGuest(site.path(4), cid=4) as b:
        near = a.request(5000, cid=4, kind=kind)
        far = b.accept(buf_alloc=65536)
        near.expect(Op.RESPONSE)
        reader = Reader(b, far)
        count = 65536 // TRUESIZE + 50
        for data in numbered(count):
            near.say(Op.RW, data, flags=Seq.EOM if kind == Type.SEQPACKET else 0)
            a.drain()
            reader.take()
        assert reader.fits()
        data, _ = read_all(reader, count * PIECE)
        assert data == b"".join(numbered(count))


@WITHIN
def test_a_guest_without_room_for_packets_is_seldom_asked(link, guest):
    """Ever less often: Linux tells by itself only once most of its bytes are read."""
    conn, sock = link(WAYS[0], buf_alloc=65536)
    reader = Reader(guest, conn)
    sock.setblocking(False)
    for data in numbered(65536 // TRUESIZE + 50):
        sock.send(data)
        reader.take()
    asked = [
        packet
        for _ in range(100)
        for packet in guest.fence()
        if packet.op == Op.CREDIT_REQUEST
    ]
    assert len(asked) <= 3
