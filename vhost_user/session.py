"""One front-end's session: what each vhost-user message does; no socket here.

`Session.receive()` takes a whole message and returns the reply, calling the device on
the way. `backend.py` feeds it from a socket; tests feed it directly.

Messages are rows of `Session._TABLE`: payload codec, handler, fds allowed, the protocol
feature that makes the message legal. An extension is a row and a handler. What is not
there is refused: `requests.REFUSED` says why.

Three things end what the driver has with the device, its connections first of all:
RESET_DEVICE, status 0, and rings that start somewhere else than they stopped.

Spec: vhost-user, "Front-end message types"; `vring.py` has the ring states.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, ClassVar

from vhost_user import notify
from vhost_user.channel import BackendChannel
from vhost_user.descriptors import MemoryFiles, Offload
from vhost_user.errors import FrontendError, StateError
from vhost_user.message import (
    MAX_REGIONS,
    ConfigFlag,
    ConfigSpace,
    Feature,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Reply,
    Request,
    Status,
    VringAddress,
    VringFd,
    VringState,
    decode_mem_region,
    decode_mem_table,
    decode_nothing,
    decode_u64,
    encode,
    encode_u64,
)
from vhost_user.requests import REFUSED, NotGrantedError, RefusedError, Row
from vhost_user.sharing import Sharing
from vhost_user.vring import Ring, Rings, take_call, take_eventfd

if TYPE_CHECKING:
    from vhost_user.device import Device

log = logging.getLogger(__name__)


class Session:
    """The state between one front-end and one device.

    Args:
        device: stays the caller's; `close()` leaves it without rings and memory.
        memory_files: which files its memory may be in.
        offload: makes the calls that the front-end could make wait; stays the caller's.
    """

    def __init__(
        self,
        device: Device,
        *,
        memory_files: MemoryFiles = MemoryFiles.RAM,
        offload: Offload | None = None,
    ) -> None:
        self._device = device
        self._offload = offload or Offload()
        self._rings = Rings(device)
        self._shared = Sharing(device, self._rings, memory_files)
        self._channel: BackendChannel | None = None
        self._status = Status(0)
        self._untold = False
        """The configuration changed while the device was suspended."""
        self._closed = False
        self.acked_protocol_features = ProtocolFeature(0)

    @property
    def acked_features(self) -> int:
        """Feature bits that the front-end took, PROTOCOL_FEATURES among them."""
        return self._rings.features

    def receive(self, message: Message) -> Reply | None:
        """Handle a message; return the reply to send, or None.

        Takes over the message's file descriptors. After an error the session is
        good for nothing but `close()`.

        Raises:
            RefusedError: the same, and the front-end asked to be told.
            FrontendError: the message breaks the protocol.
            StateError: the session is closed.
        """
        if self._closed:
            raise StateError("session is closed")
        try:
            self._offload.check()
            return self._dispatch(message)
        except FrontendError as error:
            text = f"request {Request.describe(message.request)}: {error}"
            if self._wants_ack(message):
                raise RefusedError(text, _status(message, 1)) from error
            raise FrontendError(text) from error
        finally:
            message.close(self._offload.close)

    def ring_broke(self, queue: int) -> None:
        """Tell the front-end that the device gave up ring `queue`.

        Spec: `VHOST_USER_SET_VRING_ERR`; VIRTIO 1.2 section 2.1.2, NEEDS_RESET.
        """
        fd = self._rings.all[queue].err_fd
        if fd >= 0:
            try:
                notify.signal(fd)
            except OSError as error:
                log.warning(
                    "ring %d broke, its front-end can't be told: %s", queue, error
                )
        self._status |= Status.NEEDS_RESET
        if self._status & Status.DRIVER_OK:
            self.config_changed()

    def config_changed(self) -> None:
        """Tell the front-end that the configuration space or the status did.

        While all rings are stopped the device is silent: it hears of it afterwards.

        Spec: `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, "Suspended device state".
        """
        if self._channel is None or not self._acked(ProtocolFeature.CONFIG):
            return
        self._untold = not any(ring.started for ring in self._rings.all)
        if not self._untold:
            self._channel.config_changed()

    def close(self) -> None:
        """Take everything back from the device; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as stack:  # each step, even if one fails
            if self._channel is not None:
                stack.callback(self._channel.close)
            stack.callback(self._shared.close)
            stack.callback(self._device.reset)
            stack.callback(self._rings.close)

    # ---- dispatch ----

    def _dispatch(self, message: Message) -> Reply | None:
        row = self._TABLE.get(message.request)
        if row is None and (reason := REFUSED.get(message.request)):
            raise FrontendError(f"belongs to {reason}, which is not offered")
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
        except NotGrantedError:
            reply, status = None, 1
        if isinstance(reply, Reply):
            return reply
        if reply is not None:
            return Reply(encode(message.request, reply, reply=True))
        return _status(message, status) if self._wants_ack(message) else None

    def _wants_ack(self, message: Message) -> bool:
        return message.need_reply and self._acked(ProtocolFeature.REPLY_ACK)

    @property
    def _packed(self) -> bool:
        return bool(self.acked_features & Feature.RING_PACKED)

    def _acked(self, feature: ProtocolFeature) -> bool:
        return bool(self.acked_protocol_features & feature)

    # ---- features ----

    def _get_features(self, _: None, __: list[int]) -> bytes:
        return encode_u64(self._device.features | Feature.PROTOCOL_FEATURES)

    def _set_features(self, acked: int, _: list[int]) -> None:
        # int(): ~ of a flag loses the bits above its highest member
        unknown = acked & ~int(self._device.features | Feature.PROTOCOL_FEATURES)
        if unknown:
            raise FrontendError(f"features {unknown:#x} were not offered")
        with self._rings.paused():
            self._set_enabled_by_default(acked)
            self._rings.features = acked
            self._shared.apply_log()
            self._device.set_features(acked & ~Feature.PROTOCOL_FEATURES)

    def _set_enabled_by_default(self, acked: int) -> None:
        """Rings start disabled only where there is a message to enable them."""
        before = bool(self.acked_features & Feature.PROTOCOL_FEATURES)
        after = bool(acked & Feature.PROTOCOL_FEATURES)
        if before != after or not after:
            for ring in self._rings.all:
                ring.enabled = not after

    def _get_protocol_features(self, _: None, __: list[int]) -> bytes:
        return encode_u64(self._device.protocol_features)

    def _set_protocol_features(self, acked: int, _: list[int]) -> None:
        unknown = acked & ~int(self._device.protocol_features)
        if unknown:
            raise FrontendError(f"protocol features {unknown:#x} were not offered")
        self.acked_protocol_features = ProtocolFeature(acked)

    def _get_queue_num(self, _: None, __: list[int]) -> bytes:
        if not self._device.protocol_features & ProtocolFeature.MQ:
            raise FrontendError("protocol feature MQ was not offered")
        return encode_u64(self._device.queues)

    # ---- owner, status, reset ----

    def _set_owner(self, _: None, __: list[int]) -> None:
        """The connection itself is the owner: nothing to do."""

    def _reset_owner(self, _: None, __: list[int]) -> None:
        """Disable all rings, the one reading of it that does no harm."""
        with self._rings.paused():
            for ring in self._rings.all:
                ring.enabled = False

    def _reset_device(self, _: None, __: list[int]) -> None:
        """Go back to where the driver finds a new device; the front-end stays.

        Its memory, its channel and what was negotiated about the protocol stay too:
        they are the connection's, not the device's.
        """
        kept = self.acked_features & Feature.PROTOCOL_FEATURES
        with self._rings.paused():
            for ring in self._rings.all:
                ring.forget()
                ring.enabled = not kept
            self._shared.drop_inflight()
            self._rings.features = kept
            self._shared.apply_log()
            self._device.set_features(0)
            self._device.reset()
        self._status = Status(0)

    def _get_status(self, _: None, __: list[int]) -> bytes:
        return encode_u64(self._status)

    def _set_status(self, value: int, _: list[int]) -> None:
        """Note the driver's status; 0 is a reset.

        Not where each ring was stopped with GET_VRING_BASE before: QEMU says 0 also
        when it only pauses a machine, and goes on from those bases. Rings that start
        somewhere else than they stopped are the reset then (`_set_vring_base`).
        """
        if value > 0xFF:
            raise FrontendError(f"device status {value:#x} has more than 8 bits")
        if value:
            self._status = Status(value) | self._status & Status.NEEDS_RESET
        elif any(ring.started for ring in self._rings.all):
            self._reset_device(None, [])
        else:
            self._status = Status(0)

    # ---- memory and logs ----

    def _get_max_mem_slots(self, _: None, __: list[int]) -> bytes:
        return encode_u64(MAX_REGIONS)

    def _set_mem_table(self, table: list[MemoryRegion], fds: list[int]) -> None:
        self._shared.set_table(table, fds)

    def _add_mem_reg(self, region: MemoryRegion, fds: list[int]) -> None:
        self._shared.add_region(region, fds)

    def _rem_mem_reg(self, region: MemoryRegion, _: list[int]) -> None:
        self._shared.remove_region(region)

    def _set_log_base(self, where: LogArea, fds: list[int]) -> bytes:
        return self._shared.set_log(where, fds)

    def _set_log_fd(self, _: None, fds: list[int]) -> None:
        self._shared.set_log_fd(fds)

    def _get_inflight_fd(self, asked: InflightArea, _: list[int]) -> Reply:
        return self._shared.get_inflight(asked)

    def _set_inflight_fd(self, area: InflightArea, fds: list[int]) -> None:
        self._shared.set_inflight(area, fds)

    # ---- rings ----

    def _set_vring_num(self, state: VringState, _: list[int]) -> None:
        ring = self._rings.get_stopped(state.index)
        limit = self._device.queue_size
        uneven = 0 if self._packed else state.num & (state.num - 1)
        if not 0 < state.num <= limit or uneven:
            need = "" if self._packed else "a power of two "
            raise FrontendError(
                f"ring of {state.num} entries, need {need}up to {limit}"
            )
        ring.num = state.num
        self._rings.start_if_ready(ring)

    def _set_vring_addr(self, address: VringAddress, _: list[int]) -> None:
        ring = self._rings.get(address.index)
        avail_align = 4 if self._packed else 2
        if address.desc % 16 or address.avail % avail_align or address.used % 4:
            raise FrontendError(
                f"ring {ring.index} is not aligned: desc {address.desc:#x}, "
                f"avail {address.avail:#x}, used {address.used:#x}"
            )
        was_logged = ring.logged
        with self._rings.paused(ring):
            ring.address = address
        if ring.logged != was_logged:
            with self._rings.paused():
                self._shared.apply_log()

    def _set_vring_base(self, state: VringState, _: list[int]) -> None:
        ring = self._rings.get_stopped(state.index)
        if state.num > 0xFFFF and not self._packed:
            raise FrontendError(f"ring base {state.num:#x} has more than 16 bits")
        if state.num != ring.base and not self._resets_one_ring(ring):
            # A driver that goes on takes the base that it was given. This one starts
            # over (its machine was reset), and knows none of the old one's connections.
            self._device.reset()
        ring.base = state.num
        self._rings.start_if_ready(ring)

    def _resets_one_ring(self, ring: Ring) -> bool:
        """Does this ring start over by itself (VIRTIO 1.2 section 2.6.1)?"""
        negotiated = bool(self.acked_features & Feature.RING_RESET)
        return negotiated and self._rings.others_run(ring)

    def _get_vring_base(self, state: VringState, _: list[int]) -> bytes:
        ring = self._rings.get(state.index)
        self._rings.stop(ring)
        ring.started = False
        ring.replace_fd("kick_fd", -1)
        self._shared.ring_stopped()
        return VringState(ring.index, ring.base).encode()

    def _set_vring_kick(self, which: VringFd, fds: list[int]) -> None:
        ring = self._rings.get(which.index)
        fd = take_eventfd(which, fds)
        with self._rings.paused(ring):
            ring.replace_fd("kick_fd", fd)
            ring.started = True
        if self._untold:
            self.config_changed()

    def _set_vring_call(self, which: VringFd, fds: list[int]) -> None:
        ring = self._rings.get(which.index)
        fd, pipe = take_call(which, fds, self._offload)
        if ring.running:  # interrupts are masked and unmasked often: no restart
            self._device.set_call(ring.index, fd)
        ring.replace_call(fd, pipe)

    def _set_vring_err(self, which: VringFd, fds: list[int]) -> None:
        self._rings.get(which.index).replace_fd("err_fd", take_eventfd(which, fds))

    def _set_vring_enable(self, state: VringState, _: list[int]) -> None:
        if not self.acked_features & Feature.PROTOCOL_FEATURES:
            raise FrontendError("feature PROTOCOL_FEATURES was not negotiated")
        if state.num not in (0, 1):
            raise FrontendError(f"enable is {state.num}, need 0 or 1")
        ring = self._rings.get(state.index)
        with self._rings.paused(ring):
            ring.enabled = bool(state.num)

    # ---- the back-end's channel ----

    def _set_backend_req_fd(self, _: None, fds: list[int]) -> None:
        if len(fds) != 1:
            raise FrontendError(f"{len(fds)} fds for a channel")
        need_reply = self._acked(ProtocolFeature.REPLY_ACK)
        channel = BackendChannel(fds[0], need_reply=need_reply, offload=self._offload)
        fds.clear()
        old, self._channel = self._channel, channel
        if old is not None:
            old.close()

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
            raise NotGrantedError

    # ---- the messages ----

    _TABLE: ClassVar[dict[int, Row[Session, Any]]] = {
        Request.GET_FEATURES: Row(decode_nothing, _get_features),
        Request.SET_FEATURES: Row(decode_u64, _set_features),
        Request.SET_OWNER: Row(decode_nothing, _set_owner),
        Request.RESET_OWNER: Row(decode_nothing, _reset_owner),
        Request.SET_MEM_TABLE: Row(decode_mem_table, _set_mem_table, fds=MAX_REGIONS),
        Request.RESET_DEVICE: Row(
            decode_nothing, _reset_device, needs=ProtocolFeature.RESET_DEVICE
        ),
        Request.GET_STATUS: Row(
            decode_nothing, _get_status, needs=ProtocolFeature.STATUS
        ),
        Request.SET_STATUS: Row(decode_u64, _set_status, needs=ProtocolFeature.STATUS),
        Request.GET_MAX_MEM_SLOTS: Row(
            decode_nothing,
            _get_max_mem_slots,
            needs=ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ),
        Request.ADD_MEM_REG: Row(
            decode_mem_region,
            _add_mem_reg,
            fds=1,
            needs=ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ),
        Request.REM_MEM_REG: Row(  # some front-ends send the fd again
            decode_mem_region,
            _rem_mem_reg,
            fds=1,
            needs=ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ),
        Request.SET_BACKEND_REQ_FD: Row(
            decode_nothing,
            _set_backend_req_fd,
            fds=1,
            needs=ProtocolFeature.BACKEND_REQ,
        ),
        Request.SET_LOG_BASE: Row(
            LogArea.decode, _set_log_base, fds=1, needs=ProtocolFeature.LOG_SHMFD
        ),
        Request.SET_LOG_FD: Row(decode_nothing, _set_log_fd, fds=1),
        Request.GET_INFLIGHT_FD: Row(
            InflightArea.decode, _get_inflight_fd, needs=ProtocolFeature.INFLIGHT_SHMFD
        ),
        Request.SET_INFLIGHT_FD: Row(
            InflightArea.decode,
            _set_inflight_fd,
            fds=1,
            needs=ProtocolFeature.INFLIGHT_SHMFD,
        ),
        Request.SET_VRING_NUM: Row(VringState.decode, _set_vring_num),
        Request.SET_VRING_ADDR: Row(VringAddress.decode, _set_vring_addr),
        Request.SET_VRING_BASE: Row(VringState.decode, _set_vring_base),
        Request.GET_VRING_BASE: Row(VringState.decode, _get_vring_base),
        Request.SET_VRING_KICK: Row(VringFd.decode, _set_vring_kick, fds=1),
        Request.SET_VRING_CALL: Row(VringFd.decode, _set_vring_call, fds=1),
        Request.SET_VRING_ERR: Row(VringFd.decode, _set_vring_err, fds=1),
        Request.GET_PROTOCOL_FEATURES: Row(decode_nothing, _get_protocol_features),
        Request.SET_PROTOCOL_FEATURES: Row(decode_u64, _set_protocol_features),
        Request.GET_QUEUE_NUM: Row(decode_nothing, _get_queue_num),
        Request.SET_VRING_ENABLE: Row(VringState.decode, _set_vring_enable),
        Request.GET_CONFIG: Row(
            ConfigSpace.decode, _get_config, needs=ProtocolFeature.CONFIG
        ),
        Request.SET_CONFIG: Row(
            ConfigSpace.decode, _set_config, needs=ProtocolFeature.CONFIG
        ),
    }


def _status(message: Message, status: int) -> Reply:
    """Return the answer to a message that has no reply of its own (REPLY_ACK)."""
    return Reply(encode(message.request, encode_u64(status), reply=True))
