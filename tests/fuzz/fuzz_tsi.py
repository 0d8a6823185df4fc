"""A guest that does anything, against the TSI service and what decides for it.

libFuzzer's bytes, through Atheris, are a program of small steps: control and datagram
streams that come and go, messages well formed or not and cut anywhere, tokens of
anybody, requests for them, what the engine then tells of its connections, listeners and
their clients, datagrams, what the network makes of them, DNS queries, a new policy,
time that goes by. The engine, TCP listeners and UDP sockets are models in Python, as
strict about their calls as the real ones; policy, routing, DNS, log and metrics are
real. A second sandbox stands by.

What must hold: nothing is dialled or sent a datagram that the policy in force denies,
by an oracle of its own, and nothing listens or is connected to a port that it does not
publish; a token leads where its owner's first ROUTE said; no datagram
reaches the guest but from peers that the flow has sent to; each request is answered
once, in time; all that is kept is bounded, and gone at the end; nothing raises or is
logged as our error; the bystander is served, names too, at any moment.

`run.py` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import os
import random
import selectors
import socket
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import atheris

with atheris.instrument_imports(include=["fastpath"]):
    from fastpath import throttle
    from fastpath.tsi import datagram, protocol, service, stream
    from fastpath.tsi.datagram import DatagramLimits, DatagramService
    from fastpath.tsi.inbound import MAX_PENDING, Peers
    from fastpath.tsi.policy import Limits
    from fastpath.tsi.policyfile import parse
    from fastpath.tsi.service import TsiService
    from fastpath.ztunnel.clients import Clients
    from fastpath.ztunnel.dns import Dns
    from fastpath.ztunnel.metrics import Metrics
    from fastpath.ztunnel.model import (
        Config,
        Fastpath,
        NetworkAddress,
        Sandbox,
        Service,
        Workload,
    )
    from fastpath.ztunnel.outbound import Outbound, SandboxRouter
    from fastpath.ztunnel.routing import Routes
    from tests.fuzz.tcp_doors import Doors

from vhost_user.engine import Ask, Dial, Echo, Event, EventKind, Reset
from vhost_user.errors import StateError

MAX_STEPS = 96
DIAL_S = 30.0
TSI_PORT, DATAGRAM_PORT = 21587, 21588
FIRST_TOKEN = 0x10000
GRANT, PEER, VERDICT, DATAGRAM, UNREACHABLE = 32, 33, 34, 35, 36
LISTENING, CALLER = 17, 18
MAX_UDP_SOCKETS = 3
MAX_LISTENERS = 3
PEER_RANGES = 4
UDP_LIMITS = DatagramLimits(
    streams=3, idle_s=20, queue_bytes=4096, rate=200, burst=32, dns_queries=2
)
ECHO = ("198.18.0.1", 7)
# As the real ones, and each as much smaller as the others, so that they are met.
SCALE = 1024
vars(service).update(MAX_TOKENS=service.MAX_TOKENS // SCALE, MAX_STREAMS=4, MAX_HELD=6)
vars(stream).update(
    BURST=stream.BURST // SCALE,
    MESSAGES_A_SECOND=stream.MESSAGES_A_SECOND / SCALE,
    _READ_SIZE=stream._READ_SIZE // SCALE,
)

POLICIES = [
    "published: [80]",
    "egress: {allow: ['192.0.2.0/24', '127.0.0.1:9090', '198.18.0.0/15']}\nudp: true",
    "egress: {deny: ['192.0.2.1:80', '2001:db8::/32', '198.18.0.1:7'], errno: EACCES}",
    "egress: {allow: ['0.0.0.0/0', '::/0']}\nudp: true\npublished: [80, 8000-8001]",
]
WITH_UDP = (1, 3)
PUBLISHED: tuple[tuple[int, ...], ...] = ((80,), (), (), (80, 8000, 8001))
LISTENERS = [0x100050, 0x110050, 0x101F40, 0x101F41, 0x120050]
PORTS = [80, 80, 8000, 8001, 22]
BOUND = ["0.0.0.0", "::", "10.0.0.2", "::ffff:10.0.0.2"]
CLIENTS = ["192.0.2.7", "192.0.2.8", "192.0.2.9", "198.51.100.1", "2001:db8::7"]
VIP = "10.96.0.10"
QUESTION = b"\3web\7default\0\0\1\0\1"
QUERY = struct.pack("!HHHHHH", 77, 0x100, 1, 0, 0, 0) + QUESTION
DESTINATIONS = [
    ("192.0.2.1", 80),
    ("192.0.2.1", 81),
    ("2001:db8::1", 443),
    ECHO,
    ("198.18.0.1", 9),
    ("127.0.0.1", 9090),
    ("127.0.0.1", 22),
    ("0.0.0.0", 80),
    ("169.254.169.254", 80),
    ("64:ff9b::7f00:1", 22),
    ("fe80::1", 1),
    ("224.0.0.1", 1),
]
PEERS = [*DESTINATIONS, ("192.0.2.1", 53), ("fe80::1", 53)]


@functools.cache
def denied(policy, destination):
    """Whether a policy denies a destination: said again, in another way."""
    ip, port = ipaddress.ip_address(destination[0]), destination[1]
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        ip = ipaddress.ip_address(ip.packed[12:])
    special = ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified
    if special and not (policy == 1 and (str(ip), port) == ("127.0.0.1", 9090)):
        return True
    if policy == 1:
        within = [ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.18.0.0/15")]
        return not special and not any(
            ip in net for net in within if net.version == ip.version
        )
    if policy == 2:
        ruled = (str(ip), port) in (("192.0.2.1", 80), ECHO)
        return ruled or (ip.version == 6 and ip.packed[:4] == b"\x20\x01\x0d\xb8")
    return False


class Input:
    """libFuzzer's bytes, taken from the front; zeros once they are used up."""

    def __init__(self, data):
        self._data = data
        self._at = 0

    def __bool__(self):
        return self._at < len(self._data)

    def take(self, size):
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece + bytes(size - len(piece))

    def byte(self):
        return self.take(1)[0]

    def u32(self):
        return int.from_bytes(self.take(4), "little")

    def pick(self, items):
        return items[self.byte() % len(items)]


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until it is moved."""

    def __init__(self):
        super().__init__(selectors.SelectSelector())
        self.now = 1000.0
        self.wrong: list[object] = []
        self.set_exception_handler(lambda _, context: self.wrong.append(context))

    def time(self):
        return self.now

    monotonic = time

    def turn(self, count=3):
        """Run what is ready."""
        for _ in range(count):
            self.call_soon(self.stop)
            self.run_forever()


class Errors(logging.Handler):
    """Whatever our code logs as an error is a finding."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


