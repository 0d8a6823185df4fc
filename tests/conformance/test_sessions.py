"""Front-ends come, change things under way, go, and come back; hostile ones too."""

from __future__ import annotations

import os
import socket

import pytest

from tests.support.descriptors import check_closed, descriptors
from tests.support.limits import LIMIT_S
from vhost_user.driver import PAGE, Ram, Virtqueue
from vhost_user.engine import EventKind
from vhost_user.errors import StateError
from vhost_user.frontend import Frontend
from vhost_user.message import (
    MemoryRegion,
    Request,
    VringAddress,
    VringState,
    encode,
    encode_mem_table,
)
from vhost_user.vsock.driver import TX, VsockGuest
from vhost_user.vsock.packet import Op

ECHO = 7


def echo(conn, data=b"ping"):
    conn.say(Op.RW, data)
    assert conn.receive_bytes(len(data)) == data


# ---- coming and going ----


@pytest.mark.spec("vhost-user:communication/reconnect")
def test_a_front_end_may_come_back(host):
    for _ in range(5):
        with VsockGuest(host.path) as guest:
            echo(guest.connect(ECHO))


def test_a_front_end_that_leaves_takes_its_connections_along(host):
    with host.listen(5000) as listener:
        with VsockGuest(host.path) as guest:
            guest.connect(5000)
            sock, _ = listener.accept()
        with sock:
            sock.settimeout(LIMIT_S)
            assert sock.recv(1) == b""
    with VsockGuest(host.path) as guest:
        assert host.stats().conns == 0
        guest.send(guest.header(Op.RW, 1025, 5000))
        assert guest.receive().op == Op.RST


def test_sessions_leave_no_fds(host):
    def session():
        with VsockGuest(host.path) as guest:
            echo(guest.connect(ECHO))
        host.idle()

    session()
    before = descriptors()
    for _ in range(10):
        session()
    check_closed(before)


def test_a_driver_that_starts_over_gets_no_old_connections(host, guest):
    """The machine was reset: the rings start at 0 again, the front-end stays."""
    old = guest.connect(ECHO)
    guest.stop()
    guest.start_over()
    guest.post_rx(16)
    assert host.stats().conns == 0
    old.say(Op.RW, b"are you there?")
    old.expect(Op.RST)


# ---- changes under way ----


@pytest.mark.spec(
    "vhost-user:GET_VRING_BASE",
    "vhost-user:ring-states/stop",
    "vhost-user:ring-states/start",
)
def test_rings_go_on_where_they_stopped(guest):
    conn = guest.connect(ECHO)
    for _ in range(5):
        echo(conn)
        guest.drain()
        assert guest.stop() == (guest.rx.used_idx, guest.tx.used_idx)
        guest.start()
    echo(conn)


@pytest.mark.spec(
    "vhost-user:ring-states/stopped",
    "vhost-user:ring-states/no-kick-needed",
)
def test_what_is_sent_while_the_rings_are_stopped_is_not_lost(guest):
    conn = guest.connect(ECHO)
    guest.stop()
    conn.say(Op.RW, b"patience")
    guest.start()
    assert conn.receive_bytes(8) == b"patience"


@pytest.mark.spec(
    "vhost-user:SET_MEM_TABLE",
    "vhost-user:ring-states/change",
)
def test_memory_may_grow_while_rings_run(guest):
    conn = guest.connect(ECHO)
    with Ram(1 << 20, gpa=0x8000_0000, uva=0x6F00_0000_0000) as more:
        for rams in ((guest.ram, more), (more, guest.ram), (guest.ram,)):
            guest.vmm.set_memory(*rams)
            echo(conn, b"x" * 10_000)


@pytest.mark.spec(
    "vhost-user:SET_MEM_TABLE",
    "vhost-user:memory/guest-addresses",
)
def test_a_packet_may_lie_in_two_regions(guest):
    conn = guest.connect(ECHO)
    with Ram(1 << 20, gpa=0x8000_0000, uva=0x6F00_0000_0000) as more:
        guest.vmm.set_memory(guest.ram, more)
        header = guest.header(Op.RW, conn.guest_port, ECHO, len=4).encode()
        here, there = guest.ram.alloc(64), more.alloc(64)
        guest.ram.write(here, header)
        more.write(there, b"ping")
        guest.drain()
        guest.tx.add(readable=[(here, len(header)), (there, 4)])
        guest.tx.kick()
        assert conn.receive_bytes(4) == b"ping"
        guest.tx.wait_used()


@pytest.mark.spec("vhost-user:SET_MEM_TABLE")
def test_32_regions_are_taken(guest):
    rams = [Ram(PAGE, gpa=i << 32, uva=i << 40) for i in range(1, 32)]
    guest.vmm.set_memory(guest.ram, *rams)
    echo(guest.connect(ECHO))
    for ram in rams:
        ram.close()


