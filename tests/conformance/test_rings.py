"""Split rings as the device must take them: layouts, suppression, broken rules."""

from __future__ import annotations

import os
import select

import pytest

from tests.support.limits import LIMIT_S
from vhost_user.driver import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, PAGE, Virtqueue
from vhost_user.engine import EventKind
from vhost_user.frontend import ALL_FEATURES
from vhost_user.message import Feature, Request
from vhost_user.vsock.driver import TX, VsockGuest
from vhost_user.vsock.packet import HDR_SIZE, Op

ECHO, DISCARD = 7, 9
PATTERN = bytes(range(251)) * 40
WITHOUT_EVENT_IDX = ALL_FEATURES & ~Feature.EVENT_IDX
MINIMAL = Feature.VERSION_1

both_kinds = pytest.mark.parametrize("ring_kind", ["split", "packed"], indirect=True)

LAYOUTS = {
    "one-descriptor": (),
    "header-apart": (HDR_SIZE,),
    "header-in-three": (1, 42, 1),
    "header-with-payload": (HDR_SIZE - 1, 100),
    "bytewise": (1,) * 60,
    "200-descriptors": (10,) * 200,
    "empty-ones": (0, 20, 0, 0, 24, *(0,) * 100, 1000, 0),
}


# ---- layouts ----


@both_kinds
@pytest.mark.spec(
    "virtio-1.2:2.7.4.1/any-arrangement",
    "virtio-1.2:2.7.4.1/chain-limit",
)
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("split", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_packet_may_lie_in_any_descriptors(guest, far, read_exactly, split, indirect):
    conn, sock = far()
    for i in range(3):
        payload = PATTERN[i : i + 4000]
        header = guest.header(Op.RW, conn.guest_port, conn.host_port, len=len(payload))
        guest.send(header, payload, split=split, indirect=indirect)
        assert read_exactly(sock, len(payload)) == payload
    guest.drain()


@both_kinds
@pytest.mark.spec("virtio-1.2:2.7.4.1/any-arrangement")
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((HDR_SIZE, 4096), id="header-apart"),
        pytest.param((1, 42, 1, 7, 4000), id="header-in-three"),
        pytest.param((40, 40), id="header-with-payload"),
        pytest.param((3,) * 30, id="small-ones"),
        pytest.param((65536,), id="64-KiB"),
        pytest.param((0, 40, 0, 4, 0, 4096, 0), id="empty-ones"),
    ],
)
def test_an_rx_buffer_may_lie_in_any_descriptors(make_guest, layout, indirect):
    guest = make_guest(rx_layout=layout, rx_indirect=indirect, rx_buffers=8)
    conn = guest.connect(ECHO)
    for size in (1, 46, 5000):
        conn.say(Op.RW, PATTERN[:size])
        assert conn.receive_bytes(size) == PATTERN[:size]


@both_kinds
@pytest.mark.spec("virtio-1.2:2.7.4.1/any-arrangement")
def test_direct_and_indirect_chains_may_mix(guest):
    conn = guest.connect(ECHO)
    for i in range(20):
        header = guest.header(Op.RW, conn.guest_port, ECHO, len=10)
        guest.send(header, PATTERN[:10], split=(20, 20), indirect=bool(i % 2))
        assert conn.receive_bytes(10) == PATTERN[:10]


@both_kinds
@pytest.mark.spec("vhost-user:payload/split-index")
@pytest.mark.parametrize("first", [65536 - 10, 65535, 32768 - 10])
def test_ring_indices_wrap(make_guest, first):
    guest = make_guest(first=first, queue_size=16, rx_buffers=8)
    conn = guest.connect(ECHO)
    for i in range(50):
        conn.say(Op.RW, b"%02d" % i)
        assert conn.receive_bytes(2) == b"%02d" % i


@both_kinds
def test_the_largest_ring_of_virtio_works(make_host, make_guest_of):
    host = make_host(queue_size=32768)
    guest = make_guest_of(host, first=32768 - 10, queue_size=32768, rx_buffers=64)
    conn = guest.connect(ECHO)
    for i in range(100):  # past the end of a packed ring
        conn.say(Op.RW, b"%02d" % i)
        assert conn.receive_bytes(2) == b"%02d" % i
    other = guest.connect(DISCARD)
    room = guest.tx.num - guest.tx.in_flight
    for _ in range(room):
        other.say(Op.RW, b"x", kick=False)
    guest.tx.kick(force=True)
    guest.drain()
    other.say(Op.CREDIT_REQUEST)
    assert other.expect(Op.CREDIT_UPDATE).header.fwd_cnt == room


