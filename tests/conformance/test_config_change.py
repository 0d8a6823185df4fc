"""A device whose configuration changes tells its front-end, over a real socket."""

from __future__ import annotations

import contextlib

import pytest

from tests.conformance.threads import TIMEOUT_S, InThread
from vhost_user.backend import Backend
from vhost_user.device import SESSION_FEATURES
from vhost_user.driver import Ram, Virtqueue
from vhost_user.frontend import ALL_FEATURES, ALL_PROTOCOL_FEATURES, Frontend
from vhost_user.message import ProtocolFeature, Status
from vhost_user.queue import QueueDevice

PLAIN = ALL_PROTOCOL_FEATURES & ~ProtocolFeature.REPLY_ACK


class Counter(QueueDevice):
    """Copies what it reads to what it may write; its configuration is a number."""

    protocol_features = SESSION_FEATURES | ProtocolFeature.CONFIG

    def process(self, queue, chain):
        return chain.write(chain.read(chain.readable))


class Served(InThread):
    """One device behind a socket, its loop in a thread."""

    def __init__(self, path, device):
        super().__init__()
        self.path = path
        self.device = device

    async def _serve(self):
        backend = Backend(self.path, self.device)
        await backend.start()
        await self._until_left()
        await backend.close()

    def set_config(self, data):
        self._loop.call_soon_threadsafe(self.device.set_config, data)


@pytest.fixture
def served(tmp_path):
    device = Counter()
    device.set_config(bytes(8))
    with Served(tmp_path / "counter", device) as served:
        yield served


@pytest.fixture
def start(served):
    """Return a function that connects a front-end whose one ring runs."""
    opened = contextlib.ExitStack()

    def start(protocol_features=ALL_PROTOCOL_FEATURES):
        vmm, ram = Frontend(served.path), Ram()
        queue = Virtqueue(
            ram, 16, features=vmm.negotiate(ALL_FEATURES, protocol_features)
        )
        for each in (vmm, ram, queue):
            opened.callback(each.close)
        vmm.set_memory(ram)
        vmm.start(0, queue)
        return vmm, ram, queue

    with opened:
        yield start


def copy(ram, queue, data):
    source, target = ram.alloc(len(data)), ram.alloc(len(data))
    ram.write(source, data)
    queue.add([(source, len(data))], [(target, len(data))])
    queue.kick()
    assert queue.wait_used(TIMEOUT_S).len == len(data)
    return ram.read(target, len(data))


@pytest.mark.spec(
    "vhost-user:BACKEND_CONFIG_CHANGE_MSG",
    "vhost-user:SET_BACKEND_REQ_FD",
    "vhost-user:feature/BACKEND_REQ",
)
@pytest.mark.parametrize(
    "features", [ALL_PROTOCOL_FEATURES, PLAIN], ids=["ack", "plain"]
)
def test_each_change_is_told_while_the_ring_goes_on(served, start, features):
    vmm, ram, queue = start(features)
    with vmm.open_channel() as channel:
        assert vmm.queue_num() == 1  # the channel is there
        for i in range(1, 20):
            served.set_config(bytes([i] * 8))
            channel.expect_config_change()
            assert vmm.config() == bytes([i] * 8)
            assert copy(ram, queue, b"go on") == b"go on"


@pytest.mark.spec("vhost-user:suspended/messages")
def test_a_change_while_the_device_is_suspended_is_told_afterwards(served, start):
    vmm, _, queue = start()
    with vmm.open_channel() as channel:
        base = vmm.stop(0)
        served.set_config(b"changed!")
        while vmm.config() != b"changed!":
            pass
        vmm.start(0, queue, base=base)
        channel.expect_config_change()


def test_a_ring_that_breaks_is_told_to_a_driver_that_is_there(start):
    vmm, ram, queue = start()
    vmm.status = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK
    with vmm.open_channel() as channel:
        queue.write_desc(0, ram.gpa - 4096, 16, 0, 0)
        queue.publish(0)
        queue.kick(force=True)
        channel.expect_config_change()
        assert vmm.status & Status.NEEDS_RESET


def test_a_channel_with_garbage_leaves_the_session_alone(served, start):
    vmm, ram, queue = start()
    with vmm.open_channel() as channel:
        served.set_config(b"12345678")
        channel.receive()
        channel.send(b"\xff" * 64)
        with pytest.raises(ConnectionError):
            channel.receive()
    assert copy(ram, queue, b"go on") == b"go on"
    with vmm.open_channel() as channel:
        served.set_config(b"87654321")
        channel.expect_config_change()
