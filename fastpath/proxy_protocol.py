"""PROXY protocol v2 headers, read and written: whose a connection is, and where to.

Pure: whoever has the socket reads `HEAD` bytes, asks `length` for the rest, and has
`parse` read both. Whoever writes headers may be hostile; what is read is bounded.

Spec: The PROXY protocol, versions 1 & 2 (HAProxy), section 2.2. TLV 0xD0 is the
source's SPIFFE ID, as Istio's ztunnel writes it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from fastpath.identity import Identity

HEAD: Final = 16
"""Bytes of a header up to its addresses."""
MAX_REST: Final = 4096
"""Of what may follow them: addresses and TLVs."""

_SIGNATURE: Final = bytes.fromhex("0d0a0d0a000d0a515549540a")
_PROXY, _LOCAL = 0x21, 0x20
_TCP4, _TCP6 = 0x11, 0x21
_IDENTITY: Final = 0xD0
_TLV: Final = struct.Struct("!BH")
_PORTS: Final = struct.Struct("!HH")
_SIZES: Final = {_TCP4: 4, _TCP6: 16}


class HeaderError(Exception):
    """The bytes are no header, or one of no use."""


@dataclass(frozen=True, slots=True)
class Header:
    """What one says. IPv4 addresses in IPv6 form are IPv4 addresses here."""

    source: tuple[str, int]
    destination: tuple[str, int]
    identity: str = ""
    """The source's SPIFFE ID, if there is one."""


def length(head: bytes) -> int:
    """How many bytes follow the first `HEAD` ones.

    Raises:
        HeaderError: they begin no header of TCP, or a longer one than `MAX_REST`.
    """
    if head[:12] != _SIGNATURE:
        raise HeaderError("no PROXY protocol v2 signature")
    command, family = head[12], head[13]
    (size,) = struct.unpack_from("!H", head, 14)
    if command == _LOCAL:
        raise HeaderError("a connection of the proxy's own (LOCAL)")
    if command != _PROXY:
        raise HeaderError(f"version and command {command:#04x}")
    if family not in _SIZES:
        raise HeaderError(f"family {family:#04x}: not TCP over IPv4 or IPv6")
    if not 2 * _SIZES[family] + _PORTS.size <= size <= MAX_REST:
        raise HeaderError(f"a header of {size} bytes")
    return int(size)


def parse(head: bytes, rest: bytes) -> Header:
    """Read a header.

    Args:
        head: its first `HEAD` bytes.
        rest: the `length(head)` that follow.

    Raises:
        HeaderError: it is malformed.
    """
    size = _SIZES[head[13]]
    source, destination = (_ip(rest[at : at + size]) for at in (0, size))
    source_port, destination_port = _PORTS.unpack_from(rest, 2 * size)
    if not destination_port:
        raise HeaderError("destination port 0")
    identity = _identity(rest[2 * size + _PORTS.size :])
    return Header((source, source_port), (destination, destination_port), identity)


def header(
    source: tuple[str, int], destination: tuple[str, int], identity: str = ""
) -> bytes:
    """Write one. Addresses of two versions are both written in IPv6 form.

    Args:
        source: the client's address.
        destination: where it was to go.
        identity: the client's SPIFFE ID; empty: none.
    """
    ips = [ip_address(host) for host, _ in (source, destination)]
    family = _TCP4
    if any(ip.version == 6 for ip in ips):
        family = _TCP6
        ips = [ip if ip.version == 6 else IPv6Address(f"::ffff:{ip}") for ip in ips]
    rest = b"".join(ip.packed for ip in ips) + _PORTS.pack(source[1], destination[1])
    if identity:
        rest += _TLV.pack(_IDENTITY, len(identity)) + identity.encode()
    head = bytes((_PROXY, family)) + struct.pack("!H", len(rest))
    return _SIGNATURE + head + rest


def _ip(packed: bytes) -> str:
    if len(packed) == 4:
        return str(IPv4Address(packed))
    ip = IPv6Address(packed)
    return str(ip.ipv4_mapped or ip)


def _identity(tlvs: bytes) -> str:
    """The SPIFFE ID among the TLVs, empty if there is none."""
    found, at = "", 0
    while at < len(tlvs):
        if len(tlvs) - at < _TLV.size:
            raise HeaderError("a TLV that is cut short")
        kind, size = _TLV.unpack_from(tlvs, at)
        at += _TLV.size
        if size > len(tlvs) - at:
            raise HeaderError("a TLV that is cut short")
        if kind == _IDENTITY:
            try:
                found = str(Identity.parse(tlvs[at : at + size].decode("ascii")))
            except ValueError as error:  # UnicodeDecodeError is one
                raise HeaderError(f"identity: {error}") from None
        at += size
    return found
