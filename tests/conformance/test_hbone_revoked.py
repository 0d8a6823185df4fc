"""Revocation lists that come while tunnels are there."""

from __future__ import annotations

import contextlib

from tests.conformance.peers import Peer
from tests.support import pki
from vhost_user.engine import EventKind
from vhost_user.hbone import Reason


def shown(mesh, leaf, *, server):
    """A context of Python's that shows a certificate."""
    return pki.context(mesh.folder, leaf, mesh.ca.roots, server=server)


def opened(mesh, leaf):
    """A pool's tunnel to a peer that shows `leaf`, with a connection."""
    pool = mesh.pool()
    client = pool.client()
    peer = pool.accept(context=shown(mesh, leaf, server=True))
    _, stream = pool.pair(peer, client)
    pool.conns.wait(EventKind.OPENED)
    return pool, client, peer, stream


def test_a_tunnel_to_a_peer_that_is_revoked_now_ends(mesh):
    leaf = mesh.ca.issue(pki.DB)
    pool, client, peer, _ = opened(mesh, leaf)
    mesh.call(pool.pool.renew, mesh.tls(pki.WEB, crls=mesh.ca.crl(leaf.serial)))
    assert peer.gone()
    assert pool.events.reason(2) is Reason.REVOKED
    with contextlib.suppress(ConnectionError):
        assert client.recv(1) == b""
    assert Reason(pool.conns.wait(EventKind.CLOSED).reason) is Reason.REVOKED


def test_tunnels_to_others_go_on(mesh):
    leaf = mesh.ca.issue(pki.DB)
    other = mesh.ca.issue(pki.DB)
    pool, client, peer, stream = opened(mesh, leaf)
    mesh.call(pool.pool.renew, mesh.tls(pki.WEB, crls=mesh.ca.crl(other.serial)))
    client.sendall(b"still here")
    assert peer.read(stream, 10) == b"still here"
    client.close()


def test_a_list_that_another_ca_signed_by_the_same_name_ends_nothing(mesh):
    """Without it the serial number alone would count."""
    leaf = mesh.ca.issue(pki.DB)
    pool, client, peer, stream = opened(mesh, leaf)
    false = pki.Ca(mesh.ca.name).crl(leaf.serial)
    mesh.call(pool.pool.renew, mesh.tls(pki.WEB, crls=false))
    client.sendall(b"still here")
    assert peer.read(stream, 10) == b"still here"
    client.close()


def test_a_tunnel_of_a_client_that_is_revoked_now_ends(mesh):
    leaf = mesh.ca.issue(pki.WEB)
    gate = mesh.gate()
    context = shown(mesh, leaf, server=False)
    sock = mesh.kept(context.wrap_socket(mesh.dial(gate.address)))
    revoked, other = Peer(sock, client=True), gate.dial()
    revoked.connect()
    gate.asked()
    mesh.call(gate.gate.renew, mesh.tls(pki.DB, crls=mesh.ca.crl(leaf.serial)))
    assert revoked.gone()
    gate.events.wait(EventKind.FAILED)
    assert gate.events.reason(3) is Reason.REVOKED
    other.fence()


def test_lists_that_come_in_the_middle_of_a_handshake_count(mesh):
    leaf = mesh.ca.issue(pki.DB)
    pool = mesh.pool()
    pool.client()
    raw = mesh.accept(pool.server)
    raw.recv(1, 2)  # MSG_PEEK: its handshake has begun
    mesh.call(pool.pool.renew, mesh.tls(pki.WEB, crls=mesh.ca.crl(leaf.serial)))
    context = shown(mesh, leaf, server=True)
    with contextlib.suppress(OSError):
        peer = mesh.kept(context.wrap_socket(raw, server_side=True))
        assert Peer(peer, client=False).gone()
    assert pool.failed()[1] is Reason.REVOKED
