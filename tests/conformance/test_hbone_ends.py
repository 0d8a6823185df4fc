"""A stream that its peer resets by NO_ERROR behind its own end: nothing is lost.

RFC 9113, section 8.1: a server that has sent all and wants no more resets by NO_ERROR,
and a client must not throw away what it got. Envoy does so for a server that closes
first, and an HTTP proxy for each answer that precedes the end of its request.
"""

from __future__ import annotations

import errno
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.peers import CODES
from tests.conformance.test_hbone_gate import opened
from tests.conformance.threads import TIMEOUT_S
from vhost_user.engine import EventKind
from vhost_user.hbone import Reason
from vhost_user.vsock.packet import Op, Shutdown

NO_ERROR, CANCEL = 0x0, 0x8
DATA = bytes(range(256)) * 4096
WINDOW = 4 << 20


def say_all_and_close(peer, stream, data, code=NO_ERROR):
    peer.send(stream, data, end=True)
    peer.h2.reset_stream(stream, code)
    peer.flush()


def send_for_ever(sock):
    while True:
        sock.send(DATA)


def test_a_slow_client_gets_all_of_a_server_that_closed(mesh):
    pool = mesh.pool()
    client = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, client)
    say_all_and_close(peer, stream, DATA)
    peer.fence()  # the reset has been heard before a byte is read
    assert read_exactly(client, len(DATA)) == DATA
    assert client.recv(1) == b""
    client.close()
    assert pool.conns.wait(EventKind.CLOSED).error == 0
    peer.fence()


def test_a_slow_guest_gets_all_of_a_server_that_closed(mesh, host, guest):
    pool = mesh.pool()
    host.call(host.device.handle.route, 7000, pool.target)

    def serve():
        peer = pool.accept(settings={CODES.INITIAL_WINDOW_SIZE: WINDOW})
        stream, _ = peer.request()
        peer.answer(stream)
        say_all_and_close(peer, stream, DATA)
        peer.fence()

    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(serve)
        conn = guest.connect(7000, buf_alloc=4096)
        served.result()
    got = conn.receive_bytes(4096)
    assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.RECEIVE
    conn.say(Op.CREDIT_UPDATE)
    assert got + conn.receive_bytes(len(DATA) - len(got)) == DATA
    assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.BOTH
    conn.say(Op.RST)
    host.deliver()
    assert host.events_of(EventKind.CLOSED)[0].error == 0


def test_a_client_that_waits_for_a_window_hears_that_nothing_more_is_taken(mesh):
    pool = mesh.pool()
    client = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, client)
    client.settimeout(0)
    with pytest.raises(BlockingIOError):  # the windows are full
        send_for_ever(client)
    say_all_and_close(peer, stream, b"enough")
    client.settimeout(TIMEOUT_S)
    assert read_exactly(client, 6) == b"enough"
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        send_for_ever(client)


def test_another_code_is_a_reset_all_the_same(mesh):
    pool = mesh.pool()
    client = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, client)
    pool.conns.wait(EventKind.OPENED)
    say_all_and_close(peer, stream, b"", CANCEL)
    event = pool.conns.wait(EventKind.CLOSED)
    assert (event.error, Reason(event.reason)) == (errno.ECONNRESET, Reason.RESET)


def test_no_error_before_the_end_is_a_reset(mesh):
    pool = mesh.pool()
    client = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, client)
    pool.conns.wait(EventKind.OPENED)
    peer.h2.reset_stream(stream, NO_ERROR)
    peer.flush()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_server_gets_all_of_a_client_that_closed(mesh):
    gate = mesh.gate()
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    say_all_and_close(peer, stream, DATA)
    peer.fence()
    assert read_exactly(sock, len(DATA)) == DATA
    assert sock.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        send_for_ever(sock)
    sock.shutdown(socket.SHUT_RDWR)
    peer.fence()


def test_a_connect_that_ends_and_is_reset_before_its_answer_is_forgotten(mesh):
    gate = mesh.gate()
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    say_all_and_close(peer, stream, b"")
    assert gate.events.wait(EventKind.FAILED).error == errno.ECONNRESET
    assert gate.request(conn) is None
