"""Outbound HBONE of clients whose connections are captured: they have no sandbox."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from ipaddress import ip_address

import pytest

from fastpath.tsi.policy import Rule, SandboxPolicy
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel.model import Certificates, CertificateService, Workload
from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.hbone_world import Server, World, only, own_address, world

__all__ = ["world"]


class Captured:
    """A client whose connections are captured: their destination is the listener's."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sock = socket.create_server((own_address(), 0))
        self.there = self.sock.getsockname()
        self.ip = own_address()
        pod = Workload(
            workload_ips=(ip_address(self.ip),),
            namespace="default",
            name="pod",
            service_account="pod",
        )
        web = world.web(workload_ips=(ip_address(self.there[0]),), services={})
        config = world.config(pod, web=web)
        own = dataclasses.replace(config.fastpath, sandboxes=())
        self.config = dataclasses.replace(config, fastpath=own)

    def run(self, play):
        """Run `play(capture, ztunnel)` beside the process."""

        async def main():
            there = Ztunnel(self.config, capture=self.sock)
            async with asyncio.timeout(LIMIT_S), there as ztunnel:
                client = ztunnel._clients.at(ip_address(self.ip))
                assert client
                allowed = Egress(allow=(Rule.parse("127.0.0.0/8"),))
                client.policy = SandboxPolicy(egress=allowed.policy())
                await asyncio.to_thread(play, self, ztunnel)

        asyncio.run(main())
        return self.config.fastpath.access_log.read_text().splitlines()

    def connect(self) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(LIMIT_S)
        sock.bind((self.ip, 0))
        sock.connect(self.there)
        return sock


def test_a_captured_client_has_its_certificate_when_it_first_needs_one(world):
    """Its address is what the peer is told of."""
    capture = Captured(world)
    world.server.close()
    world.server = Server(world.ca, ip=capture.there[0])

    def play(capture, ztunnel):
        assert ztunnel._certificates.dump() == []
        with capture.connect() as sock:
            peer = world.server.accept()
            stream, headers = peer.request()
            port = sock.getsockname()[1]
            assert headers["forwarded"] == f'for="{capture.ip}:{port}"'
            peer.answer(stream)
            sock.sendall(b"ping")
            assert peer.read(stream, 4) == b"ping"
            shown = peer.sock.getpeercert()["subjectAltName"]
            assert shown == (("URI", "spiffe://cluster.local/ns/default/sa/pod"),)

    assert 'src.workload="pod"' in only(capture.run(play))


def test_a_captured_client_without_a_certificate_is_refused(world, caplog):
    world.certificates = Certificates(
        ca=CertificateService(
            address="https://127.0.0.1:1", roots=world.path / "ca" / "root-cert.pem"
        )
    )

    def play(capture, ztunnel):
        with capture.connect() as sock, pytest.raises(ConnectionResetError):
            sock.recv(1)

    line = only(Captured(world).run(play))
    assert "there is no certificate of spiffe://cluster.local/ns/default/sa/pod" in line
    assert "CA https://127.0.0.1:1: UNAVAILABLE" in caplog.text
