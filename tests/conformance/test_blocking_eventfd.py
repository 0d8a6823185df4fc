"""No front-end stops another's VM with a descriptor that blocks.

A descriptor's O_NONBLOCK belongs to its open file description, which the front-end
shares with the back-end: it can clear it at any time, and fill or empty what is behind.
So only what cannot block for ever is taken, and what can is watched: the device that it
belongs to is broken, and nobody else notices.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from pathlib import Path

import pytest

from tests.conformance.links import wait_for
from tests.support.limits import LIMIT_S as WAIT_S
from vhost_user.engine import EventKind
from vhost_user.errors import StateError
from vhost_user.frontend import DirtyLog
from vhost_user.message import Feature, Request
from vhost_user.vsock.driver import RX, TX, VsockGuest
from vhost_user.vsock.packet import Op

ECHO = 7
FULL = 0xFFFF_FFFF_FFFF_FFFE
"""Most that an eventfd counts to; one more waits until somebody reads."""


@contextlib.contextmanager
def stuck(fd):
    """Have writes to an eventfd wait, whatever the back-end made it; then let go."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)
    os.eventfd_write(fd, FULL)
    os.set_blocking(fd, True)
    try:
        yield
    finally:
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)


@pytest.fixture
def neighbours(make_host):
    host = make_host(neighbour=True)
    with (
        VsockGuest(host.path) as hostile,
        VsockGuest(host.neighbour_path, cid=4, timeout_s=WAIT_S) as good,
    ):
        yield host, hostile, good.connect(ECHO)


def answers(function, what):
    """Call `function` in a thread, and see that it returns."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive(), f"{what} does not answer"


def others_go_on(host, conn):
    """Check that another VM, the event loop and the engine's lock are free."""
    answers(lambda: host.call(lambda: None), "the event loop")
    answers(host.stats, "the engine")
    for _ in range(3):
        conn.say(Op.RW, b"still")
        assert conn.receive().payload == b"still"


def breaks(host, conn):
    """Wait until the first device is broken; nobody else notices meanwhile."""

    def broken():
        others_go_on(host, conn)
        host.deliver()
        return bool(host.events_of(EventKind.BROKEN))

    wait_for(broken, "the BROKEN event")


@pytest.mark.parametrize("queue", [RX, TX], ids=["rx", "tx"])
def test_a_call_eventfd_that_blocks_breaks_its_device_only(neighbours, queue):
    host, hostile, conn = neighbours
    ring = hostile.rx if queue == RX else hostile.tx
    hostile.drain()  # which reads it, if it has to wait
    with stuck(ring.call_fd):
        ring.want_calls()
        hostile.request(ECHO)
        breaks(host, conn)
    others_go_on(host, conn)


def test_a_device_whose_call_eventfd_blocked_can_start_over(neighbours):
    host, hostile, conn = neighbours
    with stuck(hostile.rx.call_fd):
        hostile.rx.want_calls()
        hostile.request(ECHO)
        breaks(host, conn)
    hostile.close()
    host.idle()
    with VsockGuest(host.path) as again:
        conn = again.connect(ECHO)
        conn.say(Op.RW, b"alive")
        assert conn.receive().payload == b"alive"


def test_a_device_can_be_left_while_its_call_eventfd_blocks(neighbours):
    """The front-end hangs up: its session ends, the descriptor is let go."""
    host, hostile, conn = neighbours
    with contextlib.ExitStack() as stack:
        kept = os.dup(hostile.rx.call_fd)
        stack.callback(os.close, kept)
        stack.enter_context(stuck(kept))
        hostile.rx.want_calls()
        hostile.request(ECHO)
        hostile.vmm.close()
        answers(host.idle, "the session's end")
        others_go_on(host, conn)


def test_an_err_eventfd_that_blocks_stops_nobody(neighbours):
    host, hostile, conn = neighbours
    err = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    hostile.vmm.set_fd(Request.SET_VRING_ERR, TX, err)
    with stuck(err):
        hostile.tx.set_avail_idx(hostile.tx.avail_idx + hostile.tx.num + 1)
        hostile.tx.kick(force=True)
        others_go_on(host, conn)
    os.close(err)


def test_a_log_eventfd_that_blocks_stops_nobody(neighbours):
    host, hostile, conn = neighbours
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    with DirtyLog(hostile.ram.gpa + hostile.ram.size) as log:
        hostile.vmm.set_log(log)
        hostile.vmm.tell(Request.SET_LOG_FD, fds=[fd])
        hostile.vmm.renegotiate(Feature.LOG_ALL)
        with stuck(fd):
            answers(lambda: hostile.vmm.stop(TX), "the session")
            others_go_on(host, conn)
    os.close(fd)


def test_a_back_end_channel_that_blocks_stops_nobody(neighbours):
    """Both its ends are the front-end's: it fills one and makes it blocking."""
    host, hostile, conn = neighbours
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hostile.vmm.tell(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(b"x" * 4096)
        theirs.setblocking(True)
        try:
            # the loop's own thread would wait with it
            host._loop.call_soon_threadsafe(host.device.on_config_change)
            others_go_on(host, conn)
        finally:
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while ours.recv(1 << 20):
                    pass


# ---- only eventfds ----


def pipe():
    ends = os.pipe()
    return ends[1], ends


def stream():
    ends = tuple(sock.detach() for sock in socket.socketpair())
    return ends[0], ends


def file():
    fd = os.memfd_create("no-eventfd", os.MFD_CLOEXEC)
    return fd, (fd,)


def poll():
    with select.epoll() as poller:
        fd = os.dup(poller.fileno())
    return fd, (fd,)


MAKE = [pipe, stream, file, poll]


@pytest.mark.spec("vhost-user:SET_VRING_CALL", "vhost-user:SET_VRING_ERR")
@pytest.mark.parametrize(
    ("request_", "make"),
    [
        pytest.param(
            request,
            make,
            id=f"{request.name.lower()}-{make.__name__}",
        )
        for request in (
            Request.SET_VRING_CALL,
            Request.SET_VRING_ERR,
            Request.SET_VRING_KICK,
        )
        for make in MAKE
        # user-mode Linux is interrupted by a pipe: vhost_user/pipecall.py
        if (request, make) != (Request.SET_VRING_CALL, pipe)
    ],
)
def test_a_ring_takes_nothing_but_an_eventfd(guest, request_, make):
    fd, ends = make()
    try:
        with pytest.raises((ConnectionError, StateError)):
            guest.vmm.set_fd(request_, TX, fd)
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("make", MAKE)
def test_a_dirty_log_takes_nothing_but_an_eventfd(guest, make):
    fd, ends = make()
    try:
        with pytest.raises((ConnectionError, StateError)):
            guest.vmm.tell(Request.SET_LOG_FD, fds=[fd])
    finally:
        for end in ends:
            os.close(end)


# ---- what a program that is started does not get ----


def test_no_descriptor_of_a_session_reaches_a_program_that_is_started(guest):
    """CLOEXEC is on each eventfd, the copies that the engine made among them."""
    guest.connect(ECHO)
    open_to_others = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            eventfd = entry.readlink() == Path("anon_inode:[eventfd]")
            if eventfd and os.get_inheritable(int(entry.name)):
                open_to_others.append(entry.name)
    assert open_to_others == []
