"""What a client or a server may say wrong about its messages: more of the table."""

from __future__ import annotations

from typing import Final

from tests.conformance.frames import (
    AUTHORITY,
    CONNECT,
    CONT,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    METHOD,
    OK,
    PATH,
    PUSH,
    SCHEME,
    SETTINGS,
    WITH_PRIORITY,
    Code,
    field,
    frame,
)
from tests.conformance.rfc9113 import (
    ASKED,
    COMPRESSION,
    HALF,
    IGNORED,
    NEW,
    OPEN,
    PROTOCOL,
    SKIPPED,
    Answers,
    Case,
    Resets,
    Wants,
    headers,
    number,
    settings,
)

WELL: Final = Answers(OK)
NOT_FOR_US: Final = Answers(b"\x8c")
"""400: index 12."""


def asks(*parts: bytes, wants: Wants, spec: str) -> Case:
    """Make a case of a request whose field block has these parts."""
    return Case(headers(NEW, b"".join(parts)), wants, spec)


def malformed(*parts: bytes, spec: str) -> Case:
    """Make a case of a request that is a stream error."""
    return asks(*parts, wants=Resets(Code.PROTOCOL_ERROR, NEW), spec=spec)


CLIENT: Final[dict[str, Case]] = {
    "stream-number-that-goes-back": Case(
        headers(SKIPPED, CONNECT), PROTOCOL, "5.1.1/goes-back"
    ),
    "stream-number-that-goes-back-behind-more": Case(
        headers(1001, CONNECT) + headers(501, CONNECT), PROTOCOL, "5.1.1/goes-back"
    ),
    "even-stream": Case(headers(20, CONNECT), PROTOCOL, "5.1.1/odd"),
    "push": Case(
        frame(PUSH, END_HEADERS, OPEN, number(2) + CONNECT), PROTOCOL, "8.4/client"
    ),
    "no-settings-setting-is-missed": Case(settings(2, 1), IGNORED, "6.5.2/enable-push"),
    "goaway-of-a-stream-of-its-own": Case(
        frame(GOAWAY, 0, 0, number(1) + bytes(4)), PROTOCOL, ""
    ),
    "headers-that-depend-on-themselves": Case(  # RFC 7540's rule; nghttp2 has it
        headers(NEW, number(NEW) + b"\x10" + CONNECT, END_HEADERS | WITH_PRIORITY),
        PROTOCOL,
        "",
    ),
    "priority-and-padding": Case(
        headers(NEW, b"\x02" + bytes(5) + CONNECT + b"\0\0", 0x2C), WELL, ""
    ),
    "field-block-in-three-frames": Case(
        headers(NEW, CONNECT[:4], 0)
        + frame(CONT, 0, NEW, CONNECT[4:9])
        + frame(CONT, END_HEADERS, NEW, CONNECT[9:]),
        WELL,
        "4.3/reassembled",
    ),
    "field-block-that-cannot-be-decoded": Case(
        headers(NEW, b"\x80"), COMPRESSION, "4.3/decoding-error"
    ),
    "field-block-behind-the-end-is-decoded": Case(
        headers(HALF, b"\x40\x03abc\x03def") + headers(NEW, CONNECT + b"\xbe"),
        WELL,
        "4.3/discarded",
    ),
    "field-block-of-a-malformed-request-is-decoded": Case(
        headers(NEW, field(b"A", b"b") + b"\x40\x03abc\x03def")
        + headers(NEW + 2, CONNECT + b"\xbe"),
        Answers(OK, NEW + 2),
        "4.3/discarded",
    ),
    # 8.1.1, 8.2 and 8.3: a request that is malformed
    "upper-case-name": malformed(CONNECT, field(b"Abc", b"x"), spec="8.2.1/name"),
    "space-in-a-name": malformed(CONNECT, field(b"a c", b"x"), spec="8.2.1/name"),
    "delete-in-a-name": malformed(CONNECT, field(b"a\x7f", b"x"), spec="8.2.1/name"),
    "8-bit-name": malformed(CONNECT, field(b"a\xff", b"x"), spec="8.2.1/name"),
    "colon-in-a-name": malformed(CONNECT, field(b"a:b", b"x"), spec="8.2.1/colon"),
    "name-of-nothing": malformed(CONNECT, field(b"", b"x"), spec="8.2.1/name"),
    "nul-in-a-value": malformed(CONNECT, field(b"a", b"x\0y"), spec="8.2.1/value"),
    "lf-in-a-value": malformed(CONNECT, field(b"a", b"x\ny"), spec="8.2.1/value"),
    "cr-in-a-value": malformed(CONNECT, field(b"a", b"x\ry"), spec="8.2.1/value"),
    "space-before-a-value": malformed(CONNECT, field(b"a", b" x"), spec="8.2.1/space"),
    "tab-behind-a-value": malformed(CONNECT, field(b"a", b"x\t"), spec="8.2.1/space"),
    "connection": malformed(CONNECT, field(b"connection", b"x"), spec="8.2.2/fields"),
    "proxy-connection": malformed(
        CONNECT, field(b"proxy-connection", b"x"), spec="8.2.2/fields"
    ),
    "keep-alive": malformed(CONNECT, field(b"keep-alive", b"x"), spec="8.2.2/fields"),
    "transfer-encoding": malformed(
        CONNECT, field(b"transfer-encoding", b"chunked"), spec="8.2.2/fields"
    ),
    "upgrade": malformed(CONNECT, field(b"upgrade", b"x"), spec="8.2.2/fields"),
    "te-of-gzip": malformed(CONNECT, field(b"te", b"gzip"), spec="8.2.2/te"),
    "te-of-trailers": asks(
        CONNECT, field(b"te", b"trailers"), wants=WELL, spec="8.2.2/te"
    ),
    "pseudo-header-behind-a-field": malformed(
        METHOD, field(b"a", b"x"), AUTHORITY, spec="8.3/order"
    ),
    "unknown-pseudo-header": malformed(
        CONNECT, field(b":abc", b"x"), spec="8.3/undefined"
    ),
    "pseudo-header-of-responses": malformed(CONNECT, OK, spec="8.3/direction"),
    "two-methods": malformed(METHOD, CONNECT, spec="8.3/repeated"),
    "two-authorities": malformed(CONNECT, AUTHORITY, spec="8.3/repeated"),
    "no-method": malformed(AUTHORITY, SCHEME, PATH, spec="8.3.1/mandatory"),
    "no-scheme": malformed(GET, AUTHORITY, PATH, spec="8.3.1/mandatory"),
    "no-path": malformed(GET, AUTHORITY, SCHEME, spec="8.3.1/mandatory"),
    "path-of-nothing": malformed(
        GET, AUTHORITY, SCHEME, b"\x04\0", spec="8.3.1/empty-path"
    ),
    "two-paths": malformed(GET, AUTHORITY, SCHEME, PATH, PATH, spec="8.3/repeated"),
    "no-field-at-all": malformed(spec="8.3.1/mandatory"),
    # 8.5, and RFC 9110 and RFC 8441
    "connect-with-a-scheme": malformed(CONNECT, SCHEME, spec="8.5/omitted"),
    "connect-with-a-path": malformed(CONNECT, PATH, spec="8.5/omitted"),
    "connect-without-authority": malformed(METHOD, spec="8.5/authority"),
    "connect-by-a-host-field": malformed(
        METHOD, field(b"host", b"10.0.0.9:7"), spec="8.5/authority"
    ),
    "connect-to-no-port": asks(
        METHOD, b"\x01\x0810.0.0.9", wants=NOT_FOR_US, spec="rfc9110:9.3.6/port"
    ),
    "connect-to-an-empty-port": asks(
        METHOD, b"\x01\x0910.0.0.9:", wants=NOT_FOR_US, spec="rfc9110:9.3.6/port"
    ),
    "connect-to-port-0": asks(
        METHOD, b"\x01\x0a10.0.0.9:0", wants=NOT_FOR_US, spec="rfc9110:9.3.6/port"
    ),
    "connect-to-port-65536": asks(
        METHOD, b"\x01\x0e10.0.0.9:65536", wants=NOT_FOR_US, spec="rfc9110:9.3.6/port"
    ),
    "protocol-that-was-not-offered": malformed(
        CONNECT,
        SCHEME,
        PATH,
        field(b":protocol", b"websocket"),
        spec="8.3/undefined",
    ),
    "get": asks(GET, AUTHORITY, SCHEME, PATH, wants=NOT_FOR_US, spec=""),
    "trailers-behind-a-get": Case(
        headers(NEW, GET + AUTHORITY + SCHEME + PATH, END_HEADERS)
        + headers(NEW, field(b"x", b"y"), END_HEADERS | END_STREAM),
        NOT_FOR_US,
        "",
    ),
    "get-whose-length-is-none": malformed(
        GET, AUTHORITY, SCHEME, PATH, field(b"content-length", b"x"), spec=""
    ),
    "get-of-another-length": Case(
        headers(NEW, GET + AUTHORITY + SCHEME + PATH + field(b"content-length", b"5"))
        + frame(DATA, END_STREAM, NEW, b"four"),
        Resets(Code.PROTOCOL_ERROR, NEW),
        "8.1.1/content-length",
    ),
    "connect-of-another-length": Case(  # its DATA is no content
        headers(NEW, CONNECT + field(b"content-length", b"5"))
        + frame(DATA, 0, NEW, b"four"),
        WELL,
        "8.1.1/content-length",
    ),
}
"""Whose peer is the client."""


