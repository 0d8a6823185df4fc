"""lib/ring in C, both ends of it: rings in memory, without a system call.

Memory is written by hand where a rule of docs/ring.md is tested; a property test has
both ends do anything, and compares the bytes with a queue.
"""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.lib.ringlib import (
    DOWN_PRODUCER,
    POSITION,
    READ,
    SIZE,
    STATE,
    UP_CONSUMER,
    UP_PRODUCER,
    WRITE,
    Memory,
    library,
)


@pytest.fixture(params=[0, 0x7FFF_F000, 0xFFFF_FF00], ids=["0", "half", "wrap"])
def memory(request):
    made = Memory(at=request.param)
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
def test_a_rings_size_is_a_power_of_two_in_range(size):
    _, lib = library()
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


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, at=st.sampled_from([0, 0xFFFF_F000, 0xFFFF_FFFF, 0x8000_0000]))
def test_whatever_both_do_the_bytes_arrive_and_no_wake_up_is_lost(steps, at):
    memory = Memory(at=at)
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
