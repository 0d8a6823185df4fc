"""The datagram service: a fake agent on one side, UDP sockets on the other."""

from __future__ import annotations

import dataclasses
import errno
import struct

import pytest

from fastpath.tsi import datagram_stream
from fastpath.tsi.policy import EgressPolicy, Rule, SandboxPolicy
from tests.unit.fastpath.datagram_agent import (
    FLOW,
    GRANT,
    HELLO,
    OFF,
    ON,
    REFUSED,
    VERDICT,
    heard,
    run,
)


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
