"""The engine thread, its devices, listeners and connections, seen from asyncio.

Python decides, C moves bytes: this module turns events of the C engine into calls of
handlers in the event loop, and answers into C calls. No payload passes here.

Every method may be called on the event loop's thread at any time, `stats()` on any: it
stops the engine between two of its turns, for some microseconds.

REQUEST, FAILED and BROKEN events come at once. OPENED and CLOSED only tell of
something: they may come some milliseconds late, together, so that no guest waits for
Python's wake-up.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import ipaddress
import logging
import os
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from vhost_user._native import check, ffi, lib
from vhost_user.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cffi import FFI

    from vhost_user._vu import CStruct
    from vhost_user.memory import GuestMemory

logger = logging.getLogger(__name__)

SocketAddress = tuple[str, int]
"""IP address (v4 or v6, no scope) and port."""

_EVENTS_A_READ: Final = 256
_PORT_ANY: Final = 0xFFFFFFFF  # VU_PORT_ANY
_NOT_LOGGED: Final = 0xFFFF_FFFF_FFFF_FFFF  # UINT64_MAX

ALL_QUEUES: Final = 0xFFFFFFFF
"""`Event.port` of a BROKEN event about the whole device; `Event.error` says if its
memory is gone or interrupts block."""

DEFAULT_MAX_CONNS: Final = 65536
DEFAULT_BUF_ALLOC: Final = 1 << 20
"""Receive window of a connection, once it has used it, bytes."""
DEFAULT_MAX_QUEUED_BYTES: Final = 256 << 20
MAX_QUEUE_SIZE: Final = 32768
"""Entries of the largest ring; VU_MAX_QUEUE."""
MIN_WINDOW: Final = 2048
"""Least window of a connection, bytes; VU_MIN_WINDOW."""

FIRST_OPENED_PORT: Final = 1 << 30
"""Ports on our side of connections that `DeviceHandle.open()` made start here."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Refuse the connection; `error` is the errno that events report."""

    error: int = errno.ECONNREFUSED


@dataclass(frozen=True, slots=True)
class Ask:
    """Post a REQUEST event and hold the connection for `Engine.answer()`."""


@dataclass(frozen=True, slots=True)
class Unix:
    """Connect to the unix socket `path` + "_" + the vsock port."""

    path: str


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to a TCP address; the guest's RESPONSE waits until that settles."""

    address: SocketAddress


@dataclass(frozen=True, slots=True)
class Echo:
    """The engine sends every byte back (RFC 862)."""


@dataclass(frozen=True, slots=True)
class Discard:
    """The engine drops every byte and closes after the peer's FIN (RFC 863)."""


@dataclass(frozen=True, slots=True)
class Chargen:
    """The engine sends bytes until the peer closes (RFC 864)."""


@dataclass(frozen=True, slots=True)
class Vsock:
    """Connect to the same port of vsock address `cid` (1: this host itself)."""

    cid: int


Target = Reset | Ask | Unix | Dial | Echo | Discard | Chargen | Vsock
"""Where the other end of a connection is; `enum vu_target_kind`."""

_SIMPLE: Final[dict[type, int]] = {
    Ask: lib.VU_TARGET_ASK,
    Echo: lib.VU_TARGET_ECHO,
    Discard: lib.VU_TARGET_DISCARD,
    Chargen: lib.VU_TARGET_CHARGEN,
}


class EventKind(enum.IntEnum):
    """Why a handler is called; `enum vu_event_kind`."""

    REQUEST = 1
    OPENED = 2
    FAILED = 3
    CLOSED = 4
    BROKEN = 5
    LIMIT = 6


class Limit(enum.IntEnum):
    """What a VM may run into; `enum vu_limit`."""

    CONNS = 0
    BYTES = 1
    RATE = 2
    FDS = 3
    MEMORY = 4
    BACKLOG = 5


ALL_EVENTS: Final = frozenset({EventKind.OPENED, EventKind.FAILED, EventKind.CLOSED})
"""What a device or listener may ask for; REQUEST, BROKEN and LIMIT always come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step in a connection's life; `struct vu_event`."""

    kind: EventKind
    conn: int = 0
    error: int = 0
    """errno; for BROKEN, the `enum vu_err`."""
    port: int = 0
    """vsock port on our side; for BROKEN, the queue, or `ALL_QUEUES`; for LIMIT, the
    `Limit`."""
    peer_port: int = 0
    """vsock port in the guest."""
    cid: int = 0
    """vsock CID on our side: 2, or a sibling's; 0 for a listener."""
    up_bytes: int = 0
    """Payload from the side that opened the connection, bytes; for LIMIT, how often
    it was met."""
    down_bytes: int = 0
    """Payload back to it, bytes."""
    duration_us: int = 0
    """Since the request, us."""
    src: SocketAddress | None = None
    """Listener: the client; None once it has hung up."""
    dst: SocketAddress | None = None
    """Listener: the socket's own name; with TPROXY, the original destination."""


