"""Outbound HBONE through the whole process: a guest, and peers by python-h2."""

from __future__ import annotations

import datetime as dt
import errno
import json
from ipaddress import ip_address

import h2.events
import pytest

from fastpath.ztunnel import pools, process, shares
from fastpath.ztunnel.istio.model import GatewayAddress, GatewayDestination
from fastpath.ztunnel.shares import PoolLimits
from tests.support.limits import wait_until
from tests.unit.fastpath.hbone_world import (
    CLIENT,
    HBONE_PORT,
    OTHER,
    VIP,
    WEB,
    Server,
    World,
    only,
    world,
)
from tests.unit.fastpath.mesh_pki import Ca
from tests.unit.fastpath.tsi_guest import sample
from vhost_user.vsock.packet import Op, Shutdown

__all__ = ["world"]

PING, GOAWAY = 6, 7
BAGGAGE = (
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,"
    "k8s.deployment.name=client,service.name=client-app,service.version=v1"
)


def test_a_workload_is_reached_by_a_stream_of_a_tunnel(world):
    """CONNECT says what Istio's ztunnel says, and so does the access log."""
    ip = world.server.ip

    def play(run):
        conn, peer, stream = run.connect()
        headers = run.headers
        assert headers[":authority"] == f"{ip}:8080"
        assert headers["baggage"] == BAGGAGE
        port = conn.guest_port & 0xFFFF
        assert headers["forwarded"] == f'for="10.0.0.2:{port}"'
        assert set(headers) == {
            ":method",
            ":authority",
            "baggage",
            "forwarded",
            "traceparent",
        }
        run.echoes(conn, peer, stream)
        conn.shutdown(Shutdown.SEND)
        peer.ended(stream)
        peer.send(stream, b"late", end=True)
        assert conn.receive_bytes(4) == b"late"
        conn.expect(Op.SHUTDOWN)

    line = only(world.run(play))
    assert line.startswith("info\taccess\tconnection complete\tsrc.addr=10.0.0.2:")
    for field in (
        f'src.identity="{CLIENT}"',
        f"dst.addr={ip}:{HBONE_PORT}",
        f"dst.hbone_addr={ip}:8080",
        'dst.workload="web-1"',
        f'dst.identity="{WEB}"',
        'direction="outbound" bytes_sent=4 bytes_recv=8',
    ):
        assert field in line
    assert "error" not in line


def test_a_service_is_reached_at_the_endpoint_that_was_chosen(world):
    def play(run):
        run.connect(VIP)
        assert run.headers[":authority"] == f"{world.server.ip}:8080"
        assert run.headers["forwarded"].endswith('";host=web.default')

    assert 'dst.service="web.default"' in only(world.run(play))


def test_metrics_and_the_dump_say_that_it_is_mutual_tls(world):
    def play(run):
        run.connect()
        (opened,) = wait_until(lambda: lines_of(run, "istio_tcp_connections_opened"))
        assert 'connection_security_policy="mutual_tls"' in opened
        assert f'destination_principal="{WEB}"' in opened
        labels = {"identity": f"{CLIENT}"}
        assert sample(run.ztunnel, "fastpath_pool_tunnels", **labels) == 1
        assert sample(run.ztunnel, "fastpath_pool_requests_total", **labels) == 1
        page = json.loads(run.ztunnel._dump())
        (live,) = page["workloadState"]["client"]["connections"]["outbound"]
        assert live["protocol"] == "HBONE"
        assert live["actualDst"] == f"{world.server.ip}:{HBONE_PORT}"
        assert [each["identity"] for each in page["certificates"]] == [f"{CLIENT}"]

    world.run(play)


def lines_of(run, name):
    """Samples of a counter, as text."""
    lines = run.ztunnel.metrics.text().decode().splitlines()
    return [line for line in lines if line.startswith(f"{name}_total{{")]


def test_connections_share_a_tunnel(world):
    def play(run):
        first, peer, stream = run.connect()
        second, other = run.again(peer)
        third, _ = run.again(peer, VIP)
        run.echoes(first, peer, stream)
        run.echoes(second, peer, other)
        third.shutdown(Shutdown.BOTH)

    assert len(world.run(play)) == 3


