"""What one guest's datagrams may cost: flows, streams, descriptors, queries, lines."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import struct
from dataclasses import replace

import pytest

from fastpath import throttle
from fastpath.tsi import datagram_flows, datagram_stream
from fastpath.tsi.policy import Limits
from tests.support.clock import Stopped
from tests.support.limits import LIMIT_S, until
from tests.unit.fastpath.datagram_agent import (
    HELLO,
    ON,
    PEER,
    REFUSED,
    VERDICT,
    heard,
    run,
)
from vhost_user.engine import Event, EventKind, Reset


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


def test_no_descriptor_left_refuses_a_stream(monkeypatch):
    def none(*_):
        raise OSError(errno.EMFILE, "no descriptors")

    async def work(world):
        monkeypatch.setattr(socket, "socketpair", none)
        world.service.accept(Event(kind=EventKind.REQUEST, conn=1))
        assert world.engine.answers == [(1, Reset(errno.EMFILE))]

    run(work)


def test_lines_about_refused_streams_are_bounded(caplog, monkeypatch):
    monkeypatch.setattr(throttle, "time", Stopped)

    async def work(world):
        for _ in range(throttle.BURST + 5):
            agent = world.agent()
            agent.sock.send(HELLO + HELLO)
            while await agent.receive() is not None:
                pass

    run(work)
    lines = [line for line in caplog.messages if "datagrams refused" in line]
    assert len(lines) == throttle.BURST
    assert "5 more lines about datagrams" in caplog.text


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
        await heard(server)  # by a flow, which may be over by now
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
