"""Bytes of a guest's connection by rings, wake-ups for them, and how it ends.

The process is by hand (`ringhand`); docs/ring.md is the specification.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from tests.conformance.links import wait_for
from tests.conformance.ringhand import (
    DOWN_CONSUMER,
    DOWN_PRODUCER,
    ENDED,
    POSITION,
    RESET,
    SLEEP,
    STATE,
    UP_CONSUMER,
    UP_PRODUCER,
    HandMade,
)
from vhost_user.engine import EventKind
from vhost_user.vsock.packet import Op, Shutdown

PORT = 5000


def end_of(host):
    """The error of the only connection that was established and has ended."""
    wait_for(lambda: host.events_of(EventKind.CLOSED))
    (event,) = host.events_of(EventKind.CLOSED)
    return event.error


def ours():
    """Count descriptors of rings' memory in this process."""
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the directory's own
            found += "memfd:fastpath-ring" in str(path.readlink())
    return found


# ---- bytes and wake-ups ----


def test_bytes_go_both_ways_over_the_rings_ends(ask):
    conn, process = ask(ring_bytes=4096)
    process.answer()
    conn.expect(Op.RESPONSE)
    for i in range(30):
        there, back = bytes([i]) * 777, bytes([i, 255 - i]) * 600
        conn.send(there)
        assert process.take(777) == there
        process.put(back)
        assert conn.receive_bytes(1200) == back


def test_a_process_that_sleeps_is_woken_once(guest, pair):
    conn, process = pair
    process.set(UP_CONSUMER, SLEEP, 1)
    conn.say(Op.RW, b"one")
    assert process.sock.recv(10) == b"\0"
    conn.say(Op.RW, b"two")
    guest.fence()
    assert not process.woken()
    process.set(UP_CONSUMER, SLEEP, 3)  # it sleeps again
    conn.say(Op.RW, b"three")
    assert process.sock.recv(10) == b"\0"
    assert process.take(11) == b"onetwothree"


def test_a_process_that_is_awake_is_not_woken(guest, pair):
    conn, process = pair
    process.set(UP_CONSUMER, SLEEP, 2)
    conn.say(Op.RW, b"here")
    guest.fence()
    assert process.take(4) == b"here"
    assert not process.woken()


def test_the_engine_asks_to_be_woken_before_it_blocks(pair):
    conn, process = pair
    wait_for(lambda: process.get(DOWN_CONSUMER, SLEEP) & 1)
    first = process.get(DOWN_CONSUMER, SLEEP)
    process.put(b"awake")
    assert conn.receive_bytes(5) == b"awake"
    wait_for(lambda: process.get(DOWN_CONSUMER, SLEEP) & 1)
    assert process.get(DOWN_CONSUMER, SLEEP) != first


def test_an_engine_that_polls_sees_bytes_without_a_wake_up(make_host, make_guest_of):
    """It looks while it spins; bytes that come at a wrong moment are woken for."""
    host = make_host(poll_us=200)
    guest = make_guest_of(host)
    with host.listen_ring(PORT) as listener:
        conn = guest.request(PORT)
        with HandMade(listener.accept()[0]) as process:
            process.answer()
            conn.expect(Op.RESPONSE)
            process.ring = lambda: None
            for i in range(200):
                process.put(bytes([i]))
                if process.get(DOWN_CONSUMER, SLEEP) & 1:
                    os.eventfd_write(process.bell, 1)
                assert conn.receive_bytes(1) == bytes([i])


def test_a_full_ring_makes_the_guest_wait_and_room_lets_it_go_on(guest, ask):
    conn, process = ask(ring_bytes=4096)
    process.answer()
    conn.expect(Op.RESPONSE)
    data = os.urandom(40_000)
    conn.send(data)
    guest.fence()
    assert process.waits() == 4096
    wait_for(lambda: process.get(UP_PRODUCER, SLEEP) & 1, "a sleep until there is room")
    came = b""
    while len(came) < len(data):
        came += process.take(min(2048, len(data) - len(came)))
    assert came == data


def test_a_process_that_waits_for_room_is_woken_when_half_is_free(guest, ask):
    conn, process = ask(ring_bytes=4096)
    process.answer()
    conn.buf_alloc = 0
    conn.expect(Op.RESPONSE)
    conn.say(Op.CREDIT_UPDATE)  # nothing yet
    guest.fence()
    process.set(DOWN_PRODUCER, SLEEP, 1)
    process.put(b"x" * 4096)
    for window, woken in ((2047, False), (2048, True)):
        conn.buf_alloc = window
        conn.say(Op.CREDIT_UPDATE)
        assert conn.receive(consume=False).op == Op.RW
        guest.fence()
        assert process.woken() is woken


