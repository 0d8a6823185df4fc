"""TCP listeners on the host and their clients: a model for `fuzz_tsi.py`.

As strict about its calls as the real ones: nobody listens twice at one address, nor on
a port that the policy doesn't publish, and each client is closed once.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, cast

from fastpath.ztunnel.inbound import SandboxPublisher
from vhost_user.engine import Event, EventKind
from vhost_user.errors import StateError


class Doors(SandboxPublisher):
    """Where the ports of one sandbox are published.

    Args:
        may: says whether a port is published by the policy in force.
        what: as of `SandboxPublisher`.
    """

    def __init__(self, may, *what):
        super().__init__(*what)
        self.may = may
        self.open = []
        self.clients = []
        self.fails = 0
        """The errno of the next listen() or accept()."""

    def listen(self, address, backlog):
        self.fail()
        return Door(self, address, backlog)

    def fail(self):
        error, self.fails = self.fails, 0
        if error:
            raise OSError(error, "the host is so")

    def check(self):
        """Check what is open, and that clients who are gone are closed."""
        assert all(self.may(door.address.port) for door in self.open)
        self.clients = [client for client in self.clients if not client.closed]


class Door:
    """A TCP listener, and what the engine makes of it; see native/vsock/door.c."""

    def __init__(self, doors, address, backlog):
        assert doors.may(address.port), f"{address} is open"
        assert all(door.address != address for door in doors.open)
        self.doors, self.address = doors, address
        self.engine = self.box = self.on_event = cast("Any", None)
        self.waiting = []
        self.callers = {}
        self.pending = 0
        self.paused = self.closed = False
        self.set_backlog(backlog)
        doors.open.append(self)

    def getsockname(self):
        return str(self.address.host), self.address.port

    def attach(self, engine, box, on_event):
        self.engine, self.box, self.on_event = engine, box, on_event

    def arrive(self, source):
        """Let somebody connect."""
        self.waiting.append((Client(self.getsockname()), source))
        self.accept()

    def accept(self):
        """Take in who waits, as far as it may."""
        while self.waiting and not self.paused and self.pending < self.most:
            error, self.doors.fails = self.doors.fails, 0
            if error:
                self.engine.loop.call_later(0.005, self.accept)
                return
            client, source = self.waiting.pop(0)
            self.doors.clients.append(client)
            self.pending += 1
            if not self.offer(client, source):
                self.ask(client, source)

    def offer(self, client, source):
        guest_port, first = self.callers.get(ip_address(source[0]), (0, 0))
        if not first:
            return False
        shown = self.box.inbound._peers.ip_of(first - 0x80000000 >> 16)
        mapped = getattr(shown, "ipv4_mapped", None)
        assert ip_address(source[0]) in (shown, mapped), "another's name"
        try:
            number = self.engine.offer(self.box, guest_port, first | source[1], client)
        except StateError:
            return False
        self.engine.conns[number].visitor = Visitor(self, source)
        return True

    def ask(self, client, source, error=0):
        """Have Python take a client."""
        self.paused |= error != 0
        self.engine.next += 1
        number = self.engine.next
        self.engine.held[number] = (self, client)
        event = Event(
            kind=EventKind.REQUEST,
            conn=number,
            error=error,
            **Visitor(self, source).fields(),
        )
        self.engine.loop.call_soon(self.on_event, event)

    def settled(self):
        self.pending -= 1
        self.accept()

    # What Python calls of a listener

    def know(self, ip, *, guest_port, first_port):
        assert not self.closed
        self.callers[ip] = (guest_port, first_port)

    def forget(self, ip):
        assert not self.closed
        self.callers.pop(ip, None)

    def forget_all(self):
        assert not self.closed
        self.callers.clear()

    def set_backlog(self, backlog):
        assert 0 <= backlog <= 65535
        assert not self.closed
        self.most = min(backlog + 1, 256)

    def pause(self):
        assert not self.closed
        self.paused = True

    def resume(self):
        assert not self.closed
        self.paused = False
        self.accept()

    def close(self):
        assert not self.closed
        self.closed = True
        self.waiting.clear()
        self.doors.open.remove(self)


class Visitor:
    """A client that the engine took in by itself."""

    def __init__(self, door, source):
        self.door, self.source = door, source

    def fields(self):
        """What events say of it."""
        door = self.door
        return {
            "tag": door.address.port,
            "src": self.source,
            "dst": door.getsockname(),
        }


class Client:
    """A client's socket, as accept() gives it."""

    def __init__(self, reached):
        self.reached = reached
        self.closed = False

    def getsockname(self):
        return self.reached

    def setblocking(self, on):
        assert not on

    def setsockopt(self, level, option, value):
        assert not self.closed

    def close(self):
        assert not self.closed, "closed twice"
        self.closed = True
