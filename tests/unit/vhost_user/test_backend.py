"""Backend: framing, file descriptors, lifetimes, over a real unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket

import pytest

from tests.support.limits import LIMIT_S as TIMEOUT_S
from vhost_user.backend import MAX_FDS, Backend
from vhost_user.message import (
    HEADER_SIZE,
    MemoryRegion,
    Request,
    VringAddress,
    VringFd,
    VringState,
    encode,
    encode_mem_table,
    encode_u64,
)

PAGE = 4096
UVA = 0x7F00_0000_0000
GET_FEATURES = encode(Request.GET_FEATURES)
FEATURES = encode(
    Request.GET_FEATURES,
    encode_u64(1 << 40 | 1 << 26 | 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28),
    reply=True,
)


def in_loop(test):
    """Run an async test with a time limit."""

    @functools.wraps(test)  # pytest finds the fixtures through it
    def wrapper(**fixtures):
        async def bounded():
            async with asyncio.timeout(TIMEOUT_S):
                await test(**fixtures)

        asyncio.run(bounded())

    return wrapper


@contextlib.asynccontextmanager
async def serving(tmp_path, device):
    backend = Backend(tmp_path / "vhost", device, name="vm1")
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


@contextlib.asynccontextmanager
async def front_end(backend):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    with sock:
        await asyncio.get_running_loop().sock_connect(sock, str(backend.path))
        yield sock


async def read(sock, size):
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size and (more := await loop.sock_recv(sock, size - len(data))):
        data += more
    return data


async def ask(sock):
    """Prove that the session is alive."""
    await asyncio.get_running_loop().sock_sendall(sock, GET_FEATURES)
    assert await read(sock, len(FEATURES)) == FEATURES


async def hung_up(sock):
    with contextlib.suppress(ConnectionResetError):  # it left something unread
        assert await read(sock, 1) == b""


async def idle(backend):
    """Wait until the session has ended."""
    while backend.connected.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0)


def memory_fd(size=PAGE):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, size)
    return fd


def send_fds(sock, data, fds):
    """Send copies: the fds given are closed here."""
    socket.send_fds(sock, [data], fds)
    for fd in fds:
        os.close(fd)


def start_ring(sock, index):
    """Set up memory and a ring, without any optional feature."""
    region = MemoryRegion(gpa=0, size=16 * PAGE, uva=UVA)
    send_fds(
        sock,
        encode(Request.SET_MEM_TABLE, encode_mem_table([region])),
        [memory_fd(16 * PAGE)],
    )
    address = VringAddress(index=index, desc=UVA, avail=UVA + PAGE, used=UVA + 2 * PAGE)
    sock.send(encode(Request.SET_VRING_NUM, VringState(index, 256).encode()))
    sock.send(encode(Request.SET_VRING_ADDR, address.encode()))
    for request in (Request.SET_VRING_CALL, Request.SET_VRING_KICK):
        payload = VringFd(index, has_fd=True).encode()
        send_fds(sock, encode(request, payload), [os.eventfd(0)])


@pytest.mark.spec("vhost-user:communication/replies")
@in_loop
async def test_answers_a_front_end(tmp_path, device):
    async with serving(tmp_path, device) as backend, front_end(backend) as sock:
        await ask(sock)
        assert backend.connected.is_set()


@in_loop
async def test_messages_may_come_in_pieces(tmp_path, device):
    async with serving(tmp_path, device) as backend, front_end(backend) as sock:
        stream = encode(Request.SET_FEATURES, encode_u64(1 << 32)) + GET_FEATURES
        for byte in stream:
            sock.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await read(sock, len(FEATURES)) == FEATURES
        assert device.acked == 1 << 32


@in_loop
async def test_messages_may_come_all_at_once(tmp_path, device):
    async with serving(tmp_path, device) as backend, front_end(backend) as sock:
        sock.send(GET_FEATURES * 20)
        assert await read(sock, 20 * len(FEATURES)) == FEATURES * 20


@pytest.mark.spec("vhost-user:communication/fds")
@in_loop
async def test_each_message_gets_the_fds_it_was_sent_with(tmp_path, device, open_fds):
    async with serving(tmp_path, device) as backend, front_end(backend) as sock:
        start_ring(sock, 0)
        await ask(sock)
        before = open_fds()
        start_ring(sock, 1)
        await ask(sock)
        assert sorted(device.running) == [0, 1]
        assert open_fds() == before + 2  # kick and call; memory replaced memory


@pytest.mark.spec("vhost-user:communication/reconnect")
@in_loop
async def test_disconnect_releases_all_and_the_next_is_served(
    tmp_path, device, open_fds
):
    async with serving(tmp_path, device) as backend:
        before = open_fds()
        for _ in range(3):
            async with front_end(backend) as sock:
                start_ring(sock, 0)
                await ask(sock)
                assert list(device.running) == [0]
            await idle(backend)
            assert device.running == {}
            assert device.memory is None
            assert device.calls[-2:] == ["reset", "drop_memory"]
            assert open_fds() == before


@in_loop
async def test_a_second_front_end_waits_until_the_first_is_gone(tmp_path, device):
    async with (
        serving(tmp_path, device) as backend,
        front_end(backend) as first,
        front_end(backend) as second,
    ):
        second.send(GET_FEATURES)
        await ask(first)
        await ask(first)
        first.close()
        assert await read(second, len(FEATURES)) == FEATURES


@in_loop
async def test_close_hangs_up_and_removes_the_socket(tmp_path, device, open_fds):
    before = open_fds()
    async with serving(tmp_path, device) as backend, front_end(backend) as sock:
        start_ring(sock, 0)
        await ask(sock)
        await backend.close()
        await hung_up(sock)
        assert not backend.path.exists()
        assert device.running == {}
    assert open_fds() == before


# ---- what ends a session ----

GARBAGE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "version-2": bytes.fromhex("01000000 02000000 00000000"),
    "a-reply": bytes.fromhex("01000000 05000000 00000000"),
    "unknown-request": encode(99),
    "wrong-size": encode(Request.SET_FEATURES, bytes(7)),
    "huge-size": bytes.fromhex("02000000 01000000 ffffffff"),
    "bad-ring": encode(Request.SET_VRING_NUM, VringState(9, 8).encode()),
    "mem-table-without-fds": encode(
        Request.SET_MEM_TABLE, encode_mem_table([MemoryRegion(gpa=0, size=1, uva=0)])
    ),
    "not-offered": encode(Request.SET_FEATURES, encode_u64(2**64 - 1)),
}


@pytest.mark.spec("vhost-user:communication/error")
@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
@in_loop
async def test_garbage_ends_the_session_with_one_line(
    tmp_path, device, data, caplog, open_fds
):
    caplog.set_level(logging.INFO)
    async with serving(tmp_path, device) as backend:
        before = open_fds()
        async with front_end(backend) as sock:
            await ask(sock)
            send_fds(sock, data, [os.eventfd(0)])
            await hung_up(sock)
            assert device.memory is None
        warnings = [r.message for r in caplog.records if r.levelno > logging.INFO]
        assert len(warnings) == 1
        assert warnings[0].startswith("vm1: session ended: ")
        assert "\n" not in warnings[0]
        assert open_fds() == before
        async with front_end(backend) as sock:
            await ask(sock)


@pytest.mark.parametrize("count", [MAX_FDS + 1, 200])
@in_loop
async def test_too_many_fds_end_the_session(tmp_path, device, count, caplog, open_fds):
    async with serving(tmp_path, device) as backend:
        before = open_fds()
        async with front_end(backend) as sock:
            send_fds(sock, GET_FEATURES, [os.eventfd(0) for _ in range(count)])
            await hung_up(sock)
        assert "more than 32 fds" in caplog.text
        assert open_fds() == before


@in_loop
async def test_too_many_fds_in_pieces_end_the_session(
    tmp_path, device, caplog, open_fds
):
    async with serving(tmp_path, device) as backend:
        before = open_fds()
        async with front_end(backend) as sock:
            for byte in GET_FEATURES[:2]:
                send_fds(sock, bytes([byte]), [os.eventfd(0) for _ in range(20)])
            await hung_up(sock)
        assert "more than 32 fds" in caplog.text
        assert open_fds() == before


@pytest.mark.parametrize("size", [1, HEADER_SIZE, HEADER_SIZE + 1])
@in_loop
async def test_hanging_up_inside_a_message_closes_its_fds(
    tmp_path, device, size, caplog, open_fds
):
    async with serving(tmp_path, device) as backend:
        before = open_fds()
        async with front_end(backend) as sock:
            message = encode(Request.SET_FEATURES, encode_u64(0))
            send_fds(sock, message[:size], [os.eventfd(0)])
            await asyncio.wait_for(backend.connected.wait(), TIMEOUT_S)
        await idle(backend)
        assert "in the middle of a message" in caplog.text
        assert open_fds() == before


@in_loop
async def test_a_front_end_that_never_reads_its_replies_is_ended(
    tmp_path, device, caplog
):
    async with serving(tmp_path, device) as backend, front_end(backend) as sock:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while True:
                await loop.sock_sendall(sock, GET_FEATURES * 100)
        assert "does not read the replies" in caplog.text


@in_loop
async def test_a_bug_in_the_device_ends_the_session_only(tmp_path, device, caplog):
    async with serving(tmp_path, device) as backend:
        device.start_error = ZeroDivisionError()
        async with front_end(backend) as sock:
            start_ring(sock, 0)
            await hung_up(sock)
        assert "session ended by a bug" in caplog.text
        async with front_end(backend) as sock:
            await ask(sock)


@pytest.mark.spec("vhost-user:SET_VRING_ERR")
@in_loop
async def test_a_ring_that_the_device_gives_up_signals_its_error_fd(tmp_path, device):
    err = os.eventfd(0, os.EFD_NONBLOCK)
    async with serving(tmp_path, device) as backend:
        device.on_ring_broke(0)  # nobody there: nothing happens
        async with front_end(backend) as sock:
            payload = VringFd(0, has_fd=True).encode()
            socket.send_fds(sock, [encode(Request.SET_VRING_ERR, payload)], [err])
            await ask(sock)
            device.on_ring_broke(0)
    assert os.eventfd_read(err) == 1
    os.close(err)
