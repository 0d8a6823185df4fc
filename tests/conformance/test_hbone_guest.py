"""CONNECTs of others that programs in guests take, and what they get before."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.links import wait_for
from vhost_user.engine import Dial, Echo, EventKind, Reset
from vhost_user.errors import StateError
from vhost_user.vsock.packet import Op, Shutdown

CANCEL = 0x8
DATA = bytes(range(256)) * 4096


@pytest.fixture
def gate(mesh):
    return mesh.gate()


def offered(gate, mesh, host, conn, port=70000):
    """Offer a CONNECT to the guest's port 80."""
    device = host.device.handle
    return mesh.call(gate.gate.offer, conn, device, 80, port=port)


def test_a_program_in_a_guest_is_reached(gate, mesh, host, guest):
    peer = gate.dial()
    stream = peer.connect()
    peer.send(stream, b"early")
    peer.fence()
    assert offered(gate, mesh, host, gate.asked())
    conn = guest.accept(buf_alloc=1 << 20)
    assert (conn.guest_port, conn.host_port) == (80, 70000)
    assert peer.status(stream) == "200"
    assert conn.receive_bytes(5) == b"early"
    peer.send(stream, DATA)
    assert conn.receive_bytes(len(DATA)) == DATA
    conn.send(b"back")
    assert peer.read(stream, 4) == b"back"
    peer.send(stream, b"", end=True)
    conn.expect(Op.SHUTDOWN)
    conn.send(b"still")
    assert peer.read(stream, 5) == b"still"
    conn.shutdown(Shutdown.BOTH)
    peer.ended(stream)
    host.deliver()
    assert [event.kind for event in host.events] == [EventKind.OPENED, EventKind.CLOSED]


def test_a_program_in_a_guest_that_refuses_is_503(gate, mesh, host, guest):
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    offered(gate, mesh, host, conn)
    refuse(guest)
    wait_for(lambda: host.events_of(EventKind.FAILED), "FAILED")
    assert host.events_of(EventKind.FAILED)[0].error == errno.ECONNREFUSED
    gate.answer(conn, Reset(errno.ECONNREFUSED))  # else it might be offered again
    assert peer.status(stream) == "503"
    peer.ended(stream)


def test_a_connect_that_is_reset_while_the_guest_thinks_is_forgotten(
    gate, mesh, host, guest
):
    peer = gate.dial()
    stream = peer.connect()
    offered(gate, mesh, host, gate.asked())
    conn = guest.receive()
    assert conn.op == Op.REQUEST
    peer.h2.reset_stream(stream, CANCEL)
    peer.flush()
    assert guest.receive().op == Op.RST


def test_a_connect_is_offered_once(gate, mesh, host, guest):
    gate.dial().connect()
    conn = gate.asked()
    assert offered(gate, mesh, host, conn)
    with pytest.raises(StateError):
        offered(gate, mesh, host, conn)
    peer = gate.dial()
    peer.connect()
    with pytest.raises(StateError):
        offered(gate, mesh, host, gate.asked(2))  # the ports have a connection
    assert offered(gate, mesh, host, gate.asked(2), port=70001)
    assert guest.accept()


def refuse(guest):
    """Answer the next packet, a REQUEST, as a full backlog does; return its port."""
    header = guest.receive().header
    assert header.op == Op.REQUEST
    guest.send(guest.header(Op.RST, header.dst_port, header.src_port))
    return header.src_port


def test_a_connect_that_a_guest_has_no_room_for_is_offered_again(
    gate, mesh, host, guest
):
    peer = gate.dial()
    stream = peer.connect()
    peer.send(stream, b"early")
    peer.fence()
    conn = gate.asked()
    for port in (70000, 70000, 70001):
        assert offered(gate, mesh, host, conn, port)
        assert refuse(guest) == port
        wait_for(lambda: host.events_of(EventKind.FAILED), "FAILED")
        host.events.clear()
    peer.send(stream, b", late", end=True)
    peer.fence()
    assert not gate.events.of(EventKind.FAILED)
    assert offered(gate, mesh, host, conn, 70001)
    there = guest.accept(buf_alloc=1 << 20)
    assert peer.status(stream) == "200"
    assert there.receive_bytes(11) == b"early, late"
    there.expect(Op.SHUTDOWN)
    assert gate.request(conn) is None


def test_a_connect_that_a_guest_had_no_room_for_may_be_refused(gate, mesh, host, guest):
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    offered(gate, mesh, host, conn)
    refuse(guest)
    wait_for(lambda: host.events_of(EventKind.FAILED), "FAILED")
    gate.answer(conn, Reset(errno.EACCES))
    assert peer.status(stream) == "401"
    peer.ended(stream)


def test_a_connect_on_offer_can_not_be_answered(gate, mesh, host, guest):
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    offered(gate, mesh, host, conn)
    with pytest.raises(StateError):
        gate.answer(conn, Echo())
    with pytest.raises(StateError):
        offered(gate, mesh, host, conn, port=70001)
    with pytest.raises(StateError):
        mesh.call(gate.gate.preface, conn, b"x")
    guest.accept()
    assert peer.status(stream) == "200"


def test_what_precedes_the_peers_bytes_costs_none_of_its_windows(
    gate, mesh, host, guest
):
    peer = gate.dial()
    stream = peer.connect()
    peer.fence()
    most = peer.h2.outbound_flow_control_window
    peer.send(stream, b"early")
    peer.fence()
    conn = gate.asked()
    assert mesh.call(gate.gate.preface, conn, b"header;")
    with pytest.raises(StateError):
        mesh.call(gate.gate.preface, conn, b"again")
    assert offered(gate, mesh, host, conn)
    there = guest.accept(buf_alloc=1 << 20)
    assert there.receive_bytes(12) == b"header;early"
    peer.send(stream, DATA)
    assert there.receive_bytes(len(DATA)) == DATA
    peer.fence()
    assert peer.h2.outbound_flow_control_window <= most


def test_what_precedes_goes_out_although_the_peer_says_nothing(gate, mesh):
    server = mesh.kept(socket.create_server(("127.0.0.1", 0)))
    gate.dial().connect()
    conn = gate.asked()
    assert mesh.call(gate.gate.preface, conn, b"header")
    gate.answer(conn, Dial(server.getsockname()))
    assert read_exactly(mesh.accept(server), 6) == b"header"
