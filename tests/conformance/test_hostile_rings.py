"""A hostile process at the other end of a ring: it harms its own connection only.

Each test has a connection of the same guest, and one of another VM, that must go on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading

import pytest

from tests.conformance.links import wait_for
from tests.conformance.ringhand import (
    DATA,
    DOWN_CONSUMER,
    DOWN_PRODUCER,
    OPEN,
    POSITION,
    SLEEP,
    STATE,
    UP_CONSUMER,
    UP_PRODUCER,
    HandMade,
)
from vhost_user.engine import EventKind
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op

ECHO, PORT = 7, 5000
pytestmark = pytest.mark.unseen("the process's memory is anything it likes")


@pytest.fixture(params=[0, 200], ids=["blocking", "polling"])
def host(make_host, request):
    return make_host(neighbour=True, poll_us=request.param)


@pytest.fixture
def pair(host, guest):
    """Return a guest's connection and its process."""
    with host.listen_ring(PORT, ring_bytes=4096) as listener:
        conn = guest.request(PORT)
        process = HandMade(listener.accept()[0])
    process.answer()
    conn.expect(Op.RESPONSE)
    with process:
        yield conn, process


@pytest.fixture
def others(host, guest):
    """Return what checks that other connections go on."""
    with VsockGuest(host.neighbour_path, cid=4) as neighbour:
        conns = [guest.connect(ECHO), neighbour.connect(ECHO)]

        def check():
            for conn in conns:
                conn.say(Op.RW, b"still here")
                assert conn.receive_bytes(10) == b"still here"

        check()
        yield check
        check()


def end_of(host):
    wait_for(lambda: host.events_of(EventKind.CLOSED))
    (event,) = host.events_of(EventKind.CLOSED)
    return event.error


