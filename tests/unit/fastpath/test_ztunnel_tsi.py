"""TSI through the whole process: a guest in user space, the real engine.

The guest's side of the control stream is written out by hand, from
docs/tsi-protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    NamespacedHostname,
    NetworkAddress,
    Sandbox,
    Service,
    Workload,
)
from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import LIMIT_S as TIMEOUT_S
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op, Shutdown

from .tsi_guest import settled

TSI_PORT = 21587
FAILED = 5
WEB = NamespacedHostname("default", "web")
VIP = ("10.96.0.1", 80)
ECHO = ("198.18.0.1", 7)


class Agent:
    """A guest that speaks the agent's protocol."""

    def __init__(self, path):
        self.guest = VsockGuest(path)
        self.control = self.guest.connect_privileged(TSI_PORT)
        self.control.send(struct.pack("<HHIHH", 1, 8, 0x41495354, 1, 1))
        welcome = self.control.receive().payload
        kind, self.token = welcome[0], struct.unpack_from("<I", welcome, 8)[0]
        assert kind == 2

    def request(self, destination):
        host, port = destination
        address = ip_address(host)
        packed = address.packed.ljust(16, b"\0")
        token, self.token = self.token, self.token + 1
        self.control.send(
            struct.pack("<HHIHH", 4, 24, token, address.version, port) + packed
        )
        return self.guest.request(token)

    def connect(self, destination):
        conn = self.request(destination)
        conn.expect(Op.RESPONSE)
        return conn

    def refused(self, destination):
        """The errno of a refused connect, from RST and FAILED."""
        conn = self.request(destination)
        conn.expect(Op.RST)
        failed = self.control.receive().payload
        kind, size, port, token, error = struct.unpack("<HHIII", failed)
        assert (kind, size, port, token) == (
            FAILED,
            12,
            conn.guest_port,
            self.token - 1,
        )
        return error

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.guest.close()


@contextlib.contextmanager
def upper_server():
    """One client, answered in upper case after the end of its request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_S)
        yield server


def answer_one(server):
    client, _ = server.accept()
    with client:
        data = b""
        while piece := client.recv(4096):
            data += piece
        client.sendall(data.upper())


def config(tmp_path, upstream_port, *allow):
    client = Workload(
        workload_ips=(ip_address("10.0.0.2"), ip_address("fd00::2")),
        namespace="default",
        name="client",
    )
    web = Workload(
        workload_ips=(ip_address("127.0.0.1"),),
        namespace="default",
        name="web-1",
        services={WEB: {80: upstream_port}},
    )
    service = Service(
        name="web",
        namespace="default",
        hostname="web",
        vips=(NetworkAddress("", ip_address(VIP[0])),),
        ports={80: 0},
    )
    sandbox = Sandbox(
        name="box",
        workload="default/client",
        socket=tmp_path / "s",
        cid=3,
        uds_path=tmp_path / "u",
        egress=Egress(allow=tuple(map(Rule.parse, allow))),
    )
    return Config(
        workloads=(client, web),
        services=(service,),
        fastpath=Fastpath(
            sandboxes=(sandbox,),
            echo=ip_address(ECHO[0]),
            access_log=tmp_path / "access.log",
        ),
    )


def run(there, play):
    """Run `play(agent)` on a thread beside the process; return its result."""

    async def main():
        async with asyncio.timeout(TIMEOUT_S), Ztunnel(there) as ztunnel:
            result = await asyncio.to_thread(bounded)
            await settled(ztunnel)
            return result, ztunnel.metrics.text().decode()

    def bounded():
        with Agent(there.fastpath.sandboxes[0].socket) as agent:
            return play(agent)

    return asyncio.run(main())


def log_lines(there):
    return there.fastpath.access_log.read_text().splitlines()


def test_a_guest_reaches_a_service(tmp_path):
    with upper_server() as server:
        port = server.getsockname()[1]
        there = config(tmp_path, port, "127.0.0.0/8", "0.0.0.0/0")

        def play(agent):
            conn = agent.connect(VIP)
            conn.send(b"hello")
            conn.shutdown(Shutdown.SEND)
            answer_one(server)
            assert conn.receive_bytes(5) == b"HELLO"
            conn.expect(Op.SHUTDOWN)
            conn.shutdown(Shutdown.SEND | Shutdown.RECEIVE)
            return conn.guest_port

        guest_port, metrics = run(there, play)
    (line,) = log_lines(there)
    assert f"src.addr=10.0.0.2:{guest_port} " in line
    assert f"dst.addr=127.0.0.1:{port} " in line
    assert 'dst.service="web" dst.workload="web-1"' in line
    assert "bytes_sent=5 bytes_recv=5" in line
    assert "\tinfo\t" in line
    assert "istio_tcp_connections_opened_total{" in metrics


def test_the_echo_address_answers_and_is_cached(tmp_path):
    there = config(tmp_path, 80)

    def play(agent):
        conns = [agent.connect(ECHO), agent.guest.connect(agent.token - 1)]
        for conn in conns:
            conn.send(b"ping")
            assert conn.receive_bytes(4) == b"ping"
            conn.say(Op.RST)

    run(there, play)
    assert [line.count("dst.addr=198.18.0.1:7 ") for line in log_lines(there)] == [1, 1]


@pytest.mark.parametrize(
    "destination",
    [
        ("127.0.0.1", 22),
        ("169.254.169.254", 80),
        ("::1", 80),
        ("fe80::1", 80),
        pytest.param(VIP, id="the-endpoint-of-a-vip"),
    ],
)
def test_a_guest_does_not_reach_the_host(tmp_path, destination):
    with upper_server() as server:
        there = config(tmp_path, server.getsockname()[1])
        error, metrics = run(there, lambda agent: agent.refused(destination))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert error == errno.ECONNREFUSED
    (line,) = log_lines(there)
    assert "\twarn\taccess\tconnection failed\t" in line
    assert 'src.identity="spiffe://cluster.local/ns/default/sa/default"' in line
    source = "[fd00::2]:" if ":" in destination[0] else "10.0.0.2:"
    assert f"src.addr={source}" in line
    assert 'sandbox="box"} 1.0' in metrics


def test_a_dial_that_fails_gives_its_errno(tmp_path):
    with upper_server() as server:
        port = server.getsockname()[1]
    there = config(tmp_path, port, "127.0.0.0/8", "0.0.0.0/0")
    error, _ = run(there, lambda agent: agent.refused(VIP))
    assert error == errno.ECONNREFUSED
    (line,) = log_lines(there)
    assert "\terror\taccess\tconnection complete\t" in line
    assert 'error="Connection refused (os error 111)"' in line


def test_other_ports_reach_the_hybrid_sockets(tmp_path):
    there = config(tmp_path, 80)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "u_1029"))
        server.listen()
        server.settimeout(TIMEOUT_S)

        def play(agent):
            conn = agent.guest.connect(1029)
            conn.send(b"READY")
            client, _ = server.accept()
            with client:
                assert client.recv(5) == b"READY"
            conn.expect(Op.SHUTDOWN, Op.RST)

        run(there, play)


def test_the_host_reaches_the_guest_beside_tsi(tmp_path):
    there = config(tmp_path, 80)

    def play(agent):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(str(tmp_path / "u"))
            client.sendall(b"CONNECT 5000\n")
            conn = agent.guest.accept()
            assert client.recv(64).startswith(b"OK ")
            conn.send(b"hi")
            assert client.recv(2) == b"hi"
        conn.expect(Op.SHUTDOWN, Op.RST)

    run(there, play)
    assert not log_lines(there)
