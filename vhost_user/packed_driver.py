"""The driver's side of a packed virtqueue: the counterpart of `driver.Virtqueue`.

Spec: VIRTIO 1.2 section 2.8 "Packed Virtqueues".
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_user.driver import (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    DriverQueue,
    Used,
    Virtqueue,
    barrier,
)
from vhost_user.errors import StateError
from vhost_user.message import Feature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.driver import Ram, Segment

DESC_AVAIL: Final = 1 << 7
DESC_USED: Final = 1 << 15

EVENT_ENABLE: Final = 0
EVENT_DISABLE: Final = 1
EVENT_DESC: Final = 2
"""Event for one descriptor, with `Feature.EVENT_IDX` only."""

_DESC: Final = struct.Struct("<QIHH")
_WRAP: Final = 1 << 15


def make_queue(
    ram: Ram, num: int = 256, *, features: int = 0, first: int = 0
) -> DriverQueue:
    """Return a ring of the kind that was negotiated.

    Args:
        ram: where the ring goes.
        num: entries.
        features: negotiated bits.
        first: index that the ring starts at; packed: modulo `num`.
    """
    if features & Feature.RING_PACKED:
        return PackedVirtqueue(ram, num, features=features, first=first % num)
    return Virtqueue(ram, num, features=features, first=first)


@dataclass(frozen=True, slots=True)
class _Place:
    """A descriptor and the wrap counter there."""

    index: int
    wrap: bool = True

    def add(self, slots: int, num: int) -> _Place:
        """Return the place `slots` further in a ring of `num`."""
        index = self.index + slots
        return _Place(index % num, self.wrap ^ (index >= num))

    @property
    def encoded(self) -> int:
        """As event suppression and VRING_BASE have it."""
        return self.index | (_WRAP if self.wrap else 0)


@dataclass(frozen=True, slots=True)
class _Chain:
    """What a chain that the device has keeps busy."""

    slots: int
    table: int
    """Indirect table, or 0."""
    table_size: int


class PackedVirtqueue(DriverQueue):
    """One packed ring from the driver's side, with its two eventfds.

    Args:
        ram: where the ring goes.
        num: entries.
        features: negotiated bits; `Feature.EVENT_IDX` changes notification.
        first: descriptor that the ring starts at, wrap counters set.
    """

    def __init__(
        self, ram: Ram, num: int = 256, *, features: int = 0, first: int = 0
    ) -> None:
        super().__init__(ram, num, features=features)
        self.desc = ram.alloc(16 * num)
        self.avail = ram.alloc(4)
        self.used = ram.alloc(4)
        self.next = _Place(first)
        """Where the next chain goes."""
        self.next_used = _Place(first)
        """Where the next used descriptor comes."""
        self._free_slots = num
        self._unkicked = 0
        self._ids = list(reversed(range(num)))
        self._chains: dict[int, _Chain] = {}
        for area in (self.avail, self.used):
            ram.store16(area, 0)
            ram.store16(area + 2, EVENT_ENABLE)
        # What lies before has been used in this turn, what lies behind in the last.
        used = _DESC.pack(0, 0, 0, DESC_AVAIL | DESC_USED)
        ram.write(self.desc, used * first + bytes(16 * (num - first)))

    @property
    def base(self) -> int:
        """Both indices, each with its wrap counter."""
        return self.next_used.encoded * 0x1_0001

    @property
    def crash_base(self) -> int:
        """That of a new ring: memory doesn't say, the in-flight area does."""
        return _Place(0).encoded * 0x1_0001

    # ---- adding chains ----

    def add(
        self,
        readable: Sequence[Segment] = (),
        writable: Sequence[Segment] = (),
        *,
        indirect: bool = False,
    ) -> int:
        """Offer one chain; see `DriverQueue.add()`."""
        flagged = [(*s, 0) for s in readable] + [(*s, DESC_WRITE) for s in writable]
        needed = 1 if indirect else len(flagged)
        if needed > self._free_slots:
            raise StateError(f"{self._free_slots} descriptors free, need {needed}")
        ident = self._ids.pop()
        table = table_size = 0
        if indirect:
            table_size = 16 * len(flagged)
            table = self.ram.alloc(table_size)
            entries = b"".join(_DESC.pack(g, n, 0, flags) for g, n, flags in flagged)
            self.ram.write(table, entries)
            flagged = [(table, table_size, DESC_INDIRECT)]
        self._chains[ident] = _Chain(needed, table, table_size)
        self.write_chain(flagged, ident)
        self._free_slots -= needed
        return ident

    def write_chain(self, parts: Sequence[tuple[int, int, int]], ident: int) -> None:
        """Write (gpa, size, flags) raw, and make them available as one chain.

        NEXT and the flags that say whose it is are added; nothing is checked or
        remembered.
        """
        at = head = self.next
        head_flags = 0
        for i, (gpa, size, flags) in enumerate(parts):
            whole = flags | (DESC_NEXT if i + 1 < len(parts) else 0)
            whole |= DESC_AVAIL if at.wrap else DESC_USED
            slot = self.desc + 16 * at.index
            self.ram.write(slot, _DESC.pack(gpa, size, ident, 0)[:14])
            if i:
                self.ram.store16(slot + 14, whole)
            else:
                head_flags = whole
            at = at.add(1, self.num)
        barrier()
        self.ram.store16(self.desc + 16 * head.index + 14, head_flags)
        self._unkicked += len(parts)
        self.next = at

    # ---- notification ----

    def kick(self, *, force: bool = False) -> bool:
        """Notify the device unless it asked not to be; return whether it was.

        Spec: VIRTIO 1.2 section 2.8.10 "Driver and Device Event Suppression".
        """
        barrier()
        flags = self.ram.load16(self.used + 2)
        wanted = flags != EVENT_DISABLE
        if self.event_idx and flags == EVENT_DESC:
            off_wrap = self.ram.load16(self.used)
            event = off_wrap & ~_WRAP
            if bool(off_wrap & _WRAP) != self.next.wrap:
                event -= self.num
            wanted = (self.next.index - event - 1) & 0xFFFF < self._unkicked
        self._unkicked = 0
        if wanted or force:
            self.kicks += 1
            os.eventfd_write(self.kick_fd, 1)
        return wanted or force

    def want_calls(self, *, after: int = 0) -> None:
        """Ask for an interrupt; `after` counts descriptors, not chains."""
        if self.event_idx:
            place = self.next_used.add(after, self.num)
            self.ram.store16(self.avail, place.encoded)
        self.ram.store16(self.avail + 2, EVENT_DESC if self.event_idx else EVENT_ENABLE)
        barrier()

    def refuse_calls(self) -> None:
        """Ask for no interrupt."""
        self.ram.store16(self.avail + 2, EVENT_DISABLE)

    # ---- taking used chains ----

    def pop_used(self) -> Used | None:
        """Return the next chain that came back, or None; see `DriverQueue`."""
        slot = self.desc + 16 * self.next_used.index
        flags = self.ram.load16(slot + 14)
        mine = (bool(flags & DESC_AVAIL), bool(flags & DESC_USED))
        if mine != (self.next_used.wrap,) * 2:
            return None
        size, ident = struct.unpack("<IH", self.ram.read(slot + 8, 6))
        chain = self._chains.pop(ident, None)
        if chain is None:
            raise StateError(f"device gave back chain {ident}, which it did not have")
        if chain.table:
            self.ram.free(chain.table, chain.table_size)
        self._ids.append(ident)
        self._free_slots += chain.slots
        self.next_used = self.next_used.add(chain.slots, self.num)
        return Used(ident, size)

    @property
    def free(self) -> int:
        """Descriptors that no chain uses."""
        return self._free_slots

    @property
    def in_flight(self) -> int:
        """Chains that the device has."""
        return len(self._chains)
