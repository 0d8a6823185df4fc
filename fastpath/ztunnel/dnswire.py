"""DNS messages as bytes: a guest's query, what is made of it, and whose answer it is.

Both sides are hostile: a guest writes queries, and can choose whose answers to ask for
by the name it asks for. So as little as can be is read, in a time that does not grow
with the message:

- Of a query, the header, one question, and one OPT record, which has to be all that
  follows. Whatever has more is refused before it is looked at.
- Of an answer, the header and the question. Its records are the guest's to read.

What goes to a resolver is written anew from what was read of the query; no byte of the
guest's but the labels of the name is in it.

Spec: RFC 1035 section 4.1; RFC 6891 for OPT; RFC 9619 for one question.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhost_user.schema import IpAddress

MAX_QUERY: Final = 4096
"""Bytes; a name has 255 at most, the rest is padding (RFC 7830) and options."""
MAX_MESSAGE: Final = 65535
LARGEST_UDP: Final = 4096
"""Most bytes of an answer over UDP, whatever the client says it takes."""
PLAIN_UDP: Final = 512
"""To one who does not say."""

CLASS_IN: Final = 1
QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
_RD: Final = 0x0100
_RA: Final = 0x0080
_AD: Final = 0x0020
_CD: Final = 0x0010
_OPCODE: Final = 0x7800
_RCODE: Final = 0x000F
_DO: Final = 0x8000

_HEADER: Final = struct.Struct("!6H")
_QUESTION: Final = struct.Struct("!2H")
_OPT: Final = struct.Struct("!xHHBBHH")
"""Root name, type, UDP size, rest of the rcode, version, flags, length."""
_RECORD: Final = struct.Struct("!3HIH")
_TO_THE_NAME: Final = 0xC000 | _HEADER.size
"""A compressed name: the question's."""
_MAX_LABEL: Final = 63
_MAX_NAME: Final = 255
"""Bytes of a name, lengths of labels and the root included."""


class Type(enum.IntEnum):
    """Types of records that mean something here."""

    A = 1
    AAAA = 28
    OPT = 41
    IXFR = 251
    AXFR = 252


class Rcode(enum.IntEnum):
    """How a query ended."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


@dataclass(frozen=True, slots=True)
class Query:
    """What was read of a query."""

    id: int
    flags: int
    question: bytes
    """As it came: the answer has to repeat it, letter case and all."""
    labels: tuple[bytes, ...]
    type: int
    rdclass: int
    udp_size: int | None = None
    """What its OPT record says; None: it has none."""
    dnssec: bool = False

    @property
    def name(self) -> str | None:
        """In small letters, without the last dot; None: it is no host name."""
        text = b".".join(self.labels)
        if text.count(b".") != max(len(self.labels) - 1, 0) or not text.isascii():
            return None
        return text.decode("ascii").lower()

    @property
    def room(self) -> int:
        """Most bytes of an answer over UDP."""
        return min(max(self.udp_size or PLAIN_UDP, PLAIN_UDP), LARGEST_UDP)


class MalformedError(ValueError):
    """What was read is no message that could be answered."""


class UnservedError(Exception):
    """A query that is answered with an error.

    Args:
        query: what was read of it.
        rcode: the answer.
    """

    def __init__(self, query: Query, rcode: Rcode) -> None:
        super().__init__(rcode)
        self.query = query
        self.rcode = rcode


def parse_query(wire: bytes) -> Query:
    """Read a query.

    Raises:
        MalformedError: it is none, or its question can't be read.
        UnservedError: it is no plain query for one question, or has other records.
    """
    if not _HEADER.size <= len(wire) <= MAX_QUERY:
        raise MalformedError(f"{len(wire)} bytes")
    number, flags, questions, answers, authorities, more = _HEADER.unpack_from(wire)
    if flags & QR or questions != 1:
        raise MalformedError(f"flags {flags:#x}, {questions} questions")
    labels, at = _read_name(wire, _HEADER.size)
    end = at + _QUESTION.size
    if end > len(wire):
        raise MalformedError("the question is cut off")
    kind, rdclass = _QUESTION.unpack_from(wire, at)
    question = wire[_HEADER.size : end]
    query = Query(number, flags, question, labels, kind, rdclass)
    if flags & _OPCODE:
        raise UnservedError(query, Rcode.NOTIMP)
    if answers or authorities or more > 1:
        raise UnservedError(query, Rcode.FORMERR)
    return _with_options(query, wire, end) if more else _alone(query, wire, end)


def _alone(query: Query, wire: bytes, end: int) -> Query:
    if end != len(wire):
        raise UnservedError(query, Rcode.FORMERR)
    return query


def _with_options(query: Query, wire: bytes, at: int) -> Query:
    """Add what the OPT record says, the last thing in the message."""
    if at + _OPT.size > len(wire) or wire[at] != 0:
        raise UnservedError(query, Rcode.FORMERR)
    kind, size, _, version, flags, length = _OPT.unpack_from(wire, at)
    if kind != Type.OPT or at + _OPT.size + length != len(wire):
        raise UnservedError(query, Rcode.FORMERR)
    found = Query(
        query.id,
        query.flags,
        query.question,
        query.labels,
        query.type,
        query.rdclass,
        size,
        bool(flags & _DO),
    )
    if version:
        raise UnservedError(found, Rcode.BADVERS)
    return found


def _read_name(wire: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """Return a name's labels, and where it ends; there is none before to point to."""
    labels: list[bytes] = []
    start = at
    while at < len(wire):
        size = wire[at]
        at += 1
        if size == 0:
            return tuple(labels), at
        if size > _MAX_LABEL or at + size + 1 - start > _MAX_NAME:
            break
        labels.append(wire[at : at + size])
        at += size
    raise MalformedError("the name can't be read")


