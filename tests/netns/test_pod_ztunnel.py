"""Hand-off `pod` with Istio's unmodified ztunnel in in-pod mode: `--ztunnel BIN`.

Three namespaces: the pod's, with Istio's in-pod rules; that of a server, behind a veth;
ztunnel's own. We are ztunnel's istio-cni: we tell it of the pod by ZDS.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fastpath.ztunnel.model import ListenAddress
from tests.netns.inpod_world import (
    GATEWAY,
    SERVER,
    VIP,
    istios_ztunnel,
    pod_and_server,
    run_in,
)
from tests.netns.istio_world import IN_POD, Cni, access_line
from tests.netns.pod_world import POD4, PUBLISHED, Echo, query, sandboxes
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.tsi_guest import Guest, run

pytestmark = [pytest.mark.netns, pytest.mark.ztunnel]

LISTENER = 0x100050
LISTEN = struct.pack("<IIHHHH16s", LISTENER, 5, PUBLISHED, 4, 0, 0, bytes(16))


@pytest.fixture
def pod():
    """The pod's namespace, with Istio's rules, and the server's."""
    with pod_and_server() as (pod, server):
        run_in(pod, IN_POD)
        yield pod, server


@pytest.fixture
def ztunnel(request, pod, tmp_path):
    """Istio's, which serves the pod; its log."""
    cni = Cni(tmp_path / "zds", pod[0])
    binary = request.config.getoption("--ztunnel")
    with (
        contextlib.closing(cni),
        istios_ztunnel(binary, tmp_path, tmp_path / "zds") as log,
    ):
        wait_until(lambda: len(cni.acks) == 2, what="ZDS")
        yield log


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
            conn = guest.guest.connect_privileged(21588)
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