def test_a_decision_that_stays_is_asked_for_once(world, monkeypatch):
    """The engine opens streams by itself then."""

    def play(run):
        service = run.ztunnel.sandboxes["client"].service
        asked = []
        route = service._router.route

        def counted(*args):
            asked.append(1)
            return route(*args)

        monkeypatch.setattr(service._router, "route", counted)
        _, peer, _ = run.connect()
        for _ in range(3):
            run.again(peer)
        assert len(asked) == 1

    assert len(world.run(play)) == 4


def test_a_waypoint_is_told_what_was_asked_for(world):
    """Its identity is what the tunnel expects, and policy judges the destination."""
    gateway = GatewayAddress(
        destination=GatewayDestination.parse(f"/{world.server.ip}"),
        hbone_mtls_port=HBONE_PORT,
    )
    waypoint = world.web(name="waypoint", uid="waypoint", services={})
    behind = world.web(
        workload_ips=(ip_address("10.96.9.9"),), waypoint=gateway, services={}
    )
    world.allow = ["10.96.9.9/32:80"]

    def play(run):
        run.connect(("10.96.9.9", 80))
        assert run.headers[":authority"] == "10.96.9.9:80"

    line = only(world.run(play, behind, web=waypoint))
    assert f"dst.addr={world.server.ip}:{HBONE_PORT}" in line
    assert "dst.hbone_addr=10.96.9.9:80" in line
    assert 'dst.workload="waypoint"' in line


def test_policy_judges_the_endpoint_and_not_the_tunnels_port(world):
    world.allow = ["10.96.0.1/32:80", f"{world.server.ip}/32:8080"]

    def play(run):
        run.connect(VIP)
        assert run.guest.refused((world.server.ip, HBONE_PORT)) == errno.ECONNREFUSED
        assert run.guest.refused((world.server.ip, 8081)) == errno.ECONNREFUSED

    assert len(world.run(play)) == 3


def test_a_service_does_not_lead_where_policy_denies(world):
    world.allow = ["10.96.0.1/32:80"]

    def play(run):
        assert run.guest.refused(VIP) == errno.ECONNREFUSED

    assert f"{world.server.ip}:8080" in only(world.run(play))


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (400, errno.ECONNREFUSED, "the peer answered CONNECT by 400"),
        (401, errno.EACCES, "the peer answered CONNECT by 401"),
        (503, errno.ECONNREFUSED, "the peer answered CONNECT by 503"),
        (302, errno.ECONNREFUSED, "the peer answered CONNECT by another status"),
    ],
)
def test_what_the_peer_answers_connect_fails_with(world, status, error, text):
    def play(run):
        run.guest.request(world.there)
        peer = world.server.accept()
        stream, _ = peer.request()
        peer.answer(stream, status)
        assert run.guest.failed() == error
        (line,) = wait_until(lambda: lines_of(run, "istio_tcp_connections_failed"))
        assert 'response_flags="CONNECT"' in line

    line = only(world.run(play))
    assert line.startswith("error\taccess\tconnection complete")
    assert f'error="{text}: ' in line
    assert f"dst.hbone_addr={world.server.ip}:8080" in line


def test_a_stream_that_is_reset_ends_so(world):
    def play(run):
        conn, peer, stream = run.connect()
        peer.h2.reset_stream(stream, error_code=8)
        peer.flush()
        conn.expect(Op.RST)

    assert 'error="the peer reset the stream: ' in only(world.run(play))


def test_a_tunnel_that_is_lost_ends_its_connections(world, caplog):
    def play(run):
        conn, peer, _ = run.connect()
        peer.sock.close()
        conn.expect(Op.RST)
        wait_until(lambda: "tunnel to" in caplog.text)

    assert 'error="the tunnel was lost: ' in only(world.run(play))


