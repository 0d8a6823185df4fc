r"""Host clients that send and do not read, and what `OK port\n` says.

As Firecracker documents it, "the port assigned to the host end" of the connection is
what the answer carries: docs/vsock.md, "Host-Initiated Connections".
"""

from __future__ import annotations

import socket

import pytest

from tests.conformance.links import host_type, wait_for
from vhost_user.vsock.packet import Op, Seq, Shutdown, Type

KINDS = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())
PORT = 5001


def take_to_the_end(guest):
    """Return all payload that comes before the end, and the end's packet."""
    came = b""
    for _ in range(64):
        for packet in guest.fence():
            came += packet.payload
            if packet.op in (Op.RST, Op.SHUTDOWN):
                return came, packet
    raise AssertionError(f"{came!r} and no end")


def send_line(sock, kind, data):
    """Send the CONNECT line and bytes behind it; as two messages where there are."""
    if kind == Type.SEQPACKET:
        sock.send(b"CONNECT %d\n" % PORT)
        sock.send(data)
    else:
        sock.send(b"CONNECT %d\n" % PORT + data)


@KINDS
def test_a_client_that_writes_and_closes_at_once_is_heard(host, guest, kind):
    """As `echo done | nc -U` may do; nobody is there to read the OK line."""
    with host.dial(kind=host_type(kind)) as sock:
        send_line(sock, kind, b"last words")
        request = guest.receive()  # the line is read before the client is gone
        assert request.op == Op.REQUEST
    header = request.header
    guest.fence()
    guest.send(
        guest.header(Op.RESPONSE, header.dst_port, header.src_port, type=header.type)
    )
    came, end = take_to_the_end(guest)
    assert came == b"last words"
    assert end.op == Op.SHUTDOWN
    assert end.header.flags & Shutdown.SEND


@KINDS
def test_a_client_that_is_gone_before_it_is_seen_is_heard(host, guest, kind):
    with host.dial(kind=host_type(kind)) as sock:
        send_line(sock, kind, b"last words")
    guest.accept()
    came, end = take_to_the_end(guest)
    assert came == b"last words"
    assert end.op == Op.SHUTDOWN
    assert end.header.flags & Shutdown.SEND


@KINDS
def test_a_client_that_only_ends_its_sending_is_answered(host, guest, kind):
    with host.dial(kind=host_type(kind)) as sock:
        send_line(sock, kind, b"last words")
        sock.shutdown(socket.SHUT_WR)
        conn = guest.accept()
        came, end = take_to_the_end(guest)
        assert (came, end.header.flags) == (b"last words", Shutdown.SEND)
        assert sock.recv(32).startswith(b"OK ")
        conn.say(Op.RW, b"thanks", flags=Seq.EOM if kind == Type.SEQPACKET else 0)
        assert sock.recv(32) == b"thanks"


def test_a_client_that_is_gone_leaves_nothing_when_the_guest_refuses(host, guest):
    with host.dial() as sock:
        send_line(sock, Type.STREAM, b"x" * 1000)
        header = guest.receive().header
    assert guest.fence() == []  # it still waits for the guest's answer
    guest.send(guest.header(Op.RST, header.dst_port, header.src_port))
    wait_for(lambda: host.stats().conns == 0, "the end")


@KINDS
def test_ok_names_the_port_of_the_hosts_end(host, guest, kind):
    with host.dial(PORT, host_type(kind)) as sock:
        conn = guest.accept()
        assert sock.recv(32) == b"OK %d\n" % conn.host_port
        with host.dial(PORT, host_type(kind)) as other:
            second = guest.accept()
            assert other.recv(32) == b"OK %d\n" % second.host_port
            assert second.host_port != conn.host_port


def test_ok_is_one_line_that_starts_alike_whatever_the_port(host, guest):
    """All that clients which are known look at."""
    with host.dial(PORT) as sock:
        guest.accept()
        line = sock.recv(32)
        word, number = line.split()
        assert (word, line[-1:]) == (b"OK", b"\n")
        assert number.isdigit()
