"""Protocol features under traffic: nothing is lost, nothing goes to another driver."""

from __future__ import annotations

import contextlib
import itertools
import threading

import pytest

from tests.support.limits import LIMIT_S
from vhost_user.driver import PAGE, Ram
from vhost_user.errors import StateError
from vhost_user.frontend import ALL_FEATURES, Frontend
from vhost_user.message import Feature, ProtocolFeature, Request, Status
from vhost_user.vsock.driver import RX, TX, VsockGuest
from vhost_user.vsock.packet import Op, Shutdown

ECHO, CHARGEN = 7, 19
HOT = {"gpa": 0x8000_0000, "uva": 0x6F00_0000_0000}
RUNNING = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


def pattern(size, seed=0):
    return bytes((seed + i * 7) % 251 for i in range(size))


@contextlib.contextmanager
def echoing(sock):
    """Send back whatever the host socket gets, in a thread, until its end."""

    def echo():
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        yield
    finally:
        sock.shutdown(2)
        thread.join()


def check_stream(conn, rounds, *, between=lambda _: None, size=20_000):
    """Send and receive `rounds` pieces, with something else between any two."""
    for i in range(rounds):
        data = pattern(size, i)
        conn.send(data)
        between(i)
        assert conn.receive_bytes(size) == data


# ---- a front-end that knows nothing of all this ----

PLAIN = {
    "no-protocol-features": {"features": Feature.VERSION_1},
    "none-of-them-taken": {
        "features": Feature.VERSION_1 | Feature.PROTOCOL_FEATURES,
        "protocol_features": ProtocolFeature(0),
    },
}


@pytest.mark.spec("vhost-user:ring-states/enable-without-features")
@pytest.mark.spec("vhost-user:communication/gated")
@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN.keys())
def test_a_minimal_front_end_is_served(host, make_guest, options, read_exactly):
    """Two rings; no configuration, acknowledgement or event index."""
    guest = make_guest(**options)
    assert guest.vmm.protocol_features == 0
    with host.listen(5000) as listener:
        conn = guest.connect(5000)
        sock, _ = listener.accept()
    with sock:
        sock.settimeout(LIMIT_S)
        with echoing(sock):
            check_stream(conn, 20)
        conn.shutdown(Shutdown.BOTH)
        while conn.receive().op != Op.RST:
            pass
    with host.dial(2222) as client:
        conn = guest.accept()
        assert read_exactly(client, 3) == b"OK "
        client.recv(100)
        client.sendall(pattern(50_000))
        assert conn.receive_bytes(50_000) == pattern(50_000)
    with pytest.raises(ConnectionRefusedError):
        guest.connect(1)


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN.keys())
def test_a_minimal_front_end_stops_and_goes_on(make_guest, options):
    guest = make_guest(**options)
    conn = guest.connect(ECHO)

    def pause(_):
        guest.drain()
        guest.stop()
        guest.start()

    check_stream(conn, 10, between=pause)


# ---- CONFIGURE_MEM_SLOTS ----


@pytest.mark.spec("vhost-user:ADD_MEM_REG")
@pytest.mark.spec("vhost-user:REM_MEM_REG")
def test_regions_come_and_go_while_a_stream_goes_on(far, guest):
    conn, sock = far()
    with echoing(sock), Ram(1 << 20, **HOT) as more:

        def plug(i):
            if i % 2:
                guest.vmm.remove_memory(more)
            else:
                guest.vmm.add_memory(more)

        check_stream(conn, 60, between=plug)


@pytest.mark.spec("vhost-user:ADD_MEM_REG")
def test_a_region_that_was_added_carries_data_both_ways(guest):
    conn = guest.connect(ECHO)
    with Ram(1 << 20, **HOT) as more:
        guest.vmm.add_memory(more)
        header = guest.header(Op.RW, conn.guest_port, ECHO, len=4).encode()
        here = more.alloc(64)
        more.write(here, header + b"ping")
        guest.tx.add(readable=[(here, len(header) + 4)])
        guest.tx.kick()
        assert conn.receive_bytes(4) == b"ping"


@pytest.mark.spec("vhost-user:REM_MEM_REG")
def test_a_buffer_in_a_region_that_was_removed_breaks_the_ring_only(host, guest):
    with Ram(1 << 20, **HOT) as more:
        guest.vmm.add_memory(more)
        guest.vmm.remove_memory(more)
        guest.tx.add(readable=[(more.alloc(64), 44)])
        guest.tx.kick(force=True)
    while not guest.vmm.status & Status.NEEDS_RESET:
        pass
    assert guest.vmm.queue_num() == 3


def test_rings_wait_while_the_front_end_moves_their_memory(make_guest):
    """A new layout: all regions out, one by one, and others in."""
    guest = make_guest(memory_slots=True)
    conn = guest.connect(ECHO)
    with Ram(1 << 20, **HOT) as more:

        def move(i):
            guest.vmm.remove_memory(guest.ram)
            guest.vmm.add_memory(more)
            guest.vmm.add_memory(guest.ram)
            guest.vmm.remove_memory(more)

        check_stream(conn, 20, between=move)