def question_for(query: Query, number: int) -> bytes:
    """Return the query as it goes to a resolver, with this id."""
    name = b"".join(bytes((len(label),)) + label for label in query.labels) + b"\0"
    flags = query.flags & (_RD | _AD | _CD)
    options = b"" if query.udp_size is None else _option(query, query.room)
    head = _HEADER.pack(number, flags, 1, 0, 0, bool(options))
    return head + name + _QUESTION.pack(query.type, query.rdclass) + options


def is_answer(query: Query, number: int, wire: bytes) -> bool:
    """Whether this came for the query that was sent with this id.

    Raises:
        MalformedError: it did, and is no answer to it.
    """
    if int.from_bytes(wire[:2]) != number:
        return False
    if len(wire) < _HEADER.size:
        raise MalformedError(f"an answer of {len(wire)} bytes")
    _, flags, questions, *_ = _HEADER.unpack_from(wire)
    end = _HEADER.size + len(query.question)
    same = _folded(wire[_HEADER.size : end]) == _folded(query.question)
    if flags & (QR | _OPCODE) != QR or questions != 1 or not same:
        raise MalformedError("it is no answer to what was asked")
    return True


def _folded(question: bytes) -> bytes:
    """A question with its name in small letters (RFC 4343); type and class stay."""
    end = len(question) - _QUESTION.size
    return question[:end].lower() + question[end:]


def rcode(wire: bytes) -> int:
    """How a query ended, by an answer that `is_answer`."""
    return wire[3] & _RCODE


def hand_on(query: Query, wire: bytes) -> bytes:
    """Make a resolver's answer one to the client's own query."""
    end = _HEADER.size + len(query.question)
    head = query.id.to_bytes(2) + wire[2 : _HEADER.size]
    return head + query.question + wire[end:]


def respond(
    query: Query,
    code: int = Rcode.NOERROR,
    *,
    records: Sequence[bytes] = (),
    flags: int = 0,
) -> bytes:
    """Return an answer of ours; `flags` are AA and TC."""
    flags |= QR | _RA | query.flags & (_OPCODE | _RD | _CD) | code & _RCODE
    options = b"" if query.udp_size is None else _option(query, LARGEST_UDP, code)
    counts = (1, len(records), 0, bool(options))
    head = _HEADER.pack(query.id, flags, *counts)
    return b"".join((head, query.question, *records, options))


def fit(query: Query, wire: bytes, *, tcp: bool) -> bytes:
    """Return an answer; without its records, and marked so, if it's too long."""
    if len(wire) <= (MAX_MESSAGE if tcp else query.room):
        return wire
    return respond(query, rcode(wire), flags=TC)


def address_records(
    addresses: Iterable[IpAddress], kind: int, ttl_s: int
) -> list[bytes]:
    """Return the records of the question's name, for the addresses of its family."""
    version = {Type.A: 4, Type.AAAA: 6}[Type(kind)]
    return [
        _RECORD.pack(_TO_THE_NAME, kind, CLASS_IN, ttl_s, len(address.packed))
        + address.packed
        for address in addresses
        if address.version == version
    ]


def _option(query: Query, size: int, code: int = 0) -> bytes:
    flags = _DO if query.dnssec else 0
    return _OPT.pack(Type.OPT, size, code >> 4, 0, flags, 0)
