"""The world of `fuzz_tsi.py`: two sandboxes on one engine, and the steps it takes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import random
import socket
import struct
from pathlib import Path
from typing import Any, cast

from fastpath.tsi import datagram_flows, datagram_stream, service
from fastpath.ztunnel.dns import Dns
from fastpath.ztunnel.outbound import Outbound
from fastpath.ztunnel.routing import Routes
from fastpath.ztunnel.workloads import LocalWorkloads
from tests.fuzz.tsi_guest import (
    DATAGRAM,
    PEER,
    carry,
    endpoint,
    hello,
    introduced,
    listen,
    route,
    unlisten,
)
from tests.fuzz.tsi_host import Engine, Loop, Udp
from tests.fuzz.tsi_policies import DESTINATIONS, ECHO, PEERS, POLICIES, denied
from tests.fuzz.tsi_sandbox import TSI_PORT, Box
from vhost_user.engine import Dial, Echo

DIAL_S = 30.0
DATAGRAM_PORT = 21588
LISTENERS = [0x100050, 0x110050, 0x101F40, 0x101F41, 0x120050]
PORTS = [80, 80, 8000, 8001, 22]
BOUND = ["0.0.0.0", "::", "10.0.0.2", "::ffff:10.0.0.2"]
CLIENTS = ["192.0.2.7", "192.0.2.8", "192.0.2.9", "198.51.100.1", "2001:db8::7"]
VIP = "10.96.0.10"
QUESTION = b"\3web\7default\0\0\1\0\1"
QUERY = struct.pack("!HHHHHH", 77, 0x100, 1, 0, 0, 0) + QUESTION


class World:
    """Two sandboxes on one engine."""

    def __init__(self, target):
        self.loop = Loop()
        asyncio.set_event_loop(self.loop)
        self.engine = Engine(self.loop)
        self.policies = target.policies
        self.config, self.metrics = target.config, target.metrics
        self.clients = LocalWorkloads(target.config)
        self.lines = 0
        self.udp = []
        """Open UDP sockets."""
        vars(datagram_flows)["udp_socket"] = functools.partial(Udp, self)
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
            number = number % 8 + datagram_stream.PEERS * (number >> 6)
            chosen.send(endpoint(PEER, number, data.pick(PEERS)), data.byte() % 29)

    def datagram(self, data):
        if self.a.datagram_streams:
            chosen = data.pick(self.a.datagram_streams)
            number, flow = data.byte(), 40000 + data.byte() % 5
            number = number % 8 + datagram_stream.PEERS * (number >> 6)
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
        assert not self.engine.held, "a client was never taken"
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
