"""TLS of tunnels: who is let in, who is believed, and what each refusal is called."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from tests.conformance.peers import GoneError
from tests.support import pki
from vhost_user.engine import Echo
from vhost_user.errors import StateError
from vhost_user.hbone import Reason, Tls

# ---- our client, Python's server ----


def test_a_tunnel_is_tls_1_3_with_alpn_h2_and_no_server_name(mesh):
    pool = mesh.pool()
    names = []
    context = mesh.context(pki.DB, server=True)
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    pool.client()
    peer = pool.accept(context=context)
    assert peer.sock.version() == "TLSv1.3"
    assert peer.sock.selected_alpn_protocol() == "h2"
    assert peer.sock.cipher()[0] in {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"}
    assert names == [None]
    shown = peer.sock.getpeercert()["subjectAltName"]
    assert shown == (("URI", pki.WEB),)
    assert not peer.sock.session_reused


def refused_by_us(mesh, leaf, *, names=(pki.DB,), crls=b"", **options):
    """Show a server's certificate to our client; return errno and reasons."""
    pool = mesh.pool(names=names, tls=mesh.tls(pki.WEB, crls=crls))
    context = pki.context(mesh.folder, leaf, mesh.ca.roots, server=True, **options)
    pool.client()
    raw = mesh.accept(pool.server)
    with pytest.raises(OSError) as alert:  # noqa: PT011, PT012
        sock = mesh.kept(context.wrap_socket(raw, server_side=True))
        sock.recv(1)
        raise OSError("no alert")
    error, reason = pool.failed()
    assert pool.events.reason() is reason
    assert pool.stats().failed == 1
    return error, reason, str(alert.value), pool


def test_a_server_of_another_identity_is_refused_by_an_alert(mesh):
    leaf = mesh.ca.issue(pki.WEB)
    error, reason, alert, pool = refused_by_us(mesh, leaf)
    assert (error, reason) == (errno.ECONNREFUSED, Reason.NAME)
    assert "certificate unknown" in alert.lower()
    assert mesh.call(pool.pool.failed_peer) == pki.WEB


BAD_SERVERS = {
    "foreign-ca": (lambda ca: pki.Ca().issue(pki.DB), Reason.CHAIN),
    "expired": (lambda ca: ca.issue(pki.DB, begin_h=-3, end_h=-1), Reason.EXPIRED),
    "not-yet": (lambda ca: ca.issue(pki.DB, begin_h=1), Reason.EXPIRED),
    "no-uri": (lambda ca: ca.issue(dns=("db.prod",)), Reason.IDENTITY),
    "two-uris": (lambda ca: ca.issue(pki.DB, pki.WEB), Reason.IDENTITY),
    "no-spiffe": (lambda ca: ca.issue("https://db.prod/"), Reason.IDENTITY),
}


@pytest.mark.parametrize(("make", "reason"), BAD_SERVERS.values(), ids=BAD_SERVERS)
def test_a_server_with_a_bad_certificate_is_refused(mesh, make, reason):
    error, found, _, _ = refused_by_us(mesh, make(mesh.ca))
    assert (error, found) == (errno.ECONNREFUSED, reason)


def test_a_server_whose_certificate_is_revoked_is_refused(mesh):
    leaf = mesh.ca.issue(pki.DB)
    crls = mesh.ca.crl(leaf.serial, next_update_h=-1)  # past it, it still counts
    assert refused_by_us(mesh, leaf, crls=crls)[1] is Reason.REVOKED


def test_a_list_of_another_ca_revokes_nothing(mesh):
    leaf = mesh.ca.issue(pki.DB)
    pool = mesh.pool(tls=mesh.tls(pki.WEB, crls=pki.Ca("other").crl(leaf.serial)))
    client = pool.client()
    context = pki.context(mesh.folder, leaf, mesh.ca.roots, server=True)
    pool.pair(pool.accept(context=context), client)


