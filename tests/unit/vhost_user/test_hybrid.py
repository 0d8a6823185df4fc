r"""The CONNECT line's parser: any pieces, never a byte too many, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.limits import LIMIT_S
from vhost_user.errors import ClientError, StateError
from vhost_user.vsock import hybrid
from vhost_user.vsock.hybrid import MAX_LINE, ConnectLine, HybridListener


def parse(stream, pieces):
    """Feed a stream as a socket would give it; return port and what is left."""
    line = ConnectLine()
    arrived = 0
    taken = 0
    for size in [*pieces, len(stream)]:
        arrived = min(arrived + size, len(stream))
        while taken < arrived:
            peeked = stream[taken : min(arrived, taken + line.room)]
            wanted = line.wanted(peeked)
            port = line.feed(stream[taken : taken + wanted])
            taken += wanted
            if port is not None:
                return port, stream[taken:]
    return None, stream[taken:]


@given(
    port=st.integers(0, 2**32 - 2),
    early=st.binary(max_size=100),
    pieces=st.lists(st.integers(1, 10)),
)
def test_any_pieces_give_the_port_and_leave_the_rest(port, early, pieces):
    stream = b"CONNECT %d\n" % port + early
    assert parse(stream, pieces) == (port, early)


@pytest.mark.parametrize(
    ("line", "port"),
    [
        pytest.param(b"CONNECT 0\n", 0, id="port-0"),
        pytest.param(b"connect 52\n", 52, id="lower-case"),
        pytest.param(b"CONNECT 52\r\n", 52, id="crlf"),
        pytest.param(b"CONNECT 0052\n", 52, id="zeros"),
    ],
)
def test_takes_what_the_peers_take(line, port):
    assert ConnectLine().feed(line) == port


@given(st.binary(max_size=100), st.lists(st.integers(1, 10)))
def test_garbage_is_refused_or_waited_for_within_bounds(stream, pieces):
    with contextlib.suppress(ClientError):
        port, rest = parse(stream, pieces)
        if port is None:
            assert len(stream) - len(rest) < MAX_LINE


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT 5 5\n",
        b"CONNECT 4294967295\n",
        b"CONNECT 99999999999999999999\n",
        b"CONNECT +5\n",
        b"CONNECT 5_0\n",
        "CONNECT \u0665\n".encode(),
        b"DISCONNECT 5\n",
        b"x" * MAX_LINE,
        b"",
    ],
)
def test_rejects(line):
    with pytest.raises(ClientError):
        ConnectLine().feed(line)


# ---- the listener, over a device that only notes ----


class FakeHandle:
    def __init__(self):
        self.opened = []
        self.error = None

    def open(self, port, sock, *, hybrid):
        if self.error is not None:
            raise self.error
        assert hybrid
        self.opened.append((port, sock))
        return 1


class FakeVsock:
    guest_cid = 3

    def __init__(self):
        self.handle = FakeHandle()


def with_listener(tmp_path, test):
    async def run():
        device: Any = FakeVsock()
        listener = HybridListener(device, tmp_path / "vsock")
        await listener.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                await test(listener, device.handle)
        finally:
            await listener.close()
            for _, sock in device.handle.opened:
                sock.close()

    asyncio.run(run())


async def dial(listener, data=b""):
    reader, writer = await asyncio.open_unix_connection(str(listener.path))
    writer.write(data)
    return reader, writer


def test_hands_over_the_socket_with_early_data_still_in_it(tmp_path):
    async def test(listener, handle):
        _, writer = await dial(listener, b"CONNECT 5001\nearly")
        while not handle.opened:  # noqa: ASYNC110
            await asyncio.sleep(0)
        ((port, sock),) = handle.opened
        assert port == 5001
        assert sock.recv(100) == b"early"
        writer.close()

    with_listener(tmp_path, test)


def test_a_silent_client_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(hybrid, "TIMEOUT_S", 0.01)

    async def test(listener, handle):
        reader, writer = await dial(listener, b"CONN")
        assert await reader.read() == b"ERROR no CONNECT line within 0.01 s\n"
        writer.close()
        assert listener.refused == 1

    with_listener(tmp_path, test)


def test_a_device_that_is_full_refuses_with_the_reason(tmp_path):
    async def test(listener, handle):
        handle.error = StateError("open guest port 1: fixed-size table is full")
        reader, writer = await dial(listener, b"CONNECT 1\n")
        assert b"table is full" in await reader.read()
        writer.close()

    with_listener(tmp_path, test)


def test_the_client_that_was_silent_longest_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(hybrid, "MAX_WAITING", 2)

    async def test(listener, handle):
        silent = [await dial(listener) for _ in range(3)]
        _, writer = await dial(listener, b"CONNECT 9\n")
        while not handle.opened:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert handle.opened[0][0] == 9
        writer.close()
        reader, _ = silent[0]
        assert b"others wait" in await reader.read()
        for _, other in silent:
            other.close()

    with_listener(tmp_path, test)


def test_refusals_do_not_fill_the_log(tmp_path, caplog):
    async def test(listener, handle):
        for _ in range(100):
            reader, writer = await dial(listener, b"nonsense\n")
            await reader.read()
            writer.close()

    with_listener(tmp_path, test)
    assert len(caplog.records) == 7  # 1, 2, 4, ... 64


def test_close_closes_the_clients_that_wait(tmp_path, no_fd_leak):
    async def test(listener, handle):
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, str(listener.path))
            while not listener._waiting:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await listener.close()
            assert await loop.sock_recv(sock, 1) == b""

    with_listener(tmp_path, test)
