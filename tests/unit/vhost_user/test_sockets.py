"""UnixListener: whose socket file may be replaced, and who removes it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vhost_user.sockets import UnixListener

ROOT = Path(__file__).parents[3]


def listen(path):
    """Start a listener in a loop of its own and return it with the loop."""
    loop = asyncio.new_event_loop()
    listener = UnixListener(path, lambda client: client.close())

    async def start():
        listener.start()

    try:
        loop.run_until_complete(start())
    except BaseException:
        loop.close()
        raise
    return listener, loop


def close(listener, loop):
    async def stop():
        listener.close()

    loop.run_until_complete(stop())
    loop.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sock"


def dead_socket(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_makes_and_removes_the_file(path):
    running = listen(path)
    assert path.is_socket()
    close(*running)
    assert not path.exists()


def test_replaces_the_file_of_a_dead_process(path):
    dead_socket(path)
    close(*listen(path))


def test_never_takes_the_file_of_a_live_one(path):
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(OSError, match="live process") as info:
            listen(path)
    assert info.value.errno == errno.EADDRINUSE
    assert info.value.filename == str(path)
    assert path.is_socket()


def test_a_live_one_with_a_full_backlog_is_live(path):
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(0)
        clients = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            clients.append(client)
            if client.connect_ex(str(path)):
                break
        with pytest.raises(OSError, match="live process"):
            listen(path)
        for client in clients:
            client.close()


def test_never_removes_a_file_that_is_no_socket(path):
    path.write_text("precious")
    with pytest.raises(OSError, match="not a socket"):
        listen(path)
    assert path.read_text() == "precious"


def test_close_leaves_the_file_of_a_successor(path):
    running = listen(path)
    path.unlink()
    dead_socket(path)
    close(*running)
    assert path.exists()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        pytest.param(Path("/nonexistent/sock"), errno.ENOENT, id="no-directory"),
        pytest.param(Path("/tmp/" + "x" * 103), errno.ENAMETOOLONG, id="108-bytes"),
    ],
)
def test_a_path_that_cannot_be_is_named(path, code):
    with pytest.raises(OSError, match=r".") as info:
        listen(path)
    assert (info.value.errno, info.value.filename) == (code, str(path))


CLAIM = """
import asyncio, sys
from pathlib import Path
from vhost_user.sockets import UnixListener

async def main():
    listener = UnixListener(Path(sys.argv[1]), lambda client: client.close())
    sys.stdin.buffer.read(1)  # until all are there
    try:
        listener.start()
    except OSError as error:
        print(error.errno, flush=True)
    else:
        print("won", flush=True)
    sys.stdin.buffer.read()  # until all have said so

asyncio.run(main())
"""


def test_of_many_that_start_at_once_one_gets_it(path):
    """All see a stale file; without the lock one would remove another's."""
    dead_socket(path)
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CLAIM, str(path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    cwd=ROOT,
                )
            )
            for _ in range(6)
        ]
        pipes: Any = [(racer.stdin, racer.stdout) for racer in racers]
        for stdin, _ in pipes:
            stdin.write(b"x")
        said = sorted(stdout.readline().decode().strip() for _, stdout in pipes)
        for stdin, _ in pipes:
            stdin.close()
    assert said == [str(errno.EADDRINUSE)] * 5 + ["won"]