def test_a_server_without_tls_1_3_is_refused(mesh):
    leaf = mesh.ca.issue(pki.DB)
    version = ssl.TLSVersion.TLSv1_2
    _, reason, _, _ = refused_by_us(mesh, leaf, version=version)
    assert reason in {Reason.TLS, Reason.ALERT}


def test_a_server_without_alpn_is_refused(mesh):
    pool = mesh.pool()
    pool.client()
    context = mesh.context(pki.DB, server=True, alpn=())
    with pytest.raises((GoneError, OSError)):
        pool.accept(context=context).request()
    assert pool.failed() == (errno.ECONNREFUSED, Reason.ALPN)


def test_a_server_that_wants_http_1_1_is_refused(mesh):
    _, reason, _, _ = refused_by_us(mesh, mesh.ca.issue(pki.DB), alpn=("http/1.1",))
    assert reason in {Reason.ALPN, Reason.TLS}


def test_a_server_that_dislikes_our_certificate_resets_connections(mesh):
    pool = mesh.pool(tls=mesh.tls(pki.WEB, ca=pki.Ca()))
    pool.client()
    with pytest.raises(ssl.SSLError):
        pool.accept()
    error, reason = pool.failed()
    assert error == errno.ECONNRESET
    assert reason in {Reason.ALERT, Reason.CLOSED}


def test_a_port_that_nobody_listens_on_refuses_connections(mesh):
    sock = mesh.kept(socket.socket())
    sock.bind(("127.0.0.1", 0))
    pool = mesh.pool(sock.getsockname())
    pool.client()
    assert pool.failed() == (errno.ECONNREFUSED, Reason.DIAL)


def test_a_server_that_says_nothing_times_out(mesh):
    pool = mesh.pool(connect_s=0.2)
    pool.client()
    assert pool.failed() == (errno.ETIMEDOUT, Reason.TIME)


def test_a_server_that_shakes_hands_and_says_nothing_more_times_out(mesh):
    pool = mesh.pool(connect_s=1.0)
    pool.client()
    raw = mesh.accept(pool.server)
    mesh.kept(mesh.context(pki.DB, server=True).wrap_socket(raw, server_side=True))
    assert pool.failed() == (errno.ETIMEDOUT, Reason.TIME)


# ---- our server, Python's client ----


def refused_by_gate(mesh, context, **options):
    """Knock at a gate; return why it let nobody in."""
    gate = mesh.gate(**options)
    with pytest.raises(OSError):  # noqa: PT011, PT012
        sock = mesh.kept(context.wrap_socket(mesh.dial(gate.address)))
        if not sock.recv(1):
            raise OSError("end")
    reason = gate.events.reason()
    assert gate.stats().failed == 1
    assert gate.stats().shakes == 0
    return reason


def test_a_client_of_our_trust_domain_is_let_in_whoever_it_is(mesh):
    gate = mesh.gate()
    for count, uri in enumerate((pki.WEB, pki.DB), 1):
        peer = gate.dial(uri)
        stream = peer.connect()
        conn = gate.asked(count)
        assert gate.request(conn).peer == uri
        gate.answer(conn, Echo())
        assert peer.status(stream) == "200"


BAD_CLIENTS = {
    "foreign-domain": (lambda ca: ca.issue(pki.FOREIGN), Reason.NAME),
    "domain-as-a-prefix": (
        lambda ca: ca.issue("spiffe://cluster.local.evil/ns/a/sa/b"),
        Reason.NAME,
    ),
    "domain-alone": (lambda ca: ca.issue("spiffe://cluster.local"), Reason.NAME),
    "foreign-ca": (lambda ca: pki.Ca().issue(pki.WEB), Reason.CHAIN),
    "expired": (lambda ca: ca.issue(pki.WEB, begin_h=-3, end_h=-1), Reason.EXPIRED),
    "no-uri": (lambda ca: ca.issue(dns=("web.default",)), Reason.IDENTITY),
    "two-uris": (lambda ca: ca.issue(pki.DB, pki.WEB), Reason.IDENTITY),
    "none": (lambda ca: None, Reason.NOCERT),
}


