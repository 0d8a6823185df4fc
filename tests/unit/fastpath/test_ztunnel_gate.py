"""HBONE into a sandbox: what a CONNECT is answered, whom the program sees, the log."""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import ip_address

import h2.events
import pytest

from fastpath import proxy_protocol
from fastpath.errors import FastpathError
from fastpath.ztunnel.process import Ztunnel
from tests.support import pki
from tests.support.limits import wait_until
from tests.unit.fastpath.gate_world import (
    CLIENT,
    HBONE,
    PEER,
    POD,
    WEB,
    WORKLOADS,
    World,
    asks,
    fields,
    policy,
)
from vhost_user.vsock.packet import Op, Shutdown

DATA = bytes(range(256)) * 1024
HERE = f"{POD}:8080"
PROXIED = "applicationTunnel: {protocol: PROXY, port: 8080}"
TUNNEL = WORKLOADS.replace("protocol: HBONE", f"protocol: HBONE, {PROXIED}")
STRANGER = "spiffe://cluster.local/ns/other/sa/stranger"


def finish(conn):
    """Have a program end a connection whose client sends no more."""
    conn.expect(Op.SHUTDOWN)
    conn.shutdown(Shutdown.BOTH)


def served(world, guest, peer, *, first=True, **headers):
    """Make a connection; return its stream and the guest's end."""
    stream = peer.connect(asks(HERE, **headers))
    conn = guest.accept(first=first)
    assert peer.status(stream) == "200"
    return stream, conn


def test_a_peer_reaches_a_program(tmp_path):
    world = World(tmp_path)

    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        said = asks(HERE, forwarded=f'for="{PEER}:4711";host=web.default')
        stream = peer.connect(said)
        conn = guest.accept()
        assert guest.peer(conn) == (PEER, 4711)
        answer = peer.until(h2.events.ResponseReceived)
        assert dict(answer.headers) == {
            ":status": "200",
            "baggage": "k8s.cluster.name=c1,k8s.namespace.name=default,"
            "k8s.deployment.name=web-v1,service.name=web",
        }
        peer.send(stream, DATA, end=True)
        assert conn.receive_bytes(len(DATA)) == DATA
        conn.send(b"back")
        assert peer.read(stream, 4) == b"back"
        finish(conn)
        peer.ended(stream)

    (line,) = world.run(play)
    assert fields(line) | {"duration": "", "src.addr": ""} == {
        "level": "info",
        "message": "connection complete",
        "src.addr": "",
        "src.workload": "client-1",
        "src.namespace": "default",
        "src.identity": CLIENT,
        "src.cluster": "Kubernetes",
        "dst.addr": f"{POD}:15008",
        "dst.hbone_addr": HERE,
        "dst.service": "web.default",
        "dst.workload": "web",
        "dst.namespace": "default",
        "dst.identity": WEB,
        "dst.cluster": "c1",
        "direction": "inbound",
        "bytes_sent": f"{len(DATA)}",
        "bytes_recv": "4",
        "duration": "",
    }


def test_metrics_have_the_peers_principal(tmp_path):
    world = World(tmp_path)

    def play(world):
        guest = world.guest()
        peer = world.tunnel(STRANGER)
        stream, conn = served(world, guest, peer)
        peer.send(stream, b"12345", end=True)
        conn.receive_bytes(5)
        finish(conn)
        peer.ended(stream)
        labels = {
            "reporter": "destination",
            "source_principal": STRANGER,
            "destination_principal": WEB,
            "destination_service": "web.default",
            "connection_security_policy": "mutual_tls",
            "response_flags": "-",
        }
        world.deliver()
        for name, value in {
            "connections_opened": 1,
            "connections_closed": 1,
            "received_bytes": 5,
        }.items():
            assert world.sample(f"istio_tcp_{name}_total", **labels) == value
        assert world.sample("fastpath_gate_requests_total", sandbox="box") == 1
        assert world.sample("fastpath_gate_tunnels", sandbox="box") == 1

    world.run(play)


FORWARDED = {
    "none": ("", None),
    "its-port": (f'for="{PEER}:4711"', 4711),
    "another-ip": ('for="10.9.9.9:4711"', None),
    "no-address": ("for=unknown", None),
    "port-0": (f'for="{PEER}:0"', None),
    "port-70000": (f'for="{PEER}:70000"', None),
}


@pytest.mark.parametrize(("header", "port"), FORWARDED.values(), ids=FORWARDED)
def test_forwarded_is_believed_in_the_port_of_who_it_is(tmp_path, header, port):
    """The IP is the tunnel's, and the identity the certificate's."""

    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        says = {"forwarded": header} if header else {}
        _, conn = served(world, guest, peer, **says)
        own = peer.sock.getsockname()
        assert guest.peer(conn) == (PEER, port or own[1])
        conn.say(Op.RST)

    (line,) = World(tmp_path).run(play)
    assert fields(line)["src.identity"] == CLIENT
    assert fields(line)["src.addr"].startswith(f"{PEER}:")


