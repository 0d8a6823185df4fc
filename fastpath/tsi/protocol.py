"""Messages of TSI streams, the control stream's own: bytes to values and back; no I/O.

`datagram_protocol.py` has the datagram stream's. `guest/include/wire.h` is the other
end. What a guest sends is checked here, once:
a value of these types is well formed.

Spec: docs/tsi-protocol.md, section 3 "Messages".
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.engine import SocketAddress

TSI_PORT: Final = 21587
"""vsock port of the control stream on the host."""
DATAGRAM_PORT: Final = 21588
"""vsock port of the datagram stream on the host."""
VERSION: Final = 1
"""The only version there is."""
FIRST_TOKEN: Final = 0x10000
"""Lowest vsock port that is a token."""
UNKNOWN_TOKEN: Final = 116
"""`error` of a FAILED for a token that the host does not know: ESTALE."""
MAX_TEXT: Final = 200
"""Most bytes of a REFUSED message's text."""
FIRST_PEER_PORT: Final = 0x80000000
"""Lowest vsock port that the host connects to a listener from."""
PEER_RANGES: Final = 0x4000
"""Ranges of 65536 ports from there, one a client IP; two are no IP's."""
UNNAMED_RANGES: Final = {4: 0, 6: PEER_RANGES - 1}
"""Those two, by the family of the listeners that they are for."""

_MAGIC: Final = 0x41495354  # "TSIA"
_HEADER: Final = struct.Struct("<HH")
_HELLO: Final = struct.Struct("<IHH")
KEY_SIZE: Final = 16
"""Bytes of a key."""
HELLO_SIZES: Final = (_HELLO.size, _HELLO.size + KEY_SIZE)
STREAMS: Final = (TSI_PORT, DATAGRAM_PORT)
"""Ports of agents' streams."""
LAST_PRIVILEGED_PORT: Final = 1023
"""A guest's kernel lets those bind vsock ports up to this that may bind TCP's."""
_WELCOME: Final = struct.Struct("<HHIIII4s16s")
_REFUSED: Final = struct.Struct("<I")
_ROUTE: Final = struct.Struct("<IHH16s")
_FAILED: Final = struct.Struct("<III")
_LISTEN: Final = struct.Struct("<IIHHHH16s")
_LISTENING: Final = struct.Struct("<IHHI")
_CALLER: Final = struct.Struct("<IHH16s")
_UNLISTEN: Final = struct.Struct("<I")
_INTRODUCED: Final = struct.Struct("<I")

_V6ONLY: Final = 1


