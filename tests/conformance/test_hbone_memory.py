"""A guest's bytes and tunnels: memory that is taken away, bytes that wait for it."""

from __future__ import annotations

import contextlib
import errno
import os

import h2.events
import pytest

from tests.conformance.links import wait_for
from tests.conformance.tunnels import Mesh
from vhost_user._native import lib
from vhost_user.driver import PAGE
from vhost_user.engine import ALL_QUEUES, EventKind
from vhost_user.hbone import Reason
from vhost_user.vsock.packet import HDR_SIZE, Op

PORT = 5000
FIRST = 5 << 16
MIB = 1 << 20


# ---- memory that is taken away ----


@pytest.fixture
def pool(mesh, host):
    pool = mesh.pool()
    mesh.call(host.device.handle.route, PORT, pool.target)
    return pool


def put_at_the_end(guest, conn, payload):
    """Have a packet in the TX ring whose payload ends in the memory's last page."""
    head = guest.header(Op.RW, conn.guest_port, conn.host_port, len=len(payload))
    before = len(payload) // PAGE * PAGE
    gpa = guest.ram.gpa + guest.ram.size - PAGE - before - HDR_SIZE
    guest.ram.write(gpa, head.encode() + payload)
    guest.tx.add(readable=[(gpa, HDR_SIZE + len(payload))])


def truncate(guest):
    """Take the last page; from now on the test may not touch it either."""
    os.ftruncate(guest.ram.fd, guest.ram.offset + guest.ram.size - PAGE)
    os.eventfd_write(guest.tx.kick_fd, 1)


@pytest.mark.parametrize("size", [100, PAGE + 100], ids=["short", "sealed-in-place"])
def test_a_peer_gets_no_byte_of_memory_that_is_gone(pool, host, guest, size):
    beside = pool.client()
    peer = pool.accept()
    _, other = pool.pair(peer, beside)
    conn = guest.request(PORT)
    stream, _ = peer.request()
    peer.answer(stream)
    conn.require(guest.receive(), Op.RESPONSE)
    conn.say(Op.RW, b"before")
    assert peer.read(stream, 6) == b"before"
    put_at_the_end(guest, conn, b"x" * size)
    truncate(guest)
    peer.until(h2.events.StreamReset, lambda event: event.stream_id == stream)
    data = [
        event.data
        for event in peer.events
        if isinstance(event, h2.events.DataReceived) and event.stream_id == stream
    ]
    assert b"".join(data) in {b"", b"before"}
    wait_for(lambda: host.events_of(EventKind.BROKEN), "broken")
    (event,) = host.events_of(EventKind.BROKEN)
    assert (event.port, event.error) == (ALL_QUEUES, lib.VU_ERR_FAULT)
    peer.send(other, b"y")  # the tunnel, and who else is on it, go on
    assert beside.recv(1) == b"y"
    beside.sendall(b"z")
    assert peer.read(other, 1) == b"z"


def test_rx_buffers_that_are_gone_end_their_stream_only(pool, host, make_guest):
    guest = make_guest(rx_buffers=1)
    beside = pool.client()
    peer = pool.accept()
    _, other = pool.pair(peer, beside)
    conn = guest.request(PORT)
    stream, _ = peer.request()
    peer.answer(stream)
    conn.require(guest.receive(repost=False), Op.RESPONSE)
    guest.rx.add(writable=[(guest.ram.gpa + guest.ram.size - PAGE - HDR_SIZE, PAGE)])
    truncate(guest)
    os.eventfd_write(guest.rx.kick_fd, 1)
    peer.send(stream, b"x" * 100)
    peer.until(h2.events.StreamReset, lambda event: event.stream_id == stream)
    wait_for(lambda: host.events_of(EventKind.BROKEN), "broken")
    peer.send(other, b"y")
    assert beside.recv(1) == b"y"


# ---- bytes that wait for a guest ----


@pytest.fixture
def inbound(make_host, make_guest_of, tmp_path):
    """Run a VM that may have so many bytes kept, a gate, and a tunnel to that.

    Return the host, the tunnel, and what opens a stream to a program in the guest.
    """
    with contextlib.ExitStack() as stack:

        def inbound(most):
            host = make_host(max_conns=16, max_queued_bytes=most)
            guest = make_guest_of(host)
            mesh = stack.enter_context(Mesh(host, tmp_path))
            gate = mesh.gate(ping_s=3600.0)  # a slow peer is silent for long
            peer = gate.dial()
            handle = host.device.handle

            def connect(number):
                stream = peer.connect()
                asked = gate.asked(number)
                mesh.call(gate.gate.offer, asked, handle, 80, port=FIRST + number)
                conn = guest.accept(buf_alloc=MIB // 4)
                assert peer.status(stream) == "200"
                return stream, conn

            return host, peer, connect

        yield inbound


def test_bytes_for_a_guest_above_its_bound_reset_their_connection(inbound):
    host, peer, connect = inbound(2 * MIB)
    streams = [connect(number)[0] for number in (1, 2)]
    for stream in streams:
        peer.send(stream, bytes(MIB * 3 // 2))
    assert peer.until(h2.events.StreamReset).stream_id == streams[1]
    wait_for(lambda: host.events_of(EventKind.CLOSED), "closed")
    event = host.events_of(EventKind.CLOSED)[0]
    assert (event.error, event.reason) == (errno.ECONNRESET, Reason.SHORT)
    assert host.stats().queued_bytes <= 2 * MIB
    assert host.stats().limit_bytes


def given(peer):
    """How much of the session's window came back."""
    return sum(
        event.delta
        for event in peer.events
        if isinstance(event, h2.events.WindowUpdated) and event.stream_id == 0
    )


def test_a_vm_that_has_much_to_take_makes_its_tunnel_wait(inbound):
    _, peer, connect = inbound(24 * MIB)
    opened = [connect(number) for number in (1, 2, 3, 4)]
    peer.fence()
    before = given(peer)
    for stream, _ in opened:
        peer.send(stream, bytes(4 * MIB))
    peer.fence()
    peer.fence()
    got = given(peer) - before
    assert got <= 12 * MIB  # half of what may be kept
    for _, conn in opened[:2]:
        assert conn.receive_bytes(4 * MIB) == bytes(4 * MIB)
    while given(peer) - before == got:
        peer.pump()
