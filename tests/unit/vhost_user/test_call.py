"""An interrupt never sleeps for ever, whatever the front-end does to its eventfd."""

from __future__ import annotations

import os
import threading
from contextlib import closing, contextmanager, suppress

import pytest

from tests.support.limits import LIMIT_S as PATIENCE_S
from tests.unit.vhost_user.rings import memory_of, start_ring
from vhost_user._native import check, ffi, lib
from vhost_user.driver import Ram
from vhost_user.errors import FrontendError
from vhost_user.message import Feature
from vhost_user.packed_driver import make_queue

GPA = 0x4000_0000
RAM_SIZE = 1 << 20
DATA = GPA + RAM_SIZE // 2
FULL = 2**64 - 2
"""The counter's largest value: a write of 1 more waits for a reader."""
LAYOUTS = pytest.mark.parametrize(
    "features",
    [Feature.VERSION_1, Feature.VERSION_1 | Feature.RING_PACKED],
    ids=["split", "packed"],
)


@pytest.fixture
def call_fd():
    """An eventfd as its front-end may leave it: blocking and full."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(fd, FULL)
    yield fd
    os.close(fd)


@contextmanager
def ring_with_a_pushed_chain(features, call_fd):
    """Yield a ring whose driver waits for an interrupt."""
    with (
        Ram(RAM_SIZE, gpa=GPA) as ram,
        closing(make_queue(ram, 16, features=features)) as queue,
    ):
        memory = memory_of(ram)
        ring = start_ring(memory, ram, queue, features=features, call_fd=call_fd)
        iov = ffi.new("struct iovec[]", 4)
        for _ in range(4):
            queue.add(writable=[(DATA, 100)])

        def push():
            chain = ffi.new("struct vu_chain *")
            assert check(lib.vu_ring_pop(ring, iov, 4, chain), "pop")
            lib.vu_ring_push(ring, chain, iov, 0)

        push()
        try:
            yield ring, push
        finally:
            lib.vu_ring_free(ring)
            memory.close()


def flush(ring, call_fd):
    """Flush on a thread of its own: without a watch it would never come back."""
    results = []
    thread = threading.Thread(
        target=lambda: results.append(lib.vu_ring_flush(ring)), daemon=True
    )
    thread.start()
    thread.join(PATIENCE_S)
    if thread.is_alive():
        os.eventfd_read(call_fd)
        thread.join()
        pytest.fail("the interrupt slept")
    return results[0]


@LAYOUTS
def test_a_full_eventfd_that_blocks_is_given_up(features, call_fd):
    with ring_with_a_pushed_chain(features, call_fd) as (ring, push):
        with pytest.raises(FrontendError, match="call eventfd"):
            check(flush(ring, call_fd), "flush")
        push()
        assert flush(ring, call_fd) == 0  # it isn't written to again
        assert os.eventfd_read(call_fd) == FULL


def test_a_full_eventfd_that_does_not_block_is_a_pending_interrupt(call_fd):
    os.set_blocking(call_fd, False)
    with ring_with_a_pushed_chain(Feature.VERSION_1, call_fd) as (ring, _):
        assert flush(ring, call_fd) == 1
        assert os.eventfd_read(call_fd) == FULL


def test_an_eventfd_that_blocks_and_has_room_is_taken(call_fd):
    assert os.eventfd_read(call_fd) == FULL
    with ring_with_a_pushed_chain(Feature.VERSION_1, call_fd) as (ring, _):
        assert flush(ring, call_fd) == 1
        assert os.eventfd_read(call_fd) == 1


def test_a_new_eventfd_is_taken_after_one_that_blocked(call_fd):
    with ring_with_a_pushed_chain(Feature.VERSION_1, call_fd) as (ring, push):
        assert flush(ring, call_fd) == -lib.VU_ERR_CALL
        assert os.eventfd_read(call_fd) == FULL
        lib.vu_ring_set_call(ring, call_fd)
        push()
        assert flush(ring, call_fd) == 1


def test_each_thread_is_watched(call_fd):
    results = []

    def interrupt():
        with ring_with_a_pushed_chain(Feature.VERSION_1, call_fd) as (ring, _):
            results.append(flush(ring, call_fd))

    threads = [threading.Thread(target=interrupt, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert results == [-lib.VU_ERR_CALL] * 4


def test_a_front_end_that_empties_and_fills_it_keeps_nobody(call_fd):
    done = threading.Event()

    def tease():
        while not done.is_set():
            with suppress(BlockingIOError):  # when the test ends
                os.eventfd_read(call_fd)
                os.eventfd_write(call_fd, FULL)

    with ring_with_a_pushed_chain(Feature.VERSION_1, call_fd) as (ring, _):
        teaser = threading.Thread(target=tease, daemon=True)
        teaser.start()
        assert flush(ring, call_fd) in (1, -lib.VU_ERR_CALL)  # a race
        done.set()
        os.set_blocking(call_fd, False)
        with suppress(BlockingIOError):
            os.eventfd_read(call_fd)
        teaser.join(PATIENCE_S)
        assert not teaser.is_alive()


def test_a_child_process_is_watched_too(call_fd):
    with ring_with_a_pushed_chain(Feature.VERSION_1, call_fd) as (ring, push):
        assert flush(ring, call_fd) == -lib.VU_ERR_CALL
        lib.vu_ring_set_call(ring, call_fd)
        push()
        child = os.fork()
        if child == 0:
            os._exit(0 if lib.vu_ring_flush(ring) == -lib.VU_ERR_CALL else 1)
        assert os.waitpid(child, 0)[1] == 0
