"""lib/ring and `fastpath.handoff.ring`, held to one table: links over a socket.

The maker's messages are by hand, from docs/ring.md.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from fastpath.handoff import ring as rings
from tests.support.descriptors import check_closed, descriptors
from tests.support.limits import LIMIT_S
from tests.unit.lib.ringlib import (
    DOWN_CONSUMER,
    LENGTH,
    POSITION,
    READ,
    SIZE,
    UP_PRODUCER,
    WRITE,
    Memory,
    library,
)


class Offer:
    """The maker's side of one connection, with what the other side gets."""

    def __init__(self, memory):
        self.memory = memory
        self.ours, self.theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.ours.settimeout(LIMIT_S)

    def say(self, *, magic=b"fpring\r\n", version=1, sizes=(SIZE, SIZE), fds=None):
        ip = bytes([192, 0, 2, 1]) + bytes(12)
        address = struct.pack("=HHI16s", 4, 80, 0, ip)
        head = struct.pack("=8sIIIIQ", magic, version, 1024, *sizes, 77)
        tail = struct.pack("=II936s", 2, 0, b"id")
        message = head + address + bytes(24) + tail
        fds = [self.memory.fd, self.bell] if fds is None else fds
        socket.send_fds(self.ours, [message], fds)

    def close(self):
        self.ours.close()
        self.theirs.close()
        os.close(self.bell)


class CLink:
    """The C library at the other end, as `fastpath.handoff.ring.Ring` is used."""

    def __init__(self, sock):
        self.ffi, self.lib = library()
        self.link = self.ffi.new("struct fpring_link *")
        self.hello = self.ffi.new("struct fpring_hello *")
        self.check(self.lib.fpring_take(sock.fileno(), self.link, self.hello))
        sock.detach()

    def check(self, ret):
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))
        return ret

    def answer(self, error=0):
        self.check(self.lib.fpring_answer(self.link, error))

    def recv(self, size=1 << 16):
        buffer = self.ffi.new("char[]", size)
        n = self.check(self.lib.fpring_read(self.link, buffer, size))
        return bytes(self.ffi.buffer(buffer, n))

    def send(self, data):
        return self.check(self.lib.fpring_write(self.link, data, len(data)))

    def rest(self, want):
        return self.lib.fpring_rest(self.link, want)

    def woken(self):
        self.lib.fpring_woken(self.link)

    def wait(self, want, timeout_s=None):
        timeout = -1 if timeout_s is None else round(timeout_s * 1000)
        return self.check(self.lib.fpring_wait(self.link, want, timeout))

    def shutdown(self, what):
        self.lib.fpring_shutdown(self.link, what)

    def reset(self, error):
        self.lib.fpring_reset(self.link, error)

    def close(self):
        self.lib.fpring_close(self.link)


@pytest.fixture
def offer():
    memory = Memory()
    made = Offer(memory)
    yield made
    made.close()
    memory.close()


@pytest.fixture(params=["c", "python"])
def take(request):
    """Return what takes a socket, in C or in Python."""
    if request.param == "c":
        return CLink
    return lambda sock: rings.take(sock)[0]


@pytest.fixture
def taken(offer, take):
    """Return the maker's ring, its socket and the other library's link."""
    offer.say()
    link = take(offer.theirs)
    yield offer.memory.maker, offer, link
    link.close()


def test_a_link_is_taken_once_its_message_has_come(offer, take):
    with pytest.raises(BlockingIOError):
        take(offer.theirs)
    offer.say()
    link = take(offer.theirs)
    link.answer(errno.EACCES)
    assert offer.ours.recv(100) == struct.pack("=Ii", 1, errno.EACCES)
    link.close()
    assert offer.ours.recv(100) == b""


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"magic": b"fpring\n\n"}, errno.EPROTO),
        ({"version": 2}, errno.EPROTONOSUPPORT),
        ({"sizes": (SIZE, 2 * SIZE)}, errno.EPROTO),
        ({"sizes": (SIZE, 0)}, errno.EPROTO),
        ({"sizes": (5000, SIZE)}, errno.EPROTO),
        ({"fds": []}, errno.EPROTO),
        ({"fds": [0]}, errno.EPROTO),
    ],
    ids=["magic", "version", "size", "zero", "odd", "no-fds", "one-fd"],
)
def test_a_message_that_is_wrong_is_refused_and_nothing_kept(offer, take, said, error):
    before = descriptors()
    offer.say(**said)
    with pytest.raises(OSError, match=r".") as caught:
        take(offer.theirs)
    assert caught.value.errno == error
    check_closed(before)


