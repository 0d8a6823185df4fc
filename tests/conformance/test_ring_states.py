"""vhost-user "Ring states" and "Suspended device state", seen by a guest."""

from __future__ import annotations

import os
import select

import pytest

from vhost_user.driver import Ram, Virtqueue
from vhost_user.errors import StateError
from vhost_user.frontend import ALL_FEATURES
from vhost_user.message import (
    Feature,
    Request,
    VringAddress,
    VringState,
    encode,
    encode_u64,
)
from vhost_user.vsock.driver import RX, TX, VsockGuest
from vhost_user.vsock.packet import Op

ECHO = 7


def echo(conn, data=b"ping"):
    conn.say(Op.RW, data)
    assert conn.receive_bytes(len(data)) == data


def quiet(guest):
    """Wait until the device has had its turn: the engine answers a control call."""
    for index in (RX, TX):
        guest.vmm.enable(index)


# ---- started and stopped ----


@pytest.mark.spec(
    "vhost-user:suspended/memory",
    "vhost-user:suspended/notifications",
    "vhost-user:suspended/messages",
    "vhost-user:suspended/replies",
    "vhost-user:migration/stopped",
    "vhost-user:ring-states/stopped",
)
def test_a_suspended_device_touches_nothing_and_answers(far, guest):
    conn, sock = far()
    echoing = guest.connect(ECHO)
    guest.drain()
    guest.stop()
    guest.rx.calls()
    guest.tx.calls()
    echoing.say(Op.RW, b"later")
    guest.tx.kick(force=True)
    sock.sendall(b"also later")
    before = guest.ram.read(guest.ram.gpa, guest.ram.size)
    quiet(guest)
    assert guest.vmm.queue_num() == 3  # the next message is the reply, and no other
    assert guest.vmm.config() == b"\x03\0\0\0\0\0\0\0"
    assert guest.ram.read(guest.ram.gpa, guest.ram.size) == before
    assert (guest.rx.calls(), guest.tx.calls()) == (0, 0)
    guest.start()
    assert conn.receive_bytes(10) == b"also later"
    assert echoing.receive_bytes(5) == b"later"


@pytest.mark.spec("vhost-user:GET_VRING_BASE/complete", "vhost-user:GET_VRING_BASE")
@pytest.mark.parametrize("poll_us", [0, 1000])
def test_each_chain_that_was_taken_is_given_back_before_the_answer(make_host, poll_us):
    host = make_host(poll_us=poll_us)
    with VsockGuest(host.path) as guest:
        conn = guest.connect(9)
        for _ in range(20):
            for _ in range(100):
                conn.say(Op.RW, b"x" * 100)
            for index, queue in ((TX, guest.tx), (RX, guest.rx)):
                base = guest.vmm.stop(index)
                assert guest.ram.load16(queue.used + 2) == base
                guest.vmm.start(index, queue, base=base)
            guest.tx.kick(force=True)
            guest.drain()


@pytest.mark.spec("vhost-user:ring-states/no-kick-needed")
def test_what_is_on_a_ring_when_it_starts_needs_no_kick(guest):
    conn = guest.connect(ECHO)
    guest.stop()
    conn.say(Op.RW, b"waiting", kick=False)
    guest.tx.calls()
    for index, queue in ((RX, guest.rx), (TX, guest.tx)):
        guest.vmm.start(index, queue, base=guest._bases[index])
    assert conn.receive_bytes(7) == b"waiting"


@pytest.mark.spec("vhost-user:ring-states/tracked")
@pytest.mark.parametrize("on", [False, True], ids=["disabled", "enabled"])
def test_the_enabled_state_of_a_stopped_ring_counts_when_it_starts(guest, on):
    conn = guest.connect(ECHO)
    guest.vmm.enable(TX, on=False)
    base = guest.vmm.stop(TX)
    if on:
        guest.vmm.enable(TX)
    conn.say(Op.RW, b"x")
    guest.vmm.tell(Request.SET_VRING_BASE, VringState(TX, base).encode())
    guest.vmm.set_fd(Request.SET_VRING_KICK, TX, guest.tx.kick_fd)
    if not on:
        quiet_rx = guest.rx.used_idx
        guest.vmm.queue_num()
        assert guest.ram.load16(guest.rx.used + 2) == quiet_rx
        guest.vmm.enable(TX)
    assert conn.receive_bytes(1) == b"x"


@pytest.mark.spec("vhost-user:SET_VRING_KICK/polling")
@pytest.mark.parametrize("features", [ALL_FEATURES, Feature.VERSION_1])
def test_a_ring_without_a_kick_fd_is_looked_at(make_guest, features):
    guest = make_guest(features=features)
    for index in (RX, TX):
        guest.vmm.set_fd(Request.SET_VRING_KICK, index, None)
    silent = os.eventfd(0, os.EFD_NONBLOCK)
    os.dup2(silent, guest.tx.kick_fd)
    os.dup2(silent, guest.rx.kick_fd)
    os.close(silent)
    for _ in range(3):
        echo(guest.connect(ECHO))


