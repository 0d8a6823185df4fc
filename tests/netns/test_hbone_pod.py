"""Outbound HBONE of a sandbox in its pod's namespace: the mesh endpoint is ours."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fastpath.mesh.authority import Authority
from fastpath.ztunnel.model import Certificates, Protocol, Workload
from tests.netns.pod_world import (
    POD4,
    POD6,
    SERVER4,
    SERVER6,
    pod,
    sandbox,
    sandboxes,
)
from tests.unit.fastpath.gate_world import Guest, fields
from tests.unit.fastpath.hbone_world import HBONE_PORT, WEB, Server
from tests.unit.fastpath.tsi_guest import run
from vhost_user.vsock.packet import Op, Shutdown

pytestmark = pytest.mark.netns

OURS = "spiffe://cluster.local/ns/default/sa/default"
BY_VERSION = pytest.mark.parametrize(
    ("server", "own"),
    [pytest.param(SERVER4, POD4, id="ipv4"), pytest.param(SERVER6, POD6, id="ipv6")],
)


@pytest.fixture
def namespace():
    with pod() as there:
        yield there


@pytest.fixture
def ca(tmp_path):
    return Authority.open(tmp_path / "ca", "cluster.local", dt.datetime.now(dt.UTC))


def meshed(tmp_path, namespace, **paths):
    """Sandboxes whose mesh endpoint we are, and `web`, a peer in the namespace."""
    there = sandboxes(tmp_path, **(paths or {"box": namespace.path}))
    own = replace(
        there.fastpath,
        certificates=Certificates(embedded=tmp_path / "ca"),
        sandboxes=tuple(replace(it, hbone=True) for it in there.fastpath.sandboxes),
    )
    web = Workload(
        workload_ips=(ip_address(SERVER4), ip_address(SERVER6)),
        namespace=WEB.namespace,
        name="web",
        service_account=WEB.service_account,
        protocol=Protocol.HBONE,
    )
    ours = tuple(replace(it, protocol=Protocol.HBONE) for it in there.workloads)
    return replace(there, workloads=(*ours, web), fastpath=own)


@contextlib.contextmanager
def serving(ca, namespace, host):
    """A peer's port 15008 in the namespace."""
    sock = namespace.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, HBONE_PORT))
    sock.listen()
    server = Server(ca, sock=sock)
    try:
        yield server
    finally:
        server.close()


@BY_VERSION
def test_tunnels_are_made_in_the_namespace_from_the_pods_ip(
    tmp_path, ca, namespace, server, own
):
    there = meshed(tmp_path, namespace)
    with serving(ca, namespace, server) as peer_of:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                conn = guest.request((server, 80))
                peer = peer_of.accept()
                assert peer_of.client[0] == own
                shown = peer.sock.getpeercert()["subjectAltName"]
                assert shown == (("URI", OURS),)
                stream, headers = peer.request()
                port = conn.guest_port & 0xFFFF
                host = f"[{own}]" if ":" in own else own
                assert headers["forwarded"] == f'for="{host}:{port}"'
                peer.answer(stream)
                conn.expect(Op.RESPONSE)
                conn.send(b"ping")
                assert peer.read(stream, 4) == b"ping"

        (line,) = run(there, play)
    host = f"[{server}]" if ":" in server else server
    assert fields(line)["dst.addr"] == f"{host}:{HBONE_PORT}"


def test_two_sandboxes_of_a_namespace_reach_each_other_by_hbone(
    tmp_path, ca, namespace
):
    """The gate of one, in the namespace, takes the tunnel of the other."""
    there = meshed(tmp_path, namespace, a=namespace.path, b=namespace.path)
    a, b = there.fastpath.sandboxes
    own = replace(
        there.fastpath, sandboxes=(replace(a, cid=4), replace(b, cid=3))
    )  # `Guest` is number 3

    def play(ztunnel):
        server = Guest(b.socket)
        with contextlib.closing(server), sandbox(ztunnel, "a") as client:
            server.listen(8080)
            here = client.request(("10.0.0.6", 8080))
            conn = server.accept()
            here.expect(Op.RESPONSE)
            assert server.peer(conn) == (POD4, here.guest_port & 0xFFFF)
            here.send(b"ping")
            assert conn.receive_bytes(4) == b"ping"
            here.shutdown(Shutdown.BOTH)

    lines = [fields(line) for line in run(replace(there, fastpath=own), play)]
    assert {line["direction"] for line in lines} == {"inbound", "outbound"}
    assert all(line["dst.hbone_addr"] == "10.0.0.6:8080" for line in lines)


def test_a_namespace_that_goes_away_ends_its_connections(tmp_path, ca, namespace):
    path = tmp_path / "netns"
    path.symlink_to(f"/proc/{os.getpid()}/fd/{namespace.fileno()}")
    there = meshed(tmp_path, namespace, box=path)
    with serving(ca, namespace, SERVER4) as peer_of:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                conn = guest.request((SERVER4, 80))
                peer = peer_of.accept()
                stream, _ = peer.request()
                peer.answer(stream)
                conn.expect(Op.RESPONSE)
                path.unlink()
                conn.expect(Op.RST)

                assert guest.refused((SERVER4, 80)) == errno.ENETUNREACH

        lines = run(there, play)
    assert len(lines) == 2