def says(*parts: bytes, spec: str, flags: int = END_HEADERS) -> Case:
    """Make a case of a response that is a stream error."""
    said = headers(ASKED, b"".join(parts), flags)
    return Case(said, Resets(Code.PROTOCOL_ERROR, ASKED), spec)


SERVER: Final[dict[str, Case]] = {
    "push": Case(
        frame(PUSH, END_HEADERS, OPEN, number(2) + CONNECT), PROTOCOL, "6.6/disabled"
    ),
    "push-on-0": Case(
        frame(PUSH, END_HEADERS, 0, number(2) + CONNECT), PROTOCOL, "6.6/stream-0"
    ),
    "push-enabled": Case(settings(2, 1), PROTOCOL, "6.5.2/enable-push-of-a-server"),
    "goaway-that-takes-more-than-before": Case(
        frame(GOAWAY, 0, 0, number(OPEN) + bytes(4))
        + frame(GOAWAY, 0, 0, number(ASKED) + bytes(4)),
        PROTOCOL,
        "6.8/increase",
    ),
    "data-before-the-answer": Case(
        frame(DATA, 0, ASKED, b"x"), Resets(Code.PROTOCOL_ERROR, ASKED), "8.1/first"
    ),
    "data-behind-an-interim-answer": Case(
        headers(ASKED, b"\x08\x03103") + frame(DATA, 0, ASKED, b"x"),
        Resets(Code.PROTOCOL_ERROR, ASKED),
        "8.1/first",
    ),
    "trailers-before-the-answer": says(
        field(b"x", b"y"), spec="8.3.2/status", flags=END_HEADERS | END_STREAM
    ),
    "interim-answer-that-ends": says(
        b"\x08\x03103", spec="8.1/interim-end", flags=END_HEADERS | END_STREAM
    ),
    "no-status": says(field(b"x", b"y"), spec="8.3.2/status"),
    "no-field-at-all": says(spec="8.3.2/status"),
    "status-of-letters": says(b"\x08\x03abc", spec="8.3/undefined"),
    "status-of-4-digits": says(b"\x08\x042000", spec="8.3/undefined"),
    "two-statuses": says(OK, OK, spec="8.3/repeated"),
    "status-behind-a-field": says(field(b"x", b"y"), OK, spec="8.3/order"),
    "switching-protocols": says(b"\x08\x03101", spec="8.6/upgrade"),
    "pseudo-header-of-requests": says(OK, PATH, spec="8.3/direction"),
    "upper-case-name": says(OK, field(b"Abc", b"x"), spec="8.2.1/name"),
    "nul-in-a-value": says(OK, field(b"a", b"x\0y"), spec="8.2.1/value"),
    "connection": says(OK, field(b"connection", b"x"), spec="8.2.2/fields"),
    "transfer-encoding": says(
        OK, field(b"transfer-encoding", b"chunked"), spec="8.2.2/fields"
    ),
    "content-length": Case(
        headers(ASKED, OK + field(b"content-length", b"1"))
        + frame(DATA, 0, ASKED, b"four"),
        IGNORED,
        "rfc9110:9.3.6/content-length",
    ),
    "field-block-that-cannot-be-decoded": Case(
        headers(ASKED, b"\x80"), COMPRESSION, "4.3/decoding-error"
    ),
    "settings-again": Case(frame(SETTINGS), IGNORED, ""),
}
"""Whose peer is the server."""
