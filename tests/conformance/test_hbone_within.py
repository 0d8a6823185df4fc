"""HBONE within HBONE: a stream of a gateway's tunnel carries a tunnel of its own.

The gateway and who is behind it are python-h2 and `ssl`, or Envoy is the gateway.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import h2.events
import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.links import wait_for
from tests.conformance.peers import GoneError, Inside, Peer
from tests.conformance.threads import TIMEOUT_S
from tests.support import envoy, pki
from vhost_user import hbone
from vhost_user.engine import Dial, EventKind
from vhost_user.errors import StateError
from vhost_user.hbone import Pool, Reason

GATEWAY = "spiffe://cluster.local/ns/istio-system/sa/eastwest"
NAME = "db.prod.svc.cluster.local:5432"
BULK = 2 << 20


class Way:
    """A pool to a gateway, and one whose tunnels it carries."""

    def __init__(self, mesh, gateway=None, **options):
        self.mesh = mesh
        self.outer = mesh.pool(gateway, names=(GATEWAY,), authority=NAME)
        self.inner = mesh.pool(self.outer.target, authority=NAME, **options)
        self.client = self.inner.client

    def gateway(self, **options):
        """Take the outer tunnel."""
        return self.outer.accept(GATEWAY, **options)

    def inside(self, gateway, *uris, context=None):
        """Take a stream of it, and the tunnel in that."""
        stream, headers = gateway.request()
        gateway.answer(stream)
        made = context or self.mesh.context(*(uris or (pki.DB,)), server=True)
        return Peer(Inside(gateway, stream, made), client=False), headers

    def connected(self):
        """Make a connection; return its client, and the other end's peer and stream."""
        sock = self.client()
        peer, _ = self.inside(self.gateway())
        return sock, peer, self.inner.pair(peer, sock)[1]


@pytest.fixture
def way(mesh):
    return Way(mesh)


def test_the_gateway_and_who_is_behind_it_hear_the_services_name(mesh):
    way = Way(mesh, network="east")
    port = way.client().getsockname()[1]
    peer, outside = way.inside(way.gateway())
    _, inside = peer.request()
    assert "x-forwarded-network" not in outside
    assert inside["x-forwarded-network"] == "east"
    for headers in (outside, inside):
        assert headers[":authority"] == NAME
        assert headers["forwarded"] == f'for="10.0.0.1:{port}";host=db'
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", headers["traceparent"])


def test_bytes_and_ends_go_both_ways(way):
    sock, peer, stream = way.connected()
    sock.sendall(b"up")
    assert peer.read(stream, 2) == b"up"
    sock.shutdown(socket.SHUT_WR)
    peer.ended(stream)
    peer.send(stream, b"down", end=True)
    assert read_exactly(sock, 4) == b"down"
    assert sock.recv(1) == b""
    assert way.inner.conns.wait(EventKind.CLOSED).error == 0


def test_each_connection_has_a_tunnel_of_its_own(way):
    """Behind the gateway there are many: one tunnel would lead to one of them."""
    socks = [way.client() for _ in range(3)]
    gateway = way.gateway()
    peers = [way.inside(gateway)[0] for _ in socks]
    for peer in peers:
        stream, _ = peer.request()
        peer.answer(stream)
        peer.send(stream, b"x")
    for sock in socks:
        assert read_exactly(sock, 1) == b"x"
    assert way.outer.stats().tunnels == 1
    assert way.outer.stats().streams == 3
    assert way.inner.stats().tunnels == 3


def test_what_is_said_behind_a_gateway_outlives_its_connection(way):
    """The same words have one number; of ever new ones the last 64 are kept."""
    gateway = None
    said = ["same", "same", "", *(f"k8s.pod.name={number}" for number in range(63))]
    said += ["b" * 8192, "last"]  # of those the first has no room
    for baggage in said:
        sock = way.client()
        gateway = gateway or way.gateway()
        peer, _ = way.inside(gateway)
        stream, _ = peer.request()
        peer.answer(stream, 200, *([("baggage", baggage)] if baggage else []))
        peer.send(stream, b"x")
        assert read_exactly(sock, 1) == b"x"
        sock.close()
        peer.close()
    way.inner.conns.wait(EventKind.CLOSED, len(said))
    numbers = [event.answer for event in way.inner.conns.of(EventKind.OPENED)]
    assert numbers == [1, 1, *range(2, 66), 0, 66]
    assert not any(it.answer for it in way.inner.conns.of(EventKind.CLOSED))
    engine = way.mesh.host.engine
    kept = [way.mesh.call(hbone.answer, engine, number) for number in range(67)]
    assert kept[:3] == [None] * 3
    assert kept[3:] == [hbone.Answer(pki.DB, text) for text in (*said[3:66], "last")]
    assert not any(it.answer for it in way.outer.conns.of(EventKind.OPENED))