@pytest.mark.parametrize("position", [4097, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_more_bytes_than_a_ring_holds_end_it(host, others, pair, position):
    conn, process = pair
    process.set(DOWN_PRODUCER, POSITION, position)
    process.ring()
    conn.expect(Op.RST)
    assert end_of(host) == errno.EPROTO


def test_a_position_that_goes_back_ends_it(host, others, pair):
    conn, process = pair
    process.put(b"x" * 100)
    assert conn.receive_bytes(100)
    process.set(DOWN_PRODUCER, POSITION, 50)
    process.ring()
    conn.expect(Op.RST)
    assert end_of(host) == errno.EPROTO


@pytest.mark.parametrize("position", [11, 0x8000_0000, 10 - 4097])
def test_reading_what_was_not_written_ends_it(host, others, pair, position):
    conn, process = pair
    conn.say(Op.RW, b"x" * 10)
    process.take(10)
    process.set(UP_CONSUMER, POSITION, position)
    conn.say(Op.RW, b"more")
    conn.expect(Op.RST)
    assert end_of(host) == errno.EPROTO


@pytest.mark.parametrize("state", [3, 0x80, 0xFF, 0xFFFF_FF03])
@pytest.mark.parametrize("line", [UP_CONSUMER, DOWN_PRODUCER], ids=["up", "down"])
def test_a_state_that_is_none_ends_it(host, others, pair, line, state):
    conn, process = pair
    process.set(line, STATE, state)
    process.ring()
    if line == UP_CONSUMER:
        conn.say(Op.RW, b"look")
    conn.expect(Op.RST)
    assert end_of(host) == errno.EPROTO


def test_the_engines_own_lines_and_sizes_are_not_believed(others, pair):
    conn, process = pair
    process.memory[:UP_CONSUMER] = b"\xff" * UP_CONSUMER
    conn.say(Op.RW, b"up")
    wait_for(lambda: process.get(UP_PRODUCER, POSITION) == 2)
    assert process.take(2) == b"up"
    process.memory[DOWN_CONSUMER:DATA] = b"\xee" * (DATA - DOWN_CONSUMER)
    process.put(b"down")
    assert conn.receive_bytes(4) == b"down"
    assert process.get(DOWN_CONSUMER, POSITION) == 4


def test_bytes_that_change_while_they_are_read_are_only_bytes(others, pair):
    conn, process = pair
    stop = threading.Event()

    def scribble():
        while not stop.is_set():
            process.memory[DATA + 4096 : DATA + 8192] = os.urandom(4096)

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(50):
            process.put(b"x" * 1000)
            assert len(conn.receive_bytes(1000)) == 1000
    finally:
        stop.set()
        thread.join()


def test_a_flood_of_wake_ups_delays_nobody(others, pair):
    conn, process = pair
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            process.ring()
            with contextlib.suppress(BlockingIOError):
                process.sock.send(b"junk", socket.MSG_DONTWAIT)

    process.sock.settimeout(None)
    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            others()
            process.put(b"mine")
            assert conn.receive_bytes(4) == b"mine"
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_wake_ups_that_nobody_takes_stop_nobody(guest, others, pair):
    """Each write of the guest finds another sleep, and the socket fills up."""
    conn, process = pair
    for i in range(2000):
        process.set(UP_CONSUMER, SLEEP, 2 * i + 1)
        conn.say(Op.RW, b"x")
        if i % 100 == 99:
            assert process.take(100) == b"x" * 100
            guest.fence()
    others()


def test_an_eventfd_that_blocks_its_writers_blocks_the_process_only(others, pair):
    conn, process = pair
    flags = fcntl.fcntl(process.bell, fcntl.F_GETFL)
    fcntl.fcntl(process.bell, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
    os.eventfd_write(process.bell, 0xFFFF_FFFF_FFFF_FFFE)
    process.ring = lambda: None
    process.set(UP_CONSUMER, SLEEP, 1)
    conn.say(Op.RW, b"up")
    assert process.take(2) == b"up"
    others()


def test_an_end_that_is_taken_back_stays(host, others, pair):
    conn, process = pair
    process.end()
    conn.expect(Op.SHUTDOWN)
    process.set(DOWN_PRODUCER, STATE, OPEN)
    process.put(b"more")
    conn.say(Op.RW, b"up")
    assert process.take(2) == b"up"
    assert host.stats().conns == 2


def test_descriptors_that_come_with_messages_are_not_kept(host, guest, others):
    with host.listen_ring(PORT) as listener:
        conn = guest.request(PORT)
        with HandMade(listener.accept()[0]) as process, socket.socket() as extra:
            answer = struct.pack("=Ii", 1, 0)
            socket.send_fds(process.sock, [answer], [extra.fileno()] * 8)
            conn.expect(Op.RESPONSE)
            other = os.dup(extra.fileno())
            os.close(other)
            socket.send_fds(process.sock, [b"x"], [extra.fileno()] * 8)
            others()
            again = os.dup(extra.fileno())
            os.close(again)
    assert again == other


def test_a_hundred_processes_that_lie_at_once_harm_nobody(host, guest, others):
    made = []
    with host.listen_ring(PORT, ring_bytes=4096) as listener:
        listener.listen(128)
        conns = [guest.request(PORT) for _ in range(100)]
        for conn in conns:
            made.append(HandMade(listener.accept()[0]))
            made[-1].answer()
            conn.expect(Op.RESPONSE)
    for i, process in enumerate(made):
        process.memory[DOWN_PRODUCER:DOWN_CONSUMER] = os.urandom(128)
        process.set(DOWN_PRODUCER, STATE, 3 + i)
        process.ring()
    for conn in conns:
        while conn.receive().op != Op.RST:
            pass
    for process in made:
        process.close()
    wait_for(lambda: len(host.events_of(EventKind.CLOSED)) == 100)


def test_processes_that_go_on_writing_keep_no_connection_of_a_guest_that_left(
    make_host, make_guest_of
):
    """More than a turn closes: some wait for that while their rings have bytes.

    The engine spins for so long that all of them are awake.
    """
    host = make_host(poll_us=1_000_000)
    guest, made = make_guest_of(host, queue_size=1024, rx_buffers=1000), []
    with host.listen_ring(PORT, ring_bytes=4096) as listener:
        listener.listen(256)
        for _ in range(200):
            conn = guest.request(PORT)
            made.append(HandMade(listener.accept()[0]))
            made[-1].answer()
            conn.expect(Op.RESPONSE)
    for process in made:
        process.put(b"awake")
    guest.vmm.close()
    for _ in range(100):
        for process in made:
            process.put(b"x")
    wait_for(lambda: host.engine_stats().conns == 0, "the end of all connections")
    for process in made:
        process.close()
