"""An agent of the datagram service, and all that the service needs around it.

The agent's side is written out by hand, from docs/tsi-protocol.md.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import ip_address
from typing import Any, cast

from fastpath.tsi.datagram import DatagramService
from fastpath.tsi.datagram_limits import DatagramLimits
from fastpath.tsi.policy import EgressPolicy, Rule, SandboxPolicy
from tests.support.limits import LIMIT_S, until
from vhost_user.engine import Event, EventKind

HELLO = struct.pack("<HHIHH", 1, 8, 0x41495354, 1, 1)
REFUSED, GRANT, PEER, VERDICT, DATAGRAM, UNREACHABLE = 3, 32, 33, 34, 35, 36
HERE = EgressPolicy(allow=[Rule.parse("127.0.0.1/32"), Rule.parse("::1/128")])
ON = SandboxPolicy(egress=HERE, udp=True)
OFF = SandboxPolicy(egress=HERE)
FLOW = 40001


class FakeEngine:
    def __init__(self):
        self.answers = []

    def answer(self, conn, target):
        self.answers.append((conn, target))
        return True

    def answer_fd(self, conn, sock):
        self.sock = sock
        return True


class FakeRouter:
    def __init__(self):
        self.denied = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def resolve(self, query, *, tcp):
        await self.gate.wait()
        return b"answer to " + query if query else None

    def datagram_denied(self, peer, denial):
        self.denied.append((peer, denial.reason))


class World:
    def __init__(self, policy=ON, **limits):
        self.engine = FakeEngine()
        self.router = FakeRouter()
        self.socks = []
        self.service = DatagramService(
            cast("Any", self.engine),
            self.router,
            policy=policy,
            name="test",
            limits=DatagramLimits(**limits),
        )

    def agent(self):
        self.service.accept(Event(kind=EventKind.REQUEST, conn=1))
        agent = Agent(self.engine.sock)
        self.socks.append(agent.sock)
        return agent

    async def greeted(self):
        agent = self.agent()
        agent.sock.send(HELLO)
        kind, payload = await agent.receive()
        assert (kind, payload) == (GRANT, struct.pack("<HHI", 1, 0, 4096))
        return agent

    def server(self, host="127.0.0.1"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((host, 0))
        sock.setblocking(False)
        self.socks.append(sock)
        return sock

    async def counted(self, name, value):
        await until(lambda: getattr(self.service.stats(), name) == value)

    def close(self):
        self.service.close()
        for sock in self.socks:
            sock.close()


class Agent:
    def __init__(self, sock):
        self.sock = sock
        sock.setblocking(False)

    async def exactly(self, size):
        data = b""
        while len(data) < size:
            piece = await asyncio.get_running_loop().sock_recv(
                self.sock, size - len(data)
            )
            if not piece:
                break
            data += piece
        return data

    async def receive(self):
        """The next message: type and payload; None at the end of the stream."""
        async with asyncio.timeout(LIMIT_S):
            header = await self.exactly(4)
            if not header:
                return None
            kind, size = struct.unpack("<HH", header)
            return kind, await self.exactly(size)

    async def peer(self, number, address):
        """Register a peer; return the verdict."""
        ip = ip_address(address[0])
        packed = ip.packed.ljust(16, b"\0")
        head = struct.pack("<HHIHH", PEER, 24, number, ip.version, address[1])
        self.sock.send(head + packed)
        kind, payload = await self.receive()
        assert kind == VERDICT
        found, error = struct.unpack("<II", payload)
        assert found == number
        return error

    def datagram(self, number, data, flow=FLOW):
        head = struct.pack("<HHHHI", DATAGRAM, 8 + len(data), flow, 0, number)
        self.sock.send(head + data)

    async def expect(self, number, data, flow=FLOW):
        kind, payload = await self.receive()
        assert kind == DATAGRAM
        assert payload == struct.pack("<HHI", flow, 0, number) + data

    async def expect_unreachable(self, number, error, flow=FLOW):
        assert await self.receive() == (
            UNREACHABLE,
            struct.pack("<HHII", flow, 0, number, error),
        )


async def heard(sock):
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.get_running_loop().sock_recvfrom(sock, 65536)


def run(work, policy=ON, **limits):
    async def bounded():
        world = World(policy, **limits)
        try:
            async with asyncio.timeout(LIMIT_S):
                return await work(world)
        finally:
            world.close()

    return asyncio.run(bounded())