def test_memory_that_could_be_taken_away_is_refused(offer, take):
    fd = os.memfd_create("open")
    os.ftruncate(fd, LENGTH)
    offer.say(fds=[fd, offer.bell])
    with pytest.raises(OSError, match=r".") as caught:
        take(offer.theirs)
    os.close(fd)
    assert caught.value.errno == errno.EPROTO


def test_both_libraries_move_the_same_bytes(taken):
    maker, _, link = taken
    for i in range(12):
        data = os.urandom(1500 + i)
        assert maker.write(data) == len(data)
        assert link.recv() == data
        assert link.send(data) == len(data)
        assert maker.read() == data
    with pytest.raises(BlockingIOError):
        link.recv()


def test_a_link_wakes_a_maker_that_sleeps_and_no_other(taken):
    maker, offer, link = taken
    link.send(b"a")
    with pytest.raises(BlockingIOError):
        os.eventfd_read(offer.bell)
    maker.read()
    assert maker.lib.fpring_sleep(maker.ring, READ)
    link.send(b"b")
    link.send(b"c")
    assert os.eventfd_read(offer.bell) == 1


def test_a_link_that_rests_is_woken_by_its_socket(taken):
    maker, offer, link = taken
    assert link.rest(READ)
    maker.write(b"a")
    assert maker.rang
    offer.ours.send(b"\0")
    assert link.wait(READ, LIMIT_S) == READ
    assert link.recv() == b"a"
    assert not maker.lib.fpring_sleep(maker.ring, WRITE)


def test_a_wait_ends_with_its_time(taken):
    _, _, link = taken
    assert link.wait(READ, 0.001) == 0
    assert link.wait(READ | WRITE, 0.001) == WRITE


def test_a_maker_that_is_killed_is_a_reset_behind_its_bytes(taken):
    maker, offer, link = taken
    maker.write(b"last words")
    offer.ours.close()
    link.woken()
    assert link.recv() == b"last words"
    assert link.wait(READ) == READ
    with pytest.raises(ConnectionResetError):
        link.recv()


def test_a_makers_end_and_reset_come_as_a_sockets_do(taken):
    maker, _, link = taken
    maker.lib.fpring_end(maker.ring, READ | WRITE)
    assert link.recv() == b""
    with pytest.raises(BrokenPipeError):
        link.send(b"x")
    maker.lib.fpring_fail(maker.ring, errno.ETIMEDOUT)
    with pytest.raises(TimeoutError):
        link.recv()


def test_a_link_ends_each_direction_and_says_so(taken):
    maker, offer, link = taken
    link.send(b"last")
    link.shutdown(WRITE)
    assert os.eventfd_read(offer.bell) == 1
    assert maker.read() == b"last"
    assert maker.read() == 0
    assert maker.write(b"x") == 1
    link.shutdown(READ)
    assert maker.write(b"x") == -errno.EPIPE


def test_a_link_that_is_closed_with_bytes_unread_is_a_reset(offer, take):
    offer.say()
    link = take(offer.theirs)
    offer.memory.maker.write(b"unread")
    link.close()
    assert offer.memory.maker.read() == -errno.ECONNRESET


def test_a_link_that_is_closed_in_good_order_is_an_end(offer, take):
    offer.say()
    link = take(offer.theirs)
    link.send(b"last")
    link.close()
    assert offer.memory.maker.read() == b"last"
    assert offer.memory.maker.read() == 0
    assert offer.memory.maker.write(b"x") == -errno.EPIPE


def test_a_maker_that_lies_is_a_protocol_error(taken):
    _, offer, link = taken
    offer.memory.set(UP_PRODUCER, POSITION, SIZE + 1)
    with pytest.raises(OSError, match=r".") as caught:
        link.recv()
    assert caught.value.errno == errno.EPROTO
    offer.memory.set(DOWN_CONSUMER, POSITION, 1)
    with pytest.raises(OSError, match=r".") as caught:
        link.send(b"x")
    assert caught.value.errno == errno.EPROTO
