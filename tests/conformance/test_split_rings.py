"""VIRTIO 1.2 section 2.7 sentence by sentence: what the device does to memory.

Beside test_rings.py, which shows that any driver is served, and none breaks it.
"""

from __future__ import annotations

import os
import select
import struct

import pytest

from tests.support.limits import LIMIT_S
from vhost_user.driver import DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from vhost_user.frontend import ALL_FEATURES
from vhost_user.message import Feature
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import HDR_SIZE, Op

ECHO, DISCARD = 7, 9
PATTERN = bytes(range(251)) * 40
WITHOUT_EVENT_IDX = ALL_FEATURES & ~Feature.EVENT_IDX
POISON = 0xA5


def table(ram, *descriptors):
    """Write an indirect table; return its descriptor's address and length."""
    gpa = ram.alloc(16 * len(descriptors))
    raw = b"".join(struct.pack("<QIHH", *descriptor) for descriptor in descriptors)
    ram.write(gpa, raw)
    return gpa, len(raw)


def wait_idx(guest, queue, value):
    """Spin until the device's used index is `value`: no interrupt orders us."""
    while guest.ram.load16(queue.used + 2) != value & 0xFFFF:
        os.sched_yield()


def used_entry(guest, queue, index):
    gpa = queue.used + 4 + 8 * (index % queue.num)
    return struct.unpack("<II", guest.ram.read(gpa, 8))


# ---- descriptors ----


@pytest.mark.spec(
    "virtio-1.2:2.7.5.1/no-read-of-writable",
    "virtio-1.2:2.7.5.1/no-write-to-readable",
)
def test_a_writable_buffer_of_the_tx_ring_is_not_read_as_a_packet(host, guest):
    packet = guest.header(Op.REQUEST, 4000, ECHO).encode()
    gpa = guest.ram.alloc(64)
    guest.ram.write(gpa, packet)
    guest.tx.add(writable=[(gpa, len(packet))])
    guest.tx.kick()
    assert guest.tx.wait_used().len == 0
    assert guest.fence() == []
    assert guest.ram.read(gpa, len(packet)) == packet
    assert host.stats().conns == 0


@pytest.mark.spec("virtio-1.2:2.7.5.1/no-read-of-writable")
def test_payload_behind_the_readable_part_of_a_chain_is_not_there(host, far, guest):
    conn, sock = far()
    header = guest.header(Op.RW, conn.guest_port, conn.host_port, len=4).encode()
    gpa = guest.ram.alloc(64)
    guest.ram.write(gpa, header + b"evil")
    guest.drain()
    guest.tx.add(readable=[(gpa, HDR_SIZE)], writable=[(gpa + HDR_SIZE, 4)])
    guest.tx.kick()
    assert guest.tx.wait_used().len == 0
    conn.say(Op.RW, b"good")
    assert sock.recv(100) == b"good"
    assert host.stats().bad_packets == 1


@pytest.mark.spec("virtio-1.2:2.7.5.1/no-write-to-readable")
def test_a_packet_that_was_read_is_left_as_it_was(guest):
    conn = guest.connect(DISCARD)
    header = guest.header(Op.RW, conn.guest_port, DISCARD, len=1000).encode()
    packet = header + PATTERN[:1000]
    gpa = guest.ram.alloc(4096)
    guest.ram.write(gpa, packet.ljust(4096, bytes([POISON])))
    guest.drain()
    guest.tx.add(readable=[(gpa, len(packet))])
    guest.tx.kick()
    assert guest.tx.wait_used().len == 0
    assert guest.ram.read(gpa, 4096) == packet.ljust(4096, bytes([POISON]))


@pytest.mark.spec("virtio-1.2:2.7.5.1/no-write-to-readable")
def test_the_readable_part_of_an_rx_buffer_is_not_written(make_guest):
    guest = make_guest(rx_buffers=0)
    readable, writable = guest.ram.alloc(64), guest.ram.alloc(4096)
    guest.ram.write(readable, bytes([POISON]) * 64)
    guest.rx.add(readable=[(readable, 64)], writable=[(writable, 4096)])
    guest.rx.kick()
    guest.request(ECHO)
    guest.drain()
    guest.vmm.queue_num()  # the device had its turn
    assert guest.ram.read(readable, 64) == bytes([POISON]) * 64


