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
import errno
import logging
import os
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from vhost_user import events, handoffs, targets
from vhost_user._native import check, ffi, lib
from vhost_user.counters import GAUGES, DeviceStats, EngineStats
from vhost_user.errors import StateError
from vhost_user.events import ALL_EVENTS, ALL_QUEUES, Event, EventKind, Limit
from vhost_user.handles import (
    MAX_CALLERS,
    DeviceHandle,
    HandoffHandle,
    ListenerHandle,
    NetnsHandle,
    PeerHandle,
)
from vhost_user.handoffs import Proxy, Socks5Proxy, UnixProxy
from vhost_user.ringconfig import RingConfig
from vhost_user.targets import (
    Ask,
    Chargen,
    Dial,
    Discard,
    Echo,
    Hbone,
    Reset,
    Ring,
    SocketAddress,
    Target,
    Unix,
    Vsock,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path
    from types import TracebackType

    from cffi import FFI

    from vhost_user.events import Handler

__all__ = [
    "ALL_EVENTS",
    "ALL_QUEUES",
    "DEFAULT_BUF_ALLOC",
    "DEFAULT_MAX_CONNS",
    "DEFAULT_MAX_QUEUED_BYTES",
    "DEFAULT_RING_BYTES",
    "FIRST_OPENED_PORT",
    "GAUGES",
    "MAX_CALLERS",
    "MAX_DEVICES",
    "MIN_WINDOW",
    "Ask",
    "Chargen",
    "DeviceHandle",
    "DeviceStats",
    "Dial",
    "Discard",
    "Echo",
    "Engine",
    "EngineStats",
    "Event",
    "EventKind",
    "HandoffHandle",
    "Hbone",
    "Limit",
    "ListenerHandle",
    "NetnsHandle",
    "PeerHandle",
    "Proxy",
    "Reset",
    "Ring",
    "RingConfig",
    "SocketAddress",
    "Socks5Proxy",
    "Target",
    "Unix",
    "UnixProxy",
    "Vsock",
]

logger = logging.getLogger(__name__)

_EVENTS_A_READ: Final = 256

DEFAULT_MAX_CONNS: Final = 65536
DEFAULT_BUF_ALLOC: Final = 1 << 20
"""Receive window of a connection, once it has used it, bytes."""
DEFAULT_MAX_QUEUED_BYTES: Final = 256 << 20
DEFAULT_RING_BYTES: Final = 256 << 10
"""Of each of a connection's two rings of shared memory, bytes."""
MAX_DEVICES: Final = 1024
"""Devices of an engine; VU_MAX_DEVICES."""
MAX_QUEUE_SIZE: Final = 32768
"""Entries of the largest ring; VU_MAX_QUEUE."""
MIN_WINDOW: Final = 2048
"""Least window of a connection, bytes; VU_MIN_WINDOW."""

FIRST_OPENED_PORT: Final = 1 << 30
"""Ports on our side of connections that `DeviceHandle.open()` made start here."""


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
        self._groups: dict[str, int] = {}
        """Their numbers."""
        self._events = ffi.new("struct vu_event[]", _EVENTS_A_READ)
        self._taken: deque[tuple[int, Event]] = deque()
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
        """Hand all queued events to their handlers now, not when the loop comes by.

        A handler may call it: what is left of the events before its own goes on then,
        in their order, each to its handler once.
        """
        while self._dispatch() == _EVENTS_A_READ:
            pass

    def _dispatch(self) -> int:
        """Hand queued events to their handlers; more come with the next call.

        They leave the buffer before the first handler runs, which may end up here.
        """
        count = int(lib.vu_engine_events(self.native, self._events, _EVENTS_A_READ))
        for raw in self._events[0:count]:
            self._taken.append((raw.source, events.decode(raw)))
        while self._taken:
            source, event = self._taken.popleft()
            if event.kind is EventKind.GONE:
                self.forget(source)
                continue
            handler = self._handlers.get(source)
            if handler is None:
                continue
            try:
                handler(event)
            except Exception:
                # one connection's trouble; it times out, the others go on
                logger.exception("handler failed on %s event", event.kind.name)
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
            StateError: a value is out of range, the engine has `MAX_DEVICES`, or a
                guest would reach two devices by one CID, or another by its own.
        """
        config = ffi.new("struct vu_dev_config *")
        config.guest_cid = guest_cid
        config.buf_alloc = buf_alloc
        config.max_conns = max_conns
        config.max_queued_bytes = max_queued_bytes
        config.accept_rate = accept_rate
        config.want = events.want_bits(want)
        dev = check(lib.vu_dev_add(self.native, config), f"device of CID {guest_cid}")
        for name in groups:
            group = self._groups.setdefault(name, len(self._groups))
            ret = lib.vu_dev_join(self.native, dev, group)
            if ret < 0:
                lib.vu_dev_del(self.native, dev)
            check(ret, f"CID {guest_cid} in group {name!r}")
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
            StateError: the target does not fit, or the engine has 65536 listeners.
            OSError: the socket cannot be watched.
        """
        sock.setblocking(False)
        listener = check(
            lib.vu_listener_add(
                self.native,
                sock.fileno(),
                events.want_bits(want),
                targets.encode(target),
            ),
            "add listener",
        )
        sock.detach()
        self._handlers[listener] = on_event
        return ListenerHandle(self, listener)

    def add_guest_listener(
        self,
        sock: socket.socket,
        device: DeviceHandle,
        *,
        backlog: int,
        tag: int,
        on_event: Handler,
    ) -> ListenerHandle:
        """Accept clients for a guest: those of known callers are offered to it at once.

        The listener's handler gets REQUEST for each that Python has to `take()`: it is
        unknown (`error` 0), the guest has no room (ECONNREFUSED), or the VM may have no
        more (EAGAIN); in the two last cases the listener is paused. The device's hears
        of the others, from OPENED or FAILED on.

        A client is pending until the guest or Python has it. As many may be as the
        backlog and one more, 256 at most: others wait in the backlog.

        Args:
            sock: listening, taken over; set to non-blocking.
            device: the guest's.
            backlog: the socket's.
            tag: what `Event.tag` is, not 0.
            on_event: called in the event loop.

        Raises:
            StateError: the device is removed, or the engine has 65536 listeners.
            OSError: the socket cannot be watched.
        """
        sock.setblocking(False)
        listener = check(
            lib.vu_listener_guest(self.native, sock.fileno(), backlog, device.id, tag),
            "add a guest's listener",
        )
        sock.detach()
        self._handlers[listener] = on_event
        return ListenerHandle(self, listener)

    def add_netns(
        self,
        maker: socket.socket,
        addresses: Iterable[IPv4Address | IPv6Address],
        *,
        keep: int = 32,
    ) -> NetnsHandle:
        """Have `Dial` reach another network namespace.

        Args:
            maker: a unix SOCK_SEQPACKET socket to a process in it that makes sockets
                (vu_netns.h); taken over.
            addresses: what is dialled from, the first of each version. Without one,
                dials of that version fail with ENETUNREACH.
            keep: sockets of each version to have before they are needed, 1 to 32.

        Raises:
            StateError: the engine has `MAX_DEVICES` of them.
            OSError: the socket cannot be watched.
        """
        config = ffi.new("struct vu_netns_config *", {"keep": keep})
        targets.put_addresses(config, addresses)
        ret = lib.vu_netns_add(self.native, maker.fileno(), config)
        netns = check(ret, "add network namespace")
        maker.detach()
        return NetnsHandle(self, netns)

    def add_handoff(self, proxy: Proxy) -> HandoffHandle:
        """Have `Dial` hand connections to another proxy.

        Raises:
            StateError: the engine has `MAX_DEVICES` of them, or `proxy` is malformed.
        """
        ret = lib.vu_handoff_add(self.native, handoffs.encode(proxy))
        return HandoffHandle(self, check(ret, f"hand-off to {proxy}"))

    def add_peer(
        self,
        path: Path,
        *,
        identity: str,
        addresses: Iterable[IPv4Address | IPv6Address] = (),
        ring_bytes: int = DEFAULT_RING_BYTES,
    ) -> PeerHandle:
        """Have `Ring` reach another process (docs/ring.md).

        Args:
            path: unix SOCK_SEQPACKET socket that it listens on.
            identity: SPIFFE ID of the workload whose connections these are.
            addresses: what they come from, the first of each version.
            ring_bytes: of each of a connection's two rings, a power of two from 4 KiB
                to 1 GiB; fewer if that is much of the device's `max_queued_bytes`.

        Raises:
            StateError: the path or identity is too long or empty, the size out of
                range, or the engine has `MAX_DEVICES` of them.
        """
        config = ffi.new("struct vu_peer_config *")
        where, who = os.fsencode(path), identity.encode()
        if len(where) >= len(config.path) or len(who) > len(config.identity):
            raise StateError(f"process at {path}: its path or identity is too long")
        ffi.memmove(config.path, where, len(where))
        ffi.memmove(config.identity, who, len(who))
        config.identity_len = len(who)
        config.ring_bytes = ring_bytes
        targets.put_addresses(config, addresses)
        peer = check(lib.vu_peer_add(self.native, config), f"process at {path}")
        return PeerHandle(self, peer)

    def answer(self, conn: int, target: Target) -> bool:
        """Give a held connection its far end.

        Returns:
            False if the connection has ended meanwhile.

        Raises:
            StateError: it was answered before, or the target is malformed.
        """
        ret = lib.vu_conn_answer(self.native, conn, targets.encode(target))
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

    def take(self, conn: int) -> socket.socket | None:
        """Take the client of a REQUEST with a tag out of the engine.

        Returns:
            Its socket, non-blocking; None if the connection has ended meanwhile.

        Raises:
            StateError: it is no such client.
        """
        fd = lib.vu_conn_take(self.native, conn)
        if not _alive(fd, "take"):
            return None
        return socket.socket(fileno=fd)

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

    def hear(self, source: int, handler: Handler) -> None:
        """Call a handler for the events of a source that C knows by this id."""
        self._handlers[source] = handler

    def forget(self, source: int) -> None:
        """Call no handler any more for a device or listener that is closed."""
        self._handlers.pop(source, None)


def _alive(ret: int, context: str) -> bool:
    """Return False for "gone", True for success; raise for the rest."""
    if ret == -lib.VU_ERR_GONE:
        return False
    check(ret, context)
    return True