class Conn:
    """A connection as the engine has it."""

    def __init__(self, box, port, now, listener=1025):
        self.box, self.port, self.since = box, port, now
        self.peer_port = listener
        self.target = None
        """None: Python was asked."""
        self.open = False


class Engine:
    """The engine's model: connections, and the events that they cause."""

    def __init__(self, loop):
        self.loop = loop
        self.conns = {}
        self.next = 0
        self.sockets = []

    def request(self, box, port):
        """Take a guest's REQUEST to a port; return the connection."""
        self.next += 1
        conn = self.conns[self.next] = Conn(box, port, self.loop.time())
        target = box.routes.get(port, box.routes[None])
        if isinstance(target, Ask):
            self.post(self.next, EventKind.REQUEST)
        else:
            self.settle_target(self.next, conn, target)
        return self.next

    def offer(self, box, listener, port, client):
        """Take a client of the host for a guest's listener; return the connection."""
        assert not client.closed
        assert port >= 0x80000000
        for conn in self.conns.values():
            if (conn.box, conn.port, conn.peer_port) == (box, port, listener):
                raise StateError("in use")
        self.next += 1
        conn = self.conns[self.next] = Conn(box, port, self.loop.time(), listener)
        conn.target = client
        return self.next

    def settle_target(self, number, conn, target):
        conn.target = target
        if isinstance(target, Reset):
            self.end(number, target.error)
        else:
            conn.box.judge(conn.port, target)

    def answer(self, number, target):
        conn = self.conns.get(number)
        if conn is None:
            return False
        assert conn.target is None, "answered twice"
        self.settle_target(number, conn, target)
        return True

    def answer_fd(self, number, sock):
        conn = self.conns.get(number)
        if conn is None:
            sock.close()
            return False
        assert conn.target is None, "answered twice"
        sock.setblocking(False)
        self.sockets.append(sock)
        if conn.port >= FIRST_TOKEN:
            conn.target = sock
            self.opened(number)
        else:
            del self.conns[number]
            conn.box.take_stream(conn.port, sock)
        return True

    def reset(self, number, error):
        if number not in self.conns:
            return False
        self.end(number, error)
        return True

    def opened(self, number):
        """The dial has worked."""
        self.conns[number].open = True
        self.post(number, EventKind.OPENED)

    def end(self, number, error=0):
        """Forget a connection, and tell of it."""
        conn = self.conns[number]
        kind = EventKind.CLOSED if conn.open else EventKind.FAILED
        self.post(number, kind, error)
        del self.conns[number]
        if isinstance(conn.target, socket.socket):
            conn.target.close()

    def post(self, number, kind, error=0):
        conn = self.conns[number]
        event = Event(
            kind=kind,
            conn=number,
            port=conn.port,
            peer_port=conn.peer_port,
            error=error,
        )
        self.loop.call_soon(conn.box.service.handle_event, event)


