"""Which tunnel a connection gets, when another one is made, and when one ends."""

from __future__ import annotations

import errno

import h2.events
import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.links import wait_for
from tests.conformance.peers import CODES
from tests.support import pki
from vhost_user.engine import Echo, EventKind
from vhost_user.errors import StateError
from vhost_user.hbone import Pool, Reason

MANY = {CODES.MAX_CONCURRENT_STREAMS: 1000}


def works(sock, peer, stream):
    peer.send(stream, b"x")
    assert read_exactly(sock, 1) == b"x"


def test_connections_share_a_tunnel(mesh):
    pool = mesh.pool()
    socks = [pool.client() for _ in range(5)]
    peer = pool.accept()
    streams = [peer.request()[0] for _ in socks]
    assert streams == [1, 3, 5, 7, 9]
    assert pool.stats().tunnels == 1


def test_the_101st_stream_has_a_tunnel_of_its_own(mesh):
    pool = mesh.pool()
    [pool.client() for _ in range(100)]
    first = pool.accept(settings=MANY)
    for _ in range(100):
        first.answer(first.request()[0])
    pool.conns.wait(EventKind.OPENED, 100)
    sock = pool.client()
    second = pool.accept(settings=MANY)
    _, stream = pool.pair(second, sock)
    works(sock, second, stream)
    assert pool.stats().tunnels == 2


def test_a_burst_makes_as_many_tunnels_as_it_needs(mesh):
    pool = mesh.pool(max_streams=2)
    [pool.client() for _ in range(5)]
    peers = [pool.accept() for _ in range(3)]
    for peer in peers[:2]:
        for _ in range(2):
            peer.answer(peer.request()[0])
    peers[2].answer(peers[2].request()[0])
    pool.conns.wait(EventKind.OPENED, 5)


def test_a_peers_limit_of_one_makes_a_tunnel_each(mesh):
    pool = mesh.pool()
    limit = {CODES.MAX_CONCURRENT_STREAMS: 1}
    first_sock = pool.client()
    first = pool.accept(settings=limit)
    pool.pair(first, first_sock)
    first.fence()
    second_sock = pool.client()
    second = pool.accept(settings=limit)
    _, stream = pool.pair(second, second_sock)
    works(second_sock, second, stream)


def test_a_stream_that_ended_makes_room(mesh):
    pool = mesh.pool(max_streams=1, max_tunnels=1)
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    other = pool.client()
    sock.close()
    peer.ended(stream)
    peer.send(stream, b"", end=True)
    _, stream = pool.pair(peer, other)
    works(other, peer, stream)
    assert pool.stats().opened == 1


@pytest.mark.spec("rfc9113:6.8/no-more")
def test_goaway_leaves_streams_and_takes_no_new_ones(mesh):
    pool = mesh.pool()
    old_sock = pool.client()
    old = pool.accept()
    _, old_stream = pool.pair(old, old_sock)
    pool.conns.wait(EventKind.OPENED)
    old.raw(0x7, 0, 0, old_stream.to_bytes(4, "big") + bytes(4))
    old.raw(0x6, 0, 0, bytes(8))
    old.until(h2.events.PingAckReceived)
    new_sock = pool.client()
    new = pool.accept()
    _, new_stream = pool.pair(new, new_sock)
    works(new_sock, new, new_stream)
    works(old_sock, old, old_stream)
    old.send(old_stream, b"", end=True)
    old_sock.close()
    old.ended(old_stream)
    assert old.gone()
    assert pool.events.reason(3) is Reason.GOAWAY


def test_a_stream_that_goaway_leaves_out_is_tried_elsewhere(mesh):
    pool = mesh.pool()
    sock = pool.client()
    old = pool.accept()
    old.request()
    old.raw(0x7, 0, 0, bytes(8))  # last stream 0: it wasn't looked at
    new = pool.accept()
    _, stream = pool.pair(new, sock)
    works(sock, new, stream)


def test_a_tunnel_that_nobody_uses_ends(mesh):
    pool = mesh.pool(idle_s=0.2)
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    works(sock, peer, stream)
    sock.close()
    peer.send(stream, b"", end=True)
    event = peer.until(h2.events.ConnectionTerminated)
    assert event.error_code == 0
    assert peer.gone()
    assert pool.events.reason(2) is Reason.IDLE
    again = pool.client()
    pool.pair(pool.accept(), again)


def test_a_tunnel_with_a_stream_is_not_idle(mesh):
    pool = mesh.pool(idle_s=0.2, ping_s=0.1)
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    for _ in range(5):  # half a second
        peer.until(h2.events.PingReceived)
    works(sock, peer, stream)


