"""A front-end that truncates its guest's memory loses its session, and nobody else."""

from __future__ import annotations

import contextlib
import os

import pytest

from tests.conformance.links import WAYS
from vhost_user._native import lib
from vhost_user.driver import PAGE
from vhost_user.engine import ALL_QUEUES, EventKind
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import HDR_SIZE, Op

UNIX, *_, RING = WAYS
ECHO, DISCARD = 7, 9


@pytest.fixture
def other(host, tmp_path):
    """A connection of another VM of the same process."""
    directory = tmp_path / "other"
    directory.mkdir()
    with type(host)(directory) as second, VsockGuest(second.path) as guest:
        yield guest.connect(ECHO)


def last_page(ram):
    return ram.gpa + ram.size - PAGE


def truncate(ram, keep=0):
    """Leave `keep` bytes; from now on the test may not touch the others either."""
    os.ftruncate(ram.fd, ram.offset + keep)


def kick(queue):
    os.eventfd_write(queue.kick_fd, 1)


def assert_lost(host, guest, other):
    assert guest.vmm.hung_up()
    (event,) = host.events_of(EventKind.BROKEN)
    assert (event.port, event.error) == (ALL_QUEUES, lib.VU_ERR_FAULT)
    assert host.stats().conns == 0
    other.say(Op.RW, b"still there")
    assert other.receive_bytes(11) == b"still there"


@pytest.mark.parametrize("poll_us", [0, 200])
def test_truncated_rings(make_host, tmp_path, poll_us):
    host = make_host(poll_us=poll_us)
    (tmp_path / "b").mkdir()
    with (
        VsockGuest(host.path) as guest,
        type(host)(tmp_path / "b") as second,
        VsockGuest(second.path) as neighbour,
    ):
        other = neighbour.connect(ECHO)
        guest.connect(ECHO)
        truncate(guest.ram)
        kick(guest.tx)
        assert_lost(host, guest, other)
        with VsockGuest(host.path) as guest:
            guest.connect(ECHO)


@pytest.mark.parametrize("port", [ECHO, DISCARD], ids=["echo", "discard"])
@pytest.mark.parametrize("where", [0, HDR_SIZE], ids=["header", "payload"])
def test_truncated_packets(host, make_guest, other, port, where):
    guest = make_guest()
    conn = guest.connect(port)
    packet = guest.header(Op.RW, conn.guest_port, port, len=100).encode() + bytes(100)
    gpa = last_page(guest.ram) - where
    guest.ram.write(gpa, packet)
    guest.tx.add(readable=[(gpa, len(packet))])
    truncate(guest.ram, guest.ram.size - PAGE)
    kick(guest.tx)
    if where == 0 or port == ECHO:  # nobody reads what is discarded
        assert_lost(host, guest, other)


@pytest.mark.parametrize("way", [UNIX, RING], ids=["unix", "ring"])
def test_a_host_program_gets_no_byte_that_the_guest_did_not_send(
    host, guest, link, other, way
):
    conn, sock = link(way)
    conn.say(Op.RW, b"before")
    guest.drain()
    packet = guest.header(Op.RW, conn.guest_port, conn.host_port, len=100).encode()
    gpa = last_page(guest.ram) - HDR_SIZE
    guest.ram.write(gpa, packet + b"x" * 100)
    guest.tx.add(readable=[(gpa, HDR_SIZE + 100)])
    truncate(guest.ram, guest.ram.size - PAGE)
    kick(guest.tx)
    assert_lost(host, guest, other)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(100):
            received += more
    assert received in {b"before", b""}  # a ring's reset comes before its bytes


@pytest.mark.parametrize("where", [0, HDR_SIZE], ids=["header", "payload"])
def test_truncated_rx_buffers(host, make_guest, other, where):
    guest = make_guest(rx_buffers=1)
    with host.listen(5000) as listener:
        conn = guest.request(5000)
        sock, _ = listener.accept()
    conn.require(guest.receive(repost=False), Op.RESPONSE)
    guest.rx.add(writable=[(last_page(guest.ram) - where, PAGE)])
    truncate(guest.ram, guest.ram.size - PAGE)
    kick(guest.rx)
    with sock:
        sock.send(b"x" * 100)
        assert_lost(host, guest, other)
