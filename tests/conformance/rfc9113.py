"""What a peer may say wrong, and what RFC 9113 wants then: a table.

The tunnel that a case is said on has streams in each state, the same ones whether the
peer is the client or the server:

    OPEN     both may send
    HALF     the peer has ended
    CLOSED   both have ended
    RESET    the peer has reset it
    IDLE     nobody has opened it
    SKIPPED  client: there are later ones, but this one never was
    NEW      client: the next one
    ASKED    server: a CONNECT that isn't answered
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.conformance.frames import (
    ACK,
    CONNECT,
    CONT,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OK,
    PADDED,
    PING,
    PRIORITY,
    RST,
    SETTINGS,
    UNKNOWN,
    WINDOW,
    WITH_PRIORITY,
    Code,
    field,
    frame,
)

OPEN, HALF, CLOSED, RESET, SKIPPED, NEW, IDLE = 1, 3, 5, 7, 9, 13, 99
ASKED: Final = 9
MAX: Final = b"\x7f\xff\xff\xff"
FRAME_MOST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Ends:
    """A connection error: GOAWAY with this code, and the tunnel ends."""

    code: Code


@dataclass(frozen=True, slots=True)
class Resets:
    """A stream error: RST_STREAM with this code, and the tunnel goes on."""

    code: Code
    stream: int = OPEN


@dataclass(frozen=True, slots=True)
class Answers:
    """A status, and the tunnel goes on."""

    status: bytes
    """As it is in the field block."""
    stream: int = NEW


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing comes of it."""


Wants = Ends | Resets | Answers | Ignored
IGNORED: Final = Ignored()
PROTOCOL: Final = Ends(Code.PROTOCOL_ERROR)
FLOW: Final = Ends(Code.FLOW_CONTROL_ERROR)
SIZE: Final = Ends(Code.FRAME_SIZE_ERROR)
COMPRESSION: Final = Ends(Code.COMPRESSION_ERROR)


@dataclass(frozen=True, slots=True)
class Case:
    """What is said.

    Args:
        said: bytes.
        wants: what has to come of it.
        spec: the requirement, as requirements/http2.toml has it; "": none of its own.
    """

    said: bytes
    wants: Wants
    spec: str


def settings(code: int, value: int) -> bytes:
    """SETTINGS of one parameter (6.5.1)."""
    return frame(SETTINGS, 0, 0, code.to_bytes(2, "big") + value.to_bytes(4, "big"))


def headers(stream: int, block: bytes, flags: int = END_HEADERS) -> bytes:
    """HEADERS with a whole field block."""
    return frame(HEADERS, flags, stream, block)


def number(value: int) -> bytes:
    """32 bits."""
    return value.to_bytes(4, "big")


PINGED: Final = frame(PING, 0, 0, bytes(8))
CUT: Final = headers(OPEN, field(b"x", b"y"), END_STREAM)
"""A field block that goes on."""

