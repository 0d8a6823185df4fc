"""A vhost-user front-end: the VMM's side of the protocol, without a VM.

With `driver.Virtqueue` it plays VMM and guest at once in user space:

    with Ram() as ram, Frontend(path) as vmm:
        features = vmm.negotiate()
        vmm.set_memory(ram)
        queue = Virtqueue(ram, features=features)
        vmm.start(0, queue)

Blocking, with a time limit on each answer. `send()` takes any bytes and any file
descriptors: the hostile front-end is a caller of this class, not a part of it.

Spec: vhost-user, "Communication" and "Front-end message types".
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vhost_user.closing import Closing
from vhost_user.descriptors import receive
from vhost_user.driver import TIMEOUT_S
from vhost_user.errors import StateError
from vhost_user.message import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER_SIZE,
    LOG_PAGE,
    MAX_REGIONS,
    BackendRequest,
    ConfigSpace,
    Feature,
    InflightArea,
    LogArea,
    ProtocolFeature,
    Request,
    Status,
    VringAddress,
    VringFd,
    VringState,
    decode_reply,
    decode_u64,
    encode,
    encode_mem_region,
    encode_mem_table,
    encode_u64,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vhost_user.driver import DriverQueue, Ram

ALL_FEATURES: Final = (
    Feature.VERSION_1
    | Feature.EVENT_IDX
    | Feature.INDIRECT_DESC
    | Feature.RING_RESET
    | Feature.PROTOCOL_FEATURES
)
ALL_PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.CONFIG
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)


@dataclass(frozen=True, slots=True)
class Inflight:
    """An in-flight log that a back-end made; the caller closes its file."""

    area: InflightArea
    fd: int


@dataclass(slots=True)
class _Answer:
    """A reply's payload, and the file descriptors that came along."""

    payload: bytes
    fds: list[int] = field(default_factory=list)


