"""Clients of a guest's listeners that wait: for room, for an agent, for their end."""

from __future__ import annotations

import asyncio
import errno

import pytest

from fastpath.tsi import port as port_module
from tests.unit.fastpath.inbound_world import (
    VSOCK_PORT,
    is_reset,
    run,
)
from vhost_user.engine import EventKind


def test_a_client_waits_for_room_in_the_backlog():
    async def work(world):
        world.listen()
        await world.connect()
        await world.offered(1)
        world.full(1)
        await world.offered(2)  # once more, the same
        world.full(2)
        await world.offered(3)
        assert len({(guest, port) for guest, port, _ in world.device.offers}) == 1
        world.event(EventKind.OPENED, 3)
        assert world.publisher.said == ["opened"]

    run(work)


def test_no_client_overtakes_one_that_waits():
    async def work(world):
        world.listen()
        first = await world.connect()
        await world.offered(1)
        world.full(1)
        await world.connect()
        _, port, _ = await world.offered(2)
        assert port & 0xFFFF == first.getsockname()[1]
        world.event(EventKind.OPENED, 2)
        await world.offered(3)

    run(work)


def test_no_more_clients_are_offered_than_the_backlog_could_take():
    async def work(world):
        world.listen(backlog=1)
        for _ in range(3):
            await world.connect()
        await world.offered(2)
        await asyncio.sleep(0.02)
        await world.offered(2)
        world.event(EventKind.OPENED, 1)
        await world.offered(3)

    run(work)


def test_clients_that_wait_are_reset_when_the_listener_closes():
    async def work(world):
        world.listen()
        client = await world.connect()
        await world.offered(1)
        world.full(1)
        world.inbound.unlisten(world.agent, VSOCK_PORT)
        await is_reset(client)
        failed = ("failed", client.getsockname(), errno.ECONNREFUSED)
        assert world.publisher.said == [failed]

    run(work)


def test_a_client_on_offer_is_reset_when_the_listener_closes():
    async def work(world):
        world.listen()
        client = await world.connect()
        await world.offered(1)
        world.inbound.unlisten(world.agent, VSOCK_PORT)
        world.full(1)
        await is_reset(client)

    run(work)


def test_a_client_is_not_offered_for_ever(monkeypatch):
    async def work(world):
        monkeypatch.setattr(port_module, "OFFER_S", -1.0)
        world.listen()
        client = await world.connect()
        await world.offered(1)
        world.full(1)
        await is_reset(client)
        assert world.publisher.said[-1][2] == errno.ETIMEDOUT

    run(work)


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.ETIMEDOUT])
def test_a_client_that_left_or_a_guest_that_sleeps_ends_it(error):
    async def work(world):
        world.listen()
        client = await world.connect()
        await world.offered(1)
        world.event(EventKind.FAILED, 1, error)
        await is_reset(client)
        await asyncio.sleep(0.02)
        await world.offered(1)

    run(work)


def test_who_waits_is_offered_although_the_one_before_left():
    async def work(world):
        world.listen()
        clients = [await world.connect() for _ in range(2)]
        await world.offered(2)
        world.full(1)
        world.full(2)
        await world.offered(3)
        world.event(EventKind.FAILED, 3, errno.ECONNABORTED)
        _, port, _ = await world.offered(4)
        assert port & 0xFFFF == clients[1].getsockname()[1]

    run(work)
