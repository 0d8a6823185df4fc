"""UnixListener: whose socket file may be replaced, and who removes it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vhost_user.sockets import Access, UnixListener, parse_group, parse_mode

ROOT = Path(__file__).parents[3]


def listen(path, **options):
    """Start a listener in a loop of its own and return it with the loop."""
    loop = asyncio.new_event_loop()
    listener = UnixListener(path, lambda client: client.close(), **options)

    async def start():
        await listener.start()

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
        await listener.start()
    except OSError as error:
        print(error.errno, flush=True)
    else:
        print("won", flush=True)
    sys.stdin.buffer.read()  # until all have said so

asyncio.run(main())
"""


def test_of_many_that_start_at_once_one_gets_it(path):
    """All see a stale file; without turns one would remove another's."""
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
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_lock_on_the_directory_keeps_nobody_from_starting(path):
    """Any user can take one in a directory such as /tmp."""
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        close(*listen(path))
    finally:
        os.close(fd)


def test_another_users_turn_keeps_nobody_from_starting(path, monkeypatch):
    """Whoever made the file first, and whatever lock is on it."""
    dead_socket(path)
    turn = path.parent / f".{path.name}.turn-0"
    fd = os.open(turn, os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    another = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another)
    close(*listen(path))
    assert turn.exists()
    os.close(fd)


def test_waits_while_a_process_of_this_user_has_its_turn(path):
    """It looked before we were there, whatever its name is."""
    turn = path.parent / f".{path.name}.turn-zz"
    fd = os.open(turn, os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)

    async def main():
        listener = UnixListener(path, lambda client: client.close())
        starting = asyncio.create_task(listener.start())
        for _ in range(100):  # all that it does but wait
            await asyncio.sleep(0)
        assert not path.exists()
        turn.unlink()
        os.close(fd)
        await starting
        listener.close()

    asyncio.run(main())


def test_the_turn_of_a_dead_process_is_removed(path):
    (path.parent / f".{path.name}.turn-0").touch(0o600)
    close(*listen(path))
    assert list(path.parent.iterdir()) == []


@pytest.fixture
def open_umask():
    """A umask that would let everybody connect."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize(
    ("access", "mode"),
    [
        pytest.param(Access(), 0o600, id="default"),
        pytest.param(Access(0o660), 0o660, id="group"),
        pytest.param(Access(0o666), 0o666, id="all"),
    ],
)
def test_who_may_connect_is_what_was_asked_for(path, access, mode):
    running = listen(path, access=access)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    close(*running)


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_a_mode_does_not_depend_on_the_umask(path, mask):
    before = os.umask(mask)
    try:
        running = listen(path, access=Access(0o660))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    close(*running)


@pytest.mark.usefixtures("open_umask")
def test_it_is_never_open_to_more_users_while_it_is_made(path, monkeypatch):
    seen = []
    real = socket.socket.bind

    def bind(sock, address):
        real(sock, address)
        seen.append(stat.S_IMODE(path.stat().st_mode))

    monkeypatch.setattr(socket.socket, "bind", bind)
    close(*listen(path, access=Access(0o660)))
    assert seen == [0o600]


def test_a_group_that_cannot_be_given_leaves_nothing(path):
    if os.geteuid() == 0:
        running = listen(path, access=Access(0o660, group=4))
        assert path.stat().st_gid == 4
        close(*running)
    else:
        with pytest.raises(PermissionError):
            listen(path, access=Access(0o660, group=0))
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "9", "0o660", "1777", "0999", "440", "rw", "-660"]
)
def test_what_is_no_mode_of_a_socket(text):
    with pytest.raises(ValueError, match=r"octal|owner"):
        parse_mode(text)


def test_modes_and_groups_are_read():
    assert (parse_mode("660"), parse_mode("0600")) == (0o660, 0o600)
    assert (parse_group("root"), parse_group("100")) == (0, 100)
    with pytest.raises(ValueError, match="no group 'nonsense'"):
        parse_group("nonsense")