def test_a_tunnel_ends_with_its_connection(way):
    sock, peer, stream = way.connected()
    sock.close()
    peer.ended(stream)
    peer.send(stream, b"", end=True)
    assert peer.until(h2.events.ConnectionTerminated).error_code == 0
    assert peer.gone()
    assert way.inner.events.reason(2) is Reason.DRAINED
    peer.close()
    wait_for(lambda: not way.outer.stats().streams, "the end of the outer stream")
    assert way.outer.stats().tunnels == 1


def test_a_program_that_sends_and_closes_loses_nothing(way):
    """Though the gateway takes its time, and the tunnel is over by then."""
    sock = way.client()
    gateway = way.gateway(window=0)
    peer, _ = way.inside(gateway)
    _, stream = way.inner.pair(peer, sock)
    data = os.urandom(BULK)
    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(lambda: (sock.sendall(data), sock.close()))
        assert peer.read(stream, len(data)) == data
        peer.ended(stream)
        sent.result(TIMEOUT_S)


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (401, errno.EACCES, Reason.UNAUTHORIZED),
        (503, errno.ECONNREFUSED, Reason.UNAVAILABLE),
    ],
)
def test_what_the_gateway_refuses_fails_so(way, status, error, reason):
    way.client()
    gateway = way.gateway()
    gateway.answer(gateway.request()[0], status)
    assert way.inner.failed() == (error, reason)
    assert way.inner.events.reason() is reason
    assert way.outer.stats().tunnels == 1


def test_a_gateway_with_another_name_gets_nothing(way):
    way.client()
    with contextlib.suppress(ssl.SSLError, ConnectionError, GoneError):
        way.outer.accept(pki.DB).request()
    assert way.inner.failed() == (errno.ECONNREFUSED, Reason.NAME)


def test_who_has_another_name_than_the_service_gets_nothing(way):
    way.client()
    gateway = way.gateway()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        way.inside(gateway, GATEWAY)[0].request()
    assert way.inner.failed() == (errno.ECONNREFUSED, Reason.NAME)
    assert way.inner.events.reason() is Reason.NAME
    assert way.mesh.call(way.inner.pool.failed_peer) == GATEWAY


@pytest.mark.parametrize(
    ("status", "error"), [(401, errno.EACCES), (503, errno.ECONNREFUSED)]
)
def test_what_the_one_behind_it_refuses_fails_so(way, status, error):
    way.client()
    peer, _ = way.inside(way.gateway())
    peer.answer(peer.request()[0], status)
    assert way.inner.failed()[0] == error


def test_a_gateway_that_ends_ends_what_goes_by_it(way):
    sock, peer, stream = way.connected()
    peer.send(stream, b"x")
    assert read_exactly(sock, 1) == b"x"
    peer.sock._outer.close()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    assert way.inner.conns.wait(EventKind.CLOSED).error == errno.ECONNRESET


@pytest.mark.parametrize("early", [False, True], ids=["open", "in the handshake"])
def test_a_stream_that_the_gateway_resets_ends_what_it_carries(way, early):
    sock = way.client()
    gateway = way.gateway()
    if early:
        stream, _ = gateway.request()
        gateway.answer(stream)
    else:
        way.inner.pair(way.inside(gateway)[0], sock)
        way.inner.conns.wait(EventKind.OPENED)
        stream = 1
    gateway.h2.reset_stream(stream, 0x8)
    gateway.flush()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    kind = EventKind.FAILED if early else EventKind.CLOSED
    assert way.inner.conns.wait(kind).error == errno.ECONNRESET
    assert way.outer.stats().tunnels == 1