@pytest.mark.spec("virtio-1.2:2.7.5.3.2/ignore-write-flag")
@pytest.mark.parametrize("flag", [0, DESC_WRITE], ids=["readable", "writable"])
def test_the_write_flag_of_a_tables_descriptor_means_nothing(guest, flag):
    header = guest.header(Op.REQUEST, 4000, ECHO).encode()
    gpa, rx = guest.ram.alloc(64), guest.ram.alloc(4096)
    guest.ram.write(gpa, header)
    guest.drain()
    for queue, entry in (
        (guest.tx, (gpa, HDR_SIZE, 0, 0)),
        (guest.rx, (rx, 4096, DESC_WRITE, 0)),
    ):
        head = queue.add(readable=[(gpa, 1)])
        queue.set_avail_idx(queue.avail_idx - 1)
        queue.write_desc(head, *table(guest.ram, entry), DESC_INDIRECT | flag, 0)
        queue.set_avail_idx(queue.avail_idx + 1)
    guest.rx.kick()
    guest.tx.kick()
    assert guest.receive().op == Op.RESPONSE
    assert guest.tx.wait_used().len == 0


@pytest.mark.spec("virtio-1.2:2.7.5.3.2/after-direct")
@pytest.mark.parametrize("direct", [0, 1, 3])
def test_a_chain_may_end_in_an_indirect_table(far, guest, read_exactly, direct):
    conn, sock = far()
    packet = (
        guest.header(Op.RW, conn.guest_port, conn.host_port, len=1000).encode()
        + PATTERN[:1000]
    )
    gpa = guest.ram.alloc(len(packet))
    guest.ram.write(gpa, packet)
    guest.drain()
    head = guest.tx.add(readable=[(gpa, 1)] * (direct + 1))
    guest.tx.set_avail_idx(guest.tx.avail_idx - 1)
    slots = guest.tx._chains[head].slots
    for i in range(direct):
        guest.tx.write_desc(slots[i], gpa + 20 * i, 20, DESC_NEXT, slots[i + 1])
    done = 20 * direct
    behind = table(
        guest.ram,
        (gpa + done, 30, DESC_NEXT, 1),
        (gpa + done + 30, len(packet) - done - 30, 0, 0),
    )
    guest.tx.write_desc(slots[direct], *behind, DESC_INDIRECT, 0)
    guest.tx.set_avail_idx(guest.tx.avail_idx + 1)
    guest.tx.kick()
    assert read_exactly(sock, 1000) == PATTERN[:1000]
    assert guest.tx.wait_used().head == head


@pytest.mark.spec("virtio-1.2:2.7.5.3.2/after-direct")
def test_an_rx_buffer_may_end_in_an_indirect_table(make_guest):
    guest = make_guest(rx_buffers=0)
    first, second = guest.ram.alloc(64), guest.ram.alloc(4096)
    head = guest.rx.add(writable=[(first, 50), (second, 4096)])
    slots = guest.rx._chains[head].slots
    guest.rx.set_avail_idx(guest.rx.avail_idx - 1)
    behind = table(guest.ram, (second, 4096, DESC_WRITE, 0))
    guest.rx.write_desc(slots[1], *behind, DESC_INDIRECT, 0)
    guest.rx.set_avail_idx(guest.rx.avail_idx + 1)
    guest._rx_segments[head] = [(first, 50), (second, 4096)]
    guest.rx.kick()
    guest.request(ECHO)
    assert guest.receive(repost=False).op == Op.RESPONSE


# ---- used buffer notifications ----


@pytest.mark.spec("virtio-1.2:2.7.7.2/ignore-used-event", "virtio-1.2:2.7.7.2/flags-0")
@pytest.mark.parametrize("behind", [-1, 0, 1, 30000])
def test_without_event_idx_flags_0_alone_asks_for_interrupts(make_guest, behind):
    guest = make_guest(features=WITHOUT_EVENT_IDX)
    conn = guest.connect(ECHO)
    for queue in (guest.rx, guest.tx):
        used_event = queue.avail + 4 + 2 * queue.num
        guest.ram.store16(used_event, queue.used_idx + behind)
    for i in range(20):
        guest.drain()
        guest.rx.calls()
        conn.say(Op.RW, b"%02d" % i)
        assert select.select([guest.rx.call_fd], [], [], LIMIT_S)[0], "no interrupt"
        assert conn.receive_bytes(2) == b"%02d" % i


@pytest.mark.spec("virtio-1.2:2.7.7.2/ignore-flags")
def test_with_event_idx_flags_mean_nothing(guest):
    conn = guest.connect(ECHO)
    guest.drain()
    guest.ram.store16(guest.rx.avail, 1)
    for i in range(20):
        guest.rx.want_calls()
        guest.rx.calls()
        conn.say(Op.RW, b"%02d" % i)
        assert select.select([guest.rx.call_fd], [], [], LIMIT_S)[0], "no interrupt"
        assert conn.receive_bytes(2) == b"%02d" % i


