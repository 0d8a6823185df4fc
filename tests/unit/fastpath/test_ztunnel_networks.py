"""To another network: HBONE within HBONE, through the whole process.

A guest asks for a service; the gateway, and who is behind it, are python-h2. Workload
`web` plays the gateway: its endpoint is on another network.
"""

from __future__ import annotations

import errno
import json
from ipaddress import ip_address

import pytest

from fastpath.mesh.contexts import server_context
from fastpath.ztunnel.istio import headers
from fastpath.ztunnel.istio.model import GatewayAddress, GatewayDestination
from tests.conformance.peers import Inside, Peer
from tests.support.limits import wait_until
from tests.unit.fastpath.hbone_world import (
    CLIENT,
    HBONE_PORT,
    OTHER,
    VIP,
    WEB,
    Server,
    only,
    world,
)
from tests.unit.fastpath.tsi_guest import sample
from vhost_user.vsock.packet import Op, Shutdown

__all__ = ["world"]

NAME = "web.default:80"
OPENED = "istio_tcp_connections_opened"


@pytest.fixture
def far(world):
    """Who is behind the gateway; it proves to be OTHER."""
    server = Server(world.ca, OTHER)
    yield server
    server.close()


@pytest.fixture
def parts(world):
    """The workload on the other network, the gateway, and the service."""
    gateway = GatewayAddress(
        destination=GatewayDestination.parse(f"/{world.server.ip}"),
        hbone_mtls_port=HBONE_PORT,
    )
    there = world.web(
        workload_ips=(ip_address("10.1.0.1"),),
        uid="far",
        name="far",
        network="far",
        network_gateway=gateway,
    )
    service = world.service(subject_alt_names=(OTHER,))
    return there, {"web": world.web(services={}), "service": service}


def inside(far, gateway, status=200):
    """Answer the gateway's next CONNECT; return the tunnel in it, and what it said."""
    stream, said = gateway.request()
    gateway.answer(stream, status)
    tls = Inside(gateway, stream, server_context(far.material))
    return Peer(tls, client=False), said


def connect(run, far, gateway=None):
    """Connect; return the guest's end, and the tunnels and the stream of the other."""
    conn = run.guest.request(VIP)
    gateway = gateway or run.world.server.accept()
    peer, run.said = inside(far, gateway)
    return conn, gateway, peer, run.take(conn, peer)


def outbound(run):
    page = json.loads(run.ztunnel._dump())
    return page["workloadState"]["client"]["connections"]["outbound"]


def test_a_service_on_another_network_is_reached_by_its_gateway(world, far, parts):
    there, mesh = parts

    def play(run):
        conn, gateway, peer, stream = connect(run, far)
        for said in (run.said, run.headers):
            assert said[":authority"] == NAME
            port = conn.guest_port & 0xFFFF
            assert said["forwarded"] == f'for="10.0.0.2:{port}";host=web.default'
        assert run.headers["x-forwarded-network"] == ""
        assert "x-forwarded-network" not in run.said
        for tunnel in (gateway, peer):
            uris = dict(tunnel.sock.getpeercert()["subjectAltName"])
            assert uris["URI"] == f"{CLIENT}"
        (live,) = wait_until(lambda: outbound(run))
        assert live == {
            "src": f"10.0.0.2:{conn.guest_port & 0xFFFF}",
            "originalDst": "{}:{}".format(*VIP),
            "actualDst": f"{world.server.ip}:{HBONE_PORT}",
            "protocol": "DOUBLEHBONE",
        }
        run.echoes(conn, peer, stream)
        conn.shutdown(Shutdown.SEND)
        peer.ended(stream)
        peer.send(stream, b"late", end=True)
        assert conn.receive_bytes(4) == b"late"
        conn.expect(Op.SHUTDOWN)

    line = only(world.run(play, there, **mesh))
    for field in (
        f"dst.addr={world.server.ip}:{HBONE_PORT}",
        f"dst.hbone_addr={NAME}",
        'dst.service="web.default"',
        f'dst.identity="{OTHER}"',
        'direction="outbound" bytes_sent=4 bytes_recv=8',
    ):
        assert field in line
    assert "error" not in line


SAID = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "workload_namespace",
    "k8s.pod.name": "workload",
    "service.name": "canonical_service",
    "service.version": "canonical_revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}
"""What `baggage` says, and the label that it is."""


def labels(**said):
    """Istio's of the far end, by what it says; see `with_derived_destination`."""
    known = said | {
        "app": said.get("workload"),
        "version": said.get("canonical_revision"),
    }
    names = (*SAID.values(), "app", "version", "principal")
    known["principal"] = f"{OTHER}"
    return {f"destination_{name}": known.get(name) or "unknown" for name in names}


def found(ztunnel, name):
    """Of a counter the numbers, by the labels of the far end."""
    (family,) = (it for it in ztunnel.metrics.registry().collect() if it.name == name)
    return [
        ({key: it.labels[key] for key in labels()}, it.value)
        for it in family.samples
        if it.value
    ]