if TYPE_CHECKING:
    Handler = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RingConfig:
    """A ring as the front-end describes it; `struct vu_ring_config`."""

    num: int
    """Entries, at most `MAX_QUEUE_SIZE`; of a split ring a power of two."""
    base: int
    """VRING_BASE: the next available entry to take; packed: and the next used one."""
    desc_uva: int
    avail_uva: int
    used_uva: int
    features: int
    """Negotiated feature bits."""
    kick_fd: int
    """eventfd, borrowed; -1: poll."""
    call_fd: int
    """eventfd, borrowed; -1: none."""
    log_used_gpa: int | None = None
    """Where the dirty log has the used ring; None: it isn't logged."""
    inflight: int = 0
    """Our address of the ring's part of the inflight area; 0: there is none."""
    inflight_size: int = 0
    """Size of that part, bytes."""

    def native(self) -> CStruct:
        """Return it as `struct vu_ring_config *`."""
        raw = ffi.new("struct vu_ring_config *")
        special = {
            "log_used_gpa": (
                _NOT_LOGGED if self.log_used_gpa is None else self.log_used_gpa
            ),
            "inflight": ffi.cast("void *", self.inflight),
        }
        for name in self.__slots__:
            setattr(raw, name, special.get(name, getattr(self, name)))
        return raw


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """Counters of a device; `struct vu_dev_stats` says what each counts."""

    conns: int
    queued_bytes: int
    window_bytes: int
    opened: int
    failed: int
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    kicks: int
    calls: int
    rst_unknown: int
    bad_packets: int
    credit_violations: int
    limit_conns: int
    limit_bytes: int
    limit_rate: int
    no_fds: int
    no_memory: int
    backlog_full: int
    message_errors: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters of an engine; `struct vu_engine_stats` says what each counts."""

    conns: int
    wakeups: int
    spins: int
    spin_hits: int
    events_lost: int


GAUGES: Final = frozenset({"conns", "queued_bytes", "window_bytes"})
"""Counters that also fall."""


class Engine:
    """One engine thread; an async context manager that starts and stops it.

    Args:
        poll_us: longest the thread spins before it blocks, us; 0: never spins.
        max_conns: connections over all devices and listeners.
        dial_timeout_s: an unanswered dial fails with ETIMEDOUT after so long; a
            guest that does not answer a SHUTDOWN gets a RST.
        cpu: pin the thread to this CPU.
    """

    def __init__(
        self,
        *,
        poll_us: int = 200,
        max_conns: int = 131072,
        dial_timeout_s: float = 30.0,
        cpu: int | None = None,
    ) -> None:
        config = ffi.new("struct vu_engine_config *")
        config.poll_us = poll_us
        config.max_conns = max_conns
        config.dial_timeout_ms = round(dial_timeout_s * 1000)
        native = lib.vu_engine_new(config)
        if native == ffi.NULL:
            raise OSError(ffi.errno, f"engine: {os.strerror(ffi.errno)}")
        self._native: FFI.CData | None = native
        self._cpu = cpu
        self._handlers: dict[int, Handler] = {}
        self._groups: dict[int, frozenset[str]] = {}
        self._events = ffi.new("struct vu_event[]", _EVENTS_A_READ)
        self._thread = threading.Thread(target=self._run, name="vu-engine", daemon=True)

    @property
    def native(self) -> FFI.CData:
        """`struct vu_engine *`, until the engine is left.

        Raises:
            StateError: it was.
        """
        if self._native is None:
            raise StateError("the engine is closed")
        return self._native

    def _run(self) -> None:
        if self._cpu is not None:
            os.sched_setaffinity(0, {self._cpu})
        lib.vu_engine_run(self.native)

    async def __aenter__(self) -> Self:
        fd = lib.vu_engine_event_fd(self.native)
        asyncio.get_running_loop().add_reader(fd, self._dispatch)
        self._thread.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        lib.vu_engine_stop(self.native)
        await asyncio.to_thread(self._thread.join)
        fd = lib.vu_engine_event_fd(self.native)
        asyncio.get_running_loop().remove_reader(fd)
        lib.vu_engine_free(self.native)
        self._native = None
        self._handlers.clear()

    def deliver(self) -> None:
        """Hand all queued events to their handlers now, not when the loop comes by."""
        while self._dispatch() == _EVENTS_A_READ:
            pass

    def _dispatch(self) -> int:
        """Hand queued events to their handlers; more come with the next call."""
        count = lib.vu_engine_events(self.native, self._events, _EVENTS_A_READ)
        for i in range(count):
            raw = self._events[i]
            handler = self._handlers.get(raw.source)
            if handler is None:
                continue
            try:
                handler(_event(raw))
            except Exception:
                # one connection's trouble; it times out, the others go on
                logger.exception("handler failed on event %d", raw.kind)
        return count

    def add_device(
        self,
        *,
        guest_cid: int,
        on_event: Handler,
        buf_alloc: int = DEFAULT_BUF_ALLOC,
        max_conns: int = DEFAULT_MAX_CONNS,
        max_queued_bytes: int = DEFAULT_MAX_QUEUED_BYTES,
        accept_rate: int = 0,
        want: frozenset[EventKind] = ALL_EVENTS,
        groups: frozenset[str] = frozenset(),
    ) -> DeviceHandle:
        """Add a virtio-vsock device; connections meet `Reset` until routed.

        Guests whose devices have a group in common reach each other by CID. Both ends
        of such a connection report their own events.

        Args:
            guest_cid: the guest's CID, 3 or more.
            on_event: called in the event loop.
            buf_alloc: receive window of a connection, bytes.
            max_conns: connections; one more is refused and counted.
            max_queued_bytes: bytes from the guest that the engine may hold; windows
                are handed out from it, at least `MIN_WINDOW` to each of `max_conns`.
            accept_rate: requests a second from the guest, and as many from host
                clients; 0: any number.
            want: which events to post besides those that always come.
            groups: names of the groups that the device is in.

        Raises:
            StateError: a value is out of range, the engine has 64 devices, or
                another device of a group has the same CID.
        """
        config = ffi.new("struct vu_dev_config *")
        config.guest_cid = guest_cid
        config.buf_alloc = buf_alloc
        config.max_conns = max_conns
        config.max_queued_bytes = max_queued_bytes
        config.accept_rate = accept_rate
        config.want = _want(want)
        dev = check(lib.vu_dev_add(self.native, config), f"device of CID {guest_cid}")
        for other, names in self._groups.items():
            if groups & names:
                ret = lib.vu_dev_sibling(self.native, dev, other)
                if ret < 0:
                    lib.vu_dev_del(self.native, dev)
                check(ret, f"sibling of CID {guest_cid} in {sorted(groups & names)}")
        self._groups[dev] = groups
        self._handlers[dev] = on_event
        return DeviceHandle(self, dev)

    def add_listener(
        self,
        sock: socket.socket,
        target: Target,
        *,
        on_event: Handler,
        want: frozenset[EventKind] = ALL_EVENTS,
    ) -> ListenerHandle:
        """Accept connections from a listening TCP or unix socket.

        Args:
            sock: taken over; set to non-blocking.
            target: where its connections go; not `Unix` or `Vsock`.
            on_event: called in the event loop.
            want: which events to post besides REQUEST.

        Raises:
            StateError: the target does not fit, or the engine has 64 listeners.
            OSError: the socket cannot be watched.
        """
        sock.setblocking(False)
        listener = check(
            lib.vu_listener_add(
                self.native, sock.fileno(), _want(want), _target(target)
            ),
            "add listener",
        )
        sock.detach()
        self._handlers[listener] = on_event
        return ListenerHandle(self, listener)

    def answer(self, conn: int, target: Target) -> bool:
        """Give a held connection its far end.

        Returns:
            False if the connection has ended meanwhile.

        Raises:
            StateError: it was answered before, or the target is malformed.
        """
        ret = lib.vu_conn_answer(self.native, conn, _target(target))
        return _alive(ret, f"answer with {target}")

    def answer_fd(self, conn: int, sock: socket.socket) -> bool:
        """Give a held connection a connected stream socket as its far end.

        Args:
            conn: from a REQUEST event.
            sock: taken over, closed if the connection has ended meanwhile.

        Returns:
            False if it has.

        Raises:
            StateError: it was answered before.
            OSError: the socket cannot be watched.
        """
        ret = lib.vu_conn_answer_fd(self.native, conn, sock.fileno())
        if _alive(ret, "answer with a socket"):
            sock.detach()
            return True
        sock.close()
        return False

    def reset(self, conn: int, error: int = errno.ECONNRESET) -> bool:
        """End a connection; both its ends see a reset.

        Returns:
            False if it had ended.
        """
        return _alive(lib.vu_conn_reset(self.native, conn, error), "reset")

    def stats(self) -> EngineStats:
        """Read the counters."""
        raw = ffi.new("struct vu_engine_stats *")
        lib.vu_engine_stats(self.native, raw)
        return EngineStats(*(getattr(raw, name) for name in EngineStats.__slots__))

    def forget(self, source: int) -> None:
        """Call no handler any more for a device or listener that is closed."""
        self._handlers.pop(source, None)
        self._groups.pop(source, None)


class DeviceHandle:
    """A virtio-vsock device in the engine; made by `Engine.add_device()`."""

    def __init__(self, engine: Engine, dev: int) -> None:
        self._engine = engine
        self._dev = dev

    def set_memory(self, memory: GuestMemory | None) -> None:
        """Borrow the guest's memory, or give it back.

        Raises:
            StateError: a ring runs.
        """
        native = ffi.NULL if memory is None else memory.native
        check(lib.vu_dev_set_mem(self._engine.native, self._dev, native), "set memory")

    def start_ring(self, queue: int, config: RingConfig) -> None:
        """Start a ring; its eventfds stay open until it is stopped.

        Raises:
            GuestError: its addresses are not in guest memory, or not aligned.
            StateError: it runs, has a bad size, or there is no memory.
        """
        check(
            lib.vu_dev_start_ring(
                self._engine.native, self._dev, queue, config.native()
            ),
            f"start ring {queue}",
        )

    def stop_ring(self, queue: int) -> int:
        """Stop a ring; return where it goes on, as `RingConfig.base`."""
        return check(
            lib.vu_dev_stop_ring(self._engine.native, self._dev, queue),
            f"stop ring {queue}",
        )

    def set_call(self, queue: int, call_fd: int) -> None:
        """Change a running ring's interrupt eventfd (borrowed; -1: none)."""
        check(
            lib.vu_dev_set_call(self._engine.native, self._dev, queue, call_fd),
            f"set call of ring {queue}",
        )

    def reset(self) -> None:
        """End all connections: the front-end is gone."""
        check(lib.vu_dev_reset(self._engine.native, self._dev), "reset device")

    def transport_reset(self) -> None:
        """Tell the driver that its connections are gone, once it can be told."""
        check(
            lib.vu_dev_transport_reset(self._engine.native, self._dev),
            "transport reset",
        )

    def route(self, port: int | None, target: Target) -> None:
        """Send connections to a host port to `target`; None: any other port.

        Raises:
            StateError: the target is malformed.
        """
        number = _PORT_ANY if port is None else port
        check(
            lib.vu_dev_route(self._engine.native, self._dev, number, _target(target)),
            f"route port {port}",
        )

    def unroute(self, port: int) -> None:
        """Forget a port's route, if it has one."""
        lib.vu_dev_unroute(self._engine.native, self._dev, port)

    def unroute_from(self, first: int) -> None:
        """Forget the routes of all ports from `first` on, at one moment."""
        check(
            lib.vu_dev_unroute_from(self._engine.native, self._dev, first),
            f"unroute ports from {first}",
        )

    def limit(self, *, max_conns: int, max_queued_bytes: int, accept_rate: int) -> None:
        """Change limits; the values are those of `Engine.add_device()`.

        What the VM has is left alone: above a lower limit it gets nothing more.

        Raises:
            StateError: `max_queued_bytes` is less than `MIN_WINDOW` a connection.
        """
        check(
            lib.vu_dev_limit(
                self._engine.native,
                self._dev,
                max_conns,
                max_queued_bytes,
                accept_rate,
            ),
            "change limits",
        )

    def open(self, guest_port: int, sock: socket.socket, *, hybrid: bool) -> int:
        """Ask the guest for a connection to `guest_port` and relay it to `sock`.

        Args:
            guest_port: where a program in the guest listens.
            sock: taken over; SOCK_SEQPACKET makes a SEQPACKET connection.
            hybrid: write "OK <port>" to it when the guest accepts.

        Returns:
            The connection's id.

        Raises:
            StateError: too many connections, or the guest knows no SEQPACKET.
            OSError: the socket cannot be watched.
        """
        conn = check(
            lib.vu_conn_open(
                self._engine.native, self._dev, guest_port, sock.fileno(), hybrid
            ),
            f"open guest port {guest_port}",
        )
        sock.detach()
        return conn

    def offer(self, guest_port: int, sock: socket.socket, *, port: int) -> int:
        """Ask the guest for a connection from `port`, and relay it to `sock` then.

        If it fails, nothing happens to `sock`, and it can be offered again. After the
        OPENED event, close it: the connection has a descriptor of its own.

        Args:
            guest_port: where a program in the guest listens.
            sock: a connected stream socket; stays the caller's.
            port: on our side, not 0.

        Returns:
            The connection's id.

        Raises:
            StateError: too many connections, or the two ports have one.
            OSError: no descriptor is left, or the socket cannot be watched.
        """
        fd = os.dup(sock.fileno())
        ret = lib.vu_conn_offer(self._engine.native, self._dev, guest_port, port, fd)
        if ret < 0:
            os.close(fd)
        return check(ret, f"offer to guest port {guest_port}")

    def stats(self) -> DeviceStats:
        """Read the counters."""
        raw = ffi.new("struct vu_dev_stats *")
        check(lib.vu_dev_stats(self._engine.native, self._dev, raw), "read counters")
        return DeviceStats(*(getattr(raw, name) for name in DeviceStats.__slots__))

    def close(self) -> None:
        """Remove the device: rings stop, connections end; once only.

        Its handler hears of each end before this returns.
        """
        check(lib.vu_dev_del(self._engine.native, self._dev), "remove device")
        self._engine.deliver()
        self._engine.forget(self._dev)


