"""A device that only notes what the session asks of it, and fd counting."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vhost_user.engine import RingConfig  # noqa: TC001  # dataclass field
from vhost_user.message import Feature, ProtocolFeature


@dataclass
class FakeDevice:
    """Rings go where they are put; `stop_ring()` says `progress` more than before."""

    features: int = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC
    protocol_features: ProtocolFeature = (
        ProtocolFeature.MQ | ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK
    )
    queues: int = 2
    queue_size: int = 1024
    progress: int = 0
    start_error: Exception | None = None
    calls: list[str] = field(default_factory=list)
    running: dict[int, RingConfig] = field(default_factory=dict)
    memory: object = None
    acked: int = 0
    on_ring_broke: object = None

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
        return (config.base + self.progress) & 0xFFFF

    def set_call(self, queue, call_fd):
        assert queue in self.running
        self.calls.append(f"call {queue}")

    def reset(self):
        self.calls.append("reset")


@pytest.fixture
def device():
    return FakeDevice()


@pytest.fixture
def open_fds():
    """Return a function that counts this process's open file descriptors."""
    return lambda: len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def no_fd_leak(open_fds):
    """Fail the test if it ends with other file descriptors than it began with."""
    before = open_fds()
    yield
    assert open_fds() == before