def test_connections_of_one_tunnel_have_ports_of_their_own(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        conns = [
            served(world, guest, peer, first=each == 0)[1].host_port
            for each in range(3)
        ]
        assert len(set(conns)) == 3
        assert len({port & ~0xFFFF for port in conns}) == 1

    World(tmp_path).run(play)


# ---- what is refused ----

REFUSED = {
    "another-ip": ("192.0.2.1:8080", "400", f"ip mismatch: {POD} != 192.0.2.1"),
    "our-own-port": (f"{POD}:15008", "503", "attempted recursive call to ourselves"),
    "unknown-host": ("nobody:80", "503", "no service or workload for hostname: nobody"),
    "unknown-port": ("web.default:99", "503", "no port for hostname: web.default:99"),
    "nobody-listens": (f"{POD}:8081", "503", "Connection refused (os error 111)"),
    "not-published": (f"{POD}:22", "503", "Connection refused (os error 111)"),
}


@pytest.mark.parametrize(("authority", "status", "why"), REFUSED.values(), ids=REFUSED)
def test_a_connect_that_leads_nowhere_is_refused(tmp_path, authority, status, why):
    def play(world):
        world.guest(8080, 22)
        peer = world.tunnel()
        stream = peer.connect(asks(authority))
        assert peer.status(stream) == status
        peer.ended(stream)
        peer.fence()

    (line,) = World(tmp_path, published="8080-8081").run(play)
    said = fields(line)
    assert said["error"].startswith(why)
    assert (said["src.identity"], said["dst.addr"]) == (CLIENT, f"{POD}:15008")
    assert said["level"] == ("error" if "os error" in why else "warn")


@pytest.mark.parametrize("authority", ["web.default:80", HERE], ids=["name", "ip"])
def test_a_service_or_an_ip_is_what_a_peer_asks_for(tmp_path, authority):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream = peer.connect(asks(authority))
        conn = guest.accept()
        assert conn.guest_port & 0xFFFF == 8080
        assert peer.status(stream) == "200"

    World(tmp_path).run(play)


DENIES = policy("strangers", "[[[{namespaces: [!Exact other]}]]]")


def test_a_policy_denies_by_the_certificates_identity(tmp_path):
    """Whatever headers say."""

    def play(world):
        guest = world.guest()
        peer = world.tunnel(STRANGER)
        lie = {"baggage": "k8s.namespace.name=default", "forwarded": f'for="{PEER}:1"'}
        assert peer.status(peer.connect(asks(HERE, **lie))) == "401"
        served(world, guest, world.tunnel())
        denied = {"response_flags": "DENY", "source_principal": STRANGER}
        assert world.sample("istio_tcp_connections_opened_total", **denied) == 0
        assert world.sample("istio_tcp_connections_closed_total", **denied) == 1
        reason = {"sandbox": "box", "reason": "authorization"}
        assert world.sample("fastpath_denied_total", **reason) == 1

    lines = World(tmp_path, f"{WORKLOADS}policies:\n{DENIES}").run(play)
    said = fields(lines[0])
    assert said["error"] == (
        "connection closed due to policy rejection: explicitly denied by:"
        " default/strangers"
    )
    assert (said["src.identity"], said["dst.hbone_addr"]) == (STRANGER, HERE)


def test_a_policy_for_mutual_tls_lets_peers_in_and_plain_text_not(tmp_path):
    strict = policy("strict", "[[[{principals: [!Presence []]}]]]", "Allow")

    def play(world):
        guest = world.guest()
        served(world, guest, world.tunnel())
        with (
            socket.create_connection((POD, 8080)) as plain,
            pytest.raises(ConnectionResetError),
        ):
            plain.recv(1)

    World(tmp_path, f"{WORKLOADS}policies:\n{strict}").run(play)


def test_a_policy_that_is_only_tried_is_said(tmp_path, caplog):
    dry = policy("trial", "[[]]", dry="true")

    def play(world):
        guest = world.guest()
        served(world, guest, world.tunnel())

    with caplog.at_level(logging.INFO):
        World(tmp_path, f"{WORKLOADS}policies:\n{dry}").run(play)
    said = "dry-run: deny policy match: default/trial"
    lines = [each for each in caplog.messages if said in each]
    assert lines == [f"box: {CLIENT} to port 8080: {said}"]


def test_a_flood_of_denied_connects_has_few_lines(tmp_path):
    def play(world):
        peer = world.tunnel(STRANGER)
        for _ in range(6):
            streams = [peer.connect(asks(HERE)) for _ in range(50)]
            for stream in streams:
                assert peer.status(stream) == "401"
                peer.h2.end_stream(stream)
            peer.flush()
        assert world.sample("fastpath_denied_total", reason="authorization") == 300
        assert world.sample("fastpath_denied_unlogged_total") > 50

    lines = World(tmp_path, f"{WORKLOADS}policies:\n{DENIES}").run(play)
    assert 100 <= len(lines) < 250


# ---- what changes ----


def test_a_mesh_that_denies_ends_live_connections(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel(STRANGER)
        stream, conn = served(world, guest, peer)
        friend, _ = served(world, guest, world.tunnel(), first=False)
        world.set_mesh(f"{WORKLOADS}policies:\n{DENIES}")
        peer.was_reset(stream)
        conn.expect(Op.RST)
        assert peer.status(peer.connect(asks(HERE))) == "401"
        assert friend

    lines = [fields(line) for line in World(tmp_path).run(play)]
    assert lines[0]["error"] == "connection closed due to policy change"
    assert lines[0]["src.identity"] == STRANGER


def test_a_policy_file_that_unpublishes_ends_live_connections(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream, _ = served(world, guest, peer)
        world.policy.write_text('published: ["9"]\n')
        peer.was_reset(stream)
        assert peer.status(peer.connect(asks(HERE))) == "503"

    lines = [fields(line) for line in World(tmp_path).run(play)]
    assert lines[0]["error"].startswith("ended by a new policy: port 8080 is not")


def test_a_revoked_peer_loses_its_tunnel_and_makes_no_more(tmp_path):
    world = World(tmp_path)
    leaf = world.ca.issue(CLIENT)

    def play(world):
        guest = world.guest()
        peer = world.tunnel(leaf=leaf)
        _, conn = served(world, guest, peer)
        world.crls.write_bytes(world.ca.crl(leaf.serial))
        assert peer.gone()
        conn.expect(Op.RST)

        def refused():
            world.tunnel(leaf=leaf).gone()
            return world.stats().failed > 0

        wait_until(refused)
        served(world, guest, world.tunnel(), first=False)

    lines = [fields(line) for line in world.run(play)]
    assert "the peer's certificate is revoked" in [it.get("error") for it in lines]


# ---- hostile peers ----

UNKNOWN = {
    "another-trust-domain": (pki.FOREIGN, "the peer has another identity"),
    "no-spiffe-id": ("", "the peer's certificate has not exactly one SPIFFE identity"),
}


@pytest.mark.parametrize(("uri", "why"), UNKNOWN.values(), ids=UNKNOWN)
def test_who_has_no_identity_of_the_mesh_gets_no_tunnel(tmp_path, uri, why):
    world = World(tmp_path)

    def play(world):
        world.tunnel(leaf=world.ca.issue(*([uri] if uri else []))).gone()
        wait_until(lambda: world.stats().failed == 1)
        world.deliver()

    (line,) = world.run(play)
    said = fields(line)
    assert (said["level"], said["message"]) == ("warn", "connection failed")
    assert said["error"] == why
    assert said.get("src.identity", "") == uri
    assert (said["dst.addr"], said["direction"]) == (f"{POD}:15008", "inbound")


def test_an_identity_that_is_not_istios_is_denied(tmp_path):
    def play(world):
        peer = world.tunnel("spiffe://cluster.local/somebody")
        assert peer.status(peer.connect(asks(HERE))) == "401"

    (line,) = World(tmp_path).run(play)
    assert "must be spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT" in line


def test_a_guest_whose_backlog_is_full_is_asked_again(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream = peer.connect(asks(HERE))
        peer.send(stream, b"early")
        guest.introduce()
        for _ in range(3):
            guest.refuse()
        conn = guest.vsock.accept(buf_alloc=1 << 20)
        assert peer.status(stream) == "200"
        assert conn.receive_bytes(5) == b"early"

    World(tmp_path).run(play)


def test_a_guest_that_never_accepts_holds_no_other_ones_up(tmp_path):
    def play(world):
        guest = world.guest(8080, 8081)
        peer = world.tunnel()
        waiting = [peer.connect(asks(HERE)) for _ in range(20)]
        guest.introduce()
        for _ in range(6):  # as many as its backlog and one more
            assert guest.vsock.receive().op == Op.REQUEST
        other = peer.connect(asks(f"{POD}:8081"))
        conn = guest.vsock.accept(buf_alloc=1 << 20)
        assert conn.guest_port & 0xFFFF == 8081
        assert peer.status(other) == "200"
        for stream in waiting:
            peer.h2.reset_stream(stream)
        peer.flush()
        peer.fence()

    World(tmp_path, published="8080-8081").run(play)


def test_a_connect_that_is_reset_before_it_is_offered_is_forgotten(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream = peer.connect(asks(HERE))
        kind, payload = guest.control.receive()  # CALLER; it is not answered yet
        assert kind == 18
        peer.h2.reset_stream(stream)
        peer.flush()
        peer.fence()
        world.deliver()
        guest.control.send(b"\x14\x00\x04\x00" + payload[:4])  # INTRODUCED
        guest.known[int.from_bytes(payload[:4], "little")] = PEER
        served(world, guest, peer, first=False)

    lines = [fields(line) for line in World(tmp_path).run(play)]
    assert lines[0]["error"] == "Connection reset by peer (os error 104)"


# ---- the application tunnel ----


def test_a_program_gets_a_proxy_header_first(tmp_path):
    world = World(tmp_path, TUNNEL)

    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream = peer.connect(asks("192.0.2.1:99"))
        peer.send(stream, b"hello")
        conn = guest.accept()
        assert peer.status(stream) == "200"
        data = conn.receive_bytes(16 + 12 + 3 + len(CLIENT) + len(b"hello"))
        assert data[-5:] == b"hello"
        header = proxy_protocol.parse(data[:16], data[16:-5])
        assert header.source == peer.sock.getsockname()
        assert header.destination == ("192.0.2.1", 99)
        assert header.identity == CLIENT
        conn.send(b"back")
        assert peer.read(stream, 4) == b"back"
        conn.shutdown(Shutdown.BOTH)
        peer.ended(stream)

    (line,) = world.run(play)
    said = fields(line)
    assert (said["dst.hbone_addr"], said["bytes_sent"]) == ("192.0.2.1:99", "5")


def test_nobody_else_may_write_proxy_headers(tmp_path):
    """The port is reachable by HBONE only."""

    def play(world):
        guest = world.guest()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, 8080))
        assert guest

    World(tmp_path, TUNNEL).run(play)


# ---- the start and the end ----


def test_without_certificates_it_is_plain_text_and_said(tmp_path, caplog):
    def play(world):
        world.guest()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, HBONE))
        socket.create_connection((POD, 8080)).close()

    World(tmp_path, certificates=None).run(play)
    assert "box: HBONE by the mesh, but there are no certificates" in caplog.text


@pytest.mark.parametrize(
    "sandbox", [{"hbone": False}, {"pod_listeners": False}], ids=str
)
def test_a_sandbox_may_have_no_gate(tmp_path, sandbox):
    def play(world):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, HBONE))
        assert world.call(world.ztunnel._gates.stats) == {}

    World(tmp_path, sandbox=sandbox).run(play)


