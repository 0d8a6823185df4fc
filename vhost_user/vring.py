"""The rings of a session: what each was told, and whether the device has it.

A ring runs in the device exactly while everything it needs is there: size,
addresses, a kick, memory, and the enabled state. Each message that changes one of
these stops the ring, changes it and starts the ring again where it stood
(`paused`), so a change on the fly and a first set-up are one path.

Spec: vhost-user, "Ring states".
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_user.descriptors import Kind, require
from vhost_user.engine import RingConfig
from vhost_user.errors import FrontendError, GuestError
from vhost_user.message import LOG_PAGE, Feature, VringAddress
from vhost_user.pipecall import PipeCall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.descriptors import Offload
    from vhost_user.device import Device
    from vhost_user.inflight import Inflight
    from vhost_user.memory import GuestMemory
    from vhost_user.message import VringFd

_NEW_PACKED: Final = 0x8000_8000  # both indices 0, both wrap counters 1
_DESC_SIZE: Final = 16


@dataclass(slots=True)
class Ring:
    """A ring as set up so far; owns its eventfds."""

    index: int
    num: int = 0
    """Entries; 0: not set yet."""
    base: int = 0
    address: VringAddress | None = None
    started: bool = False
    """A kick was set and no GET_VRING_BASE came since."""
    enabled: bool = True
    running: bool = False
    """The device has it."""
    away: bool = False
    """It ran in memory that the front-end has taken out since."""
    kick_fd: int = -1
    call_fd: int = -1
    err_fd: int = -1
    pipe: PipeCall | None = None
    """Owns `call_fd`, where interrupts go through a pipe."""

    def replace_fd(self, name: str, fd: int) -> None:
        """Own `fd` (-1: none) as `name` and close the one that was there."""
        old = getattr(self, name)
        setattr(self, name, fd)
        if old >= 0:
            os.close(old)

    def replace_call(self, fd: int, pipe: PipeCall | None) -> None:
        """Own the eventfd for interrupts, or the pipe behind it."""
        if self.pipe is None:
            self.replace_fd("call_fd", fd)
        else:
            self.pipe.close()
            self.call_fd = fd
        self.pipe = pipe

    def forget(self) -> None:
        """Go back to how a session begins, but for `enabled`."""
        self.replace_call(-1, None)
        for name in ("kick_fd", "err_fd"):
            self.replace_fd(name, -1)
        self.num = self.base = 0
        self.address = None
        self.started = self.away = False

    @property
    def logged(self) -> bool:
        """Are writes to the used ring to be logged?"""
        return self.address is not None and bool(self.address.flags & VringAddress.LOG)

    @property
    def ready(self) -> bool:
        """Is everything there but the memory?"""
        return bool(self.started and self.enabled and self.num and self.address)


class Rings:
    """All rings of one session.

    Args:
        device: stays the caller's; `close()` leaves it without rings.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.all = [Ring(index) for index in range(device.queues)]
        self.features = 0
        """Acknowledged; change it while all rings are paused."""
        self.memory: GuestMemory | None = None
        """Borrowed; change it while all rings are paused."""
        self.inflight: Inflight | None = None
        """Borrowed; change it while all rings are paused."""
        self.log_size = 0
        """Bytes of the dirty log; 0: none is kept."""

    def get(self, index: int) -> Ring:
        """Return ring `index`; FrontendError: there is none."""
        if index >= len(self.all):
            raise FrontendError(f"ring {index}, there are {len(self.all)}")
        return self.all[index]

    def get_stopped(self, index: int) -> Ring:
        """Return ring `index`; FrontendError: there is none, or it runs."""
        ring = self.get(index)
        if ring.running:
            raise FrontendError(f"ring {index} is running")
        return ring

    def others_run(self, ring: Ring) -> bool:
        """Does any ring but this one run?"""
        return any(other.running for other in self.all if other is not ring)

    @contextlib.contextmanager
    def paused(self, *rings: Ring) -> Iterator[None]:
        """Stop `rings` (none: all), let the caller change things, start them again.

        Only those that are ready start. After an error in between they stay stopped:
        the session is over.
        """
        rings = rings or tuple(self.all)
        for ring in rings:
            self.stop(ring)
        yield
        for ring in rings:
            self.start_if_ready(ring)

    def start_if_ready(self, ring: Ring) -> None:
        """Give a ring to the device once nothing is missing.

        Raises:
            FrontendError: the device can't use it.
        """
        if not ring.ready or self.memory is None or self._is_away(ring):
            return
        try:
            self._device.start_ring(ring.index, self._config(ring))
        except (GuestError, OSError) as error:  # OSError: a kick fd can't be polled
            raise FrontendError(f"ring {ring.index}: {error}") from error
        ring.running = True

    def _config(self, ring: Ring) -> RingConfig:
        assert ring.address is not None
        packed = bool(self.features & Feature.RING_PACKED)
        if not packed and ring.num & (ring.num - 1):  # its size came before features
            raise FrontendError(
                f"ring {ring.index} has {ring.num} entries, a split one needs a power "
                "of two"
            )
        log_used_gpa = ring.address.log if ring.logged else None
        if log_used_gpa is not None and self.log_size:
            size = 4 if packed else 6 + 8 * ring.num  # VIRTIO 1.2 sections 2.7, 2.8.14
            last = log_used_gpa + size - 1
            if last // LOG_PAGE // 8 >= self.log_size:
                raise FrontendError(
                    f"ring {ring.index}: the dirty log ends before {last:#x}"
                )
        inflight, inflight_size = (0, 0)
        if self.inflight is not None:
            if self.inflight.packed != packed:
                raise FrontendError("the in-flight log is for the other kind of rings")
            inflight, inflight_size = self.inflight.part(ring.index)
            if inflight and ring.num > self.inflight.area.queue_size:
                raise FrontendError(
                    f"ring {ring.index} has {ring.num} entries, the in-flight log "
                    f"{self.inflight.area.queue_size}"
                )
        return RingConfig(
            desc_uva=ring.address.desc,
            avail_uva=ring.address.avail,
            used_uva=ring.address.used,
            features=self.features,
            num=ring.num,
            base=self._base(ring),
            kick_fd=ring.kick_fd,
            call_fd=ring.call_fd,
            log_used_gpa=log_used_gpa,
            inflight=inflight,
            inflight_size=inflight_size,
        )

    def _base(self, ring: Ring) -> int:
        """Return where a ring starts.

        A new packed ring starts with both wrap counters at 1 (VIRTIO 1.2 section
        2.8.1), yet some front-ends say 0 for any new ring. 0 is right only where the
        driver has been round the ring, and then a USED bit is set: those of the last
        lap are, and so are those of what is available in the next one. Not always the
        first descriptor's: it may have been the end of a chain that was used as one.
        """
        assert ring.address is not None
        assert self.memory is not None
        gpa = self.memory.to_gpa(ring.address.desc)
        if not self.features & Feature.RING_PACKED or ring.base or gpa is None:
            return ring.base
        ends = self.memory.read(gpa, _DESC_SIZE * ring.num)[
            _DESC_SIZE - 1 :: _DESC_SIZE
        ]
        return _NEW_PACKED if ends.isascii() else 0  # USED is each byte's highest bit

    def note_memory_removed(self) -> None:
        """Let rings that lost their memory wait, not fail, until it is back.

        A front-end that changes its layout takes regions out and puts others in, one
        message each; between two of them a ring may lie nowhere.
        """
        for ring in self.all:
            ring.away = ring.address is not None

    def _is_away(self, ring: Ring) -> bool:
        assert ring.address is not None
        assert self.memory is not None
        parts = (ring.address.desc, ring.address.avail, ring.address.used)
        ring.away = ring.away and not all(
            self.memory.to_gpa(part) is not None for part in parts
        )
        return ring.away

    def stop(self, ring: Ring) -> None:
        """Take a ring back from the device, if it has it, and note where it stood."""
        if ring.running:
            ring.running = False
            ring.base = self._device.stop_ring(ring.index)

    def close(self) -> None:
        """Take all rings back and close their eventfds."""
        with contextlib.ExitStack() as stack:  # each step, even if one fails
            for ring in self.all:
                stack.callback(ring.forget)
            for ring in self.all:
                stack.callback(self.stop, ring)


