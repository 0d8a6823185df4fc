"""vu_ring_new() returns the errors that its header lists, and nothing else."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.unit.vhost_user.rings import memory_of, start_ring
from vhost_user._native import ffi, lib
from vhost_user.driver import Ram
from vhost_user.engine import MAX_QUEUE_SIZE
from vhost_user.errors import GuestError, StateError
from vhost_user.message import Feature
from vhost_user.packed_driver import make_queue

SPLIT = Feature.VERSION_1
PACKED = Feature.VERSION_1 | Feature.RING_PACKED
LAYOUTS = pytest.mark.parametrize("features", [SPLIT, PACKED], ids=["split", "packed"])


@pytest.fixture
def start():
    """Start a ring of 16, or as it is told, and free it."""
    with Ram(4 << 20) as ram, closing(memory_of(ram)) as memory:

        def start(features, *, entries=16, **more):
            with closing(make_queue(ram, entries, features=features)) as queue:
                ring = start_ring(memory, ram, queue, features=features, **more)
            num = lib.vu_ring_num(ring)
            lib.vu_ring_free(ring)
            return num

        yield start


def area(features, num=16):
    """Return memory for a ring's part of the inflight area, and its address."""
    size = lib.vu_inflight_size(num, bool(features & Feature.RING_PACKED))
    memory = ffi.new("uint64_t[]", size // 8 + 1)
    return memory, int(ffi.cast("uintptr_t", memory)), size


@LAYOUTS
@pytest.mark.parametrize("num", [0, 2 * MAX_QUEUE_SIZE, 2**32 - 1])
def test_a_size_that_virtio_does_not_have_is_out_of_range(start, features, num):
    with pytest.raises(StateError, match="out of range"):
        start(features, num=num)


def test_only_a_packed_ring_may_have_any_size(start):
    assert start(PACKED, num=15) == 15
    with pytest.raises(StateError, match="out of range"):
        start(SPLIT, num=15)


@LAYOUTS
def test_the_largest_ring_is_tracked_in_flight_too(start, features):
    _keep, at, size = area(features, MAX_QUEUE_SIZE)
    assert (
        start(features, entries=MAX_QUEUE_SIZE, inflight=at, inflight_size=size)
        == MAX_QUEUE_SIZE
    )


@LAYOUTS
@pytest.mark.parametrize("off", [1, 2, 4, 7])
def test_an_inflight_area_that_is_not_aligned_is_out_of_range(start, features, off):
    _keep, at, size = area(features)
    assert start(features, inflight=at, inflight_size=size) == 16
    with pytest.raises(StateError, match="out of range"):
        start(features, inflight=at + off, inflight_size=size)


@LAYOUTS
def test_an_inflight_area_that_is_too_small_is_out_of_range(start, features):
    _keep, at, _ = area(features)
    with pytest.raises(StateError, match="out of range"):
        start(features, inflight=at, inflight_size=16 * 16)


@pytest.mark.parametrize("base", [16, 0x7FFF, 0x8005, 16 << 16])
def test_a_packed_ring_starts_inside_itself(start, base):
    """Index 5 of the next lap behind index 0 is 21 slots in use, of 16."""
    with pytest.raises(GuestError, match="virtio"):
        start(PACKED, base=base)


@LAYOUTS
@pytest.mark.parametrize("part", ["desc_uva", "avail_uva", "used_uva"])
def test_each_part_is_in_memory(start, features, part):
    with pytest.raises(GuestError, match="outside"):
        start(features, **{part: 1 << 60})
    with pytest.raises(GuestError, match="outside"):
        start(features, **{part: 0})