class Udp:
    """A UDP socket on the host, and the network behind it."""

    def __init__(self, world, family):
        self.world = world
        self.family = family
        self.sock, self.network = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.network.setblocking(False)
        self.sent = set()
        self.next = []
        """What the next calls give: datagrams with their source, or errors."""
        self.queue = []
        """The error queue."""
        self.fails = 0
        """The errno of the next sendto."""
        world.udp.append(self)

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.world.udp.remove(self)
        self.sock.close()
        self.network.close()

    def sendto(self, data, address):
        assert address[1] != 53, "DNS is answered here"
        assert not self.world.a.denied_udp(address), f"sent to {address}"
        assert (":" in address[0]) == (self.family == socket.AF_INET6)
        self.sent.add(address)
        error, self.fails = self.fails, 0
        if error:
            raise OSError(error, "the network is so")
        return len(data)

    def recvfrom(self, size):
        if not self.next:
            raise BlockingIOError
        data, source = self.next.pop(0)
        self.sock.recv(1)
        if not data:
            raise ConnectionRefusedError
        return data, source

    def recvmsg(self, size, control, flags):
        assert flags == socket.MSG_ERRQUEUE
        if not self.queue:
            raise BlockingIOError
        address, error = self.queue.pop(0)
        level = (0, 11) if self.family == socket.AF_INET else (41, 25)
        return b"", [(*level, struct.pack("=I12x", error))], 0, address

    def arrive(self, source, data):
        """Hand in a datagram, or an error that stands before the next one."""
        self.next.append((data, source))
        self.network.send(b"!")


class Box:
    """One sandbox: its service, and the guest's side of its streams."""

    def __init__(self, world, name):
        self.world = world
        self.loop, self.engine = world.loop, world.engine
        self.handle = self
        self.routes = {}
        self.policy = 0
        self.streams = []
        """The guest's ends."""
        self.datagram_streams = []
        self.first = {}
        """Token to destination, as its owner said first; None: who knows."""
        client = world.clients.sandbox(name)
        client.policy = world.policies[0]
        router = SandboxRouter(world.outbound, client, world.dns)
        self.doors = Doors(
            lambda port: port in PUBLISHED[self.policy],
            world.config.fastpath.sandboxes[0],
            client,
            cast("Any", world),
            world.metrics,
        )
        self.datagrams = DatagramService(
            cast("Any", self.engine),
            router,
            policy=client.policy,
            name=name,
            limits=UDP_LIMITS,
        )
        self.service = TsiService(
            cast("Any", self.engine),
            cast("Any", self),
            router,
            addresses=["10.0.0.2", "fd00::2"],
            name=name,
            policy=client.policy,
            datagrams=self.datagrams,
            publisher=self.doors,
        )
        self.inbound = cast("Any", self.service.inbound)
        self.inbound._peers = Peers(PEER_RANGES)

    # What the service calls of a device

    def route(self, port, target):
        self.routes[port] = target
        if port is not None and port != TSI_PORT:
            self.judge(port, target)

    def unroute(self, port):
        del self.routes[port]

    def unroute_from(self, first):
        for port in [p for p in self.routes if p is not None and p >= first]:
            del self.routes[port]

    def limit(self, **limits):
        pass

    def offer(self, listener, client, *, port):
        return self.engine.offer(self, listener, port, client)

    # What must hold

    def denied_udp(self, address):
        return self.policy not in WITH_UDP or denied(self.policy, address)

    def judge(self, port, target):
        """Check what a connection to a token will lead to."""
        there = target.address if isinstance(target, Dial) else None
        if isinstance(target, Echo):
            there = ECHO
        if there is not None:
            assert not denied(self.policy, there), f"policy {self.policy}: {there}"
            said = self.first.get(port)
            assert said in (None, there), f"token {port}: {there}, not {said}"

    def check(self):
        stats = self.service.stats()
        assert stats.tokens <= service.MAX_TOKENS
        assert stats.streams <= service.MAX_STREAMS
        assert stats.held <= service.MAX_HELD
        assert stats.held == sum(map(len, self.service._held.values()))
        tokens = {p for p in self.routes if p not in (None, TSI_PORT)}
        assert tokens == self.service._routed
        for token in tokens:
            assert token in self.service._tokens
            self.judge(token, self.routes[token])
        self.check_datagrams()
        self.check_listeners()

    def check_listeners(self):
        inbound, ports = self.inbound, self.inbound._ports
        agents = [agent.announcer for agent in self.service._agents.values()]
        counts = [sum(len(p.listeners) for p in ports.values()), inbound._count]
        counts.append(sum(len(agent.listeners) for agent in agents))
        assert counts[0] == counts[1] == counts[2] <= MAX_LISTENERS, counts
        assert {door.address.port for door in self.doors.open} <= set(ports)
        self.doors.check()
        for port in ports.values():
            assert port.listeners
            assert max(port._pending, len(port._held)) <= MAX_PENDING
        for client in inbound._live.values():
            assert client.ended or client.port in PUBLISHED[self.policy]
        clients = [client for _, client in inbound._offered.values()]
        clients += inbound._live.values()
        for (agent, _), introduction in inbound._introductions.items():
            assert agent in agents
            clients += [client for _, _, client in introduction.clients]
        held = [client for client in clients if client.range is not None]
        assert sum(inbound._peers._holds.values()) == len(held)
        assert len(inbound._peers._by_key) < PEER_RANGES

    def check_datagrams(self):
        udp = self.datagrams.stats()
        assert udp.streams <= UDP_LIMITS.streams
        assert udp.flows <= MAX_UDP_SOCKETS
        assert len(self.datagrams.queries) <= UDP_LIMITS.dns_queries
        for flow in self.datagrams._flows.values():
            assert not any(map(self.denied_udp, flow.peers))
            assert flow.peers <= cast("Any", flow.sock).sent
        for each in self.datagrams._streams:
            assert each._queued <= 2 * UDP_LIMITS.queue_bytes + 65536
            assert len(each._numbers) <= len(each._peers) <= datagram.PEERS

    # What the guest does

    def take_stream(self, port, sock):
        if port == TSI_PORT:
            self.streams.append(Stream(self, sock))
        else:
            self.datagram_streams.append(DatagramStream(self, sock))

    def set_policy(self, number):
        async def apply():
            self.policy = number
            self.service.set_policy(self.world.policies[number])

        self.loop.run_until_complete(apply())