class Frontend(Closing):
    """Connects to a back-end's socket and speaks for a VMM.

    Args:
        path: the back-end's socket.
        timeout_s: how long each answer may take.

    Raises:
        OSError: it can't be connected to.
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self.features = 0
        self.protocol_features = ProtocolFeature(0)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout_s)
        try:
            self._sock.connect(os.fspath(path))
        except OSError:
            self._sock.close()
            raise

    # ---- messages ----

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes, with file descriptors that stay the caller's."""
        socket.send_fds(self._sock, [data], fds)

    def hung_up(self) -> bool:
        """Wait for the back-end to hang up; False: it said something instead.

        Raises:
            TimeoutError: neither.
        """
        try:
            return not self._sock.recv(1)
        except ConnectionResetError:  # it left something unread
            return True

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        """Send a message that has a reply; return the reply's payload.

        Raises:
            ConnectionError: the back-end hung up.
            StateError: it answers something else.
        """
        self.send(encode(request, payload))
        return self._reply(request).payload

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that has no reply; wait for its ack if there are any.

        Raises:
            ConnectionError: the back-end hung up.
            StateError: it did not take the message.
        """
        need_reply = bool(self.protocol_features & ProtocolFeature.REPLY_ACK)
        self.send(encode(request, payload, need_reply=need_reply), fds)
        if need_reply and (status := decode_u64(self._reply(request).payload)):
            name = Request.describe(request)
            raise StateError(f"request {name}: back-end refuses, {status}")

    def _reply(self, request: int) -> _Answer:
        answer = _Answer(b"")
        number, flags, size = decode_reply(_read(self._sock, HEADER_SIZE, answer.fds))
        answer.payload = _read(self._sock, size, answer.fds)
        if number != request or not flags & FLAG_REPLY:
            raise StateError(f"asked {request}, got {number} with flags {flags:#x}")
        return answer

    # ---- set-up ----

    def negotiate(
        self,
        features: int = ALL_FEATURES,
        protocol_features: ProtocolFeature = ALL_PROTOCOL_FEATURES,
    ) -> int:
        """Take what is offered of these; return the features taken.

        Without `Feature.PROTOCOL_FEATURES` among them it is a front-end that knows
        no extension at all.
        """
        features &= decode_u64(self.ask(Request.GET_FEATURES))
        if features & Feature.PROTOCOL_FEATURES:
            offered = decode_u64(self.ask(Request.GET_PROTOCOL_FEATURES))
            taken = ProtocolFeature(protocol_features & offered)
            self.tell(Request.SET_PROTOCOL_FEATURES, encode_u64(taken))
            self.protocol_features = taken
        self.tell(Request.SET_OWNER)
        self.tell(Request.SET_FEATURES, encode_u64(features))
        self.features = features
        return features

    def renegotiate(self, more: int = 0) -> None:
        """Take the same features again, and `more`, with rings running or not."""
        self.tell(Request.SET_FEATURES, encode_u64(self.features | more))

    def set_memory(self, *rams: Ram) -> None:
        """Send the memory table."""
        table = encode_mem_table([ram.region for ram in rams])
        self.tell(Request.SET_MEM_TABLE, table, [ram.fd for ram in rams])

    def max_mem_slots(self) -> int:
        """Return how many regions the back-end takes."""
        return decode_u64(self.ask(Request.GET_MAX_MEM_SLOTS))

    def add_memory(self, ram: Ram) -> None:
        """Add one region; rings may run."""
        self.tell(Request.ADD_MEM_REG, encode_mem_region(ram.region), [ram.fd])

    def remove_memory(self, ram: Ram) -> None:
        """Take one region out; rings may run."""
        self.tell(Request.REM_MEM_REG, encode_mem_region(ram.region))

    def reset_device(self) -> None:
        """Ask the back-end to reset the device."""
        self.tell(Request.RESET_DEVICE)

    @property
    def status(self) -> Status:
        """The device status."""
        return Status(decode_u64(self.ask(Request.GET_STATUS)))

    @status.setter
    def status(self, value: int) -> None:
        self.tell(Request.SET_STATUS, encode_u64(value))

    def set_log(self, log: DirtyLog) -> None:
        """Have the device mark what it writes in `log`, and in no other from now on.

        It does once a ring logs, or `renegotiate(Feature.LOG_ALL)` says so.
        """
        payload = LogArea(log.size, log.offset).encode()
        self.send(encode(Request.SET_LOG_BASE, payload), [log.fd])
        self._reply(Request.SET_LOG_BASE)

    def get_inflight(self, queues: int, queue_size: int) -> Inflight:
        """Have the back-end make an in-flight log; it uses it from now on."""
        asked = InflightArea(queues=queues, queue_size=queue_size)
        self.send(encode(Request.GET_INFLIGHT_FD, asked.encode()))
        answer = self._reply(Request.GET_INFLIGHT_FD)
        (fd,) = answer.fds
        return Inflight(InflightArea.decode(answer.payload), fd)

    def set_inflight(self, inflight: Inflight) -> None:
        """Give the back-end the in-flight log of the one that was there before."""
        payload = inflight.area.encode()
        self.tell(Request.SET_INFLIGHT_FD, payload, [inflight.fd])

    def open_channel(self) -> Channel:
        """Give the back-end a channel for its own requests; return our end of it."""
        ours, theirs = socket.socketpair()
        ours.settimeout(self._sock.gettimeout())
        with theirs:
            self.tell(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        return Channel(ours)

    def config(self, size: int = 8, offset: int = 0) -> bytes:
        """Read from the configuration space; b"": the back-end says no."""
        asked = ConfigSpace(offset, bytes(size)).encode()
        reply = self.ask(Request.GET_CONFIG, asked)
        return ConfigSpace.decode(reply).data if reply else b""

    def queue_num(self) -> int:
        """Return how many rings the back-end has."""
        return decode_u64(self.ask(Request.GET_QUEUE_NUM))

    # ---- rings ----

    def start(self, index: int, queue: DriverQueue, *, base: int | None = None) -> None:
        """Describe ring `index` and start it at `base`; None: where the queue is."""
        base = queue.base if base is None else base
        self.tell(Request.SET_VRING_NUM, VringState(index, queue.num).encode())
        self.tell(Request.SET_VRING_BASE, VringState(index, base).encode())
        self.set_address(index, queue)
        self.set_fd(Request.SET_VRING_CALL, index, queue.call_fd)
        self.set_fd(Request.SET_VRING_KICK, index, queue.kick_fd)
        if self.features & Feature.PROTOCOL_FEATURES:
            self.enable(index)

    def set_address(
        self, index: int, queue: DriverQueue, *, log_gpa: int | None = None
    ) -> None:
        """Say where ring `index` is; it may run.

        Args:
            index: ring.
            queue: the ring's other side.
            log_gpa: have writes to the used ring logged as if it were there.
        """
        ram = queue.ram
        address = VringAddress(
            index=index,
            flags=0 if log_gpa is None else VringAddress.LOG,
            desc=ram.to_uva(queue.desc),
            avail=ram.to_uva(queue.avail),
            used=ram.to_uva(queue.used),
            log=log_gpa or 0,
        )
        self.tell(Request.SET_VRING_ADDR, address.encode())

    def stop(self, index: int) -> int:
        """Stop ring `index` and return the base to go on from."""
        asked = VringState(index, 0).encode()
        return VringState.decode(self.ask(Request.GET_VRING_BASE, asked)).num

    def enable(self, index: int, *, on: bool = True) -> None:
        """Enable or disable ring `index`."""
        self.tell(Request.SET_VRING_ENABLE, VringState(index, on).encode())

    def set_fd(self, request: int, index: int, fd: int | None) -> None:
        """Send the kick, call or error eventfd of ring `index`; None: NOFD."""
        payload = VringFd(index, fd is not None).encode()
        self.tell(request, payload, [] if fd is None else [fd])

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


class DirtyLog(Closing):
    """A dirty log in a memfd, for guest addresses below `end`.

    Spec: vhost-user, "Migration".
    """

    def __init__(self, end: int) -> None:
        self.size = -(-end // LOG_PAGE // 8)
        self.offset = LOG_PAGE + 64  # anywhere in its file
        self.fd = os.memfd_create("vhost-log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.offset + self.size)

    def pages(self) -> set[int]:
        """Return the numbers of the pages that are marked."""
        bits = os.pread(self.fd, self.size, self.offset)
        return {
            8 * i + bit
            for i, byte in enumerate(bits)
            if byte
            for bit in range(8)
            if byte >> bit & 1
        }

    def close(self) -> None:
        """Close its file; the device's mapping stays."""
        os.close(self.fd)


