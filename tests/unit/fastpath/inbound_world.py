"""Listeners of a guest on a fake device, with a fake agent.

The TCP listeners and their clients are real.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, cast

import pytest

from fastpath.tsi.clients import Announcer
from fastpath.tsi.inbound import Inbound
from fastpath.tsi.policy import Limits, Ports, SandboxPolicy
from fastpath.tsi.protocol import Listen
from tests.support.limits import LIMIT_S as TIMEOUT_S
from vhost_user.engine import Event, EventKind
from vhost_user.errors import StateError

LISTENING, CALLER = 17, 18
PORT = 80
VSOCK_PORT = 0x100050
ANY4, ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")


class FakeDevice:
    """Takes offers; says no to the pairs of ports that are in use.

    It is the engine, too: its listeners are real, and accept in the event loop.
    """

    def __init__(self):
        self.handle = self
        self.offers = []
        self.offered = asyncio.Event()
        self.used = set()
        self.resets = []
        self.own = {}
        """Whom the engine offered: the fields of their events, and the listener."""
        self.waiting = {}
        """Clients to be taken, by connection."""
        self.conns = itertools.count(1000)
        self.counts = {}
        """Connections from a range that Python has not heard of."""
        self.listeners = []

    def reset(self, conn, error):
        self.resets.append((conn, error))

    def offer(self, guest_port, sock, *, port):
        if (guest_port, port) in self.used:
            raise StateError("in use")
        self.used.add((guest_port, port))
        self.offers.append((guest_port, port, sock.dup()))
        self.offered.set()
        return len(self.offers)

    def conns_from(self, first_port):
        return self.counts.get(first_port, 0)

    def add_guest_listener(self, sock, device, *, backlog, tag, on_event):
        assert device is self
        listener = FakeListener(self, sock.detach(), tag, on_event)
        listener.backlogs.append(backlog)
        self.listeners.append(listener)
        return listener

    def take(self, conn):
        return self.waiting.pop(conn)


class FakeListener:
    """A listener of the engine's for a guest: a model of native/vsock/door.c."""

    def __init__(self, device, fd, tag, on_event):
        self.device, self.tag, self.on_event = device, tag, on_event
        self.sock = socket.socket(fileno=fd)
        self.sock.setblocking(False)
        self.callers = {}
        self.backlogs = []
        self.paused = self.closed = False
        self.watch()

    def watch(self):
        asyncio.get_running_loop().add_reader(self.sock, self.accept)

    def unwatch(self):
        asyncio.get_running_loop().remove_reader(self.sock)

    def accept(self):
        sock, address = self.sock.accept()
        reached = sock.getsockname()[:2]
        caller = self.callers.get(ip_address(address[0]))
        fields = {"src": address[:2], "dst": reached, "tag": self.tag}
        if caller is None:
            self.ask(sock, fields)
            return
        guest_port, first = caller
        with sock:
            conn = self.device.offer(guest_port, sock, port=first | address[1])
        self.device.own[conn] = (fields, self)

    def ask(self, sock, fields, error=0):
        conn = next(self.device.conns)
        self.device.waiting[conn] = sock
        if error:
            self.pause()
        event = Event(kind=EventKind.REQUEST, conn=conn, error=error, **fields)
        asyncio.get_running_loop().call_soon(self.on_event, event)

    def know(self, ip, *, guest_port, first_port):
        assert not self.closed
        self.callers[ip] = (guest_port, first_port)

    def forget(self, ip):
        assert not self.closed
        self.callers.pop(ip, None)

    def forget_all(self):
        assert not self.closed
        self.callers.clear()

    def set_backlog(self, backlog):
        self.backlogs.append(backlog)
        self.sock.listen(backlog)

    def pause(self):
        self.paused = True
        self.unwatch()

    def resume(self):
        self.paused = False
        self.watch()

    def close(self):
        assert not self.closed
        self.closed = True
        self.unwatch()
        self.sock.close()