def test_a_peer_of_another_identity_gets_nothing(world, caplog):
    """The log says who it is, and who it should be."""
    world.server.close()
    world.server = Server(world.ca, OTHER)

    def play(run):
        run.guest.request(world.there)
        world.server.refuse()
        assert run.guest.failed() == errno.ECONNREFUSED
        wait_until(lambda: "another identity" in caplog.text)

    assert 'error="the peer has another identity: ' in only(world.run(play))
    where = f"{CLIENT}: tunnel to {world.server.ip}:{HBONE_PORT}"
    assert f"{where}: the peer has another identity: it is {OTHER}, not {WEB}" in (
        caplog.text
    )


def test_a_service_says_whom_its_endpoints_may_be(world):
    world.server.close()
    world.server = Server(world.ca, OTHER)
    service = world.service(subject_alt_names=(OTHER,))
    assert len(world.run(lambda run: run.connect(VIP), service=service)) == 1


def test_a_peer_where_nobody_listens_is_refused(world):
    world.server.stop()

    def play(run):
        assert run.guest.refused(world.there) == errno.ECONNREFUSED

    line = only(world.run(play))
    assert 'error="the peer cannot be reached: Connection refused' in line


def test_a_sandbox_without_hbone_is_refused_what_takes_it_only(world):
    world.sandbox = {"hbone": False}

    def play(run):
        assert run.guest.refused(world.there) == errno.ECONNREFUSED

    assert "takes HBONE only: not supported without `certificates`" in only(
        world.run(play)
    )


def test_another_identity_in_the_mesh_ends_what_is_live(world):
    def play(run):
        conn, peer, _ = run.connect()
        run.set_mesh(world.config(web=world.web(service_account="other")))
        conn.expect(Op.RST)
        assert run.call(lambda: len(run.pools._pools)) == 0
        run.guest.request(world.there)
        world.server.refuse()
        assert run.guest.failed() == errno.ECONNREFUSED
        peer.close()

    first, _ = world.run(play)
    assert 'error="ended by a new mesh: ' in first
    assert f"{world.server.ip}:{HBONE_PORT} has another identity now, or none" in first


def test_what_the_mesh_still_has_goes_on(world):
    def play(run):
        conn, peer, stream = run.connect()
        run.set_mesh(world.config(web=world.web(workload_name="other")))
        run.echoes(conn, peer, stream)
        run.again(peer)

    assert len(world.run(play)) == 2


def test_peers_are_told_to_await_no_more_when_the_process_is_to_end(world):
    def play(run):
        conn, peer, stream = run.connect()
        run.call(run.ztunnel._outbounds[0].drain_tunnels, 60)
        wait_until(lambda: b"\0\0\x08\x07" in peer.sock.recv(4096))  # GOAWAY
        conn.send(b"late")
        assert b"late" in peer.sock.recv(4096)
        assert stream

    world.run(play)


def test_a_client_with_many_destinations_begins_anew(world, monkeypatch):
    """Headers are bounded; what is live goes on."""
    monkeypatch.setattr(pools, "MAX_HEADERS", 2)
    world.allow = []
    world.sandbox = {}

    def play(run):
        first, peer, stream = run.connect()
        for port in (1, 2, 3, 4, 5):
            run.again(peer, (world.server.ip, port))
        (headers,) = run.call(lambda: list(run.pools._headers.values()))
        assert len(headers) <= 2
        run.echoes(first, peer, stream)
        run.again(peer)

    world.allow = ["127.0.0.0/8"]
    assert len(world.run(play)) == 7


def test_a_pool_that_nobody_uses_is_closed(world):
    def play(run):
        conn, peer, _ = run.connect()
        run.call(run.pools._close_unused, 1e18)
        assert run.call(lambda: len(run.pools._pools)) == 1
        conn.shutdown(Shutdown.BOTH)
        peer.sock.close()
        labels = {"identity": f"{CLIENT}"}
        wait_until(lambda: sample(run.ztunnel, "fastpath_pool_tunnels", **labels) == 0)
        run.call(run.pools._close_unused, 1e18)
        assert run.call(lambda: len(run.pools._pools)) == 0
        assert sample(run.ztunnel, "fastpath_pool_opened_total", **labels) == 1
        run.connect()

    world.run(play)


