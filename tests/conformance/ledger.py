"""Bytes that fwd_cnt counts were taken by the sink, or the guest has been told.

A ledger stands beside every conformance test. It hears of each packet that a guest
sends and takes (`VsockGuest.watcher`), counts what each sink took, and compares at the
test's end, for each connection that the guest was not told the end of:

- fwd_cnt never counts more than the guest sent, and never goes back;
- what it counts is no more than the host's socket took: bytes that its program read and
  bytes that wait in the kernel's buffers;
- an echo has taken what it sent back;
- a sibling has taken what its guest said that it consumed.

A guest is told by a RST, or by a SHUTDOWN with the flag RECEIVE. Host sockets belong to
a port, not to a connection: so it is enough that some assignment of a port's sockets to
its connections holds. Connections whose sink can't be seen are left out.

Spec: VIRTIO 1.2 section 5.10.6.2, "guaranteed"; 5.10.6.3, fwd_cnt; 5.10.6.5.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import socket
import struct
import termios
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from tests.support.limits import LIMIT_S
from vhost_user.errors import VhostUserError
from vhost_user.vsock.packet import CID_HOST, HDR_SIZE, Header, Op, Shutdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.vsock.driver import VsockGuest

ECHO: Final = 7
"""Host port that echoes, in every suite here."""
HALF: Final = 1 << 31

Key = tuple[str, int]
"""A host port ("host"), or one of the guest ("guest") that a host client asked for."""


class Taker(Protocol):
    """What takes a guest's bytes."""

    @property
    def taken(self) -> float:
        """Bytes that it took, read or not."""


S = TypeVar("S", bound=Taker)


class Sink(socket.socket):
    """A host socket that counts what it took of its guest's bytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._got = 0
        self._final: float | None = None

    @property
    def taken(self) -> float:
        """Bytes that it took, read or not; infinity if that can't be said."""
        if self._final is not None:
            return self._final
        return _unsent(self) + self._got + _unread(self)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive, and count."""
        if self.type != socket.SOCK_SEQPACKET:
            data = super().recv(size, flags)
        else:
            data, _, what, _ = self.recvmsg(size, 0, flags)
            if what & socket.MSG_TRUNC:
                self._got = 1 << 62  # who cuts messages doesn't count bytes
        if not flags & socket.MSG_PEEK:
            self._got += len(data)
        return data

    def close(self) -> None:
        """Close; what is unread was taken all the same."""
        if self._final is None and self.fileno() >= 0:
            self._final = self._got + _unread(self)
        super().close()

    def detach(self) -> int:
        """Give the descriptor away."""
        self._final = math.inf
        return super().detach()


class Listening(Sink):
    """A listening socket; what it accepts are sinks of one key."""

    key: Key

    def accept(self) -> tuple[Sink, Any]:
        """Accept, and count from now on."""
        sock, address = super().accept()
        return watch(Sink(fileno=sock.detach()), self.key), address


def _unread(sock: socket.socket) -> int:
    try:
        raw = fcntl.ioctl(sock, termios.FIONREAD, bytes(4))
    except OSError:  # it listens
        return 0
    return int(struct.unpack("i", raw)[0])


def _unsent(sock: socket.socket) -> int:
    """Bytes that a TCP peer has written and that have not come yet."""
    if sock.family != socket.AF_INET:
        return 0
    with contextlib.suppress(OSError):
        ends = [_hex(sock.getpeername()), _hex(sock.getsockname())]
        for line in Path("/proc/self/net/tcp").read_text().splitlines():
            fields = line.split()
            if fields[1:3] == ends:
                return int(fields[4].partition(":")[0], 16)
    return 0


def _hex(address: tuple[str, int]) -> str:
    """Name an IPv4 address and port as /proc/net/tcp does."""
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"


@dataclass(eq=False)
class Flow:
    """One connection as its guest sees it."""

    guest: VsockGuest
    guest_port: int
    host_port: int
    cid: int
    asked_by_guest: bool
    open: bool = False
    sent: int = 0
    """Payload that the guest sent, bytes."""
    came: int = 0
    """Payload that came."""
    fwd: int = 0
    """What the device's fwd_cnt counts, bytes; it does not wrap."""
    said: int = 0
    """What the guest's own counts."""
    told: bool = False
    """Whether the guest knows that the other side takes no more, or said so itself."""
    deaf: bool = False
    """Whether the guest receives no more."""
    faults: list[str] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """Where its sink is."""
        return (
            ("host", self.host_port)
            if self.asked_by_guest
            else ("guest", self.guest_port)
        )

    def __str__(self) -> str:
        """Name it, and what was counted."""
        return (
            f"guest {self.guest.cid} port {self.guest_port}, CID {self.cid} port "
            f"{self.host_port}: fwd_cnt counts {self.fwd} of {self.sent} bytes"
        )


