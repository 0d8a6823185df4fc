"""Peers that say too much, too little or at the wrong time: it costs them their tunnel.

Each is bounded (its tunnel ends, or a stream), told of by a TUNNEL event, counted, and
nobody else's: another tunnel of the same engine works, at the same gate if the peer is
a client. `test_ztunnel_gate_hostile` and `test_ztunnel_hbone_hostile` have the log.

RFC 9113, section 10.5 "Denial-of-Service Considerations".
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING

import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.frames import (
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
    PUSH,
    RST,
    SETTINGS,
    UNKNOWN,
    WINDOW,
    Code,
    frame,
)
from tests.conformance.rfc9113 import HALF, OPEN, headers, number, settings
from tests.conformance.threads import TIMEOUT_S
from tests.conformance.wires import (
    CLIENTS_PREFACE,
    SERVERS_PREFACE,
    Beside,
    Gate,
    Pool,
    asked,
    echoes,
)
from vhost_user.engine import EventKind
from vhost_user.hbone import Reason

if TYPE_CHECKING:
    import socket

MIB = 1 << 20


class AsClient:
    """A client at a gate of ours; another one is there, too, if it has time to live."""

    preface = CLIENTS_PREFACE
    last = 0
    """Stream in its GOAWAY: of those that the server opens."""

    def __init__(self, mesh, **options):
        self.ours = Gate(mesh, **options)
        self.beside = Beside(mesh, Gate(mesh) if options else self.ours)

    def reach(self, preface):
        """Make a tunnel."""
        return self.ours.wire(preface)

    def begin(self):
        """Make a tunnel with a stream, `OPEN`."""
        wire = self.ours.wire()
        wire.say(headers(OPEN, CONNECT))
        self.goes_on(wire)
        return wire

    def goes_on(self, wire):
        """`OPEN` does."""
        echoes(wire, OPEN)

    def ends(self, wire):
        """End `OPEN`, as both sides do."""
        wire.say(frame(DATA, END_STREAM, OPEN))
        wire.until(lambda each: each.stream == OPEN and each.flags & END_STREAM)

    def is_lost(self):
        """`OPEN` is: the gate's far side is an echo."""


class AsServer:
    """A server that a pool of ours goes to; a tunnel elsewhere is there, too."""

    preface = SERVERS_PREFACE
    last = OPEN

    def __init__(self, mesh, **options):
        self.ours = Pool(mesh, **options)
        self.beside = Beside(mesh, Gate(mesh))
        self.sock: socket.socket

    def reach(self, preface):
        """Take a tunnel."""
        self.sock = self.ours.ours.client()
        return self.ours.wire(preface)

    def begin(self):
        """Take a tunnel with a stream, `OPEN`."""
        wire = self.reach(SERVERS_PREFACE)
        asked(wire, OPEN)
        wire.say(headers(OPEN, OK))
        self.goes_on(wire)
        return wire

    def goes_on(self, wire):
        """`OPEN` does."""
        wire.say(frame(DATA, 0, OPEN, b"down"))
        assert read_exactly(self.sock, 4) == b"down"
        self.sock.sendall(b"up")
        assert wire.until(lambda each: each.kind == DATA)[-1].payload == b"up"

    def ends(self, wire):
        """End `OPEN`, as both sides do."""
        wire.say(frame(DATA, END_STREAM, OPEN))
        assert self.sock.recv(1) == b""
        self.sock.close()
        wire.until(lambda each: each.stream == OPEN and each.flags & END_STREAM)

    def is_lost(self):
        """`OPEN` is: its client is told so."""
        event = self.ours.ours.conns.wait(EventKind.CLOSED)
        assert event.error in {errno.ECONNRESET, errno.ETIMEDOUT}


@pytest.fixture(params=[AsClient, AsServer], ids=["client", "server"])
def hostile(request, mesh):
    """Return what makes a world with a hostile peer."""
    return lambda **options: request.param(mesh, **options)


def counted(world):
    """What peers did that ended their tunnels."""
    stats = world.ours.stats()
    return {"faults": stats.faults, "floods": stats.floods, "silent": stats.silent}


NOTHING = {"faults": 0, "floods": 0, "silent": 0}


def check_ended(world, reason, counter, tunnels):
    """The tunnel has, for a reason that is counted, and nobody else noticed."""
    assert world.ours.ends(1) == [reason]
    assert counted(world) == NOTHING | {counter: 1}
    assert world.ours.stats().tunnels == tunnels - 1
    world.is_lost()
    world.beside.works()


# ---- floods ----