def test_a_workload_that_is_not_hbone_has_no_gate(tmp_path):
    def play(world):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, HBONE))

    World(tmp_path, WORKLOADS.replace("protocol: HBONE", "protocol: TCP")).run(play)


def test_an_address_that_is_taken_stops_the_start(tmp_path):
    world = World(tmp_path)

    async def start():
        async with Ztunnel(world.config):
            pass

    with socket.create_server((POD, HBONE)), pytest.raises(FastpathError) as caught:
        asyncio.run(start())
    text = str(caught.value)
    assert (
        f"box: cannot listen for HBONE on {POD}:15008: Address already in use" in text
    )
    assert "`hbone: false`" in text
    socket.create_server((POD, HBONE)).close()


def test_one_gate_an_ip(tmp_path):
    other = f"{POD[:-1]}8"
    mesh = WORKLOADS.replace(f"workloadIps: [{POD}]", f"workloadIps: [{POD}, {other}]")

    def play(world):
        guest = world.guest()
        peer = world.tunnel(pod=other)
        stream = peer.connect(asks(f"{other}:8080"))
        guest.accept()
        assert peer.status(stream) == "200"

    world = World(tmp_path, mesh)
    assert ip_address(other) in world.config.workloads[0].workload_ips
    world.run(play)


def test_the_end_lets_streams_end_and_cuts_the_rest(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream, conn = served(world, guest, peer)
        left, _ = served(world, guest, peer, first=False)
        hurry = world.call(asyncio.Event)
        drain = asyncio.run_coroutine_threadsafe(
            world.ztunnel.drain(1.0, hurry), world._loop
        )
        notice = peer.until(h2.events.ConnectionTerminated)
        assert (notice.last_stream_id, notice.error_code) == (2**31 - 1, 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, HBONE))
        conn.send(b"last")
        conn.shutdown(Shutdown.BOTH)
        assert peer.sock.recv(100)
        drain.result()
        while peer.sock.recv(1000):
            pass
        assert stream != left

    lines = [fields(line) for line in World(tmp_path).run(play)]
    assert len(lines) == 2
