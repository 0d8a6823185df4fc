"""Clients of a guest's listeners that the engine offers by itself, and what it is told.

The fakes are those of `test_tsi_inbound`.
"""

from __future__ import annotations

import asyncio
import errno
from ipaddress import IPv4Address, ip_address

import pytest

from fastpath.tsi import port as port_module
from fastpath.tsi.peers import Peers, first_port
from tests.unit.fastpath.inbound_world import (
    ANY6,
    LISTENING,
    PORT,
    VSOCK_PORT,
    is_reset,
    published,
    run,
)
from vhost_user.engine import Event, EventKind
from vhost_user.errors import StateError


async def known(world, *, version=4):
    """Let the guest take a first client: the engine is told of its IP."""
    count = len(world.device.offers) + 1
    await world.connect(version=version)
    await world.offered(count)
    world.event(EventKind.OPENED, count)


def callers(world):
    return [listener.callers for listener in world.device.listeners]


def test_the_engine_is_told_of_an_ip_when_the_guest_has_taken_its_first_client():
    async def work(world):
        world.listen()
        await world.connect()
        await world.offered(1)
        assert callers(world) == [{}]
        world.event(EventKind.OPENED, 1)
        here = ip_address("127.0.0.1")
        assert callers(world) == [{here: (VSOCK_PORT, first_port(1))}]

    run(work)


def test_a_client_that_the_engine_offers_is_known_by_its_events():
    async def work(world):
        world.listen()
        await known(world)
        client = await world.connect()
        await world.offered(2)
        assert world.device.own
        assert not world.inbound._offered
        world.event(EventKind.OPENED, 2)
        world.event(EventKind.CLOSED, 2, up_bytes=7)
        closed = ("closed", client.getsockname(), 7)
        assert world.publisher.said == ["opened", "opened", closed]
        world.event(EventKind.CLOSED, 1)
        assert not world.inbound._peers._holds

    run(work)


def test_a_client_that_the_engine_offers_holds_its_range():
    async def work(world):
        world.listen()
        await known(world)
        world.event(EventKind.CLOSED, 1)
        await world.connect()
        await world.offered(2)
        world.event(EventKind.OPENED, 2)
        assert world.inbound._peers._holds == {1: 1}

    run(work)


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.ETIMEDOUT, 0])
def test_a_client_of_the_engine_that_never_got_through_is_told(error):
    async def work(world):
        world.listen()
        await known(world)
        client = await world.connect()
        await world.offered(2)
        world.event(EventKind.FAILED, 2, error)
        failed = ("failed", client.getsockname(), error or errno.ECONNREFUSED)
        assert world.publisher.said[-1] == failed

    run(work)


def test_a_client_that_the_guest_refused_the_engine_waits_like_any_other(monkeypatch):
    async def work(world):
        monkeypatch.setattr(port_module, "FIRST_RETRY_S", 0.3)
        world.listen()
        await known(world)
        first = await world.connect()
        await world.offered(2)
        world.full(2)
        (listener,) = world.device.listeners
        while listener.backlogs[-1] != 2:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0)
        assert listener.paused
        assert not world.device.waiting
        second = await world.connect()
        _, port, _ = await world.offered(3)  # once more, by us
        assert port & 0xFFFF == first.getsockname()[1]
        world.event(EventKind.OPENED, 3)
        assert not listener.paused
        assert listener.backlogs[-1] == 16
        _, port, _ = await world.offered(4)
        assert port & 0xFFFF == second.getsockname()[1]
        assert 4 in world.device.own

    run(work)


def test_a_client_that_the_vm_has_no_room_for_is_offered_by_us():
    async def work(world):
        world.listen()
        await known(world)
        client = await world.connect()
        await world.offered(2)
        (listener,) = world.device.listeners
        fields, _ = world.device.own.pop(2)
        guest_port, port, sock = world.device.offers.pop()
        world.device.used.discard((guest_port, port))
        listener.ask(sock, fields, errno.EAGAIN)
        assert (await world.offered(2))[1] & 0xFFFF == client.getsockname()[1]
        assert not listener.paused

    run(work)


