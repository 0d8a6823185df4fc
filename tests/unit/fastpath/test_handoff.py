"""A pod's namespace without rights: the process in it is a thread that enters nothing.

The maker's messages are written out by hand, from vhost_user/native/vu_netns.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from fastpath.handoff import control, namespace
from fastpath.handoff.namespace import NamespaceError, PodNamespace, State
from tests.support.limits import LIMIT_S, until
from vhost_user._native import lib

LO4 = bytes([127, 0, 0, 9]) + bytes(12)
LO6 = bytes(15) + b"\1"
NO_PORT = 24


def ask(what, version, count, address=bytes(16)):
    return struct.pack("=BBHI16s", what, version, count, 0, address)


@pytest.fixture
def served():
    """A maker's control socket; it ends with that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=lib.vu_maker_run, args=(theirs.fileno(),))
    thread.start()
    ours.settimeout(LIMIT_S)
    yield ours
    ours.close()
    thread.join(LIMIT_S)
    theirs.close()
    assert not thread.is_alive()


@pytest.fixture
def made(served):
    """Ask for sockets; return errno, kind, version, and the sockets."""
    socks = []

    def make(message):
        served.send(message)
        said, fds, _, _ = socket.recv_fds(served, 100, 100)
        error, what, version, count = struct.unpack("=iBBH", said)
        found = [socket.socket(fileno=fd) for fd in fds]
        socks.extend(found)
        assert count == len(found)
        return error, what, version, found

    yield make
    for sock in socks:
        sock.close()


@pytest.mark.parametrize(
    ("version", "address", "host"),
    [(4, LO4, "127.0.0.9"), (6, LO6, "::1")],
)
def test_what_is_dialled_with_has_an_address_and_no_port(made, version, address, host):
    error, what, version_too, socks = made(ask(1, version, 3, address))
    assert (error, what, version_too, len(socks)) == (0, 1, version, 3)
    for sock in socks:
        assert sock.getsockname()[:2] == (host, 0)
        assert not os.get_blocking(sock.fileno())
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_IP, NO_PORT)


@pytest.mark.parametrize(
    ("what", "kind"), [(2, socket.SOCK_STREAM), (3, socket.SOCK_DGRAM)]
)
@pytest.mark.parametrize("version", [4, 6])
def test_other_sockets_are_as_socket_makes_them(made, what, kind, version):
    error, _, _, (sock,) = made(ask(what, version, 1))
    assert error == 0
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    assert (sock.family, sock.type, sock.getsockname()[1]) == (family, kind, 0)
    assert os.get_blocking(sock.fileno())


def test_whether_it_is_there_is_answered_without_sockets(made):
    assert made(ask(0, 0, 0)) == (0, 0, 0, [])


def test_what_the_kernel_says_is_the_answer(made):
    error, _, _, socks = made(ask(1, 5, 3, LO4))
    assert (error, socks) == (errno.EAFNOSUPPORT, [])
    error, _, _, socks = made(ask(1, 4, 3, bytes([192, 0, 2, 1]) + bytes(12)))
    assert (error, socks) == (errno.EADDRNOTAVAIL, [])


def test_an_answer_has_so_many_sockets_and_no_more(made):
    assert len(made(ask(1, 4, 65535, LO4))[3]) == 64


def count(sock):
    """How many sockets come; they are closed."""
    _, fds, _, _ = socket.recv_fds(sock, 100, 100)
    for fd in fds:
        os.close(fd)
    return len(fds)


def test_a_channel_is_answered_beside_the_control_socket(served):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            socket.send_fds(served, [ask(4, 0, 0)], [theirs.fileno()])
        ours.settimeout(LIMIT_S)
        ours.send(ask(1, 4, 5, LO4))
        assert count(ours) == 5
    served.send(ask(2, 4, 1))
    assert count(served) == 1


def test_a_channel_that_says_nonsense_is_closed_and_no_other(served):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            socket.send_fds(served, [ask(4, 0, 0)], [theirs.fileno()])
        ours.settimeout(LIMIT_S)
        ours.send(b"nonsense")
        assert ours.recv(1) == b""
    served.send(ask(3, 6, 1))
    assert count(served) == 1


