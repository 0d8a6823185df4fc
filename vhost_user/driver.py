"""The driver's side of a virtqueue, and the guest memory it lives in.

Plays the guest's kernel in user space, for tests and benchmarks. Everything a
hostile guest could do is possible: descriptors and indices can be written raw.

Spec: VIRTIO 1.2 section 2.7 "Split Virtqueues"; packed ones are in `packed_driver.py`.
"""

from __future__ import annotations

import abc
import mmap
import os
import select
import struct
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from vhost_user.closing import Closing
from vhost_user.errors import StateError
from vhost_user.message import Feature, MemoryRegion

if TYPE_CHECKING:
    from collections.abc import Sequence

assert sys.byteorder == "little", "rings are little-endian and are used in place"

PAGE: Final = 4096
TIMEOUT_S: Final = 60.0
"""How long a wait of the driver's side may take, unless it is told otherwise: a bound
on a back-end that hangs, far above what a slow machine needs."""

DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4

AVAIL_NO_INTERRUPT: Final = 1
USED_NO_NOTIFY: Final = 1

_DESC: Final = struct.Struct("<QIHH")

Segment: TypeAlias = tuple[int, int]
"""Guest physical address and length, bytes."""

_barrier_lock: Final = threading.Lock()


def barrier() -> None:
    """Order the stores before it with the loads after it, as `smp_mb()` does.

    Taking a lock is a locked instruction: a full barrier. CPython has no other.
    """
    with _barrier_lock:
        pass


