"""An agent of the TSI service, with a fake engine, device and router around both.

Control streams are real socket pairs. Time passes when nothing else happens
(`tests.support.clock`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from typing import Any, cast

from fastpath.tsi.router import Routed
from fastpath.tsi.service import TsiService
from tests.support import clock
from vhost_user.engine import Dial, Event, EventKind, Reset

TSI_PORT = 21587
DESTINATION = ("192.0.2.1", 80)
HELLO = struct.pack("<HHIHH", 1, 8, 0x41495354, 1, 1)
WELCOME, REFUSED, FAILED = 2, 3, 5


class FakeEngine:
    def __init__(self):
        self.answers = {}
        self.gone = set()

    def answer(self, conn, target):
        assert conn not in self.answers
        self.answers[conn] = target
        return conn not in self.gone

    def answer_fd(self, conn, sock):
        if conn in self.gone:
            sock.close()
            return False
        self.answers[conn] = sock
        return True


class FakeDevice:
    def __init__(self):
        self.routes = {}
        self.handle = self

    def route(self, port, target):
        self.routes[port] = target

    def unroute(self, port):
        del self.routes[port]

    def unroute_from(self, first):
        self.routes = {
            port: target
            for port, target in self.routes.items()
            if port is None or port < first
        }

    def limit(self, **limits):
        self.limits = limits


class FakeRouter:
    """Allows all but port 666; only port 80's answers are cacheable."""

    def __init__(self):
        self.said = []

    def set_policy(self, policy):
        self.said.append(("policy", policy))

    def route(self, destination, conn):
        self.said.append(("route", destination))
        if destination[1] == 666:
            return Routed(Reset(errno.EACCES), cacheable=False)
        return Routed(Dial(destination), cacheable=destination[1] == 80)

    def opened(self, event, destination):
        self.said.append(("opened", destination))

    def failed(self, event, destination):
        self.said.append(("failed", destination))

    def closed(self, event, destination):
        self.said.append(("closed", destination))


class World:
    def __init__(self, **options):
        self.engine = cast("Any", FakeEngine())
        self.device = cast("Any", FakeDevice())
        self.router = FakeRouter()
        self.agents = []
        self.conns = iter(range(1, 1 << 20))
        self.service = TsiService(
            self.engine,
            self.device,
            self.router,
            addresses=["fd00::5", "10.0.0.5"],
            name="test",
            **options,
        )

    def event(self, kind, port, conn=None, **fields):
        conn = next(self.conns) if conn is None else conn
        # where agents' streams come from, as nobody's can
        peer_port = 1023 if port == TSI_PORT else 1025
        fields = {"peer_port": peer_port, **fields}
        event = Event(kind=kind, conn=conn, port=port, **fields)
        self.service.handle_event(event)
        return conn

    def request(self, port):
        return self.event(EventKind.REQUEST, port)

    def agent(self):
        conn = self.request(TSI_PORT)
        self.agents.append(Agent(self.engine.answers.pop(conn)))
        return self.agents[-1]

    async def greeted(self):
        agent = self.agent()
        await agent.greet()
        return agent

    def close(self):
        self.service.close()
        for agent in self.agents:
            agent.sock.close()


class Agent:
    def __init__(self, sock):
        self.sock = sock
        sock.setblocking(False)

    def send(self, data):
        self.sock.send(data)

    async def receive(self):
        """The next message: type and payload; b"" at the end of the stream."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            header = await loop.sock_recv(self.sock, 4)
            if not header:
                return b""
            kind, size = struct.unpack("<HH", header)
            return kind, await loop.sock_recv(self.sock, size)

    async def greet(self):
        self.send(HELLO)
        kind, payload = await self.receive()
        assert kind == WELCOME
        self.first_token = struct.unpack_from("<I", payload, 4)[0]
        return payload

    def register(self, token, host="192.0.2.1", port=80):
        address = socket.inet_aton(host).ljust(16, b"\0")
        self.send(struct.pack("<HHIHH", 4, 24, token, 4, port) + address)


def run(work, **options):
    async def bounded():
        world = World(**options)
        try:
            async with asyncio.timeout(20):
                return await work(world)
        finally:
            world.close()

    return clock.run(bounded())
