"""A query of our own for a host's addresses, and what its answer says.

A resolver of the host's is believed: records of the answer section are the name's, by
whatever aliases (CNAME) it got there. What is read is bounded all the same.

Spec: RFC 1035, sections 3.2, 3.4 and 4.1; RFC 3596.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from fastpath.ztunnel.dnswire import CLASS_IN, TC, MalformedError, Query, Type

if TYPE_CHECKING:
    from vhost_user.schema import IpAddress

MAX_ADDRESSES: Final = 256
MAX_RECORDS: Final = 1024
UDP_SIZE: Final = 1232
"""What needs no fragments (DNS flag day 2020)."""

_RD: Final = 0x0100
_HEADER: Final = struct.Struct("!6H")
_RECORD: Final = struct.Struct("!2HIH")
"""Type, class, seconds that it holds, length."""
_POINTER: Final = 0xC0
_SIZES: Final = {Type.A: 4, Type.AAAA: 16}


@dataclass(frozen=True, slots=True)
class Answer:
    """Addresses, and for how long they hold."""

    addresses: tuple[IpAddress, ...]
    ttl_s: int


def query_for(name: str, kind: Type) -> Query:
    """A query for a host's addresses.

    Raises:
        MalformedError: it is no host's name.
    """
    labels = tuple(each.encode() for each in name.removesuffix(".").split("."))
    if not name.isascii() or not all(0 < len(each) < 64 for each in labels):
        raise MalformedError(f"{name} is no host name")
    wire = b"".join(bytes((len(each),)) + each for each in labels) + b"\0"
    if len(wire) > 255:
        raise MalformedError(f"{name} is no host name")
    question = wire + struct.pack("!2H", kind, CLASS_IN)
    return Query(0, _RD, question, labels, kind, CLASS_IN, UDP_SIZE)


def is_cut(wire: bytes) -> bool:
    """Whether an answer by UDP had no room for all."""
    return bool(int.from_bytes(wire[2:4]) & TC)


def parse(query: Query, wire: bytes) -> Answer:
    """Read the addresses of an answer that is one to the query.

    Raises:
        MalformedError: it can't be read.
    """
    count = _HEADER.unpack_from(wire)[3]
    if count > MAX_RECORDS:
        raise MalformedError(f"{count} records")
    at = _HEADER.size + len(query.question)
    addresses: list[IpAddress] = []
    ttls: list[int] = []
    for _ in range(count):
        at = _skip_name(wire, at)
        end = at + _RECORD.size
        if end > len(wire):
            raise MalformedError("a record is cut off")
        kind, rdclass, ttl_s, size = _RECORD.unpack_from(wire, at)
        at = end + size
        if at > len(wire):
            raise MalformedError("a record is cut off")
        ttls.append(ttl_s)
        if kind == query.type and rdclass == CLASS_IN:
            if size != _SIZES[Type(kind)]:
                raise MalformedError(f"an address of {size} bytes")
            addresses.append(ip_address(wire[end:at]))
    return Answer(tuple(addresses[:MAX_ADDRESSES]), min(ttls, default=0))


def _skip_name(wire: bytes, at: int) -> int:
    """Return where a name ends, that of its letters which are here."""
    while at < len(wire):
        size = wire[at]
        if size & _POINTER == _POINTER:
            return at + 2
        if size & _POINTER:
            break
        at += 1 + size
        if not size:
            return at
    raise MalformedError("a name can't be read")