STREAMS = range(3, 40001, 2)
FLOODS = {
    "ping": frame(PING, 0, 0, bytes(8)) * 100_000,
    "settings": frame(SETTINGS) * 100_000,
    "empty-data": frame(DATA, 0, OPEN) * 100_000,
    "padding": frame(DATA, PADDED, OPEN, b"\3\0\0\0") * 100_000,
    "priority": frame(PRIORITY, 0, OPEN, number(0) + b"\x10") * 100_000,
    "unknown": frame(UNKNOWN, 0, 0, b"x") * 100_000,
    "window-update": frame(WINDOW, 0, 0, number(1)) * 100_000,
    "reset": frame(RST, 0, OPEN, number(Code.CANCEL)) * 100_000,
    "continuation": frame(HEADERS, 0, OPEN) + frame(CONT, 0, OPEN) * 100_000,
    "field-block": frame(HEADERS, 0, OPEN) + frame(CONT, 0, OPEN, bytes(16000)) * 100,
}
CLIENTS_FLOODS = {
    "rapid-reset": b"".join(  # CVE-2023-44487
        headers(each, CONNECT) + frame(RST, 0, each, number(Code.CANCEL))
        for each in STREAMS
    ),
    # CVE-2025-8671, "MadeYouReset": requests, and what has us reset them
    "malformed": b"".join(headers(each, b"\x82") for each in STREAMS),
    "trailers": b"".join(
        headers(each, CONNECT) + headers(each, b"\x82") for each in STREAMS
    ),
    "window-of-nothing": b"".join(
        headers(each, CONNECT) + frame(WINDOW, 0, each, number(0)) for each in STREAMS
    ),
    "behind-the-end": b"".join(
        headers(each, CONNECT, END_HEADERS | END_STREAM) + frame(DATA, 0, each, b"x")
        for each in STREAMS
    ),
}
SERVERS_FLOODS = {
    "interim-answers": headers(HALF, b"\x08\x03103") * 100_000,
}


def floods(world, said):
    """Say it; it costs the tunnel."""
    wire = world.begin()
    tunnels = world.ours.stats().tunnels
    codes = [each.code for each in wire.shout(said) if each.kind == GOAWAY]
    assert codes in ([Code.ENHANCE_YOUR_CALM], [])  # none: it was cut while it shouted
    check_ended(world, Reason.FLOOD, "floods", tunnels)


@pytest.mark.spec("rfc9113:10.5/limits")
@pytest.mark.parametrize("said", FLOODS.values(), ids=FLOODS)
def test_a_flood_costs_its_peer_the_tunnel(hostile, said):
    floods(hostile(), said)


def test_a_flood_of_goaway_costs_its_peer_the_tunnel(hostile):
    world = hostile()
    floods(world, frame(GOAWAY, 0, 0, number(world.last) + number(0)) * 100_000)


@pytest.mark.parametrize("said", CLIENTS_FLOODS.values(), ids=CLIENTS_FLOODS)
def test_a_flood_by_a_client_costs_it_the_tunnel(mesh, said):
    floods(AsClient(mesh), said)


@pytest.mark.parametrize("said", SERVERS_FLOODS.values(), ids=SERVERS_FLOODS)
def test_a_flood_by_a_server_costs_it_the_tunnel(mesh, said):
    world = AsServer(mesh)
    wire = world.begin()
    world.ours.ours.client()  # it is never answered
    asked(wire, HALF)
    tunnels = world.ours.stats().tunnels
    wire.shout(said)
    check_ended(world, Reason.FLOOD, "floods", tunnels)


# ---- frames of 1 MiB ----

