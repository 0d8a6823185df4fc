"""The datagram service: a fake agent on one side, UDP sockets on the other.

The agent's side is written out by hand, from docs/tsi-protocol.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import itertools
import socket
import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, cast

import pytest

from fastpath import throttle
from fastpath.tsi import datagram_flows, datagram_stream
from fastpath.tsi.datagram import DatagramService
from fastpath.tsi.datagram_limits import DatagramLimits
from fastpath.tsi.policy import EgressPolicy, Limits, Rule, SandboxPolicy
from tests.support.limits import LIMIT_S, until
from vhost_user.engine import Event, EventKind, Reset

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


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("size", [0, 1, 65507])
def test_datagrams_pass_both_ways_whole(host, size):
    async def work(world):
        agent, server = await world.greeted(), world.server(host)
        assert await agent.peer(7, server.getsockname()[:2]) == 0
        agent.datagram(7, bytes(size))
        data, source = await heard(server)
        assert data == bytes(size)
        server.sendto(b"back", source)
        await agent.expect(7, b"back")
        stats = world.service.stats()
        assert (stats.sent, stats.received, stats.flows) == (1, 1, 1)

    run(work)


def test_one_flow_has_one_source_for_all_its_peers():
    async def work(world):
        agent = await world.greeted()
        servers = [world.server(), world.server()]
        sources = set()
        for number, server in enumerate(servers):
            await agent.peer(number, server.getsockname())
            agent.datagram(number, b"x")
            _, source = await heard(server)
            sources.add(source)
            server.sendto(b"%d" % number, source)
            await agent.expect(number, b"%d" % number)
        assert len(sources) == 1
        agent.datagram(0, b"x", flow=FLOW + 1)
        assert (await heard(servers[0]))[1] not in sources

    run(work)


def test_only_peers_that_were_sent_to_are_heard():
    async def work(world):
        agent, server, other = await world.greeted(), world.server(), world.server()
        await agent.peer(1, server.getsockname())
        await agent.peer(2, other.getsockname())
        agent.datagram(1, b"x")
        _, source = await heard(server)
        other.sendto(b"unasked", source)
        world.server().sendto(b"unknown", source)
        await world.counted("unasked", 2)
        agent.datagram(2, b"now")
        await heard(other)
        other.sendto(b"asked", source)
        await agent.expect(2, b"asked")

    run(work)


def test_a_closed_port_is_reported_with_its_peer():
    async def work(world):
        agent, server, gone = await world.greeted(), world.server(), world.server()
        await agent.peer(1, server.getsockname())
        await agent.peer(2, gone.getsockname())
        gone.close()
        agent.datagram(2, b"x")
        await agent.expect_unreachable(2, errno.ECONNREFUSED)
        agent.datagram(2, b"x")
        agent.datagram(1, b"goes on")
        assert (await heard(server))[0] == b"goes on"
        await agent.expect_unreachable(2, errno.ECONNREFUSED)

    run(work)


def test_udp_is_off_by_default():
    async def work(world):
        agent, server = await world.greeted(), world.server()
        address = server.getsockname()
        assert await agent.peer(1, address) == errno.ECONNREFUSED
        assert world.router.denied == [(address, "udp_off")]
        for _ in range(2):
            agent.datagram(1, b"x")
            await agent.expect_unreachable(1, errno.ECONNREFUSED)
        assert world.router.denied == [(address, "udp_off")]
        assert world.service.stats().denied == 3
        with pytest.raises(BlockingIOError):
            server.recv(10)

    run(work, OFF)


def test_a_denied_destination_has_the_policys_errno():
    async def work(world):
        agent = await world.greeted()
        assert await agent.peer(1, ("169.254.169.254", 123)) == errno.EACCES
        assert await agent.peer(2, ("ff02::1", 123)) == errno.EACCES

    policy = EgressPolicy(error=errno.EACCES)
    run(work, SandboxPolicy(egress=policy, udp=True))


@pytest.mark.parametrize("policy", [ON, OFF])
def test_port_53_is_answered_whatever_the_address_and_the_policy(policy):
    async def work(world):
        agent = await world.greeted()
        assert await agent.peer(9, ("169.254.1.1", 53)) == 0
        agent.datagram(9, b"query")
        await agent.expect(9, b"answer to query")
        agent.datagram(9, b"")  # no query, no answer
        agent.datagram(9, b"more")
        await agent.expect(9, b"answer to more")
        stats = world.service.stats()
        assert (stats.dns, stats.flows) == (2, 0)

    run(work, policy)


def test_a_new_policy_is_told_and_holds_for_what_is_open():
    async def work(world):
        agent, server = await world.greeted(), world.server()
        await agent.peer(1, server.getsockname())
        await agent.peer(2, ("192.0.2.1", 53))
        agent.datagram(1, b"x")
        _, source = await heard(server)
        world.service.set_policy(OFF)
        refused = (VERDICT, struct.pack("<II", 1, errno.ECONNREFUSED))
        assert await agent.receive() == refused
        await agent.expect_unreachable(1, errno.ECONNREFUSED)
        stats = world.service.stats()
        assert (stats.ended, stats.flows) == (1, 0)
        assert world.router.denied == [(server.getsockname(), "udp_off")]
        server.sendto(b"late", source)
        agent.datagram(1, b"x")
        await agent.expect_unreachable(1, errno.ECONNREFUSED)
        world.service.set_policy(ON)
        assert await agent.receive() == (VERDICT, struct.pack("<II", 1, 0))
        agent.datagram(1, b"x")
        server.sendto(b"again", (await heard(server))[1])
        await agent.expect(1, b"again")

    run(work)


def test_a_new_policy_ends_what_it_denies_and_nothing_else():
    async def work(world):
        agent, server, other = await world.greeted(), world.server(), world.server()
        for number, to in ((1, server), (2, other)):
            await agent.peer(number, to.getsockname())
            agent.datagram(number, b"x")
        _, source = await heard(server)
        await heard(other)
        agent.datagram(2, b"x", flow=FLOW + 1)
        await heard(other)
        agent.datagram(1, b"x", flow=FLOW + 2)
        await heard(server)
        port = other.getsockname()[1]
        closed = EgressPolicy(
            allow=[Rule.parse("127.0.0.1/32")],
            deny=[Rule.parse(f"127.0.0.1/32:{port}")],
            error=errno.EACCES,
        )
        world.service.set_policy(SandboxPolicy(egress=closed, udp=True))
        verdict = (VERDICT, struct.pack("<II", 2, errno.EACCES))
        assert await agent.receive() == verdict
        for flow in (FLOW, FLOW + 1):
            await agent.expect_unreachable(2, errno.EACCES, flow=flow)
        stats = world.service.stats()
        assert (stats.ended, stats.flows) == (2, 2)
        other.sendto(b"unasked", source)
        server.sendto(b"goes on", source)
        await agent.expect(1, b"goes on")
        assert world.service.stats().unasked == 1

    run(work)


def test_a_lower_limit_ends_a_flow_when_the_next_one_comes():
    async def work(world):
        agent, server = await world.greeted(), world.server()
        await agent.peer(1, server.getsockname())
        for flow in (1, 2, 3):
            agent.datagram(1, b"x", flow=flow)
            await heard(server)
        world.service.set_policy(replace(ON, limits=Limits(max_udp_sockets=1)))
        assert world.service.stats().flows == 3
        agent.datagram(1, b"x", flow=4)
        await heard(server)
        assert world.service.stats().flows == 1

    run(work)


def test_each_family_has_a_socket_of_its_own():
    async def work(world):
        agent = await world.greeted()
        for number, host in enumerate(("127.0.0.1", "::1")):
            server = world.server(host)
            await agent.peer(number, server.getsockname()[:2])
            agent.datagram(number, b"x")
            await heard(server)
        assert world.service.stats().flows == 2

    run(work)


def test_no_descriptor_left_refuses_a_stream(monkeypatch):
    def none(*_):
        raise OSError(errno.EMFILE, "no descriptors")

    async def work(world):
        monkeypatch.setattr(socket, "socketpair", none)
        world.service.accept(Event(kind=EventKind.REQUEST, conn=1))
        assert world.engine.answers == [(1, Reset(errno.EMFILE))]

    run(work)


def test_lines_about_refused_streams_are_bounded(caplog):
    async def work(world):
        for _ in range(throttle.BURST + 5):
            agent = world.agent()
            agent.sock.send(HELLO + HELLO)
            while await agent.receive() is not None:
                pass

    run(work)
    lines = [line for line in caplog.messages if "datagrams refused" in line]
    assert throttle.BURST <= len(lines) < throttle.BURST + 5
    assert "more lines about datagrams" in caplog.text


def test_a_number_that_is_given_away_is_nobodys():
    async def work(world):
        agent, server, other = await world.greeted(), world.server(), world.server()
        await agent.peer(1, server.getsockname())
        await agent.peer(1 + datagram_stream.PEERS, other.getsockname())
        agent.datagram(1, b"x")
        agent.datagram(3, b"x")
        agent.datagram(1 + datagram_stream.PEERS, b"mine")
        assert (await heard(other))[0] == b"mine"
        assert world.service.stats().ignored == 2

    run(work)


def test_a_number_that_another_peer_gets_opens_nothing_to_it():
    async def work(world):
        agent, server, other = await world.greeted(), world.server(), world.server()
        await agent.peer(1, server.getsockname())
        agent.datagram(1, b"x")
        _, source = await heard(server)
        await agent.peer(1, other.getsockname())
        other.sendto(b"unasked", source)
        server.sendto(b"nobody's", source)
        await world.counted("unasked", 2)
        agent.datagram(1, b"now")
        assert (await heard(other))[0] == b"now"
        other.sendto(b"asked", source)
        await agent.expect(1, b"asked")

    run(work)


def test_one_flow_too_many_ends_the_longest_unused():
    async def work(world):
        agent, server = await world.greeted(), world.server()
        await agent.peer(1, server.getsockname())
        sources = {}
        for flow in (1, 2, 1, 3):
            agent.datagram(1, b"x", flow=flow)
            sources[flow] = (await heard(server))[1]
        stats = world.service.stats()
        assert (stats.flows, stats.limit_flows) == (2, 1)
        for flow in (1, 2, 3):
            server.sendto(b"%d" % flow, sources[flow])
        got = {struct.unpack_from("<H", (await agent.receive())[1])[0] for _ in "13"}
        assert got == {1, 3}

    run(work, replace(ON, limits=Limits(max_udp_sockets=2)))


def test_idle_flows_are_closed(monkeypatch):
    monkeypatch.setattr(datagram_flows, "SWEEP_S", 0.05)

    async def work(world):
        agent, server = await world.greeted(), world.server()
        await agent.peer(1, server.getsockname())
        agent.datagram(1, b"x")
        await heard(server)
        await world.counted("flows", 1)
        await world.counted("flows", 0)

    run(work, idle_s=0.2)


def test_a_guest_that_does_not_read_loses_datagrams_and_then_its_stream():
    async def work(world):
        agent, server = await world.greeted(), world.server()
        await agent.peer(1, server.getsockname())
        agent.datagram(1, b"x")
        _, source = await heard(server)
        while not world.service.stats().limit_queue:
            server.sendto(bytes(8192), source)
            await asyncio.sleep(0)
        assert world.service.stats().streams == 1
        other = await world.greeted()  # nobody else's trouble
        assert await other.peer(1, server.getsockname()) == 0
        message = struct.pack("<HHIHH", PEER, 24, 9, 4, 9) + bytes(16)
        async with asyncio.timeout(LIMIT_S):
            while world.service.stats().streams == 2:
                await asyncio.get_running_loop().sock_sendall(agent.sock, message)
            # it may have gone between two of them
            await asyncio.get_running_loop().sock_sendall(agent.sock, message)

    def until_it_is_gone(world):
        return work(world)

    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        run(until_it_is_gone, queue_bytes=20000)


def test_an_agents_messages_are_handled_some_at_a_time(monkeypatch):
    monkeypatch.setattr(datagram_stream, "_MESSAGES_AT_ONCE", 4)

    async def work(world):
        agent = await world.greeted()
        peers = [
            struct.pack("<HHIHH", PEER, 24, n, 4, 9) + bytes(16) for n in range(90)
        ]
        agent.sock.send(b"".join(peers))
        seen = [0]
        async with asyncio.timeout(LIMIT_S):
            while seen[-1] < len(peers):
                await asyncio.sleep(0)
                seen.append(world.service.stats().denied)
        assert max(b - a for a, b in itertools.pairwise(seen)) <= 4
        for number in range(len(peers)):
            kind, payload = await agent.receive()
            assert (kind, payload[:4]) == (VERDICT, struct.pack("<I", number))

    run(work)


@pytest.mark.parametrize("streams", [1, 5])
def test_a_guest_that_sends_too_fast_is_read_slower(streams):
    async def work(world):
        agents = [await world.greeted() for _ in range(streams)]
        agent, server = agents[-1], world.server()
        await agent.peer(1, server.getsockname())
        for _ in range(50):
            agent.datagram(1, b"x")
        for _ in range(50):
            await heard(server)
        agent.datagram(1, b"late")
        await until(lambda: world.service.stats().limit_rate)
        assert world.service.stats().sent == 50

    run(work, rate=0.001, burst=10)


def test_dns_queries_at_a_time_are_bounded():
    async def work(world):
        agent = await world.greeted()
        await agent.peer(1, ("192.0.2.1", 53))
        world.router.gate.clear()
        for number in range(5):
            agent.datagram(1, b"%d" % number)
        await world.counted("limit_dns", 3)
        world.router.gate.set()
        await agent.expect(1, b"answer to 0")
        await agent.expect(1, b"answer to 1")

    run(work, dns_queries=2)


def test_streams_are_bounded():
    async def work(world):
        await world.greeted()
        kind, payload = await world.agent().receive()
        assert kind == REFUSED
        assert struct.unpack_from("<I", payload)[0] == 4
        assert world.service.stats().refused == 1

    run(work, streams=1)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack("<HHIHH", 33, 24, 1, 4, 9) + bytes(16), 3),
        (struct.pack("<HHIHH", 1, 8, 0x41495354, 2, 3), 2),
        (HELLO + HELLO, 3),
        (HELLO + struct.pack("<HH", 4, 24), 3),
        (HELLO + struct.pack("<HH", 33, 23), 1),
        (HELLO + struct.pack("<HH", 35, 7), 1),
        (HELLO + struct.pack("<HH", 35, 65516), 1),
        (HELLO + struct.pack("<HHIHH", 33, 24, 1, 5, 9) + bytes(16), 1),
    ],
    ids=[
        "no HELLO",
        "no common version",
        "a second HELLO",
        "a control stream's type",
        "PEER too short",
        "DATAGRAM too short",
        "DATAGRAM too long",
        "bad family",
    ],
)
def test_a_stream_that_breaks_the_protocol_is_refused(data, code):
    async def work(world):
        agent = world.agent()
        agent.sock.send(data)
        while (message := await agent.receive())[0] == GRANT:
            pass
        assert message[0] == REFUSED
        assert struct.unpack_from("<I", message[1])[0] == code
        assert await agent.receive() is None
        assert world.service.stats().refused == 1

    run(work)


def test_the_end_of_a_stream_ends_its_flows():
    async def work(world):
        agent, other = await world.greeted(), await world.greeted()
        server = world.server()
        for each in (agent, other):
            await each.peer(1, server.getsockname())
            each.datagram(1, b"x")
            await heard(server)
        agent.sock.close()
        await world.counted("flows", 1)
        assert world.service.stats().streams == 1

    run(work)


def test_every_counter_is_a_number():
    async def work(world):
        assert all(
            isinstance(value, int)
            for value in dataclasses.asdict(world.service.stats()).values()
        )

    run(work)
