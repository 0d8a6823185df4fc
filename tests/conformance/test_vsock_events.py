"""Device events: a driver that outlives its connections is told so."""

from __future__ import annotations

import pytest

from vhost_user.engine import EventKind
from vhost_user.vsock.driver import EVENT, RX, TX, VsockGuest
from vhost_user.vsock.packet import CID_HOST, Op

ECHO = 7
TRANSPORT_RESET = b"\0\0\0\0"
SPEC = "virtio-1.2:5.10.6.7/transport-reset"


def echo(conn):
    conn.say(Op.RW, b"ping")
    assert conn.receive_bytes(4) == b"ping"


def come_back(host, guest):
    guest.stop()
    guest.reconnect(host.path)
    guest.start()


def reconnect(host, guest):
    """Come back as the same driver, nothing under way."""
    guest.fence()
    guest.drain()
    come_back(host, guest)


def resets(packets):
    return [
        (p.op, p.header.src_cid, p.header.dst_port, p.header.src_port) for p in packets
    ]


def rst_for(conn):
    return (Op.RST, CID_HOST, conn.guest_port, conn.host_port)


@pytest.mark.spec(SPEC)
def test_a_driver_that_goes_on_gets_a_transport_reset(host, make_guest):
    guest = make_guest(event_buffers=4)
    conn = guest.connect(ECHO)
    echo(conn)
    reconnect(host, guest)
    assert guest.receive_event() == TRANSPORT_RESET
    echo(guest.connect(ECHO))
    conn.say(Op.RW, b"are you there?")
    conn.expect(Op.RST)


@pytest.mark.spec(SPEC)
def test_each_reconnect_has_its_event(host, make_guest):
    guest = make_guest(event_buffers=4)
    for _ in range(3):
        echo(guest.connect(ECHO))
        reconnect(host, guest)
        assert guest.receive_event() == TRANSPORT_RESET
    assert guest.event.in_flight == 1


@pytest.mark.spec(SPEC)
def test_the_event_waits_for_a_buffer(host, make_guest):
    guest = make_guest(event_buffers=0)
    echo(guest.connect(ECHO))
    reconnect(host, guest)
    guest.fence()
    guest.post_events(1, size=100)
    assert guest.receive_event() == TRANSPORT_RESET


def test_connections_made_since_are_not_touched(host, make_guest):
    """RSTs about the lost ones may come before the event ring is started."""
    guest = make_guest(event_buffers=1)
    lost = [guest.connect(ECHO) for _ in range(5)]
    reconnect(host, guest)
    assert guest.receive_event() == TRANSPORT_RESET
    conn = guest.connect(ECHO)
    guest.post_events()
    assert set(resets(guest.fence())) <= {rst_for(c) for c in lost}
    assert guest.event.in_flight == 1
    echo(conn)


def test_without_an_event_ring_lost_connections_get_a_rst(host, make_guest):
    guest = make_guest()
    conns = [guest.connect(ECHO) for _ in range(100)]
    reconnect(host, guest)
    assert sorted(resets(guest.fence())) == sorted(rst_for(c) for c in conns)


def test_a_port_in_use_again_gets_no_rst(host, make_guest):
    guest = make_guest(rx_buffers=1)
    conn = guest.request(ECHO)
    assert guest.receive(repost=False).op == Op.RESPONSE
    guest.drain()
    come_back(host, guest)  # without an RX buffer
    conn.say(Op.REQUEST)
    guest.drain()
    guest.post_rx(4)
    conn.expect(Op.RESPONSE)
    assert guest.fence() == []
    echo(conn)


def test_a_driver_that_starts_anew_gets_nothing(host, make_guest):
    with VsockGuest(host.path, event_buffers=1) as old:
        echo(old.connect(ECHO))
    guest = make_guest(event_buffers=1)
    assert guest.fence() == []
    guest.stop()
    guest.start()
    assert guest.fence() == []
    assert guest.event.in_flight == 1


def test_a_machine_that_reboots_gets_nothing(host, make_guest):
    guest = make_guest(event_buffers=1)
    guest.connect(ECHO)
    guest.stop()
    guest.start_over(RX, TX)
    guest.post_rx(16)
    assert guest.fence() == []
    assert guest.event.in_flight == 1


@pytest.mark.parametrize("size", [1, 3])
def test_an_event_buffer_that_is_too_small_breaks_that_ring_only(
    host, make_guest, size
):
    guest = make_guest(event_buffers=0)
    guest.post_events(1, size=size)
    echo(guest.connect(ECHO))
    reconnect(host, guest)
    guest.fence()
    assert [e.port for e in host.events_of(EventKind.BROKEN)] == [EVENT]
    echo(guest.connect(ECHO))


def test_the_event_ring_may_stop_and_go_on(host, make_guest):
    guest = make_guest(event_buffers=2)
    conn = guest.connect(ECHO)
    for _ in range(3):
        guest.fence()
        guest.drain()
        guest.stop()
        guest.start()
    echo(conn)
    assert guest.event.in_flight == 2