class ListenerHandle:
    """A listening socket in the engine; made by `Engine.add_listener()`."""

    def __init__(self, engine: Engine, listener: int) -> None:
        self._engine = engine
        self._listener = listener

    def close(self) -> None:
        """Close the socket; its connections, and their events, go on."""
        check(
            lib.vu_listener_del(self._engine.native, self._listener),
            "remove listener",
        )


def _alive(ret: int, context: str) -> bool:
    """Return False for "gone", True for success; raise for the rest."""
    if ret == -lib.VU_ERR_GONE:
        return False
    check(ret, context)
    return True


def _want(kinds: frozenset[EventKind]) -> int:
    return sum(1 << kind for kind in kinds & ALL_EVENTS)


def _target(target: Target) -> CStruct:
    """Return `target` as a `struct vu_target *`.

    Raises:
        StateError: a path is too long, or an address is not an IP address.
    """
    raw = ffi.new("struct vu_target *")
    match target:
        case Reset(error):
            raw.kind = lib.VU_TARGET_RESET
            raw.error = error
            return raw
        case Unix(path):
            raw.kind = lib.VU_TARGET_UNIX
            data = os.fsencode(path)
        case Dial(address):
            raw.kind = lib.VU_TARGET_DIAL
            data = _sockaddr(address)
        case Vsock(cid):
            raw.kind = lib.VU_TARGET_VSOCK
            # struct sockaddr_vm; the engine fills in the port
            data = struct.pack("=HHII4x", socket.AF_VSOCK, 0, 0, cid)
        case _:
            raw.kind = _SIMPLE[type(target)]
            return raw
    if len(data) > len(raw.addr):
        raise StateError(f"address of {target} is longer than {len(raw.addr)} bytes")
    raw.addr_len = len(data)
    ffi.memmove(raw.addr, data, len(data))
    return raw


