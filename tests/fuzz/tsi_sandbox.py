"""A sandbox of `fuzz_tsi.py`: its service, its guest, and what must hold of both."""

from __future__ import annotations

from typing import Any, cast

from fastpath.tsi import datagram_stream, service, stream
from fastpath.tsi.datagram import DatagramService
from fastpath.tsi.datagram_limits import DatagramLimits
from fastpath.tsi.peers import Peers
from fastpath.tsi.port import MAX_PENDING
from fastpath.tsi.service import TsiService
from fastpath.ztunnel.sandboxrouter import SandboxRouter
from tests.fuzz.tcp_doors import Doors
from tests.fuzz.tsi_guest import PEER_RANGES, DatagramStream, Stream
from tests.fuzz.tsi_policies import ECHO, PUBLISHED, WITH_UDP, denied
from vhost_user.engine import Dial, Echo

TSI_PORT = 21587
MAX_UDP_SOCKETS = 3
MAX_LISTENERS = 3
UDP_LIMITS = DatagramLimits(
    streams=3, idle_s=20, queue_bytes=4096, rate=200, burst=32, dns_queries=2
)
# As the real ones, and each as much smaller as the others, so that they are met.
SCALE = 1024
vars(service).update(MAX_TOKENS=service.MAX_TOKENS // SCALE, MAX_STREAMS=4, MAX_HELD=6)
vars(stream).update(
    BURST=stream.BURST // SCALE,
    MESSAGES_A_SECOND=stream.MESSAGES_A_SECOND / SCALE,
    _READ_SIZE=stream._READ_SIZE // SCALE,
)


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
        self.inbound._peers = Peers(PEER_RANGES, self.inbound._in_use)

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

    def conns_from(self, first):
        ports = [c.port for c in self.engine.conns.values() if c.box is self]
        return sum(port >> 16 == first >> 16 for port in ports)

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
        for flow in self.datagrams.flows:
            assert not any(map(self.denied_udp, flow.peers))
            assert flow.peers <= cast("Any", flow.sock).sent
        for each in self.datagrams._streams:
            assert each._queued <= 2 * UDP_LIMITS.queue_bytes + 65536
            assert len(each._numbers) <= len(each._peers) <= datagram_stream.PEERS

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
