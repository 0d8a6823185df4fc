r"""Host to guest: the hybrid unix socket, `CONNECT port\n` and `OK port\n`."""

from __future__ import annotations

import socket

import pytest

from vhost_user.vsock.packet import CID_HOST, Op


def line(sock):
    """Read one line and nothing behind it."""
    data = b""
    while not data.endswith(b"\n"):
        data += sock.recv(1)
    return data


def test_connects_a_host_client_to_the_guest(host, guest):
    with host.dial(5001) as sock:
        conn = guest.accept()
        assert conn.guest_port == 5001
        assert line(sock).startswith(b"OK ")
        sock.sendall(b"ping")
        assert conn.receive_bytes(4) == b"ping"
        conn.say(Op.RW, b"pong")
        assert sock.recv(4) == b"pong"


def test_the_request_comes_from_the_host_on_a_port_of_its_own(host, guest):
    with host.dial(5001), host.dial(5001):
        first, second = (guest.receive().header for _ in range(2))
    assert {first.op, second.op} == {Op.REQUEST}
    assert (first.src_cid, first.dst_port) == (CID_HOST, 5001)
    assert first.src_port != second.src_port


def test_what_follows_the_line_at_once_is_not_lost(host, guest):
    with host.dial() as sock:
        sock.sendall(b"CONNECT 5001\n" + b"early bird")
        conn = guest.accept()
        assert conn.receive_bytes(10) == b"early bird"
        assert line(sock).startswith(b"OK ")


def test_nothing_goes_to_the_guest_before_its_response(host, guest):
    with host.dial() as sock:
        sock.sendall(b"CONNECT 5001\nearly")
        request = guest.receive()
        assert request.op == Op.REQUEST
        assert guest.fence() == []


def test_the_line_may_come_byte_by_byte(host, guest):
    with host.dial() as sock:
        for byte in b"CONNECT 5001\n":
            sock.send(bytes([byte]))
        assert guest.accept().guest_port == 5001


def test_a_refusal_of_the_guest_reaches_the_client(host, guest):
    with host.dial(5001) as sock:
        header = guest.receive().header
        guest.send(guest.header(Op.RST, header.dst_port, header.src_port))
        assert line(sock) == b"ERROR the guest refused\n"
        assert sock.recv(1) == b""
    assert host.stats().conns == 0


def test_a_guest_that_does_not_answer_is_waited_for_so_long(make_host, make_guest_of):
    host = make_host(dial_timeout_s=0.1)
    make_guest_of(host)
    with host.dial(5001) as sock:
        assert line(sock) == b"ERROR the guest did not answer\n"
        assert sock.recv(1) == b""


def test_a_client_that_gives_up_frees_its_connection(host, guest):
    with host.dial(5001):
        request = guest.receive()
    conn_ports = (request.header.dst_port, request.header.src_port)
    assert guest.receive_for(*conn_ports).op == Op.RST
    guest.send(guest.header(Op.RESPONSE, *conn_ports))
    assert guest.receive_for(*conn_ports).op == Op.RST
    assert host.stats().conns == 0
    with host.dial(5002) as sock:  # others are served
        assert guest.accept().guest_port == 5002
        assert line(sock).startswith(b"OK ")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n", b"not CONNECT", id="http"),
        pytest.param(b"CONNECT\n", b"not a port", id="no-port"),
        pytest.param(b"CONNECT x\n", b"not a port", id="no-number"),
        pytest.param(b"CONNECT -1\n", b"not a port", id="negative"),
        pytest.param(b"CONNECT 4294967295\n", b"not a port", id="port-any"),
        pytest.param(b"CONNECT 1 2\n", b"not a port", id="two-numbers"),
        pytest.param(b"x" * 32, b"no newline", id="32-bytes"),
        pytest.param(b"\n", b"not CONNECT", id="empty-line"),
    ],
)
def test_a_malformed_line_is_refused_with_a_reason(host, guest, sent, reason):
    with host.dial() as sock:
        sock.sendall(sent)
        answer = line(sock)
        assert answer.startswith(b"ERROR ")
        assert reason in answer
        assert sock.recv(1) == b""
    with host.dial(5001):
        assert guest.accept()


def test_a_client_that_says_nothing_stops_nobody(host, guest):
    silent = [host.dial() for _ in range(50)]
    with host.dial(5001) as sock:
        guest.accept()
        assert line(sock).startswith(b"OK ")
    for sock in silent:
        sock.close()


def test_the_guests_end_of_stream_reaches_the_client(host, guest):
    with host.dial(5001) as sock:
        conn = guest.accept()
        line(sock)
        sock.shutdown(socket.SHUT_WR)
        conn.expect(Op.SHUTDOWN)
        conn.say(Op.RW, b"bye")
        conn.shutdown(2)
        assert sock.recv(10, socket.MSG_WAITALL) == b"bye"
