"""Listeners of a guest: doors on the host, offers to the guest, names of clients."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from fastpath.tsi import inbound as module
from fastpath.tsi.peers import Peers, first_port
from tests.unit.fastpath.inbound_world import (
    ANY4,
    ANY6,
    CALLER,
    LISTENING,
    PORT,
    VSOCK_PORT,
    is_refused,
    is_reset,
    published,
    run,
)
from vhost_user.engine import Event, EventKind


def test_a_listener_is_told_the_port_that_clients_use():
    async def work(world):
        kind, (listener, port, reserved, error) = world.listen()
        assert (kind, listener, reserved, error) == (LISTENING, VSOCK_PORT, 0, 0)
        assert port == world.publisher.doors[PORT, 4][1]
        assert world.publisher.backlogs == [16]
        assert world.inbound.listeners == 1

    run(work)


def test_what_is_not_published_stays_in_the_guest():
    async def work(world):
        assert world.listen(port=81) == (LISTENING, (VSOCK_PORT, 0, 0, 0))
        assert world.publisher.doors == {}
        assert world.inbound.listeners == 0

    run(work)


def test_a_port_that_the_host_cannot_have_gives_its_errno():
    async def work(world):
        world.publisher.error = errno.EADDRINUSE
        reply = (LISTENING, (VSOCK_PORT, 0, 0, errno.EADDRINUSE))
        assert world.listen() == reply
        world.publisher.error = None
        assert world.listen()[1][1] != 0

    run(work)


def test_a_client_is_offered_from_a_port_that_names_it():
    async def work(world):
        world.listen()
        first = await world.connect()
        guest_port, port, _ = await world.offered(1)
        assert guest_port == VSOCK_PORT
        assert port == 0x80010000 | first.getsockname()[1]
        peer = (0x80010000, 4, 0, ip_address("127.0.0.1").packed.ljust(16, b"\0"))
        assert world.agent.messages[1:] == [(CALLER, peer)]
        second = await world.connect()
        _, port, _ = await world.offered(2)
        assert port == 0x80010000 | second.getsockname()[1]
        assert world.agent.kinds() == [LISTENING, CALLER]  # known by now

    run(work)


def test_each_agent_is_told_of_a_client():
    async def work(world):
        other = world.another_agent()
        world.inbound.set_policy(published(PORT, 81))
        world.listen()
        world.listen(0x100051, agent=other, port=81)
        await world.connect()
        await world.offered(1)
        await world.connect(81)
        await world.offered(2)
        assert other.messages[1:] == world.agent.messages[1:]

    run(work)


def test_a_client_waits_until_the_agent_knows_it():
    async def work(world):
        world.agent.inbound = None
        world.listen()
        await world.connect()
        await world.connect()
        await world.agent.told.wait()
        await asyncio.sleep(0.02)
        assert not world.device.offers
        world.inbound.introduced(world.agent, 0x80020000)  # nobody asked
        assert not world.device.offers
        world.inbound.introduced(world.agent, 0x80010000)
        await world.offered(2)
        assert world.agent.kinds() == [LISTENING, CALLER]

    run(work)


def test_an_agent_that_does_not_answer_loses_the_client(monkeypatch):
    async def work(world):
        monkeypatch.setattr(module, "INTRODUCE_S", 0.01)
        world.agent.inbound = None
        world.listen()
        client = await world.connect()
        await is_reset(client)
        assert world.publisher.said[-1][2] == errno.ETIMEDOUT
        world.inbound.introduced(world.agent, 0x80010000)  # too late
        assert not world.device.offers

    run(work)


def test_a_client_of_an_agent_that_ends_goes_to_another():
    async def work(world):
        world.agent.inbound = None
        world.listen()
        client = await world.connect()
        await world.agent.told.wait()
        world.listen(VSOCK_PORT + 0x10000, agent=world.another_agent())
        world.inbound.ended(world.agent)
        guest_port, port, _ = await world.offered(1)
        assert guest_port == VSOCK_PORT + 0x10000
        assert port == 0x80010000 | client.getsockname()[1]

    run(work)


def test_a_client_that_waits_to_be_known_is_reset_at_the_end():
    async def work(world):
        world.agent.inbound = None
        world.listen()
        client = await world.connect()
        await world.agent.told.wait()
        world.inbound.close()
        await is_reset(client)

    run(work)


def test_a_range_that_had_another_owner_meanwhile_is_told_again(monkeypatch):
    async def work(world):
        world.inbound._peers = Peers(3, world.inbound._in_use)
        world.listen(address=ANY6)
        for count, version in enumerate((4, 6, 4), 1):
            await world.connect(version=version)
            await world.offered(count)
            world.event(EventKind.OPENED, count)
            world.event(EventKind.CLOSED, count)
        assert world.agent.kinds() == [LISTENING, CALLER, CALLER, CALLER]
        assert {fields[0] for _, fields in world.agent.messages[1:]} == {0x80010000}

    run(work)


@pytest.mark.parametrize(("address", "number"), [(ANY4, 0), (ANY6, 0x3FFF)])
def test_a_client_without_a_range_is_nobody(address, number):
    async def work(world):
        world.inbound._peers = Peers(ranges=2)
        world.listen(address=address)
        client = await world.connect()
        _, port, _ = await world.offered(1)
        assert port == first_port(number) | client.getsockname()[1]
        assert world.agent.kinds() == [LISTENING]

    run(work)


def test_an_ipv6_listener_is_told_of_ipv4_clients_as_it_shows_them():
    async def work(world):
        world.listen(address=ANY6)
        world.listen(VSOCK_PORT + 0x10000)
        seen = set()
        for count in (1, 2):
            await world.connect()
            guest_port, port, _ = await world.offered(count)
            _, (ports, family, _, packed) = world.agent.messages[-1]
            assert port & 0xFFFF0000 == ports
            seen.add((guest_port, family, packed))
        mapped = IPv6Address("::ffff:127.0.0.1").packed
        plain = ip_address("127.0.0.1").packed.ljust(16, b"\0")
        assert seen == {(VSOCK_PORT, 6, mapped), (VSOCK_PORT + 0x10000, 4, plain)}

    run(work)


def test_a_connection_lives_without_our_descriptor():
    async def work(world):
        world.listen()
        client = await world.connect()
        _, _, sock = await world.offered(1)
        world.event(EventKind.OPENED, 1)
        sock.send(b"hello")
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(client, 10) == b"hello"
        sock.close()
        assert await loop.sock_recv(client, 10) == b""  # nobody else has it
        world.event(EventKind.CLOSED, 1, up_bytes=7)
        address = client.getsockname()
        assert world.publisher.said == ["opened", ("closed", address, 7)]

    run(work)


def test_nobody_listens_after_unlisten():
    async def work(world):
        world.listen()
        world.inbound.unlisten(world.agent, VSOCK_PORT)
        await is_refused(world)
        world.inbound.unlisten(world.agent, VSOCK_PORT)  # ignored
        assert world.inbound.listeners == 0

    run(work)


def test_an_agents_listeners_end_with_it():
    async def work(world):
        other = world.another_agent()
        world.inbound.set_policy(published(PORT, 81))
        world.listen()
        world.listen(0x100051, agent=other, port=81)
        world.inbound.ended(world.agent)
        await is_refused(world)
        await world.connect(81)
        await world.offered(1)

    run(work)


def test_listeners_of_one_port_take_turns():
    async def work(world):
        world.listen()
        world.listen(VSOCK_PORT + 0x10000)
        for count in range(1, 5):
            await world.connect()
            await world.offered(count)
        guests = [guest for guest, _, _ in world.device.offers]
        assert sorted(guests) == [VSOCK_PORT] * 2 + [VSOCK_PORT + 0x10000] * 2
        assert guests[:2] == guests[2:]

    run(work)


def test_the_door_stays_open_for_the_other_listener_of_a_port():
    async def work(world):
        world.listen()
        world.listen(VSOCK_PORT + 0x10000)
        world.inbound.unlisten(world.agent, VSOCK_PORT)
        await world.connect()
        guest_port, _, _ = await world.offered(1)
        assert guest_port == VSOCK_PORT + 0x10000

    run(work)


@pytest.mark.parametrize(
    ("fields", "versions"),
    [
        pytest.param({}, {4}, id="ipv4"),
        pytest.param({"address": IPv4Address("10.0.0.5")}, {4}, id="pod"),
        pytest.param({"address": ANY6}, {4, 6}, id="dual"),
        pytest.param({"address": ANY6, "v6only": True}, {6}, id="v6only"),
        pytest.param({"address": IPv6Address("fd00::5")}, {6}, id="pod-ipv6"),
        pytest.param({"address": IPv6Address("::ffff:10.0.0.5")}, {4}, id="mapped"),
    ],
)
def test_a_listener_has_doors_for_its_clients_families(fields, versions):
    async def work(world):
        world.listen(**fields)
        assert {version for _, version in world.publisher.doors} == versions

    run(work)


def test_listeners_of_two_families_share_a_port():
    async def work(world):
        world.listen()
        world.listen(VSOCK_PORT + 0x10000, address=ANY6, v6only=True)
        await world.connect(version=6)
        guest_port, _, _ = await world.offered(1)
        assert guest_port == VSOCK_PORT + 0x10000
        assert world.agent.messages[-1][1][1] == 6
        await world.connect(version=4)
        guest_port, _, _ = await world.offered(2)
        assert guest_port == VSOCK_PORT

    run(work)


def test_a_client_whose_ports_are_still_in_use_gets_another_range():
    async def work(world):
        world.listen()
        client = socket.create_server(("127.0.0.1", 0))  # a port to come from
        port = client.getsockname()[1]
        client.close()
        world.device.used.add((VSOCK_PORT, first_port(1) | port))
        sock = socket.socket()
        world.clients.append(sock)
        sock.bind(("127.0.0.1", port))
        sock.connect(world.publisher.doors[PORT, 4])
        assert (await world.offered(1))[1] == first_port(2) | port

    run(work)


def test_a_policy_that_changes_opens_and_closes_doors():
    async def work(world):
        world.listen()
        assert world.inbound.listeners == 1
        world.inbound.set_policy(published())
        assert world.inbound.listeners == 0
        await is_refused(world)
        world.inbound.set_policy(published(PORT))
        assert world.inbound.listeners == 1
        await world.connect()
        await world.offered(1)

    run(work)


def test_a_listener_that_is_announced_anew_while_unpublished_may_come_back():
    """By the next agent; the one before is gone."""

    async def work(world):
        world.listen()
        world.inbound.set_policy(published())
        world.inbound.ended(world.agent)
        world.agent = world.another_agent()
        assert world.listen() == (LISTENING, (VSOCK_PORT, 0, 0, 0))
        assert world.listen() == (LISTENING, (VSOCK_PORT, 0, 0, 0))
        world.inbound.set_policy(published(PORT))
        await world.connect()
        await world.offered(1)
        world.inbound.set_policy(published())
        world.listen()
        world.inbound.unlisten(world.agent, VSOCK_PORT)
        world.inbound.set_policy(published(PORT))
        assert world.inbound.listeners == 0

    run(work)


def test_a_policy_that_changes_ends_connections_to_what_is_not_published():
    async def work(world):
        world.inbound.set_policy(published(PORT, 81))
        world.listen()
        world.listen(VSOCK_PORT + 1, port=81)
        for count, port in enumerate((PORT, 81, 81), 1):
            await world.connect(port)
            await world.offered(count)
        world.event(EventKind.OPENED, 1)
        world.event(EventKind.OPENED, 2)
        world.inbound.set_policy(published(PORT))
        assert world.device.resets == [(2, errno.ECONNRESET)]
        world.event(EventKind.OPENED, 3)  # it was on its way
        assert [conn for conn, _ in world.device.resets] == [2, 3]
        assert world.publisher.said.count("ended") == 2
        for conn in (2, 3):
            world.event(EventKind.CLOSED, conn)

    run(work)


def test_the_next_agent_is_told_whom_its_guest_is_connected_with():
    async def work(world):
        world.listen()
        for count in (1, 2):
            await world.connect()
            await world.offered(count)
        world.event(EventKind.OPENED, 1)
        known = world.agent.messages[1:]
        assert [kind for kind, _ in known] == [CALLER]
        world.inbound.ended(world.agent)
        other = world.another_agent()
        world.listen(agent=other)
        assert other.messages[:-1] == known

    run(work)


def test_a_listener_may_change_its_backlog():
    async def work(world):
        world.listen(backlog=1)
        port = world.listen(backlog=7)[1][1]
        assert port == world.publisher.doors[PORT, 4][1]
        assert world.publisher.backlogs == [1]  # the door is the same
        for count in range(1, 9):
            await world.connect()
            await world.offered(count)

    run(work)


def test_a_sandbox_has_a_bounded_number_of_listeners():
    async def work(world):
        world.inbound.set_policy(published(PORT, max_listeners=1))
        world.listen()
        unpublished = (LISTENING, (VSOCK_PORT + 1, 0, 0, 0))
        assert world.listen(VSOCK_PORT + 1, port=81) == unpublished
        reply = (LISTENING, (VSOCK_PORT + 0x10000, 0, 0, errno.ENOBUFS))
        assert world.listen(VSOCK_PORT + 0x10000) == reply
        assert world.listen()[1][3] == 0  # not one more

    run(work)


def test_events_of_unknown_connections_are_ignored():
    async def work(world):
        for kind in (EventKind.OPENED, EventKind.FAILED, EventKind.CLOSED):
            world.inbound.handle_event(Event(kind=kind, conn=99, port=first_port(1)))
        assert world.publisher.said == []

    run(work)


def test_a_range_goes_to_another_ip_when_it_is_unused_for_longest():
    peers = Peers(ranges=5)
    ips = [IPv4Address(f"192.0.2.{n}") for n in range(1, 6)]
    assert [peers.range_of(ip, 0) for ip in ips[:3]] == [1, 2, 3]
    peers.hold(1)
    peers.range_of(ips[1], 0)
    assert peers.range_of(ips[3], 0) == 3
    assert peers.range_of(ips[4], 0) == 2
    peers.hold(2)
    peers.hold(3)
    assert peers.range_of(ips[2], 0) == 0  # all have connections
    peers.release(2)
    assert peers.range_of(ips[2], 0) == 2


def test_closing_leaves_no_door():
    async def work(world):
        world.listen()
        door = world.publisher.doors[PORT, 4]
        world.inbound.close()
        with contextlib.closing(socket.socket()) as sock:
            assert sock.connect_ex(door) == errno.ECONNREFUSED

    run(work)
