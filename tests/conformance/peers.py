"""The other end of a tunnel, by Python's `ssl` and python-h2: none of it is ours."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from tests.conformance.threads import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONNECT = [(":method", "CONNECT"), (":authority", "10.0.0.9:80")]
CODES = h2.settings.SettingCodes


class GoneError(Exception):
    """The tunnel has ended."""


class Peer:
    """HTTP/2 over a TLS socket; all of it in the caller's thread.

    Args:
        sock: a TLS socket after the handshake, or what is like one.
        client: we are the client.
        settings: our first SETTINGS, besides h2's own.
        window: how far the session's window is enlarged, bytes.
    """

    def __init__(
        self,
        sock: Any,
        *,
        client: bool,
        settings: dict[CODES, int] | None = None,
        window: int = 1 << 24,
    ) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT_S)
        config = h2.config.H2Configuration(
            client_side=client,
            header_encoding="utf-8",
            validate_inbound_headers=False,
            validate_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        values = {CODES.ENABLE_PUSH: 0} if client else {}
        self.h2.local_settings = h2.settings.Settings(
            client=client, initial_values=values | (settings or {})
        )
        self.h2.initiate_connection()
        if window:
            self.h2.increment_flow_control_window(window)
        self.flush()
        self.events: list[h2.events.Event] = []

    def flush(self) -> None:
        """Send what h2 has to say."""
        self.sock.sendall(self.h2.data_to_send())

    def pump(self) -> None:
        """Read once, and answer what h2 answers by itself.

        Raises:
            GoneError: the tunnel has ended.
        """
        try:
            data = self.sock.recv(1 << 16)
        except (ConnectionError, ssl.SSLError) as error:
            raise GoneError(str(error)) from None
        if not data:
            raise GoneError("end")
        self.events += self.h2.receive_data(data)
        self.flush()

    def raw(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """Send a frame that h2 knows nothing of."""
        head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
        self.sock.sendall(head + stream.to_bytes(4, "big") + payload)

    def until(
        self,
        kind: type | tuple[type, ...],
        true: Callable[..., bool] = lambda _event: True,
    ) -> Any:
        """Read until there is an event of a kind, and take it out."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and true(event):
                    self.events.remove(event)
                    return event
            self.pump()

    def gone(self) -> str:
        """Read until the tunnel ends; return why."""
        while True:
            try:
                self.pump()
            except GoneError as error:
                return str(error)

    # ---- as a client ----

    def connect(self, headers: Sequence[tuple[str, str]] = CONNECT) -> int:
        """Send a CONNECT; return its stream."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers)
        self.flush()
        return stream

    def status(self, stream: int) -> str:
        """Wait for the answer."""
        event = self.until(
            h2.events.ResponseReceived, lambda event: event.stream_id == stream
        )
        return str(dict(event.headers)[":status"])

    def connect_raw(
        self,
        stream: int,
        headers: Sequence[tuple[str, str]] = CONNECT,
        flags: int = 0x4,
    ) -> None:
        """Send HEADERS on a stream that h2 knows nothing of."""
        self.raw(0x1, flags, stream, self.h2.encoder.encode(headers))

    # ---- as a server ----

    def request(self) -> tuple[int, dict[str, str]]:
        """Wait for a request; return its stream and its headers."""
        event = self.until(h2.events.RequestReceived)
        return event.stream_id, dict(event.headers)

    def answer(self, stream: int, status: int = 200, *more: tuple[str, str]) -> None:
        """Answer a request; other statuses than 200 end the stream."""
        headers = [(":status", str(status)), *more]
        self.h2.send_headers(stream, headers, end_stream=status != 200)
        self.flush()

    # ---- as both ----

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send bytes as windows let, reading meanwhile."""
        at = 0
        while at < len(data) or end:
            room = min(
                self.h2.local_flow_control_window(stream),
                self.h2.max_outbound_frame_size,
                len(data) - at,
            )
            last = end and at + room == len(data)
            if room or last:
                self.h2.send_data(stream, data[at : at + room], end_stream=last)
                self.flush()
                at += room
                if last:
                    return
            else:
                self.pump()

    def read(self, stream: int, size: int, *, acknowledge: bool = True) -> bytes:
        """Read so many bytes of a stream."""
        data = b""
        while len(data) < size:
            event = self.until(
                h2.events.DataReceived, lambda event: event.stream_id == stream
            )
            data += event.data
            if acknowledge and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
                self.flush()
        return data

    def ended(self, stream: int) -> None:
        """Wait for END_STREAM."""
        self.until(h2.events.StreamEnded, lambda event: event.stream_id == stream)

    def was_reset(self, stream: int) -> int:
        """Wait for RST_STREAM; return its code."""
        event = self.until(
            h2.events.StreamReset, lambda event: event.stream_id == stream
        )
        return int(event.error_code)

    def fence(self) -> None:
        """Wait until the other end has heard all so far."""
        self.h2.ping(b"\0" * 8)
        self.flush()
        self.until(h2.events.PingAckReceived)

    def close(self) -> None:
        self.sock.close()


class Inside:
    """A stream of a tunnel with TLS in it, as a socket; in the caller's thread.

    Args:
        outer: whose stream it is.
        stream: its number.
        context: a server's.
    """

    def __init__(self, outer: Peer, stream: int, context: ssl.SSLContext) -> None:
        self._outer, self._stream = outer, stream
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._until_done(self._tls.do_handshake)

    def settimeout(self, _timeout_s: float) -> None:
        """The outer socket has one."""

    def sendall(self, data: bytes) -> None:
        self._until_done(lambda: self._tls.write(data) if data else 0)

    def recv(self, size: int) -> bytes:
        with contextlib.suppress(ssl.SSLEOFError):
            return bytes(self._until_done(lambda: self._tls.read(size)))
        return b""

    def close(self) -> None:
        self._outer.send(self._stream, b"", end=True)

    def getpeercert(self) -> Any:
        return self._tls.getpeercert()

    def _until_done(self, work: Callable[[], Any]) -> Any:
        while True:
            try:
                return work()
            except ssl.SSLWantReadError:
                self._flush()
                self._more()
            finally:
                self._flush()

    def _flush(self) -> None:
        if data := self._out.read():
            self._outer.send(self._stream, data)

    def _more(self) -> None:
        ends = (h2.events.DataReceived, h2.events.StreamEnded, h2.events.StreamReset)
        event = self._outer.until(ends, lambda it: it.stream_id == self._stream)
        if isinstance(event, h2.events.DataReceived):
            self._in.write(event.data)
            size = event.flow_controlled_length
            if size:
                self._outer.h2.acknowledge_received_data(size, self._stream)
                self._outer.flush()
        elif isinstance(event, h2.events.StreamEnded):
            self._in.write_eof()
        else:
            raise ConnectionResetError