class Stream:
    """The guest's end of a control stream."""

    def __init__(self, box, sock):
        self.box, self.sock = box, sock
        self.token = None
        """The next one to register; None: not welcomed, or nobody knows."""
        self.range = None
        self.data = b""
        self.callers = []
        """Ranges of ports that were named."""

    def send(self, data, cut=0):
        """Send in two pieces; what finds no room is lost, and all is in doubt."""
        for piece in (data[:cut], data[cut:]):
            try:
                if self.sock.send(piece) < len(piece):
                    self.doubt()
            except OSError:
                self.doubt()
            if cut:
                self.box.loop.turn(1)

    def doubt(self):
        """Nobody knows from here on what the host makes of this stream."""
        self.token = None
        if self.range is not None:
            for token in range(self.range, self.range + 256):
                self.box.first[token] = None

    def read(self):
        """Read what came; it has to be well formed."""
        try:
            self.data += self.sock.recv(65536)
        except OSError:
            return
        while len(self.data) >= 4:
            kind, size = struct.unpack_from("<HH", self.data)
            assert kind in (2, 3, 5, LISTENING, CALLER), f"message type {kind}"
            if len(self.data) < 4 + size:
                break
            payload, self.data = self.data[4 : 4 + size], self.data[4 + size :]
            if kind == 2:
                assert self.range is None, "welcomed twice"
                self.token = self.range = struct.unpack_from("<I", payload, 4)[0]
                for token in [t for t in self.box.first if t >> 20 == self.range >> 20]:
                    del self.box.first[token]
            elif kind == 3:
                assert payload[4:].isascii()
                assert len(payload) <= 204
            elif kind == CALLER:
                ports, family = struct.unpack_from("<IH", payload)
                assert (size, ports & 0xFFFF) == (24, 0)
                assert ports >> 16 in range(0x8001, 0x8000 + PEER_RANGES - 1)
                assert family in (4, 6)
                self.callers.append(ports)
            else:
                assert size == 12

    def register(self, destination, cut=0):
        """Register the next token properly."""
        if self.token is None:
            return
        token, self.token = self.token, self.token + 1
        self.box.first.setdefault(token, destination)
        self.send(route(token, destination), cut)


class DatagramStream:
    """The guest's end of a datagram stream."""

    def __init__(self, box, sock):
        self.box, self.sock = box, sock
        self.data = b""
        self.found = []
        """Messages that were read: type and payload."""

    def send(self, data, cut=0):
        """Send in two pieces; what finds no room is lost."""
        for piece in (data[:cut], data[cut:]):
            with contextlib.suppress(OSError):
                self.sock.send(piece)
            if cut:
                self.box.loop.turn(1)

    def read(self):
        """Read what came; it has to be well formed."""
        try:
            self.data += self.sock.recv(1 << 20)
        except OSError:
            return
        while len(self.data) >= 4:
            kind, size = struct.unpack_from("<HH", self.data)
            sizes = {GRANT: 8, VERDICT: 8, UNREACHABLE: 12}
            assert kind in (3, DATAGRAM) or size == sizes[kind]
            if len(self.data) < 4 + size:
                break
            payload, self.data = self.data[4 : 4 + size], self.data[4 + size :]
            self.found.append((kind, payload))
            if kind == DATAGRAM:
                assert payload[8:] != b"unasked"


def route(token, destination):
    return endpoint(4, token, destination)


def endpoint(kind, number, destination):
    ip = ipaddress.ip_address(destination[0])
    head = struct.pack("<HHIHH", kind, 24, number, ip.version, destination[1])
    return head + ip.packed.ljust(16, b"\0")


def carry(flow, peer, data):
    return struct.pack("<HHHHI", DATAGRAM, 8 + len(data), flow, 0, peer) + data


def listen(listener, backlog, port, address, flags):
    ip = ipaddress.ip_address(address)
    head = (listener, backlog, port, ip.version, flags, 0)
    return struct.pack("<HHIIHHHH", 16, 32, *head) + ip.packed.ljust(16, b"\0")


