"""The dirty log says which pages the device wrote, all of them and no other."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vhost_user.rings import memory_of, start_ring
from vhost_user._native import check, ffi, lib
from vhost_user.driver import PAGE, Ram
from vhost_user.message import Feature
from vhost_user.packed_driver import make_queue

GPA = 0x4000_0000
RAM_SIZE = 1 << 20
FIRST_PAGE = GPA // PAGE
DATA = RAM_SIZE // 2  # chains live behind it
LOG_SIZE = (FIRST_PAGE + RAM_SIZE // PAGE) // 8


class Device:
    """A ring and its log, as a device in Python would have them."""

    def __init__(self, ram, queue, *, features, logged=True):
        self.ram = ram
        self.memory = memory_of(ram)
        self.log = ffi.new("uint8_t[]", LOG_SIZE)
        check(lib.vu_mem_set_log(self.memory.native, self.log, LOG_SIZE), "log")
        self.ring = start_ring(
            self.memory,
            ram,
            queue,
            features=features,
            log_used_gpa=queue.used if logged else None,
        )
        self.iov = ffi.new("struct iovec[]", 64)

    def pop(self):
        chain = ffi.new("struct vu_chain *")
        assert check(lib.vu_ring_pop(self.ring, self.iov, 64, chain), "pop")
        return chain

    def push(self, chain, size):
        """Change each of the first `size` bytes that the device may write."""
        written = self.iov + chain.n_read
        left = size
        for i in range(chain.n_write):
            part = min(left, written[i].iov_len)
            if part:
                view = memoryview(ffi.buffer(written[i].iov_base, part)).cast("B")
                view[:] = bytes(byte ^ 0xFF for byte in view)
            left -= part
        lib.vu_ring_push(self.ring, chain, written, size)

    def marked(self):
        """Return the marked pages, counted from the RAM's first."""
        bits = bytes(self.log)
        return {
            page - FIRST_PAGE
            for page in range(8 * LOG_SIZE)
            if bits[page // 8] >> page % 8 & 1
        }

    def close(self):
        lib.vu_ring_free(self.ring)
        self.memory.close()


def snapshot(ram):
    whole = ram.read(GPA, RAM_SIZE)
    return [whole[at : at + PAGE] for at in range(0, RAM_SIZE, PAGE)]


def changed(before, after):
    return {
        i for i, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1
    }


def pages(gpa, size):
    return set(range((gpa - GPA) // PAGE, (gpa - GPA + size - 1) // PAGE + 1))


CHAINS = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, DATA - 3 * PAGE), st.integers(1, 2 * PAGE)),
            min_size=1,
            max_size=4,
        ),
        st.integers(1, 8 * PAGE),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.spec(
    "vhost-user:migration/data",
    "vhost-user:migration/used",
    "vhost-user:migration/page",
    "vhost-user:migration/log-guest-addr",
)
@pytest.mark.parametrize("logged", [True, False], ids=["used-logged", "used-not"])
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
@pytest.mark.parametrize("packed", [0, Feature.RING_PACKED], ids=["split", "packed"])
@settings(deadline=None, max_examples=20)
@given(chains=CHAINS, first=st.integers(0, 65535))
def test_what_changed_is_marked_and_nothing_else(
    chains, first, packed, event_idx, logged
):
    features = Feature.VERSION_1 | Feature.INDIRECT_DESC | packed
    features |= Feature.EVENT_IDX if event_idx else 0
    with Ram(RAM_SIZE, gpa=GPA) as ram:
        queue = make_queue(ram, 1024, features=features, first=first)
        data = GPA + DATA
        for segments, _, indirect in chains:
            queue.add(
                readable=[(data, 10)],
                writable=[(data + at, size) for at, size in segments],
                indirect=indirect,
            )
        with (
            closing(queue),
            closing(Device(ram, queue, features=features, logged=logged)) as device,
        ):
            before = snapshot(ram)
            for segments, wanted, _ in chains:
                chain = device.pop()
                assert chain.write_len == sum(size for _, size in segments)
                device.push(chain, min(wanted, chain.write_len))
            lib.vu_ring_flush(device.ring)
            lib.vu_ring_want_kicks(device.ring, False)
            lib.vu_ring_want_kicks(device.ring, True)
            dirty = changed(before, snapshot(ram))
            used = pages(queue.used, 4 if packed else 6 + 8 * queue.num)
            if packed:
                used |= pages(queue.desc, 16 * queue.num)
            marked = device.marked()
    if not logged:
        dirty -= used
    # Twice the same byte in one page may change it back; a flag may be what it was.
    assert dirty <= marked
    touched = used if logged else set()
    for segments, wanted, _ in chains:
        for at, size in segments:
            part = min(size, wanted)
            wanted -= part
            if part:
                touched |= set(
                    range((DATA + at) // PAGE, (DATA + at + part - 1) // PAGE + 1)
                )
    assert marked <= touched


@pytest.mark.spec("vhost-user:migration/data")
def test_a_chain_that_goes_back_marks_nothing():
    with Ram(RAM_SIZE, gpa=GPA) as ram:
        queue = make_queue(ram, 16, features=Feature.VERSION_1)
        queue.add(writable=[(GPA + DATA, 100)])
        with closing(queue), closing(Device(ram, queue, features=0)) as device:
            device.pop()
            lib.vu_ring_unpop(device.ring, 1)
            lib.vu_ring_flush(device.ring)
            assert device.marked() == set()
            device.push(device.pop(), 100)
            assert device.marked() == {DATA // PAGE, (queue.used - GPA) // PAGE}


@pytest.mark.spec("vhost-user:migration/log-guest-addr")
def test_nothing_is_marked_behind_the_log_or_without_one():
    with Ram(RAM_SIZE, gpa=GPA) as ram:
        queue = make_queue(ram, 16, features=Feature.VERSION_1)
        for _ in range(2):
            queue.add(writable=[(GPA + DATA, 100)])
        with closing(queue), closing(Device(ram, queue, features=0)) as device:
            short = FIRST_PAGE // 8
            lib.vu_mem_set_log(device.memory.native, device.log, short)
            device.push(device.pop(), 100)
            lib.vu_mem_set_log(device.memory.native, ffi.NULL, 0)
            device.push(device.pop(), 100)
            assert device.marked() == set()
