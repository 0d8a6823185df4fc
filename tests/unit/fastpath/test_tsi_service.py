"""The TSI service: events of a device in, answers and routes out."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct

import pytest

from fastpath.tsi import service as module
from fastpath.tsi.policy import Limits, SandboxPolicy
from fastpath.tsi.protocol import UNKNOWN_TOKEN
from tests.unit.fastpath.service_agent import (
    DESTINATION,
    FAILED,
    HELLO,
    REFUSED,
    TSI_PORT,
    WELCOME,
    run,
)
from vhost_user.engine import Ask, Dial, Echo, EventKind, Reset


def test_the_device_asks_about_all_ports():
    async def work(world):
        assert world.device.routes == {TSI_PORT: Ask(), None: Ask()}

    run(work)


def test_an_agent_learns_its_tokens_and_the_pods_addresses():
    async def work(world):
        payload = await world.agent().greet()
        version, _, first, count, window, timeout_ms = struct.unpack_from(
            "<HHIIII", payload
        )
        assert (version, window) == (1, 8192)
        assert first >= 0x10000
        assert count >= window
        assert timeout_ms > 30000
        assert payload[20:24] == bytes([10, 0, 0, 5])
        assert payload[24:] == socket.inet_pton(socket.AF_INET6, "fd00::5")

    run(work)


def test_a_request_is_decided_after_its_route_was_read():
    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token)
        conn = world.request(agent.first_token)  # nothing ran in between
        assert world.engine.answers[conn] == Dial(DESTINATION)
        assert world.router.said == [("route", DESTINATION)]

    run(work)


def test_a_cacheable_answer_becomes_a_route_of_the_device():
    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token)
        agent.register(agent.first_token + 1, port=81)
        world.request(agent.first_token)
        world.request(agent.first_token + 1)
        assert world.device.routes[agent.first_token] == Dial(DESTINATION)
        assert agent.first_token + 1 not in world.device.routes

    run(work)


def test_the_router_hears_of_connections_that_it_was_not_asked_about():
    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token)
        world.request(agent.first_token)
        world.router.said.clear()
        conn = world.event(EventKind.OPENED, agent.first_token)
        world.event(EventKind.CLOSED, agent.first_token, conn)
        assert world.router.said == [("opened", DESTINATION), ("closed", DESTINATION)]

    run(work)


def test_a_failure_is_sent_to_the_agent_with_its_errno():
    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token, port=666)
        conn = world.request(agent.first_token)
        assert world.engine.answers[conn] == Reset(errno.EACCES)
        world.event(EventKind.FAILED, agent.first_token, conn, error=errno.EACCES)
        kind, payload = await agent.receive()
        assert kind == FAILED
        assert struct.unpack("<III", payload) == (
            1025,
            agent.first_token,
            errno.EACCES,
        )
        assert world.router.said[-1] == ("failed", ("192.0.2.1", 666))

    run(work)


def test_a_request_ahead_of_its_route_waits_for_it():
    async def work(world):
        agent = await world.greeted()
        conn = world.request(agent.first_token + 2)
        assert conn not in world.engine.answers
        assert world.service.stats().held == 1
        agent.register(agent.first_token + 2)
        await asyncio.sleep(0.05)
        assert world.engine.answers[conn] == Dial(DESTINATION)
        assert world.service.stats().held == 0

    run(work)


def test_a_request_whose_route_never_comes_is_refused(monkeypatch):
    monkeypatch.setattr(module, "HOLD_S", 0.05)

    async def work(world):
        agent = await world.greeted()
        conn = world.request(agent.first_token)
        await asyncio.sleep(0.2)
        assert world.engine.answers[conn] == Reset(UNKNOWN_TOKEN)
        assert world.service.stats().held == 0

    run(work)


@pytest.mark.parametrize("token", [0x10000, 0xFFFFFFFF])
def test_a_token_of_nobody_is_refused(token):
    async def work(world):
        conn = world.request(token)
        assert world.engine.answers[conn] == Reset(UNKNOWN_TOKEN)
        world.event(EventKind.FAILED, token, conn, error=UNKNOWN_TOKEN)
        assert world.router.said == []

    run(work)


def test_a_new_policy_takes_the_routes_from_the_engine():
    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token)
        world.request(agent.first_token)
        assert agent.first_token in world.device.routes
        policy = SandboxPolicy(limits=Limits(max_conns=7, max_queued_bytes=1 << 20))
        world.service.set_policy(policy)
        assert world.device.routes == {TSI_PORT: Ask(), None: Ask()}
        assert world.device.limits == {
            "max_conns": 7,
            "max_queued_bytes": 1 << 20,
            "accept_rate": 0,
        }
        assert world.service.policy is policy
        assert world.router.said[-1] == ("policy", policy)
        world.request(agent.first_token)
        assert world.router.said[-1] == ("route", DESTINATION)
        assert agent.first_token in world.device.routes

    run(work)


def test_a_request_that_waits_for_its_route_meets_the_new_policy():
    async def work(world):
        agent = await world.greeted()
        world.request(agent.first_token)
        world.service.set_policy(SandboxPolicy())
        agent.register(agent.first_token)
        await asyncio.sleep(0.05)
        assert [what for what, _ in world.router.said] == ["policy", "route"]

    run(work)


def test_two_agents_have_different_tokens_and_hear_of_their_own():
    async def work(world):
        one, other = world.agent(), world.agent()
        await one.greet()
        await other.greet()
        assert one.first_token != other.first_token
        one.register(one.first_token)
        other.register(other.first_token)
        conn = world.request(other.first_token)
        world.event(EventKind.FAILED, other.first_token, conn, error=111)
        assert (await other.receive())[0] == FAILED
        with pytest.raises(BlockingIOError):
            one.sock.recv(1)

    run(work)


def test_tokens_of_another_stream_are_ignored():
    async def work(world):
        one, other = world.agent(), world.agent()
        await one.greet()
        await other.greet()
        one.register(other.first_token, "198.51.100.1")
        other.register(other.first_token)
        await asyncio.sleep(0.05)
        conn = world.request(other.first_token)
        assert world.engine.answers[conn] == Dial(DESTINATION)
        assert world.service.stats().ignored == 1

    run(work)


def test_a_tokens_destination_never_changes():
    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token)
        agent.register(agent.first_token, "198.51.100.1")
        conn = world.request(agent.first_token)
        assert world.engine.answers[conn] == Dial(DESTINATION)

    run(work)


def test_a_held_request_that_the_guest_takes_back_leaves_nothing():
    async def work(world):
        agent = await world.greeted()
        conn = world.request(agent.first_token)
        world.event(EventKind.FAILED, agent.first_token, conn, error=errno.ECONNRESET)
        assert world.service.stats().held == 0
        agent.register(agent.first_token)
        await asyncio.sleep(0.05)
        assert world.router.said == []
        assert not world.service._live

    run(work)


def test_a_streams_tokens_outlive_it_for_a_while(monkeypatch):
    monkeypatch.setattr(module, "RANGE_REST_S", 0.1)

    async def work(world):
        agent = await world.greeted()
        agent.register(agent.first_token)
        world.request(agent.first_token)
        agent.sock.close()
        await asyncio.sleep(0.02)
        assert world.service.stats().streams == 0
        conn = world.event(EventKind.OPENED, agent.first_token)
        world.event(EventKind.CLOSED, agent.first_token, conn)
        assert world.router.said[-1] == ("closed", DESTINATION)
        await asyncio.sleep(0.3)
        assert world.service.stats().tokens == 0
        assert agent.first_token not in world.device.routes

    run(work)


def test_ranges_are_used_in_turn():
    async def work(world):
        first = set()
        for _ in range(5):
            agent = world.agent()
            await agent.greet()
            first.add(agent.first_token)
            agent.sock.close()
            await asyncio.sleep(0.01)
        assert len(first) == 5

    run(work)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(HELLO + HELLO, 3, id="second-hello"),
        pytest.param(
            struct.pack("<HHIHH", 4, 24, 0x10000, 4, 80) + bytes(16), 3, id="no-hello"
        ),
        pytest.param(struct.pack("<HHIHH", 1, 8, 0x41495354, 2, 9), 2, id="version"),
        pytest.param(HELLO[:2] + b"\x09\0" + HELLO[4:] + b"k", 1, id="half-a-key"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", 3, id="garbage"),
    ],
)
def test_a_stream_that_breaks_the_protocol_is_refused_with_a_reason(data, code):
    async def work(world):
        agent = world.agent()
        agent.send(data)
        message = await agent.receive()
        if message[0] == WELCOME:
            message = await agent.receive()
        assert message[0] == REFUSED
        assert struct.unpack_from("<I", message[1])[0] == code
        assert message[1][4:].isascii()
        assert await agent.receive() == b""
        assert world.service.stats().refused == 1

    run(work)


@pytest.mark.parametrize("port", [TSI_PORT, 21588])
@pytest.mark.parametrize("guest_port", [1024, 0xFFFFFFFF])
def test_a_stream_from_a_port_that_every_program_can_bind_is_reset(port, guest_port):
    """And costs nothing: no range, no socket, no line in the log."""

    async def work(world):
        conn = world.event(EventKind.REQUEST, port, peer_port=guest_port)
        assert world.engine.answers[conn] == Reset(errno.EACCES)
        assert world.service.stats().streams == 0
        assert world.service.stats().unprivileged == 1

    run(work)


@pytest.mark.parametrize("key", [b"", bytes(16), b"k" * 15 + b"x"])
def test_an_agent_without_the_sandboxs_key_is_refused(key):
    async def work(world):
        agent = world.agent()
        size = 8 + len(key)
        agent.send(struct.pack("<HHIHH", 1, size, 0x41495354, 1, 1) + key)
        kind, payload = await agent.receive()
        assert (kind, payload[:4]) == (REFUSED, b"\5\0\0\0")

    run(work, key=b"k" * 16)


def test_an_agent_with_the_sandboxs_key_is_welcome():
    async def work(world):
        agent = world.agent()
        agent.send(struct.pack("<HHIHH", 1, 24, 0x41495354, 1, 1) + b"k" * 16)
        assert (await agent.receive())[0] == WELCOME

    run(work, key=b"k" * 16)


def test_other_ports_go_where_the_caller_says():
    async def work(world):
        conn = world.request(1029)
        assert world.engine.answers[conn] == Echo()

    run(work, other=Echo())


def test_events_of_other_ports_mean_nothing():
    async def work(world):
        for kind in (EventKind.OPENED, EventKind.FAILED, EventKind.CLOSED):
            world.event(kind, 1029)
            world.event(kind, TSI_PORT)
        world.event(EventKind.BROKEN, 1)
        assert world.router.said == []

    run(work)


def test_a_control_stream_that_is_gone_at_once_leaves_nothing():
    async def work(world):
        world.engine.gone.add(1)
        world.request(TSI_PORT)
        assert world.service.stats().streams == 0

    run(work)
