"""One front-end's session: what each vhost-user message does; no socket here.

`Session.receive()` takes a whole message and returns the reply's bytes, calling the
device on the way. `backend.py` feeds it from a socket; tests feed it directly.

A ring runs in the device exactly while everything it needs is there: size,
addresses, a kick, memory, and the enabled state. Each message that changes one of
these stops the ring, changes it and starts the ring again where it stood
(`_paused`), so a change on the fly and a first set-up are one path.

Messages are rows of `Session._TABLE`: payload codec, handler, fds allowed, the protocol
feature that makes the message legal. An extension is a row and a handler.

Spec: vhost-user, "Front-end message types" and "Ring states".
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from vhost_user.engine import RingConfig
from vhost_user.errors import FrontendError, GuestError, StateError
from vhost_user.memory import GuestMemory, Region
from vhost_user.message import (
    MAX_REGIONS,
    ConfigFlag,
    ConfigSpace,
    Feature,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    VringAddress,
    VringFd,
    VringState,
    decode_mem_table,
    decode_nothing,
    decode_u64,
    encode,
    encode_u64,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.device import Device


@dataclass(slots=True)
class _Ring:
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
    kick_fd: int = -1
    call_fd: int = -1
    err_fd: int = -1

    def replace_fd(self, name: str, fd: int) -> None:
        """Own `fd` (-1: none) as `name` and close the one that was there."""
        old = getattr(self, name)
        setattr(self, name, fd)
        if old >= 0:
            os.close(old)

    def close(self) -> None:
        for name in ("kick_fd", "call_fd", "err_fd"):
            self.replace_fd(name, -1)


class _RefusedError(Exception):
    """The request is legal but not granted: a non-zero REPLY_ACK, no more."""


P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class _Row(Generic[P]):
    """How one message is handled; see `Session._TABLE`."""

    decode: Callable[[bytes], P]
    handle: Callable[[Session, P, list[int]], bytes | None]
    """Returns the reply's payload; None: the message has no reply of its own."""
    fds: int = 0
    """Most fds the message may carry."""
    needs: ProtocolFeature = field(default_factory=lambda: ProtocolFeature(0))
    """Must have been acknowledged before."""