class Ledger:
    """What was sent, acknowledged and taken during one test."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []
        self.sinks: dict[Key, list[Taker]] = defaultdict(list)
        self._current: dict[tuple[VsockGuest, int, int, int], Flow] = {}
        self._faults: list[str] = []

    # ---- what a guest does (vhost_user.vsock.driver.Watcher) ----

    def sent(self, guest: VsockGuest, data: bytes) -> None:
        """Note a packet that is about to be sent, well formed or not."""
        if len(data) < HDR_SIZE:
            return
        try:
            header = Header.decode(data)
        except VhostUserError:
            return
        where = (guest, header.src_port, header.dst_port, header.dst_cid)
        if header.op == Op.REQUEST:
            self._start(*where, asked_by_guest=True)
        flow = self._current.get(where)
        if flow is None:
            return
        flow.said += (header.fwd_cnt - flow.said) % (2 * HALF)
        if header.op == Op.RESPONSE:
            flow.open = True
        if header.op == Op.RW:
            flow.sent += header.len
        if header.op == Op.SHUTDOWN:
            flow.deaf |= bool(header.flags & Shutdown.RECEIVE)
        flow.told |= header.op == Op.RST

    def received(self, guest: VsockGuest, header: Header) -> None:
        """Note a packet that came."""
        where = (guest, header.dst_port, header.src_port, header.src_cid)
        if header.op == Op.REQUEST:
            self._start(*where, asked_by_guest=False)
        flow = self._current.get(where)
        if flow is None:
            return
        flow.open |= header.op == Op.RESPONSE
        flow.came += header.len
        if header.op == Op.RST:
            flow.told = True
            return
        step = (header.fwd_cnt - flow.fwd) % (2 * HALF)
        if step >= HALF:
            flow.faults.append(f"{flow}; then it went back to {header.fwd_cnt}")
        else:
            flow.fwd += step
        flow.told |= bool(header.op == Op.SHUTDOWN and header.flags & Shutdown.RECEIVE)

    def closing(self, guest: VsockGuest) -> None:
        """Check a guest's connections while its rings are still there."""
        self._settle(guest)
        for flow in self._of(guest):
            flow.told = True
            del self._current[guest, flow.guest_port, flow.host_port, flow.cid]

    def _start(
        self,
        guest: VsockGuest,
        port: int,
        host_port: int,
        cid: int,
        *,
        asked_by_guest: bool,
    ) -> None:
        flow = Flow(guest, port, host_port, cid, asked_by_guest)
        self._current[guest, port, host_port, cid] = flow
        self.flows.append(flow)

    # ---- the check ----

    def check(self) -> None:
        """Check all connections.

        Raises:
            AssertionError: bytes were acknowledged and not taken, and nobody was told.
        """
        for guest in {flow.guest for flow in self._current.values()}:
            self._settle(guest)
        assert not self._faults, "\n".join(self._faults)

    def _settle(self, guest: VsockGuest) -> None:
        """Note what is wrong; first take what may be on its way to the guest."""
        self._faults += [each for flow in self._of(guest) for each in flow.faults]
        for flow in self._of(guest):
            flow.faults.clear()
        found = self._wrong(guest)
        if found:
            with contextlib.suppress(TimeoutError, VhostUserError, OSError):
                guest.timeout_s = LIMIT_S  # an end may be on its way
                while found := self._wrong(guest):
                    guest._queued.append(guest._take())
        self._faults += found

    def _of(self, guest: VsockGuest) -> list[Flow]:
        return [flow for flow in self._current.values() if flow.guest is guest]

    def _wrong(self, guest: VsockGuest) -> list[str]:
        flows = [flow for flow in self._of(guest) if flow.open and not flow.told]
        found = [f"{flow}, more than all" for flow in flows if flow.fwd > flow.sent]
        for flow in flows:
            if flow.cid != CID_HOST:
                taken = self._sibling(flow)
            elif flow.asked_by_guest and flow.host_port == ECHO and not flow.deaf:
                taken = flow.came
            else:
                continue
            if flow.fwd > taken:
                found.append(f"{flow}; its sink took {taken}")
        for key in {flow.key for flow in flows if flow.cid == CID_HOST}:
            found += self._unmatched(key, [flow for flow in flows if flow.key == key])
        return found

    def _sibling(self, flow: Flow) -> float:
        """How much the other guest says it has consumed, if we know it."""
        for (guest, port, host_port, cid), other in self._current.items():
            ports = (port, host_port) == (flow.host_port, flow.guest_port)
            if ports and guest.cid == flow.cid and cid == flow.guest.cid:
                return other.said
        return math.inf

    def _unmatched(self, key: Key, flows: list[Flow]) -> list[str]:
        """Find the connections for which no socket of `key` took enough."""
        taken = sorted((sink.taken for sink in self.sinks[key]), reverse=True)
        taken = [math.inf] * (len(flows) - len(taken)) + taken
        flows.sort(key=lambda flow: -flow.fwd)
        return [
            f"{flow}; its sink took {most}"
            for flow, most in zip(flows, taken, strict=False)
            if flow.fwd > most
        ]


_active: list[Ledger] = []


@contextlib.contextmanager
def kept() -> Iterator[Ledger]:
    """Keep a ledger, the one that `watch()` writes into."""
    ledger = Ledger()
    _active.append(ledger)
    try:
        yield ledger
    finally:
        _active.remove(ledger)


def watch(sink: S, key: Key) -> S:
    """Note a host socket that takes the bytes of connections of `key`."""
    if _active:
        _active[-1].sinks[key].append(sink)
    return sink


def listening(sock: socket.socket, port: int) -> Listening:
    """Make a listening socket one whose clients are sinks of host port `port`."""
    timeout = sock.gettimeout()
    listener = Listening(fileno=sock.detach())
    listener.key = ("host", port)
    listener.settimeout(timeout)
    return listener