HUGE = {
    "headers": (frame(HEADERS, END_HEADERS, 99, bytes(MIB)), "floods"),
    "continuation": (
        frame(HEADERS, 0, OPEN) + frame(CONT, END_HEADERS, OPEN, bytes(MIB)),
        "floods",
    ),
    "goaway": (frame(GOAWAY, 0, 0, bytes(MIB)), "floods"),
    "settings": (frame(SETTINGS, 0, 0, bytes(MIB // 6 * 6)), "faults"),
    "push": (frame(PUSH, END_HEADERS, OPEN, bytes(MIB)), "faults"),
    "ping": (frame(PING, 0, 0, bytes(MIB)), "faults"),
    "priority": (frame(PRIORITY, 0, 99, bytes(MIB)), "faults"),
    "reset": (frame(RST, 0, OPEN, bytes(MIB)), "faults"),
    "window-update": (frame(WINDOW, 0, OPEN, bytes(MIB)), "faults"),
    "data-of-no-stream": (frame(DATA, 0, 99, bytes(MIB)), "faults"),
}


@pytest.mark.parametrize(("said", "counter"), HUGE.values(), ids=HUGE)
def test_a_frame_of_1_mib_that_nobody_asked_for_ends_the_tunnel(hostile, said, counter):
    world = hostile()
    wire = world.begin()
    tunnels = world.ours.stats().tunnels
    wire.shout(said)
    reason = Reason.FLOOD if counter == "floods" else Reason.HTTP2
    check_ended(world, reason, counter, tunnels)


def test_unknown_frames_of_1_mib_are_read_and_forgotten(hostile):
    world = hostile()
    wire = world.begin()
    for _ in range(64):
        wire.say(frame(UNKNOWN, 0, OPEN, bytes(MIB)))
    world.goes_on(wire)
    assert counted(world) == NOTHING
    world.beside.works()


# ---- silence ----


def test_a_peer_that_answers_no_ping_loses_its_tunnel(hostile):
    world = hostile(ping_s=0.1, silence_s=1.0)
    world.begin()
    tunnels = world.ours.stats().tunnels
    check_ended(world, Reason.PING, "silent", tunnels)


def trickle(wire, said):
    """Say it byte by byte, as long as somebody hears it."""
    until = time.monotonic() + TIMEOUT_S
    with contextlib.suppress(OSError):
        for byte in said:
            assert time.monotonic() < until
            wire.say(bytes((byte,)))
            time.sleep(0.01)


def test_a_peer_that_trickles_a_frame_loses_its_tunnel(hostile):
    """No answer to a PING fits into it."""
    world = hostile(ping_s=0.1, silence_s=1.0)
    wire = world.begin()
    tunnels = world.ours.stats().tunnels
    trickle(wire, frame(DATA, 0, OPEN, bytes(MIB)))
    check_ended(world, Reason.PING, "silent", tunnels)


def test_a_peer_that_trickles_its_settings_never_has_a_tunnel(hostile):
    world = hostile(connect_s=1.0)
    before = world.ours.stats()
    wire = world.reach(world.preface[:-9])
    trickle(wire, frame(SETTINGS, 0, 0, bytes(6 * 32)))
    assert world.ours.ends(1) == [Reason.TIME]
    after = world.ours.stats()
    assert (after.failed, after.tunnels) == (before.failed + 1, before.tunnels)
    world.beside.works()


# ---- ends in mid-stream ----


@pytest.mark.parametrize("code", [Code.NO_ERROR, Code.PROTOCOL_ERROR, Code.CANCEL])
def test_goaway_in_mid_stream_leaves_the_stream(hostile, code):
    world = hostile()
    wire = world.begin()
    wire.say(frame(GOAWAY, 0, 0, number(world.last) + number(code)))
    world.goes_on(wire)
    world.ends(wire)
    assert world.ours.ends(1) == [Reason.GOAWAY]
    assert counted(world) == NOTHING
    world.beside.works()


@pytest.mark.parametrize("code", [*Code, 0xDEAD_BEEF])
def test_a_reset_in_mid_stream_ends_the_stream_alone(hostile, code):
    world = hostile()
    before = world.ours.stats()
    wire = world.begin()
    wire.say(frame(RST, 0, OPEN, number(code)))
    world.is_lost()
    wire.fence()
    after = world.ours.stats()
    assert (after.streams, after.tunnels) == (before.streams, before.tunnels + 1)
    assert counted(world) == NOTHING
    world.beside.works()


def test_a_peer_that_vanishes_in_mid_frame_is_forgotten(hostile):
    world = hostile()
    wire = world.begin()
    wire.say(frame(DATA, 0, OPEN, bytes(100))[:50])
    wire.sock.close()
    assert world.ours.ends(1) == [Reason.LOST]
    world.is_lost()
    world.beside.works()


# ---- streams ----


def test_a_client_that_opens_too_many_streams_is_refused_and_others_go_on(mesh):
    world = AsClient(mesh, max_streams=10)
    wire = world.begin()
    before = world.ours.stats().requests
    wire.say(b"".join(headers(each, CONNECT) for each in range(3, 2001, 2)))
    refused: list[Code] = []
    while len(refused) < 990:
        refused.append(wire.until(lambda each: each.kind == RST)[-1].code)
    assert set(refused) == {Code.REFUSED_STREAM}
    assert world.ours.stats().requests - before == 9
    world.goes_on(wire)
    world.beside.works()


def test_a_server_that_takes_no_streams_any_more_keeps_those_it_has(mesh):
    world = AsServer(mesh)
    wire = world.begin()
    wire.say(settings(3, 0))
    world.goes_on(wire)
    wire.fence()
    world.ours.ours.client()
    other = world.ours.wire()
    asked(other, OPEN)
    world.goes_on(wire)
    world.beside.works()