class Session:
    """The state between one front-end and one device.

    Args:
        device: stays the caller's; `close()` leaves it without rings and memory.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._rings = [_Ring(index) for index in range(device.queues)]
        self._memory: GuestMemory | None = None
        self._closed = False
        self.acked_features = 0
        self.acked_protocol_features = ProtocolFeature(0)

    def receive(self, message: Message) -> bytes | None:
        """Handle a message; return the reply to send, header included, or None.

        Takes over the message's file descriptors. After an error the session is
        good for nothing but `close()`.

        Raises:
            FrontendError: the message breaks the protocol.
            StateError: the session is closed.
        """
        if self._closed:
            raise StateError("session is closed")
        try:
            return self._dispatch(message)
        except FrontendError as error:
            name = Request.describe(message.request)
            raise FrontendError(f"request {name}: {error}") from error
        finally:
            message.close()

    def ring_broke(self, queue: int) -> None:
        """Tell the front-end that the device gave up ring `queue`.

        Spec: `VHOST_USER_SET_VRING_ERR`.
        """
        fd = self._rings[queue].err_fd
        if fd >= 0:
            # An eventfd at its limit has been signalled already.
            with contextlib.suppress(OSError):
                os.eventfd_write(fd, 1)

    def close(self) -> None:
        """Take everything back from the device; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as stack:  # each step, even if one fails
            for ring in self._rings:
                stack.callback(ring.close)
            if self._memory is not None:
                stack.callback(self._memory.close)
            stack.callback(self._device.set_memory, None)
            stack.callback(self._device.reset)
            for ring in self._rings:
                stack.callback(self._stop, ring)

    # ---- dispatch ----

    def _dispatch(self, message: Message) -> bytes | None:
        row = self._TABLE.get(message.request)
        if row is None:
            raise FrontendError("not known here")
        missing = row.needs & ~self.acked_protocol_features
        if missing:
            raise FrontendError(f"protocol feature {missing.name} was not negotiated")
        if len(message.fds) > row.fds:
            raise FrontendError(f"{len(message.fds)} fds, at most {row.fds}")
        status = 0
        try:
            reply = row.handle(self, row.decode(message.payload), message.fds)
        except _RefusedError:
            reply, status = None, 1
        if reply is not None:
            return encode(message.request, reply, reply=True)
        if message.need_reply and self._acked(ProtocolFeature.REPLY_ACK):
            return encode(message.request, encode_u64(status), reply=True)
        return None

    def _acked(self, feature: ProtocolFeature) -> bool:
        return bool(self.acked_protocol_features & feature)

    # ---- features ----

    def _get_features(self, _: None, __: list[int]) -> bytes:
        return encode_u64(self._device.features | Feature.PROTOCOL_FEATURES)

    def _set_features(self, acked: int, _: list[int]) -> None:
        unknown = acked & ~(self._device.features | Feature.PROTOCOL_FEATURES)
        if unknown:
            raise FrontendError(f"features {unknown:#x} were not offered")
        with self._paused(*self._rings):
            self._set_enabled_by_default(acked)
            self.acked_features = acked
            self._device.set_features(acked & ~Feature.PROTOCOL_FEATURES)

    def _set_enabled_by_default(self, acked: int) -> None:
        """Rings start disabled only where there is a message to enable them."""
        before = bool(self.acked_features & Feature.PROTOCOL_FEATURES)
        after = bool(acked & Feature.PROTOCOL_FEATURES)
        if before != after:
            for ring in self._rings:
                ring.enabled = not after

    def _get_protocol_features(self, _: None, __: list[int]) -> bytes:
        return encode_u64(self._device.protocol_features)

    def _set_protocol_features(self, acked: int, _: list[int]) -> None:
        unknown = acked & ~self._device.protocol_features
        if unknown:
            raise FrontendError(f"protocol features {unknown:#x} were not offered")
        self.acked_protocol_features = ProtocolFeature(acked)

    def _get_queue_num(self, _: None, __: list[int]) -> bytes:
        if not self._device.protocol_features & ProtocolFeature.MQ:
            raise FrontendError("protocol feature MQ was not offered")
        return encode_u64(self._device.queues)

    # ---- owner ----

    def _set_owner(self, _: None, __: list[int]) -> None:
        """The connection itself is the owner: nothing to do."""

    def _reset_owner(self, _: None, __: list[int]) -> None:
        """Disable all rings, the one reading of it that does no harm."""
        for ring in self._rings:
            with self._paused(ring):
                ring.enabled = False

    # ---- memory ----

    def _set_mem_table(self, table: list[MemoryRegion], fds: list[int]) -> None:
        if len(fds) != len(table):
            raise FrontendError(f"{len(fds)} fds for {len(table)} regions")
        memory = _map(table, fds)
        with self._paused(*self._rings):
            old, self._memory = self._memory, memory
            self._device.set_memory(memory)
            if old is not None:
                old.close()

    # ---- rings ----

    def _set_vring_num(self, state: VringState, _: list[int]) -> None:
        ring = self._stopped_ring(state.index)
        limit = self._device.queue_size
        if not 0 < state.num <= limit or state.num & (state.num - 1):
            raise FrontendError(
                f"ring of {state.num} entries, need a power of two up to {limit}"
            )
        ring.num = state.num
        self._start_if_ready(ring)

    def _set_vring_addr(self, address: VringAddress, _: list[int]) -> None:
        ring = self._ring(address.index)
        if address.desc % 16 or address.avail % 2 or address.used % 4:
            raise FrontendError(
                f"ring {ring.index} is not aligned: desc {address.desc:#x}, "
                f"avail {address.avail:#x}, used {address.used:#x}"
            )
        with self._paused(ring):
            ring.address = address

    def _set_vring_base(self, state: VringState, _: list[int]) -> None:
        ring = self._stopped_ring(state.index)
        if state.num > 0xFFFF:
            raise FrontendError(f"ring base {state.num:#x} has more than 16 bits")
        if state.num != ring.base:
            # A driver that goes on takes the base that it was given. This one
            # starts over (its machine was reset), and knows none of the old
            # one's connections.
            self._device.reset()
        ring.base = state.num
        self._start_if_ready(ring)

    def _get_vring_base(self, state: VringState, _: list[int]) -> bytes:
        ring = self._ring(state.index)
        self._stop(ring)
        ring.started = False
        ring.replace_fd("kick_fd", -1)
        return VringState(ring.index, ring.base).encode()

    def _set_vring_kick(self, which: VringFd, fds: list[int]) -> None:
        ring = self._ring(which.index)
        fd = _take_fd(which, fds)
        with self._paused(ring):
            ring.replace_fd("kick_fd", fd)
            ring.started = True

    def _set_vring_call(self, which: VringFd, fds: list[int]) -> None:
        ring = self._ring(which.index)
        fd = _take_fd(which, fds)
        if ring.running:  # interrupts are masked and unmasked often: no restart
            self._device.set_call(ring.index, fd)
        ring.replace_fd("call_fd", fd)

    def _set_vring_err(self, which: VringFd, fds: list[int]) -> None:
        self._ring(which.index).replace_fd("err_fd", _take_fd(which, fds))

    def _set_vring_enable(self, state: VringState, _: list[int]) -> None:
        if not self.acked_features & Feature.PROTOCOL_FEATURES:
            raise FrontendError("feature PROTOCOL_FEATURES was not negotiated")
        if state.num not in (0, 1):
            raise FrontendError(f"enable is {state.num}, need 0 or 1")
        with self._paused(self._ring(state.index)) as (ring,):
            ring.enabled = bool(state.num)

    def _ring(self, index: int) -> _Ring:
        if index >= len(self._rings):
            raise FrontendError(f"ring {index}, there are {len(self._rings)}")
        return self._rings[index]

    def _stopped_ring(self, index: int) -> _Ring:
        ring = self._ring(index)
        if ring.running:
            raise FrontendError(f"ring {index} is running")
        return ring

    @contextlib.contextmanager
    def _paused(self, *rings: _Ring) -> Iterator[tuple[_Ring, ...]]:
        """Stop `rings`, let the caller change things, start those that are ready.

        After an error in between they stay stopped: the session is over.
        """
        for ring in rings:
            self._stop(ring)
        yield rings
        for ring in rings:
            self._start_if_ready(ring)

    def _start_if_ready(self, ring: _Ring) -> None:
        if not (ring.started and ring.enabled and ring.num and ring.address):
            return
        if self._memory is None:
            return
        config = RingConfig(
            desc_uva=ring.address.desc,
            avail_uva=ring.address.avail,
            used_uva=ring.address.used,
            features=self.acked_features,
            num=ring.num,
            base=ring.base,
            kick_fd=ring.kick_fd,
            call_fd=ring.call_fd,
        )
        try:
            self._device.start_ring(ring.index, config)
        except (GuestError, OSError) as error:  # OSError: a kick fd can't be polled
            raise FrontendError(f"ring {ring.index}: {error}") from error
        ring.running = True

    def _stop(self, ring: _Ring) -> None:
        if ring.running:
            ring.running = False
            ring.base = self._device.stop_ring(ring.index)

    # ---- configuration space ----

    def _get_config(self, space: ConfigSpace, _: list[int]) -> bytes:
        """Return the part asked for; an empty payload says that it isn't there."""
        config = self._device.config()
        end = space.offset + len(space.data)
        if end > len(config):
            return b""
        return ConfigSpace(
            space.offset, config[space.offset : end], space.flags
        ).encode()

    def _set_config(self, space: ConfigSpace, _: list[int]) -> None:
        """Refuse what the driver writes; take what a migration only repeats.

        No device here has a writable field yet, and the specification forbids to
        accept a write to a read-only one.
        """
        config = self._device.config()
        end = space.offset + len(space.data)
        same = config[space.offset : end] == space.data
        if space.flags != ConfigFlag.MIGRATION or not same:
            raise _RefusedError

    # ---- the messages ----

    _TABLE: ClassVar[dict[int, _Row[Any]]] = {
        Request.GET_FEATURES: _Row(decode_nothing, _get_features),
        Request.SET_FEATURES: _Row(decode_u64, _set_features),
        Request.SET_OWNER: _Row(decode_nothing, _set_owner),
        Request.RESET_OWNER: _Row(decode_nothing, _reset_owner),
        Request.SET_MEM_TABLE: _Row(decode_mem_table, _set_mem_table, fds=MAX_REGIONS),
        Request.SET_VRING_NUM: _Row(VringState.decode, _set_vring_num),
        Request.SET_VRING_ADDR: _Row(VringAddress.decode, _set_vring_addr),
        Request.SET_VRING_BASE: _Row(VringState.decode, _set_vring_base),
        Request.GET_VRING_BASE: _Row(VringState.decode, _get_vring_base),
        Request.SET_VRING_KICK: _Row(VringFd.decode, _set_vring_kick, fds=1),
        Request.SET_VRING_CALL: _Row(VringFd.decode, _set_vring_call, fds=1),
        Request.SET_VRING_ERR: _Row(VringFd.decode, _set_vring_err, fds=1),
        Request.GET_PROTOCOL_FEATURES: _Row(decode_nothing, _get_protocol_features),
        Request.SET_PROTOCOL_FEATURES: _Row(decode_u64, _set_protocol_features),
        Request.GET_QUEUE_NUM: _Row(decode_nothing, _get_queue_num),
        Request.SET_VRING_ENABLE: _Row(VringState.decode, _set_vring_enable),
        Request.GET_CONFIG: _Row(
            ConfigSpace.decode, _get_config, needs=ProtocolFeature.CONFIG
        ),
        Request.SET_CONFIG: _Row(
            ConfigSpace.decode, _set_config, needs=ProtocolFeature.CONFIG
        ),
    }


def _map(table: list[MemoryRegion], fds: list[int]) -> GuestMemory:
    try:
        return GuestMemory(
            [
                Region(gpa=r.gpa, uva=r.uva, size=r.size, fd=fd, offset=r.offset)
                for r, fd in zip(table, fds, strict=True)
            ]
        )
    except (GuestError, OSError, OverflowError, StateError, ValueError) as error:
        # mmap() refuses a bad size, offset or fd in as many ways as it has checks.
        raise FrontendError(f"memory can't be mapped: {error}") from error


def _take_fd(which: VringFd, fds: list[int]) -> int:
    """Return the eventfd of a SET_VRING_KICK, CALL or ERR, or -1 if it has none.

    It never blocks from now on: one engine thread serves many VMs, and a front-end
    could fill the counter to make a write wait.
    """
    if which.has_fd and not fds:
        raise FrontendError(f"ring {which.index}: no fd came with it")
    if not which.has_fd and fds:
        raise FrontendError(f"ring {which.index}: an fd came with the NOFD bit")
    if not fds:
        return -1
    os.set_blocking(fds[0], False)
    return fds.pop()
