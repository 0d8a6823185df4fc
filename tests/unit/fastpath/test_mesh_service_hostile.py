"""The certificate service, and clients that mean it no good."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import grpc
import pytest
from grpc import aio

from fastpath.mesh import wire
from fastpath.mesh.issuing import Shares
from tests.support.limits import LIMIT_S, until
from tests.unit.fastpath.mesh_pki import (
    NODE_TOKEN,
    make_csr,
)
from tests.unit.fastpath.mesh_server import (
    HEADERS,
    is_chain,
    run,
    wall_clock,
)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "INVALID_ARGUMENT"),
        (b"\xff" * 100, "INVALID_ARGUMENT"),
        (wire.Request(csr="x" * 60000).encode(), "INVALID_ARGUMENT"),
        (wire.Request(csr="x" * 70000).encode(), "RESOURCE_EXHAUSTED"),
        (wire.Request(csr="x" * (16 << 20)).encode(), "RESOURCE_EXHAUSTED"),
    ],
    ids=["empty", "garbage", "large", "too-large", "huge"],
)
def test_a_bad_message_harms_its_sender_only(data, code, tmp_path):
    async def body(server):
        async with server.channel(max_send_message_length=-1) as channel:
            found = await server.call(data, channel=channel)
            assert is_chain(await server.call(channel=channel))
            return found

    assert run(tmp_path, body)[0] == code


def test_huge_headers_are_refused(tmp_path):
    async def body(server):
        headers = (*HEADERS, ("x-more", "y" * (1 << 20)))
        found = await server.call(headers=headers)
        assert is_chain(await server.call())
        return found

    assert run(tmp_path, body)[0] == "RESOURCE_EXHAUSTED"


def test_a_client_whose_message_does_not_come_is_let_go(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            slow = channel.stream_unary(wire.PATH)(metadata=HEADERS, timeout=LIMIT_S)
            with pytest.raises(aio.AioRpcError) as caught:
                await slow
            return caught.value

    error = run(tmp_path, body, receive_s=1.0)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "no message within 1 s"


def test_a_client_whose_message_does_not_come_keeps_nobody_waiting(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            slow = channel.stream_unary(wire.PATH)(metadata=HEADERS, timeout=LIMIT_S)
            await slow.wait_for_connection()
            assert is_chain(await server.call(channel=channel))
            assert is_chain(await server.call())
            assert not slow.done()
            slow.cancel()

    run(tmp_path, body, receive_s=2 * LIMIT_S)


def test_a_stranger_is_refused_before_its_message_is_there(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            call = channel.stream_unary(wire.PATH)(timeout=LIMIT_S)
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            return caught.value.code()

    code = run(tmp_path, body, receive_s=LIMIT_S)
    assert code is grpc.StatusCode.UNAUTHENTICATED


def test_slow_holders_of_one_token_leave_room_for_another(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            call = channel.stream_unary(wire.PATH)
            slow = [call(metadata=HEADERS, timeout=LIMIT_S) for _ in range(2)]
            for each in slow:
                await each.wait_for_connection()
            while (found := await server.call(channel=channel))[0] != (
                "RESOURCE_EXHAUSTED"
            ):
                assert is_chain(found)  # the slow ones have not arrived
            node = (("authorization", f"Bearer {NODE_TOKEN}"),)
            data = wire.Request(csr=make_csr().decode()).encode()
            assert is_chain(await server.call(data, node))
            for each in slow:
                each.cancel()
            return found[1]

    shares = Shares(at_once=2, burst=1e9)
    words = run(tmp_path, body, shares=shares, receive_s=LIMIT_S)
    assert words.startswith("default/web asks too often, or too much at once")


def test_many_at_once_are_all_served(tmp_path):
    async def body(server):
        calls = (server.source().fetch(wall_clock()) for _ in range(60))
        return await asyncio.gather(*calls)

    found = run(tmp_path, body, connections=256)
    assert len({each.chain[0].serial_number for each in found}) == 60


def test_many_on_one_connection_are_all_served(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            calls = (server.call(channel=channel) for _ in range(200))
            return await asyncio.gather(*calls)

    found = run(tmp_path, body)
    assert all(map(is_chain, found))


async def silent(server, number):
    """Connect and say nothing; return the connections and tasks that see their ends."""
    loop = asyncio.get_running_loop()

    async def end_of(sock):
        with contextlib.suppress(ConnectionResetError):
            assert await loop.sock_recv(sock, 1) == b""

    socks = [
        socket.create_connection(("127.0.0.1", server.port)) for _ in range(number)
    ]
    for sock in socks:
        sock.setblocking(False)
    return socks, [asyncio.create_task(end_of(sock)) for sock in socks]


async def served_at_last(server):
    """Ask until a connection is to be had, and its handshake is in time."""
    while (found := await server.call())[0] == "UNAVAILABLE":
        pass
    return found


def test_connections_beyond_the_bound_end_at_once(tmp_path):
    async def body(server):
        socks, ends = await silent(server, 12)
        await until(lambda: sum(each.done() for each in ends) == 8)
        for sock, end in zip(socks, ends, strict=True):
            end.cancel()
            sock.close()
        return await served_at_last(server)

    assert is_chain(run(tmp_path, body, connections=4, handshake_s=2 * LIMIT_S))


def test_connections_that_say_nothing_end(tmp_path):
    async def body(server):
        socks, ends = await silent(server, 4)
        await asyncio.wait_for(asyncio.gather(*ends), LIMIT_S)
        for sock in socks:
            sock.close()
        return await served_at_last(server)

    assert is_chain(run(tmp_path, body, handshake_s=1.0))


def frame(kind, flags, stream, body=b""):
    """RFC 9113, section 4.1."""
    head = len(body).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + body


def literal(name, value):
    """A header without indexing, RFC 7541, section 6.2.2."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
