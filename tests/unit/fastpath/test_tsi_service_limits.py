"""What one guest may take of the TSI service: requests, tokens, streams, time."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct

from fastpath.tsi import service as module
from fastpath.tsi import stream
from fastpath.tsi.protocol import UNKNOWN_TOKEN
from tests.unit.fastpath.service_agent import DESTINATION, REFUSED, run
from vhost_user.engine import Dial, EventKind, Reset


def test_a_request_waits_for_no_more_messages_than_its_route_is_behind(monkeypatch):
    """Of what else was sent, some at a time are handled; others have their turn."""
    monkeypatch.setattr(stream, "_MESSAGES_AT_ONCE", 4)

    async def work(world):
        agent = await world.greeted()
        for i in range(150):
            agent.register(agent.first_token + i)
        for i in (0, 59, 99):  # however many turns it would take
            conn = world.request(agent.first_token + i)
            assert world.engine.answers[conn] == Dial(DESTINATION)
            assert world.service.stats().tokens == i + 1
        seen = [100]
        while seen[-1] < 150:
            await asyncio.sleep(0)
            seen.append(world.service.stats().tokens)
        assert max(b - a for a, b in itertools.pairwise(seen)) <= 4
        agent.register(agent.first_token + 150)
        conn = world.request(agent.first_token + 150)
        assert world.engine.answers[conn] == Dial(DESTINATION)

    run(work)


def test_held_requests_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD", 2)

    async def work(world):
        agent = await world.greeted()
        conns = [world.request(agent.first_token + i) for i in range(3)]
        assert world.engine.answers == {conns[2]: Reset(UNKNOWN_TOKEN)}

    run(work)


def test_too_many_tokens_make_the_oldest_forgotten(monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 4)

    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token)
        live = world.request(agent.first_token)
        for i in range(1, 5):
            agent.register(agent.first_token + i)
        await asyncio.sleep(0.05)
        assert agent.first_token not in world.device.routes
        refused = world.request(agent.first_token)
        assert world.engine.answers[refused] == Reset(UNKNOWN_TOKEN)
        world.event(EventKind.OPENED, agent.first_token, live)
        world.event(EventKind.CLOSED, agent.first_token, live)
        assert world.router.said[-1] == ("closed", DESTINATION)
        assert world.service.stats().forgotten == 1

    run(work)


def test_a_flood_is_read_at_its_pace():
    async def work(world):
        agent = await world.greeted()
        loop = asyncio.get_running_loop()
        data = b"".join(
            struct.pack("<HHIHH", 4, 24, agent.first_token + i, 4, 80)
            + socket.inet_aton("192.0.2.1").ljust(16, b"\0")
            for i in range(20000)
        )
        sender = loop.create_task(loop.sock_sendall(agent.sock, data))
        await asyncio.sleep(0.5)
        assert not sender.done()
        assert world.service.stats().tokens < 12000
        sender.cancel()

    run(work)


def test_many_streams_are_read_no_faster_than_one():
    """Else a token could be forgotten while a dial to it is under way, unlogged."""

    async def work(world):
        agents = [world.agent() for _ in range(16)]
        loop = asyncio.get_running_loop()
        senders = []
        for agent in agents:
            await agent.greet()
        begin = loop.time()
        for agent in agents:
            data = b"".join(
                struct.pack("<HHIHH", 4, 24, agent.first_token + i, 4, 80)
                + socket.inet_aton("192.0.2.1").ljust(16, b"\0")
                for i in range(4000)
            )
            senders.append(loop.create_task(loop.sock_sendall(agent.sock, data)))
        await asyncio.sleep(0.5)
        allowed = 8192 + 2000 * (loop.time() - begin + 0.1)
        assert world.service.stats().tokens < allowed + 600  # one read
        for sender in senders:
            sender.cancel()

    run(work)


def test_an_agent_too_many_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_STREAMS", 1)

    async def work(world):
        one, other = world.agent(), world.agent()
        await one.greet()
        kind, payload = await other.receive()
        assert kind == REFUSED
        assert struct.unpack_from("<I", payload)[0] == 4
        assert await other.receive() == b""

    run(work)


def test_a_guest_that_does_not_read_loses_its_own_messages_only():
    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token)
        for _ in range(20000):
            conn = next(world.conns)
            world.event(EventKind.FAILED, agent.first_token, conn, error=111)
        stats = world.service.stats()
        assert stats.unsent > 0

    run(work)
