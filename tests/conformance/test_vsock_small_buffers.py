"""RX buffers that hold a header and nothing more, or little more.

Spec: VIRTIO 1.2 section 5.10.6.4: packets are sent in buffers that the driver sizes.
"""

from __future__ import annotations

import pytest

from tests.conformance import links
from tests.conformance.links import WAYS, say
from vhost_user.vsock.packet import HDR_SIZE, Op, Type

ECHO, CHARGEN = 7, 19

KINDS = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())


def empty(packets):
    return [p for p in packets if p.op == Op.RW and not p.header.len]


def watch(guest, turns=20):
    """Refill the ring for some turns; return the packets that came."""
    return [packet for _ in range(turns) for packet in guest.fence()]


@pytest.fixture
def bare(make_guest):
    return make_guest(rx_layout=(HDR_SIZE,), rx_buffers=16)


@KINDS
def test_buffers_without_room_for_payload_get_no_endless_empty_packets(bare, kind):
    """They still bring all that has no payload."""
    conn = bare.connect(CHARGEN, kind=kind)
    assert len(empty(watch(bare))) <= 16  # those that were there when it began
    conn.say(Op.CREDIT_REQUEST)
    assert conn.expect(Op.CREDIT_UPDATE)


@KINDS
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.id)
def test_bytes_of_the_host_make_no_empty_packets_either(host, bare, kind, way):
    if kind == Type.SEQPACKET and not way.seqpacket:
        kind = Type.STREAM
    conn, sock = links.connect(host, bare, way, kind=kind)
    with sock:
        sock.send(b"x" * 1000)
        assert len(empty(watch(bare))) <= 16
        assert conn.credit


def test_an_echo_that_does_not_fit_makes_no_empty_packets(bare):
    conn = bare.connect(ECHO)
    say(conn, b"x" * 1000)
    assert len(empty(watch(bare))) <= 16


@KINDS
def test_larger_buffers_behind_bring_what_waited(host, bare, kind):
    """A driver may mix sizes: the device goes on with what has room."""
    conn, sock = links.connect(host, bare, WAYS[0], kind=kind)
    with sock:
        sock.send(b"x" * 1000)
        watch(bare)
        bare._rx_layout = (4096,)
        bare.post_rx(32)
        packets = watch(bare)
        assert b"".join(packet.payload for packet in packets) == b"x" * 1000
        assert len(empty(packets)) <= 32
        assert conn.credit


@pytest.mark.parametrize("room", [1, 2, 100])
@KINDS
def test_buffers_with_little_room_bring_everything(host, make_guest, room, kind):
    guest = make_guest(rx_layout=(HDR_SIZE + room,), rx_buffers=64)
    conn, sock = links.connect(host, guest, WAYS[0], kind=kind)
    with sock:
        sock.send(b"0123456789" * 20)
        came = b""
        while len(came) < 200:
            came += conn.receive().payload
        assert came == b"0123456789" * 20
