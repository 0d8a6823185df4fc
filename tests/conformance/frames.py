"""HTTP/2 frames and field blocks, written by hand from RFC 9113 and RFC 7541."""

from __future__ import annotations

import contextlib
import enum
import functools
import select
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.conformance.threads import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONT = range(10)
UNKNOWN: Final = 0xFA
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Code(enum.IntEnum):
    """Section 7: why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Section 4.1: nine bytes, and the payload."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def field(name: bytes, value: bytes) -> bytes:
    """RFC 7541 section 6.2.2: a literal without indexing, with a name of its own."""
    return b"\0" + bytes((len(name),)) + name + _size(len(value)) + value


def _size(size: int) -> bytes:
    """Section 5.1: of a string, up to 254; no Huffman code."""
    return bytes((size,) if size < 127 else (127, size - 127))


# RFC 7541, appendix A: 1 is ":authority", 2 and 3 are ":method", 4 is ":path /", 7 is
# ":scheme https", 8 is ":status 200". 0x80 on top: the whole field, else its name.
METHOD: Final = b"\x02\x07CONNECT"
AUTHORITY: Final = b"\x01\x0a10.0.0.9:7"
GET: Final = b"\x82"
PATH: Final = b"\x84"
SCHEME: Final = b"\x87"
OK: Final = b"\x88"
CONNECT: Final = METHOD + AUTHORITY


@dataclass(frozen=True, slots=True)
class Frame:
    """One that came."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> Code:
        """Why: of RST_STREAM and GOAWAY."""
        at = 4 if self.kind == GOAWAY else 0
        return Code(int.from_bytes(self.payload[at : at + 4], "big"))


class Wire:
    """A tunnel's other end, whose every byte is the test's.

    Args:
        sock: after the handshake.
        preface: what it says first.
    """

    def __init__(self, sock: ssl.SSLSocket, preface: bytes) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT_S)
        self._pings = 0
        self.say(preface)

    def say(self, *frames: bytes) -> None:
        """Send bytes, which the other end may cut."""
        self.sock.sendall(b"".join(frames))

    def frames(self) -> Iterator[Frame]:
        """Yield what comes, up to the end; SETTINGS and PINGs are acknowledged."""
        while head := self._read(9):
            payload = self._read(int.from_bytes(head[:3], "big"))
            kind, flags = head[3:5]
            if kind in {SETTINGS, PING} and not flags & ACK:
                self.say(frame(kind, ACK, 0, payload if kind == PING else b""))
            yield Frame(kind, flags, int.from_bytes(head[5:9], "big"), payload)

    def until(self, true: Callable[[Frame], bool]) -> list[Frame]:
        """Read up to a frame; return all of them, or what came before the end."""
        seen = []
        for each in self.frames():
            seen.append(each)
            if true(each):
                break
        return seen

    def fence(self) -> list[Frame]:
        """Wait until the other end has heard all, and sent what it had to say of it.

        Two rounds: the answer to a PING may overtake other frames.
        """
        seen = []
        for _ in range(2):
            self._pings += 1
            mark = self._pings.to_bytes(8, "big")
            with contextlib.suppress(OSError):  # it has ended; it may have said why
                self.say(frame(PING, 0, 0, mark))
            seen += self.until(functools.partial(_has, mark))
        return [each for each in seen if each.kind != PING or not each.flags & ACK]

    def shout(self, said: bytes) -> list[Frame]:
        """Send, and read meanwhile, up to the end; return what came.

        The other end may cut it in the middle. It has to end it.
        """
        self.sock.setblocking(False)
        came, left = b"", memoryview(said)
        while True:
            try:
                left = left[self.sock.send(left[:65536]) :] if left else left
            except ssl.SSLError:
                pass  # it takes no more for now
            except OSError:
                left = left[:0]
            try:
                more = self.sock.recv(1 << 16)
            except ssl.SSLWantReadError:
                writes = [self.sock] if left else []
                assert any(select.select([self.sock], writes, [], TIMEOUT_S))
                continue
            except OSError:
                more = b""
            if not more:
                return _parse(came)
            came += more

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self.sock.recv(size - len(data))
            except OSError:  # a RST: it was cut
                more = b""
            if not more:
                return b""
            data += more
        return data


def _has(payload: bytes, each: Frame) -> bool:
    return each.payload == payload


def _parse(said: bytes) -> list[Frame]:
    frames = []
    while len(said) >= 9:
        end = 9 + int.from_bytes(said[:3], "big")
        stream = int.from_bytes(said[5:9], "big")
        frames.append(Frame(said[3], said[4], stream, said[9:end]))
        said = said[end:]
    return frames
