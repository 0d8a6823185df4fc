"""A guest's connection and the host socket at its other end, in each way to get one."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.conformance import ledger
from tests.conformance.ringend import RingEnd
from tests.conformance.threads import TIMEOUT_S
from vhost_user.vsock.packet import Op, Seq, Shutdown, Type

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.conftest import Host
    from vhost_user.vsock.driver import Connection, Packet, VsockGuest

MESSAGES: Final = {"kind": Type.SEQPACKET}

MANY_WAKEUPS: Final = 2000
"""A second, of an engine that waits for nothing; its timers make tens."""

_PORTS: Final = iter(range(20_000, 60_000))


@dataclass(frozen=True, slots=True)
class Way:
    """How a connection comes about."""

    id: str
    seqpacket: bool
    """Whether SEQPACKET connections can be made so."""
    unix: bool
    """Whether the host socket is a unix socket: it tells what its peer no longer does;
    TCP tells of a FIN or a RST only."""


WAYS: Final = (
    Way("unix", seqpacket=True, unix=True),
    Way("tcp", seqpacket=False, unix=False),
    Way("connect", seqpacket=True, unix=True),
    Way("offer", seqpacket=False, unix=True),
    Way("ring", seqpacket=False, unix=True),
)
"""From the guest to a unix socket, to TCP; to the guest with CONNECT, and by offer;
from the guest to a process, by rings of shared memory."""


def pairs(*, unix: bool = False) -> list[tuple[Way, Type]]:
    """Return each way with each socket type it has.

    Args:
        unix: only those to a unix socket.
    """
    return [
        (way, kind)
        for way in WAYS
        for kind in Type
        if (way.seqpacket or kind is Type.STREAM) and (way.unix or not unix)
    ]


def pair_id(pair: tuple[Way, Type]) -> str:
    """Name one of `pairs()` as the parameter of a test."""
    way, kind = pair
    return f"{way.id}-{kind.name.lower()}"


def connect(
    host: Host,
    guest: VsockGuest,
    way: Way,
    *,
    kind: Type = Type.STREAM,
    buf_alloc: int = 256 * 1024,
) -> tuple[Connection, socket.socket]:
    """Make a connection; its credit is as at its beginning."""
    make: dict[str, Callable[..., tuple[Connection, socket.socket]]] = {
        "unix": _unix,
        "tcp": _tcp,
        "connect": _connect,
        "offer": _offer,
        "ring": _ring,
    }
    return make[way.id](host, guest, kind, buf_alloc)


def host_type(kind: Type) -> socket.SocketKind:
    """Return the host's socket type for a vsock one."""
    return socket.SOCK_SEQPACKET if kind == Type.SEQPACKET else socket.SOCK_STREAM


def _unix(host, guest, kind, buf_alloc):
    port = next(_PORTS)
    with host.listen(port, host_type(kind)) as listener:
        conn = guest.connect(port, kind=kind, buf_alloc=buf_alloc)
        sock, _ = listener.accept()
    Path(f"{host.uds_path}_{port}").unlink()
    return conn, sock


def _tcp(host, guest, kind, buf_alloc):
    assert kind is Type.STREAM
    port = next(_PORTS)
    with host.listen_tcp(port) as listener:
        conn = guest.connect(port, buf_alloc=buf_alloc)
        sock, _ = listener.accept()
    return conn, sock


def _connect(host, guest, kind, buf_alloc):
    sock = host.dial(next(_PORTS), host_type(kind))
    conn = guest.accept(buf_alloc=buf_alloc)
    line = sock.recv(32)
    assert line.startswith(b"OK "), line
    assert line.endswith(b"\n"), line
    return conn, sock


def _offer(host, guest, kind, buf_alloc):
    assert kind is Type.STREAM
    port = next(_PORTS)
    sock, theirs = host.pair()
    with theirs:
        ledger.watch(sock, ("guest", port))
        host.call(lambda: host.device.handle.offer(port, theirs, port=port + 1))
        conn = guest.accept(buf_alloc=buf_alloc)
        guest.fence()  # the RESPONSE has come
    return conn, sock


def _ring(host, guest, kind, buf_alloc):
    assert kind is Type.STREAM
    port = next(_PORTS)
    with host.listen_ring(port) as listener:
        conn = guest.request(port, buf_alloc=buf_alloc)
        sock, _ = listener.accept()
        end = RingEnd(sock)
    conn.expect(Op.RESPONSE)
    ledger.watch(end, ("host", port))
    return conn, end


# ---- what both ends do and see ----


def say(conn: Connection, data: bytes) -> None:
    """Send one packet of payload; on a SEQPACKET connection, a whole message."""
    conn.say(Op.RW, data, flags=Seq.EOM if conn.kind == Type.SEQPACKET else 0)


def fill(guest: VsockGuest, conn: Connection) -> None:
    """Send until the host's socket and the device hold all that they take."""
    while conn.credit > 0:
        say(conn, b"x" * min(conn.credit, 8192))
        for packet in guest.fence():
            conn.take_credit(packet.header)


def tells_of_the_end(packet: Packet) -> bool:
    """Whether a packet says that the other side takes no more bytes."""
    header = packet.header
    return header.op == Op.RST or bool(
        header.op == Op.SHUTDOWN and header.flags & Shutdown.RECEIVE
    )


def write_until_told(conn: Connection, *, most: int = 64) -> Packet:
    """Write until the host says that it takes no more; return what says so.

    Each packet's bytes are accounted for before the next one goes. A TCP socket may
    take some before its peer's RST comes.

    Raises:
        AssertionError: `most` packets were taken and the guest was not told.
    """
    for _ in range(most):
        say(conn, b"x" * 100)
        conn.say(Op.CREDIT_REQUEST)
        while (packet := conn.receive()).op != Op.CREDIT_UPDATE:
            if tells_of_the_end(packet):
                return packet
    taken = conn.peer_fwd_cnt
    raise AssertionError(f"{taken} bytes acknowledged, nothing said of the end")


def write_until_refused(guest: VsockGuest, sock: socket.socket) -> None:
    """Write to a host socket until it says that nobody reads.

    Raises:
        AssertionError: it took what it can hold, and says nothing.
    """
    sock.setblocking(False)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(64):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(b"y" * 1000)
            guest.fence()
        raise AssertionError("the writer's socket is full and stays so")
    sock.settimeout(TIMEOUT_S)


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with a RST; a unix socket resets if bytes are unread."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def wait_for(happened, what: str = "it") -> None:
    """Wait until `happened()` is true."""
    until = time.monotonic() + TIMEOUT_S
    while not happened():
        assert time.monotonic() < until, f"{what} did not happen in {TIMEOUT_S:g} s"
        time.sleep(0.001)


def check_idle(host: Host) -> None:
    """Check that the engine sleeps while nothing happens.

    The slower the machine, the fewer wake-ups there can be.
    """
    before, start = host.engine_stats().wakeups, time.monotonic()
    time.sleep(0.3)
    woken = host.engine_stats().wakeups - before
    assert woken < MANY_WAKEUPS * (time.monotonic() - start)
