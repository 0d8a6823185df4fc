"""What a pod's process is asked for, and answers that are right, late, or none.

The messages are written out by hand, from vhost_user/native/vu_netns.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
import time
from types import SimpleNamespace

import pytest

from fastpath.handoff import control as module
from fastpath.handoff.control import Control
from tests.support.descriptors import check_closed, descriptors
from tests.support.limits import LIMIT_S, until

MODULE = module.__name__
KINDS = {2: socket.SOCK_STREAM, 3: socket.SOCK_DGRAM}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Process:
    """The other end, played by hand."""

    def __init__(self, sock):
        self.sock = sock

    def asked(self):
        """What, version and count of the next question."""
        fields = struct.unpack("=BBHI16s", self.sock.recv(100))
        assert fields[3:] == (0, bytes(16))
        return fields[:3]

    def answer(self, what, version, *kinds, error=0, count=None):
        """Send sockets of these families and types."""
        with contextlib.ExitStack() as stack:
            fds = [stack.enter_context(socket.socket(*it)).fileno() for it in kinds]
            number = len(fds) if count is None else count
            said = struct.pack("=iBBH", error, what, version, number)
            socket.send_fds(self.sock, [said], fds)

    def serve(self):
        """Answer the next question."""
        what, version, count = self.asked()
        self.answer(what, version, *[(FAMILIES[version], KINDS[what])] * count)


def run(work):
    """Have `work(control, process, lost)` done; `lost` gets why it is lost."""

    async def main():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.settimeout(LIMIT_S)
        lost: list[str] = []
        with theirs:
            control = Control(ours, lost.append)
            async with asyncio.timeout(LIMIT_S):
                await work(control, Process(theirs), lost)
            control.close()
            control.close()  # again: nothing

    before = descriptors()
    asyncio.run(main())
    check_closed(before)


def filled(control):
    return all(not stock.asked for stock in control._stocks.values())


async def settle(control, process):
    """Answer the questions of the start."""
    for _ in range(4):
        process.serve()
    await until(lambda: filled(control))


def test_sockets_are_asked_for_before_they_are_needed():
    async def work(control, process, lost):
        asked = [process.asked() for _ in range(4)]
        assert asked == [(2, 4, 2), (2, 6, 2), (3, 4, 2), (3, 6, 2)]

    run(work)


def test_taking_one_does_not_wait(monkeypatch):
    async def work(control, process, lost):
        await settle(control, process)
        monkeypatch.setattr(f"{MODULE}.select", None)  # nobody calls it
        for family, kind in [(2, 1), (2, 2), (10, 1), (10, 2)]:
            with control.take(family, kind) as sock:
                assert (sock.family, sock.type) == (family, kind)
        asked = [process.asked() for _ in range(4)]  # and it is filled up
        assert asked == [(2, 4, 1), (3, 4, 1), (2, 6, 1), (3, 6, 1)]

    run(work)


class Clock:
    """Time that passes when it is waited for, and says how much was."""

    def __init__(self, monkeypatch, then=lambda: None):
        self._begin = self.now = time.monotonic()
        self.waits, self._then = 0, then
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(f"{MODULE}.time", clock)
        select = SimpleNamespace(poll=lambda: self, POLLIN=1)
        monkeypatch.setattr(f"{MODULE}.select", select)

    @property
    def passed(self):
        return self.now - self._begin

    def register(self, sock, events):
        self._sock = sock

    def poll(self, ms):
        self.waits += 1
        self._then()
        self._then = lambda: None
        with contextlib.suppress(BlockingIOError):
            return self._sock.recv(1, socket.MSG_PEEK) or True
        self.now += ms / 1e3
        return []


def test_one_that_is_not_there_is_waited_for(monkeypatch):
    async def work(control, process, lost):
        clock = Clock(monkeypatch, process.serve)
        control.take(2, 1).close()
        assert clock.passed == 0.0

    run(work)


def test_a_process_that_is_silent_is_waited_for_once(monkeypatch):
    async def work(control, process, lost):
        clock = Clock(monkeypatch)
        for _ in range(5):
            with pytest.raises(OSError, match="temporarily unavailable") as caught:
                control.take(2, 1)
            assert caught.value.errno == errno.EAGAIN
        assert clock.passed == pytest.approx(module.WAIT_S)
        waits = clock.waits
        await settle(control, process)  # it speaks again
        for _ in range(2):
            control.take(2, 1).close()
        process.serve()
        control.take(2, 1).close()
        assert clock.waits > waits
        assert clock.passed == pytest.approx(module.WAIT_S)
        assert not lost

    run(work)


class SlowClock(Clock):
    """Each answer takes 20 ms."""

    def __init__(self, monkeypatch, process):
        super().__init__(monkeypatch)
        self._process = process

    def poll(self, ms):
        with contextlib.suppress(BlockingIOError):
            return self._sock.recv(1, socket.MSG_PEEK) or True
        if ms < 20:
            self.now += ms / 1e3
            return []
        self.now += 0.02
        self._process.serve()
        return True


def test_a_process_that_is_slow_each_time_gets_a_share_of_the_loops_time(monkeypatch):
    async def work(control, process, lost):
        await settle(control, process)
        clock = SlowClock(monkeypatch, process)
        refused = 0
        for _ in range(100):
            try:
                control.take(2, 1).close()
            except BlockingIOError:
                refused += 1
            control._silent = False  # it did answer, late
        assert refused > 90
        assert clock.passed < module.WAIT_S + 0.01
        clock.now += 1.0  # others' turns
        process.serve()
        for _ in range(3):
            control.take(2, 1).close()

    run(work)


def test_what_the_process_meets_is_the_takers_errno(monkeypatch):
    async def work(control, process, lost):
        process.asked()
        process.answer(2, 4, error=errno.ENFILE)
        Clock(monkeypatch)
        await until(lambda: control._stocks[2, 4].error)
        Clock(monkeypatch, lambda: process.answer(2, 6, *[(10, 1)] * 2))
        with pytest.raises(OSError, match="temporarily"):  # it is asked again
            control.take(2, 1)
        assert not lost

    run(work)


def test_an_error_is_the_takers_if_it_comes_in_time(monkeypatch):
    async def work(control, process, lost):
        await settle(control, process)
        control.take(2, 1).close()
        process.asked()
        process.answer(2, 4, error=errno.ENFILE)
        await until(lambda: filled(control))
        control.take(2, 1).close()
        assert process.asked() == (2, 4, 2)
        Clock(monkeypatch, lambda: process.answer(2, 4, error=errno.ENOBUFS))
        with pytest.raises(OSError, match="buffer") as caught:
            control.take(2, 1)
        assert caught.value.errno == errno.ENOBUFS
        assert not lost

    run(work)


def raw(*, length=8, what=2, version=4, count=0):
    return struct.pack("=iBBH", 0, what, version, count).ljust(length, b"\0")[:length]


def send(message, *kinds):
    """What sends bytes and sockets."""

    def play(process):
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(*kind)) for kind in kinds]
            socket.send_fds(process.sock, [message], [it.fileno() for it in socks])

    return play


def a_file(process):
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
    with socket.socket() as sock:
        both = [sock.fileno(), *fds]
        socket.send_fds(process.sock, [raw(count=3)], both)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(send(raw(length=3)), id="short"),
        pytest.param(send(raw(length=9)), id="long"),
        pytest.param(send(raw(version=6)), id="another-version"),
        pytest.param(send(raw(what=3)), id="another-kind"),
        pytest.param(send(raw(count=1)), id="fewer-than-it-says"),
        pytest.param(send(raw(), (2, 1)), id="more-than-it-says"),
        pytest.param(send(raw(count=1), (10, 1)), id="a-socket-of-another-family"),
        pytest.param(send(raw(count=1), (2, 2)), id="a-socket-of-another-type"),
        pytest.param(send(raw(count=2), (2, 1), (1, 1)), id="one-of-two"),
        pytest.param(a_file, id="no-socket"),
    ],
)
def test_nonsense_is_the_end_of_it_and_leaves_no_descriptor(play):
    async def work(control, process, lost):
        process.asked()
        play(process)
        await until(lambda: lost)
        assert lost == ["it says nonsense"]

    run(work)


def test_an_answer_that_nobody_asked_for_is_nonsense():
    async def work(control, process, lost):
        await settle(control, process)
        process.answer(2, 4, (2, 1))
        await until(lambda: lost)
        assert lost == ["it says nonsense"]

    run(work)


@pytest.mark.parametrize("taking", [False, True])
def test_the_end_of_it_is_said_once(taking):
    async def work(control, process, lost):
        process.sock.close()
        if taking:
            with pytest.raises(OSError, match="temporarily"):
                control.take(2, 1)
        await until(lambda: lost)
        await asyncio.sleep(0)
        assert len(lost) == 1

    run(work)


@contextlib.contextmanager
def no_descriptors():
    """All that the process may have are in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def test_without_descriptors_there_is_no_socket_and_no_nonsense():
    async def work(control, process, lost):
        for _ in range(4):
            process.serve()
        with no_descriptors():
            await until(lambda: filled(control))
        assert {stock.error for stock in control._stocks.values()} == {errno.EMFILE}
        assert not lost

    run(work)
