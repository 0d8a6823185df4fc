"""Packed rings as the device must take them: flags, lists, suppression, broken rules.

What packed and split rings have in common is in test_rings.py and, as a guest sees it
of the whole device, in test_vsock_*.py: those tests run over both.
"""

from __future__ import annotations

import os
import select
import struct
from dataclasses import dataclass

import pytest

from tests.support.limits import LIMIT_S
from vhost_user.driver import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, PAGE
from vhost_user.engine import EventKind
from vhost_user.errors import StateError
from vhost_user.message import Feature, Request
from vhost_user.packed_driver import (
    DESC_AVAIL,
    DESC_USED,
    EVENT_DESC,
    EVENT_DISABLE,
    EVENT_ENABLE,
)
from vhost_user.vsock.driver import GUEST_FEATURES, RX, TX
from vhost_user.vsock.packet import HDR_SIZE, Op

ECHO, DISCARD = 7, 9
PATTERN = bytes(range(251)) * 40
OWN = DESC_AVAIL | DESC_USED


@pytest.fixture
def ring_kind():
    return "packed"


@dataclass
class Desc:
    gpa: int
    len: int
    id: int
    flags: int


def read_desc(queue, index):
    raw = queue.ram.read(queue.desc + 16 * (index % queue.num), 16)
    return Desc(*struct.unpack("<QIHH", raw))


def offer(guest, data, *flags_of_parts, ident=0):
    """Send `data` in as many equal descriptors as there are flags, by hand."""
    gpa = guest.ram.alloc(len(data))
    guest.ram.write(gpa, data)
    size = len(data) // len(flags_of_parts)
    parts = [
        (
            gpa + i * size,
            size if i + 1 < len(flags_of_parts) else len(data) - i * size,
            f,
        )
        for i, f in enumerate(flags_of_parts)
    ]
    guest.tx.write_chain(parts, ident)
    guest.tx.kick()
    return gpa


def wait_flags(queue, index, wrap):
    """Wait until a descriptor is used; return it."""
    want = OWN if wrap else 0
    while (desc := read_desc(queue, index)).flags & OWN != want:
        os.sched_yield()
    return desc


# ---- using ----