@pytest.mark.parametrize(("make", "reason"), BAD_CLIENTS.values(), ids=BAD_CLIENTS)
def test_a_client_with_a_bad_certificate_is_refused(mesh, make, reason):
    leaf = make(mesh.ca)
    context = pki.context(mesh.folder, leaf, mesh.ca.roots, server=False)
    assert refused_by_gate(mesh, context) is reason


def test_a_client_whose_certificate_is_revoked_is_refused(mesh):
    leaf = mesh.ca.issue(pki.WEB)
    tls = mesh.tls(pki.DB, crls=mesh.ca.crl(leaf.serial))
    context = pki.context(mesh.folder, leaf, mesh.ca.roots, server=False)
    assert refused_by_gate(mesh, context, tls=tls) is Reason.REVOKED


def test_a_client_that_speaks_tls_1_2_is_refused(mesh):
    context = mesh.context(pki.WEB, version=ssl.TLSVersion.TLSv1_2)
    assert refused_by_gate(mesh, context) is Reason.TLS


def test_a_client_that_offers_http_1_1_alone_is_refused(mesh):
    context = mesh.context(pki.WEB, alpn=("http/1.1",))
    assert refused_by_gate(mesh, context) is Reason.ALPN


def test_a_client_that_offers_no_alpn_is_let_in(mesh):
    gate = mesh.gate()
    context = mesh.context(pki.WEB, alpn=())
    sock = mesh.kept(context.wrap_socket(mesh.dial(gate.address)))
    assert sock.recv(9)[3] == 4  # SETTINGS


def test_a_client_that_trickles_is_cut(mesh):
    gate = mesh.gate(connect_s=0.3)
    sock = mesh.dial(gate.address)
    sock.send(b"\x16\x03")
    assert gate.events.reason() is Reason.TIME
    assert not sock.recv(1)


def test_clients_above_the_handshakes_at_a_time_wait_in_the_backlog(mesh):
    gate = mesh.gate(max_shakes=2, connect_s=1.0)
    idle = [mesh.dial(gate.address) for _ in range(6)]
    peer = gate.dial()  # once those in front have timed out
    peer.fence()
    assert gate.stats().failed == 6
    assert all(sock.recv(1) == b"" for sock in idle)


def test_a_client_above_the_tunnels_at_a_time_is_closed(mesh):
    gate = mesh.gate(max_tunnels=1)
    gate.dial().fence()
    with pytest.raises((GoneError, OSError)):
        gate.dial().fence()


# ---- material ----


def test_a_rotation_makes_new_tunnels_and_leaves_old_ones(mesh):
    gate = mesh.gate()
    old = gate.dial()
    stream = old.connect()
    gate.answer(gate.asked(), Echo())
    assert old.status(stream) == "200"
    mesh.call(gate.gate.renew, mesh.tls(pki.WEB))
    new = gate.dial()
    shown = [peer.sock.getpeercert()["subjectAltName"][0][1] for peer in (old, new)]
    assert shown == [pki.DB, pki.WEB]
    old.send(stream, b"still here")
    assert old.read(stream, 10) == b"still here"


def bad_material(mesh, **changes):
    leaf = mesh.ca.issue(pki.WEB)
    good = {"chain": leaf.chain, "key": leaf.key, "roots": mesh.ca.roots}
    with pytest.raises(StateError):
        mesh.call(Tls, mesh.host.engine, **(good | changes))


def test_material_that_does_not_fit_is_an_error(mesh):
    bad_material(mesh, key=mesh.ca.issue(pki.WEB).key)
    bad_material(mesh, chain=b"nothing")
    bad_material(mesh, key=b"nothing")
    bad_material(mesh, roots=b"nothing")
