"""lib/ring: the C library against itself, and against the one in Python.

Memory is written by hand where a rule of docs/ring.md is tested; a property test has
both ends do anything, and compares the bytes with a queue.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from cffi import FFI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpath.handoff import ring as rings
from tests.support.limits import LIMIT_S

LIBRARY = Path(__file__).resolve().parents[3] / "lib" / "ring"
READ, WRITE = 1, 2
UP_PRODUCER, UP_CONSUMER, DOWN_PRODUCER, DOWN_CONSUMER = 128, 256, 384, 512
POSITION, SLEEP, STATE = 0, 4, 8
SIZE = 4096
LENGTH = 4096 + 2 * SIZE
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Wconversion"]
FLAGS += ["-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]


def declarations():
    text = (LIBRARY / "fastpath_ring.h").read_text()
    text = re.sub(r"^(#|_Static_assert).*$", "", text, flags=re.MULTILINE)
    for name, value in (("FPRING_MAGIC", ""), ("FPRING_LINE", "128")):
        text = text.replace(name, value)
    return re.sub(r"^.*docs/ring.md\"\);$", "", text, flags=re.MULTILINE)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Return cffi's view of the library."""
    ffi = FFI()
    ffi.cdef("struct iovec { void *iov_base; size_t iov_len; };\n" + declarations())
    out = tmp_path_factory.mktemp("ring") / "ring.so"
    source = str(LIBRARY / "fastpath_ring.c")
    command = ["gcc", *FLAGS, "-shared", "-fPIC", source, "-o", str(out)]
    subprocess.run(command, check=True)
    return ffi, ffi.dlopen(str(out))


class Memory:
    """Two rings, with the maker's end of them."""

    def __init__(self, library, *, at=0):
        self.ffi, self.lib = library
        self.fd = os.memfd_create("ring", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, LENGTH)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        self.map = mmap.mmap(self.fd, LENGTH)
        self.base = self.ffi.from_buffer(self.map)
        self.lib.fpring_format(self.base, SIZE, SIZE)
        self.maker = self.attach(maker=True)
        if at:  # as if so many bytes had gone both ways before
            for line in (UP_PRODUCER, UP_CONSUMER, DOWN_PRODUCER, DOWN_CONSUMER):
                self.set(line, POSITION, at)
            self.maker["in"].position = self.maker.out.position = at

    def attach(self, *, maker):
        ring = self.ffi.new("struct fpring *")
        self.lib.fpring_attach(ring, self.base, SIZE, SIZE, maker)
        return Ring(self, ring)

    def get(self, line, word):
        return struct.unpack_from("=I", self.map, line + word)[0]

    def set(self, line, word, value):
        struct.pack_into("=I", self.map, line + word, value)

    def close(self):
        self.ffi.release(self.base)
        self.map.close()
        os.close(self.fd)


class Ring:
    """`struct fpring` with what one wants to do to it."""

    def __init__(self, memory, ring):
        self.memory, self.ring = memory, ring
        self.ffi, self.lib = memory.ffi, memory.lib

    def __getitem__(self, name):
        return getattr(self.ring, name)

    @property
    def out(self):
        return self.ring.out

    def write(self, data):
        """Write what fits; return how much, or -errno."""
        iov = self.ffi.new("struct iovec[2]")
        n = self.lib.fpring_room(self.ring, iov)
        if n < 0:
            return n
        assert n == iov[0].iov_len + iov[1].iov_len
        data = data[:n]
        first = data[: iov[0].iov_len]
        self.ffi.memmove(iov[0].iov_base, first, len(first))
        self.ffi.memmove(iov[1].iov_base, data[len(first) :], len(data) - len(first))
        self.rang = self.lib.fpring_produced(self.ring, len(data))
        return len(data)

    def read(self, size=1 << 30):
        """Read what is there; return it, or 0 or -errno."""
        iov = self.ffi.new("struct iovec[2]")
        n = self.lib.fpring_readable(self.ring, iov)
        if n <= 0:
            return n
        parts = [bytes(self.ffi.buffer(i.iov_base, i.iov_len)) for i in iov]
        data = b"".join(parts)[:size]
        assert n == sum(map(len, parts))
        self.rang = self.lib.fpring_consumed(self.ring, len(data))
        return data


@pytest.fixture(params=[0, 0x7FFF_F000, 0xFFFF_FF00], ids=["0", "half", "wrap"])
def memory(library, request):
    made = Memory(library, at=request.param)
    yield made
    made.close()


@pytest.fixture
def ends(memory):
    """Return the maker's end and the other's."""
    other = memory.attach(maker=False)
    at = memory.get(UP_PRODUCER, POSITION)
    other["in"].position = other.out.position = at
    return memory.maker, other


@pytest.mark.parametrize("size", [0, 1, 2048, 4095, 4097, 5000, 1 << 31, (1 << 30) + 1])
def test_a_rings_size_is_a_power_of_two_in_range(library, size):
    _, lib = library
    assert lib.fpring_bytes(size, 4096) == lib.fpring_bytes(4096, size) == 0
    assert lib.fpring_bytes(4096, 1 << 30) == 4096 + 4096 + (1 << 30)


def test_bytes_and_positions_go_round(ends):
    maker, other = ends
    for i in range(20):
        data = os.urandom(3000 + i)
        assert maker.write(data) == len(data)
        assert other.read() == data
        assert other.write(data[:999]) == 999
        assert maker.read() == data[:999]
    assert maker.read() == other.read() == -errno.EAGAIN


