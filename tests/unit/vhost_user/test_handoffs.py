"""Hand-offs: what other proxies hear before the bytes, and what becomes of both.

The proxies are written by hand; so are their bytes, from the PROXY protocol's section
2.2. Clients come by a listener, so a source is the client's address.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct

import pytest

from tests.support.limits import until
from tests.unit.vhost_user.handoff_world import (
    ASKED4,
    GRANTED,
    IDENTITY,
    METHOD,
    OWN,
    SIGNATURE,
    THERE4,
    THERE6,
    read,
    run,
    send,
)
from vhost_user.engine import Socks5Proxy, UnixProxy
from vhost_user.errors import StateError


def header(family, length):
    return SIGNATURE + bytes([0x21, family]) + struct.pack("!H", length)


def tlv():
    return b"\xd0" + struct.pack("!H", len(IDENTITY)) + IDENTITY.encode()


@pytest.mark.parametrize(
    ("host", "there", "family", "size"),
    [
        pytest.param("127.0.0.1", THERE4, 0x11, 12, id="ipv4"),
        pytest.param("::1", THERE6, 0x21, 36, id="ipv6"),
    ],
)
def test_a_unix_proxy_hears_whose_a_connection_is(tmp_path, host, there, family, size):
    async def work(world):
        world.unix(host=host, there=there)
        client = await world.client()
        proxy = await world.accept()
        port = client.getsockname()[1]
        packed = [ipaddress.ip_address(ip).packed for ip in (host, there[0])]
        expected = header(family, size + len(tlv())) + b"".join(packed)
        expected += struct.pack("!HH", port, there[1]) + tlv()
        assert await read(proxy, len(expected)) == expected
        await send(client, b"ping")
        assert await read(proxy, 4) == b"ping"
        await send(proxy, b"pong")
        assert await read(client, 4) == b"pong"
        proxy.shutdown(socket.SHUT_WR)
        assert await read(client, 1) == b""
        await send(client, b"more")  # the other direction is open still
        assert await read(proxy, 4) == b"more"
        client.close()
        assert await read(proxy, 1) == b""

    run(tmp_path, work)


def test_a_header_without_an_identity_has_no_field_for_it(tmp_path):
    async def work(world):
        world.proxy()
        world.serve(UnixProxy(world.listener.getsockname(), OWN))
        await world.client()
        data = await read(await world.accept(), 28)
        assert data[:16] == header(0x11, 12)
        world.events.clear()

    run(tmp_path, work)


def test_a_source_of_another_ip_version_than_the_destination_is_unreachable(tmp_path):
    async def work(world):
        world.unix(host="::1", there=THERE4)
        await world.client()
        assert await world.failed() == [errno.ENETUNREACH]

    run(tmp_path, work)


@pytest.mark.parametrize("there", ["nothing", "a file", "a folder's file", "datagrams"])
def test_where_nobody_listens_the_connection_is_refused(tmp_path, there):
    async def work(world):
        path = tmp_path / "proxy"
        if there == "datagrams":
            world._open.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            world._open.enter_context(other).bind(str(path))
        elif there != "nothing":
            path.touch()
        path = path / "it" if there == "a folder's file" else path
        world.serve(UnixProxy(str(path), OWN, IDENTITY))
        await world.client()
        assert await world.failed() == [errno.ECONNREFUSED]

    run(tmp_path, work)


def test_a_proxy_that_leaves_without_reading_is_a_reset(tmp_path):
    async def work(world):
        world.unix()
        client = await world.client()
        (await world.accept()).close()
        with pytest.raises(ConnectionResetError):
            await read(client, 1)

    run(tmp_path, work)


def test_a_proxy_hears_its_own_connection_only(tmp_path):
    async def work(world):
        world.unix()
        clients = [await world.client() for _ in range(10)]
        for client in clients:
            await send(client, client.getsockname()[1].to_bytes(2, "big"))
        for _ in clients:
            proxy = await world.accept()
            data = await read(proxy, 16 + 12 + len(tlv()) + 2)
            assert data[24:26] == data[-2:]

    run(tmp_path, work)


def test_clients_that_leave_meanwhile_leave_nothing(tmp_path):
    async def work(world):
        world.socks5()
        clients = [await world.client() for _ in range(8)]
        proxies = [await world.accept() for _ in clients]
        for client in clients:
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            client.close()
        for proxy in proxies:
            await read(proxy, len(ASKED4))
            await send(proxy, METHOD + GRANTED)
            with contextlib.suppress(ConnectionResetError):
                assert await read(proxy, 1) == b""
        await until(lambda: not world.engine.stats().conns)

    run(tmp_path, work)


@pytest.mark.parametrize("kind", ["unix", "socks5"])
def test_a_handoff_that_is_closed_refuses(tmp_path, kind):
    async def work(world):
        getattr(world, kind)()
        world.handoff.close()
        await world.client()
        assert await world.failed() == [errno.ENETUNREACH]
        with pytest.raises(StateError):
            world.handoff.close()

    run(tmp_path, work)


def test_an_id_is_not_given_again(tmp_path):
    async def work(world):
        world.unix()
        old = world.handoff.id
        world.handoff.close()
        world.serve(UnixProxy("there", OWN))
        assert world.handoff.id not in (0, old)

    run(tmp_path, work)


@pytest.mark.parametrize(
    "proxy",
    [
        UnixProxy("", OWN),
        UnixProxy("x" * 108, OWN),
        UnixProxy("x" * 113, OWN),
        UnixProxy("x", OWN, "i" * 2049),
        Socks5Proxy(("localhost", 1)),
    ],
)
def test_a_malformed_handoff_is_refused(tmp_path, proxy):
    async def work(world):
        with pytest.raises(StateError):
            world.engine.add_handoff(proxy)
        world.unix()  # others are served

    run(tmp_path, work)


def test_there_may_be_so_many_and_no_more(tmp_path):
    async def work(world):
        for _ in range(1024):
            world.engine.add_handoff(UnixProxy("there", OWN))
        with pytest.raises(StateError):
            world.engine.add_handoff(UnixProxy("there", OWN))

    run(tmp_path, work)
