"""A virtqueue, and a device made of them, for data paths written in Python.

`Queue` is the C ring (ring.c) as asyncio sees it: it watches the kick, hands out
chains whose descriptors are copied and checked, and interrupts the guest once a
batch. `QueueDevice` is a whole device: a subclass says what to do with one chain.
`rng.py` is the example. A device that moves much data wants the C engine instead.

Everything here runs on the event loop's thread. Work comes in batches of at most
`BATCH` chains; between two of them the loop serves others.

Spec: VIRTIO 1.2 section 2.6 "Virtqueues".
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Final

from vhost_user import notify
from vhost_user._native import check, ffi, lib
from vhost_user.device import RING_FEATURES, SESSION_FEATURES
from vhost_user.engine import ALL_QUEUES, MAX_QUEUE_SIZE
from vhost_user.errors import FrontendError, GuestError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cffi import FFI

    from vhost_user._vu import CStruct
    from vhost_user.engine import RingConfig
    from vhost_user.memory import GuestMemory
    from vhost_user.message import ProtocolFeature

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Chains that are processed before the event loop gets its turn."""

_MIN_SEGMENTS: Final = 1024  # an indirect table may be longer than its ring
_MORE_SEGMENTS: Final = 32  # a chain may cross memory regions
_POLL_S: Final = 0.001


class Chain:
    """One descriptor chain, until it is pushed or its queue is closed."""

    __slots__ = ("_iov", "_queue", "native")

    def __init__(self, queue: Queue, native: CStruct, iov: FFI.CData) -> None:
        self._queue = queue
        self._iov = iov
        self.native = native
        """`struct vu_chain *`, for the C calls that take it."""

    @property
    def written(self) -> FFI.CData:
        """Its device-writable segments, `struct iovec *`."""
        first: FFI.CData = self._iov + self.native.n_read
        return first

    @property
    def readable(self) -> int:
        """Bytes that the guest gives."""
        return int(self.native.read_len)

    @property
    def writable(self) -> int:
        """Bytes that the guest has room for."""
        return int(self.native.write_len)

    def read(self, size: int) -> bytes:
        """Copy the first `size` bytes of the readable part, fewer if it is shorter."""
        return b"".join(bytes(part) for part in self._parts(size, write=False))

    def write(self, data: bytes) -> int:
        """Fill the writable part from its start; return how much of `data` fitted."""
        done = 0
        for part in self._parts(len(data), write=True):
            part[:] = data[done : done + len(part)]
            done += len(part)
        return done

    def _parts(self, size: int, *, write: bool) -> list[memoryview]:
        if self._queue.closed:
            raise StateError("the queue is closed")
        first = self.native.n_read if write else 0
        count = self.native.n_write if write else self.native.n_read
        parts = []
        for i in range(first, first + count):
            part = min(size, self._iov[i].iov_len)
            if part:
                parts.append(ffi.buffer(self._iov[i].iov_base, part))
            size -= part
        return parts


class Queue:
    """A running ring.

    Every method but `close()` raises StateError once it is closed.

    Args:
        memory: borrowed until `close()`.
        config: its eventfds are borrowed until `close()`.
        on_ready: called when there may be chains: take some, `flush()`, and say
            with `rearm()` that no more are wanted now.

    The C ring signals an eventfd of our own: who else has that of the guest could make
    a write to it wait, and all else in this event loop.

    Raises:
        GuestError: the ring isn't in guest memory, or not aligned.
        OSError: the kick can't be watched, or `notify.prepare()` fails.
    """

    def __init__(
        self, memory: GuestMemory, config: RingConfig, on_ready: Callable[[], None]
    ) -> None:
        notify.prepare()
        self._call_fd = config.call_fd
        self._called = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        error = ffi.new("int *")
        own = dataclasses.replace(config, call_fd=self._called)
        ring = lib.vu_ring_new(memory.native, own.native(), error)
        if ring == ffi.NULL:
            os.close(self._called)
            check(error[0], "start ring")
        self._native = ffi.gc(ring, lib.vu_ring_free)
        self._segments = max(config.num, _MIN_SEGMENTS) + _MORE_SEGMENTS
        self._iov = ffi.new("struct iovec[]", self._segments)
        self._kick_fd = config.kick_fd
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self.closed = False
        if self._kick_fd >= 0:
            self._loop.add_reader(self._kick_fd, self._kicked)
        self._later = self._loop.call_soon(on_ready)

    @property
    def _ring(self) -> FFI.CData:
        if self.closed:
            raise StateError("the queue is closed")
        return self._native

    def pop(self) -> Chain | None:
        """Take the next chain, or None.

        Raises:
            GuestError: the ring or the chain breaks the specification.
        """
        native = ffi.new("struct vu_chain *")
        got = lib.vu_ring_pop(self._ring, self._iov, self._segments, native)
        if got == -lib.VU_ERR_FULL:
            raise GuestError(f"a chain of more than {self._segments} segments")
        if not check(got, "take a chain"):
            return None
        count = native.n_read + native.n_write
        iov = ffi.new("struct iovec[]", [self._iov[i] for i in range(count)])
        return Chain(self, native, iov)

    def push(self, chain: Chain, written: int = 0) -> None:
        """Give a chain back with `written` bytes in it; seen after `flush()`."""
        lib.vu_ring_push(self._ring, chain.native, chain.written, written)

    def flush(self) -> None:
        """Show the guest what was pushed and interrupt it if it wants that."""
        if lib.vu_ring_flush(self._ring) and self._call_fd >= 0:
            notify.signal(self._call_fd)

    def rearm(self) -> None:
        """Ask for a kick with the next chain; if one is there, be ready again."""
        self._later.cancel()
        if lib.vu_ring_want_kicks(self._ring, True):
            self._later = self._loop.call_soon(self._on_ready)
        elif self._kick_fd < 0:
            self._later = self._loop.call_later(_POLL_S, self._on_ready)

    def set_call(self, call_fd: int) -> None:
        """Change the interrupt eventfd (borrowed; -1: none)."""
        if self.closed:
            raise StateError("the queue is closed")
        self._call_fd = call_fd

    def close(self) -> int:
        """Leave the ring alone; return the index of its next available entry."""
        base = int(lib.vu_ring_base(self._native))
        if not self.closed:
            self.closed = True
            self._later.cancel()
            if self._kick_fd >= 0:
                self._loop.remove_reader(self._kick_fd)
            os.close(self._called)
        return base

    def _kicked(self) -> None:
        if notify.take(self._kick_fd):  # whoever shares it may have been faster
            self._on_ready()