class Channel(Closing):
    """The front-end's end of the channel on which the back-end asks.

    Spec: vhost-user, "Back-end communication".
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def receive(self) -> tuple[int, bool]:
        """Return the next request, without payload, and whether it wants a reply.

        Raises:
            ConnectionError: the back-end closed the channel.
            TimeoutError: there is none.
        """
        number, flags, size = decode_reply(_read(self._sock, HEADER_SIZE, []))
        if size:
            raise StateError(f"back-end request {number} with {size} bytes of payload")
        return number, bool(flags & FLAG_NEED_REPLY)

    def reply(self, request: int, status: int = 0) -> None:
        """Answer a request."""
        self.send(encode(request, encode_u64(status), reply=True))

    def expect_config_change(self) -> None:
        """Take the request CONFIG_CHANGE_MSG and answer it if that is wanted."""
        request, need_reply = self.receive()
        if request != BackendRequest.CONFIG_CHANGE_MSG:
            raise StateError(f"back-end request {request}, not CONFIG_CHANGE_MSG")
        if need_reply:
            self.reply(request)

    def send(self, data: bytes) -> None:
        """Send any bytes."""
        self._sock.sendall(data)

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


def _read(sock: socket.socket, size: int, fds: list[int]) -> bytes:
    """Read exactly `size` bytes; append the file descriptors that come along."""
    data = b""
    while len(data) < size:
        got = receive(sock, size - len(data), MAX_REGIONS)
        fds += got.fds
        if not got.data:
            raise ConnectionResetError("back-end hung up")
        data += got.data
    return data
