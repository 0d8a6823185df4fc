"""A guest that does anything, against the TSI service and what decides for it.

libFuzzer's bytes, through Atheris, are a program of small steps: control streams that
come and go, messages well formed or not and cut anywhere, tokens of anybody, requests
for them, what the engine then tells of its connections, a new policy, time that goes
by. The engine is a model in Python, as strict about its calls as the real one; policy,
routing, log and metrics are real. A second sandbox stands by.

What must hold: nothing is dialled that the policy in force denies, by an oracle of its
own; a token leads where its owner's first ROUTE said; each request is answered once,
in time; all that is kept is bounded, and gone at the end; nothing raises or is logged
as our error; the bystander is served at any moment.

`run.py` starts it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import logging
import os
import random
import selectors
import struct
import sys
from pathlib import Path
from typing import Any, cast

import atheris

with atheris.instrument_imports(include=["fastpath"]):
    from fastpath import throttle
    from fastpath.tsi import protocol, service, stream
    from fastpath.tsi.policyfile import parse
    from fastpath.tsi.service import TsiService
    from fastpath.ztunnel.clients import Clients
    from fastpath.ztunnel.dns import Dns
    from fastpath.ztunnel.metrics import Metrics
    from fastpath.ztunnel.model import Config, Fastpath, Sandbox, Workload
    from fastpath.ztunnel.outbound import Outbound, SandboxRouter
    from fastpath.ztunnel.routing import Routes

from vhost_user.engine import Ask, Dial, Echo, Event, EventKind, Reset

MAX_STEPS = 96
DIAL_S = 30.0
TSI_PORT = 21587
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
    "{}",
    "egress: {allow: ['192.0.2.0/24', '127.0.0.1:9090', '198.18.0.0/15']}",
    "egress: {deny: ['192.0.2.1:80', '2001:db8::/32', '198.18.0.1:7'], errno: EACCES}",
    "egress: {allow: ['0.0.0.0/0', '::/0']}",
]
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

    def __init__(self, box, port, now):
        self.box, self.port, self.since = box, port, now
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
        conn = self.conns.pop(number, None)
        if conn is None:
            sock.close()
            return False
        assert conn.target is None, "answered twice"
        sock.setblocking(False)
        conn.box.take_stream(sock)
        self.sockets.append(sock)
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

    def post(self, number, kind, error=0):
        conn = self.conns[number]
        event = Event(
            kind=kind, conn=number, port=conn.port, peer_port=1025, error=error
        )
        self.loop.call_soon(conn.box.service.handle_event, event)


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
        self.first = {}
        """Token to destination, as its owner said first; None: who knows."""
        client = world.clients.sandbox(name)
        client.policy = world.policies[0]
        self.service = TsiService(
            cast("Any", self.engine),
            cast("Any", self),
            SandboxRouter(world.outbound, client, world.dns),
            addresses=["10.0.0.2", "fd00::2"],
            name=name,
            policy=client.policy,
        )

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

    # What must hold

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

    # What the guest does

    def take_stream(self, sock):
        self.streams.append(Stream(self, sock))

    def set_policy(self, number):
        self.policy = number
        self.service.set_policy(self.world.policies[number])


class Stream:
    """The guest's end of a control stream."""

    def __init__(self, box, sock):
        self.box, self.sock = box, sock
        self.token = None
        """The next one to register; None: not welcomed, or nobody knows."""
        self.range = None
        self.data = b""

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
            assert kind in (2, 3, 5), f"message type {kind}"
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
            else:
                assert size == 12

    def register(self, destination, cut=0):
        """Register the next token properly."""
        if self.token is None:
            return
        token, self.token = self.token, self.token + 1
        self.box.first.setdefault(token, destination)
        self.send(route(token, destination), cut)


def route(token, destination):
    ip = ipaddress.ip_address(destination[0])
    head = struct.pack("<HHIHH", 4, 24, token, ip.version, destination[1])
    return head + ip.packed.ljust(16, b"\0")


def hello(low=1, high=1):
    return struct.pack("<HHIHH", 1, 8, 0x41495354, low, high)


class World:
    """Two sandboxes on one engine."""

    def __init__(self, target):
        self.loop = Loop()
        asyncio.set_event_loop(self.loop)
        self.engine = Engine(self.loop)
        self.policies = target.policies
        self.clients = Clients(target.config)
        self.lines = 0
        self.dns = Dns(target.config)
        routes = Routes(target.config, rng=random.Random(1))
        self.outbound = Outbound(
            routes, cast("Any", self), target.metrics, self.engine.reset
        )

    def write(self, record):
        """Be the access log."""
        self.lines += 1
        assert record.src.identity.endswith(("/sa/a", "/sa/b"))

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
            chosen.register(data.pick(DESTINATIONS), data.byte() % 29)

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
            kind, size = data.byte() % 50, data.byte()
            payload = data.take(size if size < 64 else 8)
            lie = size << 8 if size & 1 else len(payload)
            chosen.send(struct.pack("<HH", kind, lie) + payload, size % 8)

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
        self.pass_time(0.6)  # within its own pace

    def close(self):
        """End everything; nothing may be left."""
        for box in (self.a, self.b):
            for each in box.streams:
                each.sock.close()
        self.pass_time(service.HOLD_S + 1)
        for _ in range(64):  # what was sent before is still read, at its pace
            if self.a.service.stats().streams:
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
            box.service.close()
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
)


def decode(data):
    """Check that it does not matter where the bytes of a stream are cut."""
    cut = 1 + data[0] % 32
    whole = data[1:]
    parts = [whole[i : i + cut] for i in range(0, len(whole), cut)]
    one, other = decoded(whole), decoded(*parts)
    assert one == other, f"{one} in one piece, {other} in pieces of {cut}"
    assert len(one[2]) <= protocol.MAX_TEXT


def decoded(*parts):
    decoder, found = protocol.Decoder(), []
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
    for kind in range(1, 6):
        yield bytes([0, kind]) + hello() + route(0x100000, ECHO) + bytes([kind, 0, 8])


class Target:
    """What is made once, for all inputs."""

    def __init__(self):
        self.errors = Errors()
        logging.getLogger().addHandler(self.errors)
        logging.getLogger().setLevel(logging.ERROR)
        self.metrics = Metrics()
        self.policies = [parse(text.encode(), "policy") for text in POLICIES]
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
        self.config = Config(workloads=workloads, fastpath=own)

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