def test_memory_slots_are_as_many_as_it_says(make_guest):
    guest = make_guest(memory_slots=True)
    rams = [
        Ram(PAGE, gpa=i << 32, uva=i << 40)
        for i in range(1, guest.vmm.max_mem_slots() + 1)
    ]
    for ram in rams[:-1]:
        guest.vmm.add_memory(ram)
    conn = guest.connect(ECHO)
    check_stream(conn, 1)
    with pytest.raises(StateError, match="back-end refuses"):
        guest.vmm.add_memory(rams[-1])
    assert guest.vmm.hung_up()
    for ram in rams:
        ram.close()


# ---- RESET_DEVICE, STATUS ----

RESETS = {
    "RESET_DEVICE": lambda vmm: vmm.reset_device(),
    "status-0": lambda vmm: setattr(vmm, "status", 0),
}


@pytest.mark.spec(
    "vhost-user:RESET_DEVICE",
    "vhost-user:SET_STATUS",
    "virtio-1.2:2.4.1/status-0",
    "virtio-1.2:2.4.1/silent",
)
@pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS.keys())
def test_a_reset_in_mid_stream_ends_it_and_the_device_starts_over(
    host, far, guest, reset
):
    for _ in range(3):
        guest.vmm.status = RUNNING
        flood = guest.connect(CHARGEN, buf_alloc=1 << 30)
        flood.receive()
        conn, sock = far()
        conn.send(b"before")
        reset(guest.vmm)
        assert guest.vmm.status == 0
        assert host.stats().conns == 0
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(100):
                got += data
        assert got in (b"before", b"")
        silence = guest.ram.load16(guest.rx.used + 2)
        guest.vmm.queue_num()
        assert guest.ram.load16(guest.rx.used + 2) == silence
        guest.vmm.renegotiate()
        guest.start_over()
        guest.post_rx(64)
        check_stream(guest.connect(ECHO), 3)


@pytest.mark.spec("vhost-user:SET_STATUS")
def test_a_pause_as_qemu_makes_it_keeps_the_stream(far, guest):
    """Bases taken, status 0, the rings again from those bases, status up to 15."""
    conn, sock = far()

    def pause(_):
        guest.drain()
        guest.stop()
        guest.vmm.status = 0
        guest.start()
        for bit in (Status.ACKNOWLEDGE, Status.DRIVER, Status.DRIVER_OK):
            guest.vmm.status = guest.vmm.status | bit

    with echoing(sock):
        check_stream(conn, 20, between=pause)


# ---- RING_RESET ----


@pytest.mark.spec(
    "virtio-1.2:2.6.1.1.1/no-requests",
    "virtio-1.2:2.6.1.1.1/default-state",
)
@pytest.mark.parametrize("queue", [RX, TX], ids=["rx", "tx"])
def test_one_ring_is_reset_and_connections_go_on(far, guest, queue):
    conn, sock = far()

    def reset_ring(_):
        if queue == TX:
            guest.drain()
        guest.vmm.stop(queue)
        guest.start_over(queue)
        if queue == RX:
            guest.post_rx(64)

    with echoing(sock):
        for i in range(20):
            check_stream(conn, 1, size=4000)
            reset_ring(i)
        check_stream(conn, 3)


# ---- BACKEND_REQ ----


def test_a_channel_is_taken_and_closed_with_the_session(host):
    with VsockGuest(host.path) as guest, guest.vmm.open_channel() as channel:
        check_stream(guest.connect(ECHO), 1)
        guest.vmm.close()
        with pytest.raises(ConnectionError):
            channel.receive()


def test_a_front_end_may_take_any_subset_of_the_protocol_features(host):
    offered = [
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.CONFIG,
        ProtocolFeature.STATUS,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ]
    for some in itertools.chain.from_iterable(
        itertools.combinations(offered, n) for n in (1, 2)
    ):
        taken = ProtocolFeature(0)
        for feature in some:
            taken |= feature
        with VsockGuest(host.path, protocol_features=taken) as guest:
            assert guest.vmm.protocol_features == taken
            check_stream(guest.connect(ECHO), 1)


@pytest.mark.parametrize(
    ("request_", "feature"),
    [
        (Request.RESET_DEVICE, ProtocolFeature.RESET_DEVICE),
        (Request.GET_STATUS, ProtocolFeature.STATUS),
        (Request.GET_MAX_MEM_SLOTS, ProtocolFeature.CONFIGURE_MEM_SLOTS),
    ],
)
def test_what_was_not_negotiated_ends_the_session(host, request_, feature):
    with Frontend(host.path) as vmm:
        vmm.negotiate(ALL_FEATURES, ProtocolFeature.MQ)
        with pytest.raises((ConnectionError, StateError)) as info:
            vmm.ask(request_)
        assert isinstance(info.value, ConnectionError)