@both_kinds
def test_more_packets_than_the_ring_has_entries_go_through(guest):
    conn = guest.connect(DISCARD)
    for i in range(5 * guest.tx.num):
        conn.say(Op.RW, b"x", kick=i % 64 == 0)
    guest.tx.kick(force=True)
    guest.drain()
    conn.say(Op.CREDIT_REQUEST)
    assert conn.expect(Op.CREDIT_UPDATE).header.fwd_cnt == 5 * guest.tx.num


@both_kinds
@pytest.mark.spec(
    "vhost-user:communication/gated",
    "virtio-1.2:5.10.3/stream",
)
@pytest.mark.parametrize("queue_size", [2, 64, 1024])
@pytest.mark.parametrize(
    "features",
    [
        pytest.param(ALL_FEATURES, id="all-features"),
        pytest.param(WITHOUT_EVENT_IDX, id="no-event-idx"),
        pytest.param(MINIMAL, id="minimal"),
        pytest.param(0, id="none"),
    ],
)
def test_works_with_whatever_features_are_taken(make_guest, features, queue_size):
    guest = make_guest(
        features=features, queue_size=queue_size, rx_buffers=queue_size // 2
    )
    assert guest.vmm.features & ~Feature.RING_PACKED == features
    conn = guest.connect(ECHO)
    conn.say(Op.RW, PATTERN[:3000])
    assert conn.receive_bytes(3000) == PATTERN[:3000]


# ---- notification suppression ----


@both_kinds
@pytest.mark.spec(
    "virtio-1.2:2.7.7.2/flags-1",
    "virtio-1.2:2.7.7.2/used-event-not-reached",
)
@pytest.mark.parametrize(
    "features", [ALL_FEATURES, WITHOUT_EVENT_IDX], ids=["event-idx", "flags"]
)
def test_no_interrupt_comes_where_none_is_wanted(make_guest, host, features):
    guest = make_guest(features=features)
    conn = guest.connect(DISCARD)
    guest.drain()
    guest.fence()
    guest.tx.refuse_calls()
    guest.tx.calls()
    for _ in range(100):
        conn.say(Op.RW, b"x")
    guest.fence()  # the device has seen them all
    while guest.tx.pop_used():
        pass
    assert guest.tx.calls() == 0


@pytest.mark.spec(
    "virtio-1.2:2.7.7.2/used-event-reached",
    "virtio-1.2:2.7.7.2/used-event-not-reached",
)
def test_event_idx_delays_the_interrupt(make_guest):
    guest = make_guest()
    conn = guest.connect(DISCARD)
    guest.drain()
    guest.fence()
    guest.drain()
    guest.tx.want_calls(after=9)
    guest.tx.calls()
    before = guest.tx.used_idx
    for i in range(9):
        conn.say(Op.RW, b"x")
        while guest.ram.load16(guest.tx.used + 2) != (before + i + 1) & 0xFFFF:
            os.sched_yield()
    assert guest.tx.calls() == 0
    conn.say(Op.RW, b"x")
    assert select.select([guest.tx.call_fd], [], [], LIMIT_S)[0]


@pytest.mark.spec("virtio-1.2:2.7.10.2/avail-event")
def test_the_device_asks_for_fewer_kicks_than_there_are_packets(make_host):
    """One kick wakes the device; while it is awake it needs no more."""
    host = make_host(poll_us=1000)
    with VsockGuest(host.path) as guest:
        conn = guest.connect(DISCARD)
        for _ in range(2000):
            conn.say(Op.RW, b"x")
        guest.drain()
        assert guest.tx.kicks < 2000


@both_kinds
@pytest.mark.spec("virtio-1.2:2.7.10.2/spurious")
def test_a_kick_that_was_not_asked_for_does_no_harm(guest):
    for _ in range(100):
        guest.tx.kick(force=True)
        guest.rx.kick(force=True)
    guest.connect(ECHO)


@both_kinds
@pytest.mark.spec("vhost-user:SET_VRING_CALL")
def test_a_ring_without_a_call_fd_works(guest):
    guest.vmm.set_fd(Request.SET_VRING_CALL, TX, None)
    conn = guest.connect(ECHO)
    conn.say(Op.RW, b"x")
    assert conn.receive_bytes(1) == b"x"
    guest.vmm.set_fd(Request.SET_VRING_CALL, TX, guest.tx.call_fd)
    guest.drain()


# ---- broken rules ----