REQUEST = b"".join(
    literal(*each)
    for each in (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", wire.PATH.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
END_HEADERS = 4
FLOODS = {
    "ping": lambda n: frame(6, 0, 0, bytes(8)),
    "settings": lambda n: frame(4, 0, 0),
    "rapid-reset": lambda n: (
        frame(1, END_HEADERS, 2 * n + 1, REQUEST) + frame(3, 0, 2 * n + 1, bytes(4))
    ),
    "streams": lambda n: frame(1, END_HEADERS, 2 * n + 1, REQUEST),
    "continuation": lambda n: (
        frame(9, 0, 1, literal(b"x", b"y")) if n else frame(1, 0, 1, REQUEST)
    ),
    "empty-data": lambda n: frame(0, 0, 1) if n else frame(1, END_HEADERS, 1, REQUEST),
}


async def open_raw(server):
    context = ssl.create_default_context(cafile=server.root)
    context.set_alpn_protocols(["h2"])
    return await asyncio.open_connection(
        "127.0.0.1", server.port, ssl=context, server_hostname="localhost"
    )


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_harms_its_sender_only(flood, tmp_path):
    async def body(server):
        _, writer = await open_raw(server)
        writer.write(PREFACE)
        with contextlib.suppress(ConnectionError, TimeoutError):
            for n in range(5000):
                writer.write(flood(n))
                if n % 500 == 499:
                    assert is_chain(await server.call())
                    await asyncio.wait_for(writer.drain(), LIMIT_S)
        writer.transport.abort()
        return await server.call()

    assert is_chain(run(tmp_path, body))


def test_an_idle_connection_is_closed(tmp_path):
    async def body(server):
        reader, writer = await open_raw(server)
        writer.write(PREFACE + frame(4, 1, 0))  # it acknowledges the server's SETTINGS
        rest = await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
        return rest

    assert run(tmp_path, body, idle_s=1.0, handshake_s=2 * LIMIT_S)


def test_a_client_without_tls_is_cut_off(tmp_path):
    async def body(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
        return await server.call()

    assert is_chain(run(tmp_path, body))


def test_a_client_that_does_not_acknowledge_settings_is_cut_off(tmp_path):
    """Until then gRPC's core keeps the headers that come."""

    async def body(server):
        reader, writer = await open_raw(server)
        writer.write(PREFACE)
        await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
        return await served_at_last(server)

    limits = {"settings_s": 1.0, "handshake_s": 2 * LIMIT_S, "idle_s": 2 * LIMIT_S}
    assert is_chain(run(tmp_path, body, **limits))
