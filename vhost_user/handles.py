"""Devices, listeners and what else the engine has: what Python asks of each.

Made by `Engine.add_device()`, `add_listener()` and so on; threads as for `Engine`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from vhost_user import targets
from vhost_user._native import check, ffi, lib
from vhost_user.counters import DeviceStats

if TYPE_CHECKING:
    import socket
    from ipaddress import IPv4Address, IPv6Address

    from cffi import FFI

    from vhost_user.events import Handler
    from vhost_user.memory import GuestMemory
    from vhost_user.ringconfig import RingConfig
    from vhost_user.targets import Target

MAX_CALLERS: Final = 1024
"""IPs whose clients a listener may offer to a guest; VU_MAX_CALLERS."""

MAX_IDENTITY: Final = 936
"""Bytes of the longest SPIFFE ID that a process can be told."""

_NETNS_SOURCE: Final = 0x8000_0000  # VU_NETNS_SOURCE
_PORT_ANY: Final = 0xFFFFFFFF  # VU_PORT_ANY


class Owner(Protocol):
    """The engine, as far as its devices and listeners need it."""

    @property
    def native(self) -> FFI.CData:
        """`struct vu_engine *`."""

    def deliver(self) -> None:
        """Hand all queued events to their handlers."""

    def hear(self, source: int, handler: Handler) -> None:
        """Call a handler for the events of a source."""

    def forget(self, source: int) -> None:
        """Call no handler any more for a device or listener that is closed."""


class DeviceHandle:
    """A virtio-vsock device in the engine; made by `Engine.add_device()`."""

    def __init__(self, engine: Owner, dev: int) -> None:
        self._engine = engine
        self.id = dev
        """`Event`s of its connections come from this source."""

    def set_memory(self, memory: GuestMemory | None) -> None:
        """Borrow the guest's memory, or give it back.

        Raises:
            StateError: a ring runs.
        """
        native = ffi.NULL if memory is None else memory.native
        check(lib.vu_dev_set_mem(self._engine.native, self.id, native), "set memory")

    def start_ring(self, queue: int, config: RingConfig) -> None:
        """Start a ring; its eventfds stay open until it is stopped.

        Raises:
            GuestError: its addresses are not in guest memory, or not aligned.
            StateError: it runs, has a bad size, or there is no memory.
        """
        check(
            lib.vu_dev_start_ring(self._engine.native, self.id, queue, config.native()),
            f"start ring {queue}",
        )

    def stop_ring(self, queue: int) -> int:
        """Stop a ring; return where it goes on, as `RingConfig.base`."""
        return check(
            lib.vu_dev_stop_ring(self._engine.native, self.id, queue),
            f"stop ring {queue}",
        )

    def set_call(self, queue: int, call_fd: int) -> None:
        """Change a running ring's interrupt eventfd (borrowed; -1: none)."""
        check(
            lib.vu_dev_set_call(self._engine.native, self.id, queue, call_fd),
            f"set call of ring {queue}",
        )

    def reset(self) -> None:
        """End all connections: the front-end is gone."""
        check(lib.vu_dev_reset(self._engine.native, self.id), "reset device")

    def transport_reset(self) -> None:
        """Tell the driver that its connections are gone, once it can be told."""
        check(
            lib.vu_dev_transport_reset(self._engine.native, self.id),
            "transport reset",
        )

    def route(self, port: int | None, target: Target) -> None:
        """Send connections to a host port to `target`; None: any other port.

        Raises:
            StateError: the target is malformed.
        """
        number = _PORT_ANY if port is None else port
        check(
            lib.vu_dev_route(
                self._engine.native, self.id, number, targets.encode(target)
            ),
            f"route port {port}",
        )

    def unroute(self, port: int) -> None:
        """Forget a port's route, if it has one."""
        lib.vu_dev_unroute(self._engine.native, self.id, port)

    def unroute_from(self, first: int) -> None:
        """Forget the routes of all ports from `first` on, at one moment."""
        check(
            lib.vu_dev_unroute_from(self._engine.native, self.id, first),
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
                self.id,
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
                self._engine.native, self.id, guest_port, sock.fileno(), hybrid
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
        ret = lib.vu_conn_offer(self._engine.native, self.id, guest_port, port, fd)
        if ret < 0:
            os.close(fd)
        return check(ret, f"offer to guest port {guest_port}")

    def conns_from(self, first_port: int) -> int:
        """Count connections from 65536 ports on our side, of those with chosen ports.

        Args:
            first_port: the first of them.

        Raises:
            StateError: the device is removed.
        """
        return check(
            lib.vu_dev_conns_from(self._engine.native, self.id, first_port),
            f"connections from {first_port:#x}",
        )

    def stats(self) -> DeviceStats:
        """Read the counters."""
        raw = ffi.new("struct vu_dev_stats *")
        check(lib.vu_dev_stats(self._engine.native, self.id, raw), "read counters")
        return DeviceStats(*(getattr(raw, name) for name in DeviceStats.__slots__))

    def close(self) -> None:
        """Remove the device: rings stop, connections end; once only.

        Its handler hears of each end before this returns.
        """
        check(lib.vu_dev_del(self._engine.native, self.id), "remove device")
        self._engine.deliver()
        self._engine.forget(self.id)


class ListenerHandle:
    """A listening socket in the engine.

    Made by `Engine.add_listener()` and `Engine.add_guest_listener()`.
    """

    def __init__(self, engine: Owner, listener: int) -> None:
        self._engine = engine
        self.id = listener
        """`Event`s of its connections come from this source."""

    def know(
        self, ip: IPv4Address | IPv6Address, *, guest_port: int, first_port: int
    ) -> None:
        """Offer the clients of an IP to a port of the guest from now on.

        Args:
            ip: theirs.
            guest_port: where a program in the guest listens.
            first_port: of 65536 on our side: a client comes from the one that is its
                TCP port further.

        Raises:
            StateError: `MAX_CALLERS` are known.
        """
        self._set_caller(ip, guest_port, first_port)

    def forget(self, ip: IPv4Address | IPv6Address) -> None:
        """Have Python take the clients of an IP."""
        self._set_caller(ip, 0, 0)

    def forget_all(self) -> None:
        """Have Python take all clients."""
        check(lib.vu_listener_forget(self._engine.native, self.id), "forget callers")

    def _set_caller(
        self, ip: IPv4Address | IPv6Address, guest_port: int, first_port: int
    ) -> None:
        caller = ffi.new("struct vu_caller *")
        caller.version = ip.version
        ffi.memmove(caller.ip, ip.packed, len(ip.packed))
        caller.guest_port, caller.first_port = guest_port, first_port
        check(
            lib.vu_listener_caller(self._engine.native, self.id, caller),
            f"clients from {ip}",
        )

    def set_backlog(self, backlog: int) -> None:
        """Call listen() again; of a guest's listener, as many may be pending.

        Raises:
            OSError: it fails.
        """
        check(
            lib.vu_listener_backlog(self._engine.native, self.id, backlog),
            "set backlog",
        )

    def pause(self) -> None:
        """Accept nobody: clients wait in the backlog."""
        check(lib.vu_listener_pause(self._engine.native, self.id, True), "pause")

    def resume(self) -> None:
        """Accept again."""
        check(lib.vu_listener_pause(self._engine.native, self.id, False), "resume")

    def close(self) -> None:
        """Close the socket; its connections, and their events, go on.

        The engine forgets the handler after the last of them.
        """
        check(
            lib.vu_listener_del(self._engine.native, self.id),
            "remove listener",
        )


class NetnsHandle:
    """A network namespace that the engine dials in; made by `Engine.add_netns()`."""

    def __init__(self, engine: Owner, netns: int) -> None:
        self._engine = engine
        self.id = netns
        """What `Dial.netns` is."""
        self._source = netns | _NETNS_SOURCE

    def hear(self, handler: Handler) -> None:
        """Call a handler when the maker is of no use (MAKER): `renew()` it then."""
        self._engine.hear(self._source, handler)

    def renew(self, maker: socket.socket) -> None:
        """Have another maker; dials that wait for sockets get them from it.

        Args:
            maker: as of `Engine.add_netns()`; taken over.

        Raises:
            StateError: the namespace is closed.
            OSError: the socket cannot be watched.
        """
        check(
            lib.vu_netns_renew(self._engine.native, self.id, maker.fileno()),
            "another maker of sockets",
        )
        maker.detach()

    def close(self) -> None:
        """Dial there no more; such dials fail with ENETUNREACH. Once only."""
        check(lib.vu_netns_del(self._engine.native, self.id), "remove namespace")
        self._engine.forget(self._source)


class HandoffHandle:
    """Another proxy that connections are handed to; made by `Engine.add_handoff()`."""

    def __init__(self, engine: Owner, handoff: int) -> None:
        self._engine = engine
        self.id = handoff
        """What `Dial.handoff` is."""

    def close(self) -> None:
        """Hand nothing over any more: such dials fail with ENETUNREACH. Once only."""
        check(lib.vu_handoff_del(self._engine.native, self.id), "remove hand-off")


class PeerHandle:
    """A process that takes connections by rings; made by `Engine.add_peer()`."""

    def __init__(self, engine: Owner, peer: int) -> None:
        self._engine = engine
        self.id = peer
        """What `Ring.peer` is."""

    def close(self) -> None:
        """Offer it no more; such connections fail with ECONNREFUSED. Once only."""
        check(lib.vu_peer_del(self._engine.native, self.id), "remove process")