class QueueDevice:
    """A device whose rings are processed in Python; see `device.Device`.

    A subclass sets `queues` and what else differs, and writes `process()`. One that
    calls `set_config()` adds `ProtocolFeature.CONFIG` to `protocol_features`.
    """

    features: int = RING_FEATURES
    protocol_features: ProtocolFeature = SESSION_FEATURES
    queues: int = 1
    queue_size: int = MAX_QUEUE_SIZE

    def __init__(self) -> None:
        self.on_ring_broke: Callable[[int], None] | None = None
        self.on_config_change: Callable[[], None] | None = None
        self._memory: GuestMemory | None = None
        self._running: dict[int, Queue] = {}
        self._bases: dict[int, int] = {}
        self._config = b""
        self._given_up = 0
        """Rings that a guest broke."""

    def process(self, queue: int, chain: Chain) -> int:
        """Do what `chain` of ring `queue` asks for; return the bytes written into it.

        Raises:
            GuestError: the chain makes no sense; the ring is given up.
        """
        raise NotImplementedError

    def config(self) -> bytes:
        """Return the configuration space."""
        return self._config

    def set_config(self, data: bytes) -> None:
        """Change the configuration space and tell the front-end."""
        self._config = data
        if self.on_config_change is not None:
            self.on_config_change()

    def set_features(self, acked: int) -> None:
        """Do nothing: the rings get theirs when they start."""

    def set_memory(self, memory: GuestMemory | None) -> None:
        """Borrow `memory` until the next call."""
        self._memory = memory

    def start_ring(self, queue: int, config: RingConfig) -> None:
        """Process ring `queue`.

        Raises:
            GuestError: it isn't in guest memory, or breaks the specification.
        """
        assert self._memory is not None
        self._running[queue] = Queue(
            self._memory, config, lambda: self._ready(queue, self._running[queue])
        )

    def stop_ring(self, queue: int) -> int:
        """Leave ring `queue` alone; return its next available index."""
        if queue in self._running:
            self._bases[queue] = self._running.pop(queue).close()
        return self._bases.get(queue, 0)

    def set_call(self, queue: int, call_fd: int) -> None:
        """Change the interrupt eventfd of ring `queue`; -1: none."""
        if queue in self._running:  # a broken one needs none
            self._running[queue].set_call(call_fd)

    def reset(self) -> None:
        """Forget what belongs to the driver that was there: nothing."""

    def _ready(self, index: int, queue: Queue) -> None:
        """Process one batch; whatever goes wrong ends this ring and no other."""
        try:
            for _ in range(BATCH):
                chain = queue.pop()
                if chain is None:
                    break
                queue.push(chain, self.process(index, chain))
            queue.flush()
            queue.rearm()
        except (GuestError, FrontendError, OSError) as error:
            self._given_up += 1
            if self._given_up & (self._given_up - 1) == 0:  # 1, 2, 4, ...: it can reset
                log.warning(  # its device for ever
                    "ring %d is given up: %s (%d so far)", index, error, self._given_up
                )
            self.stop_ring(index)
            if self.on_ring_broke is not None:
                self.on_ring_broke(index)
        if self._memory is not None and self._memory.lost:
            for ring in list(self._running):
                self.stop_ring(ring)
            if self.on_ring_broke is not None:
                self.on_ring_broke(ALL_QUEUES)