def test_bytes_that_the_guest_has_no_credit_for_stay_in_the_ring(guest, ask):
    conn, process = ask()
    process.answer()
    conn.buf_alloc = 100
    conn.expect(Op.RESPONSE)
    conn.say(Op.CREDIT_UPDATE)
    guest.fence()
    process.put(b"y" * 1000)
    assert conn.receive(consume=False).payload == b"y" * 100
    guest.fence()
    assert process.get(DOWN_CONSUMER, POSITION) == 100
    conn.buf_alloc = 65536
    conn.say(Op.CREDIT_UPDATE)
    assert conn.receive().payload == b"y" * 900
    # it waits for the process again, no longer for the guest
    wait_for(
        lambda: process.get(DOWN_CONSUMER, SLEEP) & 1, "a sleep until there is more"
    )


def test_a_connection_that_waited_for_its_guest_waits_for_its_process_again(guest, ask):
    """The engine left its rings alone meanwhile; then it asks to be woken anew."""
    conn, process = ask()
    process.answer()
    conn.buf_alloc = 100
    conn.expect(Op.RESPONSE)
    conn.say(Op.CREDIT_UPDATE)
    process.put(b"y" * 1000)
    assert conn.receive(consume=False).payload == b"y" * 100
    wait_for(lambda: not process.get(DOWN_CONSUMER, SLEEP) & 1, "no sleep")
    guest.fence()
    conn.buf_alloc = 65536
    conn.say(Op.CREDIT_UPDATE)
    assert conn.receive().payload == b"y" * 900
    wait_for(
        lambda: process.get(DOWN_CONSUMER, SLEEP) & 1, "a sleep until there is more"
    )


# ---- the end ----


def test_the_guests_end_is_a_state_and_a_wake_up(pair):
    conn, process = pair
    conn.say(Op.RW, b"last")
    conn.shutdown(Shutdown.SEND)
    assert process.sock.recv(10) == b"\0"
    assert process.get(UP_PRODUCER, STATE) == ENDED
    assert process.take(4) == b"last"
    process.put(b"back")
    assert conn.receive_bytes(4) == b"back"


def test_a_guest_that_receives_no_more_says_so(pair):
    conn, process = pair
    conn.shutdown(Shutdown.RECEIVE)
    assert process.sock.recv(10) == b"\0"
    assert process.get(DOWN_CONSUMER, STATE) == ENDED


def test_the_processes_end_comes_behind_its_last_bytes(pair):
    conn, process = pair
    process.put(b"last")
    process.end()
    assert conn.receive_bytes(4) == b"last"
    assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.SEND


def test_a_connection_that_both_end_is_over_without_an_error(host, pair):
    conn, process = pair
    conn.shutdown(Shutdown.SEND)
    process.sock.recv(10)
    process.end()
    assert process.sock.recv(10) == b""
    conn.say(Op.RST)
    assert end_of(host) == 0


@pytest.mark.parametrize("error", [errno.ECONNRESET, errno.ETIMEDOUT, 4095])
def test_a_process_resets_with_an_errno(host, pair, error):
    conn, process = pair
    process.set(DOWN_PRODUCER, STATE, RESET | error << 8)
    process.ring()
    conn.expect(Op.RST)
    assert end_of(host) == error


@pytest.mark.parametrize("error", [0, 4096, 0xFFFFFF])
def test_an_errno_that_is_none_is_a_reset(host, pair, error):
    conn, process = pair
    process.set(DOWN_PRODUCER, STATE, RESET | error << 8)
    process.ring()
    conn.expect(Op.RST)
    assert end_of(host) == errno.ECONNRESET


def test_a_guests_reset_is_one(pair):
    conn, process = pair
    conn.say(Op.RST)
    assert process.sock.recv(10) == b""
    for line in (UP_PRODUCER, DOWN_CONSUMER):
        assert process.get(line, STATE) == RESET | errno.ECONNRESET << 8


def test_a_killed_process_is_a_reset_behind_what_it_wrote(host, pair):
    conn, process = pair
    process.put(b"last words")
    process.sock.close()
    assert conn.receive_bytes(10) == b"last words"
    conn.expect(Op.RST)
    assert end_of(host) == errno.ECONNRESET


def test_bytes_that_a_process_leaves_unread_are_an_error(host, guest, pair):
    conn, process = pair
    conn.say(Op.RW, b"unread")
    guest.fence()
    process.set(UP_CONSUMER, STATE, ENDED)
    process.end()
    process.sock.close()
    while conn.receive().op != Op.RST:
        pass
    assert end_of(host) == errno.ECONNRESET


def test_nothing_is_left_of_a_connection_whatever_its_process_keeps(host, pair):
    conn, process = pair
    conn.say(Op.RST)
    assert process.sock.recv(10) == b""
    wait_for(lambda: host.engine_stats().conns == 0)
    assert ours() == 2  # the test's own, and that of its mmap
    assert Path("/proc/self/maps").read_text().count("memfd:fastpath-ring") == 1
    wakeups = host.engine_stats().wakeups
    for _ in range(50):
        process.ring()  # nobody listens to it any more
    host.call(lambda: None)
    assert host.engine_stats().wakeups - wakeups < 50
