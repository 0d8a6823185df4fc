"""Host clients that say nothing, and those that do: who has to go, who is served."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.vhost_user.test_hybrid import dial, with_listener
from vhost_user.vsock import hybrid


@dataclass(eq=False)
class Client:
    uid: int
    pid: int


def crowd(peers):
    clients: Any = [Client(uid, pid) for uid, pid in peers]
    return clients.index(hybrid._crowd(clients))


@pytest.mark.parametrize(
    ("peers", "goes"),
    [
        pytest.param([(0, 7)] * 3, 0, id="one-program: its oldest"),
        pytest.param(
            [(0, 7), (0, 8), (0, 8)], 1, id="same-user: the program with more"
        ),
        pytest.param([(0, 7), (9, 8), (9, 8)], 1, id="the user with more"),
        pytest.param(
            [(0, 7), (0, 7), (9, 1), (9, 2), (9, 3)], 2, id="who-forks-gains-nothing"
        ),
    ],
)
def test_who_has_most_makes_room(peers, goes):
    assert crowd(peers) == goes


FLOOD = """
import socket, sys
socks = [socket.socket(socket.AF_UNIX) for _ in range(8)]
for sock in socks:
    sock.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""


def test_a_flood_pushes_out_no_slow_client_of_another_program(tmp_path, monkeypatch):
    monkeypatch.setattr(hybrid, "MAX_WAITING", 4)

    async def test(listener, handle):
        _, writer = await dial(listener, b"CONN")
        while not listener._waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
        flood = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FLOOD, listener.path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert flood.stdout is not None
        await flood.stdout.readline()
        while listener.refused < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        writer.write(b"ECT 5001\n")
        while not handle.opened:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert handle.opened[0][0] == 5001
        writer.close()
        await flood.communicate(b"")

    with_listener(tmp_path, test)


@pytest.mark.parametrize("pieces", [1, 13, 18])
def test_a_client_that_writes_and_closes_at_once_is_handed_over(tmp_path, pieces):
    """What it wrote is in the socket, with the end behind it."""

    async def test(listener, handle):
        data = b"CONNECT 5001\nhello"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(listener.path))
            for start in range(0, len(data), pieces):
                sock.sendall(data[start : start + pieces])
        while not handle.opened:  # noqa: ASYNC110
            await asyncio.sleep(0)
        ((port, ours),) = handle.opened
        assert port == 5001
        received = iter(lambda: ours.recv(1), b"")
        assert b"".join(itertools.islice(received, 100)) == b"hello"

    with_listener(tmp_path, test)


def test_clients_cannot_send_descriptors(tmp_path):
    """The kernel would close them on our thread, and there are some that linger."""

    async def test(listener, handle):
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.getsockopt(socket.SOL_SOCKET, 83)
            except OSError:
                pytest.skip("SO_PASSRIGHTS came with Linux 6.16")
            sock.connect(str(listener.path))
            with pytest.raises(PermissionError):
                socket.send_fds(sock, [b"CONNECT 1\n"], [0])

    with_listener(tmp_path, test)