def unlisten(listener):
    return struct.pack("<HHI", 19, 4, listener)


def introduced(ports):
    return struct.pack("<HHI", 20, 4, ports)


def hello(low=1, high=1):
    return struct.pack("<HHIHH", 1, 8, 0x41495354, low, high)


class World:
    """Two sandboxes on one engine."""

    def __init__(self, target):
        self.loop = Loop()
        asyncio.set_event_loop(self.loop)
        self.engine = Engine(self.loop)
        self.policies = target.policies
        self.config, self.metrics = target.config, target.metrics
        self.clients = Clients(target.config)
        self.lines = 0
        self.udp = []
        """Open UDP sockets."""
        vars(datagram)["_udp_socket"] = functools.partial(Udp, self)
        self.dns = Dns(target.config, resolv_conf=Path("/no/resolvers"))
        routes = Routes(target.config, rng=random.Random(1))
        self.outbound = Outbound(
            routes, cast("Any", self), target.metrics, self.engine.reset
        )

    def write(self, record):
        """Be the access log."""
        self.lines += 1
        own = record.dst if record.direction == "inbound" else record.src
        assert own.identity.endswith(("/sa/a", "/sa/b"))

    async def start(self):
        self.a, self.b = Box(self, "a"), Box(self, "b")

    # ---- steps ----

    def open_stream(self, data):
        self.engine.request(self.a, TSI_PORT)
        self.loop.turn(1)

    def greet(self, data):
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            chosen.send(hello(), data.byte() % 13)
            self.loop.turn()
            chosen.read()

    def register(self, data):
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            chosen.register(data.pick(PEERS), data.byte() % 29)

    def register_many(self, data):
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            for _ in range(data.byte()):
                chosen.register(DESTINATIONS[0])

    def any_route(self, data):
        """Register any token for anything."""
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            chosen.doubt()
            token = data.u32() if data.byte() & 1 else (data.byte() << 20 | data.byte())
            self.a.first[token] = None
            chosen.send(route(token, data.pick(DESTINATIONS)), data.byte() % 29)

    def any_message(self, data):
        """Send a message of any type, its length right or wrong."""
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            chosen.doubt()
            chosen.send(*self.some_message(data))

    def some_message(self, data):
        kind, size = data.byte() % 50, data.byte()
        payload = data.take(size if size < 64 else 8)
        lie = size << 8 if size & 1 else len(payload)
        return struct.pack("<HH", kind, lie) + payload, size % 8

    def any_bytes(self, data):
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            chosen.doubt()
            chosen.send(data.take(data.byte() % 64))

    def request(self, data):
        """Ask for a connection to a token, often to one that there is."""
        known = sorted(self.a.first)
        if known and data.byte() & 3:
            port = known[data.byte() % len(known)] + (data.byte() & 1)
        else:
            port = data.u32()
        number = self.engine.request(self.a, port)
        if data.byte() & 1:
            self.loop.turn(1)
        if data.byte() & 7 == 7 and number in self.engine.conns:
            self.engine.end(number, errno.ECONNRESET)  # the guest took it back

    # ---- steps of listeners ----

    def listen(self, data):
        """Listen, or listen again: one vsock port, one TCP port, mostly."""
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            which, lie = data.byte(), data.byte()
            port = PORTS[which % len(PORTS)] if lie & 7 else PORTS[lie % len(PORTS)]
            backlog = (0, 1, 5, 128, 0xFFFFFFFF)[lie % 5]
            listener = LISTENERS[which % len(LISTENERS)]
            message = listen(listener, backlog, port, data.pick(BOUND), lie >> 7)
            chosen.send(message, data.byte() % 37)

    def unlisten(self, data):
        if self.a.streams:
            data.pick(self.a.streams).send(unlisten(data.pick(LISTENERS)))

    def introduced(self, data):
        """Know a caller, or one that nobody named."""
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            chosen.read()
            lie = 0x80010000 + (data.byte() << 16)
            ports = chosen.callers.pop(0) if chosen.callers else lie
            chosen.send(introduced(ports))

    def client(self, data):
        """Somebody connects to what is published, or several do."""
        if self.a.doors.open:
            door = data.pick(self.a.doors.open)
            hosts = [
                c for c in CLIENTS if (":" in c) == (door.address.host.version == 6)
            ]
            for _ in range(1 + data.byte() % 4):
                door.arrive((data.pick(hosts), 1024 + data.byte() % 4))
            self.loop.turn(1)

    def host_fails(self, data):
        """Let the host's next listen() or accept() fail."""
        self.a.doors.fails = data.pick((errno.EADDRINUSE, errno.EMFILE, errno.EACCES))

    # ---- steps of datagrams ----

    def datagram_stream(self, data):
        """Open a datagram stream and greet, mostly."""
        self.engine.request(self.a, DATAGRAM_PORT)
        self.loop.turn(1)
        if data.byte() & 7:
            self.a.datagram_streams[-1].send(hello(), data.byte() % 13)

    def peer(self, data):
        """Give a peer a number; some share a slot."""
        if self.a.datagram_streams:
            chosen = data.pick(self.a.datagram_streams)
            number = data.byte()
            number = number % 8 + datagram.PEERS * (number >> 6)
            chosen.send(endpoint(PEER, number, data.pick(PEERS)), data.byte() % 29)

    def datagram(self, data):
        if self.a.datagram_streams:
            chosen = data.pick(self.a.datagram_streams)
            number, flow = data.byte(), 40000 + data.byte() % 5
            number = number % 8 + datagram.PEERS * (number >> 6)
            message = carry(flow, number, b"d" * (data.byte() << 4))
            failing = data.byte()
            if self.udp and failing & 7 == 7:
                error = data.pick((errno.EAGAIN, errno.ENETUNREACH, 0))
                self.udp[(failing >> 3) % len(self.udp)].fails = error
            for _ in range(1 + data.byte() // 32):
                chosen.send(message)
            self.loop.turn(1)

    def any_datagram(self, data):
        """Send anything on a datagram stream."""
        if self.a.datagram_streams:
            chosen = data.pick(self.a.datagram_streams)
            if data.byte() & 1:
                chosen.send(*self.some_message(data))
            else:
                chosen.send(data.take(data.byte() % 64))

    def network(self, data):
        """Something arrives at a UDP socket."""
        if not self.udp:
            return
        at, source, what = data.pick(self.udp), data.pick(PEERS), data.byte()
        if (":" in source[0]) != (at.family == socket.AF_INET6):
            return
        good = source in at.sent and not self.a.denied_udp(source)
        if what & 3 == 0:
            at.queue.append((source, data.pick((errno.ECONNREFUSED, 0, 1 << 30))))
        if what & 7 == 7:
            at.arrive(source, b"")
        else:
            at.arrive(source, b"x" * (1 + (what << 3)) if good else b"unasked")
        self.loop.turn()

    def datagram_read(self, data):
        if self.a.datagram_streams:
            data.pick(self.a.datagram_streams).read()

    def datagram_close(self, data):
        if self.a.datagram_streams:
            chosen = data.pick(self.a.datagram_streams)
            self.a.datagram_streams.remove(chosen)
            chosen.sock.close()

    def query(self, data):
        """Ask for a name by UDP or TCP, well or not."""
        wire = bytearray(QUERY)
        for _ in range(data.byte() % 4):
            wire[data.byte() % len(wire)] = data.byte()
        if data.byte() & 1:
            here = [
                conn.target
                for conn in self.engine.conns.values()
                if isinstance(conn.target, socket.socket)
            ]
            if here:
                with contextlib.suppress(OSError):
                    data.pick(here).send(len(wire).to_bytes(2, "big") + wire)
        elif self.a.datagram_streams:
            chosen = data.pick(self.a.datagram_streams)
            chosen.send(endpoint(PEER, 7, PEERS[-1]))
            for _ in range(1 + data.byte() % 8):
                chosen.send(carry(40000, 7, bytes(wire)))
        self.loop.turn()

    def settle(self, data):
        """Let a dial succeed or fail, or a connection end."""
        answered = [n for n, c in self.engine.conns.items() if c.target is not None]
        if answered:
            number = data.pick(answered)
            if data.byte() & 1 and not self.engine.conns[number].open:
                self.engine.opened(number)
            else:
                self.engine.end(number, data.pick((0, errno.ECONNREFUSED)))

    def turn(self, data):
        self.loop.turn(1)

    def wait(self, data):
        """Let time go by; no dial takes longer than the engine lets it."""
        self.pass_time(data.pick((0.001, 0.05, 1.0, 6.0, 31.0, 61.0)))

    def pass_time(self, seconds):
        self.loop.turn()
        end = self.loop.now + seconds
        while self.loop.now < end:
            self.loop.now = min(end, self.loop.now + max(0.1, seconds / 8))
            for number, conn in list(self.engine.conns.items()):
                if not conn.open and self.loop.now - conn.since > DIAL_S:
                    self.engine.end(number, errno.ETIMEDOUT)
            self.loop.turn()

    def close_stream(self, data):
        if self.a.streams:
            chosen = data.pick(self.a.streams)
            chosen.doubt()
            self.a.streams.remove(chosen)
            chosen.sock.close()

    def read(self, data):
        if self.a.streams:
            data.pick(self.a.streams).read()

    def new_policy(self, data):
        self.a.set_policy(data.byte() % len(POLICIES))
        for number, conn in list(self.engine.conns.items()):
            known = number in self.outbound._decisions
            if conn.box is self.a and isinstance(conn.target, Dial) and known:
                assert not denied(self.a.policy, conn.target.address), "still there"

    def bystander(self, data):
        """Connect from the other sandbox."""
        if not self.b.streams:
            self.engine.request(self.b, TSI_PORT)
            self.loop.turn(1)
            self.b.streams[0].send(hello())
            self.loop.turn()
            self.b.streams[0].read()
        own = self.b.streams[0]
        if own.token is None or own.token - own.range > service.MAX_TOKENS // 2:
            return
        own.register(ECHO)
        number = self.engine.request(self.b, own.token - 1)
        self.loop.turn()
        assert isinstance(self.engine.conns[number].target, Echo)
        self.engine.end(number)
        self.ask_for_name()
        self.pass_time(0.6)  # within its own pace

    def ask_for_name(self):
        """Ask for a service's name from the other sandbox."""
        if not self.b.datagram_streams:
            self.engine.request(self.b, DATAGRAM_PORT)
            self.loop.turn(1)
            self.b.datagram_streams[0].send(hello())
            self.b.datagram_streams[0].send(endpoint(PEER, 1, PEERS[-1]))
        own = self.b.datagram_streams[0]
        own.send(carry(40000, 1, QUERY))
        self.loop.turn(6)
        own.read()
        kind, payload = own.found.pop()
        assert kind == DATAGRAM
        assert payload.endswith(ipaddress.ip_address(VIP).packed)

    def close(self):
        """End everything; nothing may be left."""
        for box in (self.a, self.b):
            for each in (*box.streams, *box.datagram_streams):
                each.sock.close()
        self.pass_time(service.HOLD_S + 1)
        for _ in range(64):  # what was sent before is still read, at its pace
            if self.a.service.stats().streams or self.a.datagrams.stats().streams:
                self.pass_time(64.0)
        asked = [c for c in self.engine.conns.values() if c.target is None]
        assert not asked, "a request was never answered"
        for number in list(self.engine.conns):
            self.engine.end(number)
        self.pass_time(2 * service.RANGE_REST_S + 1)
        for box in (self.a, self.b):
            stats = box.service.stats()
            assert (stats.tokens, stats.held, stats.streams) == (0, 0, 0), stats
            assert not box.service._agents
            assert not box.service._live
            udp = box.datagrams.stats()
            assert (udp.streams, udp.flows, self.udp) == (0, 0, []), udp
            assert not box.datagrams.queries
            assert not box.doors.open
            assert not [client for client in box.doors.clients if not client.closed]
            inbound = box.inbound
            left = (inbound._ports, inbound._offered, inbound._live)
            assert not any((*left, inbound._peers._holds)), left
            box.service.close()
        self.loop.run_until_complete(self.dns.close())
        assert self.dns.stats().streams == 0
        assert self.outbound.idle.is_set()
        assert not self.outbound.live
        self.outbound.close()
        self.loop.close()


STEPS = (
    World.open_stream,
    World.greet,
    World.greet,
    World.register,
    World.register,
    World.register,
    World.register_many,
    World.any_route,
    World.any_message,
    World.any_bytes,
    World.request,
    World.request,
    World.request,
    World.settle,
    World.settle,
    World.turn,
    World.wait,
    World.close_stream,
    World.read,
    World.new_policy,
    World.bystander,
    World.listen,
    World.listen,
    World.unlisten,
    World.client,
    World.client,
    World.host_fails,
    World.datagram_stream,
    World.peer,
    World.peer,
    World.datagram,
    World.datagram,
    World.any_datagram,
    World.network,
    World.network,
    World.datagram_read,
    World.datagram_close,
    World.query,
    World.introduced,
)


def decode(data):
    """Check that it does not matter where the bytes of a stream are cut."""
    cut = 1 + data[0] % 32
    whole = data[1:]
    parts = [whole[i : i + cut] for i in range(0, len(whole), cut)]
    made = protocol.DatagramDecoder if data[0] & 32 else protocol.Decoder
    one, other = decoded(made(), whole), decoded(made(), *parts)
    assert one == other, f"{one} in one piece, {other} in pieces of {cut}"
    assert len(one[2]) <= protocol.MAX_TEXT


def decoded(decoder, *parts):
    found = []
    try:
        for part in parts:
            messages = decoder.feed(part)
            while (message := next(messages, None)) is not None:
                found.append(message)
    except protocol.ProtocolError as error:
        return found, error.code, error.text
    return found, 0, ""


def seeds():
    """Return inputs that reach each stage of a connection's life."""
    step = {each.__name__: number for number, each in enumerate(STEPS)}

    def program(*steps):
        return bytes([1]) + b"".join(
            bytes([step[name], *arguments]) for name, *arguments in steps
        )

    begin = [("open_stream",), ("greet", 0, 0)]
    connect = [("register", 0, 0, 0), ("request", 1, 0, 0, 1, 0)]
    for number in range(len(DESTINATIONS)):
        there = [("register", 0, number, 0), ("request", 1, 0, 0, 1, 0)]
        for policy in range(len(POLICIES)):
            ends = [("settle", 0, 1), ("new_policy", policy), ("settle", 0, 0, 0)]
            yield program(*begin, ("new_policy", policy), *there, *ends)
    yield program(*begin, *connect, ("request", 1, 0, 0, 1, 0), ("new_policy", 2))
    yield program(*begin, *connect, ("close_stream", 0), ("wait", 5), ("settle", 0, 1))
    yield program(*begin, ("register_many", 0, 255), ("wait", 5), ("bystander",))
    yield program(*begin, ("any_message", 0, 9, 9), ("read", 0), ("bystander",))
    there = [
        ("listen", 0, 0, 3, 0, 0),
        ("turn",),
        ("turn",),
        ("client", 0, 0, 0, 0),
        ("turn",),
        ("introduced", 0, 0),
        ("turn",),
    ]
    for policy in range(len(POLICIES)):
        taken = [
            ("settle", 0, 1),
            ("new_policy", policy),
            ("read", 0),
            ("settle", 0, 0),
        ]
        yield program(*begin, *there, *taken, ("unlisten", 0, 0), ("turn",))
    full = [("settle", 0, 0, 1), ("wait", 2)]
    yield program(*begin, *there, *full, *full, ("listen", 0, 0, 3, 1, 0), ("wait", 5))
    yield program(*begin, *there, *full, ("close_stream", 0), ("turn",), *begin, *there)
    again = [
        ("new_policy", 1),
        ("listen", 0, 0, 3, 0, 0),
        ("turn",),
        ("unlisten", 0, 0),
    ]
    yield program(*begin, *there, *again, ("new_policy", 0), ("host_fails", 1), *there)
    udp = [("new_policy", 1), ("datagram_stream", 1, 0), ("peer", 0, 1, 0, 0)]
    send = [("datagram", 0, 1, 0, 1, 0, 0), ("turn",)]
    answer = [("network", 0, 0, 1), ("datagram_read", 0)]
    for policy in range(len(POLICIES)):
        again = [("new_policy", policy), *send, *answer]
        yield program(*udp, *send, *answer, *again, ("datagram_close", 0))
    many = [("datagram", 0, 1, flow, 1, 0, 255) for flow in range(5)]
    yield program(*udp, *many, ("wait", 2), *answer, ("bystander",))
    other = [("peer", 0, 2, 1, 0), *send, ("network", 0, 1, 1), ("datagram_read", 0)]
    yield program(*udp, *other, ("peer", 0, 1, 1, 0), ("network", 0, 1, 1), *other)
    yield program(*udp, *send, ("query", 0, 0, 0, 7), ("wait", 1), *answer)
    tcp = [("register", 0, len(DESTINATIONS), 0), ("request", 1, 0, 0, 1, 0)]
    yield program(*begin, *tcp, ("query", 0, 1, 0), ("new_policy", 2), ("wait", 4))
    for kind in range(1, 6):
        yield bytes([0, kind]) + hello() + route(0x100000, ECHO) + bytes([kind, 0, 8])


class Target:
    """What is made once, for all inputs."""

    def __init__(self):
        self.errors = Errors()
        logging.getLogger().addHandler(self.errors)
        logging.getLogger().setLevel(logging.ERROR)
        self.metrics = Metrics()
        self.policies = [
            replace(
                policy,
                limits=Limits(
                    max_udp_sockets=MAX_UDP_SOCKETS, max_listeners=MAX_LISTENERS
                ),
            )
            for policy in (parse(text.encode(), "policy") for text in POLICIES)
        ]
        workloads = tuple(
            Workload(
                workload_ips=(ipaddress.ip_address(f"10.0.0.{2 + i}"),),
                namespace="default",
                name=name,
                service_account=name,
            )
            for i, name in enumerate("ab")
        )
        sandboxes = tuple(
            Sandbox(name=n, workload=f"default/{n}", socket=Path(n), cid=3 + i)
            for i, n in enumerate("ab")
        )
        echo = ipaddress.ip_address(ECHO[0])
        own = Fastpath(sandboxes=sandboxes, echo=echo)
        web = Service(
            name="web",
            namespace="default",
            hostname="web.default.svc.cluster.local",
            vips=(NetworkAddress("", ipaddress.ip_address(VIP)),),
            ports={80: 80},
        )
        self.config = Config(workloads=workloads, services=(web,), fastpath=own)

    def __call__(self, data):
        """Run one input: bytes for the decoder, or a program of steps."""
        if len(data) > 1 and not data[0] & 1:
            decode(data[1:])
            return
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a count, and fast
        world = World(self)
        vars(throttle)["time"] = world.loop  # its `monotonic()`
        world.loop.run_until_complete(world.start())
        steps = Input(data[1:])
        try:
            for _ in range(MAX_STEPS):
                if not steps:
                    break
                STEPS[steps.byte() % len(STEPS)](world, steps)
                world.a.check()
                world.b.check()
        finally:
            world.close()
        for sock in world.engine.sockets:
            sock.close()
        assert not world.loop.wrong, world.loop.wrong
        assert not self.errors.lines, self.errors.lines
        now = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        assert now == before, "file descriptors are left"


def main():
    corpus = Path(sys.argv[-1])
    if corpus.is_dir():
        for i, seed in enumerate(seeds()):
            (corpus / f"seed-{i}").write_bytes(seed)
    atheris.Setup(sys.argv, Target())
    atheris.Fuzz()


if __name__ == "__main__":
    main()
