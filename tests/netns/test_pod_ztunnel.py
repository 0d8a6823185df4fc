"""Hand-off `pod` with Istio's unmodified ztunnel in in-pod mode: `--ztunnel BIN`.

Three namespaces: the pod's, with Istio's in-pod rules; that of a server, behind a veth;
ztunnel's own. We are ztunnel's istio-cni: we tell it of the pod by ZDS.
"""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fastpath.datapath.netns import Namespace
from fastpath.ztunnel.model import ListenAddress
from tests.netns.istio_world import IN_POD, Cni, access_line
from tests.netns.pod_world import POD4, PUBLISHED, Echo, query, sandboxes
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.tsi_guest import Guest, run

pytestmark = [pytest.mark.netns, pytest.mark.ztunnel]

GATEWAY, SERVER, VIP = "10.0.0.1", "10.0.1.1", "10.96.0.10"
LISTENER = 0x100050
LISTEN = struct.pack("<IIHHHH16s", LISTENER, 5, PUBLISHED, 4, 0, 0, bytes(16))

POD_SIDE = f"""
ip link set lo up; ip link set e0 up
ip addr add {POD4}/24 dev e0; ip route add default via {GATEWAY}
{IN_POD}
"""
SERVER_SIDE = f"""
ip link set lo up; ip link set e1 up
ip addr add {GATEWAY}/24 dev e1; ip addr add {SERVER}/32 dev lo
"""
CONFIG = f"""
workloads:
- {{uid: cluster1//v1/Pod/default/pod1, name: pod1, namespace: default,
   serviceAccount: pod1, trustDomain: cluster.local, workloadIps: [{POD4}],
   protocol: TCP, node: node1, services: {{}}}}
- {{uid: cluster1//v1/Pod/default/server, name: server, namespace: default,
   serviceAccount: server, trustDomain: cluster.local, workloadIps: [{SERVER}],
   protocol: TCP, node: node2, services: {{}}}}
services:
- {{name: web, namespace: default, hostname: web.default.svc.cluster.local,
   vips: [/{VIP}], ports: {{80: 8080}}}}
"""


@pytest.fixture
def pod():
    """The pod's namespace, and the server's."""
    with Namespace() as pod, Namespace() as server:
        ends = f"e0 netns {pod.path} type veth peer e1 netns {server.path}"
        steps = (
            (None, f"ip link add {ends}"),
            (pod, POD_SIDE),
            (server, SERVER_SIDE),
        )
        for where, script in steps:
            argv = ["sh", "-ec", script]
            subprocess.run(where.command(argv) if where else argv, check=True)
        yield pod, server


@pytest.fixture
def ztunnel(request, pod, tmp_path):
    """Istio's, which serves the pod; its log."""
    (tmp_path / "istio.yaml").write_text(CONFIG)
    log = tmp_path / "istio.log"
    make_root = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-subj", "/O=t"]
    make_root += ["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", "key", "-out", "ca"]
    subprocess.run(make_root, check=True, capture_output=True, cwd=tmp_path)
    cni = Cni(tmp_path / "zds", pod[0])
    settings = {
        "XDS_ADDRESS": "",
        "LOCAL_XDS_PATH": f"{tmp_path}/istio.yaml",
        "PROXY_MODE": "shared",
        "INPOD_UDS": f"{tmp_path}/zds",
        "NODE_NAME": "node1",
        "ZTUNNEL_WORKER_THREADS": "1",
        "CA_ADDRESS": "https://127.0.0.1:1",  # nobody's: there is no HBONE here
        "CA_ROOT_CA": f"{tmp_path}/ca",
    }
    binary = request.config.getoption("--ztunnel")
    with Namespace() as own, log.open("w") as out:
        subprocess.run(own.command(["ip", "link", "set", "lo", "up"]), check=True)
        argv = own.command([str(binary.resolve()), "proxy", "ztunnel"])
        process = subprocess.Popen(
            argv, env=settings | {"PATH": os.environ["PATH"]}, stdout=out, stderr=out
        )
        try:
            wait_until(lambda: len(cni.acks) == 2, what="ZDS")
            yield log
        finally:
            process.kill()
            process.wait(LIMIT_S)
            cni.close()


def play_in(tmp_path, pod, play):
    there = sandboxes(tmp_path, pod1=pod[0].path)
    resolvers = (ListenAddress(ip_address(SERVER), 53),)
    there = replace(there, fastpath=replace(there.fastpath, resolvers=resolvers))

    def with_guest(ztunnel):
        (sandbox,) = ztunnel.config.fastpath.sandboxes
        with Guest(sandbox) as guest:
            play(guest)

    return run(there, with_guest)


def test_a_sandboxs_connection_is_caught_and_goes_on(tmp_path, pod, ztunnel):
    with Echo(pod[1], SERVER) as echo:
        play_in(tmp_path, pod, lambda guest: guest.echoes(guest.connect(echo.address)))
    line = access_line(ztunnel, r"access\s+connection complete")
    assert f"src.addr={POD4}:" in line
    assert 'src.workload="pod1"' in line
    assert f"dst.addr={SERVER}:{echo.address[1]}" in line
    assert 'direction="outbound"' in line
    assert "bytes_sent=4 bytes_recv=4" in line


@pytest.mark.parametrize("tcp", [True, False], ids=["tcp", "udp"])
def test_a_sandboxs_query_is_answered_by_the_mesh(tmp_path, pod, ztunnel, tcp):
    asked = query("web.default.svc.cluster.local")

    def play(guest):
        if tcp:
            conn = guest.connect(("10.96.0.53", 53))
            conn.send(struct.pack("!H", len(asked)) + asked)
        else:
            conn = guest.guest.connect(21588)
            conn.send(struct.pack("<HHIHH", 1, 8, 0x41495354, 1, 1))
            conn.receive()
            ip = bytes([10, 96, 0, 53]) + bytes(12)
            conn.send(struct.pack("<HHIHH16s", 33, 24, 1, 4, 53, ip))
            conn.receive()
            conn.send(struct.pack("<HHHHI", 35, 8 + len(asked), 4001, 0, 1) + asked)
        assert conn.receive().payload.endswith(ip_address(VIP).packed)

    play_in(tmp_path, pod, play)


def test_a_client_of_a_sandboxs_listener_comes_by_the_mesh(tmp_path, pod, ztunnel):
    def play(guest):
        guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
        guest.control.receive()
        with pod[1].socket() as client:
            client.settimeout(LIMIT_S)
            client.bind((GATEWAY, 0))
            client.connect((POD4, PUBLISHED))
            kind, payload = guest.control.receive()
            ports, _, _, address = struct.unpack("<IHH16s", payload)
            assert (kind, address[:4]) == (18, ip_address(GATEWAY).packed)
            guest.control.send(struct.pack("<HHI", 20, 4, ports))
            conn = guest.guest.accept()
            conn.send(b"hello")
            assert client.recv(5) == b"hello"

    play_in(tmp_path, pod, play)
    assert 'direction="inbound"' in access_line(ztunnel, r"dst.addr=10.0.0.5:8080")
