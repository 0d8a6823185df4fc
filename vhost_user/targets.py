"""Where the other end of a connection is: what Python tells the engine about it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_user._native import ffi, lib
from vhost_user.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address

    from vhost_user._vu import CStruct

SocketAddress = tuple[str, int]
"""IP address (v4 or v6, no scope) and port."""


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
    netns: int = 0
    """`NetnsHandle.id` of the network namespace that it is dialled in; 0: our own."""
    handoff: int = 0
    """`HandoffHandle.id` of the proxy that is told of the address, and connected to in
    its place; 0: none. `netns` is where a SOCKS5 proxy is; 0 with a unix socket."""


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


@dataclass(frozen=True, slots=True)
class Ring:
    """Offer it to a process, by rings of shared memory (docs/ring.md)."""

    peer: int
    """`PeerHandle.id`."""
    address: SocketAddress
    """Where the program connected to."""


@dataclass(frozen=True, slots=True)
class Hbone:
    """Open a stream of a tunnel."""

    pool: int
    """`Pool.id`."""
    headers: int
    """`Headers.id`, of the request."""


Target = Reset | Ask | Unix | Dial | Echo | Discard | Chargen | Vsock | Ring | Hbone
"""Where the other end of a connection is; `enum vu_target_kind`."""

_SIMPLE: Final[dict[type, int]] = {
    Ask: lib.VU_TARGET_ASK,
    Echo: lib.VU_TARGET_ECHO,
    Discard: lib.VU_TARGET_DISCARD,
    Chargen: lib.VU_TARGET_CHARGEN,
}


def encode(target: Target) -> CStruct:
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
        case Dial(address, netns, handoff):
            raw.kind = lib.VU_TARGET_DIAL
            raw.netns = netns
            raw.handoff = handoff
            data = sockaddr(address)
        case Ring(peer, address):
            raw.kind = lib.VU_TARGET_RING
            raw.peer = peer
            data = sockaddr(address)
        case Hbone(pool, headers):
            raw.kind = lib.VU_TARGET_HBONE
            data = struct.pack("=II", pool, headers)  # struct vu_hbone_target
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


def sockaddr(address: SocketAddress) -> bytes:
    """Return an address as the kernel's `sockaddr_in` or `sockaddr_in6`.

    Raises:
        StateError: it is no IP address.
    """
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


def put_addresses(raw: CStruct, addresses: Iterable[IPv4Address | IPv6Address]) -> None:
    """Fill in `has_ipv4`, `ipv4` and the like, with the first of each version."""
    for ip in addresses:
        if ip.version == 4 and not raw.has_ipv4:
            raw.has_ipv4 = True
            ffi.memmove(raw.ipv4, ip.packed, 4)
        elif ip.version == 6 and not raw.has_ipv6:
            raw.has_ipv6 = True
            ffi.memmove(raw.ipv6, ip.packed, 16)