@pytest.mark.spec("virtio-1.2:2.8.1/wrap-counter", "virtio-1.2:2.8.15/only-available")
def test_the_wrap_counter_starts_at_1_and_flips_each_time_round(make_guest):
    guest = make_guest(queue_size=8, rx_buffers=4)
    conn = guest.connect(DISCARD)
    guest.drain()
    for i in range(1, 30):
        conn.say(Op.RW, b"x")
        (ident,) = guest.tx._chains
        assert wait_flags(guest.tx, i, wrap=i // 8 % 2 == 0).id == ident
        guest.drain()


@pytest.mark.spec(
    "virtio-1.2:2.8.3/used-write-flag",
    "virtio-1.2:2.8.4/used-length",
    "virtio-1.2:2.8.15/no-change-after-used",
)
def test_a_used_descriptor_says_what_was_written(make_guest):
    guest = make_guest(rx_buffers=4)
    conn = guest.connect(ECHO)
    guest.drain()
    assert read_desc(guest.tx, 0).flags == OWN
    response = read_desc(guest.rx, 0)
    assert (response.flags, response.len) == (OWN | DESC_WRITE, HDR_SIZE)
    conn.say(Op.RW, PATTERN[:100])
    assert conn.receive_bytes(100) == PATTERN[:100]
    echo = read_desc(guest.rx, 1)
    assert (echo.flags, echo.len) == (OWN | DESC_WRITE, HDR_SIZE + 100)
    assert read_desc(guest.rx, 0) == response  # nobody changed it since


@pytest.mark.spec(
    "virtio-1.2:2.8.6/one-used-descriptor",
    "virtio-1.2:2.8.18/list-in-order",
    "virtio-1.2:2.8.15/no-write-to-readable",
)
def test_a_list_is_used_as_one(guest, far, read_exactly):
    conn, sock = far()
    guest.drain()
    first = guest.tx.next.index
    header = guest.header(Op.RW, conn.guest_port, conn.host_port, len=999)
    packet = header.encode() + PATTERN[:999]
    gpa = offer(guest, packet, 0, 0, 0, ident=77)
    assert read_exactly(sock, 999) == PATTERN[:999]
    used = wait_flags(guest.tx, first, wrap=True)
    assert (used.id, used.len) == (77, 0)
    assert read_desc(guest.tx, first + 1).flags == DESC_AVAIL | DESC_NEXT
    assert read_desc(guest.tx, first + 2).flags == DESC_AVAIL
    assert guest.ram.read(gpa, len(packet)) == packet
    offer(guest, packet, 0, ident=78)  # it goes on behind the list
    assert wait_flags(guest.tx, first + 3, wrap=True).id == 78


@pytest.mark.spec(
    "virtio-1.2:2.8.7/ignore-table-flags", "virtio-1.2:2.8.7/ignore-write-flag"
)
def test_reserved_flags_of_indirect_descriptors_are_ignored(guest, far, read_exactly):
    conn, sock = far()
    header = guest.header(Op.RW, conn.guest_port, conn.host_port, len=500)
    packet = header.encode() + PATTERN[:500]
    gpa = guest.ram.alloc(len(packet))
    guest.ram.write(gpa, packet)
    table = guest.ram.alloc(32)
    junk = OWN | DESC_NEXT | DESC_INDIRECT
    guest.ram.write(
        table,
        struct.pack("<QIHH", gpa, 100, 999, junk)
        + struct.pack("<QIHH", gpa + 100, len(packet) - 100, 55, 0),
    )
    guest.tx.write_chain([(table, 32, DESC_INDIRECT | DESC_WRITE)], 5)
    guest.tx.kick()
    assert read_exactly(sock, 500) == PATTERN[:500]


@pytest.mark.spec(
    "virtio-1.2:2.8.12/process-in-order", "virtio-1.2:2.8.12/write-as-completed"
)
def test_chains_are_processed_and_used_in_order(guest, far, read_exactly):
    conn, sock = far()
    guest.drain()
    first = guest.tx.next.index
    ids = []
    for i in range(50):
        conn.say(Op.RW, b"%03d" % i, kick=False)
        ids.append(list(guest.tx._chains)[-1])
    guest.tx.kick(force=True)
    assert read_exactly(sock, 150) == b"".join(b"%03d" % i for i in range(50))
    wait_flags(guest.tx, first + 49, wrap=True)
    assert [read_desc(guest.tx, first + i).id for i in range(50)] == ids


@pytest.mark.spec("virtio-1.2:2.8.18/list-limit")
def test_a_list_may_be_as_long_as_the_ring(make_guest):
    guest = make_guest(queue_size=16, rx_buffers=8)
    conn = guest.connect(ECHO)
    guest.drain()
    header = guest.header(Op.RW, conn.guest_port, ECHO, len=500)
    offer(guest, header.encode() + PATTERN[:500], *[0] * 16)
    assert conn.receive_bytes(500) == PATTERN[:500]


@pytest.mark.spec('VIRTIO 1.2 section 2.8 "Packed Virtqueues"')
@pytest.mark.parametrize("num", [1, 3, 100, 1023])
def test_a_ring_needs_no_power_of_two(make_guest, num):
    guest = make_guest(queue_size=num, rx_buffers=min(num, 50))
    conn = guest.connect(ECHO)
    for i in range(250):
        conn.say(Op.RW, b"%03d" % i)
        assert conn.receive_bytes(3) == b"%03d" % i


@pytest.mark.spec('vhost-user "A vring state description"')
@pytest.mark.parametrize("rounds", [0, 5, 20, 37])
def test_the_base_has_both_indices_and_wrap_counters(make_guest, rounds):
    guest = make_guest(queue_size=16, rx_buffers=4)
    conn = guest.connect(ECHO)
    for _ in range(rounds):
        conn.say(Op.RW, b"x")
        assert conn.receive_bytes(1) == b"x"
    guest.drain()
    done = rounds + 1  # and the REQUEST
    half = done % 16 | (0x8000 if done // 16 % 2 == 0 else 0)
    assert guest.stop() == (half << 16 | half,) * 2
    guest.start()
    conn.say(Op.RW, b"again")
    assert conn.receive_bytes(5) == b"again"


# ---- suppression ----


@pytest.mark.spec("virtio-1.2:2.8.10/enable", "virtio-1.2:2.8.10/disable")
@pytest.mark.parametrize("flags", [EVENT_ENABLE, EVENT_DISABLE])
def test_interrupts_can_be_turned_off(make_guest, flags):
    guest = make_guest(features=GUEST_FEATURES & ~Feature.EVENT_IDX)
    conn = guest.connect(DISCARD)
    guest.drain()
    guest.fence()
    guest.drain()
    guest.tx.calls()
    guest.ram.store16(guest.tx.avail + 2, flags)
    at = guest.tx.next.index
    conn.say(Op.RW, b"x")
    wait_flags(guest.tx, at, wrap=True)
    guest.fence()
    assert bool(guest.tx.calls()) == (flags == EVENT_ENABLE)


@pytest.mark.spec("virtio-1.2:2.8.10/desc")
@pytest.mark.parametrize("queue_size", [256, 16], ids=["same-lap", "next-lap"])
def test_an_interrupt_comes_for_the_descriptor_asked_for(make_guest, queue_size):
    guest = make_guest(queue_size=queue_size, rx_buffers=8)
    conn = guest.connect(DISCARD)
    for _ in range(8):
        conn.say(Op.RW, b"x")
    guest.drain()
    guest.fence()
    guest.drain()
    guest.tx.want_calls(after=9)
    guest.tx.calls()
    for _ in range(9):
        at = guest.tx.next
        conn.say(Op.RW, b"x")
        wait_flags(guest.tx, at.index, at.wrap)
    assert guest.tx.calls() == 0
    conn.say(Op.RW, b"x")
    assert select.select([guest.tx.call_fd], [], [], LIMIT_S)[0]


@pytest.mark.spec("virtio-1.2:2.8.10/device-structure", "virtio-1.2:2.8.21.3/suppress")
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
def test_the_device_says_which_kick_it_wants(make_guest, event_idx):
    features = GUEST_FEATURES if event_idx else GUEST_FEATURES & ~Feature.EVENT_IDX
    guest = make_guest(features=features)
    guest.connect(DISCARD)
    guest.drain()
    want = EVENT_DESC if event_idx else EVENT_ENABLE
    while guest.ram.load16(guest.tx.used + 2) != want:
        os.sched_yield()
    if event_idx:
        while guest.ram.load16(guest.tx.used) != guest.tx.next.encoded:
            os.sched_yield()
    assert guest.ram.load16(guest.rx.used + 2) in {want, EVENT_DISABLE}


# ---- broken rules ----


def raw(*descriptors):
    """Return what makes a list of descriptors available."""

    def write(guest):
        page = guest.ram.alloc(PAGE)
        guest.tx.write_chain(
            [(page if gpa is None else gpa, size, f) for gpa, size, f in descriptors], 0
        )

    return write


def endless(guest):
    """Each descriptor of the ring continues the list; the first is shown last."""
    page = guest.ram.alloc(PAGE)
    for i in reversed(range(guest.tx.num)):
        at = guest.tx.next.add(i, guest.tx.num)
        flags = DESC_NEXT | (DESC_AVAIL if at.wrap else DESC_USED)
        slot = guest.tx.desc + 16 * at.index
        guest.ram.write(slot, struct.pack("<QIHH", page, 1, 0, flags))


NOWHERE = 0x10_0000_0000
BROKEN = {
    "endless": endless,
    "outside-memory": raw((NOWHERE, 44, 0)),
    "end-outside-memory": raw((None, 2**32 - 1, 0)),
    "address-wraps": raw((2**64 - 1, 44, 0)),
    "readable-after-writable": raw((None, 44, DESC_WRITE), (None, 44, 0)),
    "table-of-no-multiple-of-16": raw((None, 17, DESC_INDIRECT)),
    "empty-table": raw((None, 0, DESC_INDIRECT)),
    "table-outside-memory": raw((NOWHERE, 16, DESC_INDIRECT)),
    "huge-table": raw((None, 2**32 - 16, DESC_INDIRECT)),
    "table-with-next": raw((None, 16, DESC_INDIRECT), (None, 1, 0)),
}


@pytest.mark.spec("VIRTIO 1.2 section 2.8.6", "virtio-1.2:2.8.21.1/immediately")
@pytest.mark.parametrize("write", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_ring_is_stopped_and_reported(host, make_guest, write):
    err = os.eventfd(0, os.EFD_NONBLOCK)
    guest = make_guest()
    guest.connect(ECHO)
    guest.drain()
    guest.vmm.set_fd(Request.SET_VRING_ERR, TX, err)
    write(guest)
    guest.tx.kick(force=True)
    assert select.select([err], [], [], LIMIT_S)[0], "no error was signalled"
    os.close(err)
    (event,) = host.events_of(EventKind.BROKEN)
    assert event.port == TX
    guest.stop()
    guest.close()
    make_guest().connect(ECHO)


@pytest.mark.spec('vhost-user "A vring state description"')
@pytest.mark.parametrize(
    "base",
    [
        pytest.param(0x8100_8000, id="used-ahead"),
        pytest.param(0x8000_8100, id="index-out-of-range"),
        pytest.param(0x8001_0002, id="more-than-a-lap"),
    ],
)
def test_a_base_that_cannot_be_ends_the_session(make_guest, base):
    guest = make_guest()
    guest.stop()
    with pytest.raises(StateError, match="back-end refuses"):
        guest.vmm.start(RX, guest.rx, base=base)
    assert guest.vmm.hung_up()