def test_a_stream_that_ends_in_the_handshake_is_a_refusal(way):
    way.client()
    gateway = way.gateway()
    stream, _ = gateway.request()
    gateway.answer(stream)
    gateway.send(stream, b"", end=True)
    assert way.inner.failed() == (errno.ECONNRESET, Reason.CLOSED)


def test_nonsense_in_the_stream_is_a_refusal(way):
    way.client()
    gateway = way.gateway()
    stream, _ = gateway.request()
    gateway.answer(stream)
    gateway.send(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert way.inner.failed()[1] is Reason.TLS


def test_a_gateway_that_is_silent_is_not_waited_for_for_ever(mesh):
    way = Way(mesh, connect_s=1.0)
    way.client()
    gateway = way.gateway()
    stream, _ = gateway.request()
    gateway.answer(stream)
    assert way.inner.failed() == (errno.ETIMEDOUT, Reason.TIME)
    gateway.ended(stream)


def test_a_pool_that_is_gone_carries_no_more(mesh, way):
    mesh.call(way.outer.pool.close)
    way.client()
    assert way.inner.failed()[0] == errno.ECONNREFUSED


def test_a_pool_goes_to_an_address_or_by_another_pool(mesh, way):
    with pytest.raises(StateError):
        mesh.call(
            Pool,
            mesh.host.engine,
            mesh.tls(pki.WEB),
            way.outer.target,
            (pki.DB,),
            on_event=print,
            source=("127.0.0.1", 0),
        )


def test_envoy_is_a_gateway(mesh, tmp_path):
    """And python-h2 is behind it, by TCP: it sees HBONE as any other."""
    there = mesh.kept(socket.create_server(("127.0.0.1", 0)))
    there.settimeout(TIMEOUT_S)
    leaf = mesh.ca.issue(GATEWAY)
    transport = envoy.tls(leaf, mesh.ca.roots, pki.WEB, server=True)
    cluster = envoy.static("there", there.getsockname())
    resources = envoy.terminating(tmp_path, transport, cluster)
    with envoy.running(tmp_path, resources) as gateway:
        way = Way(mesh, gateway.address)
        sock = way.client()
        context = mesh.context(pki.DB, server=True)
        raw = context.wrap_socket(mesh.accept(there), server_side=True)
        peer = Peer(mesh.kept(raw), client=False)
        _, stream = way.inner.pair(peer, sock)
        up, down = os.urandom(BULK), os.urandom(BULK)
        with ThreadPoolExecutor(2) as threads:
            threads.submit(lambda: (sock.sendall(up), sock.shutdown(socket.SHUT_WR)))
            heard = threads.submit(read_exactly, sock, len(down))
            assert peer.read(stream, len(up)) == up
            peer.ended(stream)
            peer.send(stream, down, end=True)
            assert heard.result(TIMEOUT_S) == down
        assert sock.recv(1) == b""
        sock.close()
        assert peer.gone()
        assert way.inner.conns.wait(EventKind.CLOSED).error == 0
    (line,) = [it for it in gateway.lines() if it.get("authority") == NAME]
    assert line["peer"] == pki.WEB


def test_a_gate_of_ours_is_behind_a_gate_of_ours(mesh):
    """The first as the gateway, which dials; the second takes plain HBONE."""
    outer = mesh.gate(tls=mesh.tls(GATEWAY))
    inner = mesh.gate()
    way = Way(mesh, outer.address)
    socks = [way.client() for _ in range(4)]
    for count in range(1, 5):
        outer.answer(outer.asked(count), Dial(inner.address))
    assert outer.request(outer.asked(1)).authority == NAME
    data = os.urandom(BULK)
    ends = [inner.socket(inner.asked(count)) for count in range(1, 5)]
    with ThreadPoolExecutor(8) as threads:
        for sock in socks:
            threads.submit(lambda it: (it.sendall(data), it.close()), sock)
        for found in threads.map(digest, ends):
            assert found == hashlib.sha256(data).hexdigest()


def digest(sock):
    found = hashlib.sha256()
    while data := sock.recv(1 << 16):
        found.update(data)
    return found.hexdigest()