def raw(*descriptors):
    """Return what writes descriptors and makes the first available."""

    def write(guest):
        page = guest.ram.alloc(PAGE)
        for index, (gpa, size, flags, nxt) in enumerate(descriptors):
            guest.tx.write_desc(index, page if gpa is None else gpa, size, flags, nxt)
        guest.tx.publish(0)

    return write


def nested_table(guest):
    """An indirect table whose descriptor is an indirect table."""
    table = guest.ram.alloc(64)
    guest.ram.write(
        table,
        table.to_bytes(8, "little")
        + (16).to_bytes(4, "little")
        + DESC_INDIRECT.to_bytes(2, "little")
        + bytes(2),
    )
    guest.tx.write_desc(0, table, 16, DESC_INDIRECT, 0)
    guest.tx.publish(0)


NOWHERE = 0x10_0000_0000
BROKEN = {
    "head-out-of-range": lambda guest: guest.tx.publish(guest.tx.num),
    "head-65535": lambda guest: guest.tx.publish(0xFFFF),
    "more-available-than-entries": lambda guest: guest.tx.set_avail_idx(
        guest.tx.avail_idx + guest.tx.num + 1
    ),
    "next-out-of-range": raw((None, 44, DESC_NEXT, 60000)),
    "loop-of-one": raw((None, 44, DESC_NEXT, 0)),
    "loop-of-two": raw((None, 44, DESC_NEXT, 1), (None, 1, DESC_NEXT, 0)),
    "outside-memory": raw((NOWHERE, 44, 0, 0)),
    "end-outside-memory": raw((None, 2**32 - 1, 0, 0)),
    "address-wraps": raw((2**64 - 1, 44, 0, 0)),
    "readable-after-writable": raw(
        (None, 44, DESC_WRITE | DESC_NEXT, 1), (None, 44, 0, 0)
    ),
    "table-of-no-multiple-of-16": raw((None, 17, DESC_INDIRECT, 0)),
    "empty-table": raw((None, 0, DESC_INDIRECT, 0)),
    "table-outside-memory": raw((NOWHERE, 16, DESC_INDIRECT, 0)),
    "huge-table": raw((None, 2**32 - 16, DESC_INDIRECT, 0)),
    "table-with-next": raw((None, 16, DESC_INDIRECT | DESC_NEXT, 1), (None, 1, 0, 0)),
    "nested-table": nested_table,
}


@pytest.mark.spec("vhost-user:SET_VRING_ERR")
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
    # Only the ring is lost: the session goes on, and a new driver works.
    guest.vmm.set_fd(Request.SET_VRING_CALL, TX, None)
    guest.stop()
    guest.close()
    make_guest().connect(ECHO)


@both_kinds
@pytest.mark.spec("vhost-user:SET_VRING_ERR")
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_chain_longer_than_a_system_call_takes_breaks_the_ring(
    make_host, make_guest_of, indirect
):
    err = os.eventfd(0, os.EFD_NONBLOCK)
    host = make_host(queue_size=2048)
    guest = make_guest_of(host, queue_size=2048)
    conn = guest.connect(ECHO)
    guest.vmm.set_fd(Request.SET_VRING_ERR, TX, err)
    header = guest.header(Op.RW, conn.guest_port, conn.host_port, len=1200)
    guest.send(header, bytes(1200), split=(1,) * 1024, indirect=indirect)
    assert select.select([err], [], [], LIMIT_S)[0], "no error was signalled"
    os.close(err)
    (event,) = host.events_of(EventKind.BROKEN)
    assert event.port == TX


@both_kinds
@pytest.mark.spec("vhost-user:SET_VRING_ERR")
def test_an_indirect_table_needs_its_feature(host, make_guest):
    err = os.eventfd(0, os.EFD_NONBLOCK)
    guest = make_guest(features=ALL_FEATURES & ~Feature.INDIRECT_DESC)
    guest.vmm.set_fd(Request.SET_VRING_ERR, TX, err)
    header = guest.header(Op.REQUEST, guest.port(), ECHO)
    guest.send(header, indirect=True)
    assert select.select([err], [], [], LIMIT_S)[0]
    os.close(err)


def test_a_broken_ring_disturbs_no_other_vm(make_host, tmp_path):
    host = make_host()
    (tmp_path / "b").mkdir()
    with (
        VsockGuest(host.path) as bad,
        type(host)(tmp_path / "b") as other,
        VsockGuest(other.path) as good,
    ):
        assert isinstance(bad.tx, Virtqueue)
        bad.tx.publish(0xFFFF)
        bad.tx.kick(force=True)
        good.connect(ECHO)