@pytest.mark.spec(
    "vhost-user:SET_VRING_ENABLE",
    "vhost-user:ring-states/disabled",
)
def test_a_disabled_ring_is_left_alone_until_it_is_enabled(guest):
    conn = guest.connect(ECHO)
    guest.vmm.enable(TX, on=False)
    conn.say(Op.RW, b"later")
    guest.vmm.queue_num()
    assert guest.rx.pop_used() is None
    guest.vmm.enable(TX)
    assert conn.receive_bytes(5) == b"later"


def test_the_event_ring_may_be_set_up_and_stopped(guest):
    """QEMU keeps it for itself, user-mode Linux gives all three."""
    events = Virtqueue(guest.ram, 16)
    guest.vmm.start(2, events)
    echo(guest.connect(ECHO))
    assert guest.vmm.stop(2) == 0
    events.close()


# ---- what a front-end must not do ----


def bad_ring(part, value):
    def act(vmm, ram):
        vmm.set_memory(ram)
        parts = {
            "desc": ram.uva,
            "avail": ram.uva + PAGE,
            "used": ram.uva + 2 * PAGE,
        } | {part: value}
        vmm.tell(Request.SET_VRING_NUM, VringState(TX, 256).encode())
        vmm.tell(Request.SET_VRING_ADDR, VringAddress(index=TX, **parts).encode())
        vmm.set_fd(Request.SET_VRING_KICK, TX, None)
        vmm.enable(TX)

    return act


def bad_table(*regions):
    def act(vmm, ram):
        table = [MemoryRegion(**region) for region in regions]
        vmm.tell(Request.SET_MEM_TABLE, encode_mem_table(table), [ram.fd] * len(table))

    return act


def region(**fields):
    return {"gpa": 0, "size": PAGE, "uva": 0x7F00_0000_0000} | fields


HOSTILE = {
    "ring-outside-memory": bad_ring("desc", 0x1000),
    "ring-across-the-end": bad_ring("used", 0x7F00_0000_0000 + (4 << 20) - PAGE // 2),
    "ring-at-the-guest-address": bad_ring("avail", 0x4000_0000),
    "ring-address-wraps": bad_ring("desc", 2**64 - 16),
    "empty-region": bad_table(region(size=0)),
    "region-longer-than-its-file": bad_table(region(size=1 << 40)),
    "region-wraps": bad_table(region(gpa=2**64 - PAGE, size=2 * PAGE)),
    "user-address-wraps": bad_table(region(uva=2**64 - PAGE, size=2 * PAGE)),
    "ring-9": lambda vmm, _: vmm.stop(9),
    "kick-that-cannot-be-polled": lambda vmm, ram: (
        bad_ring("desc", ram.uva)(vmm, ram),
        vmm.set_fd(Request.SET_VRING_KICK, TX, ram.fd),
    ),
    "unknown-request": lambda vmm, _: vmm.ask(77),
    "no-header": lambda vmm, _: (vmm.send(b"\xff" * 12), vmm.queue_num()),
}


@pytest.mark.spec(
    "vhost-user:communication/error",
    "vhost-user:memory/user-addresses",
)
@pytest.mark.parametrize("act", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_front_end_ends_its_own_session_only(host, act, caplog):
    with VsockGuest(host.path) as guest:
        echo(guest.connect(ECHO))
    host.idle()
    before = descriptors()
    with Ram() as ram, Frontend(host.path) as vmm:
        vmm.negotiate()
        with pytest.raises((ConnectionError, StateError)) as info:
            act(vmm, ram)
        assert isinstance(info.value, ConnectionError) or vmm.hung_up(), info.value
    with VsockGuest(host.path) as guest:
        echo(guest.connect(ECHO))
    host.idle()
    assert "session ended: request" in caplog.text
    assert "bug" not in caplog.text
    check_closed(before)


def test_a_front_end_that_dies_while_data_flows_hurts_nobody(host):
    for _ in range(5):
        guest = VsockGuest(host.path)
        conn = guest.connect(19, buf_alloc=1 << 30)
        conn.receive()
        guest.close()
    with VsockGuest(host.path) as guest:
        echo(guest.connect(ECHO))
    assert host.events_of(EventKind.BROKEN) == []


def test_fds_that_came_with_garbage_are_closed(host):
    before = descriptors()
    for _ in range(20):
        with Frontend(host.path) as vmm:
            fds = [os.eventfd(0) for _ in range(8)]
            vmm.send(encode(Request.SET_OWNER), fds)
            for fd in fds:
                os.close(fd)
            assert vmm.hung_up()
    host.idle()
    check_closed(before)


def test_a_second_vmm_waits_for_the_first(host, guest):
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(host.path))
        second.send(encode(Request.GET_FEATURES))
        echo(guest.connect(ECHO))
        guest.stop()
        guest.vmm.close()
        second.settimeout(LIMIT_S)
        assert len(second.recv(20)) == 20