def test_a_client_that_nobody_took_in_time_is_told():
    async def work(world):
        world.listen()
        (listener,) = world.device.listeners
        source = ("127.0.0.1", 7)
        event = Event(
            kind=EventKind.FAILED,
            conn=9,
            error=errno.ETIMEDOUT,
            tag=PORT,
            src=source,
            dst=source,
        )
        listener.on_event(event)
        assert world.publisher.said == [("failed", source, errno.ETIMEDOUT)]

    run(work)


def change_policy(world):
    world.inbound.set_policy(published(PORT))


def change_backlog(world):
    world.listen(backlog=17)


def listen_twice(world):
    world.listen(VSOCK_PORT + 0x10000)


def listen_once_more(world):
    listen_twice(world)
    world.inbound.unlisten(world.agent, VSOCK_PORT + 0x10000)


@pytest.mark.parametrize(
    "change", [change_policy, change_backlog, listen_twice, listen_once_more]
)
def test_the_engine_forgets_all_when_the_policy_or_who_listens_changes(change):
    async def work(world):
        world.listen()
        await known(world)
        assert callers(world) != [{}]
        change(world)
        assert callers(world) == [{}]

    run(work)


def test_listeners_that_take_turns_are_offered_clients_by_us():
    async def work(world):
        world.listen()
        world.listen(VSOCK_PORT + 0x10000)
        for _ in range(3):
            await known(world)
        assert callers(world) == [{}]

    run(work)


def test_the_engine_is_not_told_of_a_listener_that_changed_meanwhile():
    async def work(world):
        world.listen()
        await world.connect()
        await world.offered(1)
        world.inbound.ended(world.agent)
        world.agent = world.another_agent()
        world.listen()
        world.event(EventKind.OPENED, 1)
        assert world.device.listeners[-1].callers == {}

    run(work)


def test_the_engine_is_not_told_of_an_ip_without_a_range():
    async def work(world):
        world.inbound._peers = Peers(2)
        world.listen()
        await known(world)
        assert callers(world) == [{}]

    run(work)


def test_the_engine_is_told_of_a_bounded_number_of_ips(monkeypatch):
    async def work(world):
        monkeypatch.setattr(port_module, "MAX_CALLERS", 1)
        world.listen(address=ANY6)
        await known(world)
        await known(world, version=6)
        assert callers(world) == [{ip_address("::1"): (VSOCK_PORT, first_port(2))}] * 2

    run(work)


def test_a_client_of_the_engine_that_the_policy_has_come_to_deny_is_ended():
    async def work(world):
        world.listen()
        await known(world)
        await world.connect()
        await world.offered(2)
        world.inbound.set_policy(published())
        world.event(EventKind.OPENED, 2)  # it was on its way
        assert [conn for conn, _ in world.device.resets] == [1, 2]
        assert world.publisher.said.count("ended") == 2

    run(work)


def test_a_range_that_the_engine_uses_goes_to_nobody_else():
    async def work(world):
        world.inbound._peers = Peers(4, world.inbound._in_use)
        world.listen(address=ANY6)
        for _ in range(2):
            await known(world)
            world.event(EventKind.CLOSED, len(world.device.offers))
        peers = world.inbound._peers
        assert peers.range_of(IPv4Address("192.0.2.1"), 0) == 2
        world.device.counts[first_port(1)] = 1
        assert peers.range_of(IPv4Address("192.0.2.2"), 0) == 2
        assert callers(world) == [{}, {}]  # it offers nobody from there
        peers.hold(2)
        assert peers.range_of(IPv4Address("192.0.2.3"), 0) == 0
        world.device.counts.clear()
        assert peers.range_of(IPv4Address("192.0.2.3"), 0) == 1

    run(work)


def test_an_engine_without_room_for_a_listener_gives_an_errno(monkeypatch):
    async def work(world):
        def full(*_, **__):
            raise StateError("full")

        monkeypatch.setattr(world.device, "add_guest_listener", full)
        reply = (LISTENING, (VSOCK_PORT, 0, 0, errno.ENOBUFS))
        assert world.listen() == reply

    run(work)


def test_a_client_of_a_listener_that_is_closed_is_reset():
    async def work(world):
        world.listen()
        world.device.listeners[0].unwatch()
        client = await world.connect()
        world.device.listeners[0].accept()
        world.inbound.unlisten(world.agent, VSOCK_PORT)
        await is_reset(client)
        failed = ("failed", client.getsockname(), errno.ECONNREFUSED)
        assert world.publisher.said == [failed]

    run(work)
