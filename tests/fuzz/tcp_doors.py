"""TCP listeners on the host and their clients: a model for `fuzz_tsi.py`.

As strict about its calls as the real ones: nobody listens twice at one address, nor on
a port that the policy doesn't publish, and each client is closed once.
"""

from __future__ import annotations

import errno
import socket

from fastpath.ztunnel.inbound import SandboxPublisher


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
    """A TCP listener."""

    def __init__(self, doors, address, backlog):
        assert doors.may(address.port), f"{address} is open"
        assert all(door.address != address for door in doors.open)
        self.doors, self.address = doors, address
        self.ours, self.theirs = socket.socketpair()
        self.waiting = []
        self.listen(backlog)
        doors.open.append(self)

    def fileno(self):
        return self.ours.fileno()

    def setblocking(self, on):
        assert not on

    def listen(self, backlog):
        assert 0 <= backlog <= 65535

    def getsockname(self):
        return str(self.address.host), self.address.port

    def arrive(self, source):
        """Let somebody connect."""
        self.waiting.append((Client(self.getsockname()), source))
        self.theirs.send(b"!")

    def accept(self):
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "nobody")
        self.doors.fail()
        self.ours.recv(1)
        client, source = self.waiting.pop(0)
        self.doors.clients.append(client)
        return client, source

    def close(self):
        self.doors.open.remove(self)
        self.ours.close()
        self.theirs.close()


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
