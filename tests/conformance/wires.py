"""A gate and pools whose peers' every byte is the test's, and a tunnel beside.

Client and server at the other end have streams in each state of rfc9113.py.
"""

from __future__ import annotations

import socket

from tests.conformance.conftest import read_exactly
from tests.conformance.frames import (
    AUTHORITY,
    CONNECT,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    METHOD,
    OK,
    PREFACE,
    RST,
    SETTINGS,
    Code,
    Wire,
    frame,
)
from tests.conformance.links import wait_for
from tests.conformance.rfc9113 import (
    ASKED,
    CLOSED,
    HALF,
    OPEN,
    RESET,
    headers,
    number,
)
from tests.support import pki
from vhost_user.engine import Echo, EventKind
from vhost_user.hbone import Reason

CLIENTS_PREFACE = PREFACE + frame(SETTINGS)
SERVERS_PREFACE = frame(SETTINGS)
LAST = 11
"""Of a client: open, too."""


class Gate:
    """A gate that answers by what `:authority` has: port 7 an echo, else a socket.

    Args:
        mesh: whose engine it is of.
        options: of the gate.
    """

    def __init__(self, mesh, **options):
        self._mesh = mesh
        self.ours = mesh.gate(**options)
        host = mesh.host
        host.call(host.engine.hear, self.ours.gate.id, self._hear)
        self._context = mesh.context(pki.WEB)

    def _hear(self, event):
        self.ours.events.add(event)
        if event.kind is not EventKind.REQUEST:
            return
        engine = self._mesh.host.engine
        request = self.ours.gate.request(event.conn)
        if request is None:
            return
        if request.authority.endswith(":7"):
            engine.answer(event.conn, Echo())
        else:
            ours, theirs = socket.socketpair()
            self._mesh.kept(ours)
            engine.answer_fd(event.conn, theirs)

    def wire(self, preface=CLIENTS_PREFACE):
        """Make a tunnel; say this first."""
        sock = self._mesh.dial(self.ours.address)
        return Wire(self._mesh.kept(self._context.wrap_socket(sock)), preface)

    def stats(self):
        return self.ours.stats()

    def ends(self, count=0):
        """Wait for so many ends of tunnels; return why those ended."""
        return _ends(self.ours.events, count)


class Beside:
    """A connection by a tunnel of ours, of a pool of its own; it answers PINGs.

    Args:
        mesh: whose engine it is of.
        gate: whose tunnel it is; it echoes.
    """

    def __init__(self, mesh, gate):
        self._sock = mesh.pool(gate.ours.address, authority="10.0.0.9:7").client()
        self.works()

    def works(self):
        """It does."""
        self._sock.sendall(b"there")
        assert read_exactly(self._sock, 5) == b"there"


def _ends(events, count):
    def reasons():
        return [r for e in events.of(EventKind.TUNNEL) if (r := Reason(e.reason))]

    wait_for(lambda: len(reasons()) >= count, f"{count} ends")
    return reasons()


class Pool:
    """A pool, whose tunnels the test takes.

    Args:
        mesh: whose engine it is of.
        tls: certificates of the engine's; else new ones.
        context: of the server; else a new one.
        options: of the pool.
    """

    def __init__(self, mesh, tls=None, context=None, **options):
        self._mesh = mesh
        self.ours = mesh.pool(tls=tls, **options)
        self._context = context or mesh.context(pki.DB, server=True)

    def wire(self, preface=SERVERS_PREFACE):
        """Take a tunnel; say this first."""
        sock = self._mesh.accept(self.ours.server)
        wrapped = self._context.wrap_socket(sock, server_side=True)
        wire = Wire(self._mesh.kept(wrapped), preface)
        assert read_exactly(wire.sock, len(PREFACE)) == PREFACE
        return wire

    def stats(self):
        return self.ours.stats()

    def ends(self, count=0):
        """Wait for so many ends of tunnels; return why those ended."""
        return _ends(self.ours.events, count)


def client_of(gate):
    """Return a client whose streams are as rfc9113.py has them."""
    wire = gate.wire()
    stays = METHOD + AUTHORITY.replace(b":7", b":3")
    wire.say(
        headers(OPEN, CONNECT),
        headers(HALF, stays, END_HEADERS | END_STREAM),
        headers(CLOSED, CONNECT, END_HEADERS | END_STREAM),
        headers(RESET, stays),
        frame(RST, 0, RESET, number(Code.CANCEL)),
        headers(LAST, CONNECT),
    )
    missing = {(HEADERS, OPEN), (HEADERS, HALF), (HEADERS, LAST), (DATA, CLOSED)}

    def all_there(each):
        missing.discard((each.kind, each.stream))
        return not missing

    wire.until(all_there)
    assert not missing
    wire.fence()  # an answer on RESET may have been under way
    return wire


def server_of(pool):
    """Return a server whose streams are as rfc9113.py has them, and its clients."""
    socks = {OPEN: pool.ours.client()}
    wire = pool.wire()
    for stream in (OPEN, HALF, CLOSED, RESET, ASKED):
        socks[stream] = socks.get(stream) or pool.ours.client()
        asked(wire, stream)
        if stream != ASKED:
            wire.say(headers(stream, OK))
    socks[CLOSED].close()
    wire.until(lambda each: (each.stream, each.flags) == (CLOSED, END_STREAM))
    wire.say(
        frame(DATA, END_STREAM, HALF),
        frame(DATA, END_STREAM, CLOSED),
        frame(RST, 0, RESET, number(Code.CANCEL)),
    )
    wire.fence()
    assert socks[HALF].recv(1) == b""
    return wire, socks


def asked(wire, stream):
    """Wait for a CONNECT, as a server."""
    wire.until(lambda each: (each.kind, each.stream) == (HEADERS, stream))


def echoes(wire, stream):
    """A stream does, as a client."""
    wire.say(frame(DATA, 0, stream, b"still"))
    seen = wire.until(lambda each: (each.kind, each.stream) == (DATA, stream))
    assert seen[-1].payload.endswith(b"still")