@pytest.mark.spec("vhost-user:SET_VRING_CALL")
def test_an_rx_ring_without_a_call_fd_is_served(guest):
    conn = guest.connect(ECHO)
    guest.vmm.set_fd(Request.SET_VRING_CALL, RX, None)
    guest.rx.calls()
    before = guest.rx.used_idx
    conn.say(Op.RW, b"x")
    while guest.ram.load16(guest.rx.used + 2) == before:
        os.sched_yield()
    assert guest.rx.calls() == 0
    assert conn.receive_bytes(1) == b"x"


# ---- enabled and disabled ----


@pytest.mark.spec("vhost-user:ring-states/enable-without-features")
def test_features_without_protocol_features_enable_the_rings(guest):
    conn = guest.connect(ECHO)
    guest.vmm.enable(TX, on=False)
    conn.say(Op.RW, b"x")
    features = guest.vmm.features & ~Feature.PROTOCOL_FEATURES
    guest.vmm.tell(Request.SET_FEATURES, encode_u64(features))
    assert conn.receive_bytes(1) == b"x"


@pytest.mark.spec(
    "vhost-user:ring-states/enable-without-features", "vhost-user:RESET_OWNER"
)
def test_features_without_protocol_features_enable_what_reset_owner_disabled(host):
    with VsockGuest(host.path, features=Feature.VERSION_1) as guest:
        conn = guest.connect(ECHO)
        guest.vmm.tell(Request.RESET_OWNER)
        conn.say(Op.RW, b"x")
        guest.vmm.tell(Request.SET_FEATURES, encode_u64(guest.vmm.features))
        assert conn.receive_bytes(1) == b"x"


# ---- one ring starts anew: virtqueue reset ----


@pytest.mark.spec(
    "virtio-1.2:2.6.1.1.1/no-requests",
    "virtio-1.2:2.6.1.1.1/default-state",
    "virtio-1.2:2.6.1.2.1/observe-configuration",
)
def test_a_ring_that_was_reset_starts_at_0_with_another_size(host, guest):
    """A front-end resets a ring by GET_VRING_BASE, and sets up all of it again."""
    conn = guest.connect(ECHO)
    echo(conn)
    guest.drain()
    guest.stop()
    guest.tx.calls()
    guest.send(guest.header(Op.REQUEST, 4000, ECHO))
    guest.tx.kick(force=True)
    quiet(guest)
    assert guest.tx.calls() == 0
    assert guest.rx.pop_used() is None
    guest.rx.close()
    guest.tx.close()
    guest.rx = Virtqueue(guest.ram, 32, features=guest.vmm.features)
    guest.tx = Virtqueue(guest.ram, 64, features=guest.vmm.features)
    guest._bases = (0, 0)
    guest.post_rx(16)
    guest.start()
    for _ in range(3):
        echo(guest.connect(ECHO))


# ---- memory ----


@pytest.mark.spec("vhost-user:memory/user-addresses")
def test_ring_addresses_are_user_addresses_and_buffers_are_guest_addresses(host):
    with (
        VsockGuest(host.path) as guest,
        Ram(1 << 20, gpa=guest.ram.uva, uva=guest.ram.gpa) as crossed,
    ):
        guest.vmm.set_memory(guest.ram, crossed)
        echo(guest.connect(ECHO))
        guest.vmm.set_memory(crossed, guest.ram)
        echo(guest.connect(ECHO))


@pytest.mark.spec("vhost-user:memory/overlap")
@pytest.mark.parametrize("what", ["gpa", "uva"])
def test_a_front_end_whose_regions_overlap_is_left(host, guest, what):
    other = {"gpa": 0x1_0000_0000, "uva": 0x6F00_0000_0000}
    other[what] = getattr(guest.ram, what) + guest.ram.size - 4096
    with Ram(1 << 20, **other) as ram:
        with pytest.raises(StateError, match="back-end refuses"):
            guest.vmm.set_memory(guest.ram, ram)
        assert guest.vmm.hung_up()


# ---- errors ----


@pytest.mark.spec("vhost-user:SET_VRING_ERR")
def test_a_ring_without_an_error_fd_breaks_silently(host, guest):
    guest.connect(ECHO)
    guest.vmm.set_fd(Request.SET_VRING_ERR, TX, None)
    guest.tx.publish(0xFFFF)
    guest.tx.kick(force=True)
    assert guest.vmm.queue_num() == 3


@pytest.mark.spec("vhost-user:SET_VRING_ADDR")
def test_a_ring_may_move_while_it_runs(guest):
    """As QEMU does to switch the log of the used ring on and off."""
    conn = guest.connect(ECHO)
    for _ in range(3):
        address = VringAddress(
            index=TX,
            desc=guest.ram.to_uva(guest.tx.desc),
            avail=guest.ram.to_uva(guest.tx.avail),
            used=guest.ram.to_uva(guest.tx.used),
        )
        guest.vmm.tell(Request.SET_VRING_ADDR, address.encode())
        echo(conn)


@pytest.mark.spec("vhost-user:communication/replies")
def test_replies_come_in_the_order_of_the_requests(guest):
    for request in (Request.GET_FEATURES, Request.GET_QUEUE_NUM, Request.GET_FEATURES):
        guest.vmm.send(encode(request))
    replies = [
        guest.vmm._reply(request)
        for request in (
            Request.GET_FEATURES,
            Request.GET_QUEUE_NUM,
            Request.GET_FEATURES,
        )
    ]
    assert replies[0] == replies[2] != replies[1]
    assert not select.select([guest.vmm._sock], [], [], 0)[0]
