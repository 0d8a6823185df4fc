"""The guest's end of TSI's streams, for `fuzz_tsi.py`: what it says and has to hear."""

from __future__ import annotations

import contextlib
import ipaddress
import struct

GRANT, PEER, VERDICT, DATAGRAM, UNREACHABLE = 32, 33, 34, 35, 36
LISTENING, CALLER = 17, 18
PEER_RANGES = 4


class Stream:
    """The guest's end of a control stream."""

    def __init__(self, box, sock):
        self.box, self.sock = box, sock
        self.token = None
        """The next one to register; None: not welcomed, or nobody knows."""
        self.range = None
        self.data = b""
        self.callers = []
        """Ranges of ports that were named."""

    def send(self, data, cut=0):
        """Send in two pieces; what finds no room is lost, and all is in doubt."""
        for piece in (data[:cut], data[cut:]):
            try:
                if self.sock.send(piece) < len(piece):
                    self.doubt()
            except OSError:
                self.doubt()
            if cut:
                self.box.loop.turn(1)

    def doubt(self):
        """Nobody knows from here on what the host makes of this stream."""
        self.token = None
        if self.range is not None:
            for token in range(self.range, self.range + 256):
                self.box.first[token] = None

    def read(self):
        """Read what came; it has to be well formed."""
        try:
            self.data += self.sock.recv(65536)
        except OSError:
            return
        while len(self.data) >= 4:
            kind, size = struct.unpack_from("<HH", self.data)
            assert kind in (2, 3, 5, LISTENING, CALLER), f"message type {kind}"
            if len(self.data) < 4 + size:
                break
            payload, self.data = self.data[4 : 4 + size], self.data[4 + size :]
            if kind == 2:
                assert self.range is None, "welcomed twice"
                self.token = self.range = struct.unpack_from("<I", payload, 4)[0]
                for token in [t for t in self.box.first if t >> 20 == self.range >> 20]:
                    del self.box.first[token]
            elif kind == 3:
                assert payload[4:].isascii()
                assert len(payload) <= 204
            elif kind == CALLER:
                ports, family = struct.unpack_from("<IH", payload)
                assert (size, ports & 0xFFFF) == (24, 0)
                assert ports >> 16 in range(0x8001, 0x8000 + PEER_RANGES - 1)
                assert family in (4, 6)
                self.callers.append(ports)
            else:
                assert size == 12

    def register(self, destination, cut=0):
        """Register the next token properly."""
        if self.token is None:
            return
        token, self.token = self.token, self.token + 1
        self.box.first.setdefault(token, destination)
        self.send(route(token, destination), cut)


class DatagramStream:
    """The guest's end of a datagram stream."""

    def __init__(self, box, sock):
        self.box, self.sock = box, sock
        self.data = b""
        self.found = []
        """Messages that were read: type and payload."""

    def send(self, data, cut=0):
        """Send in two pieces; what finds no room is lost."""
        for piece in (data[:cut], data[cut:]):
            with contextlib.suppress(OSError):
                self.sock.send(piece)
            if cut:
                self.box.loop.turn(1)

    def read(self):
        """Read what came; it has to be well formed."""
        try:
            self.data += self.sock.recv(1 << 20)
        except OSError:
            return
        while len(self.data) >= 4:
            kind, size = struct.unpack_from("<HH", self.data)
            sizes = {GRANT: 8, VERDICT: 8, UNREACHABLE: 12}
            assert kind in (3, DATAGRAM) or size == sizes[kind]
            if len(self.data) < 4 + size:
                break
            payload, self.data = self.data[4 : 4 + size], self.data[4 + size :]
            self.found.append((kind, payload))
            if kind == DATAGRAM:
                assert payload[8:] != b"unasked"


def route(token, destination):
    return endpoint(4, token, destination)


def endpoint(kind, number, destination):
    ip = ipaddress.ip_address(destination[0])
    head = struct.pack("<HHIHH", kind, 24, number, ip.version, destination[1])
    return head + ip.packed.ljust(16, b"\0")


def carry(flow, peer, data):
    return struct.pack("<HHHHI", DATAGRAM, 8 + len(data), flow, 0, peer) + data


def listen(listener, backlog, port, address, flags):
    ip = ipaddress.ip_address(address)
    head = (listener, backlog, port, ip.version, flags, 0)
    return struct.pack("<HHIIHHHH", 16, 32, *head) + ip.packed.ljust(16, b"\0")


def unlisten(listener):
    return struct.pack("<HHI", 19, 4, listener)


def introduced(ports):
    return struct.pack("<HHI", 20, 4, ports)


def hello(low=1, high=1):
    return struct.pack("<HHIHH", 1, 8, 0x41495354, low, high)