def test_a_peer_that_answers_no_ping_loses_the_tunnel(mesh):
    pool = mesh.pool(ping_s=0.1, silence_s=1.0)
    sock = pool.client()
    peer = pool.accept()
    pool.pair(peer, sock)
    assert pool.events.reason(2) is Reason.PING
    assert pool.conns.wait(EventKind.CLOSED).error == errno.ETIMEDOUT
    assert pool.stats().silent == 1


def test_an_unused_pool_has_no_tunnel_and_costs_no_dial(mesh):
    pool = mesh.pool()
    assert pool.stats().tunnels == 0


def test_those_that_wait_fail_with_their_tunnel(mesh):
    pool = mesh.pool()
    [pool.client() for _ in range(3)]
    mesh.accept(pool.server).close()
    for count in range(3):
        error, reason = pool.failed(count + 1)
        assert error == errno.ECONNRESET
        assert reason is Reason.CLOSED


def test_the_next_connection_after_a_failure_dials_again(mesh):
    pool = mesh.pool()
    pool.client()
    mesh.accept(pool.server).close()
    pool.failed()
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    works(sock, peer, stream)


def test_a_client_that_leaves_while_it_waits_is_forgotten(mesh):
    pool = mesh.pool(max_streams=1, max_tunnels=1)
    sock = pool.client()
    peer = pool.accept()
    pool.pair(peer, sock)
    first = pool.conns.wait(EventKind.OPENED).conn
    pool.client()
    host = mesh.host
    wait_for(lambda: host.engine_stats().conns == 2, "two connections")
    assert host.call(host.engine.reset, first + 1)  # the next slot of the table
    assert pool.failed()[0] == errno.ECONNRESET


def test_a_closed_pool_serves_its_streams_to_the_end(mesh):
    pool = mesh.pool()
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    pool.conns.wait(EventKind.OPENED)
    mesh.call(pool.pool.close)
    works(sock, peer, stream)
    pool.client()
    assert pool.failed()[0] == errno.ECONNREFUSED
    assert pool.pool.id in mesh.host.engine._handlers
    sock.close()
    peer.ended(stream)
    peer.send(stream, b"", end=True)
    assert peer.gone()
    wait_for(lambda: _forgotten(mesh, pool), "the pool's last event")


def _forgotten(mesh, pool):
    mesh.host.deliver()
    return pool.pool.id not in mesh.host.engine._handlers


def test_a_drained_pool_dials_anew(mesh):
    pool = mesh.pool()
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    pool.conns.wait(EventKind.OPENED)
    mesh.call(pool.pool.drain, 60.0)
    works(sock, peer, stream)
    other = pool.client()
    new = pool.accept()
    _, stream = pool.pair(new, other)
    works(other, new, stream)


def test_a_rotation_is_for_new_tunnels(mesh):
    pool = mesh.pool(max_streams=1)
    socks, peers = [], []
    for uri in (pki.WEB, pki.DB):
        socks.append(pool.client())
        peers.append(pool.accept())
        pool.pair(peers[-1], socks[-1])
        shown = peers[-1].sock.getpeercert()["subjectAltName"][0][1]
        assert shown == uri
        mesh.call(pool.pool.renew, mesh.tls(pki.DB))


def test_one_of_several_names_is_enough(mesh):
    pool = mesh.pool(names=(pki.WEB, pki.DB))
    sock = pool.client()
    _, stream = pool.pair(peer := pool.accept(), sock)
    works(sock, peer, stream)


@pytest.mark.parametrize(
    "change", [{"max_streams": 0}, {"idle_s": 0.0}, {"ping_s": 0.0}, {"names": ()}]
)
def test_a_pool_of_nothing_is_an_error(mesh, change):
    options = {"names": (pki.DB,)} | change
    names = options.pop("names")
    with pytest.raises(StateError):
        mesh.call(
            Pool,
            mesh.host.engine,
            mesh.tls(pki.WEB),
            ("127.0.0.1", 15008),
            names,
            on_event=print,
            **options,
        )


def test_five_hundred_connections_go_through_one_pool(mesh):
    """Pool and gate of one engine: both ends are ours."""
    gate = mesh.gate()
    pool = mesh.pool(gate.address)
    host = mesh.host

    def answer(event):
        if event.kind is EventKind.REQUEST:
            host.engine.answer(event.conn, Echo())

    host.call(host.engine.hear, gate.gate.id, answer)
    for _ in range(5):
        socks = [pool.client() for _ in range(100)]
        for index, sock in enumerate(socks):
            sock.sendall(b"%03d" % index)
        for index, sock in enumerate(socks):
            assert read_exactly(sock, 3) == b"%03d" % index
            sock.close()
    assert pool.stats().failed == 0
    assert pool.stats().requests == 500
    assert pool.conns.of(EventKind.FAILED) == []