def test_a_full_ring_takes_what_fits_and_no_more(ends):
    maker, other = ends
    assert maker.write(b"x" * 5000) == SIZE
    assert maker.write(b"y") == -errno.EAGAIN
    assert other.read(10) == b"x" * 10
    assert maker.write(b"y" * 20) == 10


def test_an_end_is_seen_behind_the_last_bytes(ends):
    maker, other = ends
    maker.write(b"last")
    maker.lib.fpring_end(maker.ring, WRITE)
    assert other.read() == b"last"
    assert other.read() == 0
    assert other.write(b"back") == 4


def test_one_who_reads_no_more_breaks_the_pipe(ends):
    maker, other = ends
    maker.lib.fpring_end(maker.ring, READ)
    assert other.write(b"x") == -errno.EPIPE
    assert maker.write(b"x") == 1


def test_a_reset_comes_before_bytes_and_stays(ends):
    maker, other = ends
    maker.write(b"lost")
    maker.lib.fpring_fail(maker.ring, errno.ETIMEDOUT)
    maker.lib.fpring_end(maker.ring, READ | WRITE)
    maker.lib.fpring_fail(maker.ring, errno.EIO)
    assert other.read() == other.write(b"x") == -errno.ETIMEDOUT


def test_one_who_sleeps_is_woken_once_for_each_sleep(ends):
    maker, other = ends
    for _ in range(3):
        assert other.lib.fpring_sleep(other.ring, READ)
        maker.write(b"a")
        assert maker.rang
        maker.write(b"b")
        assert not maker.rang
        assert other.read() == b"ab"
    assert other.lib.fpring_sleep(other.ring, READ)
    other.lib.fpring_awake(other.ring)
    maker.write(b"c")
    assert not maker.rang


def test_nobody_sleeps_over_what_is_there(ends):
    maker, other = ends
    maker.write(b"a")
    assert not other.lib.fpring_sleep(other.ring, READ | WRITE)
    assert not other["in"].sleep & 1


def test_one_who_waits_for_room_is_woken_when_half_is_free(ends):
    maker, other = ends
    maker.write(b"x" * SIZE)
    assert maker.lib.fpring_sleep(maker.ring, WRITE)
    other.read(SIZE // 2 - 1)
    assert not other.rang
    other.read(1)
    assert other.rang


@pytest.mark.parametrize("beyond", [SIZE + 1, 1 << 31, (1 << 32) - 1])
def test_positions_out_of_bounds_are_a_protocol_error(memory, ends, beyond):
    maker, _ = ends
    at = memory.get(DOWN_PRODUCER, POSITION)
    memory.set(DOWN_PRODUCER, POSITION, (at + beyond) & 0xFFFF_FFFF)
    assert maker.read() == -errno.EPROTO
    memory.set(UP_CONSUMER, POSITION, (at - beyond) & 0xFFFF_FFFF)
    assert maker.write(b"x") == -errno.EPROTO


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (2 | errno.EIO << 8, errno.EIO),
        (2, errno.ECONNRESET),
        (2 | 4096 << 8, errno.ECONNRESET),
        (3, errno.EPROTO),
        (0xFF, errno.EPROTO),
    ],
)
def test_a_state_says_why_or_breaks_the_rules(memory, ends, state, error):
    maker, _ = ends
    memory.set(DOWN_PRODUCER, STATE, state)
    memory.set(UP_CONSUMER, STATE, state)
    assert maker.read() == maker.write(b"x") == -error


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["up", "down", "read up", "read down", "sleep", "wake"]),
        st.integers(1, 6000),
    ),
    max_size=60,
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, at=st.sampled_from([0, 0xFFFF_F000, 0xFFFF_FFFF, 0x8000_0000]))
def test_whatever_both_do_the_bytes_arrive_and_no_wake_up_is_lost(library, steps, at):
    memory = Memory(library, at=at)
    maker, other = memory.maker, memory.attach(maker=False)
    other["in"].position = other.out.position = at
    queues = {"up": b"", "down": b""}
    asleep = False
    for number, (step, size) in enumerate(steps):
        way = step.rpartition(" ")[2]
        writer, reader = (maker, other) if way == "up" else (other, maker)
        if step in queues:
            n = writer.write(bytes([number]) * size)
            room = SIZE - len(queues[way])
            assert n == (min(size, room) if room else -errno.EAGAIN)
            queues[way] += bytes([number]) * max(n, 0)
            if way == "up" and asleep and n > 0:
                assert writer.rang
                asleep = False
        elif way in queues:
            data = reader.read(size)
            assert data == (queues[way][:size] or -errno.EAGAIN)
            queues[way] = queues[way][size:]
        elif step == "sleep":
            asleep = bool(other.lib.fpring_sleep(other.ring, READ))
            assert asleep is not bool(queues["up"])
        else:
            other.lib.fpring_awake(other.ring)
            asleep = False
    memory.close()


# ---- links: both libraries over a socket ----


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

    def __init__(self, library, sock):
        self.ffi, self.lib = library
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
def offer(library):
    memory = Memory(library)
    made = Offer(memory)
    yield made
    made.close()
    memory.close()


@pytest.fixture(params=["c", "python"])
def take(library, request):
    """Return what takes a socket, in C or in Python."""
    if request.param == "c":
        return lambda sock: CLink(library, sock)
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
    before = len(list(Path("/proc/self/fd").iterdir()))
    offer.say(**said)
    with pytest.raises(OSError, match=r".") as caught:
        take(offer.theirs)
    assert caught.value.errno == error
    assert len(list(Path("/proc/self/fd").iterdir())) == before


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