@pytest.mark.spec("virtio-1.2:2.7.7.2/used-event-reached")
def test_used_event_is_reached_across_the_wrap_of_the_index(make_guest):
    guest = make_guest(first=65536 - 5, queue_size=64, rx_buffers=32)
    conn = guest.connect(ECHO)
    for i in range(20):
        guest.drain()
        guest.rx.want_calls()
        guest.rx.calls()
        conn.say(Op.RW, b"%02d" % i)
        assert select.select([guest.rx.call_fd], [], [], LIMIT_S)[0], "no interrupt"
        assert conn.receive_bytes(2) == b"%02d" % i


# ---- the used ring ----


@pytest.mark.spec(
    "virtio-1.2:2.7.8.2/len-before-idx", "virtio-1.2:2.7.8.2/at-least-len"
)
@pytest.mark.parametrize("size", [1, 300, 4000])
def test_what_the_used_index_shows_is_all_there(make_guest, size):
    """Seen by spinning, poisoned before: not one byte or length may come later."""
    guest = make_guest(rx_buffers=0, queue_size=64)
    poison = bytes([POISON])
    buffers = {}
    for _ in range(32):
        gpa = guest.ram.alloc(8192)
        guest.ram.write(gpa, poison * 8192)
        buffers[guest.rx.add(writable=[(gpa, 8192)])] = gpa
    for index in range(64):
        guest.ram.write(guest.rx.used + 4 + 8 * index, poison * 8)
    guest.rx.refuse_calls()
    guest.rx.kick()
    conn = guest.request(ECHO)
    for i in range(31):
        wait_idx(guest, guest.rx, i + 1)
        head, size_used = used_entry(guest, guest.rx, i)
        got = guest.ram.read(buffers.pop(head), 8192)
        wanted = bytes([i]) * (size if i else 0)
        assert size_used == HDR_SIZE + len(wanted)
        assert got[HDR_SIZE:size_used] == wanted
        assert got[size_used:] == poison * (8192 - size_used)
        conn.say(Op.RW, bytes([i + 1]) * size)


@pytest.mark.spec("virtio-1.2:2.7.8.2/at-least-len")
def test_a_packet_that_was_only_read_has_length_0(guest):
    conn = guest.connect(ECHO)
    guest.drain()
    before = guest.tx.used_idx
    conn.say(Op.RW, PATTERN[:4000])
    conn.receive_bytes(4000)
    wait_idx(guest, guest.tx, before + 1)
    assert used_entry(guest, guest.tx, before)[1] == 0


# ---- available buffer notifications ----


@pytest.mark.spec(
    "virtio-1.2:2.7.10.2/flags-0-or-1",
    "virtio-1.2:2.7.10.2/flags-1",
    "virtio-1.2:2.7.13.3/immediately",
)
def test_without_event_idx_flags_say_whether_the_device_looks_by_itself(make_host):
    host = make_host(poll_us=1_000_000)
    with VsockGuest(host.path, features=WITHOUT_EVENT_IDX) as guest:
        conn = guest.connect(ECHO)
        seen = set()
        kicks = 0
        for _ in range(2000):
            conn.say(Op.RW, b"x", kick=False)
            seen.add(guest.ram.load16(guest.tx.used))
            kicks += guest.tx.kick()
            assert conn.receive_bytes(1) == b"x"
        assert seen <= {0, 1}
        assert kicks < 2000


@pytest.mark.spec("virtio-1.2:2.7.10.2/event-idx-flags-0")
@pytest.mark.parametrize("poll_us", [0, 1000])
def test_with_event_idx_the_devices_flags_stay_0(make_host, poll_us):
    host = make_host(poll_us=poll_us)
    with VsockGuest(host.path) as guest:
        conn = guest.connect(ECHO)
        for _ in range(200):
            conn.say(Op.RW, b"x")
            for queue in (guest.rx, guest.tx):
                assert guest.ram.load16(queue.used) == 0
            assert conn.receive_bytes(1) == b"x"


@pytest.mark.spec("virtio-1.2:2.7.10.2/flags-0-or-1")
def test_a_device_that_blocks_asks_for_kicks(make_guest):
    guest = make_guest(features=WITHOUT_EVENT_IDX)
    guest.connect(ECHO)
    guest.drain()
    guest.fence()
    for _ in range(50):
        conn = guest.request(ECHO)  # kicks only if it is asked to
        conn.expect(Op.RESPONSE)
