"""Processes at the other end of a ring, with the engine: asyncio, and the examples."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastpath.handoff import ring as rings
from tests.support.limits import LIMIT_S, until
from vhost_user.engine import Engine, Ring

LIBRARY = Path(__file__).resolve().parents[3] / "lib" / "ring"
IDENTITY = "spiffe://cluster.local/ns/default/sa/box"


@contextlib.asynccontextmanager
async def front(path):
    """Yield the address of a listener whose clients are offered to a process."""
    async with asyncio.timeout(LIMIT_S), Engine() as engine:
        peer = engine.add_peer(path, identity=IDENTITY, ring_bytes=4096)
        sock = socket.create_server(("127.0.0.1", 0))
        address = sock.getsockname()
        target = Ring(peer.id, ("192.0.2.80", 8080))
        engine.add_listener(sock, target, on_event=lambda _: None)
        yield address


@contextlib.asynccontextmanager
async def serving(path, handle):
    with rings.listen(path) as listener:
        task = asyncio.create_task(rings.serve(listener, handle))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def exchange(address, data):
    """Send all of it, and return what comes back until the end."""
    reader, writer = await asyncio.open_connection(*address)

    async def send():
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    came = await reader.read()
    await sending
    writer.close()
    return came


async def echo(ring, hello):
    while data := await ring.read():
        await ring.write(data)


def test_one_task_reads_while_another_one_writes(tmp_path):
    """Both rings are small and full: each waits for the other to go on."""
    sent = os.urandom(200_000)
    read = []

    async def handle(ring, hello):
        async def reading():
            while data := await ring.read(1000):
                read.append(data)

        await asyncio.gather(reading(), ring.write(sent))

    async def work():
        path = tmp_path / "ring"
        async with front(path) as address, serving(path, handle):
            assert await exchange(address, sent[::-1]) == sent

    asyncio.run(work())
    assert b"".join(read) == sent[::-1]


def test_a_read_that_is_cancelled_loses_nothing(tmp_path):
    async def work():
        path, cancelled = tmp_path / "ring", asyncio.Event()

        async def handle(ring, hello):
            task = asyncio.create_task(ring.read())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            cancelled.set()
            await echo(ring, hello)

        async with front(path) as address, serving(path, handle):
            reader, writer = await asyncio.open_connection(*address)
            await cancelled.wait()  # there was nothing to read
            writer.write(b"whole")
            writer.write_eof()
            assert await reader.read() == b"whole"
            writer.close()

    asyncio.run(work())


def test_many_connections_are_served_at_once(tmp_path):
    async def work():
        path = tmp_path / "ring"
        async with front(path) as address, serving(path, echo):
            pieces = [os.urandom(9000) for _ in range(50)]
            came = await asyncio.gather(*(exchange(address, it) for it in pieces))
            assert came == pieces

    asyncio.run(work())


@pytest.mark.parametrize("says", ["nonsense", "nothing"])
def test_a_stranger_at_the_socket_is_logged_and_the_others_go_on(
    tmp_path, caplog, monkeypatch, says
):
    monkeypatch.setattr(rings, "HELLO_S", LIMIT_S if says == "nonsense" else 0.001)
    path = tmp_path / "ring"

    async def work():
        async with front(path) as address, serving(path, echo):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.connect(str(path))
                if says == "nonsense":
                    stranger.send(b"hello?")
                await until(lambda: "none of ours" in caplog.text)
                monkeypatch.setattr(rings, "HELLO_S", LIMIT_S)
                assert await exchange(address, b"still here") == b"still here"

    asyncio.run(work())


def test_a_handler_that_meets_a_reset_ends_alone(tmp_path):
    ended = asyncio.Event()

    async def handle(ring, hello):
        try:
            await echo(ring, hello)
        finally:
            ended.set()

    async def work():
        path = tmp_path / "ring"
        async with front(path) as address, serving(path, handle):
            with socket.create_connection(address) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + bytes(7))
                sock.send(b"x")
            await ended.wait()
            assert await exchange(address, b"still here") == b"still here"

    asyncio.run(work())


def test_a_handler_that_fails_is_a_reset_of_its_connection_only(tmp_path, caplog):
    async def handle(ring, hello):
        if await ring.read(1) == b"!":
            raise ValueError("of its own")
        await ring.write(b"fine")

    async def work():
        path = tmp_path / "ring"
        async with front(path) as address, serving(path, handle):
            with pytest.raises(ConnectionResetError):
                await exchange(address, b"!")
            assert await exchange(address, b".") == b"fine"

    asyncio.run(work())
    assert "its handler failed" in caplog.text


def test_bytes_that_a_closed_ring_wrote_arrive(tmp_path):
    async def handle(ring, hello):
        while await ring.read():
            pass
        await ring.write(b"all of it")

    async def work():
        path = tmp_path / "ring"
        async with front(path) as address, serving(path, handle):
            assert await exchange(address, b"go") == b"all of it"

    asyncio.run(work())


@pytest.fixture(params=["c", "python"])
def example(request, tmp_path):
    """Return how to start an echo server of lib/ring/examples."""
    if request.param == "python":
        return [sys.executable, str(LIBRARY / "examples" / "echo.py")]
    program = tmp_path / "echo"
    sources = [LIBRARY / "examples" / "echo.c", LIBRARY / "fastpath_ring.c"]
    flags = ["-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    command = ["cc", *flags, f"-I{LIBRARY}", *map(str, sources), "-o", str(program)]
    subprocess.run([*command, "-pthread"], check=True)
    return [str(program)]


def listens(path):
    """Whether somebody does, found out without a connection."""
    rows = Path("/proc/net/unix").read_text().splitlines()
    return any(
        row.endswith(f" {path}") and row.split()[3] == "00010000" for row in rows
    )


def test_the_examples_echo_and_say_whose_connection_it_is(tmp_path, example):
    path = tmp_path / "ring"

    async def work():
        await until(lambda: listens(path))
        async with front(path) as address:
            data = os.urandom(100_000)
            assert await exchange(address, data) == data

    with subprocess.Popen([*example, str(path)], stdout=subprocess.PIPE) as server:
        try:
            asyncio.run(work())
        finally:
            server.kill()
        assert server.stdout is not None
        said = server.stdout.read().decode()
    assert said == f"192.0.2.80:8080 for {IDENTITY}\n"