class Ram(Closing):
    """Guest memory in a memfd, handed out piece by piece; shared with the back-end.

    The guest address, the front-end's address and the file offset of one byte
    differ on purpose, so that mistaking one for another is seen.

    Args:
        size: bytes, a multiple of `PAGE`.
        gpa: guest address of the first byte.
        uva: the address that the front-end claims to have it at.
    """

    def __init__(
        self,
        size: int = 4 << 20,
        *,
        gpa: int = 0x4000_0000,
        uva: int = 0x7F00_0000_0000,
    ) -> None:
        self.gpa = gpa
        self.uva = uva
        self.size = size
        self.offset = PAGE
        self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.offset + size)
        self._map = mmap.mmap(self.fd, size, offset=self.offset)
        self._bytes = memoryview(self._map)
        self._u16 = self._bytes.cast("H")
        self._used = 0
        self._free: dict[int, list[int]] = {}

    @property
    def region(self) -> MemoryRegion:
        """Describe it as a memory table does."""
        return MemoryRegion(
            gpa=self.gpa, size=self.size, uva=self.uva, offset=self.offset
        )

    def alloc(self, size: int) -> int:
        """Return the guest address of `size` bytes, aligned to its power of two.

        Raises:
            MemoryError: the RAM is full.
        """
        size = _rounded(size)
        if self._free.get(size):
            return self._free[size].pop()
        start = -(-self._used // min(size, PAGE)) * min(size, PAGE)
        if start + size > self.size:
            raise MemoryError(f"{size} bytes of guest memory")
        self._used = start + size
        return self.gpa + start

    def free(self, gpa: int, size: int) -> None:
        """Take back what `alloc(size)` returned."""
        self._free.setdefault(_rounded(size), []).append(gpa)

    def to_uva(self, gpa: int) -> int:
        """Return the front-end's address of a guest address."""
        return gpa - self.gpa + self.uva

    def read(self, gpa: int, size: int) -> bytes:
        """Copy bytes out."""
        start = gpa - self.gpa
        return bytes(self._bytes[start : start + size])

    def write(self, gpa: int, data: bytes) -> None:
        """Copy bytes in."""
        start = gpa - self.gpa
        self._bytes[start : start + len(data)] = data

    def load16(self, gpa: int) -> int:
        """Read a ring index in one access (`struct` would take it byte by byte)."""
        return self._u16[(gpa - self.gpa) >> 1]

    def store16(self, gpa: int, value: int) -> None:
        """Write a ring index in one access."""
        self._u16[(gpa - self.gpa) >> 1] = value & 0xFFFF

    def close(self) -> None:
        """Unmap it and close its file."""
        if not self._map.closed:
            self._u16.release()
            self._bytes.release()
            self._map.close()
            os.close(self.fd)


def _rounded(size: int) -> int:
    """Round up to a power of two, at least a cache line."""
    return max(64, 1 << (size - 1).bit_length())


@dataclass(frozen=True, slots=True)
class _Chain:
    """What a chain that the device has keeps busy."""

    slots: list[int]
    table: int
    """Indirect table, or 0."""
    table_size: int


@dataclass(frozen=True, slots=True)
class Used:
    """A chain that came back."""

    head: int
    len: int
    """Bytes that the device says it wrote."""


class DriverQueue(abc.ABC):
    """What split and packed rings have in common, seen from the driver's side.

    Args:
        ram: where the ring goes.
        num: entries.
        features: negotiated bits; `Feature.EVENT_IDX` changes notification.
    """

    desc: int
    """Guest address of the descriptors."""
    avail: int
    """Of the available ring; packed: of the driver's event suppression."""
    used: int
    """Of the used ring; packed: of the device's event suppression."""

    def __init__(self, ram: Ram, num: int, *, features: int) -> None:
        self.ram = ram
        self.num = num
        self.event_idx = bool(features & Feature.EVENT_IDX)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.kicks = 0
        """Notifications sent."""

    @property
    @abc.abstractmethod
    def base(self) -> int:
        """VRING_BASE of a device that has given back all that was taken so far."""

    @property
    @abc.abstractmethod
    def crash_base(self) -> int:
        """VRING_BASE as a front-end makes it up that can't ask the device any more."""

    @abc.abstractmethod
    def add(
        self,
        readable: Sequence[Segment] = (),
        writable: Sequence[Segment] = (),
        *,
        indirect: bool = False,
    ) -> int:
        """Offer one chain to the device and return what names it in `Used.head`.

        Args:
            readable: segments that the device reads.
            writable: segments that it writes; they follow.
            indirect: put the descriptors into a table of their own
                (`Feature.INDIRECT_DESC`).

        Raises:
            StateError: not enough free descriptors.
        """

    @abc.abstractmethod
    def kick(self, *, force: bool = False) -> bool:
        """Notify the device unless it asked not to be; return whether it was."""

    @abc.abstractmethod
    def want_calls(self, *, after: int = 0) -> None:
        """Ask for an interrupt once more than `after` further chains are used."""

    @abc.abstractmethod
    def refuse_calls(self) -> None:
        """Ask for no interrupt."""

    @abc.abstractmethod
    def pop_used(self) -> Used | None:
        """Return the next chain that came back, or None.

        Raises:
            StateError: the device gave back what it did not have.
        """

    @property
    @abc.abstractmethod
    def free(self) -> int:
        """Descriptors that no chain uses."""

    @property
    @abc.abstractmethod
    def in_flight(self) -> int:
        """Chains that the device has."""

    def calls(self) -> int:
        """Return how many interrupts came since the last call of this."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def wait_used(self, timeout_s: float = TIMEOUT_S) -> Used:
        """Return the next chain that comes back, waiting on interrupts.

        Raises:
            TimeoutError: none came.
        """
        while True:
            if (used := self.pop_used()) is not None:
                return used
            self.want_calls()
            if (used := self.pop_used()) is not None:
                return used
            if not select.select([self.call_fd], [], [], timeout_s)[0]:
                raise TimeoutError(f"no used chain within {timeout_s:g} s")
            self.calls()

    def close(self) -> None:
        """Close the eventfds; the memory is the RAM's."""
        for fd in (self.kick_fd, self.call_fd):
            if fd >= 0:
                os.close(fd)
        self.kick_fd = self.call_fd = -1


class Virtqueue(DriverQueue):
    """One split ring from the driver's side, with its two eventfds.

    Args:
        ram: where the ring goes.
        num: entries, a power of two.
        features: negotiated bits; `Feature.EVENT_IDX` changes notification.
        first: index that the ring starts at; a new one starts at 0, one that has
            been in use anywhere.
    """

    def __init__(
        self, ram: Ram, num: int = 256, *, features: int = 0, first: int = 0
    ) -> None:
        super().__init__(ram, num, features=features)
        self.desc = ram.alloc(16 * num)
        self.avail = ram.alloc(6 + 2 * num)
        self.used = ram.alloc(6 + 8 * num)
        self.avail_idx = first
        self.used_idx = first
        ram.store16(self.avail + 2, first)
        ram.store16(self.used + 2, first)
        self._kicked_idx = first
        self._free = list(reversed(range(num)))
        self._chains: dict[int, _Chain] = {}

    @property
    def base(self) -> int:
        """Index of the next available entry that a device would take."""
        return self.used_idx

    @property
    def crash_base(self) -> int:
        """The used index in memory, as QEMU takes it."""
        return self.ram.load16(self.used + 2)

    # ---- adding chains ----

    def add(
        self,
        readable: Sequence[Segment] = (),
        writable: Sequence[Segment] = (),
        *,
        indirect: bool = False,
    ) -> int:
        """Offer one chain to the device and return its head.

        Args:
            readable: segments that the device reads.
            writable: segments that it writes; they follow.
            indirect: put the descriptors into a table of their own
                (`Feature.INDIRECT_DESC`, VIRTIO 1.2 section 2.7.5.3).

        Raises:
            StateError: not enough free descriptors.
        """
        flagged = [(*s, 0) for s in readable] + [(*s, DESC_WRITE) for s in writable]
        needed = 1 if indirect else len(flagged)
        if needed > len(self._free):
            raise StateError(f"{len(self._free)} descriptors free, need {needed}")
        slots = [self._free.pop() for _ in range(needed)]
        table = table_size = 0
        if indirect:
            table_size = 16 * len(flagged)
            table = self.ram.alloc(table_size)
            self._write_chain(table, list(range(len(flagged))), flagged)
            flagged = [(table, table_size, DESC_INDIRECT)]
        self._write_chain(self.desc, slots, flagged)
        self._chains[slots[0]] = _Chain(slots, table, table_size)
        self.publish(slots[0])
        return slots[0]

    def write_desc(self, index: int, gpa: int, size: int, flags: int, nxt: int) -> None:
        """Write a descriptor raw: nothing is checked or remembered."""
        self.ram.write(self.desc + 16 * index, _DESC.pack(gpa, size, flags, nxt))

    def publish(self, head: int) -> None:
        """Put `head`, whatever it is, into the available ring."""
        self.ram.store16(self.avail + 4 + 2 * (self.avail_idx % self.num), head)
        self.set_avail_idx(self.avail_idx + 1)

    def set_avail_idx(self, value: int) -> None:
        """Write the available index, whatever it is."""
        self.avail_idx = value & 0xFFFF
        self.ram.store16(self.avail + 2, value)

    # ---- notification ----

    def kick(self, *, force: bool = False) -> bool:
        """Notify the device unless it asked not to be; return whether it was.

        Spec: VIRTIO 1.2 section 2.7.10 "Available Buffer Notification Suppression".
        """
        barrier()
        old, self._kicked_idx = self._kicked_idx, self.avail_idx
        if self.event_idx:
            event = self.ram.load16(self.used + 4 + 8 * self.num)
            new = self.avail_idx
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self.ram.load16(self.used) & USED_NO_NOTIFY
        if wanted or force:
            self.kicks += 1
            os.eventfd_write(self.kick_fd, 1)
        return wanted or force

    def want_calls(self, *, after: int = 0) -> None:
        """Ask for an interrupt once more than `after` further chains are used.

        Spec: VIRTIO 1.2 section 2.7.7 "Used Buffer Notification Suppression".
        """
        if self.event_idx:
            self.ram.store16(self.avail + 4 + 2 * self.num, self.used_idx + after)
        else:
            self.ram.store16(self.avail, 0)
        barrier()

    def refuse_calls(self) -> None:
        """Ask for no interrupt."""
        if self.event_idx:
            event = self.used_idx - 1
            self.ram.store16(self.avail + 4 + 2 * self.num, event)
        else:
            self.ram.store16(self.avail, AVAIL_NO_INTERRUPT)

    # ---- taking used chains ----

    def pop_used(self) -> Used | None:
        """Return the next chain that came back, or None.

        Raises:
            StateError: the device gave back what it did not have.
        """
        if self.used_idx == self.ram.load16(self.used + 2):
            return None
        entry = self.used + 4 + 8 * (self.used_idx % self.num)
        head, size = struct.unpack("<II", self.ram.read(entry, 8))
        chain = self._chains.pop(head, None)
        if chain is None:
            raise StateError(f"device gave back chain {head}, which it did not have")
        self._free += chain.slots
        if chain.table:
            self.ram.free(chain.table, chain.table_size)
        self.used_idx = (self.used_idx + 1) & 0xFFFF
        return Used(head, size)

    @property
    def free(self) -> int:
        """Descriptors that no chain uses."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """Chains that the device has."""
        return len(self._chains)

    def _write_chain(
        self, table: int, slots: list[int], parts: list[tuple[int, int, int]]
    ) -> None:
        following = [*slots[1:], None]
        for slot, nxt, (gpa, size, flags) in zip(slots, following, parts, strict=True):
            more = 0 if nxt is None else DESC_NEXT
            desc = _DESC.pack(gpa, size, flags | more, nxt or 0)
            self.ram.write(table + 16 * slot, desc)