def test_a_peer_more_than_there_may_be_takes_the_place_of_an_idle_one(
    world, monkeypatch
):
    """One with connections stays; then there is no room."""
    monkeypatch.setattr(process, "pool_limits", lambda _: PoolLimits(1, 4))
    other = Server(world.ca, WEB)
    second = world.web(
        workload_ips=(ip_address(other.ip),), uid="web-2", name="web-2", services={}
    )

    def play(run):
        conn, peer, stream = run.connect()
        assert run.guest.refused((other.ip, 80)) == errno.ENOBUFS
        run.echoes(conn, peer, stream)
        conn.shutdown(Shutdown.BOTH)
        peer.ended(stream)
        peer.send(stream, b"", end=True)
        labels = {"identity": f"{CLIENT}"}
        wait_until(lambda: not sample(run.ztunnel, "fastpath_pool_streams", **labels))
        new = run.guest.request((other.ip, 80))
        run.take(new, other.accept())
        assert peer.gone()

    assert "it has connections to 1 peers already" in "".join(world.run(play, second))
    other.close()


def test_connections_go_on_when_certificates_rotate(tmp_path):
    """New tunnels show the new one."""
    with World(tmp_path, life_s=3) as world:

        def play(run):
            conn, peer, stream = run.connect()
            before = peer.sock.getpeercert()["serialNumber"]
            certificates = run.ztunnel._certificates

            def renewed():
                (mine,) = certificates.dump()
                return f"{int(mine['certChain'][0]['serialNumber']):X}" not in before

            wait_until(renewed)
            run.echoes(conn, peer, stream)
            # GOAWAY: the next one is another tunnel's
            peer.raw(GOAWAY, 0, 0, stream.to_bytes(4, "big") + bytes(4))
            peer.raw(PING, 0, 0, bytes(8))
            peer.until(h2.events.PingAckReceived)
            _, other, _ = run.connect()
            assert other.sock.getpeercert()["serialNumber"] != before

        world.run(play)


def test_a_peer_that_is_revoked_loses_its_connections(tmp_path, caplog):
    path = tmp_path / "crl.pem"
    with World(tmp_path, crls=path) as world:
        serial = world.server.material.chain[0].serial_number

        def play(run):
            conn, peer, _ = run.connect()
            lists = Ca(world.ca.root, world.ca.key)
            now = dt.datetime.now(dt.UTC)
            path.write_bytes(lists.crl(serial, begin=now))
            assert peer.gone()
            conn.expect(Op.RST)
            run.guest.request(world.there)
            world.server.refuse()
            assert run.guest.failed() == errno.ECONNREFUSED

            failed = "istio_tcp_connections_failed"
            wait_until(lambda: len(lines_of(run, failed)) == 2)
            found = "".join(lines_of(run, failed))
            assert all(f'flags="{it}"' in found for it in ("CERT_REVOKED", "CONNECT"))
            (line,) = lines_of(run, "istio_crl_policy_rejections")
            assert line.endswith('{reporter="source"} 2.0')

        lines = world.run(play)
    assert len(lines) == 2
    why = "the peer's certificate is revoked"
    assert all(f'error="{why}: ' in line for line in lines)
    assert why in caplog.text


@pytest.mark.parametrize(
    ("share", "pools", "tunnels"),
    [(16, 8, 1), (1500, 8, 46), (95_000, 371, 64), (1 << 20, 1024, 256)],
)
def test_a_sandboxs_tunnels_are_within_its_share(
    world, monkeypatch, share, pools, tunnels
):
    """A quarter of it, however its peers are spread."""
    monkeypatch.setattr(shares, "share", lambda _: share)
    found = shares.pool_limits(world.config())
    assert (found.pools, found.tunnels) == (pools, tunnels)
    assert found.pools * found.tunnels <= max(share // 4, shares.LEAST_POOLS)
