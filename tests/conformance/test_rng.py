"""`vhost-user-rng` as a process: a device whose data path is Python."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

import pytest

from tests.support.limits import LIMIT_S as TIMEOUT_S
from vhost_user.driver import Ram, Virtqueue
from vhost_user.errors import StateError
from vhost_user.frontend import ALL_FEATURES, Frontend
from vhost_user.message import Feature, Request
from vhost_user.queue import BATCH
from vhost_user.rng import MAX_BYTES


class RngProcess:
    def __init__(self, path):
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vhost_user.rng", "--socket", path],
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        self.lines = [self._process.stderr.readline()]

    def stop(self):
        """End it; return its exit status and what it said."""
        self._process.send_signal(signal.SIGTERM)
        _, errors = self._process.communicate(timeout=TIMEOUT_S)
        return self._process.returncode, b"".join(self.lines) + errors


class Guest:
    """A front-end and the driver of its one queue."""

    def __init__(self, path, *, features=ALL_FEATURES, num=16, ram_size=4 << 20):
        self.vmm = Frontend(path)
        self.ram = Ram(ram_size)
        acked = self.vmm.negotiate(features)
        self.vmm.set_memory(self.ram)
        self.queue = Virtqueue(self.ram, num, features=acked)
        self.vmm.start(0, self.queue)

    def ask(self, *sizes, indirect=False):
        """Offer a chain of buffers of these sizes; return its segments."""
        segments = [(self.ram.alloc(size), size) for size in sizes]
        self.queue.add(writable=segments, indirect=indirect)
        return segments

    def take(self, segments):
        """Wait for the chain; return the bytes that the device says it wrote."""
        self.queue.kick()
        used = self.queue.wait_used(TIMEOUT_S)
        data = b"".join(self.ram.read(gpa, size) for gpa, size in segments)
        assert not any(data[used.len :])
        return data[: used.len]

    def close(self):
        self.vmm.close()
        self.queue.close()
        self.ram.close()


@pytest.fixture
def rng(tmp_path):
    process = RngProcess(str(tmp_path / "rng"))
    yield process
    status, said = process.stop()
    assert status == 0
    assert b"ready" in said
    assert b"Traceback" not in said, said.decode()


@pytest.fixture
def make_guest(rng):
    with contextlib.ExitStack() as stack:

        def make(**options):
            guest = Guest(rng.path, **options)
            stack.callback(guest.close)
            return guest

        yield make


MINIMAL = Feature.VERSION_1


@pytest.mark.spec("virtio-1.2:5.4.6.2/random-bytes")
@pytest.mark.parametrize("features", [ALL_FEATURES, MINIMAL], ids=["all", "minimal"])
def test_fills_the_buffers_that_it_is_given(make_guest, features):
    guest = make_guest(features=features)
    seen = {guest.take(guest.ask(64)) for _ in range(100)}
    assert len(seen) == 100
    assert {len(data) for data in seen} == {64}


@pytest.mark.parametrize("indirect", [False, True])
def test_fills_a_chain_of_several_buffers(make_guest, indirect):
    guest = make_guest()
    data = guest.take(guest.ask(64, 4096, 1, indirect=indirect))
    assert len(data) == 64 + 4096 + 1
    assert len(set(data[64:4160])) > 200


def test_a_huge_buffer_is_filled_in_part(make_guest):
    guest = make_guest()
    assert len(guest.take(guest.ask(1 << 20, 1 << 20))) == MAX_BYTES


def test_more_chains_than_one_batch_are_all_filled(make_guest):
    guest = make_guest(num=256)
    chains = [guest.ask(64) for _ in range(2 * BATCH + 1)]
    assert len({guest.take(chain) for chain in chains}) == len(chains)


def test_goes_on_where_it_was_stopped(make_guest):
    guest = make_guest()
    for index in range(5):
        assert guest.vmm.stop(0) == index
        guest.vmm.start(0, guest.queue, base=index)
        guest.take(guest.ask(64))


def test_a_ring_without_kicks_is_polled(make_guest):
    guest = make_guest()
    guest.vmm.set_fd(Request.SET_VRING_KICK, 0, None)
    chain = guest.ask(64)
    assert guest.queue.wait_used(TIMEOUT_S).len == 64
    assert any(guest.ram.read(*chain[0]))


@pytest.mark.spec("virtio-1.2:2.7.5.1/no-write-to-readable")
def test_a_readable_buffer_breaks_the_ring(make_guest):
    guest = make_guest()
    error_fd = os.eventfd(0)
    guest.vmm.set_fd(Request.SET_VRING_ERR, 0, error_fd)
    guest.queue.add(readable=[(guest.ram.alloc(64), 64)])
    guest.queue.kick()
    assert select.select([error_fd], [], [], TIMEOUT_S)[0]
    os.close(error_fd)
    assert guest.vmm.queue_num() == 1


@pytest.mark.spec("vhost-user:communication/reconnect")
def test_a_front_end_may_come_back(rng):
    for _ in range(3):
        guest = Guest(rng.path)
        guest.take(guest.ask(64))
        guest.close()


def test_a_kick_that_is_no_eventfd_hurts_its_own_session_only(rng, make_guest):
    guest = Guest(rng.path)
    read_end, write_end = os.pipe()
    os.close(write_end)  # readable for ever from now on
    with pytest.raises(StateError, match="back-end refuses"):
        guest.vmm.set_fd(Request.SET_VRING_KICK, 0, read_end)
    assert guest.vmm.hung_up()
    os.close(read_end)
    guest.close()
    guest = make_guest()
    assert len(guest.take(guest.ask(64))) == 64


def test_a_live_socket_is_not_taken_over(rng):
    second = subprocess.run(
        [sys.executable, "-m", "vhost_user.rng", "--socket", rng.path],
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert rng.path in second.stderr
