"""Hand-off by SOCKS5: what a proxy is asked, and what it may answer.

The proxies are written by hand; so are their bytes, from RFC 1928.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.support.limits import LIMIT_S
from tests.unit.vhost_user.handoff_world import (
    ASKED4,
    ASKED6,
    GRANTED,
    GRANTED6,
    GRANTED_NAME,
    METHOD,
    THERE4,
    THERE6,
    World,
    read,
    run,
    send,
)
from vhost_user.engine import Engine


@pytest.mark.parametrize(
    ("there", "asked"),
    [pytest.param(THERE4, ASKED4, id="ipv4"), pytest.param(THERE6, ASKED6, id="ipv6")],
)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("granted", [GRANTED, GRANTED6, GRANTED_NAME])
def test_a_socks5_proxy_is_asked_in_one_write(tmp_path, family, there, asked, granted):
    async def work(world):
        world.socks5(family, there=there)
        client = await world.client()
        proxy = await world.accept()
        await send(client, b"ping")
        assert await asyncio.get_running_loop().sock_recv(proxy, 100) == asked
        await send(proxy, METHOD + granted + b"first")
        assert await read(client, 5) == b"first"
        assert await read(proxy, 4) == b"ping"
        client.close()
        assert await read(proxy, 1) == b""

    run(tmp_path, work)


@pytest.mark.parametrize("granted", [GRANTED, GRANTED6, GRANTED_NAME])
def test_an_answer_may_come_byte_by_byte(tmp_path, granted):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await read(proxy, len(ASKED4))
        for byte in METHOD + granted:
            assert not world.events
            await send(proxy, bytes([byte]))
            await asyncio.sleep(0)
        await world.opened()
        await send(proxy, b"first")
        assert await read(client, 5) == b"first"

    run(tmp_path, work)


@pytest.mark.parametrize("split", range(1, 12))
def test_an_answer_may_be_split_anywhere(tmp_path, split):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await read(proxy, len(ASKED4))
        data = METHOD + GRANTED + b"first"
        await send(proxy, data[:split])
        await send(client, b"ping")  # the engine has turns meanwhile
        await send(proxy, data[split:])
        assert await read(client, 5) == b"first"
        assert await read(proxy, 4) == b"ping"

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (METHOD + bytes([5, 1, 0, 1]), errno.ECONNREFUSED),
        (METHOD + bytes([5, 2, 0, 1]), errno.EACCES),
        (METHOD + bytes([5, 3, 0, 1]), errno.ENETUNREACH),
        (METHOD + bytes([5, 4, 0, 1]), errno.EHOSTUNREACH),
        (METHOD + bytes([5, 5, 0, 1]), errno.ECONNREFUSED),
        (METHOD + bytes([5, 6, 0, 1]), errno.ETIMEDOUT),
        (METHOD + bytes([5, 7, 0, 1]), errno.EOPNOTSUPP),
        (METHOD + bytes([5, 8, 0, 1]), errno.EAFNOSUPPORT),
        (METHOD + bytes([5, 9, 0, 1]), errno.EPROTO),
        (METHOD + bytes([5, 255, 0, 1]), errno.EPROTO),
        (bytes([5, 255]), errno.EACCES),
        (bytes([5, 2]), errno.EPROTO),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", errno.EPROTO),
        (bytes([4]), errno.EPROTO),
        (METHOD + b"H", errno.EPROTO),
        (METHOD + bytes([5, 0, 0, 2]), errno.EPROTO),
        (METHOD + bytes([5, 0, 0, 0]) + bytes(300), errno.EPROTO),
    ],
)
def test_what_a_socks5_proxy_refuses_with_is_the_connects_errno(
    tmp_path, answer, error
):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        await read(proxy, len(ASKED4))
        await send(proxy, answer)
        assert await world.failed() == [error]
        with pytest.raises(ConnectionResetError):
            await read(client, 1)
        assert world.engine.stats().conns == 0

    run(tmp_path, work)


def outcome(answer):
    """What RFC 1928 makes of an answer: the errno of connect(), or the bytes after it.

    A model of its own, by the whole answer and not piece by piece.
    """
    errors = [0, errno.ECONNREFUSED, errno.EACCES, errno.ENETUNREACH]
    errors += [errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ETIMEDOUT]
    errors += [errno.EOPNOTSUPP, errno.EAFNOSUPPORT]
    for index, byte in enumerate(answer[:6]):
        if index in (0, 2) and byte != 5:
            return errno.EPROTO
        if index == 1 and byte:
            return errno.EACCES if byte == 255 else errno.EPROTO
        if index == 3 and byte:
            return errors[byte] if byte < len(errors) else errno.EPROTO
        if index == 5 and byte not in (1, 3, 4):
            return errno.EPROTO
    if len(answer) < 7:
        return errno.ECONNRESET
    size = {1: 12, 4: 24, 3: 9 + answer[6]}[answer[5]]
    return answer[size:] if len(answer) >= size else errno.ECONNRESET


ANSWERS = st.builds(
    lambda head, kind, size, rest: head + bytes([kind, size]) + rest,
    st.sampled_from([METHOD + b"\5\0\0", METHOD + b"\5\5\0", b"\5\xff\5\0\0", b""]),
    st.sampled_from([1, 3, 4, 2]),
    st.integers(0, 12),
    st.binary(max_size=30),
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(ANSWERS, st.lists(st.integers(1, 8), max_size=12))
def test_any_answer_in_any_pieces_is_what_the_rfc_makes_of_it(answer, pieces):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await read(proxy, len(ASKED4))
        rest = answer
        for size in pieces:
            with contextlib.suppress(ConnectionError):  # it may be refused by now
                await send(proxy, rest[:size])
            rest = rest[size:]
            await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            await send(proxy, rest)
            proxy.shutdown(socket.SHUT_WR)
        expected = outcome(answer)
        if isinstance(expected, int):
            assert await world.failed() == [expected]
        else:
            assert await read(client, len(expected) + 1) == expected

    run(Path("/nowhere"), work)


@pytest.mark.parametrize("said", [b"", METHOD[:1], METHOD, METHOD + GRANTED[:-1]])
def test_a_socks5_proxy_that_ends_early_is_a_reset(tmp_path, said):
    async def work(world):
        world.socks5()
        await world.client()
        proxy = await world.accept()
        await read(proxy, len(ASKED4))
        await send(proxy, said)
        proxy.close()
        assert await world.failed() == [errno.ECONNRESET]

    run(tmp_path, work)


def test_a_socks5_proxy_that_nobody_listens_at_is_refused(tmp_path):
    async def work(world):
        world.socks5()
        world.listener.close()
        await world.client()
        assert await world.failed() == [errno.ECONNREFUSED]

    run(tmp_path, work)


def test_a_socks5_proxy_that_says_nothing_times_out(tmp_path):
    async def main():
        async with asyncio.timeout(LIMIT_S), Engine(dial_timeout_s=0.1) as engine:
            world = World(engine, tmp_path)
            world.socks5()
            await world.client()
            proxy = await world.accept()
            with contextlib.suppress(ConnectionError):  # its time may be over
                await send(proxy, METHOD)
            assert await world.failed() == [errno.ETIMEDOUT]
            world.close()

    asyncio.run(main())


def test_an_end_right_behind_the_answer_is_an_end_of_the_connection(tmp_path):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        await read(proxy, len(ASKED4))
        await send(proxy, METHOD + GRANTED + b"bye")
        proxy.close()
        assert await read(client, 4) == b"bye"

    run(tmp_path, work)