class FakeProcess:
    """A maker on a thread, in our own namespace."""

    problem = 0
    """errno of what it says first."""
    silent = False
    """Says nothing then."""
    first: ClassVar[bytes | None] = None
    """What it says first in its place; none: it ends; `late`: nothing as yet."""
    started: ClassVar[list[FakeProcess]] = []

    def __init__(self, argv, *, pass_fds, **options):
        _, self._control = pass_fds
        assert [int(it) for it in argv[1:]] == [*pass_fds, os.getpid()]
        assert options["env"] == {}
        self.pid = 1 + len(self.started)
        self.sock = socket.socket(fileno=os.dup(self._control))
        self._ready = threading.Event()
        if self.first is None:
            self.say_ready()
        elif self.first == b"":
            self.problem = 1  # it ends
        elif self.first != b"late":
            self.sock.send(self.first)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.started.append(self)

    def say_ready(self):
        if not self._ready.is_set():
            self.sock.send(struct.pack("=iBBH", self.problem, 0, 0, 0))
            self._ready.set()

    def _run(self):
        if self.first == b"late":
            self._ready.wait(LIMIT_S)
        if self.problem:
            self.sock.close()
        elif self.silent:
            while self.sock.recv(100):
                pass
        else:
            lib.vu_maker_run(self.sock.fileno())

    def kill(self):
        if self.sock.fileno() >= 0:
            self.sock.shutdown(socket.SHUT_RDWR)

    def wait(self):
        self._thread.join(LIMIT_S)
        self.sock.close()


@pytest.fixture
def process(monkeypatch):
    class Process(FakeProcess):
        started: ClassVar[list[FakeProcess]] = []

    monkeypatch.setattr("fastpath.handoff.namespace.subprocess.Popen", Process)
    monkeypatch.setattr(namespace, "RESTART_S", 0.0)
    return Process


@pytest.fixture
def path(tmp_path):
    """A name for our own namespace."""
    link = tmp_path / "pod"
    link.symlink_to("/proc/self/ns/net")
    return link


def run(work, path):
    async def main():
        there = PodNamespace(path)
        try:
            async with asyncio.timeout(LIMIT_S):
                await work(there)
        finally:
            there.close()
            there.close()  # again: nothing

    asyncio.run(main())


async def made_there(there, family, kind):
    """Make a socket there; its process may be slow to have one."""
    socks = []

    def has_one():
        with contextlib.suppress(BlockingIOError):
            socks.append(there.make(family, kind))
        return socks

    await until(has_one)
    return socks[0]


@pytest.mark.parametrize(
    ("target", "why", "hint"),
    [
        (None, "No such file or directory", "ip netns add NAME"),
        ("/etc/passwd/no", "Not a directory", "ip netns add NAME"),
        ("/etc/passwd", "is no network namespace", "/run/netns/NAME"),
        ("/proc/self/ns/uts", "is no network namespace", "/proc/PID/ns/net"),
        ("/proc", "is no network namespace", "/proc/PID/ns/net"),
    ],
)
def test_a_path_that_is_none_is_an_error_with_a_hint(tmp_path, target, why, hint):
    path = Path(target) if target else tmp_path / "none"
    with pytest.raises(NamespaceError) as caught:
        PodNamespace(path)
    assert str(path) in caught.value.why
    assert why in caught.value.why
    assert caught.value.hint
    assert hint in caught.value.hint


def test_a_process_that_may_not_enter_is_an_error_with_a_hint(path, process):
    async def work(there):
        process.problem = errno.EPERM
        with pytest.raises(NamespaceError, match="Operation not permitted") as caught:
            await there.start()
        assert "CAP_SYS_ADMIN" in str(caught.value.hint)
        assert there.pid == 0

    run(work, path)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_sockets_come_from_the_process(path, process, family, kind):
    async def work(there):
        await there.start()
        assert there.state is State.RUNNING
        with await made_there(there, family, kind) as sock:
            assert (sock.family, sock.type) == (family, kind)

    run(work, path)


def test_a_channel_gives_sockets(path, process):
    async def work(there):
        await there.start()
        with there.channel() as channel:
            channel.settimeout(LIMIT_S)
            channel.send(ask(1, 4, 2, LO4))
            assert await asyncio.to_thread(count, channel) == 2

    run(work, path)


def test_a_process_that_dies_is_replaced_and_its_users_are_told(path, process, caplog):
    async def work(there):
        told = asyncio.Event()
        there.on_restart(told.set)
        await there.start()
        process.started[0].kill()
        await told.wait()
        assert there.state is State.RUNNING
        assert there.pid == 2
        (await made_there(there, socket.AF_INET, socket.SOCK_STREAM)).close()

    run(work, path)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: its process is lost")


def use_up(there):
    """Take what a process has made, and one more."""
    for _ in range(2 * control.KEPT + 1):
        there.make(socket.AF_INET, socket.SOCK_STREAM).close()


