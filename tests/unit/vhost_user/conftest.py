"""A VMM without a socket, a device that notes what it is asked, and fd counting."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

import pytest

from tests.support.descriptors import check_closed, descriptors
from tests.support.limits import LIMIT_S
from vhost_user.descriptors import THREAD_NAME
from vhost_user.device import SESSION_FEATURES
from vhost_user.engine import RingConfig  # noqa: TC001  # dataclass field
from vhost_user.message import (
    Feature,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    VringAddress,
    VringFd,
    VringState,
    decode_reply,
    decode_u64,
    encode_mem_region,
    encode_mem_table,
    encode_u64,
)
from vhost_user.session import Session

PAGE = 4096
GPA = 0x4000_0000
UVA = 0x7F00_0000_0000
ALL_PROTOCOL_FEATURES = SESSION_FEATURES | ProtocolFeature.CONFIG


@dataclass
class FakeDevice:
    """Rings go where they are put; `stop_ring()` says `progress` more than before."""

    features: int = (
        Feature.VERSION_1
        | Feature.EVENT_IDX
        | Feature.INDIRECT_DESC
        | Feature.LOG_ALL
        | Feature.RING_RESET
    )
    protocol_features: ProtocolFeature = ALL_PROTOCOL_FEATURES
    queues: int = 2
    queue_size: int = 1024
    progress: int = 0
    start_error: Exception | None = None
    calls: list[str] = field(default_factory=list)
    running: dict[int, RingConfig] = field(default_factory=dict)
    memory: object = None
    acked: int = 0
    on_ring_broke: object = None
    on_config_change: object = None

    def config(self):
        return bytes([3, 0, 0, 0, 0, 0, 0, 0])

    def set_features(self, acked):
        self.acked = acked

    def set_memory(self, memory):
        assert not self.running, "memory changed under a running ring"
        self.calls.append("set_memory" if memory else "drop_memory")
        self.memory = memory

    def start_ring(self, queue, config):
        assert queue not in self.running
        assert self.memory is not None
        if self.start_error is not None:
            raise self.start_error
        self.calls.append(f"start {queue} at {config.base}")
        self.running[queue] = config

    def stop_ring(self, queue):
        config = self.running.pop(queue)
        self.calls.append(f"stop {queue}")
        packed = config.features & Feature.RING_PACKED
        return (config.base + self.progress) & (0xFFFF_FFFF if packed else 0xFFFF)

    def set_call(self, queue, call_fd):
        assert queue in self.running
        self.calls.append(f"call {queue}")

    def reset(self):
        self.calls.append("reset")


class Vmm:
    """Sends messages to a session as a VMM would."""

    def __init__(self, session):
        self.session = session

    def send(self, request, payload=b"", *fds, need_reply=False):
        reply = self.session.receive(Message(request, payload, list(fds), need_reply))
        if reply is None:
            return None
        data = reply.data
        assert decode_reply(data[:12]) == (request, 0x5, len(data) - 12)
        return data[12:]

    def negotiate(self, features, protocol_features=ALL_PROTOCOL_FEATURES):
        self.send(Request.SET_PROTOCOL_FEATURES, encode_u64(protocol_features))
        self.send(Request.SET_OWNER)
        self.send(Request.SET_FEATURES, encode_u64(features))

    def set_memory(self, size=16 * PAGE):
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size)
        table = [MemoryRegion(gpa=GPA, size=size, uva=UVA)]
        return self.send(Request.SET_MEM_TABLE, encode_mem_table(table), fd)

    def add_region(self, gpa=GPA, size=16 * PAGE, uva=UVA, *, need_reply=False):
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size)
        payload = encode_mem_region(MemoryRegion(gpa=gpa, size=size, uva=uva))
        return self.send(Request.ADD_MEM_REG, payload, fd, need_reply=need_reply)

    def remove_region(self, *fds, gpa=GPA, size=16 * PAGE, uva=UVA):
        region = MemoryRegion(gpa=gpa, size=size, uva=uva)
        return self.send(Request.REM_MEM_REG, encode_mem_region(region), *fds)

    def set_ring(self, index, *, base=0, num=256):
        self.send(Request.SET_VRING_NUM, VringState(index, num).encode())
        self.send(Request.SET_VRING_BASE, VringState(index, base).encode())
        self.set_address(index)
        self.set_fd(Request.SET_VRING_CALL, index)
        self.set_fd(Request.SET_VRING_KICK, index)

    def set_address(self, index):
        desc = UVA + index * 4 * PAGE
        address = VringAddress(
            index=index, desc=desc, avail=desc + PAGE, used=desc + 2 * PAGE
        )
        self.send(Request.SET_VRING_ADDR, address.encode())

    def set_fd(self, request, index):
        self.send(request, VringFd(index, has_fd=True).encode(), os.eventfd(0))

    def enable(self, index, on=1):
        self.send(Request.SET_VRING_ENABLE, VringState(index, on).encode())

    @property
    def status(self):
        return decode_u64(self.send(Request.GET_STATUS))

    @status.setter
    def status(self, value):
        self.send(Request.SET_STATUS, encode_u64(value))

    def get_base(self, index):
        reply = self.send(Request.GET_VRING_BASE, VringState(index, 0).encode())
        return VringState.decode(reply).num


@pytest.fixture
def device():
    return FakeDevice()


@pytest.fixture
def session(device):
    session = Session(device)
    yield session
    session.close()
    assert device.running == {}
    assert device.memory is None


@pytest.fixture
def vmm(session):
    return Vmm(session)


@pytest.fixture
def running(vmm, device):
    """A session like QEMU's, with both rings running."""
    vmm.negotiate(Feature.VERSION_1 | Feature.PROTOCOL_FEATURES)
    vmm.set_memory()
    for index in (0, 1):
        vmm.set_ring(index)
        vmm.enable(index)
    assert sorted(device.running) == [0, 1]
    device.calls.clear()
    return vmm


def offloaded():
    """Return the threads that make calls which a front-end could make wait."""
    return [t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]


@pytest.fixture
def open_fds():
    """Return a function that counts this process's open file descriptors."""

    def count():
        for thread in offloaded():
            thread.join(LIMIT_S)
        return len(descriptors())

    return count


@pytest.fixture
def no_fd_leak():
    """Fail the test if it leaves file descriptors open."""
    before = descriptors()
    yield
    check_closed(before)
