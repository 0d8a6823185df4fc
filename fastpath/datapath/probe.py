"""Sends one connection over a path and looks at which hop it was seen.

A packet socket stands on each hop's device before the connection begins. What it saw is
told by the client's address and port, inside a tunnel, too.
"""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from fastpath.datapath import standin
from fastpath.datapath.build import Built
from fastpath.datapath.declared import GUEST, INBOUND_PORT, NODE, Capture
from fastpath.datapath.geneve import PORT as GENEVE_PORT
from fastpath.datapath.standin import SERVER_PORT, Guest, Listener, Sidecar
from fastpath.datapath.tunnels import VXLAN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastpath.datapath.declared import Datapath, Hop
    from fastpath.datapath.netns import Namespace

Address: TypeAlias = tuple[str, int]

DESTINATION: Final = ("198.18.0.1", 7)
"""Nobody's: RFC 2544's range. Only who captures connections can answer for it."""
MESSAGE: Final = b"fastpath path check"

_ETH_P_ALL: Final = 0x0003
_ETH_P_IP: Final = b"\x08\x00"
_GRE_KEY: Final = 0x2000
_TEB: Final = b"\x65\x58"
"""Ethernet frames in GRE."""
_SO_RCVBUFFORCE: Final = 33
_PACKET_OUTGOING: Final = 4
_WITH_HEADER: Final = {1, 772}
"""ARPHRD_ETHER and ARPHRD_LOOPBACK: frames begin with an Ethernet header."""
_FRAME: Final = 1 << 17
_IN_UDP: Final = 8 + 8
"""Bytes of Geneve's header, without options, or VXLAN's, and UDP's."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a hop saw of the connection."""

    hop: Hop
    there: int
    """Packets from the client."""
    back: int
    """Packets to it."""

    @property
    def good(self) -> bool:
        """Whether it is what the path says."""
        return self.there > 0 and (self.back > 0) is self.hop.replies


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the connection."""

    hops: tuple[Seen, ...]
    problem: str
    """Why it did not arrive as it should; empty: it did."""
    arrived: str
    """How the far end saw it, in words."""

    @property
    def good(self) -> bool:
        """Whether it took each hop and arrived."""
        return not self.problem and all(seen.good for seen in self.hops)


class Capturing:
    """All frames that a device sends and receives, since it was made."""

    def __init__(self, where: Namespace, device: str) -> None:
        self._twice = device == "lo"
        """Each frame is seen as it is sent, and as it is received."""
        self._socket = where.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((device, _ETH_P_ALL))
        self._socket.setblocking(False)

    def frames(self) -> Iterator[tuple[bool, bytes]]:
        """What came so far: whether the device sent it, and the frame."""
        while True:
            try:
                frame: bytes
                frame, address = self._socket.recvfrom(_FRAME)
            except BlockingIOError:
                return
            if address[3] not in _WITH_HEADER:  # it begins with the packet
                frame = bytes(12) + struct.pack("!H", address[1]) + frame
            sent = address[2] == _PACKET_OUTGOING
            if not (sent and self._twice):
                yield sent, frame

    def close(self) -> None:
        """Capture no more."""
        self._socket.close()


def check(path: Datapath) -> Outcome:
    """Build a path, send a connection from its sandbox, and take it down again.

    Raises:
        FastpathError: it can't be built.
    """
    with ExitStack() as stack:
        built, captures, guest = _set_up(path, path.hops, stack)
        listener = stack.enter_context(Listener(built))
        there = DESTINATION
        if path.capture is Capture.NONE:
            there = (path.server, SERVER_PORT)
        if path.inside:
            stack.enter_context(Sidecar(guest, path))
        own, onward, problem, arrived = _exchange(guest, listener, there)
        anew = path.sandbox.by_proxy or path.inside
        ends = [onward if anew and hop.at != GUEST else own for hop in path.hops]
        return Outcome(_seen(path.hops, captures, ends), problem, arrived)


def check_inbound(path: Datapath) -> Outcome:
    """The same from the node to the sandbox, by way of ztunnel's inbound listener.

    Raises:
        FastpathError: it can't be built.
    """
    with ExitStack() as stack:
        built, captures, guest = _set_up(path, path.inbound, stack)
        listener = stack.enter_context(Listener(built, INBOUND_PORT))
        server = stack.enter_context(guest.listen())
        client = stack.enter_context(built.netns[NODE].socket())
        client.settimeout(standin.TIMEOUT_S)
        there = (str(path.sandbox.address.ip), SERVER_PORT)
        own: Address | None = None
        onward_from: Address | None = None
        problem = arrived = ""
        try:
            client.connect(there)
            own = client.getsockname()
            accepted = listener.accept()
            stack.enter_context(accepted.sock)
            onward = stack.enter_context(standin.onward(built, accepted))
            onward_from = onward.getsockname()
            far, seen = server.accept()
            stack.enter_context(far)
            client.sendall(MESSAGE)
            onward.sendall(accepted.sock.recv(len(MESSAGE)))
            arrived = f"from {seen[0]}:{seen[1]} to {there[0]}:{there[1]}"
            if far.recv(len(MESSAGE)) != MESSAGE:
                problem = "what arrives differs"
            elif seen[0] != own[0]:
                problem = "the client's address is lost"
        except OSError as exc:
            problem = exc.strerror or "timed out"
        ends = [own] * (len(captures) - 1) + [onward_from]
        return Outcome(_seen(path.inbound, captures, ends), problem, arrived)


def _set_up(
    path: Datapath, hops: tuple[Hop, ...], stack: ExitStack
) -> tuple[Built, list[Capturing], Guest]:
    built = stack.enter_context(Built(path, stand_in=True))
    # a tap without a guest says nothing yet
    guest = stack.enter_context(Guest(built.nic, path.sandbox))
    netns = {**built.netns, GUEST: guest.netns}
    captures = [
        stack.enter_context(closing(Capturing(netns[it.at], it.device))) for it in hops
    ]
    return built, captures, guest


def _seen(
    hops: tuple[Hop, ...], captures: list[Capturing], ends: list[Address | None]
) -> tuple[Seen, ...]:
    return tuple(
        Seen(hop, *_count(capture, client))
        for hop, capture, client in zip(hops, captures, ends, strict=True)
    )


def _exchange(
    guest: Guest, listener: Listener, there: Address
) -> tuple[Address | None, Address | None, str, str]:
    """Connect, send, answer.

    Returns:
        the client's address; the same as the far end has it, which is a proxy's where
        that connects anew; a problem; who came.
    """
    try:
        client = guest.connect(there)
    except OSError as exc:
        return None, None, f"connect: {exc.strerror or 'timed out'}", ""
    with client:
        own = client.getsockname()
        try:
            accepted = listener.accept()
        except TimeoutError:
            return own, None, "connected, but not to the listener", ""
        with accepted.sock as far:
            client.sendall(MESSAGE)
            far.sendall(far.recv(len(MESSAGE)))
            echoed = client.recv(len(MESSAGE))
        to = "{}:{}".format(*accepted.destination)
        arrived = "from {}:{} to {}".format(*accepted.client, to)
        if echoed != MESSAGE:
            return own, accepted.client, "the answer differs", arrived
        if accepted.destination != there:
            return own, accepted.client, "the original destination is lost", arrived
    return own, accepted.client, "", arrived


def _count(capture: Capturing, client: Address | None) -> tuple[int, int]:
    """Packets from and to the client; each counts once, as device or as wire."""
    there = back = 0
    for _, frame in capture.frames():
        for packet in _tcp(frame):
            source, destination = _ends(packet)
            if client is None:
                there += destination[0] == DESTINATION[0]
            there += source == client
            back += destination == client
    return there, back


def _tcp(frame: bytes) -> Iterator[bytes]:
    """The IPv4 TCP packet in an Ethernet frame, or in the tunnel's packet in it."""
    if frame[12:14] == _ETH_P_IP:
        yield from _tcp_of(frame[14:])


def _tcp_of(packet: bytes) -> Iterator[bytes]:
    size = (packet[0] & 15) * 4
    inner = packet[size:]
    match packet[9]:
        case socket.IPPROTO_TCP:
            yield packet
        case socket.IPPROTO_IPIP:
            yield from _tcp_of(inner)
        case socket.IPPROTO_UDP:
            (port,) = struct.unpack_from("!H", inner, 2)
            if port == GENEVE_PORT:
                options = (inner[8] & 0x3F) * 4
                yield from _tcp(inner[_IN_UDP + options :])
            elif port == VXLAN.port:
                yield from _tcp(inner[_IN_UDP:])
        case socket.IPPROTO_GRE:
            (flags,) = struct.unpack_from("!H", inner)
            within = inner[8 if flags & _GRE_KEY else 4 :]
            yield from _tcp(within) if inner[2:4] == _TEB else _tcp_of(within)
        case _:
            pass


def _ends(packet: bytes) -> tuple[Address, Address]:
    size = (packet[0] & 15) * 4
    source, destination = struct.unpack_from("!HH", packet, size)
    return (
        (socket.inet_ntoa(packet[12:16]), source),
        (socket.inet_ntoa(packet[16:20]), destination),
    )
