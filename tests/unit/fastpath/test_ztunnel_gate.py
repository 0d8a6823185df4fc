"""HBONE into a sandbox: what a CONNECT is answered, whom the program sees, the log."""

from __future__ import annotations

import logging
import socket

import h2.events
import pytest

from tests.support.limits import wait_until
from tests.unit.fastpath.gate_world import (
    CLIENT,
    DATA,
    DENIES,
    HERE,
    PEER,
    POD,
    STRANGER,
    WEB,
    WORKLOADS,
    World,
    asks,
    fields,
    finish,
    policy,
    served,
)
from vhost_user.vsock.packet import Op


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
        "bytes_sent": "4",
        "bytes_recv": f"{len(DATA)}",
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

        def counted():  # the peer may hear of the last one first
            denied = "fastpath_denied_total"
            return world.sample(denied, reason="authorization") == 300

        wait_until(counted, what="the count of each denial")
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

        wait_until(lambda: world.turned_away(leaf=leaf))
        served(world, guest, world.tunnel(), first=False)
        world.deliver()
        failed = "istio_tcp_connections_failed_total"
        assert world.sample(failed, response_flags="CERT_REVOKED") == 1
        rejected = "istio_crl_policy_rejections_total"
        assert world.sample(rejected, reporter="destination") >= 2

    lines = [fields(line) for line in world.run(play)]
    assert "the peer's certificate is revoked" in [it.get("error") for it in lines]
