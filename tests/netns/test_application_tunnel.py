"""Inbound by the PROXY application tunnel: real namespaces, a guest in user space.

The proxy is written by hand; or it is Istio's own, with `--ztunnel BIN`. Then both ends
are sandboxes of ours, between them Istio's HBONE, and certificates are `fastpath ca`'s.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fastpath.datapath.netns import Namespace
from fastpath.errors import FastpathError
from fastpath.ztunnel.model import ApplicationTunnel, Handoff, TunnelProtocol
from fastpath.ztunnel.process import Ztunnel
from tests.netns.inpod_world import istios_ztunnel, run_in
from tests.netns.istio_world import access_line
from tests.netns.pod_world import POD4, PUBLISHED, pod, sandboxes
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.tsi_guest import Guest, run
from vhost_user.vsock.packet import Op, Shutdown

pytestmark = pytest.mark.netns

TUNNEL = ("127.0.0.1", 15088)
LISTENER = 0x100050
LISTEN = struct.pack("<IIHHHH16s", LISTENER, 5, PUBLISHED, 4, 0, 0, bytes(16))
IDENTITY = "spiffe://cluster.local/ns/default/sa/web"
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


def header(source, port=PUBLISHED):
    rest = ip_address(source[0]).packed + ip_address(POD4).packed
    rest += struct.pack("!HH", source[1], port)
    rest += struct.pack("!BH", 0xD0, len(IDENTITY)) + IDENTITY.encode()
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(rest)) + rest


def tunnelled(there, port=TUNNEL[1]):
    """The same; the workload of the first sandbox has a PROXY application tunnel."""
    tunnel = ApplicationTunnel(protocol=TunnelProtocol.PROXY, port=port)
    first, *others = there.workloads
    return replace(
        there, workloads=(replace(first, application_tunnel=tunnel), *others)
    )


def guest_of(ztunnel, name):
    return Guest(next(s for s in ztunnel.config.fastpath.sandboxes if s.name == name))


def listen(guest):
    guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
    guest.control.receive()


def introduced(guest):
    """The IP of the next client, as the guest is told it."""
    kind, payload = guest.control.receive()
    ports, _, _, address = struct.unpack("<IHH16s", payload)
    assert kind == 18
    guest.control.send(struct.pack("<HHI", 20, 4, ports))
    return str(ip_address(address[:4]))


def dial(namespace):
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(namespace.socket())
        sock.settimeout(LIMIT_S)
        sock.connect(TUNNEL)
        stack.pop_all()
        return sock


def test_a_program_sees_whom_the_header_names(tmp_path):
    with pod() as there:

        def play(ztunnel):
            with guest_of(ztunnel, "box") as guest:
                listen(guest)
                with dial(there) as first, dial(there) as second:
                    for sock in (first, second):
                        sock.sendall(header(("192.0.2.9", 40000)))
                    assert introduced(guest) == "192.0.2.9"
                    conns = [guest.guest.accept() for _ in range(2)]
                    ports = [conn.host_port & 0xFFFF for conn in conns]
                    assert ports[0] == 40000 != ports[1]
                    for sock in (first, second):
                        sock.sendall(b"early")
                    for conn in conns:
                        assert conn.guest_port == LISTENER
                        assert conn.receive_bytes(5) == b"early"
                        conn.send(b"late")
                        conn.shutdown(Shutdown.SEND)
                    for sock in (first, second):
                        assert sock.recv(5, socket.MSG_WAITALL) == b"late"
                for conn in conns:
                    conn.expect(Op.SHUTDOWN)

        lines = run(tunnelled(sandboxes(tmp_path, box=there.path)), play)
    assert len(lines) == 2
    for line in lines:
        assert "src.addr=192.0.2.9:40000 " in line
        assert f'src.identity="{IDENTITY}"' in line
        assert f"dst.addr={POD4}:{PUBLISHED} " in line
        assert 'direction="inbound"' in line
        assert "connection complete" in line


def test_a_port_that_is_not_published_is_refused(tmp_path):
    with pod() as there:

        def play(ztunnel):
            with guest_of(ztunnel, "box") as guest:
                listen(guest)
                with dial(there) as sock:
                    sock.sendall(header(("192.0.2.9", 40000), 22))
                    with pytest.raises(ConnectionResetError):
                        sock.recv(1)

        (line,) = run(tunnelled(sandboxes(tmp_path, box=there.path)), play)
    assert "connection failed" in line
    assert f'src.identity="{IDENTITY}"' in line


def test_it_listens_in_the_pods_namespace_alone_and_goes_with_it(tmp_path):
    with pod() as there, Namespace() as other:
        run_in(other, "ip link set lo up")

        def play(ztunnel):
            dial(there).close()
            with pytest.raises(ConnectionRefusedError):
                dial(other)
            tunnel = ztunnel.sandboxes["box"].service.inbound.tunnel
            there.close()
            wait_until(lambda: tunnel._listener._sock is None)

        run(tunnelled(sandboxes(tmp_path, box=there.path)), play)


def test_a_port_that_is_taken_stops_the_start(tmp_path):
    with pod() as there, there.socket() as taken:
        taken.bind(TUNNEL)
        taken.listen()
        with pytest.raises(FastpathError) as caught:
            run(tunnelled(sandboxes(tmp_path, box=there.path)), lambda _: None)
    assert "cannot listen on 127.0.0.1:15088" in str(caught.value)
    assert "Address already in use" in str(caught.value)
    assert caught.value.hint


def test_a_tunnel_without_a_port_is_refused(tmp_path):
    with pod() as there, pytest.raises(FastpathError, match="has no port"):
        Ztunnel(tunnelled(sandboxes(tmp_path, box=there.path), port=None))


# Istio's own

TOKEN = "node-" + "1" * 27
TOKENS = f"""
tokens:
- {{token: {TOKEN}, identity: default/node, impersonate: [default/*]}}
"""
CLIENT4 = "10.0.0.6"
CONFIG = f"""
workloads:
- {{uid: default/server, name: server, namespace: default, serviceAccount: server,
   trustDomain: cluster.local, workloadIps: [{POD4}], protocol: HBONE, node: node1,
   applicationTunnel: {{protocol: PROXY, port: {TUNNEL[1]}}}, services: {{}}}}
- {{uid: default/web, name: web, namespace: default, serviceAccount: web,
   trustDomain: cluster.local, workloadIps: [{CLIENT4}], protocol: HBONE, node: node1,
   services: {{}}}}
services: []
"""


@pytest.fixture
def spaces():
    """Two pods, with a veth between them."""
    with Namespace() as server, Namespace() as client:
        ends = f"e0 netns {server.path} type veth peer e1 netns {client.path}"
        run_in(None, f"ip link add {ends}")
        for space, ip, name in ((server, POD4, "e0"), (client, CLIENT4, "e1")):
            run_in(space, f"ip link set lo up; ip link set {name} up")
            run_in(space, f"ip addr add {ip}/24 dev {name}")
        yield server, client


@pytest.fixture
def node():
    """The namespace of ztunnel and the CA."""
    with Namespace() as own:
        run_in(own, "ip link set lo up")
        yield own


@contextlib.contextmanager
def ca(folder, own):
    """Run `fastpath ca` there; yield what ztunnel needs of it."""
    for name, text in (("tokens.yaml", TOKENS), ("token", TOKEN)):
        (folder / name).touch(0o600)
        (folder / name).write_text(text)
    argv = [sys.executable, "-m", "fastpath", "ca", "--dir", str(folder / "authority")]
    argv += ["--token-file", str(folder / "tokens.yaml")]
    log = folder / "ca.log"
    with log.open("w") as out:
        process = subprocess.Popen(own.command(argv), stdout=out, stderr=out)
        try:
            wait_until(lambda: "ready" in log.read_text(), what="fastpath ca")
            yield {
                "CA_ADDRESS": "https://127.0.0.1:15012",
                "CA_ROOT_CA": str(folder / "authority" / "root-cert.pem"),
                "AUTH_TOKEN": str(folder / "token"),
            }
        finally:
            process.terminate()
            process.wait(LIMIT_S)


def two_sandboxes(tmp_path, server, client):
    """Both are told of to ztunnel; `server` has the application tunnel."""
    there = tunnelled(sandboxes(tmp_path, server=server.path, web=client.path))
    workloads = tuple(
        replace(it, workload_ips=it.workload_ips[:1], service_account=it.name)
        for it in there.workloads
    )
    handoff = Handoff(inpod=Path(tmp_path / "zds"))
    found = tuple(replace(it, handoff=handoff) for it in there.fastpath.sandboxes)
    own = replace(there.fastpath, sandboxes=found)
    return replace(there, workloads=workloads, fastpath=own)


@pytest.mark.ztunnel
def test_two_sandboxes_speak_by_istios_hbone(request, tmp_path, spaces, node):
    binary = request.config.getoption("--ztunnel")

    def play(ztunnel):
        with (
            ca(tmp_path, node) as settings,
            istios_ztunnel(
                binary, tmp_path, tmp_path / "zds", CONFIG, own=node, **settings
            ) as log,
            guest_of(ztunnel, "server") as server,
            guest_of(ztunnel, "web") as client,
        ):
            wait_until(lambda: "received snapshot sent" in log.read_text())
            listen(server)
            ours = [client.connect((POD4, PUBLISHED)) for _ in range(6)]
            assert introduced(server) == CLIENT4
            theirs = [server.guest.accept() for _ in ours]
            for conn in ours:
                conn.send(b"ping")
            for conn in theirs:
                assert conn.receive_bytes(4) == b"ping"
                conn.send(b"pong!")
            for conn in ours:
                assert conn.receive_bytes(5) == b"pong!"
                conn.shutdown(Shutdown.SEND)
            for conn in theirs:
                conn.expect(Op.SHUTDOWN)
                conn.shutdown(Shutdown.SEND)
            for conn in ours:
                conn.expect(Op.SHUTDOWN)
            line = access_line(log, 'direction="inbound"')
            assert f'src.identity="{IDENTITY}"' in line

    lines = run(two_sandboxes(tmp_path, *spaces), play)
    inbound = [line for line in lines if 'direction="inbound"' in line]
    assert len(inbound) == 6
    for line in inbound:
        assert f"src.addr={CLIENT4}:" in line
        assert f'src.identity="{IDENTITY}"' in line
        assert f"dst.addr={POD4}:{PUBLISHED} " in line
        assert "error" not in line
