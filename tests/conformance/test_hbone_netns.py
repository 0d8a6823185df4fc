"""Tunnels that are made in another network namespace, by a maker of sockets by hand.

All sockets are of our own namespace: the maker binds them to 127.0.0.9, which shows
whose they are. Its messages are vhost_user/native/vu_netns.h's.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from tests.conformance.links import wait_for
from tests.conformance.threads import TIMEOUT_S
from vhost_user.engine import Dial, EventKind
from vhost_user.errors import StateError
from vhost_user.hbone import Reason

OURS = ip_address("127.0.0.9")
STOCK = 32
UNREACHABLE = (errno.ENETUNREACH, Reason.DIAL)


class Maker:
    """The process in the namespace, and the engine's handle of that."""

    def __init__(self, mesh):
        self._mesh = mesh
        sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = mesh.kept(sock)
        self._sock.settimeout(TIMEOUT_S)
        self.handle = mesh.call(mesh.host.engine.add_netns, theirs, (OURS,))

    def asked(self):
        """Wait for a message; return what, IP version, count and address."""
        what, version, count, _, ip = struct.unpack("=BBHI16s", self._sock.recv(100))
        return what, version, count, ip

    def answer(self, count=STOCK, error=0):
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket()) for _ in range(count)]
            for sock in socks:
                sock.setblocking(False)
                sock.bind((str(OURS), 0))
            head = struct.pack("=iBBH", error, 1, 4, count)
            socket.send_fds(self._sock, [head], [sock.fileno() for sock in socks])

    def close_namespace(self):
        self._mesh.call(self.handle.close)


@pytest.fixture
def maker(mesh):
    return Maker(mesh)


@pytest.fixture
def pool(mesh, maker):
    return mesh.pool(netns=maker.handle.id)


def test_a_tunnel_comes_from_the_pods_ip(pool, maker):
    sock = pool.client()
    assert maker.asked() == (1, 4, STOCK, OURS.packed + bytes(12))
    maker.answer()
    peer = pool.accept()
    assert peer.sock.getpeername()[0] == str(OURS)
    _, stream = pool.pair(peer, sock)
    peer.send(stream, b"x")
    assert sock.recv(1) == b"x"


def test_the_next_tunnel_takes_a_socket_that_is_there(mesh, maker):
    pool = mesh.pool(netns=maker.handle.id, max_streams=1)
    first_sock = pool.client()
    maker.asked()
    maker.answer()
    pool.pair(pool.accept(), first_sock)
    second_sock = pool.client()
    peer = pool.accept()
    assert peer.sock.getpeername()[0] == str(OURS)
    pool.pair(peer, second_sock)
    pool.conns.wait(EventKind.OPENED, 2)


def test_a_dial_and_a_tunnel_share_the_stock(pool, maker, mesh, host):
    server = mesh.kept(socket.create_server(("127.0.0.1", 0)))
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    target = Dial(server.getsockname(), maker.handle.id)
    mesh.call(host.engine.add_listener, listener, target, on_event=lambda _event: None)
    mesh.dial(address)
    maker.asked()
    pool.client()
    wait_for(lambda: pool.stats().tunnels == 1, "tunnel")
    maker.answer()
    assert mesh.accept(server).getpeername()[0] == str(OURS)
    assert pool.accept().sock.getpeername()[0] == str(OURS)


def test_a_namespace_that_goes_fails_tunnels_that_wait_for_a_socket(pool, maker):
    pool.client()
    maker.asked()
    maker.close_namespace()
    assert pool.failed() == UNREACHABLE
    assert pool.stats().tunnels == 0


def test_a_namespace_that_goes_fails_tunnels_that_are_dialled(mesh, maker):
    silent = mesh.kept(socket.socket())
    silent.bind(("127.0.0.1", 0))
    silent.listen(0)
    pending = [mesh.kept(socket.socket()) for _ in range(3)]
    for sock in pending:  # its backlog is full: it answers no SYN
        sock.setblocking(False)
        sock.connect_ex(silent.getsockname())
    pool = mesh.pool(silent.getsockname(), netns=maker.handle.id)
    pool.client()
    maker.asked()
    maker.answer()
    client = pool.client()  # a turn later: the first one's socket was taken
    wait_for(lambda: pool.stats().tunnels == 1, "tunnel")
    maker.close_namespace()
    assert pool.failed() == UNREACHABLE
    assert pool.failed(2) == UNREACHABLE
    client.close()


def test_a_namespace_that_is_gone_fails_tunnels(pool, maker):
    maker.close_namespace()
    pool.client()
    assert pool.failed() == UNREACHABLE
    assert pool.events.reason() is Reason.DIAL


def test_a_tunnel_that_is_there_outlives_its_namespace(pool, maker):
    sock = pool.client()
    maker.asked()
    maker.answer()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    maker.close_namespace()
    peer.send(stream, b"x")
    assert sock.recv(1) == b"x"
    pool.pair(peer)


def test_an_ip_version_without_an_address_is_unreachable(mesh, maker):
    pool = mesh.pool(("::1", 9), netns=maker.handle.id)
    pool.client()
    assert pool.failed() == UNREACHABLE


def test_a_tunnel_fails_with_what_the_maker_says(pool, maker):
    pool.client()
    maker.asked()
    maker.answer(0, errno.EADDRNOTAVAIL)
    assert pool.failed() == (errno.EADDRNOTAVAIL, Reason.DIAL)


def test_a_maker_that_says_nothing_is_waited_for_as_long_as_a_tunnel_may_take(
    mesh, maker
):
    pool = mesh.pool(netns=maker.handle.id, connect_s=0.2)
    pool.client()
    assert pool.failed() == (errno.ETIMEDOUT, Reason.TIME)


def test_a_pool_in_a_namespace_has_no_source_of_its_own(mesh, maker):
    with pytest.raises(StateError):
        mesh.pool(netns=maker.handle.id, source=("127.0.0.1", 0))


def test_a_pool_that_closes_leaves_no_one_waiting(pool, maker, mesh):
    pool.client()
    maker.asked()
    mesh.call(pool.pool.close)
    assert pool.failed()[1] is Reason.DRAINED
    maker.answer()
    maker.close_namespace()
