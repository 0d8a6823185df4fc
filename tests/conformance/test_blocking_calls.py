"""A front-end that makes its interrupts block loses its session, and nobody else."""

from __future__ import annotations

import contextlib
import os

import pytest

from vhost_user._native import lib
from vhost_user.engine import ALL_QUEUES, EventKind
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op

ECHO = 7
FULL = 2**64 - 2


@pytest.fixture
def neighbour(make_host):
    host = make_host(neighbour=True)
    with VsockGuest(host.neighbour_path, cid=4) as guest:
        yield host, guest.connect(ECHO)


def full(fd):
    """Fill a call eventfd, and have the back-end's writes to it wait."""
    drain(fd)
    os.eventfd_write(fd, FULL)
    os.set_blocking(fd, True)


def drain(fd):
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        return os.eventfd_read(fd)
    return 0


@pytest.mark.parametrize("ring", ["rx", "tx"])
def test_a_call_eventfd_that_blocks_ends_its_session_only(neighbour, ring):
    host, other = neighbour
    with VsockGuest(host.path) as guest:
        guest.connect(ECHO)
        guest.drain()
        queue = getattr(guest, ring)
        full(queue.call_fd)
        queue.want_calls()
        guest.request(ECHO)
        other.say(Op.RW, b"still there")
        assert other.receive_bytes(11) == b"still there"
        assert guest.vmm.hung_up()
        (event,) = host.events_of(EventKind.BROKEN)
        assert (event.port, event.error) == (ALL_QUEUES, lib.VU_ERR_CALL)
        assert host.stats().conns == 0
        assert drain(queue.call_fd) == FULL
