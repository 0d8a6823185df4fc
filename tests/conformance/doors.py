"""A listener of the engine whose clients are a guest's."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address

import pytest

from tests.conformance import ledger
from tests.conformance.links import wait_for
from tests.conformance.threads import TIMEOUT_S
from vhost_user.engine import Event, EventKind
from vhost_user.vsock.packet import Op

PORT = 0x100050
FIRST = 0x80010000
TAG = 80
LOCAL = IPv4Address("127.0.0.1")
RESET = struct.pack("ii", 1, 0)
REQUEST, OPENED, FAILED, CLOSED = (
    EventKind.REQUEST,
    EventKind.OPENED,
    EventKind.FAILED,
    EventKind.CLOSED,
)


class Door:
    """A listener on the host for a guest's port; its events, and the device's."""

    def __init__(self, host, *, backlog=64, family=socket.AF_INET, device=None):
        self.host = host
        self.events: list[Event] = []
        loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        # the kernel's has room for all: what it has not delays a client by a second
        sock = socket.create_server((loopback, 0), family=family, backlog=256)
        self.family, self.address = family, sock.getsockname()
        self.handle = self.call(
            lambda: host.engine.add_guest_listener(
                sock,
                device or host.device.handle,
                backlog=backlog,
                tag=TAG,
                on_event=self.events.append,
            )
        )

    def call(self, function):
        return self.host.call(function)

    def know(self, ip=LOCAL, *, port=PORT, first=FIRST):
        self.call(lambda: self.handle.know(ip, guest_port=port, first_port=first))

    def dial(self):
        sock = ledger.Sink(self.family)
        sock.settimeout(TIMEOUT_S)
        ledger.watch(sock, ("guest", PORT))
        sock.connect(self.address)
        return sock

    def told(self, count, kind=REQUEST):
        """Wait for so many events of a kind from the listener; return the last."""

        def found():
            return [event for event in self.events if event.kind is kind]

        wait_for(lambda: len(found()) >= count, f"event {count} of {kind.name}")
        assert len(found()) == count
        return found()[-1]

    def heard(self, count, kind):
        """Wait for so many events of a kind from the device; return the last."""
        wait_for(lambda: self.device(kind) >= count, f"event {count} of {kind.name}")
        assert self.device(kind) == count
        return self.host.events_of(kind)[-1]

    def device(self, kind):
        self.host.deliver()
        return len(self.host.events_of(kind))

    def take(self, event):
        sock = self.call(lambda: self.host.engine.take(event.conn))
        assert sock is not None
        return sock

    def conns(self):
        return self.call(lambda: self.host.device.handle.conns_from(FIRST))

    def close(self):
        self.call(self.handle.close)


def name(sock):
    return sock.getsockname()[:2]


def requested(guest):
    packet = guest.receive()
    assert packet.op == Op.REQUEST
    return packet.header


def refuse(guest, header):
    guest.send(guest.header(Op.RST, header.dst_port, header.src_port))


def is_reset(sock):
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
