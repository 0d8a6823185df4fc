"""The other end of a tunnel, whose TLS records are made by hand.

Python's `ssl` shakes hands; its key log has the traffic secrets.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from tests.conformance.peers import GoneError
from tests.support.tls13 import ALERT, DATA, HANDSHAKE, Direction

if TYPE_CHECKING:
    import socket
    from pathlib import Path

UPDATE = b"\x18\0\0\1"
"""KeyUpdate (RFC 8446 section 4.6.3) without what it asks."""
NOT_REQUESTED, REQUESTED = b"\0", b"\1"


class Records:
    """A session after the handshake, as a socket.

    Args:
        sock: connected.
        context: of Python's.
        log: a file of its own, for the secrets.
        server: we are the server.
        hold: the handshake's last bytes go out with what is said next.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        log: Path,
        *,
        server: bool = False,
        hold: bool = False,
    ) -> None:
        self._sock = sock
        self._held = b""
        context.keylog_filename = str(log)
        if server:
            context.num_tickets = 0  # Python would seal them
        self._shake(context, server=server, hold=hold)
        words = [line.split() for line in log.read_text().splitlines()]
        found = {line[0]: bytes.fromhex(line[2]) for line in words if len(line) == 3}
        ours, theirs = ("SERVER", "CLIENT") if server else ("CLIENT", "SERVER")
        self.out = Direction(found[f"{ours}_TRAFFIC_SECRET_0"])
        self.into = Direction(found[f"{theirs}_TRAFFIC_SECRET_0"])
        self.updates: list[bytes] = []
        """What came of KeyUpdates."""

    def _shake(self, context: ssl.SSLContext, *, server: bool, hold: bool) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=server)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.raw(outgoing.read())
                incoming.write(self._record())
        self._held = outgoing.read()
        if not hold:
            self.raw(b"")

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._sock.recv(size - len(data))
            if not more:
                raise GoneError("end")
            data += more
        return data

    def _record(self) -> bytes:
        head = self._exactly(5)
        return head + self._exactly(int.from_bytes(head[3:], "big"))

    # ---- records ----

    def raw(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self._sock.sendall(self._held + data)
        self._held = b""

    def say(self, kind: int, content: bytes, *, padding: int = 0) -> None:
        """Send a record."""
        self.raw(self.out.seal(content + bytes([kind]) + bytes(padding)))

    def update(self, request: bytes = NOT_REQUESTED) -> None:
        """Send a KeyUpdate, and go on with the next key."""
        self.say(HANDSHAKE, UPDATE + request)
        self.out = self.out.next()

    def hear(self) -> tuple[int, bytes]:
        """Receive a record; return its type and content."""
        kind, content = self.into.open(self._record())
        if kind == HANDSHAKE and content[:4] == UPDATE:
            self.updates.append(content[4:])
            self.into = self.into.next()
        return kind, content

    def alert(self) -> bytes:
        """Receive records up to an alert; return it."""
        while True:
            kind, content = self.hear()
            if kind == ALERT:
                return content

    # ---- what tests/conformance/peers.py needs of a socket ----

    def settimeout(self, timeout_s: float) -> None:
        self._sock.settimeout(timeout_s)

    def sendall(self, data: bytes) -> None:
        for at in range(0, len(data), 1 << 14):
            self.say(DATA, data[at : at + (1 << 14)])

    def recv(self, _size: int) -> bytes:
        while True:
            kind, content = self.hear()
            if kind == ALERT:
                return b""
            if kind == DATA:
                return content

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()