def _sockaddr(address: SocketAddress) -> bytes:
    """Return an address as the kernel's `sockaddr_in` or `sockaddr_in6`."""
    host, port = address
    try:
        ip = ipaddress.ip_address(host)
    except ValueError as error:
        raise StateError(f"dial {host}: {error}") from None
    if ip.version == 4:
        head = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port)
        return head + ip.packed + bytes(8)
    head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0)
    return head + ip.packed + bytes(4)


def _address(raw: FFI.CData, size: int) -> SocketAddress | None:
    """Return a sockaddr as an address; None for an empty or other one."""
    data = bytes(ffi.buffer(raw, size))
    if len(data) < 4:
        return None
    family = struct.unpack_from("=H", data)[0]
    port = struct.unpack_from("!H", data, 2)[0]
    if family == socket.AF_INET:
        return socket.inet_ntop(family, data[4:8]), port
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, data[8:24]), port
    return None


def _event(raw: CStruct) -> Event:
    return Event(
        kind=EventKind(raw.kind),
        conn=raw.conn,
        error=raw.error,
        port=raw.port,
        peer_port=raw.peer_port,
        cid=raw.cid,
        up_bytes=raw.up_bytes,
        down_bytes=raw.down_bytes,
        duration_us=raw.duration_us,
        src=_address(raw.src, raw.src_len),
        dst=_address(raw.dst, raw.dst_len),
    )