def test_a_process_that_is_found_dead_is_no_socket_now(path, process):
    async def work(there):
        await there.start()
        process.started[0].kill()
        process.started[0].wait()
        for _ in range(2):
            with pytest.raises(OSError, match="temporarily unavailable") as caught:
                use_up(there)
            assert caught.value.errno == errno.EAGAIN
        await until(lambda: there.state is State.RUNNING)

    run(work, path)


def test_a_reason_that_stays_is_said_once(path, process, caplog):
    async def work(there):
        await there.start()
        process.problem = errno.EPERM
        process.started[0].kill()
        await until(lambda: len(process.started) > 3)
        process.problem = 0
        await until(lambda: there.state is State.RUNNING)

    run(work, path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "can't be entered: Operation not permitted" in said[1]


def test_a_process_that_says_nothing_is_replaced(path, process, monkeypatch, caplog):
    monkeypatch.setattr(control, "TICK_S", 0.05)

    async def work(there):
        process.silent = True
        await there.start()
        with pytest.raises(OSError, match="temporarily unavailable"):
            there.make(socket.AF_INET, socket.SOCK_STREAM)
        await until(lambda: caplog.records)
        process.silent = False
        monkeypatch.setattr(control, "TICK_S", LIMIT_S)  # the next one may be slow
        await until(lambda: there.state is State.RUNNING and there.pid != 1)
        (await made_there(there, socket.AF_INET, socket.SOCK_STREAM)).close()

    run(work, path)
    assert "its process is lost (it is silent)" in caplog.records[0].getMessage()


def test_a_process_that_nobody_asks_is_asked_whether_it_is_there(
    path, process, monkeypatch
):
    monkeypatch.setattr(control, "TICK_S", LIMIT_S)

    async def work(there):
        await there.start()
        asked = there._control
        for _ in range(3):
            await until(lambda: not asked._asked)
            answers = asked._answers
            asked._timer.cancel()
            asked._tick(answers)
            assert asked._asked
        await until(lambda: asked._answers > answers)
        assert there.pid == 1

    run(work, path)


def test_a_silent_process_stalls_no_other_namespaces(path, process):
    async def work(there):
        process.silent = True
        await there.start()
        process.silent = False
        other = PodNamespace(path)
        await other.start()
        for _ in range(20):
            with pytest.raises(OSError, match="temporarily unavailable"):
                there.make(socket.AF_INET, socket.SOCK_STREAM)
            (await made_there(other, socket.AF_INET, socket.SOCK_DGRAM)).close()
        other.close()

    run(work, path)


@pytest.mark.parametrize(
    ("first", "why"),
    [(b"", "its process ended"), (b"?", "says nonsense"), (bytes(9), "says nonsense")],
)
def test_a_first_message_that_is_none_is_an_error(path, process, first, why):
    async def work(there):
        process.first = first
        with pytest.raises(NamespaceError, match=why):
            await there.start()
        assert there.pid == 0

    run(work, path)


def test_a_program_that_is_missing_is_an_error_with_a_hint(path, monkeypatch):
    monkeypatch.setattr(namespace, "PROGRAM", path.with_name("none"))

    async def work(there):
        with pytest.raises(NamespaceError, match="No such file") as caught:
            await there.start()
        assert "make setup" in str(caught.value.hint)

    run(work, path)


def test_many_are_started_at_once(path, process):
    """More than a pool has threads, whatever they wait for."""

    async def work(there):
        process.first = b"late"
        late = [PodNamespace(path) for _ in range(40)]
        starts = [asyncio.ensure_future(each.start()) for each in late]
        await until(lambda: len(process.started) == len(late))
        process.first = None
        await there.start()
        for each in process.started:
            each.say_ready()
        await asyncio.gather(*starts)
        for each in late:
            each.close()

    run(work, path)


@pytest.mark.parametrize("after", ["nothing", "file", "another"])
def test_a_path_that_names_something_else_is_gone(path, process, after):
    async def work(there):
        await there.start()
        assert not there.gone
        path.unlink()
        if after == "file":
            path.touch()
        elif after == "another":
            path.symlink_to("/proc/self/ns/uts")
        assert there.gone
        process.started[0].kill()  # nobody takes its place
        await until(lambda: there.state is State.LOST)
        assert there.pid == 0

    run(work, path)


def test_one_that_is_closed_gives_nothing(path, process):
    async def work(there):
        await there.start()
        there.close()
        assert there.state is State.CLOSED
        with pytest.raises(OSError, match="unreachable"):
            there.make(socket.AF_INET, socket.SOCK_STREAM)
        with pytest.raises(OSError, match="unreachable"):
            there.channel()

    run(work, path)