def take_eventfd(which: VringFd, fds: list[int]) -> int:
    """Take the eventfd of a SET_VRING_KICK or ERR out of `fds`; -1: it has none.

    Raises:
        FrontendError: there is not one where one is said to be, or it is no eventfd.
    """
    if not _comes_with_fd(which, fds):
        return -1
    require(fds[0], Kind.EVENTFD, what=f"ring {which.index}: the fd")
    os.set_blocking(fds[0], False)
    return fds.pop()


def take_call(
    which: VringFd, fds: list[int], offload: Offload
) -> tuple[int, PipeCall | None]:
    """Take the descriptor of a SET_VRING_CALL: an eventfd, or a pipe's write end.

    Returns:
        the eventfd, -1 if there is none, and what passes its signals on to the pipe.

    Raises:
        FrontendError: as `take_eventfd()`.
    """
    if not _comes_with_fd(which, fds):
        return -1, None
    kind = require(fds[0], Kind.EVENTFD, Kind.PIPE, what=f"ring {which.index}: the fd")
    if kind is Kind.PIPE:
        pipe = PipeCall(fds.pop(), offload)
        return pipe.fd, pipe
    # Where the front-end leaves it so, a full counter is a pending interrupt.
    os.set_blocking(fds[0], False)
    return fds.pop(), None


def _comes_with_fd(which: VringFd, fds: list[int]) -> bool:
    if which.has_fd and not fds:
        raise FrontendError(f"ring {which.index}: no fd came with it")
    if not which.has_fd and fds:
        raise FrontendError(f"ring {which.index}: an fd came with the NOFD bit")
    return bool(fds)