@pytest.mark.parametrize(
    ("baggage", "said", "log"),
    [
        (
            ",".join(f"{key}={name}" for key, name in SAID.items()),
            {name: name for name in SAID.values()},
            {"workload": "workload", "namespace": "workload_namespace"}
            | {"cluster": "cluster"},
        ),
        ("service.name=far,foo=bar", {"canonical_service": "far"}, {}),
        (None, {}, {}),
        ("k8s.pod.name=" + "p" * 254, {}, {}),
        ("k8s.pod.name=p\xe9", {}, {}),
    ],
    ids=["all", "service", "nothing", "too-long", "no-ascii"],
)
def test_the_far_end_is_who_it_says_and_proves(world, far, parts, baggage, said, log):
    """Istio's ztunnel names it so, too, in place of the gateway's workload."""
    there, mesh = parts

    def play(run):
        conn = run.guest.request(VIP)
        peer, _ = inside(far, world.server.accept())
        more = (("baggage", baggage),) if baggage else ()
        peer.answer(peer.request()[0], 200, *more)
        conn.expect(Op.RESPONSE)
        conn.say(Op.RST)
        name = "istio_tcp_connections_closed"
        assert wait_until(lambda: found(run.ztunnel, name)) == [(labels(**said), 1)]
        assert found(run.ztunnel, OPENED) == [(labels(**said), 1)]

    line = only(world.run(play, there, **mesh))
    assert f'dst.identity="{OTHER}"' in line
    for name in ("workload", "namespace", "cluster"):
        assert line.count(f"dst.{name}=") == (name in log)
        assert log.get(name, "") in line


def test_one_that_says_ever_new_names_has_few_counters(world, far, parts, monkeypatch):
    monkeypatch.setattr(headers, "MAX_KNOWN", 2)
    there, mesh = parts

    def play(run):
        gateway = None
        for name in "abcda":
            conn = run.guest.request(VIP)
            gateway = gateway or world.server.accept()
            peer, _ = inside(far, gateway)
            baggage = ("baggage", f"k8s.pod.name={name}")
            peer.answer(peer.request()[0], 200, baggage)
            conn.expect(Op.RESPONSE)
        opened = wait_until(
            lambda: (
                sum(it for _, it in found(run.ztunnel, OPENED)) == 5
                and found(run.ztunnel, OPENED)
            )
        )
        numbers = {it["destination_workload"]: number for it, number in opened}
        assert numbers == {"a": 2, "b": 1, "unknown": 2}

    world.run(play, there, **mesh)


def test_connections_share_the_gateways_tunnel_and_nothing_in_it(world, far, parts):
    there, mesh = parts

    def play(run):
        first, gateway, peer, stream = connect(run, far)
        second, _, other, its = connect(run, far, gateway)
        run.echoes(first, peer, stream)
        run.echoes(second, other, its)
        labels = {"identity": f"{CLIENT}"}
        assert sample(run.ztunnel, "fastpath_pool_tunnels", **labels) == 3

    assert len(world.run(play, there, **mesh)) == 2


def test_who_is_not_the_service_is_refused(world, far, parts):
    there, mesh = parts
    far.material = world.server.material  # WEB's

    def play(run):
        conn = run.guest.request(VIP)
        gateway = world.server.accept()
        with pytest.raises(OSError, match="alert"):
            inside(far, gateway)[0].request()
        assert run.guest.failed() == errno.ECONNREFUSED
        assert conn

    assert "the peer has another identity" in only(world.run(play, there, **mesh))


@pytest.mark.parametrize(
    ("status", "error"), [(401, errno.EACCES), (503, errno.ECONNREFUSED)]
)
def test_what_the_gateway_refuses_fails_so(world, parts, status, error):
    there, mesh = parts

    def play(run):
        run.guest.request(VIP)
        gateway = world.server.accept()
        gateway.answer(gateway.request()[0], status)
        assert run.guest.failed() == error

    assert f"dst.addr={world.server.ip}:{HBONE_PORT}" in only(
        world.run(play, there, **mesh)
    )


def test_a_service_without_names_can_prove_nothing(world, parts):
    there, mesh = parts

    def play(run):
        assert run.guest.refused(VIP) == errno.ECONNREFUSED

    line = only(world.run(play, there, **mesh | {"service": world.service()}))
    assert "it has no subjectAltNames" in line


def test_a_mesh_with_other_names_ends_what_is_live(world, far, parts):
    there, mesh = parts

    def play(run):
        conn, _, peer, stream = connect(run, far)
        service = world.service(subject_alt_names=(OTHER, WEB))
        run.set_mesh(world.config(there, **mesh | {"service": service}))
        run.echoes(conn, peer, stream)
        service = world.service(subject_alt_names=(WEB,))
        run.set_mesh(world.config(there, **mesh | {"service": service}))
        conn.expect(Op.RST)
        (left,) = run.call(lambda: [*run.pools._pools.values()])
        assert left.carrier is None

    assert "ended by a new mesh" in only(world.run(play, there, **mesh))


def test_pools_to_a_gateway_that_nobody_uses_are_closed_and_come_again(
    world, far, parts
):
    there, mesh = parts

    def play(run):
        conn, gateway, peer, stream = connect(run, far)
        run.call(run.pools._close_unused, 1e18)
        assert run.call(lambda: len(run.pools._pools)) == 2
        conn.shutdown(Shutdown.BOTH)
        peer.ended(stream)
        peer.send(stream, b"", end=True)
        peer.sock.close()
        gateway.sock.close()
        labels = {"identity": f"{CLIENT}"}
        wait_until(lambda: sample(run.ztunnel, "fastpath_pool_tunnels", **labels) == 0)
        run.call(run.pools._close, next(iter(run.call(lambda: [*run.pools._pools]))))
        conn, _, peer, stream = connect(run, far)
        run.echoes(conn, peer, stream)

    assert len(world.run(play, there, **mesh)) == 2