BOTH: Final[dict[str, Case]] = {
    # 4.1 Frame Format
    "unknown-type": Case(frame(UNKNOWN, 0xFF, OPEN, b"x"), IGNORED, "4.1/unknown-type"),
    "unknown-type-on-0": Case(frame(UNKNOWN, 0, 0, b"x"), IGNORED, "4.1/unknown-type"),
    "unused-flags": Case(
        frame(PING, 0xFE, 0, bytes(8)) + frame(DATA, 0xF2, OPEN, b"x"),
        IGNORED,
        "4.1/unused-flags",
    ),
    "reserved-bit": Case(
        frame(PING, 0, 1 << 31, bytes(8)), IGNORED, "4.1/reserved-bit"
    ),
    # 4.2 Frame Size
    "data-above-the-maximum": Case(
        (FRAME_MOST + 1).to_bytes(3, "big") + b"\0\0\0\0\0\1", SIZE, "4.2/size-error"
    ),
    "unknown-type-above-the-maximum": Case(
        b"\xff\xff\xff\xfa\0\0\0\0\1", SIZE, "4.2/size-error"
    ),
    "headers-above-the-maximum": Case(
        b"\xff\xff\xff\x01\x04\0\0\0\x01", SIZE, "4.2/connection"
    ),
    "settings-above-the-maximum": Case(
        b"\xff\xff\xfc\x04\0\0\0\0\0", SIZE, "4.2/connection"
    ),
    # 4.3 Field Section Compression and Decompression
    "ping-in-a-field-block": Case(CUT + PINGED, PROTOCOL, "4.3/contiguous"),
    "data-in-a-field-block": Case(
        CUT + frame(DATA, 0, OPEN, b"x"), PROTOCOL, "4.3/contiguous"
    ),
    "priority-in-a-field-block": Case(
        CUT + frame(PRIORITY, 0, OPEN, bytes(5)), PROTOCOL, "4.3/contiguous"
    ),
    # 5.1 Stream States
    "data-on-idle": Case(frame(DATA, 0, IDLE, b"x"), PROTOCOL, "5.1/idle"),
    "reset-on-idle": Case(frame(RST, 0, IDLE, bytes(4)), PROTOCOL, "5.1/idle"),
    "window-on-idle": Case(frame(WINDOW, 0, IDLE, number(1)), PROTOCOL, "5.1/idle"),
    "continuation-on-idle": Case(
        frame(CONT, END_HEADERS, IDLE, b"\x82"), PROTOCOL, "5.1/idle"
    ),
    "headers-on-the-other-sides-idle": Case(
        headers(2, CONNECT), PROTOCOL, "5.1/idle-of-the-server"
    ),
    "priority-on-idle": Case(
        frame(PRIORITY, 0, IDLE, bytes(5)), IGNORED, "5.1/priority"
    ),
    "data-behind-the-end": Case(
        frame(DATA, 0, HALF, b"x"), Resets(Code.STREAM_CLOSED, HALF), "5.1/half-closed"
    ),
    "empty-data-behind-the-end": Case(
        frame(DATA, END_STREAM, HALF), Resets(Code.STREAM_CLOSED, HALF), "6.1/closed"
    ),
    "headers-behind-the-end": Case(
        headers(HALF, field(b"x", b"y"), END_HEADERS | END_STREAM),
        Resets(Code.STREAM_CLOSED, HALF),
        "5.1/half-closed",
    ),
    "headers-and-continuation-behind-the-end": Case(
        headers(HALF, field(b"x", b"y"), END_STREAM)
        + frame(CONT, END_HEADERS, HALF, field(b"a", b"b")),
        Resets(Code.STREAM_CLOSED, HALF),
        "5.1/half-closed",
    ),
    "window-behind-the-end": Case(
        frame(WINDOW, 0, HALF, number(1)), IGNORED, "6.9/behind-the-end"
    ),
    "priority-behind-the-end": Case(
        frame(PRIORITY, 0, HALF, bytes(5)), IGNORED, "5.1/priority"
    ),
    "data-on-closed": Case(frame(DATA, 0, CLOSED, b"x"), IGNORED, "5.1/closed"),
    "headers-on-closed": Case(
        headers(CLOSED, field(b"x", b"y")), IGNORED, "5.1/closed"
    ),
    "window-on-closed": Case(
        frame(WINDOW, 0, CLOSED, number(1)), IGNORED, "6.9/behind-the-end"
    ),
    "reset-on-closed": Case(frame(RST, 0, CLOSED, bytes(4)), IGNORED, "5.4.2/no-loop"),
    "data-on-reset": Case(frame(DATA, 0, RESET, b"x"), IGNORED, "5.1/closed"),
    "headers-on-reset": Case(headers(RESET, field(b"x", b"y")), IGNORED, "5.1/closed"),
    # 5.5 Extending HTTP/2
    "unknown-type-in-a-field-block": Case(
        CUT + frame(UNKNOWN, 0, OPEN, b"x"), PROTOCOL, "5.5/in-a-field-block"
    ),
    # 6.1 DATA
    "data-on-0": Case(frame(DATA, 0, 0, b"x"), PROTOCOL, "6.1/stream-0"),
    "data-whose-padding-is-the-frame": Case(
        frame(DATA, PADDED, OPEN, b"\x03xy"), PROTOCOL, "6.1/padding"
    ),
    "data-whose-padding-is-more": Case(
        frame(DATA, PADDED, OPEN, b"\xffxy"), PROTOCOL, "6.1/padding"
    ),
    "data-without-its-padding-length": Case(
        frame(DATA, PADDED, OPEN), PROTOCOL, "6.1/padding"
    ),
    "data-of-nothing-but-padding": Case(
        frame(DATA, PADDED, OPEN, b"\x02\0\0"), IGNORED, ""
    ),
    # 6.2 HEADERS
    "headers-on-0": Case(headers(0, CONNECT), PROTOCOL, "6.2/stream-0"),
    "headers-whose-padding-is-more": Case(
        headers(NEW, b"\xff" + CONNECT, END_HEADERS | PADDED), PROTOCOL, "6.2/padding"
    ),
    "headers-without-room-for-their-priority": Case(
        headers(NEW, b"\0\0\0", END_HEADERS | WITH_PRIORITY), SIZE, "4.2/connection"
    ),
    "headers-cut-by-those-of-another-stream": Case(
        CUT + headers(IDLE, CONNECT), PROTOCOL, "6.2/continued"
    ),
    # 6.3 PRIORITY
    "priority-on-0": Case(frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL, "6.3/stream-0"),
    "short-priority": Case(
        frame(PRIORITY, 0, OPEN, bytes(4)), Resets(Code.FRAME_SIZE_ERROR), "6.3/length"
    ),
    "long-priority": Case(
        frame(PRIORITY, 0, OPEN, bytes(6)), Resets(Code.FRAME_SIZE_ERROR), "6.3/length"
    ),
    "short-priority-on-idle": Case(  # there is no stream to reset
        frame(PRIORITY, 0, IDLE, bytes(4)), SIZE, "6.3/length"
    ),
    "priority-on-itself": Case(  # RFC 7540's rule; it is gone
        frame(PRIORITY, 0, OPEN, number(OPEN) + b"\x10"), IGNORED, "6.3/deprecated"
    ),
    # 6.4 RST_STREAM
    "reset-on-0": Case(frame(RST, 0, 0, bytes(4)), PROTOCOL, "6.4/stream-0"),
    "short-reset": Case(frame(RST, 0, OPEN, bytes(3)), SIZE, "6.4/length"),
    "long-reset": Case(frame(RST, 0, OPEN, bytes(5)), SIZE, "6.4/length"),
    "reset-of-idle": Case(frame(RST, 0, IDLE, bytes(4)), PROTOCOL, "6.4/idle"),
    # 6.5 SETTINGS
    "acknowledgement-with-payload": Case(
        frame(SETTINGS, ACK, 0, bytes(6)), SIZE, "6.5/ack-with-payload"
    ),
    "settings-on-a-stream": Case(frame(SETTINGS, 0, OPEN), PROTOCOL, "6.5/on-a-stream"),
    "settings-cut": Case(frame(SETTINGS, 0, 0, bytes(5)), SIZE, "6.5/length"),
    "push-of-2": Case(settings(2, 2), PROTOCOL, "6.5.2/enable-push"),
    "window-of-2-31": Case(settings(4, 1 << 31), FLOW, "6.5.2/initial-window-size"),
    "window-of-2-32": Case(
        settings(4, (1 << 32) - 1), FLOW, "6.5.2/initial-window-size"
    ),
    "frame-size-of-16383": Case(settings(5, 16383), PROTOCOL, "6.5.2/max-frame-size"),
    "frame-size-of-2-24": Case(settings(5, 1 << 24), PROTOCOL, "6.5.2/max-frame-size"),
    "unknown-setting": Case(settings(0xFAFA, 1), IGNORED, "6.5.2/unknown"),
    "another-acknowledgement": Case(frame(SETTINGS, ACK), PROTOCOL, "5.1/unexpected"),
    # 6.7 PING
    "short-ping": Case(frame(PING, 0, 0, bytes(7)), SIZE, "6.7/length"),
    "long-ping": Case(frame(PING, 0, 0, bytes(9)), SIZE, "6.7/length"),
    "ping-on-a-stream": Case(
        frame(PING, 0, OPEN, bytes(8)), PROTOCOL, "6.7/on-a-stream"
    ),
    "answer-to-no-ping": Case(frame(PING, ACK, 0, bytes(8)), IGNORED, "6.7/no-answer"),
    # 6.8 GOAWAY
    "goaway-on-a-stream": Case(
        frame(GOAWAY, 0, OPEN, bytes(8)), PROTOCOL, "6.8/on-a-stream"
    ),
    "short-goaway": Case(frame(GOAWAY, 0, 0, bytes(7)), SIZE, "4.2/connection"),
    # 6.9 WINDOW_UPDATE
    "window-of-nothing": Case(
        frame(WINDOW, 0, OPEN, bytes(4)), Resets(Code.PROTOCOL_ERROR), "6.9/increment-0"
    ),
    "window-of-a-reserved-bit": Case(
        frame(WINDOW, 0, OPEN, b"\x80\0\0\0"),
        Resets(Code.PROTOCOL_ERROR),
        "6.9/increment-0",
    ),
    "window-of-nothing-on-0": Case(
        frame(WINDOW, 0, 0, bytes(4)), PROTOCOL, "6.9/increment-0-of-all"
    ),
    "window-of-nothing-on-idle": Case(
        frame(WINDOW, 0, IDLE, bytes(4)), PROTOCOL, "5.1/idle"
    ),
    "short-window": Case(frame(WINDOW, 0, OPEN, bytes(3)), SIZE, "6.9/length"),
    "long-window": Case(frame(WINDOW, 0, 0, bytes(5)), SIZE, "6.9/length"),
    "window-above-2-31": Case(
        frame(WINDOW, 0, OPEN, MAX), Resets(Code.FLOW_CONTROL_ERROR), "6.9.1/overflow"
    ),
    "window-above-2-31-on-0": Case(
        frame(WINDOW, 0, 0, MAX), FLOW, "6.9.1/overflow-of-all"
    ),
    "settings-that-make-a-window-too-large": Case(  # nghttp2 has it
        frame(WINDOW, 0, OPEN, number((1 << 31) - 1 - 65535)) + settings(4, 1 << 17),
        Resets(Code.FLOW_CONTROL_ERROR),
        "6.9.2/overflow",
    ),
    # 6.10 CONTINUATION
    "continuation-on-0": Case(
        frame(CONT, END_HEADERS, 0, b"\x82"), PROTOCOL, "6.10/stream-0"
    ),
    "continuation-of-nothing": Case(
        frame(CONT, END_HEADERS, OPEN, b"\x82"), PROTOCOL, "6.10/lone"
    ),
    "continuation-of-another-stream": Case(
        CUT + frame(CONT, END_HEADERS, HALF, b"\x82"), PROTOCOL, "6.10/continued"
    ),
    "continuation-behind-the-last": Case(
        CUT + frame(CONT, END_HEADERS, OPEN) + frame(CONT, END_HEADERS, OPEN),
        PROTOCOL,
        "6.10/lone",
    ),
    # 8.5 The CONNECT Method
    "trailers": Case(
        headers(OPEN, field(b"x", b"y"), END_HEADERS | END_STREAM),
        Resets(Code.PROTOCOL_ERROR),
        "8.5/data-only",
    ),
    "headers-in-mid-stream": Case(
        headers(OPEN, field(b"x", b"y")), Resets(Code.PROTOCOL_ERROR), "8.1/end-stream"
    ),
    "pseudo-header-in-trailers": Case(
        headers(OPEN, OK, END_HEADERS | END_STREAM),
        Resets(Code.PROTOCOL_ERROR),
        "8.1/trailers",
    ),
}
"""Whether the peer is the client or the server."""

BLOCKS: Final[dict[str, bytes]] = {
    "index-0": b"\x80",
    "index-that-is-not-there": b"\xbe",
    "number-without-end": b"\xff\xff\xff\xff\xff\xff\xff\xff",
    "string-that-is-cut": b"\0\x01x\x05y",
    "huffman-that-is-none": b"\0\x01x\x84\xff\xff\xff\xff",
    "huffman-padded-by-zeroes": b"\0\x01x\x81\x00",
    "table-above-its-maximum": b"\x3f\xe2\x1f",
    "table-changed-behind-a-field": OK + b"\x20",
}
"""Field blocks that can't be decoded (RFC 7541); of whatever stream they are."""

BOTH.update(
    {
        name: Case(headers(CLOSED, block), COMPRESSION, "4.3/decoding-error")
        for name, block in BLOCKS.items()
    }
)