class Type(enum.IntEnum):
    """Message types: 16 to 31 are listeners', 32 to 47 the datagram stream's."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    ROUTE = 4
    FAILED = 5
    LISTEN = 16
    LISTENING = 17
    CALLER = 18
    UNLISTEN = 19
    INTRODUCED = 20
    GRANT = 32
    PEER = 33
    VERDICT = 34
    DATAGRAM = 35
    UNREACHABLE = 36


class Refusal(enum.IntEnum):
    """Why the host ends a stream; `code` of a REFUSED message."""

    MALFORMED = 1
    VERSION = 2
    UNEXPECTED = 3
    LIMIT = 4
    KEY = 5


class ProtocolError(Exception):
    """The guest broke the protocol: its stream is refused.

    Args:
        code: goes into the REFUSED message.
        text: likewise; ASCII, at most `MAX_TEXT` bytes.
    """

    def __init__(self, code: Refusal, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Hello:
    """The agent's first message: the versions it speaks."""

    version_min: int
    version_max: int
    key: bytes = field(default=b"", repr=False)
    """What init had from the host; empty: it has none."""

    def check(self, key: bytes) -> None:
        """Hold it against what the sandbox asks for.

        Args:
            key: the sandbox's; empty: none is needed.

        Raises:
            ProtocolError: no common version, or not its key.
        """
        if not self.version_min <= VERSION <= self.version_max:
            text = f"versions {self.version_min} to {self.version_max}, not {VERSION}"
            raise ProtocolError(Refusal.VERSION, text)
        # as ints: how long that takes doesn't say which byte is wrong
        same = int.from_bytes(self.key, "big") ^ int.from_bytes(key, "big") == 0
        if key and (len(self.key) != len(key) or not same):
            raise ProtocolError(
                Refusal.KEY, "HELLO: not this sandbox's key; init has it from the host"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The answer to HELLO: what the agent may use."""

    first_token: int
    """First token that belongs to the stream."""
    token_count: int
    """How many do, in sequence."""
    window: int
    """The latest so many registered tokens can be connected to."""
    connect_timeout_ms: int
    """By then the host has settled every connect."""
    ipv4: ipaddress.IPv4Address | None = None
    """The pod's, for getsockname()."""
    ipv6: ipaddress.IPv6Address | None = None

    def encode(self) -> bytes:
        """Return the message."""
        payload = _WELCOME.pack(
            VERSION,
            0,
            self.first_token,
            self.token_count,
            self.window,
            self.connect_timeout_ms,
            self.ipv4.packed if self.ipv4 else bytes(4),
            self.ipv6.packed if self.ipv6 else bytes(16),
        )
        return message(Type.WELCOME, payload)


@dataclass(frozen=True, slots=True)
class Refused:
    """The host ends the stream, and says why."""

    code: Refusal
    text: str

    def encode(self) -> bytes:
        """Return the message; a long text is cut."""
        text = self.text.encode("ascii", "backslashreplace")[:MAX_TEXT]
        return message(Type.REFUSED, _REFUSED.pack(self.code) + text)


@dataclass(frozen=True, slots=True)
class Route:
    """The agent gives a destination a token."""

    token: int
    destination: SocketAddress


@dataclass(frozen=True, slots=True)
class Failed:
    """Why the guest's connection request was reset."""

    guest_port: int
    token: int
    error: int
    """Linux errno, or `UNKNOWN_TOKEN`."""

    def encode(self) -> bytes:
        """Return the message."""
        payload = _FAILED.pack(self.guest_port, self.token, self.error)
        return message(Type.FAILED, payload)


@dataclass(frozen=True, slots=True)
class Listen:
    """A program in the guest listens."""

    listener: int
    """vsock port that listens."""
    backlog: int
    port: int
    """TCP port."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    """What it bound; its version is the socket's family."""
    v6only: bool = False
    """An IPv6 socket that takes IPv6 clients only."""

    def takes(self, version: int) -> bool:
        """Whether clients of this IP version reach it."""
        if self.address.version == 4 or self.v6only:
            return version == self.address.version
        mapped = self.address.ipv4_mapped is not None
        return version == 4 if mapped else version == 6 or self.address.is_unspecified

    def shows(
        self, ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    ) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """A client's IP as accept() gives it."""
        if ip.version == self.address.version:
            return ip
        return ipaddress.IPv6Address(f"::ffff:{ip}")


@dataclass(frozen=True, slots=True)
class Listening:
    """The answer to LISTEN."""

    listener: int
    port: int
    """TCP port that it is reached at; 0: it is not published."""
    error: int = 0
    """Why it cannot be published, an errno."""

    def encode(self) -> bytes:
        """Return the message."""
        payload = _LISTENING.pack(self.listener, self.port, 0, self.error)
        return message(Type.LISTENING, payload)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose connections come from a range of the host's ports."""

    ports: int
    """The first of 65536."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    """As listeners of its family show it: v4-mapped ones, too."""

    def encode(self) -> bytes:
        """Return the message."""
        family = self.address.version
        payload = _CALLER.pack(self.ports, family, 0, self.address.packed)
        return message(Type.CALLER, payload)


@dataclass(frozen=True, slots=True)
class Unlisten:
    """A listener is gone."""

    listener: int


@dataclass(frozen=True, slots=True)
class Introduced:
    """The answer to CALLER: connections from the range may come."""

    ports: int


GuestMessage = Hello | Route | Listen | Unlisten | Introduced
"""What an agent may send on a control stream."""
Message = TypeVar("Message")


class MessageDecoder(Generic[Message]):
    """Cuts a guest's bytes into messages; holds at most one incomplete one.

    Args:
        decoder_of: returns what decodes the payload of a message of this type and
            size; raises `ProtocolError` if no agent may send such a one here.
    """

    def __init__(
        self, decoder_of: Callable[[int, int], Callable[[bytes], Message]]
    ) -> None:
        self._decoder_of = decoder_of
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add `data`; yield the messages that are complete.

        Who stops early gets the rest from the next call; it may add nothing.

        Raises:
            ProtocolError: at the first message that breaks the protocol. What
                follows it has no meaning: feed no more.
        """
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _HEADER.size:
                number, size = _HEADER.unpack_from(self._buffer, at)
                decode = self._decoder_of(number, size)
                end = at + _HEADER.size + size
                if len(self._buffer) < end:
                    break
                payload = bytes(self._buffer[at + _HEADER.size : end])
                at = end
                yield decode(payload)
        finally:
            del self._buffer[:at]


class Decoder(MessageDecoder[GuestMessage]):
    """For a control stream."""

    def __init__(self) -> None:
        super().__init__(_decoder_of)


def source_port(guest_port: int) -> int:
    """Return the TCP source port that stands for a guest's vsock port.

    getsockname() in the guest says the same, so that a line in an access log and
    one in the program's log can be matched.
    """
    return guest_port & 0xFFFF


def message(kind: Type, payload: bytes) -> bytes:
    """Return a message with its header."""
    return _HEADER.pack(kind, len(payload)) + payload


def decode_hello(payload: bytes) -> Hello:
    """Decode; raises ProtocolError if it is no agent's."""
    magic, version_min, version_max = _HELLO.unpack_from(payload)
    if magic != _MAGIC:
        raise ProtocolError(Refusal.MALFORMED, f"HELLO: magic is {magic:#x}")
    if version_min > version_max:
        raise ProtocolError(
            Refusal.MALFORMED, f"HELLO: versions {version_min} to {version_max}"
        )
    key = payload[_HELLO.size :]
    if len(key) not in {0, KEY_SIZE}:
        raise ProtocolError(Refusal.MALFORMED, f"HELLO: a key of {len(key)} bytes")
    return Hello(version_min, version_max, key)


def _decode_route(payload: bytes) -> Route:
    token, family, port, address = _ROUTE.unpack(payload)
    if token < FIRST_TOKEN:
        raise ProtocolError(Refusal.MALFORMED, f"ROUTE: {token} is no token")
    return Route(token, endpoint("ROUTE", family, port, address))


def endpoint(name: str, family: int, port: int, address: bytes) -> SocketAddress:
    """Return the address in a message called `name`.

    Raises:
        ProtocolError: it is none, or a v4-mapped one.
    """
    if family == 4 and not any(address[4:]):
        return str(ipaddress.IPv4Address(address[:4])), port
    if family == 6:
        ipv6 = ipaddress.IPv6Address(address)
        if ipv6.ipv4_mapped is None:
            return str(ipv6), port
    raise ProtocolError(
        Refusal.MALFORMED, f"{name}: family {family}, address {address.hex()}"
    )


def _decode_listen(payload: bytes) -> Listen:
    listener, backlog, port, family, flags, _, packed = _LISTEN.unpack(payload)
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    if listener < FIRST_TOKEN or port == 0:
        text = f"LISTEN: listener {listener}, port {port}"
        raise ProtocolError(Refusal.MALFORMED, text)
    if family == 4 and not any(packed[4:]):
        address = ipaddress.IPv4Address(packed[:4])
    elif family == 6:
        address = ipaddress.IPv6Address(packed)
    else:
        text = f"LISTEN: family {family}, address {packed.hex()}"
        raise ProtocolError(Refusal.MALFORMED, text)
    return Listen(listener, backlog, port, address, bool(flags & _V6ONLY))


def _decode_unlisten(payload: bytes) -> Unlisten:
    return Unlisten(*_UNLISTEN.unpack(payload))


def _decode_introduced(payload: bytes) -> Introduced:
    return Introduced(*_INTRODUCED.unpack(payload))


_DECODERS: Final[dict[int, tuple[tuple[int, ...], Callable[[bytes], GuestMessage]]]] = {
    Type.HELLO: (HELLO_SIZES, decode_hello),
    Type.ROUTE: ((_ROUTE.size,), _decode_route),
    Type.LISTEN: ((_LISTEN.size,), _decode_listen),
    Type.UNLISTEN: ((_UNLISTEN.size,), _decode_unlisten),
    Type.INTRODUCED: ((_INTRODUCED.size,), _decode_introduced),
}


def _decoder_of(number: int, size: int) -> Callable[[bytes], GuestMessage]:
    """Return what decodes a message with this header.

    Raises:
        ProtocolError: no agent may send such a message.
    """
    found = _DECODERS.get(number)
    if found is None:
        raise ProtocolError(Refusal.UNEXPECTED, f"message type {number}")
    want, decode = found
    if size not in want:
        name, need = Type(number).name, " or ".join(map(str, want))
        raise ProtocolError(Refusal.MALFORMED, f"{name}: {size} bytes, need {need}")
    return decode
