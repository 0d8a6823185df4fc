"""Why a tunnel or a stream of HBONE failed, or ended."""

from __future__ import annotations

import enum
from typing import Final


class Reason(enum.IntEnum):
    """Why a tunnel or a stream failed, or ended; `enum vu_reason`."""

    NONE = 0
    DIAL = 1
    TIME = 2
    CLOSED = 3
    ALERT = 4
    TLS = 5
    ALPN = 6
    NOCERT = 7
    CHAIN = 8
    EXPIRED = 9
    REVOKED = 10
    IDENTITY = 11
    NAME = 12
    HTTP2 = 13
    FLOOD = 14
    PING = 15
    LOST = 16
    GOAWAY = 17
    IDLE = 18
    DRAINED = 19
    STATUS = 20
    BAD_REQUEST = 21
    UNAUTHORIZED = 22
    UNAVAILABLE = 23
    RESET = 24
    REFUSED = 25
    SHORT = 26

    @property
    def text(self) -> str:
        """What a log line says."""
        return _TEXTS[self]


_TEXTS: Final = {
    Reason.NONE: "",
    Reason.DIAL: "the peer cannot be reached",
    Reason.TIME: "the peer did not finish TLS and HTTP/2 in time",
    Reason.CLOSED: "the peer closed before HTTP/2 began: it dislikes our certificate",
    Reason.ALERT: "the peer refused by a TLS alert",
    Reason.TLS: "the peer speaks no TLS 1.3 of ours",
    Reason.ALPN: "the peer speaks another protocol than h2",
    Reason.NOCERT: "the peer showed no certificate",
    Reason.CHAIN: "the peer's certificate does not come from our roots",
    Reason.EXPIRED: "the peer's certificate is not valid now",
    Reason.REVOKED: "the peer's certificate is revoked",
    Reason.IDENTITY: "the peer's certificate has not exactly one SPIFFE identity",
    Reason.NAME: "the peer has another identity",
    Reason.HTTP2: "the peer broke HTTP/2",
    Reason.FLOOD: "the peer flooded us",
    Reason.PING: "the peer did not answer a PING",
    Reason.LOST: "the tunnel was lost",
    Reason.GOAWAY: "the peer takes no more streams",
    Reason.IDLE: "nobody used it",
    Reason.DRAINED: "it was drained",
    Reason.STATUS: "the peer answered CONNECT by another status",
    Reason.BAD_REQUEST: "the peer answered CONNECT by 400",
    Reason.UNAUTHORIZED: "the peer answered CONNECT by 401",
    Reason.UNAVAILABLE: "the peer answered CONNECT by 503",
    Reason.RESET: "the peer reset the stream",
    Reason.REFUSED: "the peer refused the stream",
    Reason.SHORT: "out of memory or descriptors",
}
