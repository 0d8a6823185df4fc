"""Clients of a guest that come with a PROXY protocol header, on a fake device."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from fastpath.tsi import port as port_module
from fastpath.tsi import tunnel as module
from fastpath.tsi.peers import first_port, range_number
from fastpath.tsi.tunnel import HEADER_S, Tunnel
from tests.support import clock
from tests.support.limits import until
from tests.unit.fastpath import inbound_world
from tests.unit.fastpath.inbound_world import (
    PORT,
    VSOCK_PORT,
    FakePublisher,
    is_reset,
    published,
)
from vhost_user.engine import EventKind

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
IDENTITY = b"spiffe://cluster.local/ns/default/sa/client"
CLIENT = ("192.0.2.9", 40000)


def header(source=CLIENT, port=PORT, identity=IDENTITY):
    ips = [ip_address(ip).packed for ip in (source[0], "10.0.0.5")]
    rest = b"".join(ips) + struct.pack("!HH", source[1], port)
    if identity:
        rest += b"\xd0" + struct.pack("!H", len(identity)) + identity
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(rest)) + rest


class TunnelPublisher(FakePublisher):
    """Has a tunnel at a port of 127.0.0.1; the ports have no other doors."""

    def __init__(self):
        super().__init__()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.at = self.listener.getsockname()
        self.clients = []

    def tunnel(self):
        return self.listener

    def addresses(self, port, version, *, covered):
        return []

    def closed(self, client, event):
        self.clients.append(client)

    def failed(self, client, error):
        super().failed(client, error)
        self.clients.append(client)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(inbound_world, "FakePublisher", TunnelPublisher)
    return inbound_world.run


async def connect(world, data=b""):
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    world.clients.append(sock)
    await loop.sock_connect(sock, world.publisher.at)
    await loop.sock_sendall(sock, data)
    return sock


def test_a_client_is_offered_as_its_header_has_it(run):
    async def work(world):
        world.listen()
        sock = await connect(world, header() + b"first")
        guest_port, port, taken = await world.offered(1)
        assert guest_port == VSOCK_PORT
        assert port & 0xFFFF == CLIENT[1]
        number = range_number(port)
        ip = IPv4Address(CLIENT[0]).packed.ljust(16, b"\0")
        shown = (first_port(number), 4, 0, ip)
        assert shown in [fields for _, fields in world.agent.messages]
        assert taken.recv(100) == b"first"  # and nothing of the header
        world.event(EventKind.OPENED, 1)
        world.event(EventKind.CLOSED, 1)
        (client,) = world.publisher.clients
        assert (client.address, client.identity) == (CLIENT, IDENTITY.decode())
        sock.close()

    run(work)


def test_a_program_is_told_that_its_port_is_reachable(run):
    async def work(world):
        assert world.listen()[1][1] == PORT
        assert world.listen(VSOCK_PORT + 1, port=PORT + 1)[1][1] == 0

    run(work)


def test_a_header_may_come_byte_by_byte(run):
    async def work(world):
        world.listen()
        sock = await connect(world)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header():
            assert not world.device.offers
            await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))
            await asyncio.sleep(0)
        await world.offered(1)

    run(work)


def test_clients_of_one_tunnel_have_one_address_and_ports_of_their_own(run):
    async def work(world):
        world.listen()
        for count in range(1, 41):
            await connect(world, header())
            await world.offered(count)
            world.event(EventKind.OPENED, count)
        ports = {port for _, port, _ in world.device.offers}
        assert len(ports) == 40
        assert len({range_number(port) for port in ports}) == 1

    run(work)


@pytest.mark.parametrize(
    ("port", "listens"),
    [(PORT + 1, True), (PORT, False)],
    ids=["not published", "nobody listens"],
)
def test_what_nobody_may_reach_is_refused(run, port, listens):
    async def work(world):
        if listens:
            world.listen()
            world.listen(VSOCK_PORT + 1, port=PORT + 1)
        sock = await connect(world, header(port=port))
        await is_reset(sock)
        assert world.publisher.said == [("failed", CLIENT, errno.ECONNREFUSED)]
        assert not world.device.offers

    run(work)


def test_a_policy_that_publishes_no_more_ends_what_came_by_the_tunnel(run):
    async def work(world):
        world.listen()
        await connect(world, header())
        await world.offered(1)
        world.event(EventKind.OPENED, 1)
        world.inbound.set_policy(published(PORT + 1))
        assert world.device.resets == [(1, errno.ECONNRESET)]

    run(work)


def test_a_namespace_that_is_gone_closes_it(run):
    async def work(world):
        world.publisher.gone = True
        world.inbound.set_policy(published(PORT))
        with pytest.raises(ConnectionRefusedError):
            await connect(world)

    run(work)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        header().replace(b"\x21\x11", b"\x20\x11"),
        header(identity=b"spiffe://x"),
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(100),
    ],
    ids=["http", "local", "identity", "long"],
)
def test_a_client_without_a_good_header_is_reset(run, data, caplog):
    async def work(world):
        world.listen()
        sock = await connect(world, data)
        await is_reset(sock)
        assert world.inbound.tunnel.refused == 1
        await connect(world, header())
        await world.offered(1)
        assert world.inbound.tunnel.refused == 1

    run(work)
    assert "test: application tunnel: a client is refused" in caplog.text


def test_one_that_leaves_within_its_header_is_forgotten(run):
    async def work(world):
        sock = await connect(world, header()[:20])
        await until(lambda: world.inbound.tunnel.waiting)
        sock.close()
        await until(lambda: not world.inbound.tunnel.waiting)
        assert not world.publisher.said

    run(work)


def test_one_that_is_too_slow_is_cut(tmp_path):
    """Over a unix socket, in a loop whose clock passes when nothing else happens."""

    async def main():
        loop = asyncio.get_running_loop()
        taken: list[object] = []
        with (
            socket.socket(socket.AF_UNIX) as listener,
            socket.socket(socket.AF_UNIX) as client,
        ):
            listener.bind(str(tmp_path / "tunnel"))
            listener.listen()
            listener.setblocking(False)
            tunnel = Tunnel(listener, taken.append, name="test")
            client.connect(str(tmp_path / "tunnel"))
            client.setblocking(False)
            for byte in header()[:9]:  # one a second
                client.send(bytes([byte]))
                await asyncio.sleep(1)
            assert await loop.sock_recv(client, 1) == b""
            assert loop.time() == HEADER_S
            assert (taken, tunnel.refused) == ([], 1)
            tunnel.close()

    clock.run(main())


def test_a_flood_of_silent_clients_makes_room_for_itself(run, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 3)

    async def work(world):
        world.listen()
        silent = []
        for _ in range(4):
            silent.append(await connect(world))
            await until(lambda: world.inbound.tunnel.waiting == min(3, len(silent)))
        await is_reset(silent[0])
        await connect(world, header())
        await world.offered(1)

    run(work)


def test_more_than_the_guest_takes_wait_and_then_are_refused(run, monkeypatch):
    monkeypatch.setattr(port_module, "MAX_PENDING", 2)

    async def work(world):
        world.listen(backlog=0)
        for _ in range(4):
            await connect(world, header())
        await until(lambda: world.publisher.said)
        assert world.publisher.said == [("failed", CLIENT, errno.EAGAIN)]
        assert len(world.device.offers) == 1
        world.event(EventKind.OPENED, 1)
        await world.offered(2)

    run(work)


def test_a_client_of_a_version_that_nobody_listens_for_is_refused(run):
    async def work(world):
        world.listen(address=IPv6Address("::1"))
        sock = await connect(world, header())
        await is_reset(sock)

    run(work)


def test_clients_that_wait_are_reset_at_the_end(run):
    async def work(world):
        world.listen()
        sock = await connect(world)
        await until(lambda: world.inbound.tunnel.waiting)
        world.inbound.close()
        await is_reset(sock)

    run(work)