class FakePublisher:
    """Publishes ports on 127.0.0.1 and ::1, at a port that the kernel chooses."""

    gone = False

    def __init__(self):
        self.error = None
        self.doors = {}
        self.backlogs = []
        self.said = []

    def addresses(self, port, version, *, covered):
        return [(port, version)] if covered else []

    def publishes(self, port, *, covered):
        return covered

    def gated(self, *, covered):
        return False

    def tunnel(self):
        return None

    def listen(self, address, backlog):
        self.backlogs.append(backlog)
        if self.error is not None:
            raise OSError(self.error, "no")
        _, version = address
        family, host = (
            (socket.AF_INET, "127.0.0.1") if version == 4 else (socket.AF_INET6, "::1")
        )
        door = socket.create_server((host, 0), family=family, backlog=backlog)
        self.doors[address] = door.getsockname()[:2]
        return door

    def opened(self, client):
        self.said.append("opened")

    def failed(self, client, error):
        self.said.append(("failed", client.address, error))

    def denial(self, client):
        return ""

    def ended(self, client):
        self.said.append("ended")

    def closed(self, client, event):
        self.said.append(("closed", client.address, event.up_bytes))


class FakeAgent(Announcer):
    """Keeps what it is sent: pairs of a type and the fields; answers CALLER."""

    def __init__(self):
        self.messages = []
        self.inbound = None
        self.told = asyncio.Event()
        super().__init__(self.keep)

    def keep(self, data):
        kind, size = struct.unpack_from("<HH", data)
        assert len(data) == 4 + size
        form = {LISTENING: "<IHHI", CALLER: "<IHH16s"}[kind]
        fields = struct.unpack_from(form, data, 4)
        self.messages.append((kind, fields))
        if kind == CALLER:
            self.told.set()
            if self.inbound:
                loop = asyncio.get_running_loop()
                loop.call_soon(self.inbound.introduced, self, fields[0])
        return True

    def kinds(self):
        return [kind for kind, _ in self.messages]


def published(*ports, **limits):
    """A policy."""
    return SandboxPolicy(
        published=Ports(tuple((port, port) for port in ports)), limits=Limits(**limits)
    )


class World:
    def __init__(self):
        self.device = FakeDevice()
        self.publisher = FakePublisher()
        self.agent = FakeAgent()
        self.clients = []
        self.inbound = Inbound(
            cast("Any", self.device),
            cast("Any", self.device),
            self.publisher,
            policy=published(PORT),
            name="test",
        )
        self.agent.inbound = self.inbound

    def another_agent(self):
        agent = FakeAgent()
        agent.inbound = self.inbound
        return agent

    def listen(self, listener=VSOCK_PORT, *, agent=None, **fields):
        values: dict[str, Any] = {"backlog": 16, "port": PORT, "address": ANY4} | fields
        self.inbound.listen(agent or self.agent, Listen(listener, **values))
        return (agent or self.agent).messages[-1]

    async def connect(self, port=PORT, version=4):
        """A client; True from the guest's side comes later."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        sock = socket.socket(family)
        sock.setblocking(False)
        self.clients.append(sock)
        await loop.sock_connect(sock, self.publisher.doors[port, version])
        return sock

    async def offered(self, count):
        """Wait for that many offers in all; return the last."""
        while len(self.device.offers) < count:
            self.device.offered.clear()
            await self.device.offered.wait()
        assert len(self.device.offers) == count
        return self.device.offers[-1]

    def event(self, kind, conn, error=0, **fields):
        guest_port, port, sock = self.device.offers[conn - 1]
        own, listener = self.device.own.get(conn, ({}, None))
        if kind is not EventKind.OPENED:
            self.device.used.discard((guest_port, port))
        if kind is EventKind.CLOSED:
            own = {}
        if listener and error == errno.ECONNREFUSED and not listener.closed:
            listener.ask(sock.dup(), own, error)
            sock.close()
            return
        if kind is not EventKind.OPENED:
            sock.close()
        self.inbound.handle_event(
            Event(
                kind=kind,
                conn=conn,
                port=port,
                peer_port=guest_port,
                error=error,
                **own,
                **fields,
            )
        )

    def full(self, conn):
        """The guest's backlog has no room."""
        self.event(EventKind.FAILED, conn, errno.ECONNREFUSED)

    def close(self):
        self.inbound.close()
        for sock in self.clients:
            sock.close()
        for _, _, sock in self.device.offers:
            sock.close()
        for sock in self.device.waiting.values():
            sock.close()


def run(work):
    async def bounded():
        world = World()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await work(world)
        finally:
            world.close()

    return asyncio.run(bounded())


async def is_reset(sock):
    with pytest.raises(ConnectionResetError):
        await asyncio.get_running_loop().sock_recv(sock, 1)


async def is_refused(world, version=4):
    with pytest.raises(ConnectionRefusedError):
        await world.connect(version=version)
